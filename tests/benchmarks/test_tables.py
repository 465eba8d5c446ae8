"""Tables that grow from day to day."""

import json

import attrs
import pytest

from benchmarks.methods import RESULTS, ordered, with_rows_of
from onestep_adapters.evaluation import from_json, make_report, to_markdown, with_rows, write_report
from onestep_adapters.metrics import Estimate
from onestep_core.errors import ConfigError

TABLES = sorted(RESULTS.glob("methods-*.json"))


def published(name):
    return from_json((RESULTS / f"methods-{name}.json").read_text())


def empty(report):
    """Of the same data, without rows."""
    return with_rows(report, [], baseline=None)


@pytest.mark.parametrize("data", ["8gaussians", "checkerboard"])
def test_old_rows_keep_their_notes_and_are_judged_by_their_baseline(data):
    before, old = RESULTS / f"methods-{data}.json", published(data)
    same = with_rows_of(before, empty(old))
    assert same.baseline == "flow-matching"
    labels = [row.label for row in same.rows]
    assert labels == ordered(labels) == list(same.verdicts)
    assert same.verdicts == old.verdicts
    row = next(row for row in old.rows if row.label == "reflow")
    worse = attrs.evolve(row, metrics={**row.metrics, "score": Estimate(9.0, 0.1)})
    new = with_rows_of(before, attrs.evolve(empty(old), rows=(worse,)))
    assert new.overall("reflow") == "miss" != old.overall("reflow")
    assert {row.label: row.notes for row in new.rows} == {row.label: row.notes for row in old.rows}
    others = [label for label in labels if label != "reflow"]
    assert {label: new.verdicts[label] for label in others} == {label: old.verdicts[label] for label in others}


def test_rows_of_images_likewise():
    before, old = RESULTS / "methods-digits.json", published("digits")
    row = next(row for row in old.rows if row.label == "reflow")
    new = with_rows_of(before, attrs.evolve(empty(old), rows=(attrs.evolve(row, notes="new"),)))
    assert new.baseline == old.baseline
    assert {row.label: row.notes for row in new.rows if row.notes != "new"} == {
        row.label: row.notes for row in old.rows if row.label != "reflow"
    }
    assert new.verdicts == old.verdicts
    references = [row.label for row in old.references.rows]
    assert list(new.verdicts) == [*references[1:], *ordered(row.label for row in old.rows)]


def test_a_table_starts_somewhere(tmp_path):
    nothing = empty(published("8gaussians"))
    assert with_rows_of(tmp_path / "none.json", nothing) is nothing


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_a_published_report_is_read_as_it_was_written(file, tmp_path):
    report = from_json(file.read_text())
    assert to_markdown(report) == file.with_suffix(".md").read_text() == write_report(tmp_path, report)
    assert (tmp_path / "report.json").read_text() == file.read_text()
    for part in ("rows", "comparison"):
        with pytest.raises(ConfigError, match="written by to_json"):
            from_json(json.dumps(json.loads(file.read_text()) | {part: None}))


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_published_row_states_its_budget(file):
    """Updates, evaluations in training and per sample; those of its teacher, where it learns from one."""
    for row in from_json(file.read_text()).rows:
        cost = row.cost
        assert cost.updates, row.label
        assert cost.training_evaluations >= cost.updates, row.label
        assert cost.evaluations_per_sample, row.label
        assert (cost.teacher_updates is None) == (cost.teacher_evaluations is None), row.label
    assert any(row.cost.teacher_updates for row in from_json(file.read_text()).rows)


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_published_verdicts_follow_from_the_published_numbers(file):
    report = from_json(file.read_text())
    made = make_report(
        report.rows,
        kind=report.kind,
        data=report.data,
        comparison=report.comparison,
        references=report.references,
        baseline=report.baseline,
    )
    assert made.verdicts == report.verdicts
