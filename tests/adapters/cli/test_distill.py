"""``onestep distill``, as people use it: a small pipeline of diffusers in, a pipeline of one step out."""

import subprocess
import sys

import attrs
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from PIL import Image

from onestep_adapters.backbones.diffusers import OneStepPipeline
from onestep_adapters.cli import main
from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation.measuring import cost_of
from onestep_adapters.runs import open_run, resume_or_start
from onestep_adapters.runs.pipelines import DISTILLING, distillation, pipeline_run
from onestep_core.errors import ConfigError
from tests.adapters.backbones.diffusers.small import labelled

QUICK = ["--steps", "2", "--batch", "10", "--checkpoint-every", "1"]
FEW = {"progressive": ["--first-student-steps", "2"]}
MATCHING = {"dmd", "dmd-paper", "dmd2", "dmd2-paper", "f-distill", "sid", "sid-paper", "rectified-meanflow"}
PAIRS = ["--pairs", "20", "--solver-steps", "1"]


def run(*words):
    return main([str(word) for word in words])


def unet(classes=10, seed=0):
    return labelled(8, (8, 8), 4, classes=classes, attention=False, seed=seed)


@pytest.fixture
def pipeline(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_from_a_pipeline_to_one_step(pipeline, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("distill", pipeline, "--method", "meanflow", "--data", "digits", "--folder", folder, *QUICK) == 0
    assert "a pipeline of one step" in capsys.readouterr().out
    one = OneStepPipeline.from_pretrained(folder / "pipeline")
    labels = torch.tensor([1, 2, 3])
    found = one(3, torch.Generator().manual_seed(1), output_type="pt", class_labels=labels).images
    opened = open_run(folder)
    expected, _ = opened.samples(3, generator=torch.Generator().manual_seed(1), labels=labels)
    # The run rounds to the digits' grey levels.
    assert float((found - (expected + 1) / 2).abs().max()) <= 0.5 / 16 + 1e-4
    code = (
        "import sys, torch\nfrom onestep_adapters.backbones.diffusers import OneStepPipeline\n"
        "pipe = OneStepPipeline.from_pretrained(sys.argv[1])\n"
        "labels = torch.tensor([1, 2, 3])\n"
        "images = pipe(3, torch.Generator().manual_seed(1), output_type='pt', class_labels=labels).images\n"
        "torch.save(images, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, folder / "pipeline", tmp_path / "there.pt"], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "there.pt"), found)


OFTEN = ("progressive", "consistency-distillation", "dmd2", "scm")
RARELY = [pytest.param(name, marks=pytest.mark.thorough) for name in DISTILLING if name not in ("meanflow", *OFTEN)]


@pytest.mark.parametrize("method", [*OFTEN, *RARELY])
def test_every_method_distils(pipeline, tmp_path, method, capsys):
    folder = tmp_path / "run"
    known = PAIRS if method in MATCHING else FEW.get(method, [])
    words = ["distill", pipeline, "--method", method, "--data", "digits", "--folder", folder, *QUICK, *known]
    assert run(*words) == 0, capsys.readouterr().err
    assert (folder / "pipeline" / "model_index.json").is_file()
    assert not list(folder.glob("*.partial"))


def test_without_data_the_pipeline_makes_them(pipeline, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["distill", pipeline, "--method", "consistency-distillation", "--folder", folder, "--samples", "40", *QUICK]
    # What a process leaves that is killed while it writes images, or the result.
    for name in ("images", "pipeline"):
        (folder / f"{name}.0123456789abcdef.partial" / "some").mkdir(parents=True)
    assert run(*words) == 0, capsys.readouterr().err
    made = sorted((folder / "images").rglob("*.png"))
    assert len(made) == 40
    assert len({file.parent.name for file in made}) == 10
    assert not list(folder.glob("*.partial"))
    with Image.open(made[0]) as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    assert open_run(folder).data.classes == 10
    # It is complete: the images stay, the pipeline is written again.
    assert run(*words, "--resume") == 0, capsys.readouterr().err
    assert sorted((folder / "images").rglob("*.png")) == made


def test_an_interrupted_distillation_goes_on(pipeline, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ["distill", pipeline, "--method", "meanflow", "--data", "digits", *QUICK[2:]]
    assert run(*words, "--folder", whole, "--steps", "4") == 0
    code = (
        "import sys\nfrom onestep_adapters.cli import main, train\n"
        "inner = train.progress\n"
        "def stop(updates, **words):\n"
        "    for k, update in enumerate(inner(updates, **words)):\n"
        "        yield update\n"
        "        if k == 1: raise SystemExit(9)\n"
        "train.progress = stop\nmain(sys.argv[1:])\n"
    )
    arguments = [*map(str, words), "--folder", str(parts), "--steps", "4"]
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 9
    assert not (parts / "pipeline").exists()
    assert run(*words, "--folder", parts, "--steps", "4", "--resume") == 0, capsys.readouterr().err
    networks = [open_run(folder).state.ema.state_dict() for folder in (whole, parts)]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected onestep distill PIPELINE --method M"),
        (["--method", "drifting"], "no method that distils is called 'drifting'"),
        (["--method", "dmd2", "--sampling-steps", "4", "--pairs-only-share", "0"], "4 evaluations for one sample"),
        (["--method", "meanflow", "--data", "8gaussians"], "makes samples of (1, 8, 8) with 10 classes"),
        (["--method", "meanflow", "--samples", "0"], "--samples 0"),
        (["--method", "meanflow", "--folder", ""], "--folder is empty"),
        (["--method", "meanflow", "--backbone", "conv"], "pretrained"),
    ],
)
def test_mistakes_have_one_line(pipeline, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in words or not words else ["--data", "digits"]
    assert run("distill", pipeline, *words, *data) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_help_and_mistakes_come_before_images_are_made(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run("distill", pipeline, "--method", "dmd2", "--help")
    assert stopped.value.code == 0
    assert "--fake-score-updates" in capsys.readouterr().out
    assert run("distill", pipeline, "--method", "progressive", "--first-student-steps", "3") == 2
    assert "power of two" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_pipeline_that_moved(pipeline, tmp_path, capsys):
    folder, there, data = tmp_path / "run", tmp_path / "there", open_dataset("digits")
    words = ["--method", "meanflow", "--data", "digits", "--folder", folder, *QUICK]
    name, options = distillation(str(pipeline), "meanflow", data)
    options = attrs.evolve(options, training=attrs.evolve(options.training, steps=2, batch=10, checkpoint_every=1))
    updates = resume_or_start(folder, name, data, options, resume=False).updates(folder)
    next(updates)
    del updates
    pipeline.rename(there)
    with pytest.raises(ConfigError, match=r"there is none any more: give its place, --pipeline PLACE"):
        open_run(folder)
    assert run("sample", folder, "--count", "4") == 2
    assert "onestep distill PLACE --resume continues" in capsys.readouterr().err
    assert run("sample", folder, "--count", "4", "--pipeline", there) == 0, capsys.readouterr().err
    assert not open_run(folder, pipeline=there).finished
    # Another pipeline, and the same weights with another scheduler, are not the one of the run.
    for name, model, scheduler in (("other", unet(seed=1), DDPMScheduler), ("odd", unet(), DDIMScheduler)):
        DDPMPipeline(model, scheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match="made from another pipeline"):
            open_run(folder, pipeline=tmp_path / name)
        assert run("distill", tmp_path / name, *words, "--resume") == 2
        assert "made from another pipeline" in capsys.readouterr().err
    assert run("distill", there, *words, "--resume") == 0, capsys.readouterr().err
    assert (folder / "pipeline" / "model_index.json").is_file()
    assert open_run(folder, pipeline=there).finished


@pytest.mark.thorough
def test_the_report_says_that_a_pipelines_budget_is_not_known(pipeline, tmp_path):
    folder, there = tmp_path / "run", tmp_path / "there"
    assert run("distill", pipeline, "--method", "meanflow", "--data", "digits", "--folder", folder, *QUICK) == 0
    pipeline.rename(there)
    words = ["--pipeline", there, "--baseline", there, "--repeats", "1", "--split", "validation"]
    assert run("evaluate", folder, *words) == 0
    report = (folder / "report.md").read_text()
    assert "| 6 + pretrained |" in report
    assert "| pipeline | 100 | not known |" in report
    assert "is not known and not counted" in report


def test_what_has_no_pipeline_has_no_place_for_one(tmp_path):
    folder = tmp_path / "toy"
    assert run("train", "flow-matching", "--data", "8gaussians", "--folder", folder, "--width", "8", *QUICK) == 0
    with pytest.raises(ConfigError, match="not made from a pipeline"):
        open_run(folder, pipeline=tmp_path)


def test_the_budget_of_a_pipeline_is_not_known(pipeline):
    cost = cost_of(pipeline_run(str(pipeline), open_dataset("digits"), steps=3))
    assert (cost.updates, cost.training_evaluations, cost.training_seconds) == (None, None, None)
    assert cost.caption == "training not known\n6 evaluations per sample"


def test_a_pipeline_without_classes_learns_from_data_with_classes(tmp_path, capsys):
    DDPMPipeline(unet(None), DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "plain")
    words = [
        "distill",
        tmp_path / "plain",
        "--method",
        "consistency-distillation",
        "--folder",
        tmp_path / "run",
        *QUICK,
    ]
    assert run(*words, "--data", "digits") == 0, capsys.readouterr().err
    assert "has no classes, so those of digits are left out" in capsys.readouterr().out
    found = open_run(tmp_path / "run")
    assert (found.data.name, found.data.classes) == ("digits-unlabelled", None)
    assert torch.equal(found.data.split("train").data, open_dataset("digits").split("train").data)
    for data in (["--data", "digits"], []):
        assert run(*words, *data, "--resume") == 0, capsys.readouterr().err
    assert pipeline_run(str(tmp_path / "plain"), found.data).data.classes is None


def test_an_adversary_without_a_time_is_refused(pipeline, tmp_path, capsys):
    assert "consistency-trajectory" in DISTILLING
    assert "consistency-trajectory-adversarial" not in DISTILLING
    words = [
        "distill",
        pipeline,
        "--method",
        "consistency-trajectory",
        "--data",
        "digits",
        "--folder",
        tmp_path / "run",
    ]
    assert run(*words, *QUICK, "--adversarial-weight", "0.3") == 2
    assert "--adversarial-weight 0" in capsys.readouterr().err


def test_another_method_cannot_resume(pipeline, tmp_path, capsys):
    words = ["distill", pipeline, "--data", "digits", "--folder", tmp_path / "run", *QUICK]
    assert run(*words, "--method", "meanflow") == 0
    assert run(*words, "--method", "scm", "--resume") == 2
    assert "holds a distillation by meanflow-distillation" in capsys.readouterr().err


def test_what_is_no_pipeline(tmp_path, capsys):
    assert run("distill", tmp_path, "--method", "meanflow") == 2
    assert "no pipeline of diffusers" in capsys.readouterr().err
    assert run("distill", "--method", "meanflow") == 2
    assert "expected onestep distill PIPELINE" in capsys.readouterr().err


def test_a_pipeline_is_a_teacher_of_another_network(pipeline, tmp_path, capsys):
    """``--teacher-from PIPELINE`` of an ordinary training, where the student need not start from its weights."""
    folder = tmp_path / "run"
    words = ["--teacher-from", pipeline, "--data", "digits", "--folder", folder, "--width", "8", "--depth", "1", *QUICK]
    assert run("train", "reflow", *words, "--pairs", "20") == 0, capsys.readouterr().err
    assert open_run(folder).finished
