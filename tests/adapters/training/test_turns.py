"""Turns: their order, gradients that stay where they belong, runs that resume with bit-identical results."""

import itertools

import pytest
import torch
from torch import nn

from onestep_adapters.networks import frozen
from onestep_adapters.training import (
    TrainingError,
    Turn,
    constant_decay,
    cosine_decay,
    load_checkpoint,
    new_state,
    not_trained,
    train,
    trained_in_turns,
    trained_jointly,
)
from onestep_core.errors import ConfigError
from tests.adapters.training.runs import assert_equal, everything


def fresh(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, second = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    return new_state("demo", network, seed=seed, companions={"judge": trained_in_turns(second, betas=(0.5, 0.9))})


def judge_of(state):
    return state.companions["judge"].module


def steps_of(state, freeze=True):
    """A game: the judge separates samples from shifted noise; the network maximises the judge's output."""

    def network_step(network, generator):
        judge = frozen(judge_of(state)) if freeze else judge_of(state)
        return -judge(network(torch.randn(8, 2, generator=generator))).mean(), {"weight": network.weight.norm()}

    def judge_step(judge, generator):
        with torch.no_grad():
            made = state.network(torch.randn(8, 2, generator=generator))
        real = torch.randn(8, 2, generator=generator) + 1
        loss = nn.functional.softplus(judge(made)).mean() + nn.functional.softplus(-judge(real)).mean()
        return loss, {"real": judge(real).mean()}

    return network_step, judge_step


def loss(module, generator):
    return module(torch.randn(8, 2, generator=generator)).mean(), {}


def play(state, steps, *, freeze=True, losses=None, turn=None, **options):
    network_step, judge_step = losses or steps_of(state, freeze)
    turn = {"updates": 3, "learning_rate": cosine_decay(3e-2, 20), "clip": 0.7} | (turn or {})
    options = {"learning_rate": cosine_decay(1e-2, 20, warmup=2), "ema": constant_decay(0.9), "clip": 0.5} | options
    return train(state, network_step, steps=steps, turns=[Turn("judge", judge_step, **turn)], **options)


@pytest.mark.parametrize("cut", [1, 5])
def test_a_resumed_game_equals_the_uninterrupted_one_bit_for_bit(tmp_path, cut):
    whole = fresh()
    list(play(whole, 9))
    for record in play(fresh(), 9, checkpoint_every=cut, folder=tmp_path):
        if record.step == cut:
            break
    resumed = load_checkpoint(tmp_path, fresh(seed=99))
    assert resumed.step == cut
    list(play(resumed, 9, folder=tmp_path))
    assert_equal(resumed, whole)
    assert_equal(load_checkpoint(tmp_path, fresh()), whole)


def noted(order, state, name, step):
    def loss_step(module, generator):
        order.append((name, state.step))
        return step(module, generator)

    return loss_step


def test_the_companion_has_its_turns_before_the_network_and_both_are_logged():
    state, order = fresh(), []
    losses = [noted(order, state, *pair) for pair in zip(("network", "judge"), steps_of(state), strict=True)]
    records = list(play(state, 2, losses=losses))
    assert order == [*[("judge", 0)] * 3, ("network", 0), *[("judge", 1)] * 3, ("network", 1)]
    assert [record.step for record in records] == [1, 2]
    for record in records:
        assert set(record.logs) == {"weight", "judge_loss", "judge_gradient_norm", "judge_real"}
    assert [entry["logs"] for entry in state.history] == [record.logs for record in records]


def test_turns_of_several_companions_come_in_the_order_given():
    def step(module, generator):
        return module(torch.randn(4, 1, generator=generator)).square().mean(), {}

    companions = {name: trained_in_turns(nn.Linear(1, 1)) for name in ("a", "b")}
    state, order = new_state("demo", nn.Linear(1, 1), companions=companions), []
    turns = [
        Turn(name, noted(order, state, name, step), updates=updates, learning_rate=lambda i: 1e-3)
        for name, updates in (("b", 2), ("a", 1))
    ]
    own = noted(order, state, "network", step)
    (record,) = train(state, own, steps=1, learning_rate=lambda i: 1e-3, ema=constant_decay(0.9), turns=turns)
    assert [name for name, _ in order] == ["b", "b", "a", "network"]
    assert set(record.logs) == {f"{name}_{what}" for name in "ab" for what in ("loss", "gradient_norm")}


@pytest.mark.parametrize("freeze", [True, False])
def test_no_gradient_is_left_in_either_module(freeze):
    """Also where the network's loss runs through the companion's own parameters."""
    state, plain = fresh(), fresh()
    for _ in itertools.islice(play(state, 5, freeze=freeze), 3):
        assert all(p.grad is None for module in (state.network, judge_of(state)) for p in module.parameters())
    for _ in itertools.islice(play(plain, 5), 3):
        pass
    torch.testing.assert_close(judge_of(state).state_dict(), judge_of(plain).state_dict())


def test_a_gradient_that_the_companions_loss_leaves_in_the_network_is_cleared():
    state = fresh()

    def judge_step(judge, generator):
        return judge(state.network(torch.randn(8, 2, generator=generator))).mean(), {}

    def spoilt(network, generator):
        return network.weight.sum() * torch.nan, {}

    with pytest.raises(TrainingError):
        list(play(state, 1, losses=(spoilt, judge_step)))
    assert all(p.grad is None for module in (state.network, judge_of(state)) for p in module.parameters())


def test_each_module_moves_by_its_own_loss_and_rate():
    state = fresh()
    still = [p.clone() for p in state.network.parameters()]
    first = [p.clone() for p in judge_of(state).parameters()]
    list(play(state, 1, learning_rate=lambda step: 0.0))
    assert all(torch.equal(a, b) for a, b in zip(still, state.network.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, judge_of(state).parameters(), strict=True))
    assert state.optimizer.param_groups[0]["lr"] == 0
    assert state.companions["judge"].optimizer.param_groups[0]["lr"] > 0


def test_the_average_is_the_networks():
    state = fresh()
    before = state.ema.weight.clone()
    list(play(state, 1))
    torch.testing.assert_close(state.ema.weight, 0.9 * before + 0.1 * state.network.weight)


@pytest.mark.parametrize("who", ["network", "judge"])
def test_a_bad_loss_stops_before_the_module_in_turn_is_touched(who, tmp_path):
    state = fresh()
    losses = list(steps_of(state))

    def spoilt(module, generator):
        torch.randn(3, generator=generator)
        return sum(p.sum() for p in module.parameters()) * torch.nan, {}

    losses[who == "judge"] = spoilt
    before = everything(state)
    before["companions"] = {name: {**content} for name, content in before["companions"].items()}
    kept = [p.clone() for p in judge_of(state).parameters()]
    with pytest.raises(TrainingError, match="update 1: the loss is nan"):
        list(play(state, 2, losses=losses, folder=tmp_path))
    touched = {"companions", "generator"} if who == "network" else {"companions"}
    for name, value in everything(state).items():
        if name not in touched:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    moved = [not torch.equal(a, b) for a, b in zip(kept, judge_of(state).parameters(), strict=True)]
    assert all(moved) if who == "network" else not any(moved)
    assert bool(state.companions["judge"].optimizer.state) == (who == "network")
    assert all(p.grad is None for module in (state.network, judge_of(state)) for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: play(new_state("demo", nn.Linear(2, 2)), 1, losses=[loss, loss]), "turn of 'judge'.*trained_in_turns"),
        (lambda: play(fresh(), 1, turn={"updates": 0}), "updates of the companion .* = 0"),
        (lambda: play(fresh(), 1, turn={"updates": 2.5}), r"updates of the companion .* = 2\.5"),
        (lambda: play(fresh(), 1, clip=0.0), "clip = 0.0"),
        (lambda: play(fresh(), 1, turn={"clip": -1.0}), "clip = -1.0 of the companion 'judge'"),
        (lambda: play(fresh(), 1, checkpoint_every=1), "without a folder"),
        (lambda: list(play(fresh(), 1, turn={"learning_rate": lambda step: -1.0})), "learning rate"),
        (lambda: list(play(fresh(), 1, ema=lambda step: 2.0)), "decay"),
        (lambda: trained_in_turns(nn.Identity()), "no parameter"),
        (lambda: trained_in_turns(nn.Linear(2, 2), learning_rate=0.0), "learning_rate"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("make", [trained_jointly, not_trained])
def test_only_a_companion_trained_in_turns_has_turns_and_only_one(make):
    options = {"steps": 1, "learning_rate": lambda i: 1e-3, "ema": constant_decay(0.9)}
    turn = Turn("judge", lambda module, generator: (None, {}), updates=1, learning_rate=lambda i: 1e-3)
    state = new_state("demo", nn.Linear(2, 2), companions={"judge": make(nn.Linear(2, 1))})
    with pytest.raises(ConfigError, match="expected one that is trained in turns"):
        train(state, lambda network, generator: (None, {}), turns=[turn], **options)
    with pytest.raises(ConfigError, match="one turn for each companion"):
        train(fresh(), lambda network, generator: (None, {}), turns=[turn, turn], **options)


def test_without_turns_the_companion_stays_as_it_is():
    state = fresh()
    before = [p.clone() for p in judge_of(state).parameters()]
    step = steps_of(state, freeze=False)[0]
    list(train(state, step, steps=2, learning_rate=cosine_decay(1e-2, 2), ema=constant_decay(0.9)))
    assert all(torch.equal(a, b) for a, b in zip(before, judge_of(state).parameters(), strict=True))
    assert all(p.grad is None for p in judge_of(state).parameters())


def test_torchs_own_randomness_differs_in_every_turn():
    seen = []

    def step(module, generator):
        seen.append(float(torch.rand(())))
        return module(torch.ones(2, 1)).square().mean(), {}

    companions = {name: trained_in_turns(nn.Linear(1, 1)) for name in ("a", "b")}
    state = new_state("demo", nn.Linear(1, 1), companions=companions)
    turns = [Turn(name, step, updates=3, learning_rate=lambda i: 1e-3) for name in companions]
    run = train(state, step, steps=2, learning_rate=lambda i: 1e-3, ema=constant_decay(0.9), turns=turns)
    assert len(list(run)) == 2
    assert len(set(seen)) == len(seen) == 14
