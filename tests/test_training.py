"""Training: resuming to the bit, crashes at every instant of a save, damaged files, bad losses, averages."""

import copy
import hashlib
import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onestep_adapters.training import (
    CheckpointError,
    StepRecord,
    TrainingError,
    constant_decay,
    cosine,
    latest_checkpoint,
    load_checkpoint,
    new_state,
    read_config,
    read_run,
    save_checkpoint,
    train,
    update_ema,
    warmed_decay,
)
from onestep_core.errors import ConfigError


class Network(nn.Module):
    """A perceptron with a tied weight, a float buffer and an integer buffer."""

    def __init__(self, width=5):
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.tied = nn.Linear(width, 2)
        self.tied.weight = self.last.weight
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, z):
        if self.training:
            self.running.lerp_(z.detach().mean(0), 0.1)
            self.count += 1
        hidden = nn.functional.silu(self.first(z))
        return self.last(hidden) + self.tied(hidden)


def fresh(width=5, seed=3, method="demo", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(width)
    return new_state(method, network, seed=seed, config={"width": width}, **options)


def loss_step(network, generator):
    z = torch.randn(8, 2, generator=generator)
    loss = (network(z) - z.flip(1)).square().mean()
    return loss, {"spread": network(z).std().detach(), "constant": 1.5}


def run(state, steps, loss=loss_step, **options):
    options = {"learning_rate": cosine(1e-2, 20, warmup=3), "ema": warmed_decay(0.99), "clip": 0.5} | options
    return list(train(state, loss, steps=steps, **options))


def everything(state):
    """All that a run is, in comparable form; wall times apart."""
    optimizer = state.optimizer.state_dict()
    return {
        "network": state.network.state_dict(),
        "ema": state.ema.state_dict(),
        "moments": optimizer["state"],
        "groups": optimizer["param_groups"],
        "generator": state.generator.get_state(),
        "step": state.step,
        "history": [{k: v for k, v in entry.items() if k != "seconds"} for entry in state.history],
        "config": state.config,
    }


def assert_equal(first, second):
    torch.testing.assert_close(everything(first), everything(second), rtol=0, atol=0)


# Resuming.


def test_dropout_draws_the_same_after_a_resumption_and_leaves_the_global_generator_alone(tmp_path):
    def dropped(network, generator):
        z = torch.randn(8, 2, generator=generator)
        return nn.functional.dropout(network(z) - z.flip(1), 0.5).square().mean(), {}

    whole, interrupted = fresh(), fresh()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(whole, 8, dropped)
    assert torch.equal(torch.get_rng_state(), before)
    run(interrupted, 5, dropped, folder=tmp_path)
    torch.manual_seed(2)
    resumed = load_checkpoint(tmp_path, fresh(seed=99))
    run(resumed, 8, dropped)
    assert_equal(resumed, whole)
    losses = [entry["loss"] for entry in whole.history]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, cut):
    whole = fresh()
    run(whole, 12)
    interrupted = fresh()
    for record in train(
        interrupted,
        loss_step,
        steps=12,
        learning_rate=cosine(1e-2, 20, warmup=3),
        ema=warmed_decay(0.99),
        clip=0.5,
        checkpoint_every=cut,
        folder=tmp_path,
    ):
        if record.step == cut:
            break
    resumed = load_checkpoint(tmp_path, fresh(seed=99))
    assert resumed.step == cut
    run(resumed, 12, folder=tmp_path)
    assert_equal(resumed, whole)
    assert_equal(load_checkpoint(tmp_path, fresh()), whole)


def test_a_checkpoint_changes_nothing_and_is_all_that_is_left(tmp_path):
    state = fresh()
    run(state, 7, checkpoint_every=2, folder=tmp_path)
    plain = fresh()
    run(plain, 7)
    assert_equal(state, plain)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest.json",
        "step-000007.json",
        "step-000007.safetensors",
    ]
    assert read_config(tmp_path) == {"width": 5}
    assert read_run(tmp_path)[:2] == ("demo", 7)
    assert [entry["step"] for entry in read_run(tmp_path).history] == list(range(1, 8))
    tensors = load_file(tmp_path / "step-000007.safetensors")
    assert tensors["generator.state"].dtype == torch.uint8


