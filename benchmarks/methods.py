"""Every method of the table, trained and judged: ``python -m benchmarks.methods``.

For each data set the methods are trained one after another into ``FOLDER/DATA/METHOD``. Complete runs there are kept,
interrupted ones are resumed. Then all of them are measured together, on the test split where there is one, and
``benchmarks/results/`` gets ``methods-DATA.md`` and ``.json``, ``methods-DATA.png`` with samples and
``methods-DATA-curves.png`` with the distance to validation data during training. Every row and every picture states its
budget: training updates, network evaluations in training (those of a teacher apart), and evaluations per sample. With
``--seeds 3`` every method is trained from three seeds (its teacher from one), and the rows go to
``methods-DATA-seeds.md`` and ``.json`` alone.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import attrs
import torch

from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation import (
    Report,
    evaluate_runs,
    from_json,
    histories,
    to_json,
    to_markdown,
    validation_distance,
    watched,
    with_rows,
)
from onestep_adapters.evaluation.figures import curves
from onestep_adapters.evaluation.pictures import draw_runs
from onestep_adapters.files import write_whole
from onestep_adapters.methods import METHODS, FlowMatching, find_preset
from onestep_adapters.methods.flow_matching import PREVIEW_STEPS
from onestep_adapters.runs import Run, resume_or_start
from onestep_adapters.runs.teachers import teacher_folder

RESULTS = Path(__file__).parent / "results"
DATA = ("8gaussians", "checkerboard", "unequal", "digits")


def train(data: str, methods: list[str], folder: Path, *, seed: int = 0) -> dict[str, Run]:
    """Complete runs of the methods, one line each; those of another seed than 0 in folders of their own."""
    dataset, distance = open_dataset(data), None
    runs = {}
    for name in methods:
        options = find_preset(name).options(dataset).with_seed(seed)
        label = f"{name}-seed-{seed}" if seed else name
        # The baseline is a teacher too, and trained once.
        place = (
            teacher_folder(data, attrs.asdict(options)) if isinstance(options, FlowMatching) else folder / data / label
        )
        run = resume_or_start(place, name, dataset, options, resume=True)
        if not run.finished:
            distance = distance or validation_distance(dataset)
            for _ in watched(run, place, distance):
                pass
        print(f"{data}: {label} trained in {run.seconds:.0f} s", flush=True)
        runs[label] = run
    return runs


def with_rows_of(before: Path, report: Report) -> Report:
    """The report, with the rows of the report in ``before`` for methods that it does not have, in the table's order.

    All rows are judged by the references of the new report and by its baseline, or else the old one.

    Example:
        >>> import onestep_adapters.evaluation as e
        >>> reference = e.Row("floor", {})
        >>> comparison, references = e.Comparison("fresh draws", 10_000), e.References(reference, e.Row("moments", {}))
        >>> settings = {"kind": "points", "data": "8gaussians", "comparison": comparison, "references": references}
        >>> with_rows_of(Path("nowhere.json"), e.make_report([], **settings)).rows
        ()
    """
    if not before.exists():
        return report
    old = from_json(before.read_text())
    rows = {row.label: row for row in (*old.rows, *report.rows)}
    return with_rows(report, [rows[label] for label in ordered(rows)], baseline=report.baseline or old.baseline)


def ordered(names: Iterable[str]) -> list[str]:
    """Rows sorted by seed, then as in the table of methods.

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
    report, stem = evaluate_runs(list(runs.values())), RESULTS / f"methods-{data}{suffix}"
    if add:
        report = with_rows_of(stem.with_name(f"{stem.name}.json"), report)
    write_whole(stem.with_name(f"{stem.name}.json"), to_json(report))
    write_whole(stem.with_name(f"{stem.name}.md"), to_markdown(report))
    print(to_markdown(report), flush=True)


def draw(data: str, runs: dict[str, Run], *, suffix: str = "") -> None:
    """Samples, with every run's budget under its name, and curves."""
    draw_runs(runs, title=data).savefig(RESULTS / f"methods-{data}{suffix}.png")
    known = histories(runs)
    if known:
        curves(
            known,
            ylabel="squared energy distance to validation data",
            title=f"{data} (flow matching sampled in {PREVIEW_STEPS} steps here)",
        ).savefig(RESULTS / f"methods-{data}{suffix}-curves.png")


def main() -> None:
    """Train and judge what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, help="names of data sets; default: %(default)s")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="METHOD", help="names of methods; default: all"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/methods"), help="folder for the runs; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, 1 or more; default: %(default)s")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="trainings of every method, from seeds 0, 1, ...; 1 or more; default: %(default)s",
    )
    parser.add_argument("--add", action="store_true", help="keep the rows of the other methods in the table")
    parser.add_argument("--train-only", action="store_true", help="train only; a later call measures and draws")
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
