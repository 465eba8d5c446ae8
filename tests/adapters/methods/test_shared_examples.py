"""The examples that judge Fashion-MNIST: their tables and sentences say what the numbers say, their time is counted."""

import importlib
import json
from pathlib import Path

import pytest

from onestep_adapters.comparison import spent, within_budget
from onestep_adapters.data import open_dataset
from onestep_adapters.methods import METHODS

EXAMPLES = Path(__file__).parents[3] / "examples"
WORDS = ["--steps", "4", "--batch", "8", "--width", "8", "--depth", "1", "--warmup", "1", "--checkpoint-every", "2"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def numbers(fd, coverage=0.5, **more):
    return {
        "FD": float(fd),
        "KD": fd / 20,
        "precision": 0.5,
        "recall": 0.5,
        "density": 0.5,
        "coverage": coverage,
        **more,
    }


def judged(method, *cells):
    cost = {"evaluations": 1, "updates": 10, "seconds": 60.0}
    return [{"method": method, "seed": seed, **cost, **found} for seed, found in enumerate(cells)]


BESIDE = {"floor: training images": [numbers(5, 0.97)], "a Gaussian of each class": [numbers(200, 0.2)]}


def test_claims_are_decided_by_the_means_over_the_seeds(example):
    claims = example("one_step_fashion_mnist").claims
    base = judged("flow-matching", numbers(90, 0.5), numbers(110, 0.3))
    good = judged("drifting", numbers(130, 0.37), numbers(69, 0.37))
    said = claims([*base, *good], BESIDE)
    assert [line.partition(":")[0] for line in said] == ["holds"] * 4
    bad = judged("drifting", numbers(101, 0.35), numbers(101, 0.35)) + judged("rectified-meanflow", numbers(210, 0.1))
    said = claims([*base, *bad], BESIDE)
    outcomes = [line.partition(":")[0] for line in said]
    assert outcomes == ["does not hold"] * 3 + ["holds", "does not hold", "holds"]
    assert "FD of rectified-meanflow, 210, is at most 150, 1.5 times the baseline's" in said[2]
    assert claims(judged("dmd2", numbers(1)), BESIDE) == []


def test_the_table_has_a_row_for_every_method_and_reference(example):
    table = example("one_step_fashion_mnist").table
    lines = table([*judged("drifting", numbers(90), numbers(110)), *judged("dmd2", numbers(300))], BESIDE).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["dmd2", "drifting", *BESIDE]
    assert lines[3].split(" | ")[1:6] == ["2", "1", "10", "60", "100 ± 14.1"]


def test_a_teacher_takes_half_of_the_time_and_its_pairs_a_part(example):
    script = example("one_step_fashion_mnist")

    def steps(method, minutes=4.0):
        words = script.words_of(method, minutes, 0, encoder=Path("e"), teacher=Path("t"))
        return {name: words[words.index(name) + 1] for name in ("--steps", "--pairs") if name in words}

    each = script.PER_MINUTE
    assert steps("flow-matching") == {"--steps": str(4 * each["flow-matching"])}
    assert steps("dmd2") == {"--steps": str(2 * each["dmd2"])}
    spent = int(steps("rectified-meanflow")["--pairs"]) / script.PAIRS_PER_MINUTE
    spent += int(steps("rectified-meanflow")["--steps"]) / each["rectified-meanflow"]
    assert spent == pytest.approx(2, abs=0.02)


def test_processor_time_is_counted_once(example, tmp_path):
    trained, data = example("one_step_fashion_mnist").trained, open_dataset("digits")
    run, seconds = trained("flow-matching", WORDS, tmp_path / "a", data)
    file = tmp_path / "a.processor"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert run.finished
    assert [step for step, _ in entries] == [0, 1, 2, 3, 4]
    assert 0 < seconds == pytest.approx(sum(spent for _, spent in entries))
    with file.open("a") as stream:
        print(json.dumps([5, 1e6]), file=stream)  # done after the last checkpoint by a process that was killed
    assert trained("flow-matching", WORDS, tmp_path / "a", data)[1] == seconds


def test_the_sentence_of_an_ablation_compares_with_the_published_order(example):
    ablation = example("ablation")
    rows = [("a", 1.0), ("b", 2.0), ("c", 3.0), ("other", None)]
    study = ablation.Ablation("letter", tuple(ablation.Variant(name, name, (), fid) for name, fid in rows), ())

    def said(**fids):
        cells = [{"variant": name, "seed": 0, **numbers(fd)} for name, fd in {**fids, "other": 1.0}.items()]
        return ablation.sentence(study, cells, BESIDE)

    assert said(a=10, b=20, c=30).startswith("a has the smallest mean FD (10.0); a is the best in 1 of 1 seeds.")
    assert "of the 3 rows holds: 3 of the 3 pairs" in said(a=10, b=20, c=30)
    other = said(a=400, b=300, c=350)
    assert other.startswith("b has the smallest mean FD (300), not a (400); a is the best in 0 of 1 seeds.")
    assert "does not hold as a whole: 1 of the 3 pairs" in other
    assert other.endswith(
        "b, c, a. Every row is worse than floor: training images (5.00) and a Gaussian of each class (200)."
    )


def test_the_ablations_have_a_row_for_every_published_number(example):
    for name in ("ablation_antisymmetry", "ablation_encoders"):
        assert len(example(name).PUBLISHED) >= 5
    variant = example("ablation_antisymmetry").variant(1.0, 0.0, 177.14)
    assert variant == ("attraction alone", "1-0", ("--attraction", "1", "--repulsion", "0"), 177.14)


def test_every_lever_changes_something_and_uses_the_budget(example):
    levers, data = example("levers_meanflow"), open_dataset("digits")
    preset = METHODS["meanflow"].options(data)
    made = [levers.changed(preset, changes) for changes in levers.LEVERS.values()]
    assert made[0] == preset
    assert all(options != preset for options in made[1:])
    assert all(0.99 < spent(within_budget(options, data, 500_000), data).total / 500_000 <= 1 for options in made)
