"""Comparisons at equal budgets: what a cell costs, that two runs are equal, that a stopped one goes on, what failed."""

import contextlib
import json
import random
import subprocess
import sys

import attrs
import pytest

from onestep_adapters.cli import main
from onestep_adapters.comparison import grid, make_plan, missing, results, spent, within_budget
from onestep_adapters.comparison.cells import read_cell, spikes
from onestep_adapters.comparison.lines import lines_of
from onestep_adapters.comparison.report import to_json, write_comparison
from onestep_adapters.data import open_dataset
from onestep_adapters.methods import METHODS
from onestep_core.errors import ConfigError
from tests.adapters.comparison.small import PLAN, plan_of, tiny_presets, worked


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        tiny_presets(patch)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("comparison")
    worked(PLAN, folder)
    return folder


def apart(text):
    """The JSON without what may differ between two runs."""
    return {name: value for name, value in json.loads(text).items() if name not in ("times", "environment")}


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_uses_its_budget(method, data):
    """Budgets of which one update is less than 1 %, as the presets have."""
    dataset = open_dataset(data)
    options = METHODS[method].options(dataset)
    budget = 2_000_000 if data == "8gaussians" else 1_000_000
    cost = spent(within_budget(options, dataset, budget), dataset)
    assert 0.99 * budget < cost.total <= budget
    assert (cost.teacher > 0) == (options.teacher is not None)
    assert (cost.pairs > 0) == options.uses_pairs


def test_a_budget_that_trains_nothing_is_refused():
    data = open_dataset("8gaussians")
    with pytest.raises(ConfigError, match="give a larger --budget"):
        within_budget(METHODS["meanflow"].options(data), data, 100)


def test_rows_of_a_comparison_have_equal_budgets(home):
    totals = [cell["spent"]["total"] for cell in results(PLAN, home)]
    assert len(totals) == 5
    assert max(totals) - min(totals) < 0.03 * max(totals)  # one update of these small budgets


def test_a_cell_says_what_was_measured(home):
    contents = results(PLAN, home)
    assert {cell["status"] for cell in contents} == {"done"}
    by_method = {cell["method"]: cell for cell in contents}
    assert set(by_method["meanflow"]["distances"]) == {"1", "2", "4"}
    assert set(by_method["drifting"]["distances"]) == {"1"}
    assert set(by_method["flow-matching"]["distances"]) == {"1", "2", "4", "10"}
    for cell in contents:
        assert cell["floor"] > 0
        assert len(cell["curve"]) >= 4
        assert cell["curve"][-1][0] <= cell["spent"]["total"]


def test_finished_cells_are_not_worked_on_again(home):
    before = {cell: read_cell(cell, home) for cell in PLAN.cells}
    assert worked(PLAN, home) == []
    assert missing(PLAN, home) == []
    assert {cell: read_cell(cell, home) for cell in PLAN.cells} == before


@pytest.mark.parametrize("until", [1, 2])
def test_a_stopped_comparison_goes_on_to_the_same_numbers(home, tmp_path, until, monkeypatch):
    monkeypatch.setattr(grid, "_OFTEN", 0.0)
    for _ in range(until):
        worked(PLAN, tmp_path, until=9 * until)
    worked(PLAN, tmp_path)
    assert apart(to_json(PLAN, results(PLAN, tmp_path))) == apart(to_json(PLAN, results(PLAN, home)))


@pytest.mark.thorough
def test_twenty_kills_change_nothing(home, tmp_path):
    """The process is killed at random moments, each time a little later; then it is left alone."""
    script = "from tests.adapters.comparison.small import killed; killed()"
    command, place = [sys.executable, "-c", script, str(tmp_path)], random.Random(0)
    for attempt in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # imported
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(place.uniform(0.0, 1.0 + attempt))
            process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert missing(PLAN, tmp_path) == []
    assert apart(to_json(PLAN, results(PLAN, tmp_path))) == apart(to_json(PLAN, results(PLAN, home)))


def test_a_failed_cell_is_a_row_with_its_reason(tmp_path, monkeypatch):
    broken = METHODS["meanflow"]
    training = attrs.evolve(broken.points.training, learning_rate=1e30, warmup=0)
    monkeypatch.setitem(METHODS, "meanflow", broken._replace(points=attrs.evolve(broken.points, training=training)))
    plan = plan_of("meanflow")
    worked(plan, tmp_path)
    cell = next(cell for cell in results(plan, tmp_path) if cell["method"] == "meanflow")
    assert cell["status"] == "failed"
    assert "finite" in cell["reason"]
    page = write_comparison(plan, tmp_path)
    assert any(line.startswith("**Failed**: meanflow on 8gaussians") for line in page.verdict)
    assert cell["reason"] in (tmp_path / "report.md").read_text().replace("\\|", "|")


def test_another_budget_in_the_same_folder_is_refused(home):
    with pytest.raises(ConfigError, match="give the same --preset and --budget, or another --folder"):
        next(iter(grid.work(attrs.evolve(PLAN, budgets={"8gaussians": 5}), home, workers=1)), None)


def test_seeds_have_a_mean_and_a_spread(tmp_path):
    plan = plan_of("drifting", seeds=2)
    worked(plan, tmp_path)
    lines = {line.method: line for line in lines_of(plan, results(plan, tmp_path))}
    values = lines["drifting"].values(1)
    assert len(values) == 2
    assert lines["drifting"].distance(1) == pytest.approx(sum(values) / 2)
    assert lines["drifting"].spread(1) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_spikes_are_far_above_the_median_before():
    assert spikes([1.0] * 100 + [9.0, 11.0]) == 1
    assert spikes([1.0] * 50) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods", "meanflwo"], "did you mean 'meanflow'"),
        (["--data", "8gausians"], "did you mean '8gaussians'"),
        (["--preset", "fast"], "quick"),
        (["--budget", "0"], "budget"),
        (["--seeds", "0"], "seeds"),
        (["--workers", "0"], "workers"),
        (["--methods", "meanflow", "meanflow"], "given twice"),
        (["--methods", "simclr"], "simclr"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(words, told, capsys, tmp_path):
    assert main(["compare", *words, "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_presets_have_every_family():
    from onestep_adapters.methods.registry import FAMILIES

    chosen = make_plan("quick").methods
    for family in FAMILIES:
        assert any(type(METHODS[name].points).__module__.startswith(family.__name__) for name in chosen), family
    assert set(make_plan("standard").methods) == set(METHODS)
