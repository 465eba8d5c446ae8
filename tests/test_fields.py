"""What theory says of drift fields, and that streamed, swept and dense evaluation agree."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

import onestep_core as core
from onestep_adapters.testing import laws
from onestep_core import (
    ConfigError,
    Linear,
    Radial,
    drift_field,
    energy_distance,
    energy_field,
    gaussian,
    geometric_temperature,
    inverse_multiquadric,
    kernel_gradient_field,
    laplace,
    matern,
    mean_shift_field,
    mmd,
    mmd_field,
    multi_temperature,
    released_drift,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_field,
    softmax_both,
    softmax_rows,
    stepped_temperature,
    unnormalized,
)
from onestep_core.diagnostics import GaussianMixture
from onestep_core.fields import kernels
from onestep_core.fields.affinity import streamed_affinities, streamed_distances
from onestep_core.fields.attraction_repulsion import drift_fields
from tests.cases import KERNELS

F64 = torch.float64
BELL, SHARP = partial(gaussian, bandwidth=0.7), partial(laplace, temperature=0.5)
COUPLINGS = {
    "unnormalized": unnormalized,
    "rows": softmax_rows,
    "both": softmax_both,
    "sinkhorn": partial(sinkhorn, iterations=3),
    "alternating": partial(sinkhorn, iterations=2, symmetric=False),
}
KERNEL_GRADIENTS = {"gaussian": BELL, "laplace": SHARP, "matern": partial(matern, smoothness=1.5, lengthscale=1.0)}
WHOLE = {
    "mean_shift": partial(mean_shift_field, kernel=SHARP),
    "sinkhorn": partial(sinkhorn_field, epsilon=8.0, iterations=60),
    "mmd": partial(mmd_field, kernel=BELL),
    "energy": energy_field,
    **{f"gradient_{name}": partial(kernel_gradient_field, kernel=kernel) for name, kernel in KERNEL_GRADIENTS.items()},
}
"""Fields of weighted empirical laws: a weight is a repetition."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def rms(field: Tensor) -> float:
    return float(field.square().mean().sqrt())


def slope(counts: list[int], sizes: list[float]) -> float:
    """Least squares in logarithms."""
    x, y = (torch.tensor(v, dtype=F64).log() for v in (counts, sizes))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


# Evaluation


def opaque(kernel):
    """The same kernel, which nobody can recognise: it is evaluated whole, and dense where it fits."""
    return lambda x, y: kernel(x, y)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)
