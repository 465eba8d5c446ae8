"""Encoders on the command line: trained, resumed, evaluated; what a generator can do and they cannot, is said."""

import json
import os

import pytest

from onestep_adapters.cli import main
from onestep_adapters.methods import ENCODERS

QUICK = {
    "simclr": ["--steps", "3", "--batch", "8", "--width", "8", "--depth", "2"],
    "moco": ["--steps", "3", "--batch", "8", "--width", "8", "--depth", "2", "--queue-size", "16"],
    "mae": ["--steps", "3", "--batch", "8", "--width", "16", "--depth", "1", "--heads", "2"],
    "fine-tuning": ["--steps", "3", "--batch", "8", "--width", "16", "--depth", "1", "--heads", "2"],
}


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("method", ENCODERS)
def test_an_encoder_is_trained_and_resumed(method, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", method, "--data", "digits", "--folder", folder, *QUICK[method]) == 0
    shown = capsys.readouterr().out
    assert f"Next: onestep evaluate {folder}" in shown
    assert "onestep sample" not in shown
    assert (folder / "neighbours.png").exists()
    assert (folder / "reconstructions.png").exists() == (method == "mae")
    assert run("train", method, "--folder", folder, "--resume") == 0
    assert "is complete" in capsys.readouterr().out
    assert run("train", method, "--data", "digits", "--folder", folder, *QUICK[method]) == 2
    capsys.readouterr()
    assert run("sample", folder) == 2
    words = capsys.readouterr().err
    assert "trains an encoder: it has no samples" in words
    assert "onestep evaluate RUN" in words


def test_encoders_are_listed_in_a_group_of_their_own(capsys):
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if "trains an encoder" in line)
    listed = [line.split()[0] for line in lines[start + 1 : lines.index("", start)] if line[:3].strip()]
    assert listed == list(ENCODERS)
    assert run("train", "--help") == 0
    assert f"encoders: {', '.join(ENCODERS)}" in capsys.readouterr().out


@pytest.mark.parametrize("method", ENCODERS)
def test_every_encoder_has_help_without_the_words_of_generators(method, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("train", method, "--data", "digits", "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--precision" in shown
    assert "jump" not in shown


def test_points_are_refused(capsys):
    assert run("train", "simclr", "--data", "8gaussians") == 2
    assert "encoders need images" in capsys.readouterr().err


def test_encoders_are_evaluated_by_probes(tmp_path, capsys):
    folder, other = tmp_path / "run", tmp_path / "generator"
    assert run("train", "simclr", "--data", "digits", "--folder", folder, *QUICK["simclr"][:-1], "1") == 0
    assert run("evaluate", folder, "--split", "validation", "--probe-images", "60", "--folder", other) == 0
    shown = capsys.readouterr().out
    assert "random, shape of simclr: stages.0  0/19" in shown
    verdict = shown.split("\n\n")[1]
    assert "|" not in verdict
    assert verdict.startswith("simclr on digits, validation split, layer stages.0: above a random network")
    assert len(verdict.splitlines()) <= 12
    text = (other / "report.md").read_text()
    assert "| random, shape of simclr | stages.0 | 0 |" in text
    assert "| pixels |" in text
    assert f"]({os.path.relpath(folder / 'neighbours.png', other)})" in text
    assert "training.steps 3," in text.split("## All options of the runs")[1]
    report = json.loads((other / "report.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["pixels", "random, shape of simclr", "simclr"]
    assert run("evaluate", folder, "--baseline", folder) == 2
    assert "leave it out" in capsys.readouterr().err
    quick = ["--steps", "2", "--batch", "16", "--width", "8", "--depth", "1"]
    assert run("train", "flow-matching", "--data", "digits", "--folder", tmp_path / "flow", *quick) == 0
    assert run("evaluate", folder, tmp_path / "flow") == 2
    assert "in two commands" in capsys.readouterr().err
