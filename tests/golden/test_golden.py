"""Every golden file of an implemented group, completely, in both precisions."""

import pytest

from tests.golden.groups import GROUPS
from tests.golden.harness import FOLDER, HERE, Case, files, group_of

PENDING = set((HERE / "pending.txt").read_text().split())
CASES = [(file, precision) for file in files() for precision in ("f64", "f32") if group_of(file) not in PENDING]


@pytest.mark.parametrize(("file", "precision"), CASES, ids=lambda x: getattr(x, "stem", x))
def test_golden(file, precision):
    group = group_of(file)
    assert group in GROUPS, f"{file.name}: no test claims group {group!r}; implement it or list it in pending.txt"
    case = Case(file, precision)
    GROUPS[group](case)
    assert not case.unread(), f"{file.name}: arrays that no assertion reads: {case.unread()}"


def test_some_files_are_found():
    assert CASES, f"no golden file in {FOLDER}"


def test_no_group_is_both_implemented_and_pending():
    assert not PENDING & set(GROUPS)
