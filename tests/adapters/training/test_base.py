"""Runs that train an adapter on a frozen base: LoRA by the real ``peft``, on a transformer and on a UNet."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from onestep_adapters.backbones import MLP, DiT, UNet
from onestep_adapters.networks import as_average_velocity, shared_dropout
from onestep_adapters.training import (
    CheckpointError,
    load_checkpoint,
    new_state,
    read_run,
    save_checkpoint,
    trained_in_turns,
    update_ema,
)
from onestep_core import Linear, meanflow_regression, mse
from onestep_core.errors import ConfigError
from tests.adapters.training.runs import assert_equal, fresh, run

SHAPE = (1, 8, 8)


def base(kind="dit", seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "dit":
        network = DiT(SHAPE, width=24, depth=2, heads=2, times=2, generator=generator)
    else:
        network = UNet(SHAPE, width=8, depth=1, multipliers=(1, 2), times=2, generator=generator)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network


TARGETS = {"dit": ["projections", "merge"], "unet": ["inner", "projections"]}


def adapted(kind="dit", seed=0, rank=2):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LoraConfig(r=rank, lora_alpha=4, lora_dropout=0.1, target_modules=TARGETS[kind])
        return get_peft_model(base(kind, seed), config)


def state(kind="dit", seed=0, **options):
    return new_state("lora", adapted(kind, seed), seed=3, **options)


def loss_step(network, generator):
    data, noise = torch.randn(2, 4, *SHAPE, generator=generator)
    t = torch.rand(4, generator=generator)
    z, v = Linear()(data, noise, t)
    return mse(*meanflow_regression(as_average_velocity(network), z, v, t, 0.5 * t)).mean(), {}


def trained_names(network):
    return {name for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_only_the_adapter_is_trained_averaged_and_saved_and_resuming_is_bit_identical(kind, tmp_path):
    whole, interrupted = state(kind), state(kind)
    run(whole, 6, loss_step)
    run(interrupted, 3, loss_step, folder=tmp_path)
    names = trained_names(whole.network)
    assert names
    assert all("lora" in name for name in names)
    tensors = load_file(next(tmp_path.glob("*.safetensors")))
    assert {n for n in tensors if n.startswith(("network.", "ema."))} == {
        f"{part}.{name}" for part in ("network", "ema") for name in names
    }
    resumed = load_checkpoint(tmp_path, state(kind))
    run(resumed, 6, loss_step, folder=tmp_path)
    assert_equal(resumed, whole)
    # The base is as given, the adapter is not, and its average lags behind.
    start, end, average = adapted(kind).state_dict(), resumed.network.state_dict(), resumed.ema.state_dict()
    for name, value in start.items():
        assert torch.equal(end[name], value) == (name not in names), name
        assert torch.equal(average[name], end[name]) == (name not in names), name


def test_the_average_shares_the_base_and_is_a_copy_of_the_adapter():
    one = state()
    own, average = dict(one.network.named_parameters()), dict(one.ema.named_parameters())
    assert {name for name in own if own[name] is not average[name]} == trained_names(one.network)
    assert not trained_names(one.ema)


def test_a_base_in_half_precision_stays_and_the_average_of_the_adapter_is_kept_in_full():
    network = adapted().bfloat16()
    one = new_state("lora", network)
    kinds = {name: p.dtype for name, p in one.ema.named_parameters()}
    assert {kinds[name] for name in trained_names(network)} == {torch.float32}
    assert {kind for name, kind in kinds.items() if name not in trained_names(network)} == {torch.bfloat16}


def test_another_base_is_refused_and_the_state_is_not_touched(tmp_path):
    one = state()
    run(one, 2, loss_step, folder=tmp_path)
    other = state(seed=1)
    before = copy.deepcopy(other)
    with pytest.raises(CheckpointError, match=r"trained on another base: .* frozen parameters of the network differ"):
        load_checkpoint(tmp_path, other)
    assert_equal(other, before)
    one_weight = state()
    with torch.no_grad():
        one_weight.network.base_model.model.output.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"1 of \d+ .*base_model.model.output.weight"):
        load_checkpoint(tmp_path, one_weight)


def test_another_rank_is_refused(tmp_path):
    run(state(), 1, loss_step, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"lora_A.* of \(2, 24\) .*expected \(4, 24\)"):
        load_checkpoint(tmp_path, new_state("lora", adapted(rank=4), seed=3))


def test_a_frozen_parameter_that_changes_during_the_run_is_saved(tmp_path):
    """A momentum encoder takes no gradient either, and is no base."""

    def changing(network, generator):
        with torch.no_grad():
            network.base_model.model.position.mul_(0.9)
        return loss_step(network, generator)

    whole, interrupted = state(), state()
    run(whole, 4, changing)
    run(interrupted, 2, changing, folder=tmp_path)
    resumed = load_checkpoint(tmp_path, state())
    run(resumed, 4, changing, folder=tmp_path)
    assert_equal(resumed, whole)
    start = state().network.base_model.model.position
    torch.testing.assert_close(resumed.network.base_model.model.position, 0.9**4 * start)


def test_a_companion_with_an_adapter_is_saved_without_its_base(tmp_path):
    one = state(companions={"fake_score": trained_in_turns(adapted(seed=1))})
    save_checkpoint(tmp_path, one)
    names = trained_names(one.companions["fake_score"].module)
    saved = load_file(next(tmp_path.glob("*.safetensors")))
    assert {n for n in saved if n.startswith("companion.")} == {f"companion.fake_score.{name}" for name in names}
    again = load_checkpoint(tmp_path, state(companions={"fake_score": trained_in_turns(adapted(seed=1))}))
    assert_equal(again, one)
    with pytest.raises(CheckpointError, match=r"frozen parameters of the companion.fake_score differ"):
        load_checkpoint(tmp_path, state(companions={"fake_score": trained_in_turns(adapted(seed=2))}))


def test_a_parameter_that_is_unfrozen_later_is_refused():
    one = state()
    one.network.base_model.model.position.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"position takes a gradient now.*before new_state"):
        update_ema(one.ema, one.network, decay=0.5)


def test_a_run_without_a_frozen_parameter_has_no_base(tmp_path):
    one = fresh()
    save_checkpoint(tmp_path, one)
    assert one.base == {}
    assert read_run(tmp_path).step == 0


def test_shared_masks_work_through_an_adapter():
    """The two calls of a consistency pair see the same dropout of the adapter."""
    network = adapted().train()
    for name, p in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(p)
    online, target = shared_dropout(network)
    z, t = torch.randn(2, *SHAPE), torch.rand(2)
    assert torch.equal(online(z, t, t), target(z, t, t))
    assert not torch.equal(online(z, t, t), network(z, t, t))


def test_the_checkpoint_is_small(tmp_path):
    """The base has a hundred times the numbers of the adapter."""
    network = MLP((2,), width=256, depth=3, times=1)
    with torch.random.fork_rng():
        adapter = get_peft_model(network, LoraConfig(r=1, target_modules=["output"]))
    save_checkpoint(tmp_path, new_state("lora", adapter))
    numbers = sum(p.numel() for p in network.parameters())
    assert next(tmp_path.glob("*.safetensors")).stat().st_size < numbers
