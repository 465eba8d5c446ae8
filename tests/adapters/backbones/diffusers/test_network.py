"""DiffusersNetwork on every class: values, the second time, derivatives, and what is done to modules in training."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, UNet2DModel
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from onestep_adapters.backbones.diffusers import DiffusersNetwork, OneStepPipeline
from onestep_adapters.backbones.diffusers.calls import packed, unpacked
from onestep_adapters.networks import as_average_velocity, frozen
from onestep_adapters.training import update_ema
from onestep_core import Linear, drop_labels, meanflow_regression, single_pass, squared_l2, two_pass
from onestep_core.errors import ConfigError
from tests.adapters.backbones.diffusers.small import (
    BATCH,
    MODELS,
    awake,
    condition_of,
    model_of,
    seeded,
    states,
)

ROOT = Path(__file__).parents[4]
EVERY = pytest.mark.parametrize("name", MODELS)
ONE_OF_EACH = pytest.mark.parametrize("name", ["unet, classes", "conditional unet", "dit", "sd3", "flux"])


def network_of(name, times=2, **options):
    return DiffusersNetwork(model_of(name), times=times, time_scale=MODELS[name].time_scale, **options)


def drawn(function, *arguments, **keywords):
    """With the draws of dropped labels that every call makes anew."""
    torch.manual_seed(11)
    return function(*arguments, **keywords)


def by_hand(name, model, z, t, **condition):
    """The model's own call, written out."""
    if not name.startswith("flux"):
        names = {"timestep": 1000 * t, "hidden_states" if name.startswith(("dit", "sd3")) else "sample": z}
        return model(**names, **condition).sample[:, : z.shape[1]]
    tokens = FluxPipeline._pack_latents(z, len(z), z.shape[1], z.shape[2], z.shape[3])
    image = FluxPipeline._prepare_latent_image_ids(len(z), z.shape[2] // 2, z.shape[3] // 2, z.device, z.dtype)
    answer = model(hidden_states=tokens, timestep=t, img_ids=image, txt_ids=torch.zeros(3, 3), **condition).sample
    return FluxPipeline._unpack_latents(answer, z.shape[2], z.shape[3], 1)


# Values.


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_the_second_time_has_no_effect_at_the_start(name, training):
    z, _, t, s = states()
    condition = condition_of(name)
    model = model_of(name).train(training)
    network = DiffusersNetwork(model, times=2, time_scale=MODELS[name].time_scale).train(training)
    expected = drawn(by_hand, name, model, z, t, **condition)
    assert bool(expected.any())
    for end in (t, s, 0 * s, t + 3):
        assert torch.equal(drawn(network, z, t, end, **condition), expected)
    assert torch.equal(drawn(DiffusersNetwork(model, time_scale=network.time_scale), z, t, **condition), expected)


@EVERY
def test_the_second_time_has_one_once_its_embedding_has_weights(name):
    z, _, t, s = states()
    condition = condition_of(name)
    network = awake(network_of(name))
    change = network(z, t, s, **condition) - network(z, t, t, **condition)
    assert float(change.detach().abs().max()) > 0.01


@EVERY
def test_the_model_given_stays_as_it_was(name):
    z, _, t, s = states()
    condition, model = condition_of(name), model_of(name)
    before, keys = by_hand(name, model, z, t, **condition), list(model.state_dict())
    network = awake(DiffusersNetwork(model, times=2, time_scale=MODELS[name].time_scale))
    network(z, t, s, **condition)
    assert torch.equal(by_hand(name, model, z, t, **condition), before)
    assert list(model.state_dict()) == keys
    shared = {p.data_ptr() for p in network.parameters()}
    assert {p.data_ptr() for p in model.parameters()} <= shared


@EVERY
def test_a_missing_condition_is_named(name):
    z, _, t, s = states()
    condition, network = condition_of(name), network_of(name)
    for missing in network.call.needs:
        given = {key: value for key, value in condition.items() if key != missing}
        with pytest.raises(ConfigError, match=f"expected {missing}="):
            network(z, t, s, **given)
    assert bool(network.call.needs) == (name != "unet")


@pytest.mark.parametrize("name", ["sd3", "conditional unet"])
def test_an_adapter_of_peft_inside_and_around(name, tmp_path):
    """The values are the model's, whichever comes first; what could not be loaded again is not saved."""
    z, _, t, s = states()
    condition, scale = condition_of(name), MODELS[name].time_scale
    lora = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    model = model_of(name)
    inside = DiffusersNetwork(get_peft_model(model, lora), time_scale=scale)
    expected = by_hand(name, model, z, t, **condition)
    assert torch.equal(inside(z, t, **condition), expected)
    assert not torch.equal(expected, by_hand(name, model_of(name), z, t, **condition))
    with pytest.raises(ConfigError, match=r"get_peft_model\(DiffusersNetwork"):
        DiffusersNetwork(get_peft_model(model_of(name), lora), times=2)
    network = network_of(name)
    around = get_peft_model(network, LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["added"]))
    trained = [key for key, value in around.named_parameters() if value.requires_grad]
    assert any(".added." in key for key in trained)
    assert all(".added." in key or "lora_" in key for key in trained)
    for value in around.parameters():
        value.data += 0.02 * value.requires_grad
    expected = around(z, t, s, **condition).detach()
    for unmerged in (inside, network):
        with pytest.raises(ConfigError, match="merge"):
            unmerged.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="merge"):
        OneStepPipeline(around, Linear())
    merged = copy.deepcopy(around).merge_and_unload()
    assert isinstance(merged, DiffusersNetwork)
    torch.testing.assert_close(merged(z, t, s, **condition).detach(), expected)
    assert torch.equal(around(z, t, s, **condition).detach(), expected)
    merged.save_pretrained(tmp_path)
    loaded = DiffusersNetwork.from_pretrained(tmp_path)
    assert torch.equal(loaded(z, t, s, **condition), merged(z, t, s, **condition))


