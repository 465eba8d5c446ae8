"""From runs to a report; the samples of the runs are known, so that no training is needed."""

import math
from functools import partial
from types import SimpleNamespace

import attrs
import pytest
import torch

from onestep_adapters.evaluation import (
    cost_of,
    evaluate_runs,
    from_json,
    histories,
    judges,
    label_of,
    to_json,
    to_markdown,
    validation_distance,
    write_samples,
)
from onestep_adapters.evaluation.watching import DISTANCE
from onestep_adapters.methods import METHODS, FlowMatching, MeanFlow, Network, Training
from onestep_core.errors import ConfigError
from tests.adapters.evaluation.stand_ins import OneCall, Stripes, TwoModes, trained_run


@pytest.fixture
def few_draws(monkeypatch):
    """A tenth of a report's."""
    monkeypatch.setattr(judges, "toy_reference", partial(judges.toy_reference, count=1000))


def baseline(data, **changes):
    return trained_run("flow-matching", data, FlowMatching(), **changes)


def test_points_are_scored_against_the_baseline(few_draws):
    data = TwoModes()
    runs = [baseline(data), trained_run("drifting", data), trained_run("meanflow", data, scale=1.5)]
    report = evaluate_runs(runs, repeats=2)
    assert report.baseline == "flow-matching"
    assert report.overall("drifting") == "pass"
    assert report.overall("meanflow") == "miss"
    assert [row.label for row in report.references.rows] == ["floor (real against real)", "moments (one Gaussian)"]
    row = report.rows[2]
    assert row.metrics["widest_mode"].mean == pytest.approx(1.5, abs=0.1)
    assert row.breakdown == pytest.approx((1.5, 1.5), abs=0.1)
    assert row.cost.milliseconds_per_1000 > 0
    assert report.data == "two modes"
    assert "two Gaussians" in to_markdown(report)


def test_a_report_never_says_pass_beside_an_untrained_baseline(few_draws):
    data = TwoModes()
    report = evaluate_runs([baseline(data, scale=1.5), trained_run("drifting", data)], repeats=2)
    text = to_markdown(report)
    assert text.count("| baseline not trained (") == 2
    assert report.missed("drifting") == ["baseline trained"]


def test_samples_that_are_not_finite_leave_a_row_without_numbers(few_draws):
    for data in (TwoModes(), Stripes()):
        runs = [baseline(data), trained_run("drifting", data, scale=math.nan)]
        report = evaluate_runs(runs, repeats=2)
        row = report.rows[1]
        assert row.metrics is None
        assert row.notes == "samples that are not finite"
        assert report.overall("drifting") == "miss"
        assert "not measured" in to_markdown(report)


def test_without_a_baseline_points_are_not_judged(few_draws):
    report = evaluate_runs([trained_run("drifting", TwoModes())], repeats=2)
    assert report.verdicts == {}
    assert report.overall("drifting") == "no baseline given"
    assert "No baseline was given" in to_markdown(report)


@pytest.mark.parametrize("data", [TwoModes(), Stripes()], ids=lambda data: data.kind)
def test_one_draw_is_one_draw_and_the_report_says_what_it_cannot_give(data, few_draws):
    report = evaluate_runs([baseline(data), trained_run("drifting", data)], repeats=1)
    row = report.rows[1]
    assert row.draws == 1
    assert {found.se for found in row.metrics.values()} == {None}
    text = to_markdown(report)
    assert "one draw" in text.splitlines()[2]
    assert "standard error over" not in text
    assert "plus two standard errors" not in text
    assert "without a margin for the error, which one draw does not give" in text
    assert " ± " not in text.split("| drifting |")[1].splitlines()[0]


def test_images_of_a_data_set_of_ones_own():
    data = Stripes()
    report = evaluate_runs([baseline(data), trained_run("drifting", data, scale=0.1)], split="validation", repeats=2)
    assert report.kind == "images"
    assert report.comparison.split == "validation"
    assert report.comparison.breakdown == (0.5, 0.5)
    assert report.rows[0].metrics["label_agreement"].mean > 0.9
    assert "1-NN accuracy" in report.missed("drifting")
    with pytest.raises(ConfigError, match="no split is called 'train'"):
        evaluate_runs([baseline(data)], split="train")
    with pytest.raises(ConfigError, match="needs labels: stripes has none"):
        evaluate_runs([baseline(Unlabelled())])


class Unlabelled(Stripes):
    def split(self, name):
        return super().split(name)._replace(labels=None)


def test_runs_of_different_data_are_not_compared():
    with pytest.raises(ConfigError, match="different data"):
        evaluate_runs([trained_run("drifting", TwoModes()), trained_run("drifting", Stripes())])
    with pytest.raises(ConfigError, match="no run"):
        evaluate_runs([])
    with pytest.raises(ConfigError, match="repeats = 0"):
        evaluate_runs([trained_run("drifting", TwoModes())], repeats=0)
    other = SimpleNamespace(**{**attrs.asdict(TwoModes()), "kind": "sounds"})
    with pytest.raises(ConfigError, match="no kind of data is called 'sounds'"):
        evaluate_runs([trained_run("drifting", other)])


