"""Which networks ``torch.func.jvp`` and ``single_pass`` differentiate: a table in Markdown, over those of the tests.

    python -m benchmarks.derivative_table                    # whole networks, and layers that matter
    python -m benchmarks.derivative_table --all              # the fragments too
    python -m benchmarks.derivative_table --groups attention

Each is called as users call it, with a backward pass of the value, and compared with an exact derivative: *exact*,
*off by ...*, or the first words of the error. ``plain attention`` is ``sdpa_kernel(SDPBackend.MATH)`` around it.
"""

import argparse
import contextlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

import onestep_core as one
from tests.core.flow.derivatives.case import Entry, differentiable, value_and_tangent
from tests.core.flow.derivatives.checks import error, expected_tangent, gradients, seeded, with_gradient
from tests.core.flow.derivatives.zoo import ZOO


def with_plain_attention(*arguments: Any) -> Any:
    """As the documentation of torch advises."""
    with sdpa_kernel(SDPBackend.MATH):
        return value_and_tangent(*arguments)


NETWORKS = ("backbones", "diffusers", "transformers", "attention", "recurrent", "norms")
"""The groups that are shown without ``--all``."""
WAYS: dict[str, Callable[..., Any]] = {
    "torch.func.jvp": value_and_tangent,
    "torch.func.jvp, plain attention": with_plain_attention,
    "single_pass": one.single_pass,
}


def verdict(entry: Entry, way: Callable[..., Any]) -> str:
    """What comes of a way on one network."""
    case, reference = entry.build(), entry.build()
    expected = expected_tangent(reference, entry.oracle)
    if entry.gradient:
        with_gradient(case.primals)
    try:
        value, tangent = seeded(way, case.function, case.primals, case.tangents)
        gradients(case, value)
    except Exception as failure:
        return reason(failure)
    if largest(tangent, expected) <= max(10 * entry.tolerance, 1e-9):
        return "exact"
    plain = entry.build()
    if largest(value, seeded(plain.function, *plain.primals)) > 1e-3:
        return "another draw of dropout than the plain call"
    return f"**off by {largest(tangent, expected):.0e}**"


def largest(found: Any, expected: Any) -> float:
    """The largest relative error in a tree of tensors."""
    both = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return max((error(a, b) for a, b in both if differentiable(b)), default=0.0)


def reason(failure: Exception) -> str:
    """The first words of an error, fit for a cell of a table."""
    words = " ".join(str(failure).split()).replace("|", "/").replace("`", "")
    found = re.match(r"Trying to use forward AD with (\S+)", words)
    return f"no forward derivative of `{found[1]}`" if found else f"fails: {words.partition('. ')[0][:80]}"


def table(names: list[str]) -> str:
    """Markdown, a line for each name."""
    lines = [f"| network | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        lines += [f"| {name} | {' | '.join(verdict(ZOO[name], way) for way in WAYS.values())} |" for name in names]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every network and fragment")
    parser.add_argument("--groups", nargs="+", help="groups of the tests' list", default=NETWORKS)
    arguments = parser.parse_args()
    torch.ones(1).sqrt()
    print(table([name for name, entry in ZOO.items() if arguments.all or entry.group in arguments.groups]))


if __name__ == "__main__":
    main()
