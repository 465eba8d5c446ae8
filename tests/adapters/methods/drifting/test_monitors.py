"""The monitors of drifting measure what an update did, and the display shows them."""

import math

import pytest
import torch

from onestep_adapters.cli import main
from onestep_adapters.data import open_dataset
from onestep_adapters.methods.drifting.extras import Guidance, Queue
from onestep_adapters.methods.drifting.fields import named_field
from onestep_adapters.methods.drifting.monitors import (
    COSINE,
    EFFECTIVE,
    ENERGY,
    EVERY,
    LENGTH,
    MODES,
    SINGLE,
    SPREAD,
    DriftMonitors,
)
from onestep_adapters.runs import open_run, start_run
from onestep_adapters.training import save_checkpoint
from tests.adapters.methods.drifting.test_drifting import options, trained
from tests.adapters.tiny import logged, seeded, trained_to


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("locations", [1, 4])
def test_monitors_measure_what_an_update_did(relative, locations):
    """Samples that then move by half of the displacement, in its own units and feature by feature."""
    g = seeded()
    groups, features = 2, {"a": torch.randn(12, locations, 3, generator=g)}
    monitors = DriftMonitors(open_dataset("digits"), (0.5,), seed=0, relative=relative)
    field = monitors.watched("a", named_field("mean-shift", (0.5,), relative=relative, scale=1.0))
    cloud = features["a"].unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    drift = field(cloud, torch.randn(groups * locations, 9, 3, generator=g))
    unit = cloud.norm() / drift.samples.norm()
    moved = 0.5 * unit * drift.field
    moved = moved.unflatten(0, (groups, locations)).transpose(1, 2).flatten(0, 1)
    images = torch.randn(20, 1, 8, 8, generator=g)
    keywords = {"temperature": 0.5, "alpha": None, "noise": torch.randn(1, generator=g), "kept": {}}

    def again(noise, alpha):
        assert torch.equal(noise, keywords["noise"])
        return {"a": features["a"] + moved}

    keywords["again"] = again
    first = monitors.logs(0, images, images, **keywords)
    assert {ENERGY, EFFECTIVE, SINGLE} <= first.keys()
    assert MODES not in first
    assert 1 <= float(first[EFFECTIVE]) <= 9
    second = monitors.logs(1, images, images, **keywords)
    assert float(second[COSINE]) == pytest.approx(1.0, abs=1e-4)
    assert float(second[LENGTH]) == pytest.approx(0.5, abs=1e-4)
    assert COSINE not in monitors.logs(2, images, images, **keywords)


def test_the_spread_is_that_within_a_class():
    """Classes that differ from one another, each collapsed to a point."""
    monitors = DriftMonitors(open_dataset("digits"), (0.5,), seed=0, relative=False)
    monitors.watched("a", named_field("mean-shift", (0.5,), relative=False, scale=1.0))(*torch.randn(2, 4, 3))
    real = torch.randn(40, 1, 8, 8) + torch.arange(10.0).repeat_interleave(4)[:, None, None, None]
    keywords = {"temperature": 0.5, "alpha": None, "noise": torch.zeros(1), "again": dict, "kept": {}}
    means = real.unflatten(0, (10, 4)).mean(1).repeat_interleave(4, 0)
    halved = (real + means) / 2
    found = [float(monitors.logs(1, x, real, **keywords)[SPREAD]) for x in (means, halved, real)]
    assert found == pytest.approx([0.0, 0.5, 1.0], abs=1e-4)


def test_a_training_logs_its_monitors_and_they_are_affordable():
    _, records = trained("unequal", steps=EVERY + 2)
    assert records[0].logs.keys() >= {ENERGY, MODES, EFFECTIVE, SINGLE, SPREAD, "drift norm 1"}
    assert records[1].logs.keys() >= {COSINE, LENGTH}
    assert all(math.isfinite(number) for record in records for number in record.logs.values())
    assert records[2].logs.keys() == {SPREAD, "drift norm 1"}
    assert records[EVERY].logs[ENERGY] < records[0].logs[ENERGY]
    assert set().union(*(record.logs for record in records)) <= set(options().monitors)


@pytest.mark.parametrize("cut", [1, EVERY + 1])
@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ("8gaussians", {}),
        ("digits", {"encoder": "random", "relative_temperatures": True, "temperatures": (0.1, 0.5)}),
        ("digits", {"guidance": Guidance(max_alpha=4.0, unconditional_samples=6), "queue": Queue(queue_size=8)}),
    ],
    ids=["points", "features", "guided"],
)
def test_monitors_are_the_same_whether_or_not_a_training_was_stopped(data, changes, cut, tmp_path):
    """Stopped between an update whose effect is measured and the next one, which measures it."""
    made = options(steps=cut + 2, **changes)
    whole = start_run("drifting", data, made)
    list(whole.updates())
    stopped = trained_to(start_run("drifting", data, made), cut)
    save_checkpoint(tmp_path, stopped.state)
    resumed = open_run(tmp_path)
    assert resumed.state.step == cut
    list(resumed.updates())
    assert logged(resumed.state) == logged(whole.state)
    assert {COSINE, LENGTH} <= logged(resumed.state)[cut]["logs"].keys()
    assert resumed.state.kept == {}


def test_held_out_data_are_not_training_data():
    data = open_dataset("digits")
    held_out = data.finish(data.held_out(1000, seeded()))
    assert len(held_out) == 350
    images, _ = data.split("train")
    # Some digits occur twice in the source; nearly none does.
    assert sum(bool((images == image).flatten(1).all(1).any()) for image in held_out) < 4


# The command line.


def test_the_display_shows_monitors_in_place_of_the_loss(tmp_path, capsys):
    small = ["--steps", "2", "--width", "8", "--depth", "1", "--batch", "20", "--positives", "5"]
    assert main(["train", "drifting", "--data", "unequal", "--folder", str(tmp_path / "a"), *small]) == 0
    shown = capsys.readouterr().out
    assert ENERGY in shown
    assert "drift norm 0.4" in shown
    assert "loss" not in shown
    assert main(["train", "meanflow", "--data", "unequal", "--folder", str(tmp_path / "b"), *small[:-2]]) == 0
    assert "loss" in capsys.readouterr().out


def test_alpha_on_the_command_line(tmp_path, capsys):
    run = str(tmp_path / "guided")
    small = ["--steps", "2", "--backbone", "mlp", "--width", "8", "--depth", "1", "--batch", "20", "--positives", "5"]
    assert main(["train", "drifting", "--folder", run, *small, "--max-alpha", "3", "--queue-size", "10"]) == 0
    assert main(["sample", run, "--count", "20", "--alpha", "2"]) == 0
    assert (tmp_path / "guided" / "samples.npz").exists()
    assert main(["sample", run, "--count", "20", "--alpha", "4"]) == 2
    assert "max_alpha = 3.0" in capsys.readouterr().err
