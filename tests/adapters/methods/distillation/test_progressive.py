"""Progressive distillation: its stages."""

import pytest
import torch

from onestep_adapters.methods import FlowMatching, Progressive, Training
from onestep_adapters.runs import start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, flat, small

pytestmark = pytest.mark.usefixtures("teachers")


def staged(first, steps):
    options = Progressive(first_student_steps=first, teacher=FlowMatching(Training(steps=20, batch=20), NETWORK))
    return start_run(
        "progressive", "8gaussians", small(options, steps=steps, teacher=options.teacher, first_student_steps=first)
    )


def stage_teacher(run):
    return run.state.companions["stage_teacher"].module


def test_the_stages_halve_the_steps_and_leave_their_losses_and_scores():
    """Steps fall by powers of two to one; each stage's teacher is the average at the end of the one before."""
    run = staged(8, 24)
    seen, average = {}, None
    for record in run.updates():
        steps = int(record.logs["steps"])
        if steps not in seen and average is not None:
            assert torch.equal(flat(stage_teacher(run)), average)
        seen.setdefault(steps, []).append(record)
        average = flat(run.state.ema)
    assert list(seen) == [8, 4, 2, 1]
    assert [len(records) for records in seen.values()] == [4, 4, 8, 8]
    for records in seen.values():
        *before, last = records
        assert not any("stage_score" in record.logs for record in before)
        mean = sum(record.loss for record in records) / len(records)
        assert last.logs["stage_loss"] == pytest.approx(mean, rel=1e-5)
        assert last.logs["stage_score"] > -0.01
    kept = [entry["logs"] for entry in run.state.history if "stage_score" in entry["logs"]]
    assert [int(logs["steps"]) for logs in kept] == [8, 4, 2, 1]


def test_a_student_moves_away_from_its_stage_s_teacher_which_is_never_trained():
    run, during = staged(2, 12), []
    for record in run.updates():
        during.append((int(record.logs["steps"]), flat(stage_teacher(run))))
    assert not torch.equal(flat(run.state.network), flat(stage_teacher(run)))
    assert run.state.companions["stage_teacher"].trained == "never"
    for steps in (2, 1):
        first, *rest = [weights for stage, weights in during if stage == steps]
        assert rest
        assert all(torch.equal(first, weights) for weights in rest)


@pytest.mark.parametrize("first", [6, 1])
def test_other_numbers_than_powers_of_two_are_refused(first):
    with pytest.raises(ConfigError, match="power of two"):
        Progressive(first_student_steps=first)
