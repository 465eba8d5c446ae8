"""What every benchmark shares: rivals in turn, memory in fresh processes, a table, a dated record.

Rivals run interleaved, one call each a round, so that a machine that slows down slows all of them; the number is the
median ratio to the first rival within a round. Peak memory is that of a process of its own, which builds the same
inputs and makes one call: its highest resident set, less what it held before the call (allocators included).
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

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "numpy", "pykeops", "triton")


def interleaved(rivals: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a call and the ratio to the first rival, medians over the rounds; one call of each warms up. A call on a
    device is over when the device is.
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
    """The same call as a CUDA graph: the device's own time, without that of launching."""
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
    """MiB that one call added to what torch holds on the CUDA device, at its highest; one call before warms up."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_memory(module: str, *arguments: str, patience: float | None = None) -> float:
    """MiB that one call added to the highest resident set of a fresh process: ``python -m module --measure ...``, in as
    many threads as this one.
    """
    command = [sys.executable, "-m", module, "--threads", str(torch.get_num_threads()), "--measure", *arguments]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=patience).stdout.split()[-1]
    )


def measure(call: Callable[[], Any]) -> None:
    """Print what :func:`peak_memory` reads. Inputs must exist already; the warm-up loads the library's own code."""
    torch.randn(64, 64) @ torch.randn(64, 64)
    _forget_highest()
    before = _highest()
    call()
    print((_highest() - before) / 1024)


def _forget_highest() -> None:
    """Let the record of the highest resident set start here: a process inherits its parent's (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _highest() -> int:
    """KiB, since the record was last cleared where the system tells that."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hardware() -> dict[str, Any]:
    """Where and with what the numbers were found."""
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
    """Rows with the same keys as aligned text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in shown) for i in range(len(names))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in shown)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def record(name: str, rows: list[dict[str, Any]]) -> Path:
    """Print the table and write it with the hardware and versions to ``results``, one file a day and benchmark."""
    now = datetime.now(UTC)
    path = RESULTS / f"{name}-{now:%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"when": f"{now:%Y-%m-%d %H:%M} UTC", **hardware(), "rows": rows}, indent=1) + "\n")
    print(table(rows))
    return path
