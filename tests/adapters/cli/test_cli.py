"""The command line as people use it: what it answers, what it leaves behind, and how it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys

import attrs
import pytest
import torch

from onestep_adapters.cli import main
from onestep_adapters.cli.app import COMMANDS
from onestep_adapters.cli.interrupts import Stopped, until_interrupted
from onestep_adapters.cli.parsing import _field_docstrings
from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation.demo import Demo
from onestep_adapters.methods import DMD2, METHODS, Network
from onestep_adapters.runs import Run, open_run
from onestep_adapters.training import read_run

QUICK = ["--steps", "3", "--batch", "16", "--width", "8", "--depth", "1"]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def trained(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", "meanflow", "--data", "8gaussians", "--folder", folder, *QUICK) == 0
    capsys.readouterr()
    return folder


def test_no_words_and_help_teach(capsys):
    assert run() == run("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert all(method in text for method in METHODS)


@pytest.mark.parametrize("command", ["sample", "evaluate", "export", "demo"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    assert "default" in capsys.readouterr().out


def test_help_of_a_method_shows_the_defaults_for_the_data(capsys):
    assert run("train", "--help") == 0
    assert "--resume" in capsys.readouterr().out
    for data in ("digits", "8gaussians"):
        with pytest.raises(SystemExit):
            run("train", "drifting", "--data", data, "--help")
        shown = capsys.readouterr().out
        assert f"(default: {METHODS['drifting'].options(open_dataset(data)).training.batch})" in shown


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_help(method, capsys):
    """No two of its options have one name."""
    with pytest.raises(SystemExit) as stopped:
        run("train", method, "--data", "8gaussians", "--help")
    assert stopped.value.code == 0
    assert "--steps" in capsys.readouterr().out


def test_the_help_of_an_option_is_its_docstring_on_one_line(capsys, monkeypatch):
    """Those of a base class and of nested classes included."""
    # One column of boxes; wider help has two.
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        run("train", "dmd2", "--data", "8gaussians", "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for kind in (DMD2, Network):
        told = _field_docstrings(kind)
        assert {a.name for a in attrs.fields(kind)} - {"training", "network"} <= told.keys()
        assert [name for name, text in told.items() if name != "teacher" and text not in shown] == []


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda" if not torch.cuda.is_available() else "cuda:98"])
def test_a_device_that_is_not_there_gets_one_clear_line(device, tmp_path, capsys):
    words = ("--data", "8gaussians", "--folder", tmp_path / "run", *QUICK)
    assert run("train", "flow-matching", *words, "--device", device) == 2
    error = capsys.readouterr().err
    assert f"device '{device}' cannot be used" in error
    assert "--device cpu" in error
    assert not (tmp_path / "run").exists()


def test_what_comes_before_the_first_update_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    words = ("--data", "8gaussians", "--folder", tmp_path / "run", *QUICK, "--coupling", "precomputed")
    assert run("train", "meanflow", *words) == 0
    announced, cost, phase, *_ = capsys.readouterr().out.splitlines()
    assert announced == "before the first update:"
    assert cost.startswith("  512 coupled pairs of data and noise")
    assert phase == "coupled pairs  0/4"


def test_without_a_terminal_the_first_line_comes_before_the_first_update(tmp_path, capsys):
    assert run("train", "flow-matching", "--data", "8gaussians", "--folder", tmp_path / "run", *QUICK) == 0
    first, last, *_ = capsys.readouterr().out.splitlines()
    assert first == "flow-matching on 8gaussians  0/3"
    assert last.startswith("flow-matching on 8gaussians  3/3  loss")


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_lets_an_update_end_and_a_second_one_does_not():
    def updates(presses):
        for step in range(5):
            if step == 2:
                for _ in range(presses):
                    press_ctrl_c()
            yield step

    def passed(presses):
        steps = []
        try:
            for step in until_interrupted(updates(presses)):
                steps.append(step)
        except KeyboardInterrupt as stop:
            return steps, type(stop)
        return steps, None

    before = signal.getsignal(signal.SIGINT)
    assert passed(0) == ([0, 1, 2, 3, 4], None)
    assert passed(1) == ([0, 1, 2], Stopped)
    assert passed(2) == ([0, 1], KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_the_last_update_is_not_lost():
    def updates():
        yield from range(3)
        press_ctrl_c()

    with pytest.raises(Stopped):
        list(until_interrupted(updates()))


def test_ctrl_c_that_is_ignored_stays_so():
    """As in a script's background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def updates():
            for step in range(3):
                press_ctrl_c()
                yield step

        assert list(until_interrupted(updates())) == [0, 1, 2]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_training_keeps_every_update(tmp_path, capsys, monkeypatch):
    words, original = ("train", "flow-matching", "--data", "8gaussians", "--folder"), Run.updates

    def pressed(self, folder, **keywords):
        for record in original(self, folder, **keywords):
            if record.step == 2:
                press_ctrl_c()
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(Run, "updates", pressed)
        assert run(*words, tmp_path / "cut", *QUICK) == 130
    assert "keeps 2 of 3 updates" in "".join(capsys.readouterr().err.split("\n"))
    assert run(*words, tmp_path / "cut", "--resume") == 0
    assert run(*words, tmp_path / "whole", *QUICK) == 0
    cut, whole = (open_run(tmp_path / name).state for name in ("cut", "whole"))
    assert all(torch.equal(one, other) for one, other in zip(cut.ema.parameters(), whole.ema.parameters(), strict=True))


