"""What the pretraining methods of encoders share: they train an encoder and generate no samples."""

from abc import abstractmethod
from typing import ClassVar

import attrs
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.encoders.encoder import Encoder
from onestep_adapters.methods.method import Method
from onestep_core.errors import ConfigError


@attrs.frozen
class Pretraining(Method):
    """Options of a method that trains an encoder. Its run is used by name: ``--encoder-from RUN``."""

    generates: ClassVar[bool] = False

    @abstractmethod
    def encoder_of(self, network: nn.Module, data: Dataset, key: str = "") -> Encoder:
        """The encoder in a trained network, without the heads that only the pretraining needs."""

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """There are no samples.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{type(self).__name__} trains an encoder: it generates no samples")
