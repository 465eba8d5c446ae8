"""Trained for real: generators against the thresholds of the 2-D toys.

A method passes with ``score <= max(2 * that of the baseline, 0.03) + 2 se``, mode masses within 0.05 and every mode's
standard deviation within 20 %. The ordinary run trains one seed on 8 Gaussians: the baseline, which has to pass its own
thresholds, and drifting for a part of its updates, of which score and masses have to pass. The thorough run trains
every method of the published tables as they did and asks for their verdicts: a pass, or the misses that they
explain. With ``ONESTEP_RUNS`` the runs are kept in that folder, and complete ones are not trained again.
"""

import os
from pathlib import Path

import attrs
import pytest
import torch

from benchmarks.methods import DATA, RESULTS, train
from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation import Comparison, Row, evaluate_runs, from_json, make_report
from onestep_adapters.evaluation.point_criteria import point_metrics, point_references
from onestep_adapters.methods import METHODS, find_preset
from onestep_adapters.metrics import toy_reference, toy_score
from onestep_adapters.runs import start_run

SHORTER = {"drifting": 2500}


def shortened(options, steps):
    """A part of the updates, of the teacher's too."""
    shorter = attrs.evolve(options, training=attrs.evolve(options.training, steps=steps))
    if options.teacher is None:
        return shorter
    return attrs.evolve(shorter, teacher=shortened(options.teacher, steps))


def preset(method):
    return find_preset(method).options(open_dataset("8gaussians"))


@pytest.fixture(autouse=True, scope="module")
def as_users_train(all_pairs):
    """With all pairs: ``all_pairs`` undoes what the session's fixture made smaller."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), sizes in all_pairs.items():
            patch.setattr(module, name, sizes)
        yield


def score_of(run, seed=0, draws=5):
    """Train and judge."""
    for _ in run.updates():
        pass
    reference = toy_reference(run.data, generator=torch.Generator().manual_seed(100 + seed), draws=draws)
    generator = torch.Generator().manual_seed(200 + seed)
    return toy_score(lambda n, g: run.samples(n, generator=g)[0], run.data, generator=generator, reference=reference)


@pytest.mark.thorough
def test_the_baseline_is_trained():
    many = score_of(start_run("flow-matching", "8gaussians", preset("flow-matching")), draws=2)
    report = make_report(
        [Row("flow-matching", point_metrics(many), breakdown=many.spreads)],
        kind="points",
        data="8gaussians",
        comparison=Comparison("fresh draws", 10_000),
        references=point_references(many.floor, many.moments),
        baseline="flow-matching",
    )
    assert report.overall("flow-matching") == "pass", report.verdicts


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "steps"), SHORTER.items())
def test_one_step_has_the_score_and_the_masses(method, steps, tmp_path_factory, monkeypatch):
    """By the threshold beside a perfect baseline, so that none is trained for it."""
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path_factory.getbasetemp() / "teachers"))
    score = score_of(start_run(method, "8gaussians", shortened(preset(method), steps)), draws=2)
    assert score.score <= 0.03 + 2 * score.se, score
    assert score.mass_error <= 0.05, score


def published(data):
    """The table in ``benchmarks/results``: which thresholds each method missed."""
    return verdicts(from_json((RESULTS / f"methods-{data}.json").read_text()))


def verdicts(report):
    return {row.label: report.missed(row.label) for row in report.rows}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Where the trainings are kept, with their teachers: several methods share one."""
    folder = os.environ.get("ONESTEP_RUNS")
    return Path(folder) if folder else tmp_path_factory.mktemp("runs")


@pytest.mark.thorough
@pytest.mark.parametrize(("data", "method"), [(d, m) for d in DATA for m in METHODS if m in published(d)])
def test_the_published_verdicts_come_out_again(data, method, runs, monkeypatch):
    monkeypatch.setenv("ONESTEP_TEACHERS", str(runs / "teachers"))
    trained = train(data, list(dict.fromkeys(["flow-matching", method])), runs)
    report = evaluate_runs(list(trained.values()))
    assert verdicts(report)[method] == published(data)[method]
