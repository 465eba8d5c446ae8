"""Companions: who moves them, what a checkpoint holds of them, which ones are refused."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onestep_adapters.training import (
    CheckpointError,
    Companion,
    constant_decay,
    load_checkpoint,
    new_state,
    not_trained,
    read_run,
    save_checkpoint,
    train,
    trained_in_turns,
    trained_jointly,
)
from onestep_core.errors import ConfigError
from tests.adapters.training.runs import assert_equal


class Queue(nn.Module):
    """The last three samples; a module without parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.zeros(3, 2))
        self.register_buffer("count", torch.tensor(0))

    def push(self, sample):
        self.kept.copy_(torch.cat([self.kept[1:], sample[None]]))
        self.count += 1


class Players(nn.Module):
    """One module of two, as an optimiser saw them before there were companions."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(2, 2), Queue()


def fresh(seed=3):
    network, discriminator, teacher, queue = networks()
    companions = {
        "discriminator": trained_jointly(discriminator),
        "teacher": not_trained(teacher),
        "queue": not_trained(queue),
        "fake_score": trained_in_turns(nn.Linear(2, 2)),
    }
    return new_state("demo", network, seed=seed, weight_decay=0.01, companions=companions)


def run(state, steps, **options):
    def loss_step(network, generator):
        discriminator, teacher, queue = (state.companions[n].module for n in ("discriminator", "teacher", "queue"))
        made = network(torch.randn(8, 2, generator=generator))
        loss = (made - teacher(made.detach())).square().mean() + (made.mean(0) - queue.kept.mean(0)).square().sum()
        loss = loss + discriminator(made).square().mean()
        queue.push(made[0].detach())
        return loss, {}

    return train(state, loss_step, steps=steps, learning_rate=lambda i: 1e-2, ema=constant_decay(0.9), **options)


def test_each_kind_moves_as_it_says():
    state = fresh()
    before = copy.deepcopy({name: companion.module.state_dict() for name, companion in state.companions.items()})
    list(run(state, 3))
    moved = {
        name: any(not torch.equal(value, before[name][key]) for key, value in companion.module.state_dict().items())
        for name, companion in state.companions.items()
    }
    # The queue is moved by the loss itself, not by an optimiser; fake_score had no turn.
    assert moved == {"discriminator": True, "teacher": False, "queue": True, "fake_score": False}
    assert {name: companion.trained for name, companion in state.companions.items()} == {
        "discriminator": "jointly",
        "teacher": "never",
        "queue": "never",
        "fake_score": "in turns",
    }


def test_a_joint_companion_is_updated_as_a_part_of_one_module_would_be():
    """The same parameters in the same order, one norm for clipping, one AdamW: bit for bit."""

    def loss(generator, discriminator, random):
        made = generator(torch.randn(8, 2, generator=random))
        return made.square().mean() + (discriminator(made) - 1).square().mean(), {}

    options = {"steps": 5, "learning_rate": lambda i: 1e-2, "ema": constant_decay(0.9), "clip": 0.3}
    network, discriminator, *_ = networks()
    state = new_state("x", network, weight_decay=0.1, companions={"discriminator": trained_jointly(discriminator)})
    (group,) = state.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for m in (network, discriminator) for p in m.parameters()]
    records = list(train(state, lambda module, random: loss(module, discriminator, random), **options))
    both = Players(*networks()[:2])
    whole = new_state("x", both, weight_decay=0.1)
    expected = list(
        train(whole, lambda module, random: loss(module.generator, module.discriminator, random), **options)
    )
    assert [r.gradient_norm for r in records] == [r.gradient_norm for r in expected]
    torch.testing.assert_close(network.state_dict(), both.generator.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(discriminator.state_dict(), both.discriminator.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state.ema.state_dict(), whole.ema.generator.state_dict(), rtol=0, atol=0)


def test_resuming_with_every_kind_is_bit_identical(tmp_path):
    whole = fresh()
    list(run(whole, 9))
    for record in run(fresh(), 9, checkpoint_every=2, folder=tmp_path):
        if record.step == 5:
            break
    other = fresh(seed=99)
    for companion in other.companions.values():
        for tensor in companion.module.state_dict().values():
            tensor.zero_()
    other = load_checkpoint(tmp_path, other)
    assert other.step == 4
    list(run(other, 9))
    other.companions["fake_score"].module.load_state_dict(whole.companions["fake_score"].module.state_dict())
    assert_equal(other, whole)


def test_what_the_tensors_are_called(tmp_path):
    state = fresh()
    list(run(state, 1, folder=tmp_path))
    loss = state.companions["fake_score"].module.weight.sum()
    loss.backward()
    state.companions["fake_score"].optimizer.step()
    save_checkpoint(tmp_path, state)
    (file,) = tmp_path.glob("*.safetensors")
    names = set(load_file(file))
    assert {
        "network.weight",
        "ema.weight",
        "companion.discriminator.weight",
        "companion.queue.kept",
        "optimizer.network.weight.exp_avg",
        "optimizer.companion.discriminator.bias.exp_avg_sq",
        "companion_optimizer.fake_score.weight.exp_avg",
        "generator.state",
    } <= names
    assert not any(name.startswith(("optimizer.companion.teacher", "companion_optimizer.teacher")) for name in names)


def test_a_checkpoint_knows_its_companions(tmp_path):
    network = networks()[0]

    def state(**companions):
        return new_state("demo", copy.deepcopy(network), companions=companions)

    makes = {
        "alone": dict,
        "turns": lambda: {"second": trained_in_turns(nn.Linear(2, 1))},
        "jointly": lambda: {"second": trained_jointly(nn.Linear(2, 1))},
        "never": lambda: {"second": not_trained(nn.Linear(2, 1))},
        "another name": lambda: {"third": not_trained(nn.Linear(2, 1))},
    }
    for name, make in makes.items():
        save_checkpoint(tmp_path / name, state(**make()))
    for first, second in itertools.product(makes, repeat=2):
        if first == second:
            assert load_checkpoint(tmp_path / first, state(**makes[first]())).step == 0
        else:
            for act in (load_checkpoint, save_checkpoint):
                with pytest.raises(CheckpointError, match="made with the companions"):
                    act(tmp_path / first, state(**makes[second]()))
    assert read_run(tmp_path / "turns").method == "demo"


def test_a_companion_of_another_size_is_named(tmp_path):
    network = networks()[0]
    save_checkpoint(tmp_path, new_state("demo", network, companions={"teacher": not_trained(nn.Linear(2, 2))}))
    other = new_state("demo", network, companions={"teacher": not_trained(nn.Linear(2, 3))})
    with pytest.raises(CheckpointError, match=r"companion.teacher.weight of \(2, 2\).*expected \(3, 2\)"):
        load_checkpoint(tmp_path, other)


def shared(kind):
    network = nn.Linear(2, 2)
    return lambda: new_state("x", network, companions={"second": kind(nn.Sequential(network))})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: new_state("x", nn.Linear(1, 1), companions={"a.b": not_trained(Queue())}), "expected a name like"),
        (lambda: new_state("x", nn.Linear(1, 1), companions={3: not_trained(Queue())}), "expected a name like"),
        (lambda: new_state("x", nn.Linear(1, 1), companions={"queue": Queue()}), "expected trained_in_turns"),
        (lambda: trained_jointly(Queue()), "no parameter"),
        (shared(trained_jointly), "belongs to the network too"),
        (shared(trained_in_turns), "belongs to the network too"),
        (
            lambda: new_state("x", nn.Linear(1, 1), companions=dict.fromkeys("ab", Companion(nn.Linear(1, 1)))),
            "belongs to the companion 'a' too",
        ),
        (lambda: new_state("x", nn.Linear(1, 1).requires_grad_(False)), "no parameter"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
