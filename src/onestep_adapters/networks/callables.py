"""Wrappers that turn a module into a callable of the core: they bind conditions and fix meaning, units and shape.

A module in another precision than the states (bfloat16, or float32 for states in float64) gets the states in its own,
and its answer is returned in that of the states. Times are given in the module's precision, but in at least float32: a
time of 999 in bfloat16 would be 1000.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError
from onestep_core.flow.maps import jump
from onestep_core.flow.paths import prior_state
from onestep_core.precision import full
from onestep_core.protocols import AverageVelocity, FlowMap, OneStepGenerator, Path, Velocity
from onestep_core.shapes import expand_like
from onestep_core.typing import typed
from onestep_core.validators import require_call


def with_condition(module: Callable[..., Any], *args: Any, **condition: Any) -> Callable[..., Any]:
    """``(z, *times) -> module(z, *times, *args, **condition)``.

    Args:
        module: a module or any callable.
        args: appended to the positional arguments.
        condition: keyword arguments, for example labels, text embeddings, masks; with the batch size of ``z``.

    Example:
        >>> import torch
        >>> scaled = with_condition(lambda z, t, *, label: z * label[:, None], label=torch.tensor([2.0]))
        >>> scaled(torch.ones(1, 2), torch.zeros(1))
        tensor([[2., 2.]])
    """

    def conditioned(*inputs: Tensor) -> Any:
        return module(*inputs, *args, **condition)

    return conditioned


def _called(
    module: Callable[..., Any],
    z: Tensor,
    times: tuple[Tensor, ...],
    time_scale: float,
    output: Callable[[Any], Tensor],
    condition: dict[str, Any],
) -> Tensor:
    kind = _precision(module) or z.dtype
    exact = times[0].dtype if kind == z.dtype else torch.promote_types(kind, torch.float32)
    scaled = [(t * time_scale).to(exact) for t in times]
    try:
        answer = module(z.to(kind), *scaled, **condition)
    except TypeError:
        require_call(f"the {type(module).__name__}", module, ("z", "t", "s")[: 1 + len(times)], tuple(condition))
        raise
    return _checked(output(answer), z).to(z.dtype)


def _require_scale(time_scale: float) -> None:
    if not (isinstance(time_scale, int | float) and math.isfinite(time_scale) and time_scale != 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"time_scale = {time_scale!r}: expected a finite number other than zero")


def _precision(module: Callable[..., Any]) -> torch.dtype | None:
    """The type of a module's floating parameters; ``None`` if it has none, or is no module."""
    if not isinstance(module, nn.Module):
        return None
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _tensor(output: Any) -> Tensor:
    return output


def _checked(output: Any, z: Tensor) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the network returned a {type(output).__name__}, expected a tensor: select the tensor with "
            "`output=`, for example output=lambda result: result.sample"
        )
    if output.shape != z.shape:
        raise ConfigError(
            f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(z.shape)}, expected equal "
            "shapes: remove extra channels (for example a learned variance) with `output=`"
        )
    return output


def as_velocity(
    module: Callable[..., Any],
    *,
    time_scale: float = 1.0,
    output: Callable[[Any], Tensor] = _tensor,
    **condition: Any,
) -> Velocity:
    """``(z, t) -> output(module(z, time_scale t))``, an instantaneous velocity ``dz/dt``.

    Args:
        module: called with ``z`` of ``[batch, *shape]`` and one time ``[batch]``.
        time_scale: the network receives ``time_scale`` times the path's time; 1000 for most diffusion transformers. The
            output has to be a velocity per unit of the *path's* time. Steps of a difference are in that unit too:
            divide one that suits the module by the scale, ``central_difference(step=0.05 / 1000)``.
        output: picks the tensor from what the module returns.
        condition: keyword arguments of the module, as in :func:`with_condition`.

    Raises:
        ConfigError: for a scale that is zero or not finite; at a call, if the module cannot be called so, or the output
            is no tensor of the shape of ``z``.

    Example:
        >>> import torch
        >>> velocity = as_velocity(lambda z, t: {"v": z * t[:, None]}, time_scale=1000.0, output=lambda r: r["v"])
        >>> velocity(torch.ones(1, 2), torch.ones(1))
        tensor([[1000., 1000.]])
    """

    _require_scale(time_scale)

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        return _called(module, z, (t,), time_scale, output, condition)

    return velocity


