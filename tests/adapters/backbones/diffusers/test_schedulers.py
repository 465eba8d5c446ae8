"""Paths, denoisers and velocities of schedulers, against what the schedulers themselves do."""

import math
from functools import partial

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from onestep_adapters.backbones.diffusers import DiffusersNetwork, denoiser_of, path_of, velocity_of
from onestep_adapters.backbones.diffusers.schedulers import _EDM, _FLOW, _NOISE_LEVELS, _PRESERVING
from onestep_adapters.networks import count_calls, frozen
from onestep_adapters.testing import laws
from onestep_core import Linear, VarianceExploding, ddim, euler, integrate
from onestep_core.errors import ConfigError
from onestep_core.flow.ratios import noise_ratio, time_of_noise_ratio
from tests.adapters.backbones.diffusers.small import BATCH, MODELS, condition_of, model_of, seeded, states

# Schedulers convert tensors to arrays in ways that numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (BATCH, 2, 4, 4)
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
ZERO = pytest.mark.parametrize("zero", [False, True], ids=["", "zero terminal"])


def drawn():
    return torch.randn(2, *SHAPE, generator=seeded())


def model(sample, timestep):
    """A network of states and times; a scheduler's loop gives one number as time."""
    return torch.tanh(1.3 * sample + 1e-3 * torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1, 1, 1))


def loop(scheduler, z):
    """Sampling as a pipeline of diffusers does."""
    for t in scheduler.timesteps:
        z = scheduler.step(model(scheduler.scale_model_input(z, t), t), t, z).prev_sample
    return z


def close(found, expected, bound=3e-6):
    found, expected = found.detach(), expected.detach()
    size = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound * size)


# Paths.


@ZERO
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables_are_the_scheduler_s(kind, betas, zero):
    scheduler, (x, e) = kind(rescale_betas_zero_snr=zero, beta_schedule=betas), drawn()
    path, t = path_of(scheduler), torch.tensor([0, 500, 999])
    assert (path.data_time, path.noise_time) == (0.0, 999.0)
    close(path(x, e, t.float()).z, scheduler.add_noise(x, e, t))
    alpha, _ = path.coefficients(torch.tensor([999.0]))
    assert (float(alpha) == 0) is zero


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDPMScheduler(rescale_betas_zero_snr=True),
        EulerDiscreteScheduler(),
        EulerDiscreteScheduler(use_karras_sigmas=True),
    ],
    ids=["table", "zero terminal", "noise levels", "karras"],
)
def test_between_two_steps_a_path_goes_on(scheduler):
    """A fraction of a step lies between its ends; the rates are the differences within a step."""
    path, t = path_of(scheduler), torch.tensor([0.25, 500.5, 998.75], dtype=torch.float64)
    low, high = path.coefficients(t.floor()), path.coefficients(t.ceil())
    for here, first, last in zip(path.coefficients(t), low, high, strict=True):
        assert bool(((here - first) * (here - last) <= 0).all())
    step = 1e-4
    for rate, after, before in zip(
        path.rates(t), path.coefficients(t + step), path.coefficients(t - step), strict=True
    ):
        torch.testing.assert_close(rate, (after - before) / (2 * step), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "leading"}])
def test_noise_levels_are_the_scheduler_s(options):
    scheduler, (x, e) = EulerDiscreteScheduler(**options), drawn()
    scheduler.set_timesteps(7)
    path, t = path_of(scheduler), scheduler.timesteps[[0, 3, 6]]
    close(path(x, e, t).z, scheduler.add_noise(x, e, t))
    close(path.coefficients(scheduler.timesteps)[1], scheduler.sigmas[:-1])


