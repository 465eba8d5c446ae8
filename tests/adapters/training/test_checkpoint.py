"""Checkpoints: resuming, crashes at every instant of a save, damaged files, other runs."""

import copy
import hashlib
import json
import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onestep_adapters.files import LockedError
from onestep_adapters.training import (
    CheckpointError,
    TrainingError,
    cosine_decay,
    latest_checkpoint,
    load_checkpoint,
    read_config,
    read_run,
    save_checkpoint,
    train,
    warmed_decay,
)
from onestep_adapters.training.folder import read_description, unless_replaced
from tests.adapters.training.runs import assert_equal, everything, fresh, loss_step, run, vouch

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


def remembering(state):
    """A loss that logs how far the network's mean moved since the last update, for a growing number of points."""

    def loss(network, generator):
        z = torch.randn(8, 2, generator=generator)
        before = state.kept.pop("before.mean", None)
        moved = 0.0 if before is None else (network(z[:1]).mean() - before.mean()).detach()
        state.kept["before.mean"] = network(z[: 1 + state.step % 3]).detach()
        return loss_step(network, generator)[0], {"moved": moved}

    return loss


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_what_a_loss_keeps_for_the_next_update_is_resumed_whatever_its_shape(tmp_path, cut):
    whole, stopped, resumed = fresh(), fresh(), fresh(seed=99)
    run(whole, 5, remembering(whole))
    run(stopped, cut, remembering(stopped), folder=tmp_path)
    resumed.kept["of another run"] = torch.zeros(1)
    load_checkpoint(tmp_path, resumed)
    assert len(resumed.kept["before.mean"]) == 1 + (cut - 1) % 3
    run(resumed, 5, remembering(resumed))
    assert_equal(resumed, whole)


def test_an_update_that_fails_keeps_what_there_was(tmp_path):
    state = fresh()
    run(state, 2, remembering(state))
    before = dict(state.kept)

    def failing(network, generator):
        loss, logs = remembering(state)(network, generator)
        return loss * torch.nan, logs

    with pytest.raises(TrainingError):
        run(state, 3, failing)
    assert state.kept == before


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, cut):
    whole = fresh()
    run(whole, 12)
    interrupted = fresh()
    for record in train(
        interrupted,
        loss_step,
        steps=12,
        learning_rate=cosine_decay(1e-2, 20, warmup=3),
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
        ".lock",
        "history.jsonl",
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
@pytest.mark.parametrize(("name", "count"), [("fsync", 9), ("replace", 4), ("unlink", 3)])
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
        # Files are written and moved in this order: journal, (history,) tensors, description, pointer.
        pointer_moved = name == "unlink" or (name == "replace" and instant == 3 and after)
        pointer_moved |= name == "fsync" and instant == 8
        assert_equal(found, new if pointer_moved else old)
        # The next save succeeds and sweeps what the crash left.
        save_checkpoint(folder, new)
        assert_equal(load_checkpoint(folder, fresh()), new)
        left = [file for file in folder.iterdir() if not file.name.startswith("saving.json.")]
        assert len(left) == 4  # with the history


FOREIGN = (
    "notes.txt",
    "notes.txt.0a0a0a0a0a0a0a0a.partial",
    "step-1.png",
    "step-000001.safetensors",
    "step-000002.json",
    "step-005000.safetensors",
    "step-000001.safetensors.00ff00ff00ff00ff.partial",
    "latest.json.0a0a0a0a0a0a0a0a.partial",
)


def test_files_of_others_stay_and_are_never_read(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).write_text("kept")
    state = fresh()
    for steps in range(3):
        run(state, steps)
        save_checkpoint(tmp_path, state)
        assert_equal(load_checkpoint(tmp_path, fresh(seed=5)), state)
    assert all((tmp_path / name).read_text() == "kept" for name in FOREIGN)
    assert len(list(tmp_path.iterdir())) == len(FOREIGN) + 4


def test_a_history_of_another_is_not_overwritten(tmp_path):
    (tmp_path / "history.jsonl").write_text("kept")
    with pytest.raises(CheckpointError, match="not of this run"):
        save_checkpoint(tmp_path, fresh())
    assert (tmp_path / "history.jsonl").read_text() == "kept"


def test_no_link_is_followed(tmp_path):
    precious, folder = tmp_path / "precious", tmp_path / "run"
    precious.write_text("kept")
    folder.mkdir()
    for name in ("latest.json.partial", ".lock", "step-000002.json", "saving.json"):
        (folder / name).symlink_to(precious)
    try:
        run(fresh(), 2, folder=folder)
    except OSError:
        (folder / ".lock").unlink()
        run(fresh(), 2, folder=folder)
    assert precious.read_text() == "kept"


def test_the_history_is_appended_and_readable(tmp_path):
    state, sizes = fresh(), []
    for steps in (3, 6, 9):
        run(state, steps, folder=tmp_path)
        lines = (tmp_path / "history.jsonl").read_text().splitlines()
        sizes.append(len(lines))
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps))
        # The last entry may still change: it is kept beside the file.
        state.history[-1]["note"] = steps
    save_checkpoint(tmp_path, state)
    assert sizes == [2, 5, 8]
    assert read_run(tmp_path).history == state.history


@pytest.mark.parametrize("bit", [0, 5])
def test_no_flipped_bit_is_silent(tmp_path, bit):
    state = fresh()
    run(state, 4, checkpoint_every=2, folder=tmp_path)
    for file in sorted(path for path in tmp_path.iterdir() if path.name != ".lock"):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 20)):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            file.write_bytes(data)
            target = fresh(seed=6)
            before = copy.deepcopy(everything(target))
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(tmp_path, target)
            assert len(str(caught.value)) < 1000
            torch.testing.assert_close(everything(target), before, rtol=0, atol=0)
        file.write_bytes(whole)
    assert_equal(load_checkpoint(tmp_path, fresh()), state)