def as_average_velocity(
    module: Callable[..., Any],
    *,
    time_scale: float = 1.0,
    output: Callable[[Any], Tensor] = _tensor,
    **condition: Any,
) -> AverageVelocity:
    """``(z, t, s) -> output(module(z, time_scale t, time_scale s))``, the mean velocity from ``t`` to ``s``.

    Args:
        module: called with ``z`` of ``[batch, *shape]``, source and target time, each ``[batch]``.
        time_scale: as in :func:`as_velocity`.
        output: picks the tensor from what the module returns.
        condition: keyword arguments of the module, as in :func:`with_condition`.

    Raises:
        ConfigError: for a scale that is zero or not finite; at a call, if the module cannot be called so, or the output
            is no tensor of the shape of ``z``.

    Example:
        >>> import torch
        >>> average = as_average_velocity(lambda z, t, s: z)
        >>> average(torch.ones(1, 2), torch.ones(1), torch.zeros(1))
        tensor([[1., 1.]])
    """

    _require_scale(time_scale)

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return _called(module, z, (t, s), time_scale, output, condition)

    return average_velocity


def as_flow_map(
    module: Callable[..., Any],
    *,
    time_scale: float = 1.0,
    output: Callable[[Any], Tensor] = _tensor,
    **condition: Any,
) -> FlowMap:
    """``(z, t, s) -> output(module(z, time_scale t, time_scale s))``: the network predicts the state at ``s`` directly.

    For a network that predicts an average velocity use ``flow.flow_map_from_average_velocity``.

    Args:
        module: called with ``z`` of ``[batch, *shape]``, source and target time, each ``[batch]``.
        time_scale: as in :func:`as_velocity`.
        output: picks the tensor from what the module returns.
        condition: keyword arguments of the module, as in :func:`with_condition`.

    Raises:
        ConfigError: for a scale that is zero or not finite; at a call, if the module cannot be called so, or the output
            is no tensor of the shape of ``z``.

    Example:
        >>> import torch
        >>> identity = as_flow_map(lambda z, t, s: (z, None), output=lambda pair: pair[0])
        >>> identity(torch.ones(1, 2), torch.ones(1), torch.zeros(1))
        tensor([[1., 1.]])
    """

    _require_scale(time_scale)

    def flow_map(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return _called(module, z, (t, s), time_scale, output, condition)

    return flow_map


@typed
def as_one_step(average_velocity: AverageVelocity, *, path: Path, start: float | None = None) -> OneStepGenerator:
    """``noise -> z + (data_time - start) a(z, start, data_time)`` with ``z = sigma(start) noise``.

    The network is evaluated once: a jump to the path's data end, from its noise end if ``start`` is ``None``.

    Args:
        average_velocity: ``(z, t, s) -> mean velocity``.
        path: gives the two ends and the state at the noise end.
        start: time of the evaluation; by default the noise end. Generators of distribution matching start nearer to
            the data, from noise alone.

    Returns:
        A function of standard normal noise ``[batch, *shape]``; it returns samples of this shape in at least float32.

    Raises:
        ConfigError: if ``start`` is not a time of the path before the data end.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> generate = as_one_step(lambda z, t, s: z - 3.0, path=Linear())
        >>> generate(torch.ones(1, 2))
        tensor([[3., 3.]])
    """

    first = path.noise_time if start is None else start
    low, high = sorted((path.data_time, path.noise_time))
    if first == path.data_time or not low <= first <= high:
        raise ConfigError(
            f"start = {start}: expected a time between the data end {path.data_time} and the noise end "
            f"{path.noise_time} of the path"
        )

    def generate(noise: Tensor, /) -> Tensor:
        t, s = (full(noise).new_full((noise.shape[0],), end) for end in (first, path.data_time))
        z = prior_state(path, noise) if start is None else expand_like(path.coefficients(t)[1], noise) * full(noise)
        return jump(average_velocity, z, t, s)

    return generate