def test_edm_and_flows_are_paths_of_the_core():
    assert path_of(EDMEulerScheduler(sigma_max=60.0)) == VarianceExploding(0.002, 60.0)
    assert path_of(EDMDPMSolverMultistepScheduler()) == VarianceExploding(0.002, 80.0)
    for options in ({}, {"shift": 3.0}, {"use_dynamic_shifting": True}):
        assert path_of(FlowMatchEulerDiscreteScheduler(**options)) == Linear()
    assert path_of(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")) == Linear()


def test_a_shift_moves_the_times_and_not_the_path():
    scheduler, (x, e) = FlowMatchEulerDiscreteScheduler(shift=3.0), drawn()
    scheduler.set_timesteps(7)
    path, t = path_of(scheduler), scheduler.timesteps[[0, 3, 6]]
    close(path(x, e, t / 1000).z, scheduler.scale_noise(x, t, e))


@pytest.mark.parametrize("name", [*_PRESERVING, *_NOISE_LEVELS, *_EDM, *_FLOW])
def test_every_scheduler_of_the_table(name):
    path = path_of(getattr(diffusers, name)())
    (_, clean), (_, noisy) = (path.coefficients(torch.tensor([end])) for end in (path.data_time, path.noise_time))
    assert float(clean) < 0.1 < float(noisy)


@pytest.mark.parametrize("law", laws.path(path_of(DDPMScheduler(rescale_betas_zero_snr=True)), clean_end=0.02), ids=str)
def test_the_zero_terminal_path_is_a_path(law):
    law()


# Samplers.


@ZERO
@PREDICTIONS
def test_ddim_is_ours(prediction, zero):
    if zero and prediction == "epsilon":
        pytest.skip("noise at zero signal says nothing about the data")
    scheduler = DDIMScheduler(
        rescale_betas_zero_snr=zero, prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(8)
    z, denoiser, grid = drawn()[0], denoiser_of(model, scheduler), scheduler.timesteps.float()
    before = integrate(partial(ddim, denoiser, path=path_of(scheduler)), z, grid)
    close(denoiser(before, grid[-1:].expand(BATCH)), loop(scheduler, z))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "leading"}])
def test_euler_is_ddim_on_its_noise_levels(prediction, options):
    """Euler's step in ``sigma``, which is DDIM's on states without a signal coefficient."""
    scheduler = EulerDiscreteScheduler(prediction_type=prediction, **options)
    scheduler.set_timesteps(7)
    z, denoiser = drawn()[0] * scheduler.init_noise_sigma, denoiser_of(model, scheduler)
    before = integrate(partial(ddim, denoiser, path=path_of(scheduler)), z, scheduler.timesteps)
    close(denoiser(before, scheduler.timesteps[-1:].expand(BATCH)), loop(scheduler, z))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_euler(prediction):
    scheduler = EDMEulerScheduler(prediction_type=prediction)
    scheduler.set_timesteps(7)
    z = drawn()[0] * scheduler.init_noise_sigma
    close(integrate(partial(euler, velocity_of(model, scheduler)), z, scheduler.sigmas), loop(scheduler, z))


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_a_flow_is_euler(options):
    scheduler, z = FlowMatchEulerDiscreteScheduler(**options), drawn()[0]
    scheduler.scale_model_input = lambda z, t: z
    scheduler.set_timesteps(7, **({"mu": 0.7} if "use_dynamic_shifting" in options else {}))
    close(integrate(partial(euler, velocity_of(model, scheduler)), z, scheduler.sigmas), loop(scheduler, z))


def test_continuous_times_of_video_models():
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_max=10.0
    )
    scheduler.set_timesteps(5)
    z = drawn()[0] * scheduler.init_noise_sigma
    close(integrate(partial(euler, velocity_of(model, scheduler)), z, scheduler.sigmas), loop(scheduler, z), 2e-5)


# Estimates.


@ZERO
@PREDICTIONS
@pytest.mark.parametrize("kind", [DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_denoiser_and_velocity_of_the_truth(kind, prediction, zero):
    """A model that predicts a pair's own quantity: the denoiser answers the data, the velocity that of the path."""
    if zero and kind is HeunDiscreteScheduler:
        pytest.skip("it has no zero terminal")
    options = {"beta_start": 0.0001, "beta_end": 0.02} | ({"rescale_betas_zero_snr": True} if zero else {})
    scheduler, (x, e) = kind(prediction_type=prediction, **options), drawn()
    t = torch.tensor([1.0, 500.0, 990.0])
    alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in path_of(DDPMScheduler(**options)).coefficients(t))
    truth = {"epsilon": e, "sample": x, "v_prediction": alpha * e - sigma * x}[prediction]
    path = path_of(scheduler)
    z, v = path(x, e, t)
    seen = []

    def exact(sample, timestep):
        seen.append((sample, timestep))
        return truth

    close(denoiser_of(exact, scheduler)(z, t), x, 1e-3)
    found = velocity_of(exact, scheduler)(z, t)
    for row, expected in zip(found, v, strict=True):
        close(row, expected, 1e-3)
    for sample, timestep in seen:
        close(sample, alpha * x + sigma * e, 1e-4)
        assert torch.equal(timestep, t)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(rescale_betas_zero_snr=True),
        EulerDiscreteScheduler(),
        EulerDiscreteScheduler(use_karras_sigmas=True),
    ],
    ids=["zero terminal", "noise levels", "karras"],
)
def test_times_of_noise_ratios_are_exact(scheduler):
    """In closed form, as by bisection; with both derivatives; the nearer end beyond the table and at infinity."""
    path = path_of(scheduler)
    t = torch.tensor([0.25, 1.0, 500.5, 998.75], dtype=torch.float64)
    ratio = noise_ratio(t, path=path)
    torch.testing.assert_close(path.time_at(ratio), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.time_at(ratio), time_of_noise_ratio(ratio, path=path), rtol=1e-9, atol=1e-9)
    beyond = torch.tensor([0.0, 1e20, math.inf], dtype=torch.float64)
    torch.testing.assert_close(path.time_at(beyond), torch.tensor([0.0, 999.0, 999.0]).double())
    _, slope = torch.func.jvp(lambda t: path.time_at(noise_ratio(t, path=path)), (t + 0.1,), (torch.ones_like(t),))
    torch.testing.assert_close(slope, torch.ones_like(t), rtol=1e-9, atol=1e-9)
    _, slope = torch.func.jvp(path.time_at, (beyond,), (torch.ones_like(beyond),))
    assert bool(slope.isfinite().all())


