"""A run comes back from its folder as it was, resumes bit for bit, and is never overwritten."""

import os

import attrs
import pytest

from onestep_adapters.files import LockedError, one_writer
from onestep_adapters.methods import METHODS
from onestep_adapters.runs import open_run, options_of_run, resume_or_start, start_run
from onestep_adapters.training import CheckpointError
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, assert_same_weights, drawn, logged, tiny, trained_to

pytestmark = pytest.mark.usefixtures("teachers")


def test_a_run_comes_back_as_it_was(tmp_path):
    run = start_run("meanflow", "8gaussians", tiny("meanflow"))
    list(run.updates(tmp_path))
    again = open_run(tmp_path)
    assert again.options == run.options
    assert again.finished
    assert options_of_run(tmp_path) == ("meanflow", "8gaussians", run.options)
    assert drawn(again)[0].equal(drawn(run)[0])


@pytest.mark.parametrize(
    ("method", "data"),
    [(method, "8gaussians") for method in METHODS if not method.endswith("-paper")]
    + [(method, "digits") for method in ("dmd", "dmd2", "sid", "f-distill", "progressive", "drifting")],
)
def test_an_interrupted_run_is_resumed_bit_for_bit(method, data, tmp_path):
    options = tiny(method, data, steps=5)
    whole = start_run(method, data, options)
    list(whole.updates())
    # Stopped after update 3: the checkpoint in the folder is that of update 2.
    trained_to(resume_or_start(tmp_path, method, data, options, resume=False), 3, tmp_path)
    second = resume_or_start(tmp_path, method, data, options, resume=True)
    assert second.state.step == 2
    list(second.updates(tmp_path))
    assert_same_weights(second.state, whole.state)
    assert logged(second.state) == logged(whole.state)
    assert drawn(second)[0].equal(drawn(whole)[0])
    assert open_run(tmp_path).finished


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    options = tiny("meanflow")
    list(resume_or_start(tmp_path, "meanflow", "8gaussians", options, resume=False).updates(tmp_path))
    with pytest.raises(CheckpointError, match="--resume"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", options, resume=False)
    with pytest.raises(CheckpointError, match=r"training\.steps is 3 in the folder, 2 in your options"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", tiny("meanflow", steps=2), resume=True)


def test_a_folder_into_which_a_process_still_trains_names_it(tmp_path):
    """Advice to resume would lead to the next refusal."""
    options = tiny("meanflow")
    list(resume_or_start(tmp_path, "meanflow", "8gaussians", options, resume=False).updates(tmp_path))
    with one_writer(tmp_path / ".lock"), pytest.raises(LockedError, match=rf"process {os.getpid()} on .* writes there"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", options, resume=False)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        resume_or_start(tmp_path / "file", "meanflow", "8gaussians", tiny("meanflow"), resume=True)


def test_a_run_that_lacks_an_option_resumes_with_its_default(tmp_path):
    options = tiny("meanflow")
    run = start_run("meanflow", "8gaussians", options)
    del run.state.config["options"]["network"]["fourier"]
    list(run.updates(tmp_path))
    assert resume_or_start(tmp_path, "meanflow", "8gaussians", options, resume=True).finished
    other = attrs.evolve(options, network=attrs.evolve(NETWORK, fourier=8))
    with pytest.raises(
        CheckpointError, match=r"other options: network\.fourier is 0 in the folder, 8 in your options:"
    ):
        resume_or_start(tmp_path, "meanflow", "8gaussians", other, resume=True)


def test_a_run_of_an_unknown_version_is_refused(tmp_path):
    run = start_run("meanflow", "8gaussians", tiny("meanflow"))
    run.state.config["options"]["momentum"] = 3
    list(run.updates(tmp_path))
    with pytest.raises(ConfigError, match="momentum"):
        open_run(tmp_path)


def test_a_checkpoint_of_something_else_is_no_run(tmp_path):
    run = start_run("meanflow", "8gaussians", tiny("meanflow"))
    del run.state.config["data"]
    list(run.updates(tmp_path))
    with pytest.raises(CheckpointError, match="lacks 'data'"):
        open_run(tmp_path)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'meanflow'"):
        start_run("meanflwo", "8gaussians")
    with pytest.raises(ConfigError, match="did you mean 'checkerboard'"):
        start_run("meanflow", "chekerboard")


def longer(options, steps):
    return attrs.evolve(options, training=attrs.evolve(options.training, steps=steps))


def test_a_finished_run_goes_on_to_more_updates_and_may_be_stopped_there(tmp_path):
    options = tiny("meanflow", steps=4)
    trained_to(resume_or_start(tmp_path, "meanflow", "8gaussians", options, resume=False), 4, tmp_path)
    assert open_run(tmp_path).finished
    with pytest.raises(CheckpointError, match=r"training.steps is 4 in the folder, 3 in your options"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", longer(options, 3), resume=True)
    more = longer(options, 9)
    trained_to(resume_or_start(tmp_path, "meanflow", "8gaussians", more, resume=True), 6, tmp_path)
    again = open_run(tmp_path)
    assert (again.state.step, again.options, again.finished) == (6, more, False)
    for _ in (run := resume_or_start(tmp_path, "meanflow", "8gaussians", more, resume=True)).updates(tmp_path):
        pass
    assert [entry["step"] for entry in run.state.history] == list(range(1, 10))
    straight = resume_or_start(tmp_path / "other", "meanflow", "8gaussians", options, resume=False)
    for _ in straight.updates(tmp_path / "other"):
        pass
    straight = resume_or_start(tmp_path / "other", "meanflow", "8gaussians", more, resume=True)
    for _ in straight.updates(tmp_path / "other"):
        pass
    assert_same_weights(run.state, straight.state)


@pytest.mark.usefixtures("teachers")
@pytest.mark.parametrize("method", ["progressive", "truncated-consistency"])
def test_stages_that_depend_on_the_number_of_updates_do_not_go_on(method, tmp_path):
    options = tiny(method, steps=4)
    for _ in resume_or_start(tmp_path, method, "8gaussians", options, resume=False).updates(tmp_path):
        pass
    with pytest.raises(CheckpointError, match="stages depend on this number"):
        resume_or_start(tmp_path, method, "8gaussians", longer(options, 8), resume=True)
