"""Trainings side by side: what comes out, and what happens when one of them stops."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from onestep_adapters.training import side_by_side
from onestep_core.errors import ConfigError, OneStepError


def numbers(name, until, tell):
    for number in range(until):
        yield name, number, torch.get_num_threads()


def failing(tell):
    yield "once"
    raise ConfigError("width = -1: expected a positive number")


def dying(tell):
    yield "once"
    os.kill(os.getpid(), signal.SIGKILL)


def telling(tell):
    tell("first")
    yield "second"
    tell("third")


def counting_on(tell):
    return count()


def test_what_is_told_arrives_in_its_order():
    assert list(side_by_side([telling])) == ["first", "second", "third"]


def test_everything_arrives_each_in_its_order_from_one_thread():
    found = list(side_by_side([partial(numbers, "a", 5), partial(numbers, "b", 3)]))
    assert [n for name, n, _ in found if name == "a"] == list(range(5))
    assert [n for name, n, _ in found if name == "b"] == list(range(3))
    assert {threads for *_, threads in found} == {1}


def test_an_error_is_raised_here_and_ends_the_others():
    with pytest.raises(ConfigError, match="width = -1"):
        list(side_by_side([failing, counting_on]))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_noticed():
    with pytest.raises(OneStepError, match="exit code -9"):
        list(side_by_side([dying]))


def test_leaving_early_ends_the_processes():
    updates = side_by_side([counting_on])
    assert [next(updates) for _ in range(3)] == [0, 1, 2]
    assert multiprocessing.active_children()
    updates.close()
    assert not multiprocessing.active_children()


def telling_who(tell):
    yield os.getpid()
    yield from count()


_PARENT = """
from onestep_adapters.training import side_by_side
from tests.adapters.training.test_processes import telling_who

if __name__ == "__main__":
    for item in side_by_side([telling_who]):
        print(item, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="asks /proc")
def test_the_processes_of_a_killed_process_end(tmp_path):
    file = tmp_path / "parent.py"
    file.write_text(_PARENT)
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, file],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not _runs(child):
            break
        time.sleep(0.1)
    parent.stdout.close()
    assert not _runs(child)


def _runs(process):
    """Whether it is there and not only waits to be collected."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"
