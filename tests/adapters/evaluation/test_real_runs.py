"""Small real runs, from training to a written report and written samples."""

import json
from functools import partial

import numpy as np
import pytest

from onestep_adapters.evaluation import evaluate_runs, judges, label_of, write_report, write_samples
from onestep_adapters.runs import start_run
from tests.adapters.datasets import points
from tests.adapters.tiny import tiny

pytestmark = pytest.mark.usefixtures("teachers")


@pytest.fixture
def few_draws(monkeypatch):
    """A tenth of a report's."""
    monkeypatch.setattr(judges, "toy_reference", partial(judges.toy_reference, count=1000))


def trained(method, data, **changes):
    changes = {"sampling_steps": 2, **changes} if method == "flow-matching" else changes
    run = start_run(method, data, tiny(method, data, **changes))
    list(run.updates())
    return run


def test_runs_of_one_method_are_told_apart():
    def run(seed):
        return start_run("meanflow", "8gaussians", tiny("meanflow").with_seed(seed))

    first, second, third = run(0), run(1), run(1)
    assert label_of(first, [first]) == "meanflow"
    assert [label_of(each, [first, second]) for each in (first, second)] == ["meanflow, seed 0", "meanflow, seed 1"]
    assert [label_of(each, [first, second, third]) for each in (second, third)] == ["meanflow 2", "meanflow 3"]


def test_a_report_of_points_never_says_pass_beside_an_untrained_baseline(tmp_path, few_draws):
    runs = [trained(method, "unequal") for method in ("flow-matching", "meanflow")]
    text = write_report(tmp_path, evaluate_runs(runs, split="test", repeats=2))
    assert text.count("baseline not trained") == 2
    content = json.loads((tmp_path / "report.json").read_text())
    assert not all(verdict["passed"] for verdict in content["verdicts"]["meanflow"])
    assert content["verdicts"]["meanflow"]
    assert {row["method"] for row in content["rows"]} == {"flow-matching", "meanflow"}


def test_two_runs_of_one_method_have_two_rows_and_their_own_notes(tmp_path, few_draws):
    runs = [trained("drifting", "unequal", steps=steps) for steps in (1, 2)]
    text = write_report(tmp_path, evaluate_runs(runs, split="test", repeats=2))
    assert "| drifting 1 |" in text
    assert "| drifting 2 |" in text
    for number, steps in ((1, 1), (2, 2)):
        assert (
            f"- **drifting {number}**: Other options than the preset drifting: training.steps {steps} (preset" in text
        )
        assert f"- **drifting {number}**: training.steps {steps}, " in text
    assert "No baseline was given" in text


def test_a_report_of_images_has_every_row_and_its_cost(tmp_path):
    runs = [trained(method, "digits") for method in ("flow-matching", "drifting")]
    write_report(tmp_path, evaluate_runs(runs, split="validation", repeats=2))
    content = json.loads((tmp_path / "report.json").read_text())
    rows = {row["method"]: row["cost"] for row in content["rows"]}
    assert content["baseline"] == "flow-matching"
    assert rows["flow-matching"]["evaluations_per_sample"] == 4
    assert rows["drifting"]["evaluations_per_sample"] == 1
    assert rows["drifting"]["updates"] == rows["drifting"]["training_evaluations"] == 3
    assert all(row["training_seconds"] > 0 and row["milliseconds_per_1000"] > 0 for row in rows.values())


def test_samples_are_written_as_numbers(tmp_path):
    run = start_run("drifting", "digits", tiny("drifting", "digits"))
    found = write_samples(run, tmp_path / "deep" / "v1.5", count=6, seed=0)
    assert found.file.name == "v1.5.npz"
    with np.load(found.file) as arrays:
        assert arrays["samples"].shape == (6, 1, 8, 8)
        assert arrays["labels"].shape == (6,)
        assert np.array_equal(arrays["samples"], found.samples.numpy())


def test_samples_of_a_data_set_of_your_own_are_written(tmp_path):
    data = points()
    found = write_samples(start_run("drifting", data, tiny("drifting", data)), tmp_path / "samples", count=6, seed=0)
    assert found.file.is_file()
    assert found.samples.shape == (6, 3)
