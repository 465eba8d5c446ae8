"""Numbers that change while a network trains."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from onestep_core import flow
from tests.toy import F64

RAMPS = {
    "linear": flow.linear_ramp,
    "exponential": flow.exponential_ramp,
    "power": partial(flow.exponential_ramp, power=3.0),
    "logarithmic": flow.logarithmic_ramp,
    "sigmoid": partial(flow.sigmoid_ramp, steepness=60.0),
}


@pytest.mark.parametrize("ramp", RAMPS.values(), ids=RAMPS)
@pytest.mark.parametrize("ends", [(2.0, 0.5), (0.01, 1.0)])
def test_a_ramp_goes_from_the_first_value_to_the_last(ramp, ends):
    curve = [flow.annealed(step, begin=10, end=30, initial=ends[0], final=ends[1], ramp=ramp) for step in range(40)]
    assert curve[:10] == [ends[0]] * 10
    assert curve[31:] == [ends[1]] * 9
    assert curve[10] == pytest.approx(ends[0], abs=1e-9)
    assert curve[30] == pytest.approx(ends[1], abs=1e-9)
    steps = [b - a for a, b in pairwise(curve)]
    assert all(step * (ends[1] - ends[0]) >= -1e-12 for step in steps)


def test_a_step_is_a_ramp_of_no_length():
    values = [flow.annealed(step, begin=5, end=5, initial=1.0, final=0.0) for step in (4, 5, 6)]
    assert values == [1.0, 0.0, 0.0]


def test_alpha_is_snapped_to_both_ends():
    schedule = partial(flow.alpha_schedule, begin=0, end=100, ramp=flow.linear_ramp, margin=0.1)
    assert [schedule(step) for step in (0, 5, 50, 95, 100)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert schedule(30, upper=0.6) == 1.0


close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def test_points_of_consistency_training_grow_from_start_to_end():
    points = [flow.progressive_points(k, total=500, start=2, end=150) for k in range(501)]
    assert points[0] == 2
    assert points[-1] == 151
    assert points == sorted(points)
    # Their squares grow linearly.
    assert (points[125] ** 2 - 2**2) / (151**2 - 2**2) == pytest.approx(0.25, abs=0.01)
    decay = [flow.target_decay(n, start=2, initial=0.9) for n in points]
    assert decay[0] == pytest.approx(0.9)
    assert decay == sorted(decay)
    assert decay[-1] < 1


def test_points_of_improved_training_double():
    points = [flow.doubling_points(k, total=800, start=10, end=1280) for k in range(900)]
    assert sorted(set(points)) == [10 * 2**i + 1 for i in range(8)]
    assert all(points.count(10 * 2**i + 1) == 100 for i in range(7))
    assert flow.doubling_points(10**6, total=1000, start=10, end=100) == 101


def test_steps_of_a_distilled_student_halve():
    steps = [flow.student_steps_at(k, every=10, start=64) for k in range(100)]
    assert [steps.count(n) for n in (64, 32, 16, 8, 4, 2, 1)] == [10, 10, 10, 10, 10, 20, 30]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("amplitude", [0.0, 8.0])
def test_second_times_close_in_stage_by_stage(amplitude):
    t = torch.linspace(0.001, 80, 400, dtype=F64)
    before = torch.full_like(t, -1.0)
    for stage in range(10):
        m = flow.ect_times(t, ratio=flow.ect_ratio(stage), amplitude=amplitude)
        assert bool(((m >= before) & (m < t) & (m >= 0)).all())
        before = m
    close(m, t, rtol=0.01, atol=0)
    close(flow.ect_times(t, ratio=0.0, floor=0.002), torch.full_like(t, 0.002))
