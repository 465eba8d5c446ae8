"""The conditioning vector of a backbone, computed from the times and the class.

A time is embedded by cosines and sines of geometrically spaced angular frequencies, from 1 to ``max_frequency``.

- The largest frequency limits the size of the derivative with respect to time. One-step objectives use ``da/dt`` in
  their target; with the usual maximum of 1000 this derivative is very noisy.
- The phases are computed in at least float32, because bfloat16 resolves times only to 0.4 %.
- The frequencies are computed again at every call. A buffer would be converted by ``module.bfloat16()``, and
  ``torch.func.jvp`` fails for a data-parallel module that has a buffer.

With two times ``(t, s)`` the network receives ``t`` and ``t - s``. This was the best choice in MeanFlow (table 1c,
https://arxiv.org/abs/2505.13447).
"""

import math
from collections.abc import Sequence

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
        count: number of frequencies, at least 1.
        max_frequency: largest angular frequency, in radians per unit of time, above 1.

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
    """Check that every size is an integer of at least ``minimum``.

    Raises:
        ConfigError: for the first size that is not.

    Example:
        >>> at_least(1, width=64, depth=2)
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < minimum:
            raise ConfigError(f"{name} = {size!r}: expected an integer of at least {minimum}")


def checked_shape(shape: object, *, axes: int | None = None) -> tuple[int, ...]:
    """The shape of one sample, as a tuple.

    Raises:
        ConfigError: for a number in place of a shape, or one of another number of axes.

    Example:
        >>> checked_shape([1, 8, 8], axes=3)
        (1, 8, 8)
    """
    expected = "(channels, height, width)" if axes == 3 else "the shape of one sample, for example (2,) for 2-D points"
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) == 0 or (axes and len(shape) != axes):
        raise ConfigError(f"shape = {shape!r}: expected {expected}")
    at_least(1, **{f"shape[{axis}]": size for axis, size in enumerate(shape)})
    return tuple(shape)


class Conditioning(nn.Module):
    """``(*times, label) -> [batch, width]``: a small network on the sinusoids of the times, plus a class embedding.

    Args:
        width: size of the resulting vector.
        times: number of times that the network takes: 0 (a one-step generator), 1 or 2.
        classes: number of classes, or ``None``; the last row of the embedding (index ``classes``) means "no class".
        frequencies: number of sinusoids per time.
        max_frequency: largest angular frequency; see the module docstring.

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
        """Draw new weights: Xavier-uniform for the times, normal with standard deviation 0.02 for the classes."""
        for layer in self.time or ():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02, generator=generator)

    def forward(self, z: Tensor, times: tuple[Tensor, ...], label: Tensor | None) -> Tensor:
        """The vector ``[batch, width]``; all zeros if the network has neither times nor classes.

        Args:
            z: states; the result has their batch size, device and dtype.
            times: ``[batch]`` each; as many as the network was constructed with.
            label: classes, ``[batch]``; the value ``classes`` means "no class". ``None`` means "no class" for all.

        Raises:
            ConfigError: if the number of times is wrong, if a label is given to a network without classes, or, on the
                CPU, if a label is out of range.
        """
        if len(times) != self.times:
            raise ConfigError(
                f"the network was called with {len(times)} times, expected {self.times}: construct it with "
                f"times={len(times)}, or pass {self.times} times"
            )
        if label is not None and self.label is None:
            raise ConfigError(
                "a label was given to a network without classes: construct it with classes=, or leave the label out"
            )
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
            try:
                condition = condition + self.label(label)
            except IndexError as error:
                raise ConfigError(
                    f"a label is outside of 0 to {self.classes} ({self.classes}: no class): expected the classes that "
                    "the network was constructed with, classes="
                ) from error
        return condition


def draw_linear(layer: nn.Linear, generator: torch.Generator | None) -> None:
    """Draw a Xavier-uniform weight from ``generator`` and set the bias to zero.

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
    """Set weight and bias to zero, so that the output of the layer starts at zero.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> zero_linear(layer)
        >>> layer(torch.ones(1, 2)).tolist()
        [[0.0, 0.0]]
    """
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
