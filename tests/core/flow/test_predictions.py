"""What a network predicts, converted from one to another."""

from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.errors import ConfigError
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
def test_predictions_convert_into_one_another(path):
    t = inner_times(path)
    data, noise = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    z, v = path(data, noise, t)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(flow.data_from_velocity(z, v, t, path=path), data)
    close(flow.data_from_noise(z, noise, t, path=path), data)
    close(flow.noise_from_data(z, data, t, path=path), noise)
    close(flow.velocity_from_data(z, data, t, path=path), v)
    score = flow.score_from_data(z, data, t, path=path)
    close(score, -noise / expand_like(path.coefficients(t)[1], noise))
    close(flow.data_from_score(z, score, t, path=path), data)
    close(flow.denoiser_from_velocity(lambda z, t: v, path=path)(z, t), data)
    close(flow.velocity_from_denoiser(lambda z, t: data, path=path)(z, t), v)
    close(flow.denoiser_from_noise(lambda z, t: noise, path=path)(z, t), data)


DISTILLATION_PATHS = {
    "linear": flow.Linear(),
    "floor": flow.Linear(0.01),
    "reversed": flow.reverse(flow.Linear()),
    "trigonometric": flow.Trigonometric(0.7),
    "scaled": flow.NoiseScaled(flow.Linear(), 0.5),
    "cosine": flow.VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0),
    "exploding": flow.VarianceExploding(0.002, 80.0),
}


each_path = pytest.mark.parametrize("path", DISTILLATION_PATHS.values(), ids=DISTILLATION_PATHS.keys())


each_shape = pytest.mark.parametrize("shape", [(1,), (2,), (3, 2, 2)], ids=str)


LINE = DISTILLATION_PATHS["linear"]


def steps_of(path, batch: int, steps: int) -> flow.StepTimes:
    levels = partial(flow.uniform_levels, path=path)
    return flow.progressive_times(torch.arange(batch) % steps, steps, levels=levels, dtype=F64)


@each_path
@each_shape
def test_predictions_of_v_and_of_both_carry_the_same_data(path, shape):
    t = steps_of(path, 6, 6).m
    data, noise = (strategies.normal(seed, 6, *shape) for seed in (0, 1))
    z = path(data, noise, t).z
    v = flow.v_prediction_from_data(z, data, t, path=path)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(flow.data_from_v_prediction(z, v, t, path=path), data)
    close(flow.denoiser_from_v_prediction(lambda *_: v, path=path)(z, t), data)
    close(flow.data_from_both(z, data, noise, t, path=path), data)
    close(flow.denoiser_from_both(lambda *_: (data, noise), path=path)(z, t), data)
    alpha, sigma = (c.reshape(-1, *(1 for _ in shape)) for c in path.coefficients(t))
    close(v, alpha * noise - sigma * data)
    circle = flow.Trigonometric(1.0)
    point = circle(data, noise, t.clamp(max=1.5))
    close(flow.v_prediction_from_data(point.z, data, t.clamp(max=1.5), path=circle), point.v)


