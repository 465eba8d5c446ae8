"""The drifting recipe: guidance as an input, positives from a queue, an encoder, and what the display shows."""

import importlib.util
import math
from pathlib import Path

import attrs
import pytest
import torch
from onestep_adapters.recipes import METHODS, open_problem
from onestep_adapters.recipes.drift_fields import FIELDS, named_field
from onestep_adapters.recipes.drift_monitors import EVERY, DriftMonitors
from onestep_adapters.recipes.drifting import Drifting, Guidance, Queue
from onestep_adapters.recipes.options import Network, Training
from onestep_adapters.recipes.runs import open_run, start_run

from onestep_adapters.cli import main
from onestep_adapters.encoders import RandomConvolutions, joined, pixels
from onestep_core import feature_normalized, mean_shift_field, released_drift
from onestep_core.errors import ConfigError

TINY = Network("mlp", width=8, depth=1)


def recipe(steps=3, **changes):
    return Drifting(Training(steps=steps, batch=40, checkpoint_every=2), TINY, **{"positives": 5, **changes})


def trained(data="digits", folder=None, **changes):
    run = start_run("drifting", data, recipe(**changes))
    return run, list(run.updates(folder))


def samples_of(run, labels=None):
    return run.samples(20, generator=torch.Generator().manual_seed(0), labels=labels)[0]


# Guidance.


def test_the_guidance_scale_is_an_input_at_sampling():
    run, records = trained(steps=6, guidance=Guidance(largest_alpha=4.0, unguided=0.0, unconditional=6))
    assert "deficit" in records[0].logs
    noise, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    unsaid, plain, strong = (
        r.recipe.generate(run.state.network, noise, labels) for r in (run, run.guided(1.0), run.guided(4.0))
    )
    assert torch.equal(unsaid, plain), "without a word, no guidance"
    assert not torch.equal(plain, strong)
    assert run.guided(4.0).state is run.state
    with pytest.raises(ConfigError, match=r"alpha = 5.0, largest_alpha = 4.0"):
        run.guided(5.0)


def test_the_scale_reaches_the_network_on_a_logarithmic_axis():
    guidance = Guidance(largest_alpha=4.0)
    torch.testing.assert_close(guidance.as_time(torch.tensor([1.0, 2.0, 4.0])), torch.tensor([0.0, 0.5, 1.0]))


def test_scales_and_unconditional_negatives_enter_the_update():
    """Unconditional negatives of weight (alpha - 1)(N - 1)/N_unc enter the update: another loss than without."""
    changes = {"steps": 1, "guidance": Guidance(largest_alpha=4.0, unguided=1.0, unconditional=6)}
    _, (plain,) = trained(**changes)
    changes["guidance"] = attrs.evolve(changes["guidance"], unguided=0.0)
    _, (guided,) = trained(**changes)
    assert guided.loss != plain.loss
    _, (other,) = trained(steps=1, guidance=attrs.evolve(changes["guidance"], alpha_power=0.0))
    assert other.loss != guided.loss


def test_runs_without_a_scale_say_so():
    run, _ = trained("8gaussians")
    with pytest.raises(ConfigError, match=r"largest_alpha = 1\.0"):
        run.guided(2.0)
    meanflow = start_run("meanflow", "8gaussians")
    with pytest.raises(ConfigError, match="meanflow takes no guidance scale"):
        meanflow.guided(2.0)
    with pytest.raises(ConfigError, match="8gaussians has none"):
        start_run("drifting", "8gaussians", recipe(guidance=Guidance(largest_alpha=2.0)))


# The queue.


def test_a_run_with_a_queue_resumes_to_the_bit(tmp_path):
    changes = {
        "steps": 5,
        "queue": Queue(queue_size=8, queue_pushes=30),
        "guidance": Guidance(largest_alpha=2.0, unconditional=3),
    }
    whole, _ = trained(**changes)
    run = start_run("drifting", "digits", recipe(**changes))
    for record in run.updates(tmp_path):
        if record.step == 3:
            break
    resumed = open_run(tmp_path)
    assert resumed.state.step == 2
    list(resumed.updates(tmp_path))
    for part in ("network", "ema", "memory"):
        torch.testing.assert_close(
            getattr(resumed.state, part).state_dict(), getattr(whole.state, part).state_dict(), rtol=0, atol=0
        )


def test_positives_of_a_queue_are_training_images_of_their_class():
    run, _ = trained(steps=2, queue=Queue(queue_size=20, queue_pushes=50))
    problem, queue = run.problem, run.state.memory
    assert int(queue.counts.min()) >= 5
    images, labels = problem._images, problem._labels  # type: ignore[attr-defined]
    found = problem.finish(queue.positives(5, generator=torch.Generator().manual_seed(0)))
    for k, image in enumerate(found):
        assert k // 5 in labels[(images == image).flatten(1).all(1)]


