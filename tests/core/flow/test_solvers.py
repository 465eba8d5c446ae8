"""Steps of solvers: exact where they should be, and of their order."""

import math
from functools import partial

import pytest
import torch

from onestep_core import flow
from onestep_core.shapes import expand_like

F64 = torch.float64


def cosine_log_snr(t):
    return -2 * torch.log(torch.tan(0.5 * torch.pi * (0.02 + 0.96 * t)))


PATHS = {
    "linear": flow.Linear(),
    "linear with a floor": flow.Linear(noise_floor=0.1),
    "trigonometric": flow.Trigonometric(sigma_data=0.5),
    "variance preserving": flow.VariancePreserving(cosine_log_snr),
    "variance exploding": flow.VarianceExploding(0.01, 5.0),
    "reversed": flow.reverse(flow.Linear()),
}


def inner_times(path, count=5):
    return torch.linspace(path.data_time, path.noise_time, count + 2, dtype=F64)[1:-1]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_ddim_is_exact_for_a_known_sample(path):
    t, s = inner_times(path), inner_times(path).flip(0)
    data, noise = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    out = flow.ddim(lambda z, t: data, path(data, noise, t).z, t, s, path=path)
    torch.testing.assert_close(out, path(data, noise, s).z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("solver", "order"), [(flow.euler, 1), (flow.heun, 2)])
def test_order_of_accuracy(solver, order):
    def velocity(z, t):
        return expand_like(t.cos(), z) * z

    exact = math.exp(math.sin(1.0))
    z = torch.ones(1, 1, dtype=F64)
    errors = []
    for steps in (64, 128):
        grid = torch.linspace(0, 1, steps + 1, dtype=F64)
        errors.append(abs(float(flow.integrate(partial(solver, velocity), z, grid)) - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_a_jump_samples_in_both_directions_of_time():
    """Noise at 1 or at 0: the same network, mirrored, and the same formula ``z + (s - t) a``."""
    forward, backward = flow.Linear(), flow.reverse(flow.Linear())
    data, noise = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    for path in (forward, backward):
        start = torch.full((3,), path.noise_time, dtype=F64)
        end = torch.full((3,), path.data_time, dtype=F64)
        velocity = path(data, noise, start).v
        out = flow.jump(lambda z, t, s, velocity=velocity: velocity, path.prior(noise), start, end)
        torch.testing.assert_close(out, data)
    torch.testing.assert_close(forward(data, noise, start).v, -backward(data, noise, start).v)
