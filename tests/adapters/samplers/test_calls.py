"""Network evaluations, draws, gradients, precision and compilation of every sampler."""

from functools import partial

import pytest
import torch
from torch.func import grad, vmap

from onestep_adapters.networks import count_calls
from onestep_adapters.samplers import (
    sample_denoiser,
    sample_ode,
    standard_normal,
)
from onestep_core import flow
from onestep_core.errors import ArgumentError
from onestep_core.shapes import per_sample, per_sample_mean
from tests.adapters.samplers.calls import LINE, NOISY, SAMPLERS, TIMES
from tests.adapters.samplers.cases import normal
from tests.toy import F64, Net


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_call_the_network_as_often_as_they_say(name):
    calls, sample = SAMPLERS[name]
    net = count_calls(Net(2))
    sample(net, normal(0, 6, 3), TIMES, standard_normal())
    assert net.calls == calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_draws_and_a_callable_give_the_same(name):
    """The draw of a step depends only on the number of the step; only stochastic samplers draw."""
    _, sample = SAMPLERS[name]
    z, draws, asked = normal(0, 6, 3), normal(1, 4, 6, 3), []

    def draw(step, like):
        assert like.shape == z.shape
        asked.append(step)
        return draws[step]

    net = Net(2)
    assert torch.equal(sample(net, z, TIMES, draws), sample(net, z, torch.tensor(TIMES, dtype=F64), draw))
    assert asked == ([0, 1, 2, 3] if name == "churn" else [0, 1, 2] if name in NOISY else [])
    other = sample(net, z, TIMES, -draws)
    assert torch.equal(other, sample(net, z, TIMES, draws)) == (name not in NOISY)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_keep_gradients_and_precision(name):
    """The gradient of a sample in its start is that of finite differences; half precision comes back in float32."""
    _, sample = SAMPLERS[name]
    net, z, draws, along = Net(2), normal(0, 6, 3), normal(1, 4, 6, 3), normal(2, 6, 3)
    slope = grad(lambda z: sample(net, z, TIMES, draws).sum())(z)
    ahead, behind = (sample(net, z + sign * 1e-5 * along, TIMES, draws).sum().detach() for sign in (1, -1))
    assert float((slope.detach() * along).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)
    half = sample(Net(2).float(), z.bfloat16(), TIMES, draws.bfloat16())
    assert half.dtype == torch.float32
    assert sample(Net(2).float(), z.float(), TIMES, draws.float()).dtype == torch.float32


STEPS = {
    "denoised_heun": lambda net, z, noise, t, s: flow.denoised_heun(net, z, t, s, path=LINE),
    "dpm_2": lambda net, z, noise, t, s: flow.dpm_2(net, z, t, s, path=LINE),
    "dpmpp_2m": lambda net, z, noise, t, s: flow.dpmpp_2m(z, z.sin(), noise, 0 * t + 0.99, t, s, path=LINE),
    "renoise": lambda net, z, noise, t, s: flow.renoise(z, noise, s, t, path=LINE),
    "renoise_clean": lambda net, z, noise, t, s: flow.renoise_clean(z, noise, s, t, path=LINE),
    "ancestral": lambda net, z, noise, t, s: flow.ancestral(net, z, noise, t, s, path=LINE),
    "clamped": lambda net, z, noise, t, s: flow.clamped(net, low=-0.5, high=0.5)(z, t),
}


def step_inputs():
    t = torch.tensor([0.9, 0.8, 0.5], dtype=F64)
    return normal(0, 3, 3), normal(1, 3, 3), t, t / 2


@pytest.mark.parametrize("name", STEPS)
def test_steps_run_per_sample_and_compile_without_a_break(name):
    net, inputs = Net(1), step_inputs()
    step = partial(STEPS[name], net)
    batched = step(*inputs)
    assert bool(batched.isfinite().all())
    torch.testing.assert_close(per_sample(step)(*inputs)[:, 0], batched)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), batched)
    if name != "clamped":  # elementwise: nothing to notice
        with pytest.raises(ArgumentError):
            vmap(step)(*inputs)


def test_clamped_estimates_stay_in_the_range_of_the_data():
    d = flow.clamped(lambda z, t: 10 * z, low=-0.5, high=0.25)
    z, t = normal(0, 8, 2), torch.ones(8, dtype=F64)
    torch.testing.assert_close(d(z, t), (10 * z).clamp(-0.5, 0.25))
    made = sample_denoiser(d, 50 * z, [5.0, 1.0, 0.0], path=flow.VarianceExploding())
    assert float(made.min()) >= -0.5
    assert float(made.max()) <= 0.25


def test_fresh_noise_is_standard_normal_and_follows_its_generator():
    like = torch.zeros(200, 50, dtype=F64)
    draw = standard_normal(torch.Generator().manual_seed(0))
    first, second = draw(0, like), draw(0, like)
    assert first.dtype == F64
    assert not torch.equal(first, second)
    assert torch.equal(standard_normal(torch.Generator().manual_seed(0))(3, like), first)
    assert abs(float(first.mean())) < 0.04
    assert float(per_sample_mean(first.square()).mean()) == pytest.approx(1, abs=0.05)


def test_shapes_can_be_asked_for_without_memory():
    """A velocity and its samples on the device "meta"."""
    samples = sample_ode(lambda z, t: -z, torch.zeros(4, 3, device="meta"), path=flow.Linear(), steps=2)
    assert samples.device.type == "meta"
    assert samples.shape == (4, 3)
