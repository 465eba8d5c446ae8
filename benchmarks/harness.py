"""Functions of all benchmarks: interleaved timing, peak memory in new processes, a table, a dated record.

The rivals are called in turn, one call each in a round, so that a machine that slows down slows all of them. The result
is the median, over rounds, of the ratio to the first rival. Peak memory is measured in a new process, which builds the
same inputs and makes one call: its highest resident set minus the resident set before the call (allocators included).
"""

import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from onestep_adapters.files import write_whole

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "numpy", "pykeops", "triton", "diffusers", "transformers")


def interleaved(rivals: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a call, and its ratio to the first rival: medians over the rounds, after one call of each to warm up.

    With a GPU, a call ends when the GPU has finished.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for call in rivals.values():
        call()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        name: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(t / f for t, f in zip(times, first, strict=True)),
        }
        for name, times in seconds.items()
    }


def held(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call as a CUDA graph: the time of the GPU, without the time of launching kernels."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def device_memory(call: Callable[[], Any]) -> float:
    """Peak of the MiB that one call adds to what torch holds on the GPU, after one call to warm up."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_memory(module: str, *arguments: str, patience: float | None = None) -> float:
    """MiB that one call adds to the highest resident set of a new process, ``python -m module --measure ...``, with as
    many threads as this one.
    """
    command = [sys.executable, "-m", module, "--threads", str(torch.get_num_threads()), "--measure", *arguments]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=patience).stdout.split()[-1]
    )


def measure(call: Callable[[], Any]) -> None:
    """Print what :func:`peak_memory` reads. The inputs must exist already; a first product loads the code of torch."""
    torch.randn(64, 64) @ torch.randn(64, 64)
    _forget_highest()
    before = _highest()
    call()
    print((_highest() - before) / 1024)


def _forget_highest() -> None:
    """Reset the highest resident set, which a process inherits from its parent (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _highest() -> int:
    """Highest resident set in KiB; since the last reset where the system reports that."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hardware() -> dict[str, Any]:
    """Hardware and versions."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    found = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        **({"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES if name in found},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text, one column for each key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in shown) for i in range(len(names))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in shown)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def record(name: str, rows: list[dict[str, Any]]) -> Path:
    """Print the table and write it to ``results`` with hardware and versions; one file for each benchmark and day."""
    now = datetime.now(UTC)
    path = RESULTS / f"{name}-{now:%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"when": f"{now:%Y-%m-%d %H:%M} UTC", **hardware(), "rows": rows}
    write_whole(path, json.dumps(content, indent=1) + "\n")
    print(table(rows))
    return path
