"""Set-up shared by all tests."""

import os

# Before torch, and for the command line too: two processes with two threads each keep one another waiting.
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("ONESTEP_TEST_THREADS", "1"))

import pytest
import torch

from tests.slow import function_of, left_out, slow

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# The first multi-threaded vector-math call of a process can be inexact (pytorch#188792); make it here.
torch.ones(1).sqrt()
if not torch.cuda.is_available():
    # Before Triton is imported: its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests of ``tests/slow.txt`` and ``tests/sampled.txt``; those that train come first, so that no worker
    ends alone with one."""
    listed, rest = slow(), left_out([item.nodeid for item in items])
    for item in items:
        if item.nodeid in rest:
            item.add_marker(pytest.mark.thorough)
        if function_of(item.nodeid) in listed:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != "test_quality.py")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Decoded images of the tests are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def all_pairs():
    """Precomputed pairs, and samples in a stage's score, are many: a few stand for them. The full numbers, by place.

    A test that trains as users do sets them back: ``patch.setattr(module, name, sizes)`` for each.
    """
    from onestep_adapters.data import couplings
    from onestep_adapters.methods.distillation import progressive

    small = {(couplings, "_IMAGES"): (2**11, 128), (couplings, "_POINTS"): (2**9, 128), (progressive, "_SCORED"): 100}
    real = {(module, name): getattr(module, name) for module, name in small}
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), number in small.items():
            patch.setattr(module, name, number)
        yield real
