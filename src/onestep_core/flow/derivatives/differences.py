"""Derivatives along a line or a curve by central differences: for networks without forward mode."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from onestep_core.draws import SameDraws
from onestep_core.errors import ConfigError
from onestep_core.flow.derivatives.forward_mode import checked_tangents, detached, without_graph
from onestep_core.precision import full, network_dtype, without_gradient
from onestep_core.protocols import Derivative
from onestep_core.shapes import expand_like
from onestep_core.typing import Time, typed
from onestep_core.validators import require_call, require_count, require_finite


def central_difference(
    function: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    /,
    *,
    step: float = 1e-3,
    moving: int | None = None,
) -> tuple[Any, Any]:
    """``(f(p + h dp) - f(p - h dp)) / 2h`` without graph, for networks without forward mode.

    The error is ``O(h^2)`` from truncation and ``O(eps / h)`` from rounding; in float32 a step near 5e-3 times
    the scale of the arguments balances them. Steps reach beyond the ends of the time range by ``h``.

    Args:
        function: function of tensors or of pytrees of them.
        primals: point at which the function is evaluated.
        tangents: direction of the derivative; ``None`` stands for zero.
        step: ``h``, in units of the tangents, positive.
        moving: accepted and not used.

    Raises:
        ConfigError: if ``step`` is not positive, or in half precision so short that rounding is all that is left; if
            the tangents do not fit the arguments.

    Example:
        >>> import torch
        >>> central_difference(lambda x: x**2, (torch.tensor([3.0]),), (torch.ones(1),), step=0.5)
        (tensor([9.]), tensor([6.]))
    """
    require_finite("step", step)
    if step <= 0:
        raise ConfigError(f"step = {step}: expected a positive number, near 5e-3 in float32 and 1e-5 in float64")
    tangents = checked_tangents(function, primals, tangents)
    draws = SameDraws(primals)
    value = function(*primals)

    def shifted(sign: float) -> Any:
        def move(primal: Any, tangent: Any) -> Any:
            if tangent is None:
                return primal
            _refuse_below_rounding(step, primal.dtype, "an argument")
            return (full(primal) + sign * step * full(tangent)).to(primal.dtype)

        with draws.again():
            return function(*tree_map(move, detached(primals), detached(tangents)))

    def slope(ahead: Any, behind: Any) -> Any:
        if not isinstance(ahead, Tensor):
            return ahead
        _refuse_below_rounding(step, ahead.dtype, "an answer of the network")
        return (full(ahead) - full(behind)) / (2 * step)

    with without_graph():
        tangent = tree_map(slope, shifted(1.0), shifted(-1.0))
    return value, detached(tangent)


def _refuse_below_rounding(step: float, dtype: torch.dtype, what: str) -> None:
    if dtype in (torch.bfloat16, torch.float16) and step < 4 * torch.finfo(dtype).eps:
        raise ConfigError(
            f"step = {step} for {what} in {dtype}, whose numbers near 1 are {torch.finfo(dtype).eps:.2g} apart: the "
            f"difference would be rounding; expected about {_half_step(dtype):.1g}, or float32"
        )


def _half_step(dtype: torch.dtype) -> float:
    """The step that balances rounding and truncation, ``eps^(1/3)``."""
    return torch.finfo(dtype).eps ** (1 / 3)


def derivative_along(
    curve: Callable[[Tensor], tuple[Any, ...]], step: float | Tensor, *, argument: int = 1
) -> Derivative:
    """The derivative by a central difference on a curve through the arguments, in place of their tangent line.

    With ``tau`` the time among the primals and ``tau'`` its tangent,

        tangent = tau' (f(curve(tau + h)) - f(curve(tau - h))) / 2h.

    The states next to ``z`` then lie on the path itself, at the noise level of their time; on a straight line they
    would be off by ``O(h^2)``. Released finite-difference modes are of this kind: both states are made from one pair of
    data and noise. The result is the derivative along *the curve*: where the objective is given another velocity (a
    teacher's, a guided one), the curve of the pair does not follow it, and its derivative is another one. All
    evaluations draw the same dropout masks, except while torch compiles.

    Args:
        curve: from times ``[batch]`` to all arguments of the function; at the time of the primals it must give the
            primals.
        step: ``h`` in units of that time, positive: a number or ``[batch]``, see :func:`relative_step`.
        argument: which argument the time ``tau`` is; 1 for the source time of ``(z, t)`` and ``(z, t, s)``.

    Returns:
        A :class:`~onestep_core.protocols.Derivative`: value by an ordinary call, tangent without graph. Of the
        tangents it reads the one of ``tau`` alone.

    Raises:
        ConfigError: if a number given as ``step`` is not positive.

    Source: NVlabs/FastGen, ``SCMModel._estimate_jvp_finite_difference``, which differs in computing in float64.

    Example:
        >>> import torch
        >>> cubic = derivative_along(lambda t: (t**3, t), step=0.5)
        >>> t = torch.tensor([2.0])
        >>> cubic(lambda z, t: z, (t**3, t), (12.0 * torch.ones(1), torch.ones(1)))
        (tensor([8.]), tensor([12.2500]))
    """
    require_finite("step", step)
    if not isinstance(step, Tensor) and step <= 0:
        raise ConfigError(f"step = {step}: expected a positive number or a tensor [batch] of them")
    require_count("argument", argument)
    require_call("curve", curve, ("time",))

    def derivative(
        function: Callable[..., Any],
        primals: tuple[Any, ...],
        tangents: tuple[Any, ...],
        /,
        *,
        moving: int | None = None,
    ) -> tuple[Any, Any]:
        checked_tangents(function, primals, tangents)
        draws = SameDraws(primals)
        value = function(*primals)
        tau, rate = without_gradient(primals[argument]), without_gradient(tangents[argument])
        # The width between the times as the network gets them, not 2h: in float32 that is a third of the digits.
        kind = primals[argument].dtype
        ahead, behind = full((tau + step).to(kind)), full((tau - step).to(kind))
        speed = rate / (ahead - behind)

        def slope(above: Any, below: Any) -> Any:
            return expand_like(speed, above) * (full(above) - full(below)) if isinstance(above, Tensor) else above

        def at(time: Tensor) -> Any:
            """The function on the curve, its arguments in the types of the primals."""
            there = curve(time)
            if not isinstance(there, tuple) or len(there) != len(primals):  # pyright: ignore[reportUnnecessaryIsInstance]
                came = f"{len(there)} arguments" if isinstance(there, tuple) else f"a {type(there).__name__}"  # pyright: ignore
                raise ConfigError(f"the curve gave {came}: expected a tuple of the {len(primals)} arguments at a time")
            with draws.again():
                return function(*(_in_type_of(x, here) for x, here in zip(there, primals, strict=True)))

        with without_graph():
            tangent = tree_map(slope, at(ahead), at(behind))
        return value, detached(tangent)

    return derivative


def _in_type_of(there: Any, here: Any) -> Any:
    return there.detach().to(here.dtype) if isinstance(there, Tensor) and isinstance(here, Tensor) else detached(there)


@typed
def relative_step(t: Time, *, fraction: float | None = None, smallest: float = 1e-6) -> Time:
    """``max(fraction |t|, smallest)``: a step for :func:`derivative_along` in proportion to the time.

    Args:
        t: times, ``[batch]``.
        fraction: fraction of the time; by default 1e-3 as released, for which the rounding of float32 costs three to
            five digits. Where the times are in half precision, or autocast is on, the rounding of the network drowns
            such a difference: there the default is 0.2 for bfloat16 and 0.1 for float16.
        smallest: smallest step, for times near zero.

    Raises:
        ConfigError: if one of the two is not positive, or ``fraction`` too small for times in half precision.

    Source: NVlabs/FastGen, ``SCMModel._estimate_jvp_finite_difference``.

    Example:
        >>> import torch
        >>> relative_step(torch.tensor([0.0, 0.5]))
        tensor([1.0000e-06, 5.0000e-04])
    """
    if fraction is None:
        low = network_dtype(t)
        fraction = round(_half_step(low), 1) if low in (torch.bfloat16, torch.float16) else 1e-3
    require_finite("fraction", fraction)
    require_finite("smallest", smallest)
    _refuse_below_rounding(fraction, t.dtype, "times")
    if fraction <= 0 or smallest <= 0:
        raise ConfigError(f"fraction = {fraction} and smallest = {smallest}: expected positive numbers")
    return (fraction * without_gradient(t).abs()).clamp(min=smallest)
