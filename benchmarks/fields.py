"""Time and memory of large drift fields, compared with the dense textbook form, that form compiled, and KeOps.

    python -m benchmarks.fields               # small shapes; one minute on a laptop
    python -m benchmarks.fields --large       # the shapes of the documentation, and memory up to 65,536 points
    python -m benchmarks.fields --device cuda # the same shapes on a GPU, with the time of the matrix products alone

``field``: attraction-repulsion with the Laplace kernel at three temperatures and softmax over both axes. Each field is
scaled to unit root mean square, and the samples repel one another. ``batched``: the same in many small groups, the
shape of an ImageNet training. ``of products``: the time divided by the time of the matrix products alone, in float32.
On a GPU each call is timed twice: called from Python until the device has finished, and as a CUDA graph, without launch
time.
"""

import argparse
import math
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from onestep_core import drift_field, laplace, multi_temperature, softmax_both

TEMPERATURES = (0.02, 0.05, 0.2)
"""In units of the typical distance between two points."""
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    # groups, samples, positives, extra negatives, channels
    "small": (1, 1024, 1024, 256, 256),
    "field": (1, 4096, 4096, 1024, 256),
    "field_16k": (1, 16384, 16384, 0, 64),
    "field_65k": (1, 32768, 32768, 0, 16),  # 32,768 samples against 65,536 points
    "batched_small": (8, 64, 64, 32, 640),
    "batched": (64, 64, 64, 32, 640),
    "keops": (1, 1024, 1024, 256, 64),
}


