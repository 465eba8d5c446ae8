"""Directional derivatives: the value with its graph, the tangent without.

MeanFlow and related methods need ``u(z, t, s)`` to train on and ``du/dt`` along the trajectory to build the target.
The target is frozen, so the tangent needs no graph; what differs between the functions here is how it is
found. All take ``(function, primals, tangents)`` as ``torch.func.jvp`` does and return ``(value, tangent)``,
any pytrees of tensors:

=================================  =======================  ========================================================
function                           exact                    cost, besides one forward and backward pass
=================================  =======================  ========================================================
:func:`single_pass`                yes                      the tangent's share of one forward pass; the default
:func:`two_pass`                   yes                      one forward-mode pass without graph
:func:`central_difference`         to second order in step  two forwards without graph; any operation works
:func:`with_graph`                 yes, and differentiable  the graph of the tangent is kept: time and memory
``derivative_along(curve, step)``  to second order in step  as the difference, but on a curve that the caller knows
=================================  =======================  ========================================================

Targets without a derivative use :func:`frozen_value`, which builds no graph either.

``moving=n`` says that only the first ``n`` rows of the tangent will be used (elsewhere its factor, ``s - t``
for one, is zero). It permits savings and requires none.
"""

from onestep_core.flow.derivatives.differences import (
    central_difference as central_difference,
)
from onestep_core.flow.derivatives.differences import (
    derivative_along as derivative_along,
)
from onestep_core.flow.derivatives.differences import (
    relative_step as relative_step,
)
from onestep_core.flow.derivatives.forward_mode import (
    frozen_value as frozen_value,
)
from onestep_core.flow.derivatives.forward_mode import (
    two_pass as two_pass,
)
from onestep_core.flow.derivatives.forward_mode import (
    with_graph as with_graph,
)
from onestep_core.flow.derivatives.single import single_pass as single_pass
from onestep_core.flow.derivatives.tangents.rules import TangentRule as TangentRule
from onestep_core.flow.derivatives.tangents.rules import tangent_rule as tangent_rule