def test_two_runs_of_one_method_are_told_apart(few_draws):
    data = TwoModes()
    runs = [trained_run("drifting", data, OneCall(Training(steps=steps))) for steps in (20, 30)]
    seeds = [FlowMatching(), FlowMatching(attrs.evolve(FlowMatching().training, seed=3))]
    flows = [trained_run("flow-matching", data, options) for options in seeds]
    assert [label_of(run, runs) for run in runs] == ["drifting 1", "drifting 2"]
    assert [label_of(run, flows) for run in flows] == ["flow-matching, seed 0", "flow-matching, seed 3"]
    text = to_markdown(evaluate_runs(runs, repeats=2))
    assert "| drifting 1 |" in text
    assert "- **drifting 1**: training.steps 20, " in text
    assert "- **drifting 2**: training.steps 30, " in text


def test_notes_speak_of_the_preset_only_where_it_is_what_ran(few_draws):
    data = TwoModes()
    preset = METHODS["meanflow"].options(data)
    small = attrs.evolve(preset, network=attrs.evolve(preset.network, width=8))
    runs = [
        trained_run("meanflow", data, preset.with_seed(3)),
        trained_run("meanflow", data, attrs.evolve(small, coupling="independent")),
        trained_run("meanflow", data, OneCall()),
    ]
    as_preset, other, own = (row.notes for row in evaluate_runs(runs, repeats=1).rows)
    assert as_preset.startswith("Learns from data alone. The adaptive power matters most.")
    assert "precomputed pairs leave a third" not in as_preset, "that is about images"
    assert other == (
        "Other options than the preset meanflow: network.width 8 (preset 192), coupling independent (preset "
        "precomputed)."
    )
    assert own == ""


def test_a_report_has_all_options_of_its_runs_and_keeps_them(few_draws):
    data = TwoModes()
    options = MeanFlow(Training(steps=7), Network(width=8, depth=1), teacher=FlowMatching(coupling="optimal"))
    report = evaluate_runs([trained_run("meanflow", data, options)], repeats=1)
    (row,) = report.rows
    assert (row.options["training.steps"], row.options["teacher.coupling"]) == (7, "optimal")
    assert from_json(to_json(report)) == report
    told = to_markdown(report).split("## All options of the runs")[1]
    for part in ("training.steps 7,", "coupling independent,", "teacher.training.steps 2,000,", "teacher_from none"):
        assert part in told


def test_the_budget_counts_a_teacher_apart():
    data, teacher = TwoModes(), baseline(TwoModes())
    alone, taught = trained_run("drifting", data), trained_run("drifting", data, teacher_run=teacher)
    opened = trained_run("drifting", data, OneCall(teacher=FlowMatching()))  # complete: its teacher was not opened
    steps = FlowMatching().training.steps
    assert attrs.astuple(cost_of(alone))[:5] == (1, 20, 60, None, None)
    assert attrs.astuple(cost_of(taught))[:5] == (1, 20, 60, 20, 20)
    assert attrs.astuple(cost_of(opened))[:5] == (1, 20, 60, steps, steps)
    assert cost_of(taught).caption.splitlines() == [
        "20 updates, 60 evaluations",
        "+ 20 evaluations for the teacher",
        "1 evaluation per sample",
    ]


def test_validation_distance_is_small_for_the_data_themselves():
    for data in (TwoModes(), Stripes()):
        distance = validation_distance(data)
        near, far = (distance(trained_run("drifting", data, scale=scale)) for scale in (1.0, 0.1))
        assert near < 0.05 < far
        assert distance(trained_run("drifting", data)) == near  # the same noise every time


def test_histories_hold_what_was_measured():
    run = trained_run("drifting", TwoModes())
    run.state.history += [{"step": 1}, {"step": 2, DISTANCE: 0.5}]
    assert histories({"a": run, "b": trained_run("drifting", TwoModes())}) == {"a": [(2, 0.5)]}


def test_pictures_carry_budgets_under_the_names(tmp_path):
    pytest.importorskip("matplotlib")
    from onestep_adapters.evaluation.pictures import draw_runs, draw_samples

    for data in (TwoModes(), Stripes()):
        run = trained_run("drifting", data)
        figure = draw_runs({"one": run, "two": run}, title="t")
        texts = [text.get_text() for axes in figure.get_axes() for text in axes.texts]
        assert texts.count("20 updates, 60 evaluations\n1 evaluation per sample") == 2
        drawn = write_samples(run, tmp_path / "deep" / "v1.5", count=6, seed=0)
        assert drawn.file.name == "v1.5.npz"
        assert torch.equal(drawn.samples, run.samples(6, generator=torch.Generator().manual_seed(0))[0])
        assert draw_samples(run, drawn, tmp_path / "v1.5").name == "v1.5.png"
