"""Draws of times, and pairs of them."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onestep_adapters.testing import strategies
from onestep_core import flow
from tests.cases import TWO_MODES
from tests.toy import F64


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_draws_stay_in_range_and_obey_their_generator(count, seed):
    path = flow.VarianceExploding(0.01, 5.0)
    for draw in (
        partial(flow.sample_uniform, low=0.1, high=0.9, path=flow.Linear()),
        partial(flow.sample_logit_normal, low=0.1, high=0.9, path=flow.Linear()),
        partial(flow.sample_log_normal, low=0.01, high=5.0, path=path),
    ):
        first = draw(count, generator=torch.Generator().manual_seed(seed))
        again = draw(count, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(first, again)
        low, high = draw.keywords["low"], draw.keywords["high"]
        assert first.shape == (count,)
        assert ((first >= low) & (first <= high)).all()


def test_a_truncated_logit_normal_is_the_logit_normal_given_its_range():
    """Against rejection: the quantiles of a large plain sample that fell into the range."""
    low, high = 0.2, 0.6
    plain = flow.logit_normal_times(strategies.normal(0, 400_000), mean=-0.4, std=1.0)
    inside = plain[(plain >= low) & (plain <= high)].sort().values
    u = torch.linspace(0.01, 0.99, 25, dtype=F64)
    expected = inside[(u * len(inside)).long()]
    torch.testing.assert_close(
        flow.truncated_logit_normal_times(u, mean=-0.4, std=1.0, low=low, high=high), expected, rtol=0, atol=3e-3
    )
    whole = flow.truncated_logit_normal_times(u, mean=-0.4, std=1.0)
    torch.testing.assert_close(torch.special.ndtr(torch.logit(whole) + 0.4), u)


def test_jumps_of_terminal_velocity_matching_fit_into_the_path():
    length = flow.logit_normal_times(strategies.normal(0, 1000), mean=-0.8, std=1.0)
    u = torch.rand(1000, dtype=F64, generator=torch.Generator().manual_seed(1))
    s = flow.truncated_logit_normal_times(u, mean=-0.4, std=1.0, high=1 - length)
    assert bool(((s > 0) & (s + length < 1 + 1e-12)).all())


@pytest.mark.parametrize("count", [0, 1, 7, 16, 100])
@pytest.mark.parametrize("finest", [2, 3, 7])
@pytest.mark.parametrize("biased", [False, True])
def test_log_steps_cover_the_sizes(count, finest, biased):
    k = flow.log_steps(count, finest=finest, biased=biased)
    assert k.shape == (count,)
    assert k.dtype == torch.int64
    assert bool((k.diff() <= 0).all())
    each = torch.bincount(k, minlength=finest)
    assert len(each) == finest
    if biased:
        assert int(each[1]) == count // 4
        assert all(int(n) == count // 2 // finest for n in each[2:])
    else:
        assert all(int(n) == count // finest for n in each[1:])


def test_dyadic_jumps_lie_on_their_grid_and_halve_into_the_next_size():
    k = flow.log_steps(64, finest=7)
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    t, s = flow.dyadic_times(u, k)
    assert bool(((t >= 0) & (s <= 1)).all())
    assert torch.equal(t * 2**k, (t * 2**k).round())
    seen = flow.from_log_step(lambda z, t, level: level[:, None], finest=7)
    z = torch.zeros(64, 1)
    assert torch.equal(seen(z, t, s)[:, 0], k.float())
    assert torch.equal(seen(z, t, flow.time_between(t, s, share=0.5))[:, 0], k.float() + 1)
    assert torch.equal(seen(z, t, t)[:, 0], torch.full((64,), 7.0))


close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def test_boundary_times_belong_to_the_late_stage_in_any_precision():
    for dtype in (torch.float32, F64):
        for transition in (0.7, 1.0, 1.3):
            t = torch.tensor([2.0, 3.0], dtype=dtype)
            times = flow.boundary_times(t, torch.tensor([True, False]), transition=transition)
            assert times.dtype == dtype
            f = flow.truncated(lambda z, t: z + 1, lambda z, t: z, transition=transition)
            close(f(torch.zeros(2, 1, dtype=dtype), times), torch.ones(2, 1, dtype=dtype))
            assert float(times[1]) == 3


def test_discretised_log_normal_is_the_continuous_one_on_a_grid():
    """The same uniform number puts the truncated log-normal into the interval that was drawn."""
    for points in (2, 11, 1281):
        grid = flow.karras_grid(max(points, 2), dtype=F64)[:-1]
        u = (torch.arange(2000, dtype=F64) + 0.5) / 2000
        index = flow.discretized_log_normal(u, grid, mean=-1.1, std=2.0)
        time = flow.truncated_log_normal_times(1 - u, mean=-1.1, std=2.0, low=float(grid[-1]), high=float(grid[0]))
        assert bool((time <= grid[index] * (1 + 1e-9)).all())
        assert bool((time >= grid[index + 1] * (1 - 1e-9)).all())
    for levels in (grid, grid.float()):
        ends = flow.discretized_log_normal(torch.tensor([0.0, 1.0]), levels)
        assert ends.tolist() == [0, len(grid) - 2]


def test_pairs_kept_apart():
    t, s = torch.tensor([1e-4, 0.002, 0.5], dtype=F64), torch.full((3,), 0.002, dtype=F64)
    apart = flow.keep_apart(t, s, gap=1e-6)
    close(apart.t, torch.tensor([0.002001, 0.002001, 0.5], dtype=F64))
    assert apart.s is s


LINE = flow.Linear()


PATHS = {
    "linear": LINE,
    "reversed": flow.reverse(LINE),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0),
    "exploding": flow.VarianceExploding(0.002, 80.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def problem(path, batch: int, particles: int, seed: int = 0, mixture=TWO_MODES):
    """Data, noise and times ``t, m, s`` that are equal within a group."""
    groups = batch // particles
    t, s = (strategies.spread_times(path, groups, seed + i, margin=0.1) for i in (1, 2))
    t, s = (time.clamp(max=5.0) if path is PATHS["exploding"] else time for time in (t, s))
    t = torch.where((t - s).abs() < 0.05, s + 0.2, t)
    data = mixture.sample(batch, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 3, *data.shape)
    t, m, s = (time.repeat_interleave(particles) for time in (t, (t + s) / 2, s))
    return data, noise, t, m, s


@each_path
def test_the_middle_time_has_a_lower_ratio_and_stops_at_the_target(path):
    _, _, t, _, s = problem(path, 12, 1, seed=5)
    ratio = lambda time: (lambda c: c[1] / c[0])(path.coefficients(time))  # noqa: E731
    t, s = torch.where(ratio(t) > ratio(s), t, s), torch.where(ratio(t) > ratio(s), s, t)
    for decrement in (0.01, 0.3, 1e9):
        m = flow.lower_noise_ratio(t, s, path=path, decrement=decrement)
        stops = ratio(t) - decrement <= ratio(s)
        assert torch.equal(m[stops], s[stops])
        torch.testing.assert_close(ratio(m)[~stops], (ratio(t) - decrement)[~stops], rtol=1e-8, atol=1e-9)
        assert m.dtype == F64
    assert flow.lower_noise_ratio(t.float(), s.float(), path=path, decrement=0.3).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_share_of_a_jump_is_not_rounded_away(dtype):
    """Times in half precision near 1 are 0.004 apart: alpha-Flow's 0.5 % of a jump of a half would be none."""
    t, s = torch.tensor([0.9375], dtype=dtype), torch.tensor([0.4375], dtype=dtype)
    middle = flow.time_between(t, s, share=0.005)
    torch.testing.assert_close(middle, torch.tensor([0.935]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("low", "high", "mean", "std", "expected"),
    [
        (10.0, 80.0, -1.2, 0.05, [10.0007518867172, 10.004947263876, 10.016441200525]),
        (1e-6, 2e-6, 5.0, 0.1, [1.9974606266905e-06, 1.9992352142810e-06, 1.9998837303101e-06]),
        (0.002, 80.0, -1.2, 1.2, [0.0647143147501595, 0.301200102569619, 1.40194669282653]),
    ],
)
def test_far_tails_of_a_truncated_log_normal(low, high, mean, std, expected):
    """As scipy.stats.truncnorm.ppf has it: 70 and 190 standard deviations out, where probabilities underflow."""
    uniform = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=F64)
    found = flow.truncated_log_normal_times(uniform, mean=mean, std=std, low=low, high=high)
    torch.testing.assert_close(found[1:4], torch.tensor(expected, dtype=F64), rtol=1e-8, atol=0)
    torch.testing.assert_close(found[[0, 4]], torch.tensor([low, high], dtype=F64))
