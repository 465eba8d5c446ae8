"""Reports: what is written is read again, and says everything."""

import json
import math
import platform

import attrs
import pytest
import torch

from onestep_adapters.evaluation import (
    Cost,
    References,
    Row,
    from_json,
    make_report,
    summary,
    to_json,
    to_markdown,
    with_rows,
    write_report,
)
from onestep_adapters.evaluation.image_criteria import METRICS
from onestep_adapters.evaluation.judges import image_comparison, image_references, image_row
from onestep_adapters.metrics import ImageSplits, measure, measure_references, train_classifier
from onestep_core.errors import ConfigError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from onestep_adapters.data.digits import load_digits

    train, validation, test = load_digits()
    classifier = train_classifier(*train, validation_images=validation.data, validation_labels=validation.labels)
    splits = ImageSplits(train.data, validation.data, train.labels)
    measured = measure_references(splits=splits, classifier=classifier, generator=generator(), repeats=3)
    comparison = image_comparison(splits, classifier, measured["floor"])
    return splits, classifier, image_references(measured), test.data, comparison


def measured(digits, samples, repeats=2, **settings):
    splits, classifier = digits[:2]
    return measure(samples, splits=splits, classifier=classifier, generator=generator(), repeats=repeats, **settings)


def settings(digits):
    return {"kind": "images", "data": "digits", "references": digits[2], "comparison": digits[4]}


@pytest.fixture(scope="module")
def report(digits):
    spare, train = digits[3], digits[0].train
    rows = [
        attrs.evolve(
            image_row("flow matching", measured(digits, spare, repeats=1), "50 Euler steps"),
            cost=Cost(50, 20_000, 20_000, None, None, 61.5, 321.25),
        ),
        attrs.evolve(
            image_row("copies", measured(digits, train[:700])),
            cost=Cost(1, 30_000, 60_000, 2_400, 4_800),
            notes="chosen to fail | on purpose",
        ),
        Row("diverged", None, "without warm-up", notes="NaN at update 312"),
    ]
    return make_report(rows, **settings(digits), baseline=rows[0].label, title="Digits")


def test_report_survives_json(report):
    text = to_json(report)
    assert from_json(text) == report
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert isinstance(from_json(text).references, References)
    assert isinstance(from_json(text).rows[0].cost, Cost)
    with pytest.raises(ConfigError, match="finite"):
        to_json(attrs.evolve(report, rows=(attrs.evolve(report.rows[0], cost=Cost(training_seconds=math.nan)),)))
    with pytest.raises(ConfigError, match="written by to_json"):
        from_json("{}")
    with pytest.raises(ConfigError, match="no kind of data"):
        from_json(text.replace('"kind": "images"', '"kind": "image"'))


def test_markdown_tells_everything(report):
    text = to_markdown(report)
    lines = text.splitlines()
    names = [row.label for row in (*report.references.rows, *report.rows)]
    for heading in ("## Metrics", "## Classes"):
        table = lines[lines.index(heading) :]
        order = [next(i for i, line in enumerate(table) if line.startswith(f"| {name} |")) for name in names[:-1]]
        assert order == sorted(order)
    assert all(f"| {name} |" in text for name in names)
    for part in (
        "miss (6 of 6)",
        "not measured",
        "chosen to fail",
        "NaN at update 312",
        "train the baseline",
        "321",
        "60,000 + 4,800 (teacher)",
    ):
        assert part in text
    assert all(f"**{METRICS[name].heading}**" in text for name in report.rows[0].metrics)
    assert str(torch.get_num_threads()) in text
    assert torch.__version__ in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") - line.count("\\|") for line in table}) == 1


def test_the_summary_says_what_failed_by_how_much_and_against_what(report):
    opening, copies, diverged, baseline = summary(report)
    assert opening == "2 rows on digits, against the baseline flow matching (50 Euler steps):"
    assert copies.startswith("  copies                      miss (1 of 6): nearest training image, 5 % 0 (limit ")
    assert diverged == "  diverged (without warm-up)  miss: not measured, NaN at update 312"
    assert baseline.startswith("flow matching (50 Euler steps) (baseline): ")
    kept = [row for row in report.rows if row.label != "diverged (without warm-up)"]
    one = summary(with_rows(report, kept, baseline=report.baseline))
    assert one[0] == ("copies on digits, against the baseline flow matching (50 Euler steps): miss (1 of 6 thresholds)")
    (missed,) = [line for line in one if line.startswith("  miss")]
    limit = report.comparison.facts["held_out_nearest"]
    assert missed == f"  miss  nearest training image, 5 %  0, at least {limit:.2f}: {limit:.2f} too low"
    assert len([line for line in one if line.startswith("  pass")]) == 5
    assert (
        "  cost: 30,000 updates, 60,000 evaluations; + 4,800 evaluations for the teacher; 1 evaluation per sample"
        in one
    )
    assert len(one) <= 10
    alone = summary(with_rows(report, report.rows[1:2], baseline=None))
    assert alone[0].startswith("copies on digits, against real data: miss (1 of 6")
    assert "onestep train flow-matching --data digits" in alone[-1]


def test_pictures_are_shown_in_the_report(report, tmp_path):
    text = write_report(tmp_path, report, {"Samples beside real data": "report-samples.png"})
    assert "![Samples beside real data](report-samples.png)" in text
    assert text.index("report-samples.png") < text.index("## Metrics")


def test_report_names_no_host_and_no_folder(report, tmp_path):
    host, folder = platform.node(), str(tmp_path)
    write_report(tmp_path / "new", report)
    written = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in written] == ["report.json", "report.md"]
    for path in written:
        content = path.read_text(encoding="utf-8")
        assert host not in content
        assert folder not in content
        assert "/root" not in content
    write_report(tmp_path / "new", report)  # again, over the old one
    assert from_json((tmp_path / "new" / "report.json").read_text(encoding="utf-8")) == report


def test_report_refuses_equal_names_and_an_unknown_baseline(digits, report):
    with pytest.raises(ConfigError, match="two rows are called 'copies'"):
        make_report([report.rows[1], report.rows[1]], **settings(digits))
    with pytest.raises(ConfigError, match="not among the rows"):
        make_report([report.rows[1]], baseline="flow", **settings(digits))


def test_a_baseline_that_misses_a_threshold_is_not_silent(digits, report):
    poor = next(row for row in report.rows if row.label == "copies")
    found = make_report([poor], **settings(digits), baseline="copies")
    assert found.missed("copies")
    assert not found.sound
    assert "The baseline itself misses a threshold" in to_markdown(found)


def test_rows_are_judged_anew_beside_others(report):
    """Without the baseline, images are compared with the floor; with it, as before."""
    fewer = with_rows(report, report.rows[1:], baseline=None)
    assert [row.label for row in fewer.rows] == ["copies", "diverged (without warm-up)"]
    assert fewer.verdicts["copies"] != report.verdicts["copies"]
    assert with_rows(report, report.rows, baseline=report.baseline) == report


def test_captions_name_the_budget():
    assert Cost(1, 600, 1200).caption == "600 updates, 1,200 evaluations\n1 evaluation per sample"
    assert "+ 2,400 evaluations for the teacher" in Cost(1, 600, 1200, 2400, 2400).caption
    assert Cost().caption == ""
