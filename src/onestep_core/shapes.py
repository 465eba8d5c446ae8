"""The only places where axes are added, removed or moved.

Every function of the core keeps the batch axis in front and broadcasts nothing by itself; axes are aligned here.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils._pytree import tree_map

from onestep_core.errors import ConfigError
from onestep_core.precision import without_gradient
from onestep_core.typing import PerSample, Sample, typed

InDims: TypeAlias = int | tuple[Any, ...]


@typed
def expand_like(
    per_sample_number: Shaped[Tensor, "numbers"], sample: Shaped[Tensor, "batch *shape"]
) -> Shaped[Tensor, "batch ..."]:
    """``[batch]`` of any dtype with as many trailing axes of length one as ``sample`` has, ready to multiply it.

    Raises:
        ConfigError: if there is not one number per sample.

    Example:
        >>> expand_like(torch.ones(4), torch.ones(4, 3, 8, 8)).shape
        torch.Size([4, 1, 1, 1])
    """
    # Compared here and not by the types, which are not checked in compiled code.
    if per_sample_number.shape != sample.shape[:1]:
        raise ConfigError(
            f"times or numbers of shape {list(per_sample_number.shape)} beside samples of shape {list(sample.shape)}: "
            f"expected one per sample, {list(sample.shape[:1])}"
        )
    return per_sample_number.reshape(per_sample_number.shape[0], *(1 for _ in sample.shape[1:]))


@typed
def per_sample_sum(sample: Sample) -> PerSample:
    """Sum over every axis but the batch axis.

    Example:
        >>> per_sample_sum(torch.ones(2, 3, 4))
        tensor([12., 12.])
    """
    return sample.flatten(1).sum(1) if sample.ndim > 1 else sample


@typed
def per_sample_mean(sample: Sample) -> PerSample:
    """Mean over every axis but the batch axis.

    Raises:
        ConfigError: if a sample holds no number.

    Example:
        >>> per_sample_mean(torch.ones(2, 3, 4))
        tensor([1., 1.])
    """
    if 0 in sample.shape[1:]:
        raise ConfigError(f"samples of shape {list(sample.shape[1:])} hold no number: expected at least one in each")
    return sample.flatten(1).mean(1) if sample.ndim > 1 else sample


@typed
def largest_entry(sample: Sample) -> PerSample:
    """The largest absolute value of a sample, a constant to divide by; 1 where it is zero or not finite.

    Squares of a sample that is divided by it neither overflow nor vanish. It has no gradient.

    Example:
        >>> largest_entry(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
        tensor([3., 1.])
    """
    size = without_gradient(sample).abs()
    size = size.flatten(1).amax(1) if size.ndim > 1 else size
    return torch.where((size == 0) | ~size.isfinite(), 1.0, size)


def per_sample(function: Callable[..., Any], in_dims: InDims = 0, randomness: str = "error") -> Callable[..., Any]:
    """``torch.func.vmap`` that hands each call a batch of one, so that one objective runs batched and per sample.

    ``vmap`` removes the batch axis, and a function written for batches would then reduce over the wrong
    axes. Here the axis stays, with length one, and results get their batch axis back.

    Args:
        function: takes and returns pytrees of tensors whose mapped axis is a batch axis. A result without
            one (a sum, the gradient of a shared parameter) gets a new leading axis, one row a sample.
        in_dims: as for ``torch.func.vmap``: 0 for what has a batch axis, ``None`` for what is shared.
        randomness: ``"error"``, ``"different"`` or ``"same"``, as for ``torch.func.vmap``.

    Returns:
        A function with the same arguments, whose results carry the sample axis in front.

    Example:
        Per-sample gradients of a shared parameter:

        >>> def loss(w, x):
        ...     return (x * w).pow(2).flatten(1).sum(1)
        >>> gradient = per_sample(torch.func.grad(lambda w, x: loss(w, x).sum()), in_dims=(None, 0))
        >>> gradient(torch.tensor(2.0), torch.ones(3, 2))
        tensor([8., 8., 8.])
    """

    def batch_of_one(argument: Any, dim: Any) -> Any:
        if dim is None:
            return argument
        if isinstance(dim, int):

            def restore(leaf: Any) -> Any:
                return leaf.unsqueeze(dim) if isinstance(leaf, Tensor) else leaf

            return tree_map(restore, argument)
        if isinstance(dim, dict):
            return {key: batch_of_one(argument[key], dim[key]) for key in argument}
        parts = [batch_of_one(part, part_dim) for part, part_dim in zip(argument, dim, strict=True)]
        return type(argument)(*parts) if hasattr(argument, "_fields") else type(argument)(parts)

    def one(*arguments: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(arguments)
        return function(*(batch_of_one(a, d) for a, d in zip(arguments, dims, strict=True)))

    return torch.func.vmap(one, in_dims=in_dims, randomness=randomness)


@typed
def clouds(features: Float[Tensor, "batch location channel"], groups: int) -> Float[Tensor, "cloud n channel"]:
    """Every location of a group becomes one cloud of that group's samples.

    The ``groups`` classes lie contiguously in the batch: ``batch = groups * n``, ``cloud = groups * location``.

    Raises:
        ConfigError: if ``groups`` does not divide the batch.

    Example:
        >>> clouds(torch.ones(6, 4, 5), groups=2).shape
        torch.Size([8, 3, 5])
    """
    if groups < 1 or features.shape[0] % groups:
        raise ConfigError(
            f"a batch of {features.shape[0]} cannot be split into {groups} groups of equal size: "
            "lay the classes contiguously in the batch, with the same number of samples each"
        )
    return rearrange(features, "(group n) location channel -> (group location) n channel", group=groups)


@typed
def uncloud(cloud: Float[Tensor, "cloud n channel"], groups: int) -> Float[Tensor, "batch location channel"]:
    """The inverse of :func:`clouds`: back to ``[batch, location, channel]``.

    Raises:
        ConfigError: if ``groups`` does not divide the clouds.

    Example:
        >>> x = torch.randn(6, 4, 5)
        >>> bool((uncloud(clouds(x, groups=2), groups=2) == x).all())
        True
    """
    if groups < 1 or cloud.shape[0] % groups:
        raise ConfigError(
            f"{cloud.shape[0]} clouds cannot be split into {groups} groups of equal size: expected a number that "
            "divides them"
        )
    return rearrange(cloud, "(group location) n channel -> (group n) location channel", group=groups)