def test_zero_terminal_tables_of_solvers_that_divide_by_the_signal():
    """DPMSolver and UniPC know it as 2**-24, above entries before it: the path of DDPM. Euler's last noise level is
    4096, below some before it: the first time of a ratio is found."""
    zero, (x, e) = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, drawn()
    path, t = path_of(DDPMScheduler(**zero)), torch.tensor([3.0, 998.5, 999.0])
    for kind in (DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        close(path_of(kind(**zero))(x, e, t).z, path(x, e, t).z)
    levels = path_of(EulerDiscreteScheduler(**zero))
    assert float(levels.coefficients(torch.tensor([998.0]))[1]) > 4096
    t = torch.tensor([3.0, 990.5, 995.0], dtype=torch.float64)
    torch.testing.assert_close(levels.time_at(noise_ratio(t, path=levels)), t, rtol=1e-9, atol=1e-9)
    found = levels.time_at(torch.tensor([4096.0, 1e9, math.inf], dtype=torch.float64))
    assert 995 < found[0] < 996
    assert found[1:].tolist() == [998, 999]


def test_velocities_are_finite_at_both_ends_where_the_prediction_allows_it():
    z, _ = drawn()
    for scheduler in (
        DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        FlowMatchEulerDiscreteScheduler(),
    ):
        path = path_of(scheduler)
        for end in (path.data_time, path.noise_time):
            assert bool(velocity_of(model, scheduler)(z, torch.full((BATCH,), end)).isfinite().all())


@pytest.mark.parametrize("name", ["unet", "dit, variance", "sd3", "flux"])
def test_models_of_diffusers(name):
    """One evaluation at the time that the model was trained on; a predicted variance left out; teachers frozen."""
    z, _, t, _ = states()
    made, condition = model_of(name), condition_of(name)
    flow = FlowMatchEulerDiscreteScheduler()
    expected = DiffusersNetwork(made, time_scale=MODELS[name].time_scale)(z, t, **condition)
    for given in (made, DiffusersNetwork(made, time_scale=7.0), frozen(made), frozen(DiffusersNetwork(made))):
        close(velocity_of(given, flow, **condition)(z, t), expected, 2e-5)
    steps, scheduler = torch.tensor([3, 500, 998]), DDPMScheduler()
    counted = count_calls(denoiser_of(made, scheduler, **condition))
    assert torch.equal(counted(z, steps), denoiser_of(made, scheduler, **condition)(z, steps.float()))


def test_half_precision_models_get_times_in_full():
    z, _, t, _ = states()
    made = model_of("unet").bfloat16()
    assert denoiser_of(made, DDPMScheduler())(z, 999 * t).dtype == torch.float32


# Refusals.


def test_what_cannot_be_read_is_refused():
    for given, said in (
        (object(), "expected one of diffusers"),
        (diffusers.VQDiffusionScheduler(num_vec_classes=4), "no path is known"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ):
        with pytest.raises(ConfigError, match=said):
            path_of(given)
    with pytest.raises(ConfigError, match="prediction_type"):
        denoiser_of(model, DDPMScheduler(prediction_type="other"))
    with pytest.raises(ConfigError, match="times=2"):
        velocity_of(DiffusersNetwork(model_of("unet"), times=2), DDPMScheduler())