def test_no_times_are_the_time_zero():
    z, *_ = states()
    condition, model = condition_of("unet, classes"), model_of("unet, classes")
    made = DiffusersNetwork(model, times=0)(z, **condition)
    assert torch.equal(made, model(z, torch.zeros(BATCH), **condition).sample)


def test_a_number_is_a_time_for_the_whole_batch_and_integers_are_times():
    z, *_ = states()
    network = DiffusersNetwork(model_of("unet"))
    assert torch.equal(network(z, torch.tensor(3.0)), network(z, torch.full((BATCH,), 3)))


def test_latents_are_packed_as_the_pipeline_of_flux_does():
    z = torch.randn(2, 3, 4, 6, generator=seeded())
    assert torch.equal(packed(z), FluxPipeline._pack_latents(z, 2, 3, 4, 6))
    assert torch.equal(unpacked(packed(z), z), z)
    with pytest.raises(ConfigError, match="even sizes"):
        packed(z[:, :, :3])


def test_tokens_of_flux_are_taken_as_they_are():
    z, _, t, s = states()
    condition, network = condition_of("flux"), awake(network_of("flux"))
    positions = {
        "img_ids": FluxPipeline._prepare_latent_image_ids(BATCH, 4, 4, z.device, z.dtype),
        "txt_ids": torch.zeros(3, 3),
    }
    tokens = network(packed(z), t, s, **condition, **positions)
    torch.testing.assert_close(unpacked(tokens, z), network(z, t, s, **condition), rtol=0, atol=0)


class Plain(nn.Module):
    """A network of somebody's own, with an answer of one form or another."""

    def __init__(self, form):
        super().__init__()
        self.form, self.layer = form, nn.Linear(8, 8)

    def forward(self, sample, timestep, shift=0.0):
        answer = self.layer(sample) * timestep[:, None, None, None] + shift
        return self.form(answer)


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: (x, 1), lambda x: SimpleNamespace(sample=x), lambda x: torch.cat([x, x], dim=1)]
)
def test_any_module_that_takes_states_and_a_time(form):
    z, _, t, _ = states()
    module = Plain(form)
    network = DiffusersNetwork(module, time_scale=2.0)
    torch.testing.assert_close(network(z, t, shift=1.0), module.layer(z) * 2 * t[:, None, None, None] + 1)


