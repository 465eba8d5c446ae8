"""OneStepPipeline: what it samples, in how many evaluations, and that a fresh process samples the same."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDPMScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from peft import LoraConfig, get_peft_model
from torch import nn

from onestep_adapters.backbones.diffusers import (
    DiffusersNetwork,
    OneStepGenerator,
    OneStepPipeline,
    PretrainedVelocity,
    SavedPath,
)
from onestep_adapters.networks import as_average_velocity, as_one_step, as_velocity, count_calls, frozen
from onestep_adapters.samplers import consistency_multistep, multistep
from onestep_core import Linear, Trigonometric, VarianceExploding, flow_map_from_average_velocity, jump, reverse
from onestep_core.errors import ConfigError
from onestep_core.flow import NoiseScaled, VariancePreserving
from tests.adapters.backbones.diffusers.small import awake, model_of, seeded

LABELS = torch.tensor([0, 3])


def network_of(name="unet, classes", times=2):
    return awake(DiffusersNetwork(model_of(name), times=times, time_scale=1000.0)).eval()


def states_of(pipe, **keywords):
    """Two states, as they are."""
    return pipe(2, generator=seeded(), output_type="latent", class_labels=LABELS, **keywords).images


def noise():
    return torch.randn(2, 2, 8, 8, generator=seeded())


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), VarianceExploding(0.01, 5.0), reverse(Linear())])
def test_one_evaluation_of_an_average_velocity(path):
    network = network_of()
    expected = as_one_step(as_average_velocity(network, class_labels=LABELS), path=path)(noise())
    torch.testing.assert_close(states_of(OneStepPipeline(network, path)), expected)


def test_kinds_of_networks():
    network, path, z = network_of(), Linear(), noise()
    average = as_average_velocity(network, class_labels=LABELS)
    grid = [1.0, 2 / 3, 1 / 3, 0.0]
    expected = multistep(flow_map_from_average_velocity(average), z, grid, path=path)
    torch.testing.assert_close(states_of(OneStepPipeline(network, path), num_inference_steps=3), expected)
    chosen = multistep(flow_map_from_average_velocity(average), z, [1.0, 0.2, 0.0], path=path)
    torch.testing.assert_close(states_of(OneStepPipeline(network, path), timesteps=[1.0, 0.2, 0.0]), chosen)
    direct = states_of(OneStepPipeline(network, path, predicts="flow_map"))
    torch.testing.assert_close(direct, average(z, torch.ones(2), torch.zeros(2)))
    single = network_of(times=1)
    once = as_velocity(single, class_labels=LABELS)(z, torch.ones(2))
    torch.testing.assert_close(states_of(OneStepPipeline(single, path, predicts="consistency")), once)
    torch.testing.assert_close(
        states_of(OneStepPipeline(single, path, predicts="velocity")),
        jump(lambda z, t, s: once, z, torch.ones(2), torch.zeros(2)),
    )
    generator = network_of(times=0)
    torch.testing.assert_close(states_of(OneStepPipeline(generator)), generator(z, class_labels=LABELS))


@pytest.mark.parametrize("path", [Linear(), VarianceExploding(0.01, 5.0)])
def test_several_steps_of_a_consistency_function(path):
    """The library's sampler, with noise from one generator."""
    network = network_of(times=1)
    found = states_of(OneStepPipeline(network, path, predicts="consistency"), num_inference_steps=3)
    draws = seeded()
    first = torch.randn(2, 2, 8, 8, generator=draws)
    grid = [1.0, 2 / 3, 1 / 3, 0.0]
    if isinstance(path, VarianceExploding):
        grid = [5.0, *((5 ** (1 / 7) + k / 3 * (0.01 ** (1 / 7) - 5 ** (1 / 7))) ** 7 for k in (1, 2)), 0.01]
    expected = consistency_multistep(
        as_velocity(network, class_labels=LABELS),
        path.prior(first),
        grid,
        path=path,
        noise=lambda step, like: torch.randn(like.shape, generator=draws),
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_network_is_called_as_often_as_said(monkeypatch):
    pipe = OneStepPipeline(network_of(), Linear())
    counted = count_calls(type(pipe.network).forward)
    monkeypatch.setattr(DiffusersNetwork, "forward", lambda *a, **k: counted(*a, **k))
    for steps in (1, 4):
        counted.calls = 0
        states_of(pipe, num_inference_steps=steps)
        assert counted.calls == steps


def test_images_of_every_type():
    pipe = OneStepPipeline(network_of("unet"), Linear())
    kinds = {
        kind: pipe(3, generator=seeded(), output_type=kind, height=12, width=8).images
        for kind in ("latent", "pt", "np")
    }
    assert kinds["pt"].shape == (3, 2, 12, 8)
    torch.testing.assert_close(kinds["pt"], (kinds["latent"] / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(kinds["np"], kinds["pt"].permute(0, 2, 3, 1).numpy())
    grey = OneStepPipeline(Constant(), predicts="generator")
    (image,) = grey(1, return_dict=False)[0]
    assert (image.size, image.mode, image.getpixel((0, 0))) == ((4, 4), "L", 191)
    one_each = [seeded(0), seeded(1)]
    both = pipe(2, generator=one_each, output_type="latent").images
    torch.testing.assert_close(both[:1], pipe(1, generator=seeded(0), output_type="latent").images)


class Constant(ModelMixin, ConfigMixin):
    """A generator of somebody's own: grey images."""

    @register_to_config
    def __init__(self, value: float = 0.5):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(value))

    sample_shape = (1, 4, 4)

    def forward(self, noise):
        return 0 * noise + self.level


def test_latents_are_decoded():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=2, block_out_channels=(8,), norm_num_groups=4, shift_factor=0.1
    ).eval()
    network = network_of()
    latents = states_of(OneStepPipeline(network, Linear()))
    decoded = vae.decode(latents / vae.config.scaling_factor + 0.1).sample
    found = OneStepPipeline(network, Linear(), vae)(2, generator=seeded(), class_labels=LABELS, output_type="pt").images
    torch.testing.assert_close(found, (decoded / 2 + 0.5).clamp(0, 1).detach())


FRESH = """
import sys
import torch
from onestep_adapters.backbones.diffusers import OneStepPipeline

results = {}
for folder in sys.argv[2:]:
    pipe = OneStepPipeline.from_pretrained(folder)
    assert not pipe.network.training
    given = torch.Generator().manual_seed(0)
    keywords = {"class_labels": torch.tensor([0, 3])} if "classes" in folder else {}
    if "flux" in folder:
        keywords = {"encoder_hidden_states": torch.ones(2, 3, 6), "pooled_projections": torch.ones(2, 7)}
    results[folder] = pipe(2, generator=given, output_type="pt", **keywords).images
torch.save(results, sys.argv[1])
"""


def test_a_fresh_process_loads_and_samples_the_same(tmp_path):
    vae = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(8,), norm_num_groups=4)
    pipes = {
        "average velocity, classes": OneStepPipeline(network_of(), Linear(noise_floor=0.01)),
        "generator with vae, classes": OneStepPipeline(network_of(times=0), vae=vae.eval()),
        "scheduler": OneStepPipeline(network_of("unet", 1), DDPMScheduler(), predicts="velocity"),
        "flux": OneStepPipeline(network_of("flux"), FlowMatchEulerDiscreteScheduler(), sample_shape=(2, 4, 6)),
        "other shape": OneStepPipeline(network_of("unet"), Trigonometric(0.5), sample_shape=(2, 4, 12)),
    }
    expected = {}
    for name, pipe in pipes.items():
        folder = str(tmp_path / name)
        pipe.save_pretrained(folder)
        keywords = {"class_labels": LABELS} if "classes" in name else {}
        if name == "flux":
            keywords = {"encoder_hidden_states": torch.ones(2, 3, 6), "pooled_projections": torch.ones(2, 7)}
        expected[folder] = pipe(2, generator=seeded(), output_type="pt", **keywords).images
    file = tmp_path / "images.pt"
    done = subprocess.run([sys.executable, "-c", FRESH, str(file), *expected], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, images in torch.load(file).items():
        assert torch.equal(images, expected[folder]), folder


def test_a_folder_is_saved_twice_and_in_pieces(tmp_path):
    """The words of diffusers reach the network: pieces of a size, variants, another format."""
    first, second = OneStepPipeline(network_of(), Linear()), OneStepPipeline(network_of(times=0))
    for pipe, words in (
        (first, {"max_shard_size": "20KB"}),
        (second, {}),
        (first, {"variant": "fp16"}),
        (second, {"safe_serialization": False}),
        (first, {"max_shard_size": "30KB"}),
    ):
        pipe.save_pretrained(tmp_path, **words)
        variant = {"variant": words["variant"]} if "variant" in words else {}
        loaded = OneStepPipeline.from_pretrained(tmp_path, **variant)
        assert torch.equal(states_of(loaded), states_of(pipe)), words
    assert len(list((tmp_path / "network").glob("*-of-*.safetensors"))) > 1


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    """An adapter of peft, a compiled model, or one without a config, inside a network, a velocity or a generator."""
    adapted, compiled, plain = model_of("unet"), torch.compile(model_of("unet"), backend="eager"), nn.Conv2d(2, 2, 1)
    get_peft_model(adapted, LoraConfig(r=2, target_modules=["to_q"]))
    for model, said in (
        (adapted, "adapters of peft"),
        (compiled, "wrapped by a OptimizedModule"),
        (plain, "Conv2d has no config"),
    ):
        velocity = PretrainedVelocity(model, DDPMScheduler())
        for made in (DiffusersNetwork(model), velocity, OneStepGenerator(velocity)):
            with pytest.raises(ConfigError, match=said):
                made.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_networks_are_saved_by_themselves(tmp_path):
    network = network_of()
    network.save_pretrained(tmp_path)
    loaded = DiffusersNetwork.from_pretrained(tmp_path)
    assert loaded.times == 2
    assert loaded.time_scale == 1000.0
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    made = DiffusersNetwork.from_config(network.config)
    assert made.state_dict().keys() == network.state_dict().keys()
    with pytest.raises(ConfigError, match="no config of diffusers"):
        DiffusersNetwork(nn.Linear(1, 1)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"import elsewhere\.models"):
        DiffusersNetwork({"_class_name": "Own", "_module": "elsewhere.models"})
    with pytest.raises(ConfigError, match="expected one of diffusers"):
        DiffusersNetwork({"_class_name": "DDPMScheduler"})


@pytest.mark.parametrize(
    "path",
    [Linear(0.1), Trigonometric(0.5), VarianceExploding(0.1, 9.0), reverse(Linear()), NoiseScaled(Linear(), 0.5)],
)
def test_paths_are_saved(path, tmp_path):
    SavedPath(path).save_pretrained(tmp_path)
    assert SavedPath.from_pretrained(tmp_path).original == path


def test_what_cannot_work_is_refused():
    network = network_of()
    with pytest.raises(ConfigError, match="a Linear as network"):
        OneStepPipeline(nn.Linear(1, 1), Linear())
    with pytest.raises(ConfigError, match="a function as network"):
        OneStepPipeline(frozen(network), Linear())
    with pytest.raises(ConfigError, match="wrap the network"):
        DiffusersNetwork(torch.compile(model_of("unet"), backend="eager"), times=2)
    with pytest.raises(ConfigError, match="without a path"):
        OneStepPipeline(network)
    with pytest.raises(ConfigError, match="give predicts="):
        OneStepPipeline(network_of(times=1), Linear())
    with pytest.raises(ConfigError, match="expected one of average_velocity"):
        OneStepPipeline(network, Linear(), predicts="score")
    with pytest.raises(ConfigError, match="the scheduler of diffusers"):
        OneStepPipeline(network, VariancePreserving.cosine())
    with pytest.raises(ConfigError, match="one evaluation"):
        OneStepPipeline(network_of("unet", 0))(num_inference_steps=2)
    with pytest.raises(ConfigError, match="at least 1"):
        OneStepPipeline(network_of("unet"), Linear())(num_inference_steps=0)
    flux = DiffusersNetwork(model_of("flux"), times=2)
    with pytest.raises(ConfigError, match="sample_shape="):
        OneStepPipeline(flux, Linear())()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"batch_size": -1}, "batch_size = -1"),
        ({"batch_size": "x"}, "batch_size = 'x'"),
        ({"batch_size": 2, "class_labels": torch.tensor([1])}, "for 2 samples"),
        ({"batch_size": 2, "class_labels": [0, 1]}, "class_labels is a list"),
        ({"batch_size": 2, "class_labels": torch.zeros(2, 1)}, r"shape \(2, 1\) for 2 samples"),
        ({"batch_size": 3, "encoder_hidden_states": torch.zeros(2, 5, 6)}, "encoder_hidden_states is a tensor"),
        ({"output_type": "jpg"}, "output_type = 'jpg'"),
    ],
)
def test_wrong_calls_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        OneStepPipeline(network_of(times=0))(**words)


