"""Methods of one's own: a file adds them; then runs, commands and child processes know them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch

from onestep_adapters.cli import main
from onestep_adapters.methods import METHODS, registry, use_methods
from onestep_adapters.runs import open_run, start_run
from onestep_adapters.training import save_checkpoint
from onestep_core.errors import ConfigError
from tests.adapters.methods.test_work import measured
from tests.adapters.tiny import begun, seeded, tiny

ROOT = Path(__file__).parents[3]
HYBRIDS = {
    "meanflow-drift": "compose_meanflow_drift",
    "consistency-gap": "compose_consistency_score_gap",
    "drifting-transport": "compose_drifting_sinkhorn",
    "drifting-teacher": "compose_drifting_teacher",
    "dmd-kernel": "compose_dmd_kernel",
}


@pytest.fixture
def alone(monkeypatch):
    """Methods that a test adds are taken away again."""
    before, modules = dict(METHODS), set(sys.modules)
    monkeypatch.setenv(registry.FILES, "")
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("onestep_methods_"):
            del sys.modules[name]


def small(options):
    """A few updates of small networks, without coupled pairs."""
    changes = {"training": attrs.evolve(options.training, steps=4, batch=16)}
    changes["network"] = attrs.evolve(options.network, width=16, depth=1)
    if hasattr(options, "coupling"):
        changes["coupling"] = "independent"
    if options.teacher is not None:
        changes["teacher"] = small(options.teacher)
    if getattr(options, "pairs", 0):
        changes |= {"pairs": 16, "solver_steps": 2}
    if hasattr(options, "positives"):
        changes["positives"] = 16
    return attrs.evolve(options, **changes)


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_is_trained_saved_opened_and_sampled(name, tmp_path, alone, monkeypatch):
    (preset,) = use_methods(ROOT / "examples" / f"{HYBRIDS[name]}.py")
    assert METHODS[name] is preset
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    run = start_run(name, "8gaussians", small(preset.points))
    for update in run.updates():
        assert math.isfinite(update.loss)
    save_checkpoint(tmp_path / "run", run.state)
    samples, _ = open_run(tmp_path / "run").samples(8, generator=torch.Generator().manual_seed(0))
    assert samples.shape == (8, 2)
    assert bool(samples.isfinite().all())


@pytest.mark.usefixtures("teachers")
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_costs_what_it_declares(name, alone):
    use_methods(ROOT / "examples" / f"{HYBRIDS[name]}.py")
    options = tiny(name)
    run, context = begun(name, options)
    run.state.step = 1
    if "drifting" in name:
        # Its monitors look again once in twenty updates.
        run.state.step = 0
        options.loss(context, run.state.network, seeded())
        run.state.step = 1
    assert measured(run, context) == options.work(1, run.data)
    assert options.objective


def test_a_hybrid_of_images_has_classes(alone):
    (preset,) = use_methods(ROOT / "examples" / "compose_meanflow_drift.py")
    training = attrs.evolve(preset.images.training, steps=2, batch=40)
    options = attrs.evolve(preset.images, training=training, coupling="independent")
    run = start_run("meanflow-drift", "digits", options)
    logs = next(iter(run.updates())).logs
    assert float(logs["drift"]) > 0


FILE = """
import attrs
from onestep_adapters.methods import Preset, find_preset

BASE = find_preset("meanflow")
PRESETS = (Preset({name!r}, "of a test", BASE.images, BASE.points, ""),)
"""


def test_the_command_line_takes_a_file_before_and_after_the_command(tmp_path, alone, capsys):
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(name="mine"))
    for words in (["--with", str(file), "train", "mine", "--help"], ["train", "mine", f"--with={file}", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert "--interval-share" in capsys.readouterr().out
    assert main(["--help", "--with", str(file)]) == 0
    assert "of a test" in capsys.readouterr().out


def test_a_process_that_is_started_knows_the_method(tmp_path, alone):
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(name="mine"))
    use_methods(file)
    use_methods(str(file))
    assert os.environ[registry.FILES] == str(file)
    told = subprocess.run(
        [sys.executable, "-c", "from onestep_adapters.methods import find_preset; print(find_preset('mine').summary)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "of a test"


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "PRESETS = None: expected a tuple of Preset"),
        ("PRESETS = 3", "PRESETS = 3: expected a tuple of Preset"),
        ("PRESETS = (1 / 0,)", "cannot be run: ZeroDivisionError"),
        (FILE.format(name="meanflow"), "a method 'meanflow', and there is one of this name"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(text, told, tmp_path, alone):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        use_methods(file)
    assert len(METHODS) == len(registry._METHODS)
    assert "mine" not in METHODS
    assert not os.environ[registry.FILES]


def test_errors_of_the_command_line_name_the_way(tmp_path, alone, capsys):
    assert main(["train", "meanflow", "--with"]) == 2
    assert "--with needs a file" in capsys.readouterr().err
    assert main(["train", "meanflow", "--with", str(tmp_path / "no.py")]) == 2
    assert "is no Python file" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--with FILE"):
        registry.find_preset("meanflow-drift")
