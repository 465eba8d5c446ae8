"""Drifting objectives: normalisations, features, guidance."""

import math
from functools import partial

import pytest
import torch
from torch.func import grad

from onestep_core import (
    drift_field,
    drift_negative_weight,
    drifting_regression,
    drifting_regressions,
    feature_normalized,
    laplace,
    mean_shift_field,
    mse,
    multi_temperature,
    released_drift,
    softmax_both,
)
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError

F64 = torch.float64


TEMPERATURES = (0.02, 0.05, 0.2)


def clouds(*shape, seed=0, shift=0.0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)) + shift


def at(temperature, floor=1e-3):
    return partial(
        drift_field, kernel=partial(laplace, temperature=temperature), coupling=softmax_both, affinity_floor=floor
    )


COMPOSED = feature_normalized(lambda length: multi_temperature(at, [length * r for r in TEMPERATURES], normalize=True))


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_released_drift_is_composed_of_its_parts(weighted, size):
    """Equal wherever no distance comes near the floor of 1e-4, groups and weights included."""
    x, y, extra = (size * clouds(3, n, 4, seed=n, shift=n / 9) for n in (5, 6, 4))
    keywords = {"extra_negatives": extra}
    if weighted:
        names = {"negative_weights": 5, "extra_weights": 4, "positive_weights": 6}
        keywords |= {name: clouds(3, n, seed=9 * n).exp() for name, n in names.items()}
    composed, released = (field(x, y, **keywords) for field in (COMPOSED, released_drift))
    torch.testing.assert_close(composed, released, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("factors", [(1.5, 1.0), (1.0, 2.0), (1.0, 0.0)])
def test_the_released_drift_has_the_factors_of_its_parts(factors):
    keywords = dict(zip(("attraction", "repulsion"), factors, strict=True))

    def weighted(length):
        return multi_temperature(
            lambda t: partial(at(t), **keywords), [length * r for r in TEMPERATURES], normalize=True
        )

    x, y, extra = (clouds(3, n, 4, seed=n, shift=n / 9) for n in (5, 6, 4))
    composed = feature_normalized(weighted)(x, y, extra_negatives=extra)
    released = released_drift(x, y, extra_negatives=extra, **keywords)
    torch.testing.assert_close(composed, released, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(released.field, released_drift(x, y, extra_negatives=extra).field, rtol=0.05)


def test_features_in_other_units_and_more_channels_have_one_drift():
    """Scaling changes nothing in normalised units; the mean distance is sqrt(channel) whatever the channels are."""
    x, y = clouds(7, 3), clouds(9, 3, seed=1, shift=1.0)
    seen = []

    def field(length):
        def recorded(samples, positives, negatives=None, **keywords):
            seen.append((length, torch.cdist(samples, positives).mean()))
            return mean_shift_field(
                samples, positives, negatives, kernel=partial(laplace, temperature=0.3 * length), **keywords
            )

        return recorded

    plain, scaled = (feature_normalized(field)(c * x, c * y, y.flip(0) * c) for c in (1.0, 50.0))
    torch.testing.assert_close(scaled.field, plain.field, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(scaled.scale, 50 * plain.scale, rtol=1e-12, atol=0)
    assert [length for length, _ in seen] == [math.sqrt(3)] * 2
    assert all(0.4 < float(mean) / math.sqrt(3) < 1.6 for _, mean in seen)


@pytest.mark.parametrize("field", [released_drift, COMPOSED], ids=["released", "composed"])
def test_self_pairs_at_the_floor_of_distances_are_what_knows_the_units(field):
    """The floor does not grow with the points: what it changes falls as they grow."""
    x, y = clouds(7, 3), clouds(9, 3, seed=1, shift=1.0)
    limit = field(1e6 * x, 1e6 * y).field
    errors = [float((field(c * x, c * y).field - limit).abs().max()) for c in (0.25, 1.0, 100.0)]
    assert errors[0] < 1e-4
    assert errors[1] < 0.26 * errors[0]
    assert errors[2] < 0.011 * errors[1]


def test_a_normalised_field_is_differentiable_through_its_samples_alone():
    x, y = clouds(6, 2), clouds(5, 2, seed=1)

    def loss(x, y):
        return mse(*drifting_regression(x, y, field=COMPOSED)).sum()

    towards_x, towards_y = grad(loss, argnums=(0, 1))(x, y)
    drift = COMPOSED(x, y)
    unit = drift.scale / math.sqrt(2)
    torch.testing.assert_close(towards_x, -2 * drift.field / (2 * unit), rtol=1e-10, atol=1e-12)
    assert not towards_y.any()


def test_every_feature_can_have_its_own_field():
    sets = [{"a": clouds(4, 1, 3, seed=s), "b": clouds(4, 5, 2, seed=s + 9)} for s in (0, 1)]
    fields = {"a": at(0.3), "b": COMPOSED}
    pairs = drifting_regressions(*sets, field=fields, groups=2)
    for name, field in fields.items():
        alone = drifting_regression(sets[0][name], sets[1][name], field=field, groups=2)
        torch.testing.assert_close(pairs[name], alone, rtol=0, atol=0)
    assert not torch.allclose(pairs["a"].target, drifting_regressions(*sets, field=COMPOSED, groups=2)["a"].target)
    with pytest.raises(ConfigError, match=r"fields lack the features \['b'\] and have the unexpected \['c'\]"):
        drifting_regressions(*sets, field={"a": at(0.3), "c": COMPOSED})


def modes(weights):
    return GaussianMixture.isotropic(weights, [[-1.0], [1.0]], 0.25)


CONDITIONAL, NULL = (0.4, 0.6), (0.6, 0.4)


def guided(alpha):
    """Masses of ``alpha p_c - (alpha - 1) p_null``, a distribution for alpha up to 3."""
    return tuple(alpha * c - (alpha - 1) * n for c, n in zip(CONDITIONAL, NULL, strict=True))


def mean_field(own, alpha, *, count=1500, seed=0, temperature=0.6):
    """The field at fixed places when the generated distribution is ``own``: averages of a small cloud's repulsion."""
    generator = torch.Generator().manual_seed(seed)
    samples, positives, null = (
        modes(weights).sample(count, generator=generator) for weights in (own, CONDITIONAL, NULL)
    )
    places = torch.linspace(-1.5, 1.5, 31, dtype=F64)[:, None]
    weight = drift_negative_weight(torch.tensor([alpha], dtype=F64), generated=count + 1, unconditional=count)
    return mean_shift_field(
        places,
        positives,
        samples,
        kernel=partial(laplace, temperature=temperature),
        extra_negatives=null,
        extra_weights=weight.expand(count),
    ).field


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.5])
def test_the_guided_field_is_balanced_where_the_oracle_says(alpha):
    """At ``q = alpha p_c - (alpha - 1) p_null`` it vanishes, at the conditional distribution itself it does not."""
    there = mean_field(guided(alpha), alpha).abs().max()
    assert float(there) < 0.08
    if alpha > 1:
        assert float(mean_field(CONDITIONAL, alpha).abs().max()) > 2.5 * float(there)


def test_the_guided_balance_is_reached_at_the_rate_of_sampling():
    sizes = [500, 2000, 8000]
    errors = [
        sum(float(mean_field(guided(2.0), 2.0, count=n, seed=s).square().mean()) for s in range(4)) ** 0.5
        for n in sizes
    ]
    slope = math.log(errors[-1] / errors[0]) / math.log(sizes[-1] / sizes[0])
    assert -0.75 < slope < -0.3
