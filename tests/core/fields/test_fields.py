"""What theory says of drift fields."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import onestep_core as core
from onestep_adapters.testing import laws
from onestep_core import (
    ConfigError,
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
    sinkhorn_divergence,
    sinkhorn_field,
    softmax_both,
    softmax_rows,
    stepped_temperature,
    unnormalized,
)
from onestep_core.fields.affinity import streamed_distances

F64 = torch.float64


BELL, SHARP = partial(gaussian, bandwidth=0.7), partial(laplace, temperature=0.5)


KERNEL_GRADIENTS = {"gaussian": BELL, "laplace": SHARP, "matern": partial(matern, smoothness=1.5, lengthscale=1.0)}


WHOLE = {
    "mean_shift": partial(mean_shift_field, kernel=SHARP),
    "sinkhorn": partial(sinkhorn_field, epsilon=8.0, iterations=60),
    "mmd": partial(mmd_field, kernel=BELL),
    "energy": energy_field,
    **{f"gradient_{name}": partial(kernel_gradient_field, kernel=kernel) for name, kernel in KERNEL_GRADIENTS.items()},
}
"""Fields of weighted empirical distributions: a weight is a repetition."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def rms(field: Tensor) -> float:
    return float(field.square().mean().sqrt())


def slope(counts: list[int], sizes: list[float]) -> float:
    """Least squares in logarithms."""
    x, y = (torch.tensor(v, dtype=F64).log() for v in (counts, sizes))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


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
    """The slope of the field's size between independent sets of one distribution."""
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
    """A tenth of the samples far away: unnormalised fields and the MMD's vanish, but the distributions differ."""
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


@pytest.mark.parametrize("name", ["positive", "negative", "extra"])
def test_weights_of_another_count_are_named(name):
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    with pytest.raises(ConfigError, match="weights"):
        drift_field(x, y, kernel=BELL, coupling=softmax_both, extra_negatives=y, **{f"{name}_weights": torch.ones(3)})


@pytest.mark.parametrize("name", ["positive_weights", "negative_weights", "extra_weights"])
def test_the_released_field_maps_over_weights(name):
    x, y, extra = draw(4, 3), draw(5, 3, seed=1), draw(2, 3, seed=2)
    count = {"positive_weights": 5, "negative_weights": 4, "extra_weights": 2}[name]
    weights = draw(3, count, seed=3).abs() + 0.1

    def field(w: Tensor) -> Tensor:
        return released_drift(x, y, extra_negatives=extra, **{name: w}).field

    each = torch.stack([field(w) for w in weights])
    torch.testing.assert_close(torch.func.vmap(field)(weights), each, rtol=1e-12, atol=1e-12)


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