@ONE_OF_EACH
def test_a_guidance_scale_has_no_effect_at_the_start_and_one_later(name):
    z, _, t, s = states()
    condition, scale = condition_of(name), torch.tensor([1.0, 2.0, 7.5])
    network = network_of(name, guidance=True)
    assert torch.equal(network(z, t, s, guidance=scale, **condition), network_of(name)(z, t, s, **condition))
    awake(network)
    changed = network(z, t, s, guidance=scale, **condition) - network(z, t, s, guidance=1 + 0 * scale, **condition)
    assert not bool(changed[0].any())
    assert bool(changed[1:].flatten(1).any(dim=1).all())


# Derivatives.


def tangents(z, v, t):
    """Along the trajectory; along the second time alone; along everything."""
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return {"t": (v, one, zero), "s": (torch.zeros_like(z), zero, one), "all": (v, one, -0.5 * one)}


@EVERY
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("along", ["t", "s", "all"])
def test_single_pass_is_forward_mode(name, training, along):
    """In training mode the labels that DiT drops are those of the value."""
    z, v, t, s = states()
    network = awake(network_of(name)).train(training)
    function = as_average_velocity(network, **condition_of(name))
    direction = tangents(z, v, t)[along]
    value, tangent = drawn(single_pass, function, (z, t, s), direction)
    with sdpa_kernel(SDPBackend.MATH):
        # torch.func.jvp fails on UNet2DModel (GroupNorm of a view); two_pass replaces that operation.
        by = two_pass if name.startswith("unet") else torch.func.jvp
        expected = [part.detach() for part in drawn(by, function, (z, t, s), direction)]
    torch.testing.assert_close(value, drawn(function, z, t, s), rtol=0, atol=0)
    torch.testing.assert_close(value, expected[0], rtol=1e-5, atol=1e-5)
    size = float(expected[1].abs().max())
    assert size > 1e-3
    torch.testing.assert_close(tangent, expected[1], rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("name", ["unet", "unet, classes"])
def test_single_pass_is_a_difference_of_states(name):
    """An oracle that is no forward mode, for the class that torch's fails on."""
    z, v, t, s = states(dtype=torch.float64)
    network = awake(network_of(name)).double()
    function = as_average_velocity(network, **condition_of(name))
    still = torch.zeros_like(t)
    _, tangent = single_pass(function, (z, t, s), (v, still, still))
    step = 1e-5
    difference = (function(z + step * v, t, s) - function(z - step * v, t, s)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-7, atol=1e-7)


@ONE_OF_EACH
def test_meanflow_trains_every_weight(name):
    z, v, t, s = states()
    network = awake(network_of(name)).train()
    average = as_average_velocity(network, **condition_of(name))
    squared_l2(*meanflow_regression(average, z, v, t, s)).mean().backward()
    for key, p in network.named_parameters():
        assert p.grad is None or bool(p.grad.isfinite().all()), key
        if ".added." in key:
            assert bool(p.grad.any()), key


def test_the_second_embedding_learns_from_its_zero_start():
    z, v, t, s = states()
    network = network_of("unet, classes")
    average = as_average_velocity(network, **condition_of("unet, classes"))
    squared_l2(*meanflow_regression(average, z, v, t, s)).mean().backward()
    assert bool(network.model.class_embedding.added.embeddings[0].linear_2.weight.grad.any())


def test_labels_are_dropped_by_the_user_s_null():
    """The null class of DiT is one more row of its table."""
    z, _, t, s = states()
    labels, network = torch.tensor([0, 1, 4]), awake(network_of("dit"))
    null = network.model.config.num_embeds_ada_norm
    mixed = network(z, t, s, class_labels=drop_labels(labels, null, torch.tensor([False, True, False])))
    torch.testing.assert_close(mixed[::2], network(z, t, s, class_labels=labels)[::2])
    assert not torch.allclose(mixed[1], network(z, t, s, class_labels=labels)[1], atol=1e-3)


# In training.


@ONE_OF_EACH
def test_a_copy_is_independent_and_follows_as_an_average(name):
    z, _, t, s = states()
    condition, network = condition_of(name), awake(network_of(name))
    before = network(z, t, s, **condition)
    average = copy.deepcopy(network)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.1)
    after = network(z, t, s, **condition)
    assert torch.equal(average(z, t, s, **condition), before)
    assert not torch.allclose(after, before, atol=1e-3)
    update_ema(average, network, decay=0.0)
    assert torch.equal(average(z, t, s, **condition), after)