def test_a_teacher_has_options_of_its_own_and_is_trained_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    taught = [f"--teacher.{word}" for word in ("training.steps", "training.batch", "network.width", "network.depth")]
    words = [word for pair in zip(taught, (2, 16, 8, 1), strict=True) for word in pair]
    for name in ("one", "two"):
        folder = tmp_path / name
        assert run("train", "reflow", "--data", "8gaussians", "--folder", folder, *QUICK, *words, "--pairs", "9") == 0
        assert ("teacher on 8gaussians" in capsys.readouterr().out) == (name == "one")
    config = read_run(folder).config["options"]
    assert config["training"]["steps"] == 3
    assert config["teacher"]["training"]["steps"] == 2
    assert len(list((tmp_path / "teachers").glob("8gaussians-*"))) == 1
    assert len(list((tmp_path / "teachers" / "made").rglob("pairs-*"))) == 1


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("exact", "--teacher.training.steps"),
        ("folder", "--teacher.training.steps"),
        ("folder", "--teacher.network.width"),
    ],
)
def test_options_of_a_teacher_that_is_there_already_are_refused(source, option, tmp_path, capsys):
    given = "exact" if source == "exact" else str(tmp_path / "teacher")
    if source == "folder":
        assert run("train", "flow-matching", "--data", "8gaussians", "--folder", given, *QUICK) == 0
    words = ("--data", "8gaussians", "--folder", tmp_path / "run", "--pairs-weight", "0", "--pairs-only-share", "0")
    assert run("train", "dmd2", *words, "--teacher-from", given, option, "8") == 2
    assert f"{option} with --teacher-from {given}" in "".join(capsys.readouterr().err.split("\n"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "meanflwo"], "did you mean 'meanflow'"),
        (["train", "zzz"], "known are"),
        (["train", "meanflow", "--data", "gaussians"], "did you mean '8gaussians'"),
        (["train", "meanflow", "--data"], "--data"),
        (["sample", "nowhere"], "nowhere does not exist"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_mistake_gets_one_clear_line(words, expected, capsys):
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_an_option_out_of_range_is_named(capsys):
    assert run("train", "meanflow", "--data", "8gaussians", "--steps", "0") == 2
    assert "steps = 0" in capsys.readouterr().err


def test_a_folder_that_is_not_a_run(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run("sample", tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_checkpoint_cut_off_half_way(trained, capsys):
    (tensors,) = trained.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    assert run("sample", trained) == 2
    assert tensors.name in capsys.readouterr().err


def test_train_sample_evaluate(trained, capsys):
    assert run("sample", trained, "--count", 12) == 0
    assert "12 samples, 1 network evaluation per sample" in capsys.readouterr().out
    assert (trained / "samples.npz").stat().st_size > 0
    assert (trained / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert run("evaluate", trained, "--repeats", 1) == 0
    said = capsys.readouterr().out
    phases = (
        "evaluating meanflow on 8gaussians: 1 draw",
        "reference rows  0/5",
        "meanflow: samples",
        "meanflow: distances",
    )
    assert all(part in said for part in phases)
    verdict = said.split("\n\n")[1]
    assert "|" not in verdict
    assert 5 <= len(verdict.splitlines()) <= 12
    for part in ("not judged", "training.steps 3 (preset 4,000)", "without a baseline", "written into"):
        assert part in verdict
    assert json.loads((trained / "report.json").read_text())["data"] == "8gaussians"
    text = (trained / "report.md").read_text()
    assert "| meanflow |" in text
    assert "](report-samples.png)" in text
    assert (trained / "report-samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_in_place_of_a_folder(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert run("train", "meanflow", "--data", "8gaussians", "--folder", tmp_path / "taken", *QUICK) == 2
    assert "is a file" in capsys.readouterr().err


def test_resuming_nothing_says_so(tmp_path, capsys):
    start = ["train", "meanflow", "--data", "8gaussians", "--folder", tmp_path / "mistyped", *QUICK]
    assert run(*start, "--resume") == 0
    assert "holds no checkpoint: starting a new run" in capsys.readouterr().out
    assert run(*start, "--resume") == 0
    assert "starting a new run" not in capsys.readouterr().out


def test_resuming_nothing_needs_its_data(tmp_path, capsys):
    assert run("train", "meanflow", "--folder", tmp_path / "early", "--resume") == 2
    assert "holds no checkpoint to resume" in capsys.readouterr().err
    assert not (tmp_path / "early").exists()


def test_a_reader_that_has_enough_is_no_failure():
    called = [sys.executable, "-m", "onestep_adapters.cli", "train", "meanflow", "--help"]
    with subprocess.Popen(called, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_the_module_is_the_command():
    called = [sys.executable, "-m", "onestep_adapters.cli"]
    right = subprocess.run([*called, "--help"], capture_output=True, text=True)
    assert (right.returncode, "onestep train METHOD" in right.stdout) == (0, True)
    assert subprocess.run([*called, "nothing"], capture_output=True).returncode == 2


def test_training_again_needs_a_word(trained, capsys):
    again = ["train", "meanflow", "--data", "8gaussians", "--folder", trained, *QUICK]
    assert run(*again) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(*again, "--resume") == 0
    assert "complete: 3 of 3" in capsys.readouterr().out


def test_a_finished_run_is_extended(trained, tmp_path, capsys):
    folder = tmp_path / "longer"
    shutil.copytree(trained, folder)
    assert run("train", "meanflow", "--folder", folder, "--resume", "--steps", 5) == 0
    assert "5 updates" in capsys.readouterr().out
    assert run("train", "meanflow", "--folder", folder, "--resume") == 0
    assert "complete: 5 of 5" in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_options(trained, capsys):
    """And its own data; the error names what differs, and nothing is lost."""
    assert run("train", "meanflow", "--folder", trained, "--resume") == 0
    assert "complete: 3 of 3" in capsys.readouterr().out
    assert run("train", "meanflow", "--folder", trained, "--resume", "--steps", 2) == 2
    assert "training.steps is 3 in the folder, 2 in your options" in capsys.readouterr().err
    assert run("train", "meanflow", "--data", "unequal", "--folder", trained, "--resume") == 2
    assert "holds meanflow on 8gaussians, and you want meanflow on unequal" in capsys.readouterr().err
    assert run("train", "shortcut", "--data", "8gaussians", "--folder", trained, "--resume") == 2
    assert "holds meanflow on 8gaussians, and you want shortcut on 8gaussians" in capsys.readouterr().err


def test_numbers_that_cannot_be_drawn_from(trained, capsys):
    assert run("evaluate", trained, "--repeats", 0) == 2
    assert "repeats = 0: expected a whole number, at least 1" in capsys.readouterr().err
    for command in ("evaluate", "sample"):
        assert run(command, trained, "--seed", 2**64) == 2
        assert f"seed = {2**64}: expected a whole number" in capsys.readouterr().err


def test_markup_in_a_name_is_printed_as_it_is(capsys):
    assert run("sample", "[bold]x[/]") == 2
    assert "[bold]x[/]" in capsys.readouterr().err


def test_the_demo_in_a_few_steps(tmp_path, capsys, monkeypatch):
    """All of it but the training: runs, report with notes, pictures."""
    baseline = METHODS["flow-matching"]
    coarse = baseline._replace(images=attrs.evolve(baseline.images, sampling_steps=2))
    monkeypatch.setitem(METHODS, "flow-matching", coarse)
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    assert run("demo", "--folder", tmp_path, "--steps", 4, "--processes", 1) == 0
    files = {file.name for file in tmp_path.iterdir()}
    assert {"report.html", "report.md", "report.json", "samples.png", "curves.png"} <= files
    text = (tmp_path / "report.md").read_text()
    for method in ("flow-matching", "rectified-meanflow", "drifting"):
        assert f"| {method} |" in text
    assert "No notes were passed in" not in text


@pytest.mark.thorough
def test_an_interrupted_demo_goes_on(tmp_path, capsys, monkeypatch):
    """What was finished is not trained again."""
    original = Run.updates

    def pressed(self, folder, **keywords):
        for record in original(self, folder, **keywords):
            if (self.name, record.step) == ("rectified-meanflow", 2):
                press_ctrl_c()
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(Run, "updates", pressed)
        assert run("demo", "--folder", tmp_path, "--steps", 4, "--processes", 1) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    again = Demo(tmp_path, steps=4)
    assert {name: found.state.step for name, found in again.runs.items()}["flow-matching"] == 4
    trained = [name for name, _ in again.train()]
    assert "flow-matching" not in trained
    assert [found.state.step for found in again.runs.values()] == [4, 4, 4]


WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from onestep_adapters.cli import main
code = main({words!r})
assert not set({missing!r}) & {{name for name, module in sys.modules.items() if module is not None}}
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("missing", "words", "code", "said"),
    [
        (["matplotlib", "sklearn"], ["train", "drifting", "--data", "8gaussians", "--folder", "{}", *QUICK], 0, ""),
        (["sklearn"], ["train", "drifting", "--folder", "{}", *QUICK], 2, "onestep[digits]"),
        (["matplotlib"], ["demo", "--folder", "{}"], 2, "onestep[plots]"),
    ],
)
def test_a_missing_extra_stops_only_what_needs_it(missing, words, code, said, tmp_path):
    words = [word.format(tmp_path / "run") for word in words]
    script = WITHOUT.format(missing=missing, words=words)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stderr
    assert said in found.stderr


BARE = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from onestep_adapters.cli import main
for words in {calls!r}:
    print(main(words), file=sys.stderr)
"""
CALLS = [
    [],
    ["--help"],
    ["train"],
    ["train", "meanflow"],
    ["sample", "x"],
    ["evaluate", "x"],
    ["export", "x"],
    ["data", "digits"],
    ["demo"],
]


@pytest.mark.parametrize(
    ("missing", "extra"),
    [
        (["tyro", "rich", "cattrs", "safetensors", "scipy", "sklearn", "matplotlib", "PIL"], "onestep[cli]"),
        (["tyro"], "onestep[cli]"),
        (["rich"], "onestep[cli]"),
        (["cattrs"], "onestep[training]"),
        (["safetensors"], "onestep[training]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:1]),
)
def test_without_the_extras_every_command_ends_in_one_line(missing, extra):
    script = BARE.format(missing=missing, calls=[*CALLS, ["--version"]])
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = found.stderr.splitlines()
    assert said[1::2] == ["2"] * len(CALLS), found.stderr
    assert all(line.startswith("onestep: ") and f"pip install '{extra}'" in line for line in said[:-1:2])
    assert (said[-1], found.stdout.strip().startswith("onestep ")) == ("0", True)
