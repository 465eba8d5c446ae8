"""Tables that grow from day to day."""

import json

import attrs
import pytest

from benchmarks.methods import RESULTS, ordered, with_rows_of
from onestep_adapters.metrics import from_json
from onestep_adapters.recipes.evaluation import ImageReport, ToyReport
from onestep_core.errors import ConfigError


@pytest.mark.parametrize("data", ["8gaussians", "checkerboard"])
def test_old_rows_keep_what_was_said_and_are_judged_by_their_yardstick(data):
    before = RESULTS / f"methods-{data}.json"
    nothing = ToyReport(data, {}, {}, None, {}, {}, 5)
    old, new = with_rows_of(before, nothing), with_rows_of(before, nothing)
    assert new.yardstick == "flow-matching"
    assert list(new.scores) == ordered(new.scores) == list(new.verdicts)
    worse = new.scores["reflow"]._replace(score=9.0)
    new = with_rows_of(before, attrs.evolve(nothing, scores={"reflow": worse}, costs={"reflow": "much"}))
    assert new.verdicts["reflow"].text == "miss" != old.verdicts["reflow"].text
    assert new.notes == old.notes
    del new.verdicts["reflow"], old.verdicts["reflow"]
    assert new.verdicts == old.verdicts


def test_rows_of_images_likewise():
    before = RESULTS / "methods-digits.json"
    old = from_json(before.read_text())
    row = next(row for row in old.rows if row.label == "reflow")
    part = attrs.evolve(old, rows=(attrs.evolve(row, notes="new"),), yardstick=None, verdicts={})
    new = with_rows_of(before, ImageReport(part)).report
    assert new.yardstick == old.yardstick
    assert {row.label: row.notes for row in new.rows if row.notes != "new"} == {
        row.label: row.notes for row in old.rows if row.label != "reflow"
    }
    assert new.verdicts == old.verdicts
    references = [row.label for row in old.references if row is not None]
    assert list(new.verdicts) == [*references[1:], *ordered(row.label for row in old.rows)]


def test_a_table_starts_somewhere(tmp_path):
    nothing = ToyReport("8gaussians", {}, {}, None, {}, {}, 5)
    assert with_rows_of(tmp_path / "none.json", nothing) is nothing


@pytest.mark.parametrize("data", ["8gaussians", "checkerboard"])
def test_a_report_of_the_plane_is_read_as_it_was_written(data, tmp_path):
    report = ToyReport.from_json((RESULTS / f"methods-{data}.json").read_text())
    text = report.write(tmp_path)
    assert text == (RESULTS / f"methods-{data}.md").read_text()
    assert ToyReport.from_json((tmp_path / "report.json").read_text()) == report
    with pytest.raises(ConfigError, match="of a law in the plane"):
        ToyReport.from_json((RESULTS / "methods-digits.json").read_text())
    for part in ("scores", "costs"):
        with pytest.raises(ConfigError, match="of a law in the plane"):
            ToyReport.from_json(json.dumps(json.loads((tmp_path / "report.json").read_text()) | {part: None}))
