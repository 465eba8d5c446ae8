"""``onestep export``, as people use it."""

import numpy as np
import onnxruntime
import pytest
import torch

from onestep_adapters.cli import main
from onestep_adapters.runs import open_run

QUICK = ["--steps", "3", "--batch", "16", "--width", "8", "--depth", "1"]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def trained(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", "meanflow", "--data", "8gaussians", "--folder", folder, *QUICK) == 0
    capsys.readouterr()
    return folder


def test_both_formats_give_the_samples_of_onestep_sample(trained, tmp_path, capsys):
    assert run("export", trained) == 0
    assert run("export", trained, "--format", "onnx", "--out", tmp_path / "toy.onnx") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(trained / "generator.pt2"), str(tmp_path / "toy.onnx")]
    assert "noise [batch, 2] float32 -> samples" in lines[0]
    samples, _ = open_run(trained).samples(50, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    found = torch.export.load(trained / "generator.pt2").module()(noise)
    torch.testing.assert_close(found, samples, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "toy.onnx")
    np.testing.assert_allclose(session.run(None, {"noise": noise.numpy()})[0], samples, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnx", "--out", "g.pt2"], "ends with .onnx"),
        (["--out", "nowhere/g.pt2"], "the folder nowhere does not exist"),
        (["--alpha", "2"], "takes no guidance scale"),
    ],
)
def test_mistakes_have_one_line(trained, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("export", trained, *words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out
    assert not list(trained.glob("generator*"))


def test_runs_that_cannot_be_exported_are_refused(tmp_path, capsys):
    folder = tmp_path / "flow"
    assert run("train", "flow-matching", "--data", "8gaussians", "--folder", folder, *QUICK) == 0
    assert run("export", folder) == 2
    assert "only generators of one evaluation can be exported" in capsys.readouterr().err
    assert run("export", tmp_path / "nowhere") == 2
