"""Averages of a network over its updates."""

import copy

import pytest
import torch
from torch import nn

from onestep_adapters.training import (
    constant_decay,
    load_checkpoint,
    new_state,
    save_checkpoint,
    train,
    update_ema,
    warmed_decay,
)
from onestep_core.errors import ConfigError
from tests.adapters.training.runs import fresh, loss_step


def test_average_of_a_known_walk():
    """Weights 1, 2, ..., n with decay d from an average of 0: ``n - (d / (1 - d)) (1 - d^n)``."""
    network = nn.Linear(1, 1, bias=False).double()
    network.register_buffer("count", torch.tensor(0))
    average, decay, steps = copy.deepcopy(network), 0.9, 50
    nn.init.zeros_(average.weight)
    for step in range(1, steps + 1):
        nn.init.constant_(network.weight, float(step))
        network.count += 1
        update_ema(average, network, decay=decay)
    expected = steps - decay / (1 - decay) * (1 - decay**steps)
    assert average.weight.item() == pytest.approx(expected, rel=1e-12)
    assert average.count == steps
    update_ema(average, network, decay=1.0)
    assert average.weight.item() == pytest.approx(expected, rel=1e-12)
    update_ema(average, network, decay=0.0)
    assert torch.equal(average.weight, network.weight)


def test_the_loop_averages_after_each_update():
    state = fresh()
    expected = copy.deepcopy(state.network.first.weight.detach())
    for i, _ in enumerate(train(state, loss_step, steps=4, learning_rate=lambda i: 0.01, ema=warmed_decay(0.3))):
        decay = min(0.3, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * state.network.first.weight.detach()
    torch.testing.assert_close(state.ema.first.weight, expected)
    assert not state.ema.training
    assert not any(p.requires_grad for p in state.ema.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant_decay(1.0), "decay"),
        (lambda: warmed_decay(-0.1), "decay"),
        (lambda: update_ema(nn.Linear(1, 1), nn.Linear(1, 1), decay=1.5), "decay"),
        (lambda: update_ema(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), decay=0.5), "bias"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("kept", [True, False], ids=["from new_state", "a copy of the user's own"])
def test_an_average_moves_in_every_precision(dtype, kept):
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
    ema = new_state("demo", network).ema if kept else copy.deepcopy(network)
    with torch.no_grad():
        network.weight.fill_(1)
    for _ in range(20_000):
        update_ema(ema, network, decay=0.9999)
    assert abs(ema.weight).item() == pytest.approx(1 - 0.9999**20_000, rel=1e-3)


def test_counters_are_copied():
    ema, network = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    network(torch.randn(4, 1))
    update_ema(ema, network, decay=0.5)
    assert ema.num_batches_tracked.item() == 1


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "compiled and data parallel": lambda module: nn.DataParallel(torch.compile(module)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_modules_are_averaged_and_saved_under_their_own_names(tmp_path, wrap):
    plain = nn.Linear(2, 2)
    wrapped = wrap(plain)
    state = new_state("demo", wrapped)
    with torch.no_grad():
        plain.weight.fill_(3.0)
    update_ema(state.ema, wrapped, decay=0.0)
    assert state.ema.weight.tolist() == plain.weight.tolist()
    save_checkpoint(tmp_path, state)
    found = load_checkpoint(tmp_path, new_state("demo", nn.Linear(2, 2)))
    assert found.network.weight.tolist() == plain.weight.tolist()
    back = load_checkpoint(tmp_path, new_state("demo", wrap(nn.Linear(2, 2))))
    assert next(back.network.parameters()).tolist() == plain.weight.tolist()
