"""From times and a class to the one vector that conditions a backbone.

A time enters through sines and cosines of geometrically spaced angular frequencies, 1 to ``max_frequency``.
Two numbers matter here. The largest frequency bounds the derivative in time: one-step objectives regress on
``da/dt``, and the customary 1000 makes it noise. And the phases are formed in float32 at least, since
bfloat16 resolves times to 0.4 %. The frequencies are recomputed at every call: a buffer would be converted
by ``module.bfloat16()``, and ``torch.func.jvp`` refuses a data-parallel module that has one.

With two times ``(t, s)`` the network sees ``t`` and ``t - s``, MeanFlow's better choice (table 1c,
https://arxiv.org/abs/2505.13447).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onestep_core.errors import ConfigError
from onestep_core.precision import full
from onestep_core.typing import Time, typed

Labels = Int[Tensor, "batch"]


@typed
def sinusoids(t: Time, *, count: int, max_frequency: float) -> Float[Tensor, "batch features"]:
    """``cos(w t), sin(w t)`` for ``count`` angular frequencies ``w`` from 1 to ``max_frequency``.

    Args:
        t: times, ``[batch]``.
        count: frequencies, at least 1.
        max_frequency: the largest, in radians per unit of time, above 1.

    Returns:
        ``[batch, 2 count]`` in at least float32.

    Example:
        >>> sinusoids(torch.zeros(1), count=2, max_frequency=16.0)
        tensor([[1., 1., 0., 0.]])
    """
    t = full(t)
    frequencies = torch.linspace(0.0, math.log(max_frequency), count, dtype=t.dtype, device=t.device).exp()
    phase = t[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def at_least(minimum: int, **sizes: int) -> None:
    """Check counts.

    Raises:
        ConfigError: for the first one that is not an integer of at least ``minimum``.

    Example:
        >>> at_least(1, width=64, depth=2)
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < minimum:
            raise ConfigError(f"{name} = {size!r}: expected an integer of at least {minimum}")


class Conditioning(nn.Module):
    """``(*times, label) -> [batch, width]``: a small network of the times' sinusoids, plus a class embedding.

    Args:
        width: of the result.
        times: how many times the network takes: 0 (a one-step generator), 1 or 2.
        classes: number of classes, or ``None``; row ``classes`` of the embedding is the null class.
        frequencies: sinusoids per time.
        max_frequency: largest angular frequency, see the module.

    Raises:
        ConfigError: for a count or a frequency out of range.

    Example:
        >>> condition = Conditioning(8, times=1, classes=10)
        >>> condition(torch.ones(3, 2), (torch.zeros(3),), None).shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        width: int,
        *,
        times: int,
        classes: int | None = None,
        frequencies: int = 32,
        max_frequency: float = 16.0,
    ) -> None:
        super().__init__()
        at_least(1, width=width, frequencies=frequencies)
        if times not in (0, 1, 2):
            raise ConfigError(
                f"times = {times!r}: expected 0 (a one-step generator), 1 (a velocity) or 2 (an average velocity)"
            )
        if classes is not None:
            at_least(1, classes=classes)
        if not max_frequency > 1:
            raise ConfigError(f"max_frequency = {max_frequency!r}: expected more than 1, the smallest frequency")
        self.width, self.times, self.classes = width, times, classes
        self.frequencies, self.max_frequency = frequencies, max_frequency
        self.time = None
        if times:
            self.time = nn.Sequential(nn.Linear(2 * frequencies * times, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Draw the weights anew: Xavier for the times, standard deviation 0.02 for the classes."""
        for layer in self.time or ():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02, generator=generator)

    def forward(self, z: Tensor, times: tuple[Tensor, ...], label: Tensor | None) -> Tensor:
        """``[batch, width]``; zeros where there is neither a time nor a class.

        Args:
            z: states; the batch, the device and the dtype are taken from them.
            times: as many as configured, each ``[batch]``.
            label: classes, ``[batch]``, ``classes`` meaning none; ``None`` means none for all.

        Raises:
            ConfigError: for another number of times, or a label that the network cannot use.
        """
        if len(times) != self.times:
            raise ConfigError(
                f"the network was called with {len(times)} times, expected {self.times}: construct it with "
                f"times={len(times)}, or bind the other arguments"
            )
        if label is not None and self.label is None:
            raise ConfigError("a label came to an unconditional network: construct it with classes=, or drop the label")
        condition = z.new_zeros(z.shape[0], self.width)
        if self.time is not None:
            # The second number is the duration of the jump.
            numbers = (times[0], *(full(times[0]) - full(s) for s in times[1:]))
            features = torch.cat(
                [sinusoids(x, count=self.frequencies, max_frequency=self.max_frequency) for x in numbers], dim=1
            )
            condition = self.time(features.to(next(self.time.parameters()).dtype))
        if self.label is not None:
            if label is None:
                label = torch.full((z.shape[0],), self.label.num_embeddings - 1, device=z.device)
            condition = condition + self.label(label)
        return condition


def draw_linear(layer: nn.Linear, generator: torch.Generator | None) -> None:
    """Xavier-uniform weight and a zero bias, drawn from ``generator``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> draw_linear(layer, torch.Generator().manual_seed(0))
        >>> bool((layer.bias == 0).all())
        True
    """
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def zero_linear(layer: nn.Linear) -> None:
    """Zero weight and bias: what follows starts as nothing.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> zero_linear(layer)
        >>> layer(torch.ones(1, 2)).tolist()
        [[0.0, 0.0]]
    """
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
