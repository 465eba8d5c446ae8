"""Comparisons at equal budgets: what a cell costs, that two runs are equal, that a stopped one goes on, what failed."""

import contextlib
import json
import random
import signal
import subprocess
import sys

import attrs
import pytest

from onestep_adapters.cli import main
from onestep_adapters.comparison import grid, make_plan, missing, results, spent, within_budget
from onestep_adapters.comparison.advice import advice_page
from onestep_adapters.comparison.cells import options_of, read_cell, spikes
from onestep_adapters.comparison.lines import Line, lines_of
from onestep_adapters.comparison.report import to_json, write_comparison
from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation.pages import to_text
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


@pytest.mark.parametrize("method", METHODS)
def test_one_batch_for_all_methods_and_teachers(method):
    plan = make_plan("quick", methods=[method], batch=32)
    options = options_of(plan.cells[-1], plan)
    assert options.training.batch == 32
    assert options.teacher is None or options.teacher.training.batch == 32
    cost = spent(options, open_dataset("8gaussians"))
    assert 0.99 * plan.budgets["8gaussians"] < cost.total <= plan.budgets["8gaussians"]


def test_a_folder_has_one_batch(tmp_path):
    grid.keep_plan(make_plan("quick"), tmp_path)
    grid.keep_plan(make_plan("quick", batch=128), tmp_path)
    with pytest.raises(ConfigError, match="batches of 128 samples, and you want batches of 64 samples: give the same"):
        grid.keep_plan(make_plan("quick", batch=64), tmp_path)
    with pytest.raises(ConfigError, match="you want the batches of each method's preset"):
        grid.keep_plan(attrs.evolve(make_plan("quick"), batch=None), tmp_path)


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
    """A process at work is killed twenty times at random moments; where one finishes before, another begins anew."""
    script, place = "from tests.adapters.comparison.small import killed; killed()", random.Random(0)
    undisturbed = apart(to_json(PLAN, results(PLAN, home)))
    kills, finished = 0, 0
    while kills < 20 or (tmp_path / str(finished)).exists():
        folder = tmp_path / str(finished)
        with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # imported
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(place.uniform(0.0, 3.0) if kills < 20 else None)
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            assert apart(to_json(PLAN, results(PLAN, folder))) == undisturbed
            finished += 1
        else:
            kills += 1


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


def test_the_curve_ends_at_the_distance_of_the_result(home):
    """Both are the mean of the same draws, so that "near after" does not say what the final distance denies."""
    ended = [cell for cell in results(PLAN, home) if cell["curve"][-1][0] == cell["spent"]["total"]]
    ended = [cell for cell in ended if cell["method"] != "flow-matching"]
    assert ended
    for cell in ended:
        assert cell["curve"][-1][1] == pytest.approx(cell["distances"]["1"], rel=1e-6)


def made_up(method, distance, curve, *, needs=(), ode="to train", derivative=False):
    declared = {"needs": list(needs), "ode": ode, "derivative": derivative}
    cell = {"declared": declared, "evaluations_per_sample": 1, "distances": {"1": distance}, "curve": curve}
    return Line("8gaussians", method, ({**cell, "spent": {"total": 4000}, "spikes": 0},), (), 0.01, 0.02)


def test_the_advice_page_names_the_nearest_by_need_and_budget_and_where_the_order_turns():
    lines = [
        made_up("meanflow", 0.02, [[500, 0.9], [4000, 0.02]], derivative=True),
        made_up("drifting", 0.05, [[500, 0.06], [4000, 0.05]], ode="no"),
        made_up("reflow", 0.01, [[2000, 0.5], [4000, 0.01]], needs=["teacher", "pairs"]),
    ]
    page = to_text(advice_page(PLAN, lines))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    needs = {row[0]: row[1:] for row in rows if len(row) == 6}
    assert needs["data alone"][:4] == ["meanflow", "2.00", "1.00", "drifting (5.00)"]
    assert "drifting is nearer" in needs["data alone"][4]
    assert needs["a teacher that makes pairs"][0] == "reflow"
    assert needs["an encoder"][0] == "none compared"
    assert needs["no ODE"][0] == "drifting"
    heads = next(row for row in rows if row[0] == "budget")
    budgets = {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows if len(row) == len(heads)}
    assert budgets["500"]["data alone"] == "drifting (6.00)"
    assert budgets["500"]["a teacher that makes pairs"] == "–"
    assert budgets["4,000"]["data alone"] == "meanflow (2.00)"
    assert ["1", "reflow (1.00), meanflow (2.00), drifting (5.00)"] in rows


def test_the_advice_page_is_written_beside_the_report(home):
    write_comparison(PLAN, home)
    page = (home / "which-method.md").read_text()
    assert page == to_text(advice_page(PLAN, lines_of(PLAN, results(PLAN, home)))) + "\n"
    assert page.startswith("# Which method")


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