def average_velocity_pipeline(**keywords):
    torch.manual_seed(0)
    return OneStepPipeline(DiffusersNetwork(model_of("unet"), times=2), Linear(), **keywords)


@pytest.mark.parametrize(
    "timesteps", [[999.0, 0.0], [0.0, 1.0], [1.0, float("nan"), 0.0], [1.0, 0.5], [1.0, 0.2, 0.4, 0.0], [1.0]]
)
def test_times_that_do_not_run_along_the_path_are_refused(timesteps):
    with pytest.raises(ConfigError, match=r"timesteps = \[.*expected times of the path in order, from its noise end 1"):
        average_velocity_pipeline()(output_type="pt", timesteps=timesteps)


def test_steps_beside_times_and_generators_beside_samples_are_counted():
    pipe = average_velocity_pipeline()
    with pytest.raises(ConfigError, match="num_inference_steps = 7 beside 2 timesteps, which are 1 evaluations"):
        pipe(timesteps=[1.0, 0.0], num_inference_steps=7)
    pipe(timesteps=[1.0, 0.5, 0.0], num_inference_steps=2, output_type="pt")
    for steps in (True, 2.5, 0):
        with pytest.raises(ConfigError, match=r"num_inference_steps = .*expected a whole number"):
            pipe(num_inference_steps=steps)
    with pytest.raises(ConfigError, match="3 generators for 2 samples"):
        pipe(batch_size=2, generator=[torch.Generator().manual_seed(k) for k in range(3)])


