"""Foreign networks as the plain callables that the core takes.

The core calls ``network(z, *times)`` and sees neither modules nor conditions. What stands between it and an
``nn.Module`` are a few small wrappers, applied in this order:

1. :func:`frozen` (teachers, EMA copies): gradients reach the input, never a parameter; :func:`shared_dropout`: two
   evaluations with the same masks;
2. :func:`with_condition`: labels, text, guidance strengths are closed over;
3. :func:`as_velocity`, :func:`as_average_velocity`, :func:`as_flow_map`: what the output *means*, with the units
   of time and the container of the output put right, and the shape checked;
4. :func:`as_one_step`: an average velocity as a generator, one evaluation.

:func:`count_calls` may stand anywhere and counts evaluations. Other conventions of time arguments are adapted
in the core (``flow.from_duration``, ``from_reversed``, ``from_log_step``), and so are other meanings of the
output (``flow.velocity_from_denoiser``, ``flow.average_velocity_from_flow_map``).

No wrapper copies a parameter, switches a module between training and evaluation, or enters ``no_grad``.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from onestep_core.errors import ConfigError
from onestep_core.flow.maps import jump
from onestep_core.flow.paths import prior_state
from onestep_core.protocols import AverageVelocity, FlowMap, OneStepGenerator, Path, Velocity


def with_condition(module: Callable[..., Any], *args: Any, **condition: Any) -> Callable[..., Any]:
    """``(z, *times) -> module(z, *times, *args, **condition)``.

    Args:
        module: a module or any callable.
        args: appended to the positional arguments.
        condition: keyword arguments: labels, text embeddings, masks; their batch is that of ``z``.

    Example:
        >>> scaled = with_condition(lambda z, t, *, label: z * label[:, None], label=torch.tensor([2.0]))
        >>> scaled(torch.ones(1, 2), torch.zeros(1))
        tensor([[2., 2.]])
    """

    def conditioned(*inputs: Tensor) -> Any:
        return module(*inputs, *args, **condition)

    return conditioned


def _tensor(output: Any) -> Tensor:
    return output


def _checked(output: Any, z: Tensor) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the network returned a {type(output).__name__}, expected a tensor: choose the part that is meant with "
            "`output=`, for example output=lambda result: result.sample"
        )
    if output.shape != z.shape:
        raise ConfigError(
            f"the network returned {tuple(output.shape)} for a state {tuple(z.shape)}, expected equal shapes: drop "
            "extra channels (a learned variance, for one) with `output=`"
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
        time_scale: factor from the path's unit of time to the network's: 1000 for most diffusion
            transformers. The output stays a velocity per unit of the *path's* time.
        output: picks the tensor from what the module returns.
        condition: keyword arguments of the module, as in :func:`with_condition`.

    Raises:
        ConfigError: at a call, if the output is no tensor of the shape of ``z``.

    Example:
        >>> velocity = as_velocity(lambda z, t: {"v": z * t[:, None]}, time_scale=1000.0, output=lambda r: r["v"])
        >>> velocity(torch.ones(1, 2), torch.ones(1))
        tensor([[1000., 1000.]])
    """

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        return _checked(output(module(z, t * time_scale, **condition)), z)

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
        ConfigError: at a call, if the output is no tensor of the shape of ``z``.

    Example:
        >>> average = as_average_velocity(lambda z, t, s: z)
        >>> average(torch.ones(1, 2), torch.ones(1), torch.zeros(1))
        tensor([[1., 1.]])
    """

    def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return _checked(output(module(z, t * time_scale, s * time_scale, **condition)), z)

    return average_velocity


def as_flow_map(
    module: Callable[..., Any],
    *,
    time_scale: float = 1.0,
    output: Callable[[Any], Tensor] = _tensor,
    **condition: Any,
) -> FlowMap:
    """``(z, t, s) -> output(module(z, time_scale t, time_scale s))``, the state at ``s``, predicted directly.

    For a network that predicts an average velocity use ``flow.flow_map_from_average_velocity``.

    Args:
        module: called with ``z`` of ``[batch, *shape]``, source and target time, each ``[batch]``.
        time_scale: as in :func:`as_velocity`.
        output: picks the tensor from what the module returns.
        condition: keyword arguments of the module, as in :func:`with_condition`.

    Raises:
        ConfigError: at a call, if the output is no tensor of the shape of ``z``.

    Example:
        >>> still = as_flow_map(lambda z, t, s: (z, None), output=lambda pair: pair[0])
        >>> still(torch.ones(1, 2), torch.ones(1), torch.zeros(1))
        tensor([[1., 1.]])
    """

    def flow_map(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
        return _checked(output(module(z, t * time_scale, s * time_scale, **condition)), z)

    return flow_map


def as_one_step(average_velocity: AverageVelocity, *, path: Path) -> OneStepGenerator:
    """``noise -> z + (data_time - noise_time) a(z, noise_time, data_time)`` with ``z = path.prior(noise)``.

    One evaluation of the network: a jump from the path's noise end to its data end.

    Args:
        average_velocity: ``(z, t, s) -> mean velocity``.
        path: gives the two ends and the state at the noise end.

    Returns:
        A function of standard normal noise, ``[batch, *shape]``, in at least float32.

    Example:
        >>> from onestep_core.flow import Linear
        >>> generate = as_one_step(lambda z, t, s: z - 3.0, path=Linear())
        >>> generate(torch.ones(1, 2))
        tensor([[3., 3.]])
    """

    def generate(noise: Tensor, /) -> Tensor:
        z = prior_state(path, noise)
        t, s = (z.new_full((z.shape[0],), end) for end in (path.noise_time, path.data_time))
        return jump(average_velocity, z, t, s)

    return generate


class Counted:
    """A callable that counts its calls; also made by :func:`count_calls`.

    Attributes:
        calls: number of calls so far, whatever their batch; assign 0 to start again.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Count, then call."""
        self.calls += 1
        return self._function(*args, **kwargs)


def count_calls(function: Callable[..., Any]) -> Counted:
    """``function`` with a number of network evaluations, ``.calls``.

    A call is one evaluation of the whole batch. A call inside ``torch.func.jvp`` counts once, although it
    costs about two.

    Example:
        >>> network = count_calls(lambda z: z + 1)
        >>> _ = network(torch.zeros(1)), network(torch.zeros(1))
        >>> network.calls
        2
    """
    return Counted(function)


def frozen(module: nn.Module) -> Callable[..., Any]:
    """``module`` with parameters and buffers detached at every call: the gradient passes to the input only.

    Nothing is copied, so the callable follows a module that goes on training (an EMA, a fake
    score). A forward-mode tangent stops at the parameters too. Nothing else about the module changes:
    dropout, and batch normalisation's running statistics, act as its mode says.

    Args:
        module: a module. Conditions are bound afterwards: ``with_condition(frozen(module), label=y)``.

    Raises:
        ConfigError: if it is not a module; a closure's parameters cannot be found.

    Example:
        >>> linear, z = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
        >>> frozen(linear)(z).sum().backward()
        >>> linear.weight.grad is None, z.grad is None
        (True, False)
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"cannot freeze a {type(module).__name__}, expected an nn.Module: freeze the module first, then wrap it, "
            "for example with_condition(frozen(module), label=label)"
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        return torch.func.functional_call(module, tensors, args, kwargs)

    return call


