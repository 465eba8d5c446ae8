"""The mean-shift field: a difference of scores, its rates of convergence and its bias."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_core import (
    Linear,
    gaussian,
    kernel_gradient_field,
    laplace,
    mean_shift_field,
    unnormalized,
)
from onestep_core.diagnostics import GaussianMixture

F64 = torch.float64


BELL, SHARP = partial(gaussian, bandwidth=0.7), partial(laplace, temperature=0.5)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def rms(field: Tensor) -> float:
    return float(field.square().mean().sqrt())


def slope(counts: list[int], sizes: list[float]) -> float:
    """Least squares in logarithms."""
    x, y = (torch.tensor(v, dtype=F64).log() for v in (counts, sizes))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def test_the_gaussian_field_is_the_difference_of_scores_of_density_estimates():
    x, y, n, h = draw(6, 3), draw(8, 3, seed=1), draw(7, 3, seed=2), 0.6
    weights = draw(8, seed=3).square()
    kernel = partial(gaussian, bandwidth=h)
    shift = mean_shift_field(x, y, n, kernel=kernel, positive_weights=weights).field
    scores = kernel_gradient_field(x, y, n, kernel=kernel, positive_weights=weights).field
    torch.testing.assert_close(shift, h**2 * scores, rtol=1e-12, atol=1e-13)
    p, q = (
        GaussianMixture(w / w.sum(), points, torch.eye(3, dtype=F64).expand(len(points), 3, 3) * h**2)
        for w, points in ((weights, y), (torch.ones(7, dtype=F64), n))
    )
    zero = torch.zeros(6, dtype=F64)
    exact = p.score(x, zero, path=Linear()) - q.score(x, zero, path=Linear())
    torch.testing.assert_close(shift, h**2 * exact, rtol=1e-10, atol=1e-11)


def convergence(counts: list[int], draws: int) -> float:
    h, std = 0.5, 0.4
    p = ([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]])
    q = ([0.6, 0.4], [[-0.8, 0.2], [0.9, -0.4]])
    # Where the data are: far from them few points count, and the error is no average of many.
    probes, zero = 0.6 * draw(12, 2, seed=7), torch.zeros(12, dtype=F64)
    smooth = [GaussianMixture.isotropic(*law, math.hypot(std, h)).score(probes, zero, path=Linear()) for law in (p, q)]
    exact = h**2 * (smooth[0] - smooth[1])
    sources = [GaussianMixture.isotropic(*law, std) for law in (p, q)]
    errors = []
    for n in counts:
        squares = 0.0
        for seed in range(draws):
            y, z = (s.sample(n, generator=torch.Generator().manual_seed(9 * seed + i)) for i, s in enumerate(sources))
            squares += rms(mean_shift_field(probes, y, z, kernel=partial(gaussian, bandwidth=h)).field - exact) ** 2
        errors.append(math.sqrt(squares / draws))
    assert errors[-1] < 0.2 * rms(exact)
    return slope(counts, errors)


def test_the_gaussian_field_converges_to_the_smoothed_score_difference():
    assert convergence([250, 1000, 4000], 10) == pytest.approx(-0.5, abs=0.1)


@pytest.mark.thorough
def test_the_gaussian_field_converges_to_the_smoothed_score_difference_closely():
    assert convergence([250, 1000, 4000, 16000], 200) == pytest.approx(-0.5, abs=0.04)


def biases(counts: list[int], draws: int) -> tuple[float, float]:
    """Slopes of the bias of a softmax-weighted mean of a standard normal, whose limit is known, plain and corrected.

    The fluctuations of first and second order, whose expectations are zero, are taken out of every draw, so that few
    draws show the rest.
    """
    # A wide kernel: many points share the mean, so that the leading orders show at few.
    h, place = 1.5, 1.0
    limit = place / (1 + h**2)
    mass = h / math.sqrt(1 + h**2) * math.exp(-(place**2) / (2 * (1 + h**2)))
    found: dict[bool, list[float]] = {False: [], True: []}
    for n in counts:
        sums, total = {False: 0.0, True: 0.0}, 0
        for part in range(max(1, draws * n // 2**21)):
            count = min(draws, 2**21 // n)
            y = draw(count, n, 1, seed=1000 * n + part)
            x, origin = torch.full((count, 1, 1), place, dtype=F64), torch.zeros(count, 1, 1, dtype=F64)
            for corrected in found:
                field = mean_shift_field(
                    x, y, origin, kernel=partial(gaussian, bandwidth=h), bias_correction=corrected
                ).field
                k = (-(y - place).square() / (2 * h**2)).exp() / mass
                first, excess = (k * (y - limit)).mean(1, keepdim=True), k.mean(1, keepdim=True) - 1
                second = (k.square() * (y - limit)).mean(1, keepdim=True) / n - first * excess
                sums[corrected] += float((field - first - second).sum())
            total += count
        for corrected, sizes in found.items():
            sizes.append(abs(sums[corrected] / total - limit))
    return slope(counts, found[False]), slope(counts, found[True])


def test_bias_correction_takes_the_bias_from_first_to_second_order():
    plain, corrected = biases([16, 32, 64], 2**16)
    assert plain == pytest.approx(-1, abs=0.1)
    assert corrected == pytest.approx(-2, abs=0.4)


@pytest.mark.thorough
def test_bias_correction_takes_the_bias_from_first_to_second_order_closely():
    plain, corrected = biases([32, 64, 128], 2**19)
    assert plain == pytest.approx(-1, abs=0.05)
    assert corrected == pytest.approx(-2, abs=0.2)


def test_a_corrected_mean_stays_among_the_points():
    x, y = 3 * draw(50, 1), draw(5, 1, seed=1)
    away = torch.zeros(1, 1, dtype=F64)
    mean = mean_shift_field(x, y, away, kernel=SHARP, bias_correction=True).field
    assert float(y.min()) <= float(mean.min()) <= float(mean.max()) <= float(y.max())


def test_bias_correction_survives_tiny_affinities():
    x, y, n = torch.tensor([[0.0], [9.0]]), torch.tensor([[-50.0], [-49.0]]), torch.tensor([[1.0]])
    kernel = partial(laplace, temperature=1.0)
    call = partial(mean_shift_field, x, y, n, kernel=kernel, coupling=unnormalized)
    scaled = mean_shift_field(x + 49, y + 49, n + 49, kernel=kernel, bias_correction=True).field
    assert bool(call(bias_correction=True).field.isfinite().all())
    torch.testing.assert_close(call(bias_correction=True).field, scaled, rtol=1e-4, atol=1e-4)
