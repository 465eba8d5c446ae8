"""Frozen networks: gradients reach the input, never a parameter."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onestep_core.errors import ConfigError


def frozen(module: nn.Module) -> Callable[..., Any]:
    """``module`` with parameters and buffers detached at every call: gradients reach only the input.

    Nothing is copied: if the module is trained further (an EMA, a fake score), the callable uses the new weights.
    Forward-mode tangents of the parameters are also removed. Dropout and the running statistics of batch normalisation
    still depend on the training or evaluation mode of the module.

    Args:
        module: a module. Bind conditions after this function: ``with_condition(frozen(module), label=y)``.

    Raises:
        ConfigError: if it is not an ``nn.Module``, because the parameters of a closure cannot be found.

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

    # As functools.wraps does: whoever has to know the module finds it.
    vars(call)["__wrapped__"] = module
    return call