def test_data_without_classes_have_one_queue():
    run, _ = trained("8gaussians", queue=Queue(queue_size=20, queue_pushes=10))
    assert run.state.memory.counts.tolist() == [20]


# Features.


def test_random_convolutions_are_frozen_and_belong_to_their_generator():
    one, same, other = (RandomConvolutions(1, width=4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    features = one(x)
    for name, feature in features.items():
        assert torch.equal(feature, same(x)[name])
        assert not torch.equal(feature, other(x)[name])
        assert feature.shape[0] == 3
        assert feature.ndim == 3
    sum(f.square().sum() for f in features.values()).backward()
    assert x.grad is not None
    assert not any(p.requires_grad for p in one.parameters())
    flat = one(torch.zeros(2, 1, 8, 8, requires_grad=True))
    (gradient,) = torch.autograd.grad(sum(f.sum() for f in flat.values()), list(flat.values())[:1], allow_unused=True)
    assert all(f.isfinite().all() for f in (*flat.values(), gradient))
    with pytest.raises(ConfigError, match=r"expected \[batch, 1, height, width\]"):
        one(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="depth = 0"):
        RandomConvolutions(1, depth=0)


def test_moments_are_those_of_the_locations():
    features = RandomConvolutions(2, width=3, depth=1)(torch.randn(4, 2, 6, 6))
    local = features["stage_1"]
    expected = torch.cat([local.mean(1), local.std(1, correction=0)], 1)[:, None]
    torch.testing.assert_close(features["moments_1"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(local.square().mean(2), torch.ones(4, 9), rtol=1e-2, atol=1e-2)


def test_joined_encoders_do_not_hide_one_another():
    with pytest.raises(ConfigError, match=r"called \['pixels'\]"):
        joined(pixels, pixels)(torch.zeros(2, 1, 8, 8))


def test_an_encoder_needs_images_and_relative_temperatures():
    with pytest.raises(ConfigError, match="set relative"):
        recipe(encoder="random")
    with pytest.raises(ConfigError, match="needs images"):
        trained("8gaussians", encoder="random", relative=True)
    with pytest.raises(ConfigError, match="cannot give 5 positives"):
        recipe(queue=Queue(queue_size=4))


@pytest.mark.parametrize("field", [*FIELDS, "released"])
def test_every_field_trains_on_pixels_and_on_features(field):
    for encoder in ("pixels", "random"):
        run, records = trained(steps=2, field=field, relative=True, encoder=encoder, temperatures=(0.1, 0.5))
        assert all(record.loss > 0 for record in records)
        assert {"drift 0.1", "drift 0.5"} <= records[-1].logs.keys()
        assert samples_of(run).isfinite().all()


def test_named_fields_are_the_core_s():
    x, y = torch.randn(6, 3), torch.randn(7, 3)

    def shift(length):
        return lambda *sets: mean_shift_field(*sets, kernel=lambda a, b: -torch.cdist(a, b) / (0.3 * length))

    mine, theirs = named_field("mean-shift", (0.3,), relative=True, gain=1.0), feature_normalized(shift)
    torch.testing.assert_close(mine(x, y).field, theirs(x, y).field, rtol=1e-4, atol=1e-5)
    twice = named_field("released", (0.2,), relative=False, gain=2.0)(x, y).field
    torch.testing.assert_close(twice, 2 * released_drift(x, y, temperatures=(0.2,)).field)


# Monitors.


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("locations", [1, 4])
def test_monitors_measure_what_an_update_did(relative, locations):
    """Samples that then move by half of the displacement, in its own units and feature by feature."""
    problem = open_problem("digits")
    g = torch.Generator().manual_seed(0)
    groups, features = 2, {"a": torch.randn(12, locations, 3, generator=g)}
    monitors = DriftMonitors(problem, (0.5,), seed=0, relative=relative)
    field = monitors.watched("a", named_field("mean-shift", (0.5,), relative=relative, gain=1.0))
    cloud = features["a"].unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    drift = field(cloud, torch.randn(groups * locations, 9, 3, generator=g))
    unit = cloud.norm() / drift.samples.norm()
    moved = 0.5 * unit * drift.field
    moved = moved.unflatten(0, (groups, locations)).transpose(1, 2).flatten(0, 1)
    images = torch.randn(20, 1, 8, 8, generator=g)
    options = {"temperature": 0.5, "alpha": None, "again": lambda: {"a": features["a"] + moved}}
    first = monitors.logs(0, images, images, **options)
    assert {"energy", "felt", "saturated"} <= first.keys()
    assert "modes" not in first
    assert 1 <= float(first["felt"]) <= 9
    second = monitors.logs(1, images, images, **options)
    assert float(second["cosine"]) == pytest.approx(1.0, abs=1e-4)
    assert float(second["length"]) == pytest.approx(0.5, abs=1e-4)
    assert "cosine" not in monitors.logs(2, images, images, **options)


def test_the_spread_is_that_within_a_class():
    """Classes that differ from one another, each collapsed to a point."""
    monitors = DriftMonitors(open_problem("digits"), (0.5,), seed=0, relative=False)
    monitors.watched("a", named_field("mean-shift", (0.5,), relative=False, gain=1.0))(*torch.randn(2, 4, 3))
    real = torch.randn(40, 1, 8, 8) + torch.arange(10.0).repeat_interleave(4)[:, None, None, None]
    options = {"temperature": 0.5, "alpha": None, "again": dict}
    means = real.unflatten(0, (10, 4)).mean(1).repeat_interleave(4, 0)
    halved = (real + means) / 2
    found = [float(monitors.logs(1, x, real, **options)["spread"]) for x in (means, halved, real)]
    assert found == pytest.approx([0.0, 0.5, 1.0], abs=1e-4)


def test_a_training_logs_its_monitors_and_they_are_affordable():
    _, records = trained("unequal", steps=EVERY + 2)
    assert records[0].logs.keys() >= {"energy", "modes", "felt", "saturated", "spread", "drift 1"}
    assert records[1].logs.keys() >= {"cosine", "length"}
    assert all(math.isfinite(number) for record in records for number in record.logs.values())
    assert records[2].logs.keys() == {"spread", "drift 1"}
    assert records[EVERY].logs["energy"] < records[0].logs["energy"]
    assert set().union(*(record.logs for record in records)) <= set(recipe().monitors)


def test_held_out_data_are_not_training_data():
    problem = open_problem("digits")
    held_out = problem.finish(problem.held_out(1000, torch.Generator().manual_seed(0)))
    assert len(held_out) == 350
    images = problem._images  # type: ignore[attr-defined]
    # Some digits occur twice in the source; nearly none does.
    assert sum(bool((images == image).flatten(1).all(1).any()) for image in held_out) < 4


# The examples.


def example(name):
    source = Path(__file__).parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_sample_feels_sees_the_collapse_first(tmp_path):
    collapse = example("drifting_collapse")
    results = {name: collapse.train(name, steps=45) for name in collapse.RUNS}
    found = {name: collapse.alarms(result.numbers) for name, result in results.items()}
    first, *others = found["released"].values()
    assert first is not None
    assert others == [None, None, None]
    assert set(found["mean-shift"].values()) == {None}
    collapse.draw_picture(results, str(tmp_path / "collapse.png"))
    assert (tmp_path / "collapse.png").stat().st_size > 10_000


def test_guided_digits_are_drawn(tmp_path):
    digits = example("drifting_digits")
    runs = {encoder: digits.train(encoder, steps=2) for encoder in ("pixels", "random")}
    drawn = {name: digits.samples(run, each=1) for name, run in runs.items()}
    assert all(images.shape == (10, 1, 8, 8) for scales in drawn.values() for images in scales.values())
    digits.draw_picture(drawn, str(tmp_path / "digits.png"))
    assert (tmp_path / "digits.png").stat().st_size > 5_000


# The command line.


def test_the_display_shows_monitors_in_place_of_the_loss(tmp_path, capsys):
    small = ["--steps", "2", "--width", "8", "--depth", "1", "--batch", "20", "--positives", "5"]
    assert main(["train", "drifting", "--data", "unequal", "--folder", str(tmp_path / "a"), *small]) == 0
    shown = capsys.readouterr().out
    assert "energy" in shown
    assert "drift 0.4" in shown
    assert "loss" not in shown
    assert main(["train", "meanflow", "--data", "unequal", "--folder", str(tmp_path / "b"), *small[:-2]]) == 0
    assert "loss" in capsys.readouterr().out


def test_alpha_on_the_command_line(tmp_path, capsys):
    run = str(tmp_path / "guided")
    small = ["--steps", "2", "--backbone", "mlp", "--width", "8", "--depth", "1", "--batch", "20", "--positives", "5"]
    assert main(["train", "drifting", "--folder", run, *small, "--largest-alpha", "3", "--queue-size", "10"]) == 0
    assert main(["sample", run, "--count", "20", "--alpha", "2"]) == 0
    assert (tmp_path / "guided" / "samples.npz").exists()
    assert main(["sample", run, "--count", "20", "--alpha", "4"]) == 2
    assert "largest_alpha = 3.0" in capsys.readouterr().err


def test_presets_are_as_they_were():
    """Options that are new leave the table's presets to their old meaning."""
    for name in ("drifting", "drifting-released"):
        for preset in (METHODS[name].digits, METHODS[name].toys):
            assert isinstance(preset, Drifting)
            assert not preset.guidance.learnt
            assert preset.queue.queue_size == 0
            assert preset.encoder == "pixels"
