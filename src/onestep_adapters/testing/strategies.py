"""Cases with known answers, as hypothesis strategies.

Tensors come from a seed that hypothesis draws, so that a failing case is reproduced by its number; shapes are
small. Everything is float64 unless said.
"""

import math
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from onestep_core.diagnostics import GaussianMixture
from onestep_core.flow import Linear, Trigonometric, VarianceExploding, VariancePreserving
from onestep_core.protocols import Path
from onestep_core.shapes import expand_like


class Clouds(NamedTuple):
    """Points ``[*groups, n, channel]`` for a field; the three counts differ."""

    samples: Tensor
    positives: Tensor
    negatives: Tensor


class Problem(NamedTuple):
    """A batch on a path, with everything that an objective may need; ``m`` lies between ``t`` and ``s``.

    ``data, noise, z, v``: ``[batch, dim]``; ``t, m, s``: ``[batch]``. ``v`` is the velocity of the pair, or the
    marginal one where a law says so.
    """

    data: Tensor
    noise: Tensor
    z: Tensor
    v: Tensor
    t: Tensor
    m: Tensor
    s: Tensor


def seeds() -> st.SearchStrategy[int]:
    """Whole numbers to seed a generator with.

    Example:
        >>> seeds()
        integers(min_value=0, max_value=65535)
    """
    return st.integers(0, 2**16 - 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers from a generator of their own; the global one is not used."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensors(*shape: int, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Tensor]:
    """Standard normal tensors of one shape.

    Example:
        >>> case = tensors(2, 3)
    """
    return seeds().map(lambda seed: normal(seed, *shape, dtype=dtype))


def samples(batch: int | None = None) -> st.SearchStrategy[Tensor]:
    """Standard normal batches ``[batch, *shape]`` with none to three further axes."""
    batches = st.integers(1, 4) if batch is None else st.just(batch)
    shapes = st.sampled_from([(3,), (1,), (2, 4), (1, 3, 3), (5,)])
    return st.builds(lambda seed, n, shape: normal(seed, n, *shape), seeds(), batches, shapes)


@st.composite
def clouds(draw: st.DrawFn, groups: tuple[int, ...] = (), dim: int | None = None) -> Clouds:
    """Overlapping clouds of points, shifted against one another.

    Args:
        draw: given by hypothesis.
        groups: leading axes.
        dim: coordinates of a point; drawn from 1 to 4 without it.

    Example:
        >>> case = clouds(groups=(2,), dim=3)
    """
    channel = draw(st.integers(1, 4)) if dim is None else dim
    counts = [draw(st.integers(2, 6)) for _ in range(3)]
    shift = draw(st.sampled_from([0.0, 0.5, 2.0]))
    seed = draw(seeds())
    parts = [normal(3 * seed + i, *groups, count, channel) for i, count in enumerate(counts)]
    return Clouds(parts[0], parts[1] + shift, parts[2] - shift)


@st.composite
def mixtures(draw: st.DrawFn, dim: int = 2) -> GaussianMixture:
    """Gaussian mixtures of one to three components with general covariances, never narrow.

    Eigenvalues of the covariances lie between 0.16 and 1, means within about 1.5 of the origin.

    Example:
        >>> case = mixtures(dim=2)
    """
    k = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(seeds()))
    weights = 0.2 + torch.rand(k, dtype=torch.float64, generator=generator)
    means = 1.5 * (2 * torch.rand(k, dim, dtype=torch.float64, generator=generator) - 1)
    axes = torch.linalg.qr(torch.randn(k, dim, dim, dtype=torch.float64, generator=generator)).Q
    spread = 0.4 + 0.6 * torch.rand(k, dim, dtype=torch.float64, generator=generator)
    return GaussianMixture(weights / weights.sum(), means, axes @ torch.diag_embed(spread.square()) @ axes.mT)


def cosine_log_snr(t: Tensor) -> Tensor:
    """``-2 log tan(pi t / 2)``: the cosine schedule, for :class:`VariancePreserving`."""
    return -2 * torch.log(torch.tan(0.5 * math.pi * t))


def paths() -> st.SearchStrategy[Path]:
    """One of the core's paths.

    Example:
        >>> case = paths()
    """
    return st.sampled_from(
        [Linear(), Linear(0.1), Trigonometric(0.5), VariancePreserving(cosine_log_snr), VarianceExploding()]
    )


def _span(path: Path) -> tuple[float, float]:
    start = path.data_time if math.isfinite(path.data_time) else 20.0
    end = path.noise_time if math.isfinite(path.noise_time) else 20.0
    return start, end


def spread_times(path: Path, batch: int, seed: int, *, margin: float = 0.02) -> Tensor:
    """Uniform times on a path, ``[batch]``, a fraction ``margin`` away from both ends."""
    start, end = _span(path)
    u = torch.rand(batch, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return start + (end - start) * (margin + (1 - 2 * margin) * u)


def times(path: Path, batch: int, *, margin: float = 0.02) -> st.SearchStrategy[Tensor]:
    """Uniform times on a path, ``[batch]``, a fraction ``margin`` away from both ends; infinite ends become 20.

    Example:
        >>> case = times(Linear(), 4)
    """
    return seeds().map(lambda seed: spread_times(path, batch, seed, margin=margin))


def problems(
    mixture: GaussianMixture, path: Path | None = None, *, batch: int = 4, margin: float = 0.02
) -> st.SearchStrategy[Problem]:
    """Data of a mixture on a path (the linear one without it), with three times per sample.

    Jumps go both ways in time; ``m`` lies strictly between ``t`` and ``s``.

    Example:
        >>> case = problems(GaussianMixture.isotropic([1.0], [[0.0, 0.0]], 1.0), Linear(), batch=2)
    """
    course = Linear() if path is None else path

    def build(seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        data = mixture.sample(batch, generator=generator)
        noise = torch.randn(batch, mixture.dim, dtype=torch.float64, generator=generator)
        t, s = (spread_times(course, batch, 3 * seed + i, margin=margin) for i in range(2))
        share = 0.2 + 0.6 * torch.rand(batch, dtype=torch.float64, generator=generator)
        return at(course, data, noise, t, t + share * (s - t), s)

    return seeds().map(build)


def at(path: Path, data: Tensor, noise: Tensor, t: Tensor, m: Tensor, s: Tensor) -> Problem:
    """The :class:`Problem` of given pairs and times: state and velocity from the path's coefficients and rates."""
    alpha, sigma = (expand_like(c, data) for c in path.coefficients(t))
    alpha_rate, sigma_rate = (expand_like(c, data) for c in path.rates(t))
    v = alpha_rate * data + sigma_rate * noise
    return Problem(data, noise, alpha * data + sigma * noise, v, t, m, s)