@ONE_OF_EACH
def test_the_second_time_is_in_the_state(name):
    z, _, t, s = states()
    condition, network, fresh = condition_of(name), awake(network_of(name)), network_of(name)
    assert any(".added." in key for key in network.state_dict())
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(z, t, s, **condition), network(z, t, s, **condition))


@ONE_OF_EACH
def test_checkpointing_and_freezing(name):
    z, v, t, s = states()
    condition, network = condition_of(name), awake(network_of(name)).train()
    for module in network.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0

    def gradients():
        network.zero_grad()
        squared_l2(*meanflow_regression(as_average_velocity(network, **condition), z, v, t, s)).sum().backward()
        return {key: p.grad.clone() for key, p in network.named_parameters() if p.grad is not None}

    plain = gradients()
    network.enable_gradient_checkpointing()
    assert any(getattr(module, "gradient_checkpointing", False) for module in network.modules())
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[key], rtol=1e-4, atol=1e-5 * float(plain[key].abs().max() + 1))
    teacher = frozen(network)(z.requires_grad_(), t, s, **condition)
    assert torch.equal(teacher, network(z, t, s, **condition))


@ONE_OF_EACH
def test_half_precision(name):
    z, _, t, s = states()
    network = awake(network_of(name))
    exact = network(z, t, s, **condition_of(name))
    half = as_average_velocity(copy.deepcopy(network).bfloat16(), **condition_of(name, dtype=torch.bfloat16))(z, t, s)
    assert half.dtype == torch.float32
    assert float(((half - exact).norm() / exact.norm()).detach()) < 0.05


@pytest.mark.parametrize("name", ["unet, classes", "dit"])
def test_it_compiles_whole_and_trains_compiled(name):
    z, v, t, s = states()
    condition, network = condition_of(name), awake(network_of(name))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, t, s, **condition), network(z, t, s, **condition))
    both = []
    for called in (network, compiled):
        network.zero_grad()
        squared_l2(*meanflow_regression(as_average_velocity(called, **condition), z, v, t, s)).sum().backward()
        both.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(*both)


def test_sharded_by_fsdp2():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.adapters.backbones.diffusers.fsdp_worker"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n").count("equal") == 3, done.stdout


# Refusals.


def test_wrong_calls_are_refused():
    z, _, t, s = states()
    with pytest.raises(ConfigError, match="expected 0"):
        DiffusersNetwork(model_of("unet"), times=3)
    with pytest.raises(ConfigError, match=r"network\(z, t, s, ...\)"):
        network_of("unet")(z, t)
    with pytest.raises(ConfigError, match=r"network\(z, t, ...\)"):
        DiffusersNetwork(model_of("unet"))(z, t, s)
    with pytest.raises(ConfigError, match="class_labels="):
        network_of("unet, classes")(z, t, s)
    with pytest.raises(ConfigError, match="guidance=, a scale"):
        network_of("unet", guidance=True)(z, t, s)
    with pytest.raises(ConfigError, match="takes guidance= itself"):
        network_of("flux, guided", guidance=True)
    with pytest.raises(ConfigError, match="encoder_hidden_states="):
        network_of("flux")(z, t, s)


def test_models_without_a_place_for_a_second_time_are_refused():
    vae = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    timed = UNet2DModel(
        class_embed_type="timestep",
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    for model in (vae, timed, nn.Linear(1, 1)):
        with pytest.raises(ConfigError, match="no known place for a second time"):
            DiffusersNetwork(model, times=2)


def test_answers_of_another_form_are_refused():
    z, _, t, _ = states()
    with pytest.raises(ConfigError, match="returned a dict"):
        DiffusersNetwork(Plain(lambda x: {"v": x}))(z, t)
    with pytest.raises(ConfigError, match="twice the channels"):
        DiffusersNetwork(Plain(lambda x: x[:, :1]))(z, t)


def test_without_diffusers_the_error_names_the_extra():
    script = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import onestep_adapters.backbones\n"
        "from onestep_core.errors import MissingExtraError\n"
        "try: import onestep_adapters.backbones.diffusers\n"
        "except MissingExtraError as e: print(e)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'onestep[diffusers]'" in found.stdout
