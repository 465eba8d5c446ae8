"""Guidance: mixtures of answers, dropped labels, scales and intervals."""

import math

import pytest
import torch

from onestep_adapters.testing import strategies
from onestep_core import (
    flow,
    guidance_scales,
    power_law,
    sample_guidance_scales,
)
from onestep_core.errors import ConfigError

F64 = torch.float64


def test_guidance():
    v, c, u = torch.randn(3, 4, 2, dtype=F64)
    omega, kappa = 1.7, 0.3
    expected = omega * v + kappa * c + (1 - omega - kappa) * u
    torch.testing.assert_close(flow.guided_velocity(v, c, u, omega=omega, kappa=kappa), expected)
    per_sample_weights = {"omega": torch.full((4,), omega, dtype=F64), "kappa": torch.full((4,), kappa, dtype=F64)}
    torch.testing.assert_close(flow.guided_velocity(v, c, u, **per_sample_weights), expected)
    active = torch.tensor([True, False, True, False])
    mixed = flow.guided_velocity(v, c, u, omega=omega, kappa=kappa, active=active)
    torch.testing.assert_close(mixed, torch.where(active[:, None], expected, v))
    assert torch.equal(flow.guided_velocity(v, None, u, omega=1.0), v)
    three = flow.classifier_free(lambda z, t, s: z, lambda z, t, s: 0 * z, scale=2.0)
    torch.testing.assert_close(three(v, None, None), 2 * v)


def test_power_law_has_its_density():
    u = (torch.arange(10**6, dtype=F64) + 0.5) / 10**6
    for power in (1.0, 3.0, 5.0):
        x = flow.power_law(u, low=1.0, high=4.0, power=power)
        low, high = (((x >= a) & (x < b)).double().mean() for a, b in ((1.0, 1.1), (2.0, 2.2)))

        def mass(a, b, power=power):
            if power == 1:
                return math.log(b / a) / math.log(4.0)
            return (a ** (1 - power) - b ** (1 - power)) / (1 - 4.0 ** (1 - power))

        assert float(low) == pytest.approx(mass(1.0, 1.1), abs=1e-5)
        assert float(high) == pytest.approx(mass(2.0, 2.2), abs=1e-5)


def test_guidance_with_kappa_has_the_asked_scale():
    """The fixed point of mixing in one's own guided velocity is classifier-free guidance of that scale."""
    v, u = strategies.normal(0, 3, 2), strategies.normal(1, 3, 2)
    scale = torch.tensor([1.0, 2.5, 8.0], dtype=F64)
    for omega in (1.0, 0.5):
        kappa = flow.kappa_for_scale(scale, omega=omega)
        guided = v
        for _ in range(600):
            guided = flow.guided_velocity(v, guided, u, omega=omega, kappa=kappa)
        expected = torch.stack(
            [flow.classifier_free(lambda: v, lambda: u, scale=w)()[i] for i, w in enumerate(scale.tolist())]
        )
        torch.testing.assert_close(guided, expected)


def test_labels_are_dropped_as_classes_and_as_vectors():
    mask = torch.tensor([True, False])
    assert flow.drop_labels(torch.tensor([1, 2]), 9, mask).tolist() == [9, 2]
    vectors, null = torch.ones(2, 4, 3), torch.arange(12.0).reshape(4, 3)
    dropped = flow.drop_labels(vectors, null, mask)
    assert torch.equal(dropped[0], null)
    assert torch.equal(dropped[1], vectors[1])


def test_intervals_of_guidance_hold_their_middle():
    u = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    everywhere = torch.arange(100) < 30
    low, high = flow.interval_around(*u, middle=0.4, everywhere=everywhere)
    assert bool(((low <= 0.4) & (high >= 0.4) & (low >= 0) & (high <= 1)).all())
    assert torch.equal((low == 0) & (high == 1), everywhere)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1, 0),
        (0.5, float("nan")),
        (torch.tensor(1.0), torch.tensor(0.0)),
        (torch.tensor([0.0, 0.6]), torch.tensor([1.0, 0.5])),
        (0.7, torch.tensor([0.6, 0.9])),
    ],
)
def test_an_interval_that_ends_before_it_begins_is_refused(low, high):
    with pytest.raises(ConfigError, match=r"1 of \d intervals end before they begin.*expected low <= high"):
        flow.Interval(low, high)


def test_an_interval_is_compared_only_where_its_ends_are_known():
    """Not inside a compiled function or a transform, and not a tangent or a pytree of something else."""
    u = torch.tensor([0.2, 0.6])
    assert flow.Interval(u, u) == (u, u)
    assert flow.Interval(None, 0).low is None
    tangents = torch.func.jvp(lambda x: flow.Interval(2 * x, x + 1), (u,), (torch.ones(2),))[1]
    assert isinstance(tangents, flow.Interval)
    assert torch.equal(tangents.low, torch.full((2,), 2.0))
    mapped = torch.func.vmap(flow.Interval)(u, u + 0.1)
    assert torch.equal(mapped.high, u + 0.1)
    gradients = torch.func.grad(lambda ends: (2 * ends.low - ends.high).sum())(mapped)
    assert (gradients.low.tolist(), gradients.high.tolist()) == ([2.0, 2.0], [-1.0, -1.0])
    compiled = torch.compile(flow.interval_around, fullgraph=True, backend="eager")
    assert torch.equal(compiled(u, u).low, flow.interval_around(u, u).low)
    swapped = torch.compile(lambda low, high: flow.Interval(low, high).low - high, fullgraph=True, backend="eager")
    assert torch.equal(swapped(u + 0.1, u), (u + 0.1) - u)


def test_scales_are_a_power_law_beside_a_share_of_ones():
    u = (torch.arange(10_000, dtype=F64) + 0.5) / 10_000
    scales = guidance_scales(u, u.flip(0), low=1.5, high=4.0, power=5.0, plain=0.25)
    assert torch.equal(scales[-2500:], torch.ones(2500, dtype=F64))
    torch.testing.assert_close(scales[:-2500], power_law(u[:-2500], low=1.5, high=4.0, power=5.0))
    drawn = sample_guidance_scales(4000, plain=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, sample_guidance_scales(4000, plain=0.5, generator=torch.Generator().manual_seed(0)))
    assert float((drawn == 1).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn.max()) <= 4
    with pytest.raises(ConfigError, match="plain = 2"):
        guidance_scales(u, u, plain=2)
