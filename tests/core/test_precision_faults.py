"""Numbers that were wrong in float32 or half precision, or hid NaN; each with the right value."""

import math
from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_core.errors import ConfigError
from tests import cases

SCALES = [1e-30, 1e-20, 1e-8, 1.0, 1e8, 1e18, 1e30]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# NaN and infinity stay visible.


DISTANCES = {
    "squared_l2": one.squared_l2,
    "mse": one.mse,
    "l1": one.l1,
    "l2": one.l2,
    "cosine": one.cosine,
    "pseudo_huber": partial(one.pseudo_huber, c=0.1),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_a_distance_shows_a_number_that_is_not_finite(distance, bad):
    p, q = normal(3, 5), normal(3, 5, seed=1)
    p[1, 2] = bad
    found = distance(p, q)
    assert found.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("kernel", cases.KERNELS.values(), ids=cases.KERNELS)
def test_a_kernel_shows_nan(kernel):
    kernel, _ = kernel
    x, y = normal(4, 3), normal(5, 3, seed=1)
    x[2, 0] = math.nan
    assert kernel(x, y).isnan().all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("field", cases.FIELDS.values(), ids=cases.FIELDS)
def test_a_field_shows_nan(field):
    field, _ = field
    x, y = normal(6, 3), normal(7, 3, seed=1)
    x[2, 0] = math.nan
    drift = field(x, y)
    assert drift.field[2].isnan().any()


# The whole range of float32.


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["l2", "cosine", "pseudo_huber"])
def test_a_normalised_distance_is_right_at_every_scale(name, scale):
    distance = partial(one.pseudo_huber, c=0.03) if name == "pseudo_huber" else DISTANCES[name]
    p, q = scale * normal(4, 4096), scale * normal(4, 4096, seed=1)
    expected = distance(p.double(), q.double())
    torch.testing.assert_close(distance(p, q).double(), expected, rtol=2e-6, atol=1e-38)


@pytest.mark.parametrize("scale", SCALES)
def test_a_direction_has_cosine_distance_zero_to_itself(scale):
    x = scale * normal(3, 4096)
    assert one.cosine(x, x).abs().max() == 0
    torch.testing.assert_close(one.cosine(x, -x), torch.full((3,), 2.0), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("scale", SCALES)
def test_a_normalised_tangent_is_right_at_every_scale(scale):
    tangent = scale * normal(3, 64)
    expected = tangent.double() / (tangent.double().square().sum(1, keepdim=True).sqrt() + 0.1)
    torch.testing.assert_close(one.normalize_tangent(tangent).double(), expected, rtol=2e-6, atol=0.0)


def test_pseudo_huber_keeps_the_digits_of_small_distances():
    p = torch.full((1, 1), 1e-9)
    assert one.pseudo_huber(p, torch.zeros(1, 1), c=1.0).item() == pytest.approx(5e-19, rel=1e-6)
    curvature = torch.func.hessian(lambda x: one.pseudo_huber(x, torch.zeros(1, 1), c=0.5).sum())(torch.zeros(1, 1))
    assert curvature.item() == pytest.approx(2.0)


# Times.


@pytest.mark.parametrize(("stage", "factor"), [(0, 2), (3, 2), (7, 2), (4, 4), (2, 256), (5, 16)])
def test_the_difference_of_two_times_of_ect_is_that_of_float64_or_an_error(stage, factor):
    t = one.log_normal_times(normal(1000), mean=-1.1, std=2.0)
    ratio = one.ect_ratio(stage, factor=factor)
    exact = one.ect_times(t.double(), ratio=ratio)
    if 1 - ratio < 5e-4:
        with pytest.raises(ConfigError, match="float64"):
            one.ect_times(t, ratio=ratio)
        return
    found = one.ect_times(t, ratio=ratio)
    gap = t.double() - exact
    assert ((t.double() - found.double() - gap) / gap).abs().max() < 1e-4


ENDS = [(0.99, 0.995), (0.0, 1.0), (0.999, 1.0), (0.0, 1e-4), (0.4, 0.6)]


@pytest.mark.parametrize(("low", "high"), ENDS)
@pytest.mark.parametrize("mean", [-0.4, 3.0, -4.0])
def test_truncated_logit_normal_times_stay_inside_and_are_those_of_float64(low, high, mean):
    u = torch.tensor([0.0, 1e-6, 0.1, 0.5, 0.9, 0.9999, 1.0])
    found = one.truncated_logit_normal_times(u, mean=mean, std=1.0, low=low, high=high)
    exact = one.truncated_logit_normal_times(u.double(), mean=mean, std=1.0, low=low, high=high)
    assert found.isfinite().all()
    assert (found >= torch.tensor(low)).all()
    assert (found <= torch.tensor(high)).all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0.0)
    assert (exact.diff() >= 0).all()
    assert exact[3] not in (low, high)


@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (60.0, 80.0), (1e-3, 2e-3)])
def test_truncated_log_normal_times_stay_inside_and_are_those_of_float64(low, high):
    u = torch.tensor([0.0, 1e-6, 0.5, 0.9999, 1.0])
    found = one.truncated_log_normal_times(u, mean=-1.2, std=1.2, low=low, high=high)
    exact = one.truncated_log_normal_times(u.double(), mean=-1.2, std=1.2, low=low, high=high)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0.0)
    assert ((found >= torch.tensor(low)) & (found <= torch.tensor(high))).all()
    assert low < exact[2] < high


GRIDS = {
    "karras": one.karras_grid,
    "polyexponential": one.polyexponential_grid,
    "vp": one.vp_grid,
    "few_step": one.few_step_grid,
    "uniform": partial(one.uniform_grid, path=one.Linear()),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [2, 5, 18, 40])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_grid_is_that_of_float64_rounded_once(grid, steps, dtype):
    exact = grid(steps, dtype=torch.float64)
    found = grid(steps, dtype=dtype)
    assert torch.equal(found, exact.to(dtype))
    assert (found.double().diff() < 0).all()


def test_a_grid_with_two_equal_times_is_refused():
    with pytest.raises(ConfigError, match=r"repeat in torch\.bfloat16"):
        one.karras_grid(2000, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="at most 996"):
        one.few_step_grid(999)
    assert (one.few_step_grid(996).diff() < 0).all()
    with pytest.raises(ConfigError, match="two different times"):
        one.uniform_grid(3, path=one.Linear(), start=0.5, end=0.5)


def test_the_first_level_of_a_grid_in_half_precision_is_the_largest():
    assert one.karras_grid(8, dtype=torch.bfloat16)[0].item() == 80.0