def clouds(shape: tuple[int, int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Samples, positives and extra negatives, all normal; the samples are shifted by 0.1."""
    groups, *counts, channels = shape
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(groups, count, channels, generator=generator) for count in counts]
    sets[0] += 0.1
    return [points.to(DEVICE, dtype).squeeze(0) for points in sets]


def dense(x: Tensor, y: Tensor, extra: Tensor, *, lengths: tuple[float, ...]) -> Tensor:
    """Algorithm A1 of the drifting paper, written directly, with matrices of affinities."""
    n, negatives = x.shape[-2], x.shape[-2] + extra.shape[-2]
    targets = torch.cat([x, extra, y], -2)
    distance = torch.cdist(x, targets)
    own = torch.eye(n, targets.shape[-2], device=x.device, dtype=x.dtype)
    distance = distance + 1e6 * own
    total = torch.zeros_like(x)
    for length in lengths:
        logits = -distance / length
        affinity = (logits.softmax(-1) * logits.softmax(-2)).sqrt()
        negative, positive = affinity[..., :negatives], affinity[..., negatives:]
        towards = positive * negative.sum(-1, keepdim=True)
        away = negative * positive.sum(-1, keepdim=True)
        field = towards @ y - away @ targets[..., :negatives, :]
        total = total + field / field.square().mean().clamp(min=1e-8).sqrt()
    return total


def products(x: Tensor, y: Tensor, extra: Tensor, *, lengths: tuple[float, ...]) -> Tensor:
    """The matrix products alone, with arbitrary values: a lower bound for implementations that compute them all."""
    targets = torch.cat([x, extra, y], -2)
    affinity, found = x @ targets.mT, x
    for _ in lengths:
        found = affinity @ targets
    return found


def ours(x: Tensor, y: Tensor, extra: Tensor, *, lengths: tuple[float, ...]) -> Tensor:
    """The field of this library."""

    def at(length: float) -> Any:
        return partial(drift_field, kernel=partial(laplace, temperature=length), coupling=softmax_both)

    keywords = {"extra_negatives": extra} if extra.shape[-2] else {}
    return multi_temperature(at, lengths, normalize=True)(x, y, **keywords).field


def keops(x: Tensor, y: Tensor, extra: Tensor, *, lengths: tuple[float, ...]) -> Tensor:
    """The same field with KeOps' symbolic matrices; self pairs are masked by their indices."""
    from pykeops.torch import LazyTensor  # type: ignore[import-not-found]

    targets, n = torch.cat([x, extra, y]), len(x)
    i, j = (torch.arange(len(points), dtype=x.dtype)[:, None] for points in (x, targets))
    own = (0.5 - (LazyTensor(i[:, None]) - LazyTensor(j[None])).abs()).ifelse(1.0, 0.0)
    distance = ((LazyTensor(x[:, None]) - LazyTensor(targets[None])) ** 2).sum(-1).sqrt() + 1e6 * own
    total = torch.zeros_like(x)
    ones = torch.ones(len(targets), 1)
    for length in lengths:
        logits = distance * (-1 / length)
        row, column = logits.logsumexp(1), logits.logsumexp(0)
        affinity = (logits - LazyTensor(row[:, None] / 2) - LazyTensor(column[None] / 2)).exp()
        is_positive = (torch.arange(len(targets)) >= n + len(extra)).to(x)[:, None]
        positive, s_positive = affinity @ (is_positive * targets), affinity @ is_positive
        negative, s_negative = affinity @ ((1 - is_positive) * targets), affinity @ (ones - is_positive)
        field = s_negative * positive - s_positive * negative
        total = total + field / field.square().mean().clamp(min=1e-8).sqrt()
    return total


RIVALS: dict[str, Callable[..., Tensor]] = {
    "dense": dense,
    "dense compiled": torch.compile(dense),
    "ours": ours,
    "ours compiled": torch.compile(ours),
    "products alone": products,
    "keops": keops,
}
DEVICE = "cpu"
PATIENCE = 180
"""Time limit in seconds for an implementation that compiles at its first call."""


def call(rival: str, shape: str) -> Callable[[], Tensor]:
    """An implementation with its inputs bound, without gradient."""
    sets = clouds(SHAPES[shape])
    typical = math.sqrt(2 * SHAPES[shape][-1])
    function = partial(RIVALS[rival], *sets, lengths=tuple(t * typical for t in TEMPERATURES))
    return torch.no_grad()(function)


def worst(shape: tuple[int, int, int, int, int]) -> float:
    """Largest relative error in float32 against the dense form in float64; with duplicates and one sample times 200."""
    sets = clouds(shape)
    sets[1][..., :50, :] = sets[0][..., :50, :]
    sets[0][..., -1, :] *= 200
    lengths = tuple(t * math.sqrt(2 * shape[-1]) for t in TEMPERATURES)
    exact = dense(*(points.double() for points in sets), lengths=lengths)
    return float((ours(*sets, lengths=lengths) - exact).abs().max() / exact.abs().max())


def compare(shape: str, rivals: list[str], *, rounds: int) -> list[dict[str, Any]]:
    """Time and memory of the implementations at one shape."""
    rows: list[dict[str, Any]] = []
    print(f"{shape}: {', '.join(rivals)}", flush=True)
    found = harness.interleaved({rival: call(rival, shape) for rival in rivals}, rounds=rounds)
    for name, times in found.items():
        of_products = times["seconds"] / found["products alone"]["seconds"]
        memory = harness.peak_memory("benchmarks.fields", name, shape)
        rows.append({"shape": shape, "rival": name, **times, "of products": of_products, "MiB": memory})
    for row in rows:
        row["memory ratio"] = row["MiB"] / rows[0]["MiB"]
    return rows


def compare_on_device(shape: str, rivals: list[str], *, rounds: int) -> list[dict[str, Any]]:
    """Time (called from Python, and as a graph) and memory of the implementations at one shape on a CUDA device."""
    calls = {rival: call(rival, shape) for rival in rivals}
    called = harness.interleaved(calls, rounds=rounds)
    replayed = harness.interleaved({name: harness.held(rival) for name, rival in calls.items()}, rounds=rounds)
    rows = []
    for name, rival in calls.items():
        of_products = {
            f"{kind}of products": times[name]["seconds"] / times["products alone"]["seconds"]
            for kind, times in (("", called), ("graph ", replayed))
        }
        rows.append(
            {
                "shape": shape,
                "rival": name,
                **called[name],
                **{f"graph {key}": value for key, value in replayed[name].items()},
                **of_products,
                "MiB": harness.device_memory(rival),
            }
        )
    for row in rows:
        row["memory ratio"] = row["MiB"] / rows[0]["MiB"]
    return rows


def on_device(rounds: int) -> list[dict[str, Any]]:
    """The large shapes on a CUDA device."""
    rows: list[dict[str, Any]] = []
    for shape in ("field", "batched"):
        rivals = ["dense", "dense compiled", "ours", "ours compiled", "products alone"]
        rows += compare_on_device(shape, rivals, rounds=rounds)
    for shape in ("field_16k", "field_65k"):
        rows += compare_on_device(shape, ["ours", "products alone"], rounds=3)
    rows += [
        {"shape": f"worst error, {name}", "rival": "ours", "ratio": worst(SHAPES[name])}
        for name in ("field", "batched")
    ]
    return rows


def able(rivals: list[str], shape: str) -> list[str]:
    """Those that finish one call at a small shape in a separate process within the time limit; prints the others."""
    found = []
    for name in rivals:
        try:
            harness.peak_memory("benchmarks.fields", name, shape, patience=PATIENCE)
            found.append(name)
        except subprocess.TimeoutExpired:
            print(f"{name} is skipped: not ready after {PATIENCE} s")
        except subprocess.CalledProcessError as error:
            print(f"{name} is skipped: {error.stderr.strip().splitlines()[-1]}")
    return found


def with_keops() -> list[dict[str, Any]]:
    """KeOps at a shape small enough for it; no rows if KeOps does not work here."""
    if not able(["keops"], "keops"):
        return []
    rivals = {name: call(name, "keops") for name in ("dense", "ours", "keops")}
    times = harness.interleaved(rivals, rounds=3)
    return [{"shape": "keops", "rival": name, **found} for name, found in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the large shapes; takes minutes and 2 GiB of memory")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on")
    parser.add_argument("--measure", nargs=2, metavar=("RIVAL", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.ones(1).sqrt()
    if arguments.measure:
        harness.measure(call(*arguments.measure))
        return
    if arguments.device == "cuda":
        global DEVICE
        DEVICE = "cuda"
        print(harness.record("fields-cuda", on_device(arguments.rounds)))
        return
    rows: list[dict[str, Any]] = []
    rivals = able(["dense", "dense compiled", "ours", "ours compiled", "products alone"], "small")
    for shape in ("field", "batched") if arguments.large else ("small", "batched_small"):
        rows += compare(shape, rivals, rounds=arguments.rounds)
    error = worst(SHAPES["field" if arguments.large else "small"])
    rows += with_keops()
    if arguments.large:
        for shape in ("field_16k", "field_65k"):
            times = harness.interleaved({"ours": call("ours", shape)}, rounds=1)["ours"]
            memory = harness.peak_memory("benchmarks.fields", "ours", shape)
            rows.append({"shape": shape, "rival": "ours", "seconds": times["seconds"], "MiB": memory})
    rows.append({"shape": "worst error", "rival": "ours", "ratio": error})
    print(harness.record("fields-large" if arguments.large else "fields", rows))


if __name__ == "__main__":
    main()
