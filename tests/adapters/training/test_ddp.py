"""MeanFlow and consistency training in a data-parallel loop: gradients are those of the union batch.

MeanFlow also through ``as_average_velocity`` with scaled times and a condition.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]


def test_two_processes_equal_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    packages = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "tests/adapters/training/ddp_worker.py", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for method in ("", "consistency ", "scaled "):
        for name, alone in first[f"{method}one"].items():
            synchronised = (ranked[f"{method}two"][name] for ranked in (first, second))
            a, b, expected = (torch.tensor(x) for x in (*synchronised, alone))
            assert torch.equal(a, b)
            torch.testing.assert_close(a, expected, rtol=1e-10, atol=1e-12)
