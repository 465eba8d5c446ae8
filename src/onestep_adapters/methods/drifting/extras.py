"""Options of what drifting may have beside its field: guidance, and a queue of positives."""

import math

import attrs
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.validators import count, not_negative, positive_count, share


@attrs.frozen
class Guidance:
    """Guidance: the strength of a class relative to all classes. The generator takes it as an input."""

    max_alpha: float = 1.0
    """Largest guidance scale in training, at least 1. 1: no guidance, and no guidance input. Above
    1 it needs data with classes."""
    alpha_power: float = attrs.field(default=3.0, validator=not_negative)
    """Guidance scales in training have a density proportional to alpha^-power on [1, max_alpha]; larger: more scales
    near 1."""
    unguided_share: float = attrs.field(default=0.5, validator=share)
    """Fraction of the guidance scales in training that are exactly 1."""
    unconditional_samples: int = attrs.field(default=16, validator=positive_count)
    """Real samples of all classes, used as extra negatives of each class; their weight follows from the guidance scale.
    Only with --max-alpha above 1."""
    alpha: float = 1.0
    """Guidance scale of the samples, 1 to max_alpha; onestep sample --alpha replaces it."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.alpha <= self.max_alpha:
            raise ConfigError(
                f"alpha = {self.alpha}, max_alpha = {self.max_alpha}: expected 1 <= alpha <= max_alpha; a generator "
                "samples at the scales that it was trained at (--max-alpha)"
            )

    @property
    def learned(self) -> bool:
        """Whether the generator takes a guidance scale."""
        return self.max_alpha > 1

    def as_time(self, alpha: Tensor) -> Tensor:
        """``log alpha / log max_alpha``, in [0, 1]: the network's input instead of a time."""
        return alpha.log() / math.log(self.max_alpha)


@attrs.frozen
class Queue:
    """Positives from a queue of recent training samples instead of the whole data set."""

    queue_size: int = attrs.field(default=0, validator=count)
    """Real samples kept of each class, from which positives are drawn. 0: no queue; positives come from the whole data
    set. Otherwise at least --positives. Code: 128."""
    queue_pushes: int = attrs.field(default=64, validator=positive_count)
    """Real samples, of all classes together, that enter the queue in each update; only with --queue-size above 0."""
