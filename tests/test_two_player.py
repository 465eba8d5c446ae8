"""Two players: turns, gradients that stay where they belong, and runs that go on to the bit."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onestep_adapters.backbones import MLP, ConvNet, Critic, DiT
from onestep_adapters.networks import frozen, with_condition
from onestep_adapters.training import (
    CheckpointError,
    TrainingError,
    constant_decay,
    cosine,
    load_checkpoint,
    new_opponent,
    new_state,
    read_run,
    save_checkpoint,
    train,
    train_two_players,
)
from onestep_core.errors import ConfigError
from tests.test_training import assert_equal, everything


def fresh(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, second = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    return new_state("demo", network, seed=seed, opponent=new_opponent(second, betas=(0.5, 0.9)))


def steps_of(state, freeze=True):
    """A game: the opponent tells samples from shifted noise, the network is told what it says of them."""

    def network_step(network, generator):
        judge = frozen(state.opponent.network) if freeze else state.opponent.network
        return -judge(network(torch.randn(8, 2, generator=generator))).mean(), {"weight": network.weight.norm()}

    def opponent_step(opponent, generator):
        with torch.no_grad():
            made = state.network(torch.randn(8, 2, generator=generator))
        real = torch.randn(8, 2, generator=generator) + 1
        loss = nn.functional.softplus(opponent(made)).mean() + nn.functional.softplus(-opponent(real)).mean()
        return loss, {"real": opponent(real).mean()}

    return network_step, opponent_step


def play(state, steps, *, freeze=True, losses=None, **options):
    options = {
        "ratio": 3,
        "learning_rate": cosine(1e-2, 20, warmup=2),
        "opponent_learning_rate": cosine(3e-2, 20),
        "ema": constant_decay(0.9),
        "clip": 0.5,
        "opponent_clip": 0.7,
    } | options
    return train_two_players(state, *(losses or steps_of(state, freeze)), steps=steps, **options)


def all_of(state):
    opponent = state.opponent
    moments = opponent.optimizer.state_dict()
    return {
        **everything(state),
        "opponent": opponent.network.state_dict(),
        "opponent moments": moments["state"],
        "opponent groups": moments["param_groups"],
    }


@pytest.mark.parametrize("cut", [1, 5])
def test_an_interrupted_game_goes_on_to_the_bit(tmp_path, cut):
    whole = fresh()
    list(play(whole, 9))
    for record in play(fresh(), 9, checkpoint_every=cut, folder=tmp_path):
        if record.step == cut:
            break
    resumed = load_checkpoint(tmp_path, fresh(seed=99))
    assert resumed.step == cut
    list(play(resumed, 9, folder=tmp_path))
    torch.testing.assert_close(all_of(resumed), all_of(whole), rtol=0, atol=0)
    torch.testing.assert_close(all_of(load_checkpoint(tmp_path, fresh())), all_of(whole), rtol=0, atol=0)


def test_the_opponent_has_its_turns_before_the_network_and_both_are_shown():
    state, order = fresh(), []

    def noted(name, step):
        def loss_step(module, generator):
            order.append((name, state.step))
            return step(module, generator)

        return loss_step

    losses = [noted(name, step) for name, step in zip(("network", "opponent"), steps_of(state), strict=True)]
    records = list(play(state, 2, losses=losses))
    assert order == [*[("opponent", 0)] * 3, ("network", 0), *[("opponent", 1)] * 3, ("network", 1)]
    assert [record.step for record in records] == [1, 2]
    for record in records:
        assert set(record.logs) == {"weight", "opponent_loss", "opponent_gradient_norm", "opponent_real"}
    assert [entry["logs"] for entry in state.history] == [record.logs for record in records]


@pytest.mark.parametrize("freeze", [True, False])
def test_no_gradient_is_left_in_either_player(freeze):
    """Also where the network's loss runs through the opponent's own parameters."""
    state, plain = fresh(), fresh()
    for _ in itertools.islice(play(state, 5, freeze=freeze), 3):
        assert all(p.grad is None for module in (state.network, state.opponent.network) for p in module.parameters())
    for _ in itertools.islice(play(plain, 5), 3):
        pass
    torch.testing.assert_close(state.opponent.network.state_dict(), plain.opponent.network.state_dict())


def test_each_player_moves_by_its_own_loss_and_rate():
    state = fresh()
    still = [p.clone() for p in state.network.parameters()]
    first = [p.clone() for p in state.opponent.network.parameters()]
    list(play(state, 1, learning_rate=lambda step: 0.0))
    assert all(torch.equal(a, b) for a, b in zip(still, state.network.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, state.opponent.network.parameters(), strict=True))
    assert state.optimizer.param_groups[0]["lr"] == 0
    assert state.opponent.optimizer.param_groups[0]["lr"] > 0


def test_the_average_is_the_networks():
    state = fresh()
    before = state.ema.weight.clone()
    list(play(state, 1))
    torch.testing.assert_close(state.ema.weight, 0.9 * before + 0.1 * state.network.weight)


@pytest.mark.parametrize("who", ["network", "opponent"])
def test_a_bad_loss_stops_before_the_player_in_turn_is_touched(who, tmp_path):
    state = fresh()
    losses = list(steps_of(state))

    def spoilt(module, generator):
        torch.randn(3, generator=generator)
        return sum(p.sum() for p in module.parameters()) * torch.nan, {}

    losses[who == "opponent"] = spoilt
    before = all_of(state)
    with pytest.raises(TrainingError, match="update 1: the loss is nan"):
        list(play(state, 2, losses=losses, folder=tmp_path))
    touched = {"opponent", "opponent moments", "opponent groups", "generator"} if who == "network" else set()
    for name, value in all_of(state).items():
        if name not in touched:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(p.grad is None for module in (state.network, state.opponent.network) for p in module.parameters())


def test_a_checkpoint_knows_whether_there_was_an_opponent(tmp_path):
    alone = new_state("demo", fresh().network)
    save_checkpoint(tmp_path / "two", fresh())
    save_checkpoint(tmp_path / "one", alone)
    tensors = load_file(tmp_path / "two" / "step-000000.safetensors")
    assert any(name.startswith("opponent.") for name in tensors)
    with pytest.raises(CheckpointError, match="opponent"):
        load_checkpoint(tmp_path / "two", new_state("demo", fresh().network))
    with pytest.raises(CheckpointError, match="opponent"):
        load_checkpoint(tmp_path / "one", fresh())
    assert_equal(load_checkpoint(tmp_path / "one", new_state("demo", fresh().network)), alone)
    assert read_run(tmp_path / "two").method == "demo"


class Idle(nn.Module):
    """A network with a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def forward(self, z, t, label=None):
        return z


