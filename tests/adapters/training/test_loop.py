"""The loop: bad losses, arguments, records, clipping, schedules."""

import math

import attrs
import pytest
import torch

from onestep_adapters.training import (
    StepRecord,
    TrainingError,
    constant_decay,
    cosine_decay,
    load_checkpoint,
    train,
    warmed_decay,
)
from onestep_core.errors import ConfigError
from tests.adapters.training.runs import assert_equal, fresh, loss_step, run


def spoiled(at, value, where="loss"):
    """``loss_step`` whose loss, or only its gradient, is spoiled in update ``at``."""
    calls = []

    def step(network, generator):
        calls.append(None)
        loss, logs = loss_step(network, generator)
        if len(calls) == at:
            if where == "loss":
                return loss * value, logs
            loss = loss + (network.first.weight.sum() * 0).sqrt()  # 0, with an infinite slope
        return loss, logs

    return step


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stops_before_the_parameters(tmp_path, value, where):
    state, twin = fresh(), fresh()
    for each in (state, twin):
        each.network.eval()  # the buffers that a loss moves are its own
    run(twin, 4)
    with pytest.raises(TrainingError, match=r"demo, update 5: the (loss|gradient norm) is (nan|inf)") as caught:
        run(state, 9, spoiled(5, value, where), checkpoint_every=2, folder=tmp_path)
    assert "step-000004.json" in str(caught.value)
    # Nothing moved, not even the generator.
    assert_equal(state, twin)
    assert_equal(load_checkpoint(tmp_path, fresh()), twin)
    run(state, 6, folder=tmp_path)
    run(twin, 6)
    assert_equal(state, twin)


def test_without_a_checkpoint_the_error_says_so():
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        run(fresh(), 2, spoiled(1, math.nan))
    with pytest.raises(TrainingError, match="depends on no parameter"):
        run(fresh(), 1, lambda network, generator: (torch.tensor(1.0), {}))
    with pytest.raises(TrainingError, match="no parameter of the optimiser has a gradient"):
        run(fresh(), 1, lambda network, generator: (torch.ones(2, requires_grad=True).sum(), {}))


def test_an_interrupt_inside_the_loss_rewinds_the_generator():
    def interrupted(network, generator):
        torch.randn(3, generator=generator)
        raise KeyboardInterrupt

    state, twin = fresh(), fresh()
    with pytest.raises(KeyboardInterrupt):
        run(state, 1, interrupted)
    assert_equal(state, twin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"steps": -1}, "steps"),
        ({"checkpoint_every": 3}, "without a folder"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0"),
        ({"history_every": 0}, "history_every"),
    ],
)
def test_arguments_are_checked_before_the_first_update(options, message):
    given = {"steps": 1, "learning_rate": cosine_decay(1.0, 2), "ema": constant_decay(0.9)} | options
    with pytest.raises(ConfigError, match=message):
        train(fresh(), loss_step, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(fresh(), 1, lambda n, g: (n(torch.ones(3, 2)).sum(1), {})), "take its mean"),
        (lambda: run(fresh(), 1, lambda n, g: (1.0, {})), "returned a float"),
        (lambda: run(fresh(), 1, lambda n, g: (n(torch.ones(3, 2)).sum(), {"x": torch.ones(2)})), "x has shape"),
        (lambda: run(fresh(), 1, learning_rate=lambda i: math.nan), "learning rate"),
        (lambda: run(fresh(), 1, ema=lambda i: 1.5), "decay"),
        (lambda: cosine_decay(1.0, 3, warmup=3), "warmup"),
        (lambda: cosine_decay(0.0, 3), "peak"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_records_and_the_global_generator():
    before = torch.get_rng_state()
    state = fresh()
    records = run(state, 5, history_every=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(isinstance(record, StepRecord) and record.seconds > 0 for record in records)
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert records[0].logs["constant"] == 1.5
    assert [entry["step"] for entry in state.history] == [2, 4, 5]
    assert run(state, 5) == []


def test_clipping_bounds_the_step_and_the_reported_norm_is_before_it():
    def slope(network, generator):
        return 10 * network.first.bias.sum(), {}

    state = fresh()
    state.optimizer = torch.optim.SGD(state.network.parameters(), lr=1.0)
    before = state.network.first.bias.detach().clone()
    (record,) = run(state, 1, slope, learning_rate=lambda i: 0.25, clip=2.0)
    assert record.gradient_norm == pytest.approx(10 * math.sqrt(5))
    assert (state.network.first.bias - before).norm().item() == pytest.approx(0.5, rel=1e-5)


def test_schedules():
    rate = cosine_decay(2.0, 100, warmup=10)
    assert [rate(i) for i in (0, 4, 9, 10, 55, 100, 999)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0])
    assert cosine_decay(2.0, 4)(0) == 2.0
    decay = warmed_decay(0.99)
    assert [decay(i) for i in (0, 8, 10**6)] == pytest.approx([0.1, 0.5, 0.99])
    assert constant_decay(0.5)(7) == 0.5


def test_the_schedule_scales_the_rate_of_every_group(tmp_path):
    def built():
        state = fresh()
        first, *rest = state.network.parameters()
        groups = [{"params": [first], "lr": 1e-6}, {"params": rest, "lr": 1e-3}]
        return attrs.evolve(state, optimizer=torch.optim.SGD(groups, lr=1.0))

    def seen(state, steps, folder=None):
        rates = []
        for _ in train(
            state, loss_step, steps=steps, learning_rate=lambda i: 1e-3 / (i + 1), ema=lambda i: 0.9, folder=folder
        ):
            rates.append([group["lr"] for group in state.optimizer.param_groups])
        return rates

    whole = seen(built(), 4)
    assert whole == [pytest.approx([1e-6 / (i + 1), 1e-3 / (i + 1)]) for i in range(4)]
    interrupted = built()
    seen(interrupted, 2, tmp_path)
    assert seen(load_checkpoint(tmp_path, built()), 4) == whole[2:]