def test_an_interrupted_save_over_another_pipeline_leaves_none(tmp_path, monkeypatch):
    """The index is removed first and written last, so a mixture of the two is never loaded."""
    average_velocity_pipeline().save_pretrained(tmp_path)
    other = average_velocity_pipeline(predicts="flow_map")

    def stopped(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(other, "save_config", stopped)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="model_index"):
        OneStepPipeline.from_pretrained(tmp_path)
    monkeypatch.undo()
    other.save_pretrained(tmp_path)
    assert OneStepPipeline.from_pretrained(tmp_path).config["predicts"] == "flow_map"


def test_a_refused_save_keeps_the_pipeline_that_is_there(tmp_path):
    average_velocity_pipeline().save_pretrained(tmp_path)
    inner = DiffusersNetwork(nn.Conv2d(1, 1, 1), times=0)
    with pytest.raises(ConfigError, match="no config of diffusers"):
        OneStepPipeline(inner, sample_shape=(1, 8, 8)).save_pretrained(tmp_path)
    OneStepPipeline.from_pretrained(tmp_path)


def test_what_is_not_of_every_sample_is_refused():
    network, z = DiffusersNetwork(model_of("unet"), times=2, guidance=True), torch.zeros(2, 2, 8, 8)
    t, scale = torch.rand(2), torch.ones(2)
    with pytest.raises(ConfigError, match="class_labels for a UNet2DModel without classes, which would ignore them"):
        network(z, t, t, guidance=scale, class_labels=torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"class_labels \[1\] for 2 samples"):
        network(z, t, t, guidance=scale, class_labels=torch.tensor([0]))
    with pytest.raises(ConfigError, match=r"guidance \[3\] for states \[2, 2, 8, 8\]: expected \[batch\]"):
        network(z, t, t, guidance=torch.ones(3))
    for wrong in (torch.rand(3), torch.rand(2, 1)):
        with pytest.raises(ConfigError, match=r"a time \[.*\] for states \[2, 2, 8, 8\]"):
            network(z, wrong, t, guidance=scale)
