"""Images compared in the features of an encoder: the numbers, the words of the report, which encoder may judge."""

import json
import shutil

import pytest
import torch
from torch import nn

from onestep_adapters.cli import main
from onestep_adapters.encoders import Encoder, pooled_features, pretrained_encoder
from onestep_adapters.evaluation import evaluate_runs
from onestep_adapters.evaluation.writing import from_json
from onestep_adapters.metrics import (
    ImageSplits,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    measure,
    measure_references,
)
from onestep_adapters.runs import open_encoder, start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import small, tiny

ENCODER = ["--steps", "2", "--batch", "8", "--width", "8", "--depth", "2"]
NAMES = {"frechet", "kernel", "precision", "recall", "density", "coverage"}


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two encoders of digits, a generator that was trained in the features of the first, and one in pixels."""
    place = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_TEACHERS", str(place / "teachers"))
        for seed, name in enumerate(("first", "second")):
            told = ("train", "simclr", "--data", "digits", "--folder", place / name, *ENCODER, "--seed", seed)
            assert run(*told) == 0
        quick = ("--steps", 2, "--batch", 20, "--positives", 5, "--width", 8, "--depth", 1)
        taught = ("--encoder", place / "first", "--cache-features", 0)
        assert run("train", "drifting", "--data", "digits", "--folder", place / "taught", *quick, *taught) == 0
        assert run("train", "drifting", "--data", "digits", "--folder", place / "pixels", *quick) == 0
    return place


def test_pooled_features_are_the_mean_over_the_last_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2, stride=2))
    encoder = Encoder(network, ("0", "2"), channels=3, mean=(0.2,), std=(0.5,), least=8)
    grey = torch.rand(7, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        expected = network((grey.expand(-1, 3, -1, -1) - 0.2) / 0.5).mean((2, 3))
    found = pooled_features(encoder, chunk=3)(grey)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_the_pretrained_encoder_gives_one_vector_for_each_image():
    encoder = pretrained_encoder("efficientnet-lite0")
    layer = []
    handle = encoder.module.get_submodule("_blocks.15").register_forward_hook(lambda *call: layer.append(call[2]))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        encoder.module((images + 1 / 255) / (256 / 255))
    handle.remove()
    torch.testing.assert_close(pooled_features(encoder)(images), layer[0].mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert pooled_features(encoder)(torch.zeros(2, 1, 28, 28)).shape == (2, 320)


def test_the_metrics_are_those_of_the_features():
    draw = torch.Generator().manual_seed(0)
    train, held_out, samples = (torch.randn(n, 1, 4, 4, generator=draw) for n in (40, 20, 20))
    splits = ImageSplits(train, held_out)

    def encode(images):
        return images.flatten(1)[:, :3].square()

    found = measure(samples, splits=splits, classifier=None, repeats=1, k=2, encode=encode).metrics
    x, y = encode(samples), encode(held_out)
    near = manifold_metrics(y.double(), x.double(), k=2)
    expected = {"frechet": frechet_distance(x, y), "kernel": kernel_distance(x, y), **near._asdict()}
    assert expected.keys() == NAMES
    for name, value in expected.items():
        assert found[f"encoder_{name}"].mean == pytest.approx(value.item(), rel=1e-9)
    assert not any(
        name.startswith("encoder_") for name in measure(samples, splits=splits, classifier=None, repeats=1).metrics
    )
    rows = measure_references(splits=splits, classifier=None, generator=draw, repeats=2, k=2, encode=encode)
    assert all({f"encoder_{name}" for name in NAMES} <= set(row.metrics) for row in rows.values())


def test_the_command_line_writes_them_for_every_row_with_the_name_of_the_encoder(folders, tmp_path, capsys):
    words = ("evaluate", folders / "taught", folders / "pixels", "--repeats", 1, "--split", "validation")
    assert run(*words, "--features", "efficientnet-lite0", "--folder", tmp_path) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FD in efficientnet-lite0")]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["comparison"]["encoder"] == "efficientnet-lite0"
    rows = [*report["references"].values(), *report["rows"]]
    assert len(rows) == 6
    for row in rows:
        found = {name for name in row["metrics"] if name.startswith("encoder_")}
        assert found == {f"encoder_{name}" for name in NAMES}
    assert all(row["method"] in line for row in rows)
    floor, moments = (report["references"][name]["metrics"]["encoder_frechet"]["mean"] for name in ("floor", "moments"))
    assert 0 < floor < moments
    text = (tmp_path / "report.md").read_text()
    for heading in ("FD", "KD", "precision", "recall", "density", "coverage"):
        assert f" {heading} in efficientnet-lite0 |" in text
        assert f"- **{heading} in efficientnet-lite0**: " in text
    assert text.split("## Thresholds")[1].split("## Cost")[0].count("efficientnet") == 0
    assert from_json(json.dumps(report)).comparison.encoder == "efficientnet-lite0"


def test_the_run_of_an_encoder_judges_what_it_did_not_train(folders, tmp_path, capsys):
    words = ("evaluate", folders / "taught", "--repeats", 1, "--split", "validation", "--folder", tmp_path)
    assert run(*words, "--features", folders / "second") == 0
    assert f"KD in {folders / 'second'}" in (tmp_path / "report.md").read_text()
    capsys.readouterr()
    assert run(*words, "--features", folders / "first") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot judge its own training" in said
    assert "drifting was trained in the features of the encoder" in said
    shutil.copytree(folders / "first", tmp_path / "copy")
    assert run(*words, "--features", tmp_path / "copy") == 2
    assert "whose weights are those of" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("new_teachers")
def test_an_encoder_by_name_does_not_judge_its_own_training():
    options = tiny("drifting", "digits", steps=1, encoder="efficientnet-lite0", cache_features=0)
    taught = start_run("drifting", "digits", options)
    list(taught.updates())
    with pytest.raises(ConfigError, match="cannot judge its own training"):
        evaluate_runs([taught], repeats=1, features="efficientnet-lite0")


def test_what_has_no_features_is_refused(folders, tmp_path, capsys):
    assert run("evaluate", folders / "pixels", "--features", "resnet") == 2
    assert "no encoder 'resnet'" in capsys.readouterr().err
    assert run("evaluate", folders / "pixels", "--features", folders / "taught") == 2
    assert "trains no encoder" in capsys.readouterr().err
    assert run("evaluate", folders / "first", "--features", "efficientnet-lite0") == 2
    assert "leave it out" in capsys.readouterr().err
    points = start_run("drifting", "8gaussians", small(tiny("drifting")))
    with pytest.raises(ConfigError, match="needs images"):
        evaluate_runs([points], repeats=1, features="efficientnet-lite0")
    assert open_encoder("efficientnet-lite0", start_run("drifting", "digits", tiny("drifting", "digits")).data).weights
