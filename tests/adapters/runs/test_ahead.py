"""What a training does before its first update is announced, and nothing else is."""

import attrs
import pytest

from onestep_adapters.methods import METHODS
from onestep_adapters.runs import start_run
from onestep_adapters.training import save_checkpoint
from tests.adapters.tiny import tiny


def phases_of(run):
    """The titles of what is made before the first update."""
    titles = []

    def track(items, title, total):
        titles.append(title)
        return iter(items)

    run.prepared(track)
    return titles


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_made_is_announced_and_once_made_no_more(method, data, teachers):
    run = start_run(method, data, tiny(method, data))
    list(run.teaching())
    announced = run.ahead()
    said = {
        "coupled pairs": "coupled pairs of data and noise",
        "pairs of the teacher": "pairs of noise and the teacher",
    }
    made = [said[title] for title in phases_of(run)]
    assert len(announced) == len(made)
    assert all(words in line for words, line in zip(made, announced, strict=True))
    assert run.ahead() == []
    assert phases_of(run) == []


def test_a_teacher_is_announced_with_the_updates_that_are_left(new_teachers):
    options = tiny("reflow")
    for step, left in ((0, 2), (1, 1), (2, None)):
        run = start_run("reflow", "8gaussians", options)
        first = run.ahead()[0]
        assert run.teacher_run.state.step == step
        assert (left is None) == first.startswith("40 pairs of noise and the teacher's sample")
        if left is not None:
            assert first.startswith(f"a teacher (flow-matching): {left} updates, kept for other trainings in ")
            assert str(run.teacher_folder) in first
            next(run.teacher_run.updates(run.teacher_folder))
            save_checkpoint(run.teacher_folder, run.teacher_run.state)
    list(run.updates())
    assert run.ahead() == []


def test_pairs_that_teacher_and_student_share_are_announced_once(new_teachers):
    run = start_run("consistency-trajectory", "digits", tiny("consistency-trajectory", "digits"))
    teacher = attrs.evolve(run.options.teacher, coupling="precomputed")
    shared = start_run("consistency-trajectory", "digits", attrs.evolve(run.options, teacher=teacher))
    assert [line.split(":")[0] for line in shared.ahead()] == ["for the teacher", "a teacher (flow-matching)"]
