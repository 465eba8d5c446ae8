"""The static types say what fits: one file of calls that check, one of calls that must not."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "typecheck"


def errors(file):
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return [d for d in report["generalDiagnostics"] if d["severity"] == "error"]


def test_good_calls_check():
    assert not errors(FOLDER / "accepted.py")


def test_bad_calls_do_not():
    file = FOLDER / "rejected.py"
    marked = {number for number, line in enumerate(file.read_text().splitlines()) if line.endswith("# no")}
    assert {d["range"]["start"]["line"] for d in errors(file)} == marked
