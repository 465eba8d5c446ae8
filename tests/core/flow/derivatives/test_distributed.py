"""Data-parallel and sharded training with ``single_pass``: gradients of two processes are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.core.flow.derivatives.distributed_worker import MOVING, WRAPPED

ROOT = Path(__file__).parents[4]
RUNS = [f"{name}, moving={moving}" for name in WRAPPED for moving in (None, MOVING)] + ["ddp, accumulated"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the two processes found; the first also has the gradients of one process alone."""
    folder = tmp_path_factory.mktemp("distributed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "tests.core.flow.derivatives.distributed_worker", str(folder)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def off(found, expected):
    """Largest difference over all parameters, relative to the largest entry of each."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, a in found.items():
        a, b = torch.tensor(a), torch.tensor(expected[name])
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


def off_in_norm(found, expected):
    """Norm of the difference of the whole gradient, relative to its norm."""
    a, b = (torch.cat([torch.tensor(found[name]).flatten() for name in expected]) for found in (found, expected))
    return float((a - b).norm() / b.norm())


def test_one_process_has_the_gradients_of_two_passes(found):
    assert off(found[0]["alone"], found[0]["alone by two passes"]) < 1e-9


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one(found, run):
    mine, other = (ranked[run] for ranked in found)
    assert not isinstance(mine, str), mine
    assert mine == other, "the processes have different gradients"
    if "idle" in run:
        assert all(mine.pop(name) is None for name in ("idle.weight", "idle.bias"))
    if "bfloat16" in run:
        assert off_in_norm(mine, found[0]["alone"]) < 0.02
    else:
        assert off(mine, found[0]["alone"]) < 1e-6
