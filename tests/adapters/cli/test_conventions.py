"""Conventions of command lines, and what is refused rather than changed in silence."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from onestep_adapters.cli import main
from onestep_adapters.runs import start_run
from onestep_adapters.training import read_run
from tests.adapters.tiny import tiny, trained_to

QUICK = ["--steps", "2", "--batch", "16", "--width", "8", "--depth", "1"]


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "meanflow", "--data", ""], "--data is empty"),
        (["train", "meanflow", "--data", "8gaussians", "--folder", ""], "--folder is empty"),
        (["train", "meanflow", "--data", "8gaussians", "--device", ""], "--device is empty"),
        (["train", "drifting", "--data", "digits", "--batch", "5"], "a batch of at least 20"),
        (["train", "meanflow", "--data", "8gaussians", "--steps", str(10**30)], "below 2^63"),
        (["train", "meanflow", "--data", "8gaussians", "--seed", "-1"], "expected a whole number"),
        (["train", "meanflow", "--data", "8gaussians", "--seed", str(2**64)], "below 2^63"),
        (["train", "meanflow", "--data", "8gaussians", "--steps", "ten"], "--steps ten: expected a whole number"),
        (["train", "meanflow", "--data", "8gaussians", "--ema", "1"], "ema = 1.0: expected 0.0 <= ema < 1.0"),
        (["train", "meanflow", "--data", "8gaussians", "--coupling", "best"], "invalid choice 'best'"),
        (["train", "meanflow", "--data", "8gaussians", "--stps", "4"], "--stps, 4; did you mean --steps?"),
        (["train", "drifting", "--data", "8gaussians", "--temperatures", "a"], "--temperatures a: expected [FLOAT"),
        (["train", "meanflow", "--data", "8gaussians", "--width"], "Missing value for argument '--width'"),
        (["sample", "run", "--alpha", "x"], "--alpha x: expected a number (see onestep sample --help)"),
        (["sample", "run", "more"], "Unrecognized options: more"),
        (["sample"], "Folder of a trained run"),
        (["evaluate", ""], "an argument is empty"),
        (["sample", ""], "an argument is empty"),
        (["sample", "run", "--out="], "--out is empty"),
        (["sample", "run", "--count", "0"], "count = 0: expected a whole number, at least 1"),
        (["demo", "--folder", ""], "--folder is empty"),
        (["data", ""], "an argument is empty"),
        (["data", "8gaussians", "--picture", ""], "--picture is empty"),
        (["train", "reflow", "--data", "8gaussians", "--teacher.coupling", ""], "--teacher.coupling is empty"),
        (["train", "reflow", "--data", "8gaussians", "--teacher-from", "", "--steps", "0"], "steps = 0"),
        (["train", "progressive", "--data", "8gaussians", "--steps", "4"], "expected at least 5 updates"),
        (["demo", "--processes", "3"], "invalid choice '3'"),
        (["train", "--data", "8gaussians"], "no METHOD among"),
        (["train", "--data", "8gaussians", "meanflwo"], "did you mean 'meanflow'"),
        (["evaluate"], "no run is given: expected onestep evaluate RUN"),
        (["sample", "nowhere", "--count", "0"], "count = 0"),
        (["export", ""], "an argument is empty"),
        (["export", "nowhere", "--fromat", "onnx"], "did you mean --format?"),
        (["distill", "", "--method", "dmd"], "PIPELINE is empty"),
        (["distill", "nowhere", "--method", "dmd"], "is no pipeline of diffusers"),
    ],
)
def test_what_makes_no_sense_is_refused(words, expected, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    out, told = capfd.readouterr()
    assert out == ""
    assert expected in told
    assert told.startswith("onestep: ")
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


TEXTS = [
    ("--help",),
    ("train", "--help"),
    ("train", "drifting", "--data", "8gaussians", "--help"),
    *((command, "--help") for command in ("sample", "evaluate", "export", "data", "demo")),
]


@pytest.mark.parametrize("columns", [60, 80, 110])
@pytest.mark.parametrize("words", TEXTS, ids=" ".join)
def test_help_fits_the_terminal_and_has_no_control_codes(words, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.suppress(SystemExit):
        run(*words)
    text = capsys.readouterr().out
    assert len(text) > 500
    assert text.replace("\n", "").isprintable()
    # Only what has to be on one line may be longer: a command to copy, the usage.
    long = [line for line in text.splitlines() if len(line) > columns]
    assert all(line.startswith(("  onestep ", "usage: ")) for line in long), long
    assert "None" not in text or words[:2] == ("train", "drifting")


def test_a_teacher_that_a_method_can_do_without_has_options(tmp_path, monkeypatch, capsys):
    """They have one name each, also where the method has no teacher by default."""
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    small = ["--fourier", "0", "--coupling", "independent", *QUICK]
    taught = ["--teacher.training.steps", "3", "--teacher.network.width", "8", "--teacher.network.depth", "1"]
    words = ["train", "meanflow", "--data", "8gaussians", "--folder", tmp_path / "run", *small]
    assert run(*words, "teacher:flow-matching", *taught) == 0
    said = capsys.readouterr()
    assert "a teacher (flow-matching): 3 updates" in said.out
    assert said.err == ""
    assert read_run(tmp_path / "run").config["options"]["teacher"]["training"]["steps"] == 3


def test_a_mistaken_option_gets_no_remarks_about_types(capfd):
    assert run("train", "meanflow", "--data", "8gaussians", "--step", "3") == 2
    told = capfd.readouterr().err
    assert "--steps" in told
    assert "annotated" not in told


@pytest.mark.slow
def test_a_pipe_gets_no_control_codes(tmp_path):
    words = [sys.executable, "-m", "onestep_adapters.cli", "train", "meanflow", "--data", "8gaussians"]
    words += ["--coupling", "independent", "--folder", str(tmp_path / "run"), *QUICK]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b" not in found.stdout + found.stderr
    assert found.stdout.splitlines()[0] == "meanflow on 8gaussians  0/2"


def test_the_version_is_told(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("onestep ")


def test_the_method_may_stand_after_the_options(tmp_path):
    assert run("train", "--data", "8gaussians", "--folder", tmp_path / "run", "meanflow", *QUICK) == 0
    assert read_run(tmp_path / "run").method == "meanflow"


def test_samples_go_where_they_were_asked_to_go(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", "meanflow", "--data", "8gaussians", "--folder", folder, *QUICK) == 0
    for name in ("a.png", "b.npz", "c"):
        assert run("sample", folder, "--count", "4", "--out", tmp_path / "out" / name) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{stem}.{kind}" for stem in "abc" for kind in ("npz", "png")
    ]
    for name in ("..", ".png"):
        assert run("sample", folder, "--out", tmp_path / name) == 2
        assert "expected the name of a file" in capsys.readouterr().err
    assert run("sample", folder, "--out", folder) == 2
    assert f"is a folder: give the name of a file in it, such as {folder / 'samples'}" in capsys.readouterr().err


def test_samples_that_no_memory_holds_are_one_line(tmp_path, capsys):
    folder = tmp_path / "run"
    trained_to(start_run("meanflow", "8gaussians", tiny("meanflow", coupling="independent")), 2, folder)
    assert run("sample", folder, "--count", 10**15) == 1
    told = capsys.readouterr().err
    assert told.startswith("onestep: there is not enough memory (8000000000000000 bytes asked for): lower")
    assert told.count("\n") == 1


def test_errors_of_files_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "run"
    assert run("train", "meanflow", "--data", "8gaussians", "--folder", folder, *QUICK) == 0
    capsys.readouterr()
    assert run("sample", folder, "--count", "4", "--out", tmp_path / "file" / "samples") == 1
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert "file" in told
    assert run("train", "meanflow", "--data", "8gaussians", "--folder", tmp_path / "file" / "run", *QUICK) == 1
    assert "\n" not in capsys.readouterr().err.strip()


@pytest.mark.parametrize("words", [("meanflow", "--coupling", "precomputed"), ("reflow",)])
def test_a_folder_that_cannot_be_written_is_found_before_pairs_and_teachers(words, tmp_path, capsys, new_teachers):
    """Both preparations take minutes."""
    (tmp_path / "file").write_text("")
    assert run("train", *words, "--data", "8gaussians", "--folder", tmp_path / "file" / "run") == 1
    out, told = capsys.readouterr()
    assert out == ""
    assert "Not a directory" in told
    assert told.count("\n") == 1
    assert not new_teachers.exists()


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_measured(tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        run("train", "meanflow", "--data", "8gaussians", "--folder", folder, *QUICK, "--coupling", "independent") == 0
    )
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert run("evaluate", folder, "--folder", tmp_path / "file" / "report") == 1
    assert run("sample", folder, "--out", tmp_path / "file" / "samples") == 1
    assert run("demo", "--folder", tmp_path / "file" / "demo") == 1
    out, told = capsys.readouterr()
    assert out == ""
    assert told.splitlines() == [
        f"onestep: Not a directory: {tmp_path / 'file' / 'report'}",
        f"onestep: Not a directory: {tmp_path / 'file'}",
        f"onestep: Not a directory: {tmp_path / 'file' / 'demo'}",
    ]


def test_a_full_disk_is_one_line_that_says_what_is_kept(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    folder = tmp_path / "run"
    begun = start_run("meanflow", "8gaussians", tiny("meanflow", steps=6, coupling="independent"))
    trained_to(begun, 2, folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        assert run("train", "meanflow", "--folder", folder, "--resume") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert f"File too large: {folder / 'step-000004.safetensors'}; {folder} keeps 2 of 6 updates" in told
    assert run("train", "meanflow", "--folder", folder, "--resume") == 0
    assert read_run(folder).step == 6


@pytest.mark.slow
def test_two_trainings_into_one_folder_at_once(tmp_path):
    """The second is refused by name, and nothing of the first is lost."""
    words = [sys.executable, "-m", "onestep_adapters.cli", "train", "meanflow", "--data", "8gaussians"]
    words += ["--folder", str(tmp_path / "run"), "--steps", "400", "--batch", "64", "--width", "16", "--depth", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [*words, "--coupling", "independent"], env=environment, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert first.stdout is not None
    for _ in first.stdout:
        if (tmp_path / "run" / ".lock").exists():
            break
    second = subprocess.run(
        [*words, "--coupling", "independent", "--resume"], env=environment, capture_output=True, text=True, timeout=200
    )
    first.communicate(timeout=200)
    assert first.returncode == 0
    if second.returncode:  # otherwise the first had ended before the second looked
        # Refused while the first runs, or at its first save because the first had ended in between.
        assert f"process {first.pid} on" in second.stderr or "is at step 400" in second.stderr
        assert "Traceback" not in second.stderr
    assert read_run(tmp_path / "run").step == 400


def test_an_interruption_while_torch_loads_is_one_line():
    """Ctrl-C in the first moments, as a process of its own gets it."""
    command = "import sys, onestep_adapters.cli as cli; print('begun', flush=True); sys.exit(cli.main(['data']))"
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip() == "onestep: interrupted before the command began"
