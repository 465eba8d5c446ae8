"""A derivative inside of a derivative: forward mode over forward mode."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from onestep_core.flow.derivatives.tangents.cells import Cell, differentiable
from onestep_core.flow.derivatives.tangents.duals import Dual
from onestep_core.flow.derivatives.tangents.runs import runs, whole


def along(inner: Callable[..., Any], function: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """``inner(function, primals, tangents)``, a derivative by ``torch.func``, with the tangents of the run under way.

    Args:
        inner: ``(function, primals, tangents) -> values``.
        function: what the network differentiates. If it holds a tensor with a tangent, torch refuses it.
        primals: where.
        tangents: along what.
    """
    leaves, spec = tree_flatten((primals, tangents))
    places = [k for k, leaf in enumerate(leaves) if type(leaf) is Dual and leaf.run is runs()[-1]]
    if not places:
        return inner(function, primals, tangents)

    def moved(*values: Any) -> Any:
        given = list(leaves)
        for k, value in zip(places, values, strict=True):
            given[k] = value
        return inner(function, *tree_unflatten(given, spec))

    duals = [leaves[k] for k in places]
    run = duals[0].run
    directions = tuple(whole(x.value, run.current(x.value, x.cell)).expand(x.shape).contiguous() for x in duals)
    values = tuple(x.value for x in duals)
    answer, slopes = cast(tuple[Any, Any], torch.func.jvp(moved, values, directions))

    def joined(value: Any, slope: Any) -> Any:
        return Dual(value, Cell(slope.detach(), owned=False), run) if differentiable(value) else value

    return tree_map(joined, answer, slopes)
