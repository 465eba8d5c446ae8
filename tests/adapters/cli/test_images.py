"""The command line with images of one's own: show them, train, resume, sample, evaluate."""

import shutil

import numpy as np
import pytest
from PIL import Image

from onestep_adapters.cli import main
from onestep_adapters.cli.images import add_image_options
from onestep_adapters.cli.parsing import _field_docstrings
from onestep_adapters.data import ImageOptions
from onestep_adapters.methods import METHODS
from onestep_adapters.methods.registry import ENCODERS
from onestep_adapters.training import read_config, read_run
from tests.adapters.data.images.made import mnist_like, noise, photos, write
from tests.test_pages import options_of

QUICK = ["--steps", "3", "--batch", "16", "--width", "8", "--depth", "1", "--coupling", "independent"]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def told(capsys):
    found = capsys.readouterr()
    return " ".join(found.out.split()), " ".join(found.err.split())


def test_data_are_shown(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 60, size=6)
    write(folder, "cat/wide.jpg", noise(6)[:3])
    (folder / "dog" / "bad.png").write_bytes(b"broken")
    assert run("data", f"folder:{folder}", "--size", 5, "--picture", tmp_path / "sheet.png") == 0
    out, _ = told(capsys)
    for text in (
        f"data folder:{folder}",
        "name photos-5x5x3-",
        "sizes 6 x 6 (60), 6 x 3 (1)",
        "formats PNG (60), JPEG (1)",
        "images 61: train (",
        "classes 2: cat (31), dog (30)",
        f"cache {tmp_path / 'cache'}",
        "1 files cannot be read",
        "dog/bad.png: not an image",
        f"picture {tmp_path / 'sheet.png'}",
    ):
        assert text in out, text
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert (np.ptp(picture, axis=2) > 50).any()


@pytest.mark.parametrize("words", [("photos",), ("photos", "--no-classes")])
def test_a_path_is_enough(words, tmp_path, capsys):
    photos(tmp_path / "photos", 40, size=6)
    mnist_like(tmp_path / "digits")
    assert run("data", *words) == 0
    assert ("classes none" if len(words) > 1 else "classes 2: cat") in told(capsys)[0]
    assert len(list(tmp_path.glob("data-photos-*.png"))) == 1
    assert run("data", "digits/train-images-idx3-ubyte") == 0
    assert "formats IDX (60)" in told(capsys)[0]


def test_toys_and_digits_are_shown_too(tmp_path, capsys):
    assert run("data", "8gaussians") == run("data", "digits") == 0
    out, _ = told(capsys)
    assert "samples 2 (points)" in out
    assert "images 1,797: train (1,097), validation (350), test (350)" in out
    assert (tmp_path / "data-8gaussians.png").is_file()
    assert (tmp_path / "data-digits.png").is_file()


def test_train_resume_sample_and_evaluate(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 150, size=6)
    assert run("train", "meanflow", "--data", f"folder:{folder}", "--channels", 1, "--flip", *QUICK) == 0
    place = next((tmp_path / "runs").glob("meanflow-photos-6x6x1-*"))
    assert "decoding images" in told(capsys)[0]
    assert read_config(place)["source"] == {"name": f"folder:{folder}", "size": 6, "channels": 1, "flip": True}
    assert run("train", "meanflow", "--folder", place, "--resume") == 0
    assert "is complete: 3 of 3" in told(capsys)[0]
    again = ("train", "meanflow", "--data", f"folder:{folder}", "--channels", 1, "--flip", "--resume")
    assert run(*again) == 0
    assert "is complete: 3 of 3" in told(capsys)[0]
    assert run("sample", place, "--count", 20) == 0
    assert np.load(place / "samples.npz")["samples"].shape == (20, 1, 6, 6)
    assert (place / "samples.png").is_file()
    assert run("evaluate", place, "--repeats", 1, "--split", "validation") == 0
    assert (place / "report.md").is_file()


def test_a_training_goes_on_with_images_in_a_new_place(tmp_path, capsys):
    folder, place = photos(tmp_path / "photos", 150, size=6), tmp_path / "run"
    words = ("train", "flow-matching", "--folder", place)
    assert run(*words, "--data", f"folder:{folder}", *QUICK) == 0
    moved = tmp_path / "new" / "of another name"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    capsys.readouterr()
    for command in ((*words, "--resume"), ("sample", place), ("evaluate", place)):
        assert run(*command) == 2
        error = told(capsys)[1]
        assert "cannot be opened" in error
        assert "--data folder:PATH" in error
    assert run(*words, "--resume", "--data", f"folder:{moved}") == 0
    assert run("sample", place, "--count", 5, "--data", f"folder:{moved}") == 0
    assert run("evaluate", place, "--repeats", 1, "--data", f"folder:{moved}") == 0
    capsys.readouterr()
    write(moved, "cat/new.png", noise(6, seed=999))
    assert run("sample", place, "--data", f"folder:{moved}") == 2
    assert "files were added, removed or changed" in told(capsys)[1]


