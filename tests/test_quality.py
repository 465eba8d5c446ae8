"""Trained for real: generators against the bars of the toys.

A method passes with ``score <= max(2 * yardstick's, 0.03) + 2 se``, mode masses within 0.05 and every mode's standard
deviation within 20 %. The ordinary run trains one seed on 8 Gaussians: the yardstick, which has to meet its own bars,
and three methods for a part of their updates, of which score and masses have to pass. The thorough run trains every
method of the published tables as they did and asks for their verdicts: a pass, or the misses that they explain. With
``ONESTEP_RUNS`` the runs are kept in that folder, and finished ones are not trained again.
"""

import os
from pathlib import Path

import attrs
import pytest
import torch

from benchmarks.methods import DATA, RESULTS, train
from onestep_adapters.metrics import from_json, passes, toy_reference, toy_score
from onestep_adapters.recipes import METHODS, draws, find_method
from onestep_adapters.recipes.evaluation import ImageReport, ToyReport, evaluate_runs
from onestep_adapters.recipes.problems import DIGITS
from onestep_adapters.recipes.runs import start_run

SHORTER = {"drifting": 2500, "rectified-meanflow": 1500, "consistency-distillation": 1500}


def shortened(recipe, steps):
    """A part of the updates, of the teacher's too."""
    shorter = attrs.evolve(recipe, training=attrs.evolve(recipe.training, steps=steps))
    if recipe.teacher is None:
        return shorter
    return attrs.evolve(shorter, teacher=shortened(recipe.teacher, steps))


@pytest.fixture(autouse=True, scope="module")
def as_users_train(all_pairs):
    """With all pairs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, sizes in all_pairs.items():
            patch.setattr(draws, name, sizes)
        yield


def score_of(run, seed=0, draws=5):
    """Train and judge."""
    for _ in run.updates():
        pass
    law = run.problem.law
    reference = toy_reference(law, generator=torch.Generator().manual_seed(100 + seed), draws=draws)
    generator = torch.Generator().manual_seed(200 + seed)
    return toy_score(lambda n, g: run.samples(n, generator=g)[0], law, generator=generator, reference=reference)


def test_the_yardstick_is_trained():
    many = score_of(start_run("flow-matching", "8gaussians", find_method("flow-matching").options("8gaussians")))
    assert passes(many, many).text == "pass", passes(many, many)


@pytest.mark.parametrize(("method", "steps"), SHORTER.items())
def test_one_step_has_the_score_and_the_masses(method, steps, tmp_path_factory, monkeypatch):
    """By the bar of a perfect yardstick, so that none is trained for it."""
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path_factory.getbasetemp() / "teachers"))
    recipe = shortened(find_method(method).options("8gaussians"), steps)
    score = score_of(start_run(method, "8gaussians", recipe), draws=2)
    assert score.score <= 0.03 + 2 * score.se, score
    assert score.mass_error <= 0.05, score


def published(data):
    """The table in ``benchmarks/results``: what each method's verdict was, a pass or which bars it missed."""
    text = (RESULTS / f"methods-{data}.json").read_text()
    return verdicts(ImageReport(from_json(text)) if data == DIGITS else ToyReport.from_json(text))


def verdicts(report):
    if isinstance(report, ToyReport):
        return {name: verdict.text for name, verdict in report.verdicts.items()}
    return {
        label: [verdict.name for verdict in found if not verdict.passed]
        for label, found in report.report.verdicts.items()
    }


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
    report = evaluate_runs(list(trained.values()), None, split="test", repeats=5, seed=0)
    assert verdicts(report)[method] == published(data)[method]
