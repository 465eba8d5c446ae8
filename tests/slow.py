"""Which test functions are slow: those of ``tests/slow.txt``, which ``make check`` leaves out.

The list is measured, on an idle machine with two cores:

    pytest -n 2 --junitxml=durations.xml && python -m tests.slow durations.xml > tests/slow.txt
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
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


def measured(report: Path) -> list[str]:
    """The slow functions of a report in JUnit's format."""
    spent: Counter[str] = Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        spent[function_of(f"{file}::{case.get('name')}")] += float(case.get("time", 0))
    return sorted(name for name, seconds in spent.items() if seconds > SECONDS)


if __name__ == "__main__":
    print("\n".join(measured(Path(sys.argv[1]))))
