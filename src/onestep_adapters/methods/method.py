"""The base class of methods: options with functions that build, prepare, train and sample a generator.

Every method file has the same members in the same order: options, ``build`` (and ``companions``), ``prepare``, ``loss``
(and ``turns``), ``sample``, then its presets. :class:`Method` has defaults for members that most methods do not need,
so that runs and commands can use every member of every method.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draws
from onestep_adapters.data.couplings import pairs_to_make
from onestep_adapters.encoders.encoder import Encoder
from onestep_adapters.methods.options import Network, Training
from onestep_adapters.methods.teacher import Teacher
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.tracking import Track, untracked
from onestep_adapters.training import Companion, TrainingState, Turn
from onestep_core.errors import ConfigError

Loss: TypeAlias = tuple[Tensor, Mapping[str, "float | Tensor"]]
"""The loss of one update, 0-d, and numbers to log."""


@attrs.define(eq=False)
class Context:
    """Everything that a method uses for training; given to ``prepare`` once and to ``loss`` at every update.

    Attributes:
        data: the data set.
        state: the run's state. It changes during training: ``state.ema`` is the current average, ``state.step`` the
            number of updates made.
        teacher: the teacher, or ``None``.
        cache: folder for results that are computed once with this teacher or encoder and used again, or ``None``.
        track: shows the progress of ``prepare``.
        prepared: the result of ``prepare``.
        encoder: the encoder that ``encoder_from`` of the options names, or ``None``.
    """

    data: Dataset
    state: TrainingState
    teacher: Teacher | None = None
    cache: Path | None = None
    track: Track = untracked
    prepared: Any = None
    encoder: Encoder | None = None

    @property
    def device(self) -> torch.device:
        """Device of the network, the generator and every tensor of the training."""
        return self.state.generator.device

    def required_teacher(self) -> Teacher:
        """The teacher.

        Raises:
            ConfigError: if there is none.
        """
        if self.teacher is None:
            raise ConfigError(
                "this method learns from a teacher and got none: train it with a Run, which provides the teacher"
            )
        return self.teacher

    def draws(self, coupling: Coupling = "independent", *, further: int = 0, alike: int = 1) -> Draws:
        """How batches of pairs are drawn; arguments as for :class:`~onestep_adapters.data.Draws`."""
        seed = self.state.generator.initial_seed()
        return Draws(self.data, coupling, further=further, alike=alike, seed=seed, track=self.track)

    def pairs_to_make(self, coupling: Coupling) -> tuple[str, ...]:
        """What :meth:`draws` makes with this coupling, for :meth:`Method.preparations`."""
        told = pairs_to_make(self.data, coupling, seed=self.state.generator.initial_seed())
        return (told,) if told else ()

    def companion(self, name: str) -> Any:
        """The module of a companion, for example ``context.companion("fake_score")``."""
        return self.state.companions[name].module


@attrs.frozen
class Method(ABC):
    """Options of a method. A subclass of your own trains, samples and is reported like the built-in ones."""

    training: Training = Training()
    network: Network = Network()

    teacher: ClassVar[Any] = None
    """Options of the flow-matching teacher that is trained first, or ``None`` for a method without a teacher."""
    teacher_from: ClassVar[str] = ""
    """Another teacher than that of ``teacher``'s options: a run folder, or ``"exact"``; empty for none."""
    encoder_from: ClassVar[str] = ""
    """Encoder whose features the method uses: a run folder or the name of a pretrained network; empty for none."""
    generates: ClassVar[bool] = True
    """Whether the network generates samples; false for the pretraining of an encoder."""
    objective: ClassVar[str] = ""
    """What the objective is, for the table that compares methods: a regression and of what, a consistency
    constraint."""
    ode: ClassVar[str] = "no"
    """What the method needs the ordinary differential equation of a flow for: ``"to sample"``, ``"to train"``,
    ``"to make pairs"``, or ``"no"``."""
    extends: ClassVar[bool] = True
    """Whether a training may go on with more updates than it was begun with; false where stages that depend on the
    number of updates leave something behind, such as a stage's teacher."""
    few_steps: ClassVar[bool] = False
    """Whether :meth:`sample_in` takes several evaluations."""
    monitors: ClassVar[tuple[str, ...]] = ()
    """Logged numbers that the training display shows instead of the loss, where the loss says nothing about
    progress."""

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample."""
        return 1

    @property
    @abstractmethod
    def calls(self) -> int:
        """Network evaluations in one update: of the network, its average, a teacher, a discriminator."""

    def work(self, step: int, data: Dataset) -> Work:
        """Network evaluations of the update after ``step`` updates, by rows; the default is right for a method whose
        networks see the whole batch in each of :attr:`calls`, one of them with a gradient."""
        rows = self.training.batch
        return seen((self.calls - 1) * rows) + trained(rows)

    @property
    def pairs_work(self) -> Work:
        """Network evaluations of what the teacher makes before the first update."""
        return seen(2 * self._pairs["solver_steps"] * self._pairs["count"]) if self.uses_pairs else Work()

    @property
    def uses_pairs(self) -> bool:
        """Whether the teacher makes pairs of noise and sample before the first update."""
        return bool(self._pairs)

    @property
    def _pairs(self) -> dict[str, int]:
        """Number, solver steps and seed of the teacher's pairs; empty for none."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """What the method needs beside data: a teacher, its pairs, an adversary, a fake score, an encoder."""
        found = {
            "teacher": self.teacher is not None or bool(self.teacher_from),
            "pairs": self.uses_pairs,
            "fake score": bool(getattr(self, "has_fake_score", False)),
            "adversary": getattr(self, "adversarial_weight", 0) > 0,
            "encoder": bool(self.encoder_from),
        }
        return tuple(name for name, needed in found.items() if needed)

    @property
    def self_contained(self) -> str:
        """Whether the method learns from data alone: yes, partly (an adversary, an encoder), or no (a teacher)."""
        if not self.needs:
            return "yes"
        return f"{'no' if 'teacher' in self.needs else 'partly'}: {', '.join(self.needs)}"

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the network starts from the teacher's weights, so that both need the same architecture."""
        return self.teacher is not None

    @property
    def distils_models(self) -> bool:
        """Whether the model of a pipeline of diffusers can be its network: it has a teacher to learn from, and each of
        its networks has a time.
        """
        return self.teacher is not None

    @abstractmethod
    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The network that generates the samples, with fresh weights, on the CPU."""

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """Other modules of the run, by name: a fake score, a discriminator, a stage's teacher, a queue."""
        return {}

    def prepare(self, context: Context) -> Any:
        """Called once before the first update: weights of a teacher, pairs. The result is ``context.prepared``."""
        return None

    def preparations(self, context: Context) -> tuple[str, ...]:
        """What :meth:`prepare` has to make, one line each, with its cost: announced before a training.

        By default the coupled pairs of an option ``coupling``.
        """
        return context.pairs_to_make(getattr(self, "coupling", "independent"))

    @abstractmethod
    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """The loss of one update, and numbers to log. ``network`` is the trained network."""

    def turns(self, context: Context) -> Sequence[Turn]:
        """Updates of companions before each update of the network, with their losses."""
        return ()

    def noise_shape(self, data: Dataset) -> tuple[int, ...]:
        """Shape of the noise of one sample; that of the data by default."""
        return tuple(data.shape)

    @abstractmethod
    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from standard normal noise ``[count, *noise_shape]``, of the classes ``labels`` ``[count]``."""

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples in this number of network evaluations, whatever the method's own number.

        Raises:
            ConfigError: for a method whose network makes samples in its own number alone.
        """
        if evaluations != self.evaluations:
            raise ConfigError(
                f"{type(self).__name__} samples in {self.evaluations} network evaluations only, not in {evaluations}"
            )
        return self.sample(network, noise, labels)

    def check_teacher(self, teacher: Teacher) -> None:  # noqa: B027
        """Raise an error if this method cannot use the teacher.

        Raises:
            ConfigError: with the reason.
        """

    def advice(self, data: Dataset) -> str:
        """What the command line says before a training with these options on these data; empty for nothing."""
        return ""

    def with_alpha(self, alpha: float) -> Self:
        """The same method with guidance scale ``alpha`` for sampling.

        Raises:
            ConfigError: if the network takes no guidance scale, or was not trained at this one.
        """
        raise ConfigError(f"{type(self).__name__} takes no guidance scale for sampling: leave alpha out")

    def with_seed(self, seed: int) -> Self:
        """The same method with another seed; the seed of a teacher is not changed."""
        return attrs.evolve(self, training=attrs.evolve(self.training, seed=seed))

    def previewed(self) -> Self:
        """The same method with a faster sampler, for curves during training; the same sampler by default."""
        return self
