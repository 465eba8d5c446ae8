"""A pretrained model and its scheduler as a velocity network on the linear path."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from onestep_adapters.backbones.diffusers import (
    OneStepGenerator,
    OneStepPipeline,
    PretrainedVelocity,
    load_velocity,
    path_of,
    velocity_of,
)
from onestep_adapters.backbones.diffusers.pretrained import is_pipeline, load_pipeline
from onestep_core import Linear, data_from_velocity, single_pass, two_pass, velocity_on_path
from onestep_core.errors import ConfigError
from tests.adapters.backbones.diffusers.small import labelled

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SCHEDULERS = {
    "noise": DDPMScheduler(),
    "v": DDIMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"),
    "data": DDPMScheduler(prediction_type="sample"),
    "zero terminal": DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "noise levels": EulerDiscreteScheduler(),
    "EDM": EDMEulerScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(),
}
EACH = pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
TIMES = torch.tensor([0.0, 0.1, 0.4, 0.8, 0.98, 1.0], dtype=torch.float64)


def unet(classes=10):
    return labelled(4, (8, 12), 4, classes=classes)


def states(dtype=torch.float64):
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype), torch.arange(6)


@EACH
def test_it_is_the_model_s_velocity_on_the_linear_path(scheduler):
    model, (z, labels) = unet().double(), states()
    found = PretrainedVelocity(model, scheduler, largest_ratio=1e18)(z, TIMES, label=labels).detach()
    own = velocity_of(model, scheduler, class_labels=labels)
    expected = velocity_on_path(own, source=path_of(scheduler), target=Linear())(z, TIMES).detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_an_exact_noise_prediction_gives_the_data():
    """With the noise itself as prediction the velocity is ``noise - data``, up to the largest ratio."""
    scheduler, t = DDPMScheduler(), torch.tensor([0.1, 0.5, 0.83], dtype=torch.float64)
    data, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Exact(UNet2DModel):
        def forward(self, sample, timestep, class_labels=None, return_dict=True):
            return (noise,)

    model = Exact.from_config(unet(None).config).double()
    found = PretrainedVelocity(model, scheduler)(Linear()(data, noise, t).z, t)
    torch.testing.assert_close(found, noise - data, rtol=1e-9, atol=1e-9)


def test_a_model_of_noise_is_not_asked_beyond_the_largest_ratio():
    asked = []

    class Asked(UNet2DModel):
        def forward(self, sample, timestep, class_labels=None, return_dict=True):
            asked.append(timestep)
            return (sample,)

    model, t = Asked.from_config(unet(None).config).double(), torch.tensor([0.9, 1.0], dtype=torch.float64)
    z, _ = states()
    for scheduler, ratio in ((DDPMScheduler(), None), (DDPMScheduler(), 20.0), (SCHEDULERS["v"], None)):
        network = PretrainedVelocity(model, scheduler, largest_ratio=ratio)
        network(z[:2], t)
        ratios = [float(s / a) for a, s in zip(*path_of(scheduler).coefficients(asked[-1]), strict=True)]
        expected = {None: [5, 5] if scheduler is not SCHEDULERS["v"] else [9, ratios[1]], 20.0: [9, 20]}[ratio]
        assert ratios == pytest.approx(expected, rel=1e-4)
    assert ratios[1] > 1000
    assert PretrainedVelocity(unet(), EDMEulerScheduler()).last > 0.98
    with pytest.raises(ConfigError, match="largest_ratio = 0"):
        PretrainedVelocity(unet(), DDPMScheduler(), largest_ratio=0)


@EACH
def test_a_second_time_has_no_effect_at_the_start_and_then_a_derivative(scheduler):
    model, (z, labels) = unet().double(), states()
    network = PretrainedVelocity(model, scheduler, times=2)
    assert torch.equal(
        network(z, TIMES, TIMES / 2, label=labels), PretrainedVelocity(model, scheduler)(z, TIMES, label=labels)
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def function(z, t, s):
        return network(z, t, s, label=labels)

    primals = (z, TIMES, TIMES / 2)
    tangents = (z.roll(1, 0), torch.ones_like(TIMES), torch.zeros_like(TIMES))
    (value, tangent), (expected, slope) = (run(function, primals, tangents) for run in (single_pass, two_pass))
    assert torch.equal(value, expected)
    assert bool(tangent.isfinite().all())
    # Models of diffusers embed times in float32.
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-5 * float(slope.abs().max()))


@pytest.mark.parametrize("times", [1, 2])
def test_copied_saved_and_loaded(tmp_path, times):
    network, (z, labels) = PretrainedVelocity(unet(), SCHEDULERS["v"], times=times), states(torch.float32)
    t = TIMES.float()
    given = (z, *(t, t / 2)[:times])
    for parameter in network.parameters():
        parameter.data += 0.01
    expected = network(*given, label=labels)
    network.save_pretrained(tmp_path)
    for other in (copy.deepcopy(network), PretrainedVelocity.from_pretrained(tmp_path)):
        assert torch.equal(other(*given, label=labels), expected)
    assert network.sample_shape == (1, 4, 4)
    assert network.classes == 10


@pytest.mark.parametrize("start", [1.0, 0.75])
def test_a_generator_is_the_expected_data_of_pure_noise(tmp_path, start):
    velocity, (noise, labels) = PretrainedVelocity(unet(), SCHEDULERS["v"]).eval(), states(torch.float32)
    generator = OneStepGenerator(velocity, start=start)
    t = torch.full((6,), start)
    with torch.no_grad():
        expected = data_from_velocity(start * noise, velocity(start * noise, t, label=labels), t, path=Linear())
    torch.testing.assert_close(generator(noise, class_labels=labels).detach(), expected)
    pipeline = OneStepPipeline(generator)
    pipeline.save_pretrained(tmp_path)
    loaded = OneStepPipeline.from_pretrained(tmp_path)
    drawn = [
        pipe(6, torch.Generator().manual_seed(0), output_type="pt", class_labels=labels).images
        for pipe in (pipeline, loaded)
    ]
    assert torch.equal(*drawn)


def test_a_pipeline_is_read(tmp_path):
    model = unet()
    DDPMPipeline(model, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path)
    assert is_pipeline(str(tmp_path))
    found = load_pipeline(str(tmp_path))
    assert found.vae is None
    assert found.scheduler.config.prediction_type == "v_prediction"
    z, labels = states(torch.float32)
    expected = PretrainedVelocity(model, found.scheduler).eval()(z, TIMES.float(), label=labels)
    assert torch.equal(load_velocity(str(tmp_path))(z, TIMES.float(), label=labels), expected)


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match=r"no pipeline of diffusers.*model_index.json"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pipeline(str(tmp_path))
    with pytest.raises(ConfigError, match="times = 3"):
        PretrainedVelocity(unet(), DDPMScheduler(), times=3)
    with pytest.raises(ConfigError, match="as scheduler"):
        PretrainedVelocity(unet(), "ddpm")
