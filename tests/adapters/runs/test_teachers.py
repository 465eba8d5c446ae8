"""Teachers of runs: trained here, in a run folder, exact; missing, replaced, or of another kind."""

import os
import shutil
import subprocess
import sys

import attrs
import pytest
import torch

from onestep_adapters.methods import METHODS, Network, Training
from onestep_adapters.runs import open_run, resume_or_start, start_run
from onestep_adapters.training import CheckpointError, read_run, save_checkpoint
from onestep_core.errors import ConfigError
from tests.adapters.methods.matching.games import tiny
from tests.adapters.tiny import NETWORK, drawn, flat, small, trained_to

pytestmark = pytest.mark.usefixtures("new_teachers")


def trained(folder, method="flow-matching", data="8gaussians", steps=2, **changes):
    """A run folder for a teacher."""
    changes = changes if method != "drifting" else {"positives": 8}
    options = METHODS[method].images if data == "digits" else METHODS[method].points
    options = attrs.evolve(
        options, training=Training(steps=2, batch=16, checkpoint_every=1), network=NETWORK, **changes
    )
    trained_to(resume_or_start(folder, method, data, options, resume=False), steps, folder)
    return str(folder)


def begun_student(folder, options):
    """A student, stopped after two updates of four."""
    return trained_to(resume_or_start(folder, "dmd2", "8gaussians", options, resume=False), 2, folder)


def test_a_teacher_is_trained_once_and_kept_for_other_runs(new_teachers):
    options = tiny("dmd2")
    first = start_run("dmd2", "8gaussians", options)
    assert not first.teacher_run.finished
    assert [record.step for record in first.teaching()] == [1, 2, 3]
    (folder,) = new_teachers.iterdir()
    second = start_run("dmd2", "8gaussians", options)
    assert second.teacher_run.finished
    assert second.teacher_folder == folder
    assert list(second.teaching()) == []
    assert torch.equal(flat(second.teacher.module), flat(first.teacher.module))
    other = attrs.evolve(options, teacher=options.teacher.with_seed(5))
    assert start_run("dmd2", "8gaussians", other).teacher_folder != folder


def test_an_interrupted_teacher_continues(new_teachers):
    options = tiny("dmd2")
    run = start_run("dmd2", "8gaussians", options)
    for record in run.teaching():
        if record.step == 2:
            break
    again = start_run("dmd2", "8gaussians", options)
    assert again.teacher_run.state.step == 2
    whole = attrs.evolve(options.teacher)
    list(again.updates())
    alone = start_run("flow-matching", "8gaussians", whole)
    list(alone.updates())
    assert torch.equal(flat(again.teacher.module), flat(alone.state.ema))


def test_the_exact_score_is_a_teacher_and_nothing_is_trained_before(new_teachers):
    run = start_run("dmd2", "unequal", tiny(adversarial_weight=0.0, teacher_from="exact"))
    assert run.teacher_run is None
    assert run.teacher.module is None
    list(run.updates())
    assert run.finished
    assert not new_teachers.exists()


