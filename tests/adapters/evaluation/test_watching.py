"""Distances to validation data during a training."""

from functools import partial

from onestep_adapters.evaluation.watching import DISTANCE, histories, watched
from onestep_adapters.runs import open_run, start_run
from tests.adapters.tiny import tiny


def test_a_curve_is_the_same_whether_or_not_the_training_was_stopped(tmp_path):
    """Stopped after the checkpoint of an update whose distance is not measured yet."""

    def distance(run, fails=None):
        if run.state.step == fails:
            raise KeyboardInterrupt
        return float(next(run.state.ema.parameters()).detach().double().sum())

    options = tiny("drifting", steps=8)
    whole = start_run("drifting", "8gaussians", options)
    list(watched(whole, tmp_path / "whole", distance, points=4))
    assert [step for step, _ in histories({"a": whole})["a"]] == [2, 4, 6, 8]
    for step in (2, 4, 8):
        folder = tmp_path / str(step)
        try:
            list(watched(start_run("drifting", "8gaussians", options), folder, partial(distance, fails=step), points=4))
        except KeyboardInterrupt:
            resumed = open_run(folder)
        assert resumed.state.step == step
        assert DISTANCE not in resumed.state.history[-1]
        list(watched(resumed, folder, distance, points=4))
        assert histories({"a": resumed}) == histories({"a": whole})
        assert histories({"a": open_run(folder)}) == histories({"a": whole})