@each_path
@each_shape
def test_a_velocity_learnt_on_another_path(path, shape):
    """What the source says of a pair is what the target says of it."""
    source, t = LINE, steps_of(path, 6, 6).m
    data, noise = (strategies.normal(seed, 6, *shape) for seed in (0, 1))
    z, v = path(data, noise, t)

    def of_pair(z, r):
        return source(data, noise, r).v + 0 * z

    def of_state(z, r):
        return (z - source(data, 0 * noise, r).z) / source.coefficients(r)[1].reshape(-1, *(1 for _ in shape)) - data

    for answer in (of_pair, of_state):
        found = flow.velocity_on_path(answer, source=source, target=path)
        torch.testing.assert_close(found(z, t), v, rtol=1e-9, atol=1e-9)
    inner = torch.linspace(0.1, 0.9, 6, dtype=F64)
    there = flow.velocity_on_path(lambda z, r: path(data, noise, r).v, source=path, target=source)
    torch.testing.assert_close(there(source(data, noise, inner).z, inner), noise - data, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "source",
    [
        flow.Linear(),
        flow.NoiseScaled(flow.Linear(), 0.5),
        flow.VariancePreserving.cosine(),
        flow.NoiseScaled(flow.VariancePreserving.cosine(), 2.0),
        flow.reverse(flow.VariancePreserving.cosine()),
        flow.VarianceExploding(),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [flow.Trigonometric(), flow.Linear(), flow.NoiseScaled(flow.Linear(), 3.0)], ids=str)
def test_a_velocity_on_another_path_has_its_derivative(source, target):
    """Forward and reverse, against differences, also where the source's time is found by search."""

    def answer(z, r):
        alpha, sigma = source.coefficients(r)
        return z.sin() * sigma[:, None] + alpha[:, None].square() * z

    found = flow.velocity_on_path(answer, source=source, target=target)
    t, z = torch.tensor([0.2, 0.5, 0.8], dtype=F64), strategies.normal(0, 3, 2)
    v, ones, step = strategies.normal(1, 3, 2), torch.ones(3, dtype=F64), 1e-5
    _, slope = torch.func.jvp(found, (z, t), (v, ones))
    apart = (found(z + step * v, t + step) - found(z - step * v, t - step)) / (2 * step)
    torch.testing.assert_close(slope, apart, rtol=1e-6, atol=1e-6)
    of_time = torch.func.grad(lambda t: found(z, t).sum())(t)
    apart = (found(z, t + step) - found(z, t - step)).sum(1) / (2 * step)
    torch.testing.assert_close(of_time, apart, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", [flow.Linear(), flow.Trigonometric()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_source_is_asked_at_its_end_where_the_target_goes_on(target, dtype):
    """Data that spread by one, at noise that nothing is left of: the state itself is expected to be noise."""
    source = flow.VarianceExploding()
    velocity = flow.velocity_from_denoiser(lambda z, s: z / (1 + s.square()[:, None]), path=source)
    asked = []
    found = flow.velocity_on_path(lambda z, r: asked.append(r) or velocity(z, r), source=source, target=target)
    v = found(torch.ones(1, 1, dtype=dtype), torch.tensor([target.noise_time], dtype=dtype))
    assert asked[0].item() == pytest.approx(source.noise_time)
    expected = torch.ones(1, 1, dtype=dtype) if isinstance(target, flow.Linear) else torch.zeros(1, 1, dtype=dtype)
    torch.testing.assert_close(v, expected, rtol=0.02, atol=0.02)
    with pytest.raises(ConfigError, match="answered"):
        flow.velocity_on_path(lambda z, r: z[:, :1], source=source, target=target)(torch.ones(2, 3), torch.ones(2) / 2)


def test_a_velocity_on_another_path_at_the_ends_and_its_derivative():
    circle = flow.Trigonometric(0.7)
    data, noise = (strategies.normal(seed, 2, 3) for seed in (0, 1))
    found = flow.velocity_on_path(lambda z, r: LINE(data, noise, r).v, source=LINE, target=circle)
    ends = torch.tensor([circle.data_time, circle.noise_time], dtype=F64)
    z, v = circle(data, noise, ends)
    torch.testing.assert_close(found(z, ends), v)
    inner = torch.tensor([0.2, 1.2], dtype=F64)
    z, v = circle(data, noise, inner)
    _, slope = torch.func.jvp(found, (z, inner), (v, torch.ones_like(inner)))
    torch.testing.assert_close(slope, -z)  # on the circle the velocity's rate is minus the state


@each_shape
def test_two_predictions_count_by_signal_and_noise(shape):
    path, t = LINE, torch.full((2,), 0.25, dtype=F64)
    z, data, noise = (strategies.normal(seed, 2, *shape) for seed in range(3))
    other = flow.data_from_noise(z, noise, t, path=path)
    mean = (0.25**2 * data + 0.75**2 * other) / (0.25**2 + 0.75**2)
    torch.testing.assert_close(flow.data_from_both(z, data, noise, t, path=path), mean)


def ends(path, batch: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.full((batch,), time, dtype=F64) for time in (path.noise_time, path.data_time))
