"""Every optimiser of torch: saved, loaded and continued, it does what the uninterrupted one does, bit for bit."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from onestep_adapters.training import CheckpointError, Companion, load_checkpoint, new_state, save_checkpoint, train
from tests.adapters.training.runs import vouch

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.3),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "Adam rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, t0=2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4, history_size=3, line_search_fn="strong_wolfe"),
    "two groups": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:], "lr": 0.003, "betas": (0.5, 0.7)}], lr=0.01
    ),
}


class Network(nn.Module):
    """Three layers, of which the last is never used and so never has a state."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(2, 6), nn.Linear(6, 2), nn.Linear(3, 3)

    def forward(self, z):
        return self.last(torch.tanh(self.first(z)))


def fresh(make, dtype=torch.float32, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network().to(dtype)
    state = new_state("demo", network, seed=seed)
    state.optimizer = make(list(network.parameters()))
    return state


def step_once(state, dtype=torch.float32):
    """An update without ``train``: it leaves the rates of the groups alone and gives LBFGS its closure."""
    z = torch.randn(16, 2, generator=state.generator).to(dtype)

    def closure():
        state.optimizer.zero_grad()
        loss = (state.network(z) - z.flip(1)).square().mean()
        loss.backward()
        return loss

    state.optimizer.step(closure)
    state.step += 1


def assert_same(first, second):
    for a, b in ((first.network, second.network), (first.ema, second.ema)):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    ours, theirs = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, values in ours["state"].items():
        assert values.keys() == theirs["state"][index].keys()
        for key, value in values.items():
            torch.testing.assert_close(value, theirs["state"][index][key], rtol=0, atol=0)


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        pytest.param(make, dtype, id=f"{name}-{dtype}")
        for name, make in OPTIMIZERS.items()
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        if (name, dtype) != ("LBFGS", torch.bfloat16)  # its line search needs more digits
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, make, cut, dtype):
    whole, saved = fresh(make, dtype), fresh(make, dtype)
    for _ in range(cut):
        step_once(whole, dtype)
        step_once(saved, dtype)
    save_checkpoint(tmp_path, saved)
    assert_same(saved, whole)
    resumed = fresh(make, dtype, seed=99)
    step_once(resumed, dtype)  # what the optimiser knew before is gone afterwards
    load_checkpoint(tmp_path, resumed)
    assert_same(resumed, whole)
    for _ in range(4):
        step_once(whole, dtype)
        step_once(saved, dtype)
        step_once(resumed, dtype)
    assert_same(saved, whole)
    assert_same(resumed, whole)


@pytest.mark.parametrize("make", [m for name, m in OPTIMIZERS.items() if name != "LBFGS"])
def test_train_resumes_with_every_optimiser(tmp_path, make):
    def loss_step(network, generator):
        z = torch.randn(8, 2, generator=generator)
        return (network(z) - z.flip(1)).square().mean(), {}

    options = {"learning_rate": lambda i: 1e-2, "ema": lambda i: 0.9}
    whole = fresh(make)
    list(train(whole, loss_step, steps=6, **options))
    list(train(fresh(make), loss_step, steps=3, folder=tmp_path, **options))
    resumed = load_checkpoint(tmp_path, fresh(make, seed=99))
    list(train(resumed, loss_step, steps=6, **options))
    assert_same(resumed, whole)


def test_a_schedulers_rate_comes_back(tmp_path):
    state = fresh(OPTIMIZERS["two groups"])
    schedule = lr_scheduler.ExponentialLR(state.optimizer, 0.5)
    step_once(state)
    schedule.step()
    save_checkpoint(tmp_path, state)
    loaded = load_checkpoint(tmp_path, fresh(OPTIMIZERS["two groups"]))
    assert [group["lr"] for group in loaded.optimizer.param_groups] == [0.005, 0.0015]
    assert loaded.optimizer.param_groups[1]["betas"] == (0.5, 0.7)