@pytest.mark.parametrize("method", ["dmd2", "consistency-distillation", "reflow", "meanflow-distillation"])
def test_a_run_folder_is_a_teacher(method, tmp_path, new_teachers):
    folder = trained(tmp_path / "run")
    options = tiny(teacher_from=folder) if method == "dmd2" else small(METHODS[method].points, teacher_from=folder)
    run = start_run(method, "8gaussians", options)
    list(run.updates())
    assert torch.equal(flat(run.teacher.module), flat(open_run(folder).state.ema))
    assert not list(new_teachers.glob("8gaussians-*"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: str(path / "nothing"), CheckpointError, "does not exist|is not a run|no folder"),
        (lambda path: trained(path / "run", "drifting"), ConfigError, "predict the velocity"),
        (lambda path: trained(path / "run", data="digits"), ConfigError, "teacher that was trained on the same data"),
        (lambda path: trained(path / "run", data="unequal"), ConfigError, "learned unequal"),
        (lambda path: trained(path / "run", steps=1), ConfigError, "finish the teacher"),
        (lambda path: trained(path / "run", coupling="optimal"), ConfigError, "independent pairs only"),
    ],
    ids=["missing", "another prediction", "another shape", "other data", "unfinished", "another coupling"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_training(make, error, words, tmp_path):
    folder = make(tmp_path)
    with pytest.raises(error, match=words):
        start_run("dmd2", "8gaussians", tiny(teacher_from=folder))


def test_a_teacher_of_another_network_is_refused_before_an_update(tmp_path):
    options = attrs.evolve(tiny(teacher_from=trained(tmp_path / "run")), network=Network("mlp", width=12, depth=1))
    with pytest.raises(ConfigError, match="give both the same"):
        start_run("dmd2", "8gaussians", options)
    teacher = attrs.evolve(options.teacher, network=options.network)
    with pytest.raises(ConfigError, match=r"width=12.*teacher's.*width=8"):  # The run's, whatever the options say.
        start_run("dmd2", "8gaussians", attrs.evolve(options, teacher=teacher))


def test_the_scores_have_the_network_of_a_given_teacher(tmp_path):
    """Whatever the options say about it. The run keeps that teacher's options, and can be resumed."""
    options, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    other = attrs.evolve(options, teacher=attrs.evolve(options.teacher, network=Network("mlp", width=20, depth=1)))
    run = begun_student(folder, other)
    assert run.options.teacher == open_run(tmp_path / "run").options
    again = resume_or_start(folder, "dmd2", "8gaussians", other, resume=True)
    assert again.state.step == 2
    shown = drawn(again)[0]
    (tmp_path / "run").rename(tmp_path / "away")
    unfinished = open_run(folder)  # Sampled while its teacher is elsewhere, but not trained further.
    assert torch.equal(drawn(unfinished)[0], shown)
    with pytest.raises(ConfigError, match=r"is not in .*run any more"):
        unfinished.updates(folder)
    (tmp_path / "away").rename(tmp_path / "run")
    assert list(again.updates(folder))
    (tmp_path / "run").rename(tmp_path / "moved")
    finished = open_run(folder)  # Samples need no teacher.
    assert torch.equal(drawn(finished)[0], drawn(again)[0])
    assert not list(finished.updates())


def test_a_run_does_not_resume_with_a_replaced_teacher(tmp_path):
    """The options of both are the same; their weights are not."""
    options, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    begun_student(folder, options)
    teacher = open_run(tmp_path / "run")
    with torch.no_grad():
        next(teacher.state.ema.parameters()).add_(0.1)
    save_checkpoint(tmp_path / "run", teacher.state)
    with pytest.raises(CheckpointError, match=r"another teacher .* put that one back"):
        resume_or_start(folder, "dmd2", "8gaussians", options, resume=True)
    with pytest.raises(ConfigError, match="holds another teacher now"):
        open_run(folder).updates(folder)
    # A fresh run learns from the new one, pairs included.
    paired, places = attrs.evolve(options, pairs_weight=1.0), []
    for scale in (1.0, 1.5):
        with torch.no_grad():
            next(teacher.state.ema.parameters()).mul_(scale)
        save_checkpoint(tmp_path / "run", teacher.state)
        places.append(start_run("dmd2", "8gaussians", paired).cache)
    assert len(set(places)) == 2


@pytest.mark.parametrize("damage", ["empty", "another method"])
def test_a_run_is_sampled_whatever_has_become_of_its_teacher(damage, tmp_path):
    options, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    begun_student(folder, options)
    shutil.rmtree(tmp_path / "run")
    if damage == "empty":
        (tmp_path / "run").mkdir()
    else:
        trained(tmp_path / "run", "drifting")
    unfinished = open_run(folder)
    assert drawn(unfinished, 3)[0].shape == (3, 2)
    with pytest.raises(ConfigError, match="or cannot be read"):
        unfinished.updates(folder)


def test_a_complete_run_is_resumed_without_its_teacher(tmp_path):
    options, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    run = resume_or_start(folder, "dmd2", "8gaussians", options, resume=False)
    list(run.updates(folder))
    (tmp_path / "run").rename(tmp_path / "away")
    assert resume_or_start(folder, "dmd2", "8gaussians", run.options, resume=True).finished


def test_two_students_of_one_untrained_teacher_both_learn(new_teachers, tmp_path):
    """Two processes at once: one trains the teacher, the other waits for it and goes on from what it saved."""
    script = (
        "import sys; from pathlib import Path; from tests.adapters.tiny import tiny;"
        "from onestep_adapters.runs import start_run;"
        "run = start_run('dmd', '8gaussians', tiny('dmd'));"
        "list(run.updates(Path(sys.argv[1]))); assert run.finished and run.teacher_run.finished"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    students = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / name)], env=environment, stderr=subprocess.PIPE)
        for name in ("one", "two")
    ]
    told = [student.communicate(timeout=300)[1].decode() for student in students]
    assert [student.returncode for student in students] == [0, 0], told
    assert all(read_run(tmp_path / name).step > 0 for name in ("one", "two"))