@pytest.mark.parametrize(
    "make",
    [
        lambda: play(new_state("demo", nn.Linear(2, 2)), 1, losses=[None, None]),
        lambda: play(fresh(), 1, ratio=0),
        lambda: play(fresh(), 1, ratio=2.5),
        lambda: play(fresh(), 1, clip=0.0),
        lambda: play(fresh(), 1, opponent_clip=-1.0),
        lambda: play(fresh(), 1, checkpoint_every=1),
        lambda: list(play(fresh(), 1, opponent_learning_rate=lambda step: -1.0)),
        lambda: list(play(fresh(), 1, ema=lambda step: 2.0)),
        lambda: new_opponent(nn.Identity()),
        lambda: new_opponent(nn.Linear(2, 2), learning_rate=0.0),
        lambda: Critic(nn.Linear(2, 2), width=2, layer="nowhere"),
        lambda: Critic(nn.Sequential(nn.Linear(2, 2)), width=0, layer="0"),
        lambda: Critic(Idle(), width=2, layer="unused")(torch.zeros(3, 2), torch.ones(3)),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


def test_a_run_of_one_player_ignores_the_opponent():
    state = fresh()
    before = [p.clone() for p in state.opponent.network.parameters()]
    list(train(state, steps_of(state)[0], steps=2, learning_rate=cosine(1e-2, 2), ema=constant_decay(0.9)))
    assert all(torch.equal(a, b) for a, b in zip(before, state.opponent.network.parameters(), strict=True))


BACKBONES = {
    "mlp": (lambda: MLP((2,), width=16, depth=1), (2,), 1),
    "conv": (lambda: ConvNet((1, 8, 8), width=16, depth=1), (1, 8, 8), 64),
    "dit": (lambda: DiT((1, 8, 8), width=16, depth=1, heads=2), (1, 8, 8), 16),
}


@pytest.mark.parametrize(("make", "shape", "locations"), BACKBONES.values(), ids=BACKBONES)
def test_a_head_reads_the_score_network_in_the_same_pass(make, shape, locations):
    """Every backbone: the prediction is the network's own, the logits follow its features and its parameters."""
    critic = Critic(make(), width=16)
    nn.init.normal_(critic.outer.weight)
    z, t = torch.randn(3, *shape), torch.rand(3)
    judged = critic(z, t)
    torch.testing.assert_close(judged.prediction, critic.score(z, t))
    assert judged.logits.shape == (3, locations)
    judged.logits.sum().backward()
    assert critic.score.input.weight.grad.abs().max() > 0
    assert not critic.score.output._forward_pre_hooks


def test_a_frozen_critic_passes_the_gradient_to_its_input_alone():
    critic, z = Critic(MLP((2,), width=16, depth=1), width=16), torch.randn(3, 2, requires_grad=True)
    nn.init.normal_(critic.outer.weight)
    with_condition(frozen(critic), label=None)(z, torch.rand(3)).logits.sum().backward()
    assert z.grad.abs().max() > 0
    assert all(p.grad is None for p in critic.parameters())


def test_torchs_own_randomness_differs_in_every_turn():
    seen = []

    def step(player, generator):
        seen.append(float(torch.rand(())))
        return player(torch.ones(2, 1)).square().mean(), {}

    state = new_state("demo", torch.nn.Linear(1, 1), opponent=new_opponent(torch.nn.Linear(1, 1)))
    rates = {"learning_rate": lambda i: 1e-3, "opponent_learning_rate": lambda i: 1e-3}
    for _ in train_two_players(state, step, step, steps=2, ratio=3, ema=constant_decay(0.9), **rates):
        pass
    assert len(set(seen)) == 8