def test_a_step_zero_checkpoint_and_a_second_one_at_the_same_step(tmp_path):
    state = fresh()
    for _ in range(3):
        save_checkpoint(tmp_path, state)
        assert len(list(tmp_path.iterdir())) == 3
        assert_equal(load_checkpoint(tmp_path, fresh(seed=4)), state)


# Crashes.


class Crash(BaseException):
    pass


@pytest.mark.parametrize("moved", [0, 2], ids=["same step", "later step"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("name", "count"), [("fsync", 6), ("replace", 3), ("unlink", 2)])
def test_a_crash_at_any_instant_leaves_a_whole_checkpoint(tmp_path, monkeypatch, name, count, after, moved):
    old = fresh()
    run(old, 2)
    new = fresh()
    run(new, 2 + moved)
    for instant in range(count):
        folder = tmp_path / str(instant)
        save_checkpoint(folder, old)
        owner = os if name != "unlink" else type(tmp_path)
        true, calls = getattr(owner, name), []

        def failing(*args, true=true, calls=calls, instant=instant, **kwargs):
            calls.append(args)
            if len(calls) == instant + 1:
                if after:
                    true(*args, **kwargs)
                raise Crash
            return true(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(Crash):
                save_checkpoint(folder, new)
        found = load_checkpoint(folder, fresh(seed=8))
        pointer_moved = name == "unlink" or (name == "replace" and instant == 2 and after)
        pointer_moved |= name == "fsync" and instant == 5
        assert_equal(found, new if pointer_moved else old)
        # The next save succeeds and sweeps what the crash left.
        save_checkpoint(folder, new)
        assert_equal(load_checkpoint(folder, fresh()), new)
        assert len(list(folder.iterdir())) == 3


def test_half_written_files_are_never_read(tmp_path, monkeypatch):
    old, new = fresh(), fresh()
    save_checkpoint(tmp_path, old)
    run(new, 1)
    (tmp_path / "step-000001.safetensors").write_bytes(b"half")
    (tmp_path / "latest.json.partial").write_bytes(b'{"form')
    assert_equal(load_checkpoint(tmp_path, fresh(seed=5)), old)
    save_checkpoint(tmp_path, new)
    assert_equal(load_checkpoint(tmp_path, fresh(seed=5)), new)


def test_a_crash_before_the_first_checkpoint_is_named(tmp_path):
    (tmp_path / "step-000001.safetensors.partial").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="interrupted before its first checkpoint"):
        load_checkpoint(tmp_path, fresh())


# Damage.


def damaged(folder, change):
    """A saved run, changed; and a state into which it does not load and which stays as it was."""
    state = fresh()
    run(state, 3)
    save_checkpoint(folder, state)
    change(folder)
    target = fresh(seed=6)
    before = copy.deepcopy(everything(target))
    return target, before


def shorten(name, keep):
    def change(folder):
        file = folder / name
        file.write_bytes(file.read_bytes()[:keep])

    return change


def flip(folder):
    file = folder / "step-000003.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def rewrite(**fields):
    def change(folder):
        file = folder / "step-000003.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def with_tensors(edit):
    """Other tensors, with a description that vouches for them."""

    def change(folder):
        file = folder / "step-000003.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        rewrite(tensors={"file": file.name, "bytes": len(data), "sha256": digest})(folder)

    return change


DAMAGE = {
    "tensors truncated": (shorten("step-000003.safetensors", 500), "500 bytes, expected .*truncated"),
    "tensors emptied": (shorten("step-000003.safetensors", 0), "0 bytes, expected .*truncated"),
    "a bit flipped": (flip, "sha256 .*altered"),
    "tensors absent": (lambda folder: (folder / "step-000003.safetensors").unlink(), "missing"),
    "json cut": (shorten("step-000003.json", 100), "not JSON"),
    "json emptied": (shorten("step-000003.json", 0), "not JSON"),
    "json absent": (lambda folder: (folder / "step-000003.json").unlink(), "missing although latest.json"),
    "pointer cut": (shorten("latest.json", 5), "latest.json is not JSON"),
    "format": (rewrite(format=2), "format 2, expected 1"),
    "another method": (rewrite(method="other"), "run of 'other', the state is one of 'demo'"),
    "another config": (rewrite(config={"width": 6}), "width: 6 saved, 5 given"),
    "tensor absent": (with_tensors(lambda t: t.pop("ema.first.weight")), "lacks tensors of the ema.*first.weight"),
    "tensor extra": (with_tensors(lambda t: t.update({"network.more": torch.ones(1)})), "does not know.*more"),
    "tensor of another shape": (
        with_tensors(lambda t: t.update({"network.running": torch.ones(3)})),
        r"network.running of \(3,\).*expected \(2,\)",
    ),
    "tensor of another dtype": (
        with_tensors(lambda t: t.update({"network.running": torch.ones(2).double()})),
        "float64, expected",
    ),
    "moment of another shape": (
        with_tensors(lambda t: t.update({"optimizer.0.exp_avg": torch.ones(3)})),
        "optimizer.0.exp_avg",
    ),
    "generator absent": (with_tensors(lambda t: t.pop("generator.state")), "no state for a generator"),
    "foreign tensors": (with_tensors(lambda t: t.update({"other.x": torch.ones(1)})), "other"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_nothing_is_half_loaded(tmp_path, change, message):
    target, before = damaged(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, target)
    torch.testing.assert_close(everything(target), before, rtol=0, atol=0)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "absent", fresh())
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"not a run: it holds notes.txt, expected latest.json"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        read_run(tmp_path / "notes.txt")
    (tmp_path / "latest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no format"):
        latest_checkpoint(tmp_path)


def test_another_run_is_not_overwritten(tmp_path):
    state = fresh()
    run(state, 3, folder=tmp_path)
    for other, message in (
        (fresh(method="other"), "run of 'demo'"),
        (fresh(width=6), "another config"),
        (fresh(), "at step 3, the state at 0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(other, 1, folder=tmp_path)
        assert other.step == 0
    assert_equal(load_checkpoint(tmp_path, fresh()), state)


# Losses.


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
    given = {"steps": 1, "learning_rate": cosine(1.0, 2), "ema": constant_decay(0.9)} | options
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
        (lambda: fresh(learning_rate=0.0), "learning_rate"),
        (lambda: fresh(betas=(0.9, 1.0)), "betas"),
        (lambda: fresh(weight_decay=-1.0), "weight_decay"),
        (lambda: new_state("x", nn.SiLU()), "no parameter"),
        (lambda: new_state("x", nn.Linear(1, 1), config={"a": torch.ones(1)}), "JSON"),
        (lambda: cosine(1.0, 3, warmup=3), "warmup"),
        (lambda: cosine(0.0, 3), "peak"),
        (lambda: constant_decay(1.0), "decay"),
        (lambda: warmed_decay(-0.1), "decay"),
        (lambda: update_ema(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), decay=0.5), "bias"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# Records, schedules, averages.


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
    rate = cosine(2.0, 100, warmup=10)
    assert [rate(i) for i in (0, 4, 9, 10, 55, 100, 999)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0])
    assert cosine(2.0, 4)(0) == 2.0
    decay = warmed_decay(0.99)
    assert [decay(i) for i in (0, 8, 10**6)] == pytest.approx([0.1, 0.5, 0.99])
    assert constant_decay(0.5)(7) == 0.5


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