def shared_dropout(
    online: Callable[..., Any], target: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A pair of callables of which the second draws what the first drew: one dropout mask for a consistency pair.

    With masks of their own the two sides of a consistency pair differ even where the network is consistent, and the
    difference does not shrink with the time between them; every published recipe that uses dropout shares it.

    The first callable remembers the state of torch's generators before it evaluates ``online``. The second puts
    that state back, evaluates ``target``, and leaves the generators as it found them: a training step advances them
    by the one evaluation of ``online``. The generators are those of the CPU and of every device on which a
    parameter, a buffer or an argument lies. Other sources of randomness (numpy, python, a generator that a module
    owns) are not repeated.

    Both evaluations must draw in the same order and shape: the same architecture in the same mode, so a moving
    average stays in training mode here. Without dropout nothing happens but the copy of a state. Compile the
    modules, not the pair.

    Args:
        online: a module, or a callable that runs one.
        target: what is evaluated with the same masks; ``online`` itself where ``None`` (iCT, ECT).

    Returns:
        ``(online, target)``, to be called in this order. Conditions are bound afterwards.

    Raises:
        ConfigError: at a call of the second before the first.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, section 3.1,
    https://arxiv.org/abs/2310.14189.

    Example:
        >>> dropout, z = nn.Dropout(0.5), torch.ones(2, 100)
        >>> online, target = shared_dropout(dropout)
        >>> bool((online(z) == target(z)).all()), bool((online(z) == online(z)).all())
        (True, False)
    """
    twin = online if target is None else target
    modules = [module for module in (online, twin) if isinstance(module, nn.Module)]
    remembered: dict[torch.device, Tensor] = {}

    def first(*args: Any, **kwargs: Any) -> Any:
        devices = _generators(modules, (*args, *kwargs.values()))
        remembered.clear()
        remembered.update(_states(devices))
        return online(*args, **kwargs)

    def second(*args: Any, **kwargs: Any) -> Any:
        if not remembered:
            raise ConfigError("the second callable of a pair came first: call the online one before the target")
        before = _states(remembered)
        _restore(remembered)
        try:
            return twin(*args, **kwargs)
        finally:
            _restore(before)

    return first, second


def _generators(modules: Iterable[nn.Module], arguments: Iterable[Any]) -> set[torch.device]:
    """The devices that may be drawn on; a ``meta`` device has no generator."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors += [argument for argument in arguments if isinstance(argument, Tensor)]
    return {torch.device("cpu")} | {tensor.device for tensor in tensors if tensor.device.type != "meta"}


def _states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    def state(device: torch.device) -> Tensor:
        match device.type:
            case "cpu":
                return torch.get_rng_state()
            case "mps":
                return torch.mps.get_rng_state()
            case _:
                return torch.get_device_module(device).get_rng_state(device)

    return {device: state(device) for device in devices}


def _restore(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        match device.type:
            case "cpu":
                torch.set_rng_state(state)
            case "mps":
                torch.mps.set_rng_state(state)
            case _:
                torch.get_device_module(device).set_rng_state(state, device)