def test_an_encoder_is_trained_on_three_images_and_says_what_is_next(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 3, size=6, classes=())
    words = ("--steps", "2", "--batch", "4", "--width", "8", "--depth", "1")
    assert run("train", "simclr", "--data", f"folder:{folder}", "--folder", tmp_path / "run", *words) == 0
    said = told(capsys)[0]
    assert "Next: onestep train drifting --encoder" in said
    assert "onestep evaluate" not in said
    assert run("evaluate", tmp_path / "run") == 2
    assert "sub-folders, or a table with --labels" in told(capsys)[1]


def test_a_contact_sheet_of_large_images_is_small(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = photos(tmp_path / "photos", 30, size=6)
    assert run("data", f"folder:{folder}", "--size", "1500") == 0
    (sheet,) = tmp_path.glob("data-*.png")
    assert sheet.stat().st_size < 10_000_000


def test_a_wrong_folder_of_fashion_mnist_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ONESTEP_FASHION_MNIST", str(tmp_path / "nothing"))
    assert run("data", "fashion-mnist") == 2
    error = told(capsys)[1]
    assert "ONESTEP_FASHION_MNIST is" in error
    assert "apt-get install dataset-fashion-mnist" in error


def test_other_options_than_the_saved_ones_are_refused(tmp_path, capsys):
    folder, place = photos(tmp_path / "photos", 60, size=6), tmp_path / "run"
    assert run("train", "flow-matching", "--folder", place, "--data", f"folder:{folder}", *QUICK) == 0
    assert run("train", "flow-matching", "--folder", place, "--resume", "--size", 4) == 2
    assert "'photos-4x4x3-" in told(capsys)[1]
    assert run("train", "flow-matching", "--folder", place, "--resume", "--data", "digits") == 2
    assert "and you want flow-matching on digits" in told(capsys)[1]
    assert read_run(place).step == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data", "8gaussians", "--size", "8"), "--size with the data '8gaussians': these options are for images"),
        (("--data", "digits", "--flip", "--no-crop"), "--crop, --flip with the data 'digits'"),
        (("--data", "folder:nowhere"), "nowhere does not exist: expected a folder of images"),
        (("--data", "photos:here"), "no source of images is called 'photos'"),
        (("--data", "folder:p", "--channels", "2"), "channels = 2: expected 1 (grey) or 3 (colour)"),
        (("--data", "folder:p", "--size", "big"), "--size"),
        (("--data", "folder:p"), "1 of 1 images"),
        (("--data", "p"), "'p' is a folder or a file: to open it as data, write folder:p"),
        (("--data", "fashion-mnits"), "did you mean 'fashion-mnist'"),
    ],
)
def test_a_mistake_gets_one_clear_line(words, expected, tmp_path, capsys):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"broken")
    assert run("train", "meanflow", *words) == 2
    error = told(capsys)[1]
    assert expected in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_corrupt_files_are_left_out_on_request(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 60, size=6)
    (folder / "cat" / "bad.png").write_bytes(b"broken")
    words = ("train", "drifting", "--data", f"folder:{folder}", "--folder", tmp_path / "run", *QUICK[:-2])
    assert run(*words, "--positives", 8) == 2
    assert "cat/bad.png" in told(capsys)[1]
    assert run(*words, "--positives", 8, "--skip-corrupt") == 0
    assert run("train", "drifting", "--folder", tmp_path / "run", "--resume") == 0


def test_the_help_lists_the_options_of_images(capsys):
    assert run("train", "--help") == 0
    text = capsys.readouterr().out
    options = [f"--{name.replace('_', '-')}" for name in _field_docstrings(ImageOptions)]
    assert all(option in text or option.replace("--", "--no-") in text for option in [*options, "--autoencoder"])
    assert "folder:PATH" in text


def test_no_method_has_an_option_of_images():
    """They would take it away: those of images are read first."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False)
    add_image_options(parser)
    taken = set(parser._option_string_actions)
    for name, preset in {**METHODS, **ENCODERS}.items():
        kinds = {type(preset.images), type(preset.points)}
        assert not taken & {option for kind in kinds for option in options_of(kind)}, name
