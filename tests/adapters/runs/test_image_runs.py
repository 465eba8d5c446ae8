"""Runs on images of one's own: saved with the place of the images, opened again from there or from a new place."""

import shutil

import attrs
import pytest
import torch

from onestep_adapters.data import ImageDataset, open_dataset
from onestep_adapters.evaluation import evaluate_runs, write_report
from onestep_adapters.evaluation.judges import image_splits
from onestep_adapters.evaluation.pictures import draw_data, draw_runs
from onestep_adapters.evaluation.watching import validation_distance
from onestep_adapters.methods import Network
from onestep_adapters.runs import open_run, resume_or_start, start_run
from onestep_adapters.runs.teachers import cache_key
from onestep_adapters.training import read_config, save_checkpoint
from onestep_core.errors import ConfigError
from tests.adapters.data.images.made import noise, photos, write
from tests.adapters.tiny import assert_same_weights, drawn, tiny, trained_to

pytestmark = pytest.mark.usefixtures("new_teachers")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "cache"))


def trained(tmp_path, method="meanflow", *, stop=None, **keywords):
    """A run on a folder of images, saved; and what it was trained on."""
    folder = photos(tmp_path / "photos", 60, size=6, classes=keywords.pop("folders", ("cat", "dog")))
    data = open_dataset(f"folder:{folder}", **keywords)
    run = start_run(method, data, tiny(method, data, steps=4))
    if stop is None:
        list(run.updates(tmp_path / "run"))
    else:
        trained_to(run, stop, tmp_path / "run")
    return run, folder


def test_the_source_is_saved_and_opened_again(tmp_path):
    run, folder = trained(tmp_path, flip=True, channels=1)
    config = read_config(tmp_path / "run")
    assert config["data"] == run.data.name
    assert config["source"] == {"name": f"folder:{folder}", "size": 6, "channels": 1, "flip": True}
    opened = open_run(tmp_path / "run")
    assert (opened.data.name, opened.data.flip, opened.data.shape) == (run.data.name, True, (1, 6, 6))
    assert torch.equal(drawn(opened)[0], drawn(run)[0])


def test_the_name_of_a_place_starts_a_run(tmp_path):
    folder = photos(tmp_path / "photos", 60, size=6)
    run = start_run("drifting", f"folder:{folder}")
    assert run.data.name == open_dataset(f"folder:{folder}").name


def test_a_resumed_run_is_bit_identical_also_with_renamed_files(tmp_path):
    cut, folder = trained(tmp_path, stop=3)
    whole = start_run("meanflow", cut.data, cut.options)
    list(whole.updates())
    for k in range(0, 60, 2):
        (folder / "cat" / f"{k:03}.png").rename(folder / "cat" / f"x{99 - k}.png")
    resumed = open_run(tmp_path / "run")
    assert resumed.state.step == 2
    list(resumed.updates(tmp_path / "run"))
    assert_same_weights(resumed.state, whole.state)


def test_images_that_moved_are_asked_for_and_found_in_their_new_place(tmp_path):
    run, folder = trained(tmp_path)
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    with pytest.raises(
        ConfigError, match=r"photos-6x6x3-\w+', which cannot be opened: .*photos does not exist.*new place"
    ):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run", data=f"folder:{moved}").data.name == run.data.name
    assert open_run(tmp_path / "run", data=run.data).data is run.data


def test_images_that_changed_are_refused(tmp_path):
    run, folder = trained(tmp_path)
    write(folder, "cat/new.png", noise(6, seed=777))
    with pytest.raises(
        ConfigError, match=rf"is a run on the images '{run.data.name}'.*files were added, removed or ch"
    ):
        open_run(tmp_path / "run")
    other = photos(tmp_path / "other", 30, size=6, seed=5)
    with pytest.raises(ConfigError, match=r"other-6x6x3-.* now: files were added"):
        open_run(tmp_path / "run", data=f"folder:{other}")
    (folder / "cat" / "new.png").unlink()
    assert open_run(tmp_path / "run").data.name == run.data.name


def test_an_option_of_a_later_version_is_named(tmp_path):
    run, folder = trained(tmp_path)
    run.state.config = {**run.state.config, "source": {"name": f"folder:{folder}", "sharpness": 3}}
    again = tmp_path / "again"
    save_checkpoint(again, run.state)
    with pytest.raises(ConfigError, match=r"does not know: .*sharpness"):
        open_run(again)


