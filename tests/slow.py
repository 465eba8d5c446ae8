"""Which test functions are slow: those of ``tests/slow.txt``, which ``make check`` leaves out.

``tests/sampled.txt`` names functions with many long cases: ``make test`` runs about one case in the number beside the
name, chosen by a hash of the case and one at least (0: none); ``make thorough`` the others.

The list of slow functions is measured, on an idle machine with two cores:

    pytest -n 2 --junitxml=durations.xml && python -m tests.slow durations.xml > tests/slow.txt
"""

import sys
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

LIST = Path(__file__).with_suffix(".txt")

SECONDS = 0.8
"""A function is slow if all its cases together take longer."""


def function_of(node: str) -> str:
    """``tests/a/test_b.py::test_c`` of a test's name.

    Example:
        >>> function_of("tests/a/test_b.py::test_c[8gaussians]")
        'tests/a/test_b.py::test_c'
    """
    return node.partition("[")[0]


def slow() -> set[str]:
    """The functions of the list."""
    return set(LIST.read_text().split())


def sampled() -> dict[str, int]:
    """The functions of which some cases stand for all, and one in how many."""
    return {
        name: int(number) for name, number in map(str.split, LIST.with_name("sampled.txt").read_text().splitlines())
    }


def left_out(nodes: Sequence[str]) -> set[str]:
    """The cases, in the order of collection, that only the thorough run has.

    Example:
        >>> name = "tests/adapters/evaluation/test_demo.py::test_the_demo_trains_the_same_in_one_process_and_in_two"
        >>> left_out([name]) == {name}
        True
    """
    listed, kept, found = sampled(), set[str](), set[str]()
    for node in nodes:
        name = function_of(node)
        every = listed.get(name, 1)
        if every and (name not in kept or zlib.crc32(node.encode()) % every == 0):
            kept.add(name)
        else:
            found.add(node)
    return found


def measured(report: Path) -> list[str]:
    """The slow functions of a report in JUnit's format."""
    spent: Counter[str] = Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        spent[function_of(f"{file}::{case.get('name')}")] += float(case.get("time", 0))
    return sorted(name for name, seconds in spent.items() if seconds > SECONDS)


if __name__ == "__main__":
    print("\n".join(measured(Path(sys.argv[1]))))
