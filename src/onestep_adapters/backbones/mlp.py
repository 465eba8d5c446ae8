"""A residual multilayer perceptron on flattened samples, for 2-D points and very small images.

    h_0 = W_in [z, cos F z, sin F z]
    h_{k+1} = h_k + B_k silu(A_k norm(h_k) + C_k silu(c))
    output = W_out norm(h_depth)

``c`` is the vector of :mod:`~onestep_adapters.backbones.conditioning`; ``norm`` is root-mean-square normalisation
without weights.

``F`` is a matrix with ``fourier`` rows, used if ``fourier > 0`` (Fourier features, Tancik et al.,
https://arxiv.org/abs/2006.10739; there ``F`` is fixed, here it starts random and is trained). On inputs of few
dimensions a perceptron learns smooth functions first, but the map from noise to narrow modes is not smooth. The
phases ``F z`` are computed in at least float32.

Every operation has a forward-mode derivative and is twice differentiable, in the state and in every time. ``W_out``
starts at zero, so a new network predicts zero.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from onestep_adapters.backbones.conditioning import (
    Conditioning,
    Labels,
    at_least,
    checked_shape,
    draw_linear,
    zero_linear,
)
from onestep_core.errors import ConfigError
from onestep_core.precision import full, no_autocast
from onestep_core.typing import Sample, Time, typed

_EPSILON = 1e-6


class MLP(nn.Module):
    """``(z, *times, label=None) -> [batch, *shape]``.

    Args:
        shape: shape of one sample, without the batch axis.
        width: width of the hidden layers.
        depth: number of residual blocks.
        times: 0 (a one-step generator), 1 (a velocity) or 2 (an average velocity).
        classes: number of classes, or ``None``; label ``classes`` means "no class".
        frequencies: number of sinusoids per time.
        max_frequency: largest angular frequency of a time.
        fourier: number of rows of ``F``; each gives one cosine and one sine of the sample. 0 for no Fourier features.
        fourier_std: standard deviation of the initial entries of ``F``, in radians per unit of the sample.
        generator: draws the initial weights; ``None`` for torch's default generator.

    Raises:
        ConfigError: if the shape is empty or a size is out of range.

    Example:
        >>> network = MLP((2,), width=16, depth=1, times=2)
        >>> network(torch.randn(5, 2), torch.ones(5), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        depth: int = 3,
        times: int = 1,
        classes: int | None = None,
        frequencies: int = 32,
        max_frequency: float = 16.0,
        fourier: int = 0,
        fourier_std: float = 1.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape)
        at_least(1, depth=depth)
        at_least(0, fourier=fourier)
        if not (isinstance(fourier_std, int | float) and 0 < fourier_std < math.inf):
            raise ConfigError(f"fourier_std = {fourier_std!r}: expected a positive, finite number")
        size = math.prod(self.shape)
        self.condition = Conditioning(
            width, times=times, classes=classes, frequencies=frequencies, max_frequency=max_frequency
        )
        self.fourier = nn.Linear(size, fourier, bias=False) if fourier else None
        self.fourier_std = fourier_std
        self.input = nn.Linear(size + 2 * fourier, width)
        conditional = times > 0 or classes is not None
        self.blocks = nn.ModuleList(_Block(width, conditional) for _ in range(depth))
        self.output = nn.Linear(width, size)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        self.condition.initialise(generator)
        if self.fourier is not None:
            nn.init.normal_(self.fourier.weight, std=self.fourier_std, generator=generator)
        for layer in (self.input, *(layer for block in self.blocks for layer in block.modules())):
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)
        zero_linear(self.output)

    @typed
    def forward(self, z: Sample, *times: Time, label: Labels | None = None) -> Sample:
        """The prediction, in the shape of ``z``.

        Args:
            z: states, or noise for a one-step generator, ``[batch, *shape]``.
            times: ``[batch]`` each; as many as the network was constructed with.
            label: classes, ``[batch]``; ``None`` means "no class". A label above ``classes`` is an error on the CPU; on
                other devices it is not checked.

        Raises:
            ConfigError: if the sample shape or the number of times differs from the construction, or if a label is
                given to a network without ``classes``.
        """
        check_shape(self.shape, z)
        condition = silu(self.condition(z, times, label))
        hidden = self.input(self._features(z.flatten(1)))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.output(rms_norm(hidden, hidden.shape[-1:], eps=_EPSILON)).reshape(z.shape)

    def _features(self, z: Tensor) -> Tensor:
        if self.fourier is None:
            return z
        with no_autocast(z):
            phase = full(z) @ full(self.fourier.weight).mT
        return torch.cat([z, phase.cos().to(z), phase.sin().to(z)], dim=1)


class _Block(nn.Module):
    def __init__(self, width: int, conditional: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.shift = nn.Linear(width, width, bias=False) if conditional else None
        self.outer = nn.Linear(width, width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        inner = self.inner(rms_norm(hidden, hidden.shape[-1:], eps=_EPSILON))
        if self.shift is not None:
            inner = inner + self.shift(condition)
        return hidden + self.outer(silu(inner))


def check_shape(shape: tuple[int, ...], z: Tensor) -> None:
    """Check that a batch has the sample shape that a network was constructed with.

    Raises:
        ConfigError: if they differ.

    Example:
        >>> check_shape((2,), torch.zeros(5, 2))
    """
    if tuple(z.shape[1:]) != shape:
        one = tuple(z.shape) == shape
        other = f"reshape the samples to {shape}, or construct the network for theirs"
        remedy = "z[None] is a batch of one" if one else other
        raise ConfigError(
            f"got a batch of shape {tuple(z.shape)}, expected [batch, {', '.join(map(str, shape))}]: {remedy}"
        )