NO_POINTERS = {
    "200 MB": lambda file: file.write_bytes(b" " * 200_000_000),
    "deep": lambda file: file.write_text("[" * 50_000),
    "a pipe": lambda file: os.mkfifo(file),
    "a folder": lambda file: file.mkdir(),
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
}


@pytest.mark.parametrize("make", NO_POINTERS.values(), ids=NO_POINTERS)
def test_what_is_no_pointer_is_refused_in_a_short_line(tmp_path, make):
    make(tmp_path / "latest.json")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, fresh())
    assert len(str(caught.value)) < 500
    assert "is not a run" not in str(caught.value)


@pytest.mark.parametrize("name", ["history", "config"])
def test_what_json_cannot_hold_is_refused_before_a_file_is_written(tmp_path, name):
    state = fresh()
    save_checkpoint(tmp_path, state)
    files = sorted(file.name for file in tmp_path.iterdir())
    broken = fresh()
    if name == "config":
        broken.config["width"] = torch.ones(1)
    else:
        broken.history.append({"loss": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"{name} of the state cannot be saved as JSON .*float"):
        save_checkpoint(tmp_path if name == "history" else tmp_path / "new", broken)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == files


def test_two_writers_into_one_folder(tmp_path):
    options = {"learning_rate": lambda i: 1e-3, "ema": lambda i: 0.9, "checkpoint_every": 1, "folder": tmp_path}
    first = train(fresh(), loss_step, steps=4, **options)
    next(first)
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on .* writes there already"):
        run(fresh(), 2, folder=tmp_path)
    *_, last = first
    assert last.step == 4
    assert read_run(tmp_path).step == 4
    run(load_checkpoint(tmp_path, fresh()), 5, folder=tmp_path)


def test_readers_beside_a_training_that_saves_always_find_a_whole_checkpoint(tmp_path):
    state, found = fresh(), []
    save_checkpoint(tmp_path, state)

    def write():
        for step in range(1, 16):
            state.step = step
            save_checkpoint(tmp_path, state)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        found.append(load_checkpoint(tmp_path, fresh()).step)
        found.append(read_run(tmp_path).step)
    writer.join()
    assert found == sorted(found)
    assert load_checkpoint(tmp_path, fresh()).step == 15


def test_a_reader_starts_again_if_the_checkpoint_is_replaced_under_it_and_only_then(tmp_path):
    state, steps = fresh(), []
    save_checkpoint(tmp_path, state)

    def read():
        _, description = read_description(tmp_path)
        steps.append(description["step"])
        if len(steps) == 1:
            state.step = 1
            save_checkpoint(tmp_path, state)
        return (tmp_path / description["tensors"]["file"]).read_bytes()

    assert unless_replaced(tmp_path, read) == (tmp_path / "step-000001.safetensors").read_bytes()
    assert steps == [0, 1]
    (tmp_path / "step-000001.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        unless_replaced(tmp_path, read)
    assert steps == [0, 1, 1]


def test_a_folder_that_cannot_be_written_is_found_before_the_first_update(tmp_path):
    (tmp_path / "file").write_text("")
    made = []

    def counted(network, generator):
        made.append(1)
        return loss_step(network, generator)

    with pytest.raises(OSError, match="file"):
        run(fresh(), 2, counted, folder=tmp_path / "file" / "run")
    assert made == []


def test_a_crash_before_the_first_checkpoint_is_named(tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("onestep_adapters.training.checkpoint._append_history", crash)
        save_checkpoint(tmp_path, fresh())
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
    """Another description, with a pointer that vouches for it."""

    def change(folder):
        file = folder / "step-000003.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        vouch(folder)

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
    "tensors elsewhere": (
        rewrite(tensors={"file": "/etc/x", "bytes": 1, "sha256": ""}),
        "names the tensors '/etc",
    ),
    "tensors unnamed": (rewrite(tensors=[]), "names no file of tensors"),
    "optimizers unnamed": (rewrite(optimizers={}), "does not describe"),
    "tensors emptied": (shorten("step-000003.safetensors", 0), "0 bytes, expected .*truncated"),
    "a bit flipped": (flip, "sha256 .*altered"),
    "tensors absent": (lambda folder: (folder / "step-000003.safetensors").unlink(), "missing"),
    "json cut": (shorten("step-000003.json", 100), "not JSON"),
    "json emptied": (shorten("step-000003.json", 0), "not JSON"),
    "json absent": (lambda folder: (folder / "step-000003.json").unlink(), "missing although latest.json"),
    "pointer cut": (shorten("latest.json", 5), "latest.json is not JSON"),
    "json altered": (
        lambda folder: (folder / "step-000003.json").write_text(
            (folder / "step-000003.json").read_text().replace('"step": 3', '"step": 2')
        ),
        "not the file that latest.json names",
    ),
    "history cut": (shorten("history.jsonl", 10), "first .* bytes of .*history.jsonl are not those"),
    "history absent": (lambda folder: (folder / "history.jsonl").unlink(), "missing, expected .* bytes of history"),
    "format": (rewrite(format=2), "format 2, expected 4"),
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
        with_tensors(lambda t: t.update({"optimizer.network.first.weight.exp_avg": torch.ones(3)})),
        "optimizer.network.first.weight.exp_avg",
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
