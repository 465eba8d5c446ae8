"""Set-up shared by all tests."""

import os

# Before torch, and for the command line too: two processes with two threads each keep one another waiting.
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("ONESTEP_TEST_THREADS", "1"))

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# The first multi-threaded vector-math call of a process can be inexact (pytorch#188792); make it here.
torch.ones(1).sqrt()


def pytest_collection_modifyitems(items):
    """The tests that train come first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name != "test_quality.py")