def reordered(p):
    return torch.optim.AdamW([{"params": p[1:]}, {"params": p[:1]}], lr=0.01)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (OPTIMIZERS["Adam"], "optimizer of the class AdamW, the state one of Adam"),
        (OPTIMIZERS["AdamW"], "2 groups saved, 1 given"),
        (reordered, r"group 0 was saved without \['network.first.bias'"),
        (lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:-1]}]), "saved with .*unused.bias"),
        (lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[:0:-1]}]), "in the order"),
    ],
)
def test_another_optimiser_is_named_and_nothing_is_loaded(tmp_path, other, message):
    state = fresh(OPTIMIZERS["two groups"])
    step_once(state)
    save_checkpoint(tmp_path, state)
    target = fresh(other)
    step_once(target)
    before = copy.deepcopy(target.network.state_dict()), copy.deepcopy(target.optimizer.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, target)
    after = target.network.state_dict(), target.optimizer.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def edited(change):
    def edit(folder):
        (file,) = folder.glob("step*.json")
        description = json.loads(file.read_text())
        change(description["optimizers"]["optimizer"])
        file.write_text(json.dumps(description))
        vouch(folder)

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("groups"), "no description of the optimizer"),
        (lambda o: o.update(groups=[{}]), "damaged description of the optimizer"),
        (lambda o: o.update(state={"network.first.weight": 3}), "damaged description"),
        (lambda o: o["state"].update({"network.other": {}}), "other parameters: .'network.other'. unknown"),
        (lambda o: o["state"].pop("network.first.weight"), "does not know.*first.weight"),
        (lambda o: o["state"]["network.first.weight"].pop("exp_avg"), "does not know.*first.weight.exp_avg"),
        (lambda o: o["state"]["network.first.weight"]["exp_avg"].update(tensor="x"), "lacks the tensor x"),
        (
            lambda o: o["state"]["network.first.weight"]["exp_avg"].update(shape=[3]),
            r"of shape \(6, 2\), expected \(3,\)",
        ),
        (lambda o: o["state"]["network.first.weight"].update(exp_avg={"what": 1}), "damaged description"),
    ],
)
def test_a_damaged_description_is_named_and_nothing_is_loaded(tmp_path, change, message):
    state = fresh(OPTIMIZERS["AdamW"])
    step_once(state)
    save_checkpoint(tmp_path, state)
    edited(change)(tmp_path)
    target = fresh(OPTIMIZERS["AdamW"])
    step_once(target)
    step_once(target)
    before = copy.deepcopy(target.network.state_dict()), copy.deepcopy(target.optimizer.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, target)
    torch.testing.assert_close((target.network.state_dict(), target.optimizer.state_dict()), before, rtol=0, atol=0)


class Stubborn(torch.optim.SGD):
    """Refuses what it is given."""

    def load_state_dict(self, state_dict):
        if state_dict["param_groups"][0]["lr"] == 0.5:
            raise ValueError("refused")
        super().load_state_dict(state_dict)


def test_an_optimiser_that_refuses_leaves_the_state_as_it_was(tmp_path):
    def make(rate):
        state = fresh(OPTIMIZERS["AdamW"])
        module = nn.Linear(2, 1)
        state.companions["second"] = Companion(module, Stubborn(module.parameters(), lr=rate, momentum=0.9))
        step_once(state)
        return state

    save_checkpoint(tmp_path, make(0.5))
    target = make(0.1)
    step_once(target)
    before = copy.deepcopy(target.network.state_dict()), copy.deepcopy(target.optimizer.state_dict())
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(tmp_path, target)
    torch.testing.assert_close((target.network.state_dict(), target.optimizer.state_dict()), before, rtol=0, atol=0)
    assert target.companions["second"].optimizer.param_groups[0]["lr"] == 0.1


class Peculiar(torch.optim.SGD):
    """Keeps something of its own for the whole, a nested value, and a parameter of no module."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.state["global"] = {"seen": (1, [torch.ones(2), None]), 7: "text"}
        return loss


def test_other_state_survives(tmp_path):
    extra = nn.Parameter(torch.ones(2))

    def make(p):
        return Peculiar([*p, extra], lr=0.1, momentum=0.9)

    state = fresh(make)
    step_once(state)
    save_checkpoint(tmp_path, state)
    loaded = load_checkpoint(tmp_path, fresh(make)).optimizer.state["global"]
    assert loaded.keys() == {"seen", 7}
    assert loaded[7] == "text"
    one, (ones, nothing) = loaded["seen"]
    assert type(loaded["seen"]) is tuple
    assert (one, ones.tolist(), nothing) == (1, [1.0, 1.0], None)


def test_what_cannot_be_saved_is_named_when_it_is_saved(tmp_path):
    state = fresh(OPTIMIZERS["AdamW"])
    step_once(state)
    state.optimizer.state[state.network.first.weight]["odd"] = object()
    with pytest.raises(CheckpointError, match=r"optimizer.network.first.weight.odd is a object: a checkpoint holds"):
        save_checkpoint(tmp_path, state)
