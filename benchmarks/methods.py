"""Every method of the table, trained and judged: ``python -m benchmarks.methods``.

For each data set the methods are trained one after another into ``FOLDER/DATA/METHOD``; what is complete there is kept
and what was cut off goes on. Then all of them are measured together, on the test split where there is one, and
``benchmarks/results/`` gets ``methods-DATA.md`` and ``.json``, ``methods-DATA.png`` with samples and
``methods-DATA-curves.png`` with the distance to validation data over the training. With ``--seeds 3`` every method is
trained from three seeds (its teacher from one), and the rows go to ``methods-DATA-seeds.md`` and ``.json`` alone.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import attrs
import torch

from onestep_adapters.metrics import bars, from_json, passes
from onestep_adapters.metrics.plots import curves, image_grid, toy_scatter
from onestep_adapters.recipes import METHODS, FlowMatching, find_method
from onestep_adapters.recipes.evaluation import ImageReport, ToyReport, digits_classifier, evaluate_runs
from onestep_adapters.recipes.problems import DIGITS
from onestep_adapters.recipes.recipe import with_seed
from onestep_adapters.recipes.runs import Run, resume_or_start
from onestep_adapters.recipes.teachers import teacher_folder
from onestep_adapters.recipes.watching import COARSE_STEPS, distance_to, histories, watched

RESULTS = Path(__file__).parent / "results"
DATA = ("8gaussians", "checkerboard", "unequal", DIGITS)
POINTS = 2000


def train(data: str, methods: list[str], folder: Path, *, seed: int = 0) -> dict[str, Run]:
    """Complete runs of the methods, one line each; those of another seed than 0 in folders of their own."""
    if data == DIGITS:
        from onestep_adapters.recipes.digits import digits_evaluation

        validation = digits_evaluation("validation")
        distance = distance_to(validation.held_out, digits_classifier(validation, validation).features)
    else:
        distance = None
    runs = {}
    for name in methods:
        recipe = with_seed(find_method(name).options(data), seed)
        label = f"{name}-seed-{seed}" if seed else name
        # The yardstick is a teacher too, and trained once.
        place = teacher_folder(data, recipe) if isinstance(recipe, FlowMatching) else folder / data / label
        run = resume_or_start(place, name, data, recipe, resume=True)
        if not run.finished:
            for _ in run.teaching():
                pass
            seen = distance or distance_to(
                run.problem.law.sample(POINTS, generator=torch.Generator().manual_seed(9))  # type: ignore[attr-defined]
            )
            for _ in watched(run, place, seen):
                pass
        print(f"{data}: {label} trained in {run.seconds:.0f} s", flush=True)
        runs[label] = run
    return runs


def with_rows_of(before: Path, report: ImageReport | ToyReport) -> ImageReport | ToyReport:
    """The report and, of methods that it has not, the rows of one written before with what was said of them then; in
    the order of the table, verdicts by the references of now and the yardstick of now, or else of then.

    Example:
        >>> with_rows_of(Path("nowhere.json"), ToyReport("8gaussians", {}, {}, None, {}, {}, 5)).scores
        {}
    """
    if not before.exists():
        return report
    if isinstance(report, ImageReport):
        new, old = report.report, from_json(before.read_text())
        rows = {row.label: row for row in (*old.rows, *new.rows)}
        rows = {label: rows[label] for label in ordered(rows)}
        yardstick = new.yardstick or old.yardstick
        references = {row.label: row for row in new.references if row is not None}
        judged = {label: row for label, row in (references | rows).items() if row is not new.references.floor}
        verdicts = {label: tuple(bars(row, rows.get(yardstick or ""), new.references)) for label, row in judged.items()}
        return ImageReport(attrs.evolve(new, rows=tuple(rows.values()), yardstick=yardstick, verdicts=verdicts))
    old = ToyReport.from_json(before.read_text())
    scores = old.scores | report.scores
    scores = {name: scores[name] for name in ordered(scores)}
    yardstick = report.yardstick or old.yardstick
    best = scores.get(yardstick or "")
    notes = old.notes | report.notes
    return attrs.evolve(
        report,
        scores=scores,
        costs=old.costs | report.costs,
        notes={name: notes.get(name, "") for name in scores},
        yardstick=yardstick,
        verdicts={} if best is None else {name: passes(score, best) for name, score in scores.items()},
    )


def ordered(names: Iterable[str]) -> list[str]:
    """Rows by seed, and those of a seed as in the table of methods.

    Example:
        >>> ordered(["drifting", "meanflow, seed 1", "flow-matching"])
        ['flow-matching', 'drifting', 'meanflow, seed 1']
    """
    places = list(METHODS)

    def place(name: str) -> tuple[int, int]:
        method, _, seed = name.partition(", seed ")
        return int(seed or 0), places.index(method)

    return sorted(names, key=place)


def judge(data: str, runs: dict[str, Run], *, suffix: str = "", add: bool = False) -> None:
    """The report."""
    written = evaluate_runs(list(runs.values()), None, split="test", repeats=5, seed=0)
    if add and isinstance(written, ImageReport | ToyReport):
        written = with_rows_of(RESULTS / f"methods-{data}{suffix}.json", written)
    written.write(RESULTS / ".draft")
    for kind in ("md", "json"):
        (RESULTS / ".draft" / f"report.{kind}").replace(RESULTS / f"methods-{data}{suffix}.{kind}")
    (RESULTS / ".draft").rmdir()
    print((RESULTS / f"methods-{data}{suffix}.md").read_text(), flush=True)


def draw(data: str, runs: dict[str, Run], *, suffix: str = "") -> None:
    """Samples and curves."""
    generator = torch.Generator().manual_seed(2)
    if data == DIGITS:
        from onestep_adapters.data.digits import load_digits

        real = load_digits().train
        asked = torch.arange(10).repeat_interleave(4)
        sets = {name: run.samples(40, generator=generator, labels=asked)[0] for name, run in runs.items()}
        labels = dict.fromkeys(sets, asked)
        picture = image_grid(real.images, sets, real_labels=real.labels, labels=labels)
    else:
        law = next(iter(runs.values())).problem.law  # type: ignore[attr-defined]
        sets = {name: run.samples(1000, generator=generator)[0] for name, run in runs.items()}
        picture = toy_scatter(law.sample(1000, generator=generator), sets, columns=5, title=data)
    picture.savefig(RESULTS / f"methods-{data}{suffix}.png")
    known = histories(runs)
    if known:
        curves(
            known,
            ylabel="squared energy distance to validation data",
            title=f"{data} (flow matching sampled in {COARSE_STEPS} steps here)",
        ).savefig(RESULTS / f"methods-{data}{suffix}-curves.png")


def main() -> None:
    """Train and judge what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, help="data sets; %(default)s")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help="all, in their order")
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"), help="of the runs; %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch; %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every method; %(default)s")
    parser.add_argument("--add", action="store_true", help="keep the other rows of the table")
    parser.add_argument("--train-only", action="store_true", help="leave the judging to a later call")
    chosen = parser.parse_args()
    if chosen.seeds < 1:
        parser.error(f"--seeds {chosen.seeds}: expected at least 1")
    torch.set_num_threads(chosen.threads)
    os.environ.setdefault("ONESTEP_TEACHERS", str(chosen.folder / "teachers"))
    RESULTS.mkdir(exist_ok=True)
    for data in chosen.data:
        runs: dict[str, Run] = {}
        for seed in range(chosen.seeds):
            runs |= train(data, chosen.methods, chosen.folder, seed=seed)
        if chosen.train_only:
            continue
        judge(data, runs, suffix="-seeds" if chosen.seeds > 1 else "", add=chosen.add)
        if chosen.seeds == 1:
            draw(data, runs, suffix="-added" if chosen.add else "")


if __name__ == "__main__":
    main()