def test_a_run_on_arrays_has_no_source(tmp_path):
    data = ImageDataset(
        "mine",
        torch.from_numpy(noise(6)).permute(2, 0, 1)[None].repeat(40, 1, 1, 1)
        + torch.arange(40, dtype=torch.uint8)[:, None, None, None],
    )
    run = start_run("drifting", data, tiny("drifting", data))
    list(run.updates(tmp_path / "run"))
    assert "source" not in read_config(tmp_path / "run")
    with pytest.raises(ConfigError, match="'mine', an object of your own"):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run", data=data).finished


def test_a_teacher_is_found_again_wherever_the_images_are(tmp_path, new_teachers):
    run, folder = trained(tmp_path, "reflow")
    assert [path.name[: len(run.data.name)] for path in new_teachers.glob("photos-*")] == [run.data.name]
    config = read_config(next(new_teachers.glob("photos-*")))
    assert config["source"]["name"] == f"folder:{folder}"
    assert cache_key(config) == cache_key({**config, "source": {"name": "folder:elsewhere"}})
    resumed = resume_or_start(tmp_path / "run", "reflow", run.data, run.options, resume=True)
    assert resumed.finished


@pytest.mark.parametrize("folders", [("cat", "dog"), ()])
def test_a_report_and_pictures_with_and_without_classes(folders, tmp_path):
    folder = photos(tmp_path / "photos", 150, size=6, classes=folders)
    data = open_dataset(f"folder:{folder}")
    run = start_run("flow-matching", data, attrs.evolve(tiny("flow-matching", data), sampling_steps=1))
    list(run.updates())
    report = evaluate_runs([run], split="validation", repeats=2)
    metrics = report.rows[0].metrics
    classed = {"energy_features", "frechet_features", "class_variation"}
    assert classed <= metrics.keys() if folders else not classed & metrics.keys()
    assert {"neighbour_accuracy", "density", "coverage", "energy_pixels", "nearest_training"} <= metrics.keys()
    assert len(report.verdicts["flow-matching"]) == (6 if folders else 4)
    text = write_report(tmp_path / "report", report)
    assert ("no classes" in text) == (not folders)
    assert ("## Classes" in text) == bool(folders)
    assert validation_distance(data)(run) > 0
    assert draw_data(data, tmp_path / "sheet.png").stat().st_size > 1000
    draw_runs({"flow-matching": run}).savefig(tmp_path / "runs.png")


def test_without_held_out_images_nothing_is_measured(tmp_path):
    rows = {"train": torch.arange(40), "validation": torch.arange(0), "test": torch.arange(0)}
    pixels = torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageDataset("few", pixels, rows=rows)
    run = start_run("drifting", data, tiny("drifting", data))
    with pytest.raises(ConfigError, match="few has no test split"):
        evaluate_runs([run])
    few = ImageDataset("few", pixels, rows={**rows, "test": torch.arange(5)})
    run = start_run("drifting", few, tiny("drifting", few))
    with pytest.raises(ConfigError, match="few has 5 test images: expected more than 5"):
        evaluate_runs([run])


def test_of_large_splits_a_stated_part_is_compared():
    pixels = torch.randint(256, (3000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageDataset("many", pixels)
    found = image_splits(data, "test")
    assert (len(found.train), len(found.held_out)) == (1365, data.counts["test"])
    small = ImageDataset("many", pixels[:, :1, :8, :8].repeat(2, 1, 1, 1))
    found = image_splits(small, "validation")
    assert small.counts["validation"] > 500
    assert len(found.train) == 2000
    assert len(found.held_out) == 500


def test_latents_are_trained_saved_and_opened_again(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    module = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, norm_num_groups=4,
    )  # fmt: skip
    module.save_pretrained(tmp_path / "vae")
    folder = photos(tmp_path / "photos", 150)
    data = open_dataset(f"folder:{folder}", autoencoder=str(tmp_path / "vae"))
    network = Network("conv", width=8, depth=1)
    run = start_run("drifting", data, tiny("drifting", data, network=network))
    list(run.updates(tmp_path / "run"))
    assert run.state.network.shape == (2, 4, 4)
    opened = open_run(tmp_path / "run")
    samples, _ = drawn(opened)
    assert samples.shape == (7, 3, 8, 8)
    assert torch.equal(samples, opened.data.images.finish(samples))
    assert torch.equal(samples, drawn(run)[0])
    assert "drifting" in [row.label for row in evaluate_runs([opened], repeats=2).rows]