@pytest.mark.parametrize("channels", [3, 40])
def test_swept_streamed_and_dense_agree(name, coupling, channels):
    kernel = KERNELS[name][0]
    x, y, extra = draw(2, 11, channels), draw(2, 13, channels, seed=1), draw(2, 4, channels, seed=2)
    weights = draw(2, 4, seed=3).square()
    fields = [
        drift_field(x, y, kernel=k, coupling=coupling, extra_negatives=extra, extra_weights=weights, block_size=size)
        for k, size in ((opaque(kernel), None), (opaque(kernel), 4), (kernel, None), (kernel, 4), (kernel, 1))
    ]
    for other in fields[1:]:
        torch.testing.assert_close(other.field, fields[0].field, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kept", [0, 2 * 13 * 4, 2**24])
@pytest.mark.parametrize("swept", [2 * 28 * 4, 2**22])
@pytest.mark.parametrize("grouped", [1, 3 * (2 * 11 * 28 + 39 * 9), 2**20])
def test_fields_do_not_depend_on_what_is_held(monkeypatch, kept, swept, grouped):
    """Distances kept from sweep to sweep, rows in a block, groups in a block: only time and memory."""
    x, y, extra = draw(5, 11, 9), draw(5, 13, 9, seed=1), draw(5, 4, 9, seed=2)
    kernels = [partial(laplace, temperature=0.5), partial(gaussian, bandwidth=0.7)]
    call = partial(drift_fields, x, y, coupling=partial(sinkhorn, iterations=3), extra_negatives=extra)
    expected = call(kernels=[opaque(k) for k in kernels])
    for name, count in (("_DENSE", kept), ("_SWEPT", swept), ("_GROUPED", grouped)):
        monkeypatch.setattr(streamed_distances, f"{name}_ELEMENTS", count)
    for one, other in zip(call(kernels=kernels), expected, strict=True):
        torch.testing.assert_close(one.field, other.field, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(one.force_norms, other.force_norms, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("field", WHOLE.values(), ids=WHOLE)
def test_other_fields_stream(field):
    x, y = draw(2, 11, 12), draw(2, 13, 12, seed=1)
    for size in (1, 4):
        torch.testing.assert_close(field(x, y, block_size=size).field, field(x, y).field, rtol=1e-11, atol=1e-13)


def hard(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Duplicates, near-duplicates, a tight cluster, and one sample 200 times away."""
    x, y, extra = (draw(count, channels, seed=channels + count, dtype=torch.float32) for count in (300, 320, 60))
    y[:20], extra[:5], y[20:30] = x[:20], x[:5], x[40:50] * (1 + 1e-6)
    x[100:110] = x[100] + 1e-4 * x[100:110]
    x[-1] = 200 * x[-1]
    return x.to(dtype), y.to(dtype), extra.to(dtype)


@pytest.mark.parametrize("channels", [2, 9, 64, 256])
@pytest.mark.parametrize("relative", [0.02, 0.2])
def test_float32_is_right_with_duplicates_and_with_a_far_sample(channels, relative):
    kernel = partial(laplace, temperature=relative * math.sqrt(2 * channels))

    def field(dtype: torch.dtype, **keywords) -> Tensor:
        x, y, extra = hard(channels, dtype)
        return drift_field(x, y, kernel=kernel, coupling=softmax_both, extra_negatives=extra, **keywords).field

    exact = field(F64)
    assert float((field(torch.float32) - exact).abs().max()) < 1e-5 * float(exact.abs().max())


def test_clusters_so_tight_that_everything_cancels():
    """Many pairs to repair: the whole block is expanded in float64."""
    centre = 100 * draw(1, 64)
    x, y = (centre + draw(200, 64, seed=seed) for seed in (1, 2))
    y[0] = y[0] + 3000  # or the common centre would remove the offset
    fields = [
        mean_shift_field(a, b, kernel=partial(laplace, temperature=2.0)).field
        for a, b in ((x.float(), y.float()), (x.float().double(), y.float().double()))
    ]
    assert float((fields[0] - fields[1]).abs().max()) < 1e-4 * float(fields[1].abs().max())


@pytest.mark.parametrize("sets", [{}, {"extra_negatives": draw(3, 12, seed=5)}])
@pytest.mark.parametrize("base", [drift_field, mean_shift_field])
@pytest.mark.parametrize("normalize", [True, False])
def test_temperatures_that_share_distances_are_the_sum_of_those_that_do_not(base, normalize, sets):
    x, y = draw(9, 12), draw(8, 12, seed=1)

    def at(temperature: float):
        return partial(base, kernel=partial(laplace, temperature=temperature), coupling=softmax_both)

    def alone(temperature: float):
        return lambda *a, **k: at(temperature)(*a, **k)

    together, apart = (multi_temperature(f, (0.5, 1.0, 4.0), normalize=normalize)(x, y, **sets) for f in (at, alone))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda t: partial(laplace, temperature=t),
        lambda t: partial(gaussian, bandwidth=t),
        lambda t: partial(matern, smoothness=0.5, lengthscale=t),
        lambda t: partial(matern, smoothness=1.5, lengthscale=t),
        lambda t: partial(matern, smoothness=2.5, lengthscale=t),
        lambda t: partial(inverse_multiquadric, scale=t),
        lambda t: Radial(lambda r: -r.mul_(1 / t).log1p()),
    ],
    ids=["laplace", "gaussian", "matern_1", "matern_3", "matern_5", "inverse_multiquadric", "radial"],
)
def test_temperatures_share_one_matrix_of_distances_under_transforms_too(kernel, monkeypatch):
    """Nothing is swept there; the values are those of the temperatures apart."""
    counted = []

    def count(x: Tensor, y: Tensor) -> Tensor:
        counted.append(x.shape)
        return core.squared_distances(x, y)

    for module in (streamed_affinities, kernels):
        monkeypatch.setattr(module, "squared_distances", count)
    lengths, y = (0.5, 1.0, 4.0), draw(8, 12, seed=1)

    def at(length: float, *, opaquely: bool = False):
        made = kernel(length)
        return partial(drift_field, kernel=opaque(made) if opaquely else made, coupling=softmax_both)

    def mapped(make) -> Tensor:
        field = multi_temperature(make, lengths, normalize=False)
        return torch.func.vmap(lambda x: field(x, y).field)(draw(2, 9, 12))

    together = mapped(at)
    assert len(counted) == 1
    apart = mapped(partial(at, opaquely=True))
    assert len(counted) == 4
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-14)


def test_a_radial_kernel_of_your_own_is_swept():
    mine = Radial(lambda r: -r.square().log1p())
    x, y = draw(2, 7, 5), draw(2, 6, 5, seed=1)
    fields = [
        drift_field(x, y, kernel=kernel, coupling=softmax_both, block_size=3).field for kernel in (mine, opaque(mine))
    ]
    torch.testing.assert_close(fields[0], fields[1], rtol=1e-12, atol=1e-14)


def test_keys_measure_distances_and_points_move():
    x, y = draw(6, 3), draw(5, 3, seed=1)
    turn = torch.linalg.qr(draw(3, 3, seed=2)).Q
    for field in (partial(drift_field, kernel=SHARP, coupling=softmax_both), *WHOLE.values()):
        torch.testing.assert_close(field(x, y, keys=lambda p: p @ turn).field, field(x, y).field, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_a_kernel_passes_through_the_features():
    x, y, n = draw(4, 2), draw(5, 2, seed=1), draw(3, 2, seed=2)
    twice = kernel_gradient_field(x, y, n, kernel=BELL, keys=lambda p: 2 * p).field
    half = kernel_gradient_field(x, y, n, kernel=partial(gaussian, bandwidth=0.35)).field
    torch.testing.assert_close(twice, half)


# Balance


@pytest.mark.parametrize("factors", [(1.5, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("base", [partial(drift_field, coupling=softmax_both), mean_shift_field])
def test_a_broken_balance_is_detected(base, factors):
    field = partial(base, kernel=SHARP, attraction=factors[0], repulsion=factors[1])
    watched = {"field.antisymmetric", "field.equal_sets_give_zero", "field.translation", "field.rotation"}
    failed: set[str] = set()
    for law in (law for law in laws.field(field) if str(law) in watched):
        try:
            law()
        except AssertionError:
            failed.add(str(law))
    assert failed == {"field.antisymmetric", "field.equal_sets_give_zero"}


@pytest.mark.parametrize("base", [partial(drift_field, coupling=softmax_both), mean_shift_field])
def test_factors_scale_the_two_parts(base):
    x, y, n = draw(5, 2), draw(4, 2, seed=1), draw(6, 2, seed=2)
    both, towards, away, odd = (
        base(x, y, n, kernel=SHARP, attraction=a, repulsion=r).field
        for a, r in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.5, 0.5))
    )
    torch.testing.assert_close(towards + away, both)
    torch.testing.assert_close(1.5 * towards + 0.5 * away, odd)


def decay(field, counts: list[int], draws: int) -> float:
    """The slope of the field's size between independent sets of one law."""
    sizes = [
        math.sqrt(
            sum(rms(field(*(draw(n, 2, seed=3 * s + i) for i in range(3))).field) ** 2 for s in range(draws)) / draws
        )
        for n in counts
    ]
    return slope(counts, sizes)


FALLING = {
    "drift_rows": partial(drift_field, kernel=BELL, coupling=softmax_rows),
    "drift_both": partial(drift_field, kernel=BELL, coupling=softmax_both),
    "mean_shift": partial(mean_shift_field, kernel=SHARP),
    "gradient": partial(kernel_gradient_field, kernel=BELL),
    "mmd": partial(mmd_field, kernel=BELL),
    "energy": energy_field,
    "sinkhorn": partial(sinkhorn_field, epsilon=1.0, iterations=5),
}


@pytest.mark.parametrize("name", FALLING)
def test_independent_sets_of_one_law_leave_the_square_root_of_their_count(name):
    assert decay(FALLING[name], [40, 120, 360], 12) == pytest.approx(-0.5, abs=0.12)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FALLING)
def test_independent_sets_of_one_law_leave_the_square_root_of_their_count_closely(name):
    assert decay(FALLING[name], [100, 400, 1600], 60) == pytest.approx(-0.5, abs=0.04)


# Scores


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


# Couplings


def test_one_averaged_sinkhorn_step_is_the_softmax_over_both_axes():
    x, y, n = draw(7, 2), draw(6, 2, seed=1), draw(5, 2, seed=2)

    def field(coupling) -> Tensor:
        return drift_field(x, y, n, kernel=SHARP, coupling=coupling).field

    both = field(softmax_both)
    torch.testing.assert_close(field(partial(sinkhorn, iterations=1)), both, rtol=1e-12, atol=1e-14)
    alternating = field(partial(sinkhorn, iterations=1, symmetric=False))
    assert rms(alternating - both) > 0.1 * rms(both)


@pytest.mark.parametrize("symmetric", [True, False])
def test_sinkhorn_meets_unequal_marginals(symmetric):
    log_k = draw(4, 6)
    rows, columns = (draw(count, seed=count).square() + 0.1 for count in (4, 6))
    columns = columns * rows.sum() / columns.sum()

    row, column = sinkhorn(
        lambda c=None: (log_k if c is None else log_k - c).logsumexp(1),
        lambda r=None: (log_k if r is None else log_k - r[:, None]).logsumexp(0),
        iterations=300,
        symmetric=symmetric,
        row_sums=rows,
        column_sums=columns,
    )
    affinity = (log_k - row[:, None] - column).exp()
    torch.testing.assert_close(affinity.sum(1), rows, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(affinity.sum(0), columns, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("field", WHOLE.values(), ids=WHOLE)
def test_integer_weights_are_repetitions(field):
    x, y, n = draw(6, 2), draw(4, 2, seed=1), draw(3, 2, seed=2)
    times, again = torch.tensor([1, 3, 2, 1]), torch.tensor([2, 1, 1])
    weighted = field(x, y, n, positive_weights=times.to(F64), negative_weights=again.to(F64)).field
    repeated = field(x, y.repeat_interleave(times, 0), n.repeat_interleave(again, 0)).field
    torch.testing.assert_close(weighted, repeated, rtol=1e-9, atol=1e-11)


def test_integer_weights_of_a_drift_field_have_the_direction_of_repetitions():
    x, y, n = draw(6, 2), draw(4, 2, seed=1), draw(3, 2, seed=2)
    times = torch.tensor([1, 3, 2, 1])
    field = partial(drift_field, kernel=SHARP, coupling=softmax_rows)
    weighted = field(x, y, n, positive_weights=times.to(F64)).field
    repeated = field(x, y.repeat_interleave(times, 0), n).field
    cosine = torch.nn.functional.cosine_similarity(weighted, repeated, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)
    assert not torch.allclose(weighted, repeated, rtol=1e-2)


# Gradients of divergences


def descent(divergence, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return -torch.autograd.grad(divergence(x), x)[0] * len(x)


def test_energy_and_mmd_fields_descend_their_divergences():
    x, y = draw(7, 3), draw(5, 3, seed=1)
    torch.testing.assert_close(2 * energy_field(x, y).field, descent(lambda p: energy_distance(p, y), x))
    torch.testing.assert_close(
        2 * energy_field(x, y, x).field, descent(lambda p: energy_distance(p, y, unbiased=False), x)
    )
    for kernel in (SHARP, BELL, partial(inverse_multiquadric, scale=1.0)):
        for unbiased, negatives in ((True, None), (False, x)):
            field = mmd_field(x, y, negatives, kernel=kernel).field
            torch.testing.assert_close(
                2 * field, descent(lambda p, k=kernel, u=unbiased: mmd(p, y, kernel=k, unbiased=u), x)
            )


def test_the_sinkhorn_field_descends_the_sinkhorn_divergence():
    x, y = draw(7, 2), draw(5, 2, seed=1) + 1
    field = sinkhorn_field(x, y, x, epsilon=0.5, iterations=300).field
    expected = descent(lambda p: sinkhorn_divergence(p, y, epsilon=0.5, iterations=300), x)
    torch.testing.assert_close(field, expected, rtol=1e-6, atol=1e-8)


def test_kernel_gradients_survive_near_duplicates_in_float32():
    y = draw(50, 32, seed=1, dtype=torch.float32)
    x = torch.cat([y[:5], y[5:10] * (1 + 1e-5), draw(10, 32, dtype=torch.float32)])
    for field in (energy_field, partial(kernel_gradient_field, kernel=partial(laplace, temperature=4.0))):
        single, double = field(x, y).field, field(x.double(), y.double()).field
        assert bool(single.isfinite().all())
        assert rms(single - double) < 1e-5 * rms(double)


# What a field cannot see


def compact(x: Tensor, y: Tensor) -> Tensor:
    """A kernel that ends at distance one."""
    squares = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    return torch.where(squares < 1, (1 - squares.clamp(max=1 - 1e-9)).log(), -torch.inf)


def test_a_compact_kernel_is_blind_to_the_relative_mass_of_modes():
    near, far = 0.2 * draw(5, 2), 0.2 * draw(5, 2, seed=1) + 10
    positives = torch.cat([near] * 3 + [far] * 7)
    negatives = torch.cat([near] * 7 + [far] * 3)
    samples = torch.cat([near, far])
    for blind in (
        partial(mean_shift_field, kernel=compact),
        partial(drift_field, kernel=compact, coupling=softmax_rows),
        partial(kernel_gradient_field, kernel=compact),
    ):
        assert rms(blind(samples, positives, negatives).field) < 1e-12
    for seeing in (
        energy_field,
        partial(sinkhorn_field, epsilon=50.0, iterations=200),
        partial(mean_shift_field, kernel=partial(laplace, temperature=5.0)),
    ):
        field = seeing(samples, positives, negatives).field
        assert float((field[:5] @ torch.ones(2, dtype=F64)).min()) > 0.1  # from the mode with too much, to the other


def test_mass_escapes_while_the_field_vanishes():
    """A tenth of the samples far away: an unnormalised field and the MMD's fade, though the laws do not approach."""
    positives = draw(45, 2)
    fading = {
        "unnormalised": partial(drift_field, kernel=SHARP, coupling=unnormalized),
        "mmd": partial(mmd_field, kernel=SHARP),
    }
    pulling = {"energy": energy_field, "mean_shift": partial(mean_shift_field, kernel=SHARP)}
    for name, field in {**fading, **pulling}.items():
        sizes = []
        for distance in (10.0, 40.0, 160.0):
            escaped = torch.full((1, 2), distance, dtype=F64)
            negatives = torch.cat([positives, escaped.expand(5, 2)])
            there = field(escaped, positives, negatives).field
            here = field(positives, positives, negatives).field
            sizes.append(max(float(there.norm()), float(here.norm(dim=1).max()) if name == "unnormalised" else 0.0))
            assert float(energy_distance(positives, negatives)) > 0.01 * distance
        if name in fading:
            assert max(sizes[1:]) < 1e-12
        else:
            assert min(sizes) > 0.05


# Schedules


def test_temperatures_fall_from_coarse_to_fine():
    geometric = [geometric_temperature(p, start=2.0, end=0.02) for p in (-1, 0, 0.25, 0.5, 0.75, 1, 2)]
    assert geometric == pytest.approx([2.0, 2.0, 2 * 10**-0.5, 0.2, 0.2 * 10**-0.5, 0.02, 0.02])
    stepped = [stepped_temperature(p, temperatures=(1.0, 0.1)) for p in (-1, 0, 0.49, 0.5, 1, 2)]
    assert stepped == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: geometric_temperature(0.5, start=0.0, end=1.0),
        lambda: stepped_temperature(0.5, temperatures=()),
        lambda: stepped_temperature(0.5, temperatures=(1.0, -1.0)),
        lambda: multi_temperature(lambda t: energy_field, (), normalize=True),
        lambda: sinkhorn_field(draw(3, 2), draw(3, 2), epsilon=0.0),
        lambda: sinkhorn_field(draw(3, 2), draw(3, 2), epsilon=1.0, iterations=0),
        lambda: energy_field(draw(1, 2), draw(3, 2)),
        lambda: mmd_field(draw(3, 2), draw(3, 2), kernel=SHARP, block_size=0),
        lambda: drift_field(draw(3, 2), draw(3, 2), kernel=SHARP, coupling=softmax_both, affinity_floor=-1.0),
        lambda: released_drift(draw(3, 2), draw(3, 2), draw(3, 2)),
    ],
)
def test_bad_configuration_is_named(call):
    with pytest.raises(ConfigError):
        call()


@pytest.mark.parametrize(
    "kernel",
    [
        partial(core.laplace, temperature=-1.0),
        partial(core.laplace, temperature=0.0),
        partial(core.gaussian, bandwidth=-1.0),
        partial(core.matern, smoothness=2.0, lengthscale=1.0),
        partial(core.inverse_multiquadric, scale=0.0),
    ],
)
def test_a_number_out_of_range_raises_through_a_field(kernel):
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    with pytest.raises(ConfigError, match="expected"):
        core.mean_shift_field(x, y, kernel=kernel)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("swept", [2**10, 2**22])
def test_released_weights_of_one_are_none(lead, size, swept, monkeypatch):
    monkeypatch.setattr(streamed_distances, "_SWEPT_ELEMENTS", swept)
    monkeypatch.setattr(streamed_distances, "_GROUPED_ELEMENTS", swept)
    x, y = draw(*lead, 21, 12), draw(*lead, 17, 12, seed=1)
    plain, weighted = (
        released_drift(x, y, positive_weights=w, block_size=size) for w in (None, torch.ones(*lead, 17, dtype=F64))
    )
    torch.testing.assert_close(weighted.scale, plain.scale)
    torch.testing.assert_close(weighted.field, plain.field)


@pytest.mark.parametrize("temperatures", [(30.0,), (100.0, 2.0)])
def test_the_released_penalty_of_self_pairs_is_the_same_swept_and_dense(temperatures, monkeypatch):
    """At temperatures at which a sample still sees itself."""
    x, y = draw(21, 12), draw(17, 12, seed=1)
    swept = released_drift(x, y, temperatures=temperatures)
    monkeypatch.setattr(streamed_distances, "may_sweep", lambda *tensors: False)
    dense = released_drift(x, y, temperatures=temperatures)
    torch.testing.assert_close(swept.field, dense.field, rtol=1e-10, atol=1e-12)


def test_bias_correction_survives_tiny_affinities():
    x, y, n = torch.tensor([[0.0], [9.0]]), torch.tensor([[-50.0], [-49.0]]), torch.tensor([[1.0]])
    kernel = partial(laplace, temperature=1.0)
    call = partial(mean_shift_field, x, y, n, kernel=kernel, coupling=unnormalized)
    scaled = mean_shift_field(x + 49, y + 49, n + 49, kernel=kernel, bias_correction=True).field
    assert bool(call(bias_correction=True).field.isfinite().all())
    torch.testing.assert_close(call(bias_correction=True).field, scaled, rtol=1e-4, atol=1e-4)


def test_float64_duplicates_have_no_distance():
    x = draw(200, 16) + 30
    both = torch.cat([x, x])
    ((_, apart),) = streamed_distances.Distances(both, both.clone(), themselves=False, block_size=None)
    assert float(apart[0].diagonal().max()) == 0.0


def test_several_temperatures_check_what_one_does():
    field = multi_temperature(
        lambda t: partial(drift_field, kernel=partial(laplace, temperature=t), coupling=softmax_both),
        (0.1, 1.0),
        normalize=True,
    )
    for wrong in (
        (torch.ones(6, 12, dtype=torch.long), torch.randn(8, 12)),
        (torch.randn(6, 12), torch.randn(8, 11)),
        (torch.randn(6), torch.randn(6)),
    ):
        with pytest.raises(TypeCheckError):
            field(*wrong)


def test_kernels_of_any_making_are_kernels():
    """Not hashable, with parameters that learn: the field is the same and has no gradient."""

    @dataclasses.dataclass
    class Made:
        length: float

        def __call__(self, x, y, *, factor=1.0):
            return -core.distances(x, y) * factor / self.length

    rate = torch.tensor(0.5, requires_grad=True)
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    kernels = [partial(Made(0.5), factor=1.0), Radial(lambda r: -r / rate), lambda a, b: -core.distances(a, b) / rate]
    for field in (partial(drift_field, coupling=softmax_both), mean_shift_field):
        expected = field(x, y, kernel=SHARP).field
        for kernel in kernels:
            found = field(x, y, kernel=kernel).field
            assert not found.requires_grad
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", [SHARP, opaque(SHARP)], ids=["swept", "dense"])
def test_a_coupling_may_give_one_column_for_all_groups(kernel):
    def flat(rows, columns):
        return core.Potentials(rows(), torch.zeros(9, dtype=F64))

    x, y = draw(3, 5, 2), draw(3, 4, 2, seed=1)
    expected = drift_field(x, y, kernel=kernel, coupling=softmax_rows).field
    torch.testing.assert_close(drift_field(x, y, kernel=kernel, coupling=flat).field, expected)


@pytest.mark.parametrize(
    "field",
    [
        partial(drift_field, kernel=SHARP, coupling=softmax_both),
        partial(mean_shift_field, kernel=SHARP),
        released_drift,
    ],
)
def test_no_groups_and_no_storage(field):
    extra = {"temperatures": (0.2,)} if field is released_drift else {}
    assert field(torch.zeros(0, 4, 12), torch.zeros(0, 3, 12), **extra).field.shape == (0, 4, 12)
    shapes = field(torch.zeros(2, 4, 12, device="meta"), torch.zeros(2, 3, 12, device="meta"), **extra)
    assert shapes.field.shape == (2, 4, 12)


@pytest.mark.parametrize("name", ["positive", "negative", "extra"])
def test_weights_of_another_count_are_named(name):
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    with pytest.raises((ConfigError, TypeCheckError), match="weights"):
        drift_field(x, y, kernel=BELL, coupling=softmax_both, extra_negatives=y, **{f"{name}_weights": torch.ones(3)})


def test_near_duplicates_keep_their_distance_in_float32():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=g)
    y = x + 2.5e-5 * torch.randn(700, 16, generator=g)
    exact = (x.double() - y.double()).norm(dim=1)
    assert (core.distances(x, y).diagonal().double() / exact - 1).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_float64_keeps_near_duplicates_under_transforms_too(scale):
    """Large enough that float32 would be expanded: eager, mapped and differentiated fields are the same numbers."""
    x = 3 * draw(500, 64)
    assert core.distances(x, x).diagonal().max() == 0
    beside = x[:250] + scale * draw(250, 64, seed=1)

    def field(points: Tensor) -> Tensor:
        return drift_field(points, beside, kernel=partial(laplace, temperature=5.0), coupling=softmax_both).field

    swept = field(x)
    mapped = torch.func.vmap(field)(x[None])[0]
    assert (swept - mapped).abs().max() < 1e-12 * swept.abs().max()
    energy = energy_field(x, beside, x[:1] + 100).field
    alone = energy_field(x[:1], beside, x[:1] + 100).field
    torch.testing.assert_close(energy[:1], alone, rtol=1e-12, atol=1e-13)


def test_temperatures_that_change_while_torch_compiles():
    torch._dynamo.reset()
    x, y = draw(4, 3), draw(5, 3, seed=1)

    def released(t: float, x: Tensor) -> Tensor:
        return released_drift(x, y, temperatures=(t, 2 * t)).field

    compiled = torch.compile(released, backend="aot_eager", fullgraph=True)
    for t in (0.1, 0.2, 0.35):
        torch.testing.assert_close(compiled(t, x), released(t, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["positive_weights", "negative_weights", "extra_weights"])
def test_the_released_field_maps_over_weights(name):
    x, y, extra = draw(4, 3), draw(5, 3, seed=1), draw(2, 3, seed=2)
    count = {"positive_weights": 5, "negative_weights": 4, "extra_weights": 2}[name]
    weights = draw(3, count, seed=3).abs() + 0.1

    def field(w: Tensor) -> Tensor:
        return released_drift(x, y, extra_negatives=extra, **{name: w}).field

    each = torch.stack([field(w) for w in weights])
    torch.testing.assert_close(torch.func.vmap(field)(weights), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
def test_weights_of_a_transport_are_repetitions_long_before_it_converges(iterations, symmetric):
    x, y, z = draw(6, 2), draw(3, 2, seed=1), draw(5, 2, seed=2)
    counts = torch.tensor([3, 1, 0])
    field = partial(sinkhorn_field, epsilon=0.02, iterations=iterations, symmetric=symmetric)
    weighted = field(x, y, z, positive_weights=counts.double()).field
    repeated = field(x, y.repeat_interleave(counts, 0), z).field
    torch.testing.assert_close(weighted, repeated, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "field",
    [
        partial(drift_field, kernel=SHARP, coupling=softmax_both),
        partial(mean_shift_field, kernel=SHARP),
        partial(kernel_gradient_field, kernel=BELL),
        partial(mmd_field, kernel=BELL),
        energy_field,
        partial(sinkhorn_field, epsilon=0.5),
    ],
    ids=["drift", "mean_shift", "kernel_gradient", "mmd", "energy", "sinkhorn"],
)
def test_a_set_without_mass_and_sets_of_two_precisions(field):
    x, y = draw(5, 3), draw(4, 3, seed=1)
    none = torch.zeros(4, dtype=x.dtype)
    found, moved = (field(x, points, positive_weights=none).field for points in (y, y + 7))
    torch.testing.assert_close(found, moved, rtol=1e-9, atol=1e-12)  # wherever it is, it pulls nothing
    mixed = field(x.float(), y).field
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, field(x.float().double(), y).field)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: drift_field(x, x, kernel=BELL, coupling=softmax_both, keys=lambda z: z.sum(-1)),
        lambda x: core.feature_normalized(lambda length: partial(energy_field))(x[0], x[0]),
        lambda x: stepped_temperature(float("nan"), temperatures=(1.0,)),
        lambda x: core.sliced_wasserstein(x, x, directions=x, power=float("inf")),
        lambda x: core.diagnostics.mode_masses(torch.tensor([-1]), 2),
    ],
    ids=["keys", "points", "progress", "power", "labels"],
)
def test_what_no_field_can_use_is_named(call):
    with pytest.raises(ConfigError, match="expected"):
        call(draw(5, 3))
