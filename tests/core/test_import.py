"""What importing the core costs beside importing torch, in processor time of one process; what it loads.

As in an installation, torch's and ours come from compiled files: the first of four processes compiles ours.
"""

import json
import os
import subprocess
import sys

import onestep_core

SCRIPT = """
import json, sys, time
start = time.process_time()
import torch, torch.func, torch.utils._pytree
rival = time.process_time() - start
import numpy, attrs, beartype, jaxtyping, einops
before = set(sys.modules)
start = time.process_time()
import onestep_core
seconds = time.process_time() - start
print(json.dumps([seconds / rival, sorted({m.split(".")[0] for m in set(sys.modules) - before})]))
"""


def test_importing_the_core_is_cheap_and_alone(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    runs = []
    for _ in range(4):
        command = [sys.executable, "-c", SCRIPT]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        runs.append(json.loads(output))
    allowed = set(sys.stdlib_module_names) | {
        "onestep_core",
        "torch",
        "numpy",
        "einops",
        "jaxtyping",
        "beartype",
        "attr",
    }
    assert all(set(modules) <= allowed for _, modules in runs), runs
    assert min(share for share, _ in runs) < 0.1, runs


def test_every_public_name_is_listed_once():
    listed = onestep_core.__all__
    assert len(set(listed)) == len(listed)
    public = {
        name
        for name in vars(onestep_core)
        if not name.startswith("_") and name not in {"arguments", "diagnostics", "draws", "precision", "typing"}
    }
    assert set(listed) == public
