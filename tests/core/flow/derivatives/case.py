"""A network with a point and a direction, and how its derivative is known; the list of all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

F64 = torch.float64
Function = Callable[..., Any]


class Case(NamedTuple):
    """A function, where it is differentiated and along what.

    ``equivalent`` equals ``function`` and is made of operations that have a forward-mode derivative.
    """

    function: Function
    primals: tuple[Any, ...]
    tangents: tuple[Any, ...]
    module: nn.Module | None = None
    equivalent: Function | None = None


Oracle = Callable[[Function, tuple[Any, ...], tuple[Any, ...]], Any]
"""From a function, primals and tangents to the tangent of the function."""


class Entry(NamedTuple):
    """What is listed: a factory, which makes the same case at each call, and what holds for it."""

    group: str
    factory: Callable[[torch.Generator], Case]
    oracle: Oracle
    tolerance: float
    """Largest error of the tangent, relative to its largest entry."""
    still: bool
    """Whether the derivative is zero by intention."""
    rounded: bool
    """Whether the plain call may take another kernel, so that the value agrees to rounding alone."""
    gradient: bool
    """Whether autograd accepts the function; if not, it is called without a graph."""
    refusable: bool
    """Whether ``UnsupportedDerivative`` is an answer too."""

    def build(self) -> Case:
        """A new case, always the same."""
        torch.manual_seed(0)
        return self.factory(torch.Generator().manual_seed(1))


ZOO: dict[str, Entry] = {}


def differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def pairs(primals: Any, tangents: Any) -> tuple[list[Any], list[Any], Any]:
    """Leaves of the primals, of the tangents (``None`` of an argument is ``None`` of each leaf), and the structure."""
    leaves, structure = tree_flatten(primals)
    along: list[Any] = []
    for primal, tangent in zip(primals, tangents, strict=True):
        count = len(tree_leaves(primal))
        along += [None] * count if tangent is None else tree_leaves(tangent)
    return leaves, along, structure


def forward_mode(function: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """``torch.func.jvp``, with attention by its plain kernel, which alone has a forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return value_and_tangent(function, primals, tangents)[1]


def value_and_tangent(function: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """``torch.func.jvp``, which takes no integers and no ``None``: those are bound to the function, or zeros."""
    leaves, along, structure = pairs(primals, tangents)
    places = [i for i, leaf in enumerate(leaves) if differentiable(leaf)]

    def of_tensors(*moved: Tensor) -> Any:
        new = list(leaves)
        for i, leaf in zip(places, moved, strict=True):
            new[i] = leaf
        return function(*tree_unflatten(new, structure))

    at = tuple(leaves[i].clone() for i in places)
    direction = tuple(torch.zeros_like(leaves[i]) if along[i] is None else along[i].clone() for i in places)
    return torch.func.jvp(of_tensors, at, direction)


def two_backwards(function: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """``d/du <J^T u, v> = J v``: exact too, for what has a second derivative and no forward-mode one."""
    leaves, along, structure = pairs(primals, tangents)
    leaves = [leaf.detach().clone().requires_grad_() if differentiable(leaf) else leaf for leaf in leaves]
    places = [i for i, leaf in enumerate(leaves) if differentiable(leaf) and along[i] is not None]

    def slope(value: Any) -> Any:
        dual = torch.zeros_like(value, requires_grad=True)
        back = torch.autograd.grad(
            value, [leaves[i] for i in places], dual, create_graph=True, materialize_grads=True, retain_graph=True
        )
        total = sum((b * along[i]).sum() for b, i in zip(back, places, strict=True))
        return torch.autograd.grad(total, dual, materialize_grads=True, retain_graph=True)[0]

    with sdpa_kernel(SDPBackend.MATH):
        return tree_map(slope, function(*tree_unflatten(leaves, structure)))


def difference(function: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...], *, step: float = 0.02) -> Any:
    """A central difference of order eight."""
    leaves, along, structure = pairs(primals, tangents)

    def at(shift: float) -> Any:
        new = [
            leaf.detach() + shift * step * tangent if differentiable(leaf) and tangent is not None else leaf
            for leaf, tangent in zip(leaves, along, strict=True)
        ]
        with torch.no_grad():
            return function(*tree_unflatten(new, structure))

    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    total = None
    for shift, weight in weights.items():
        term = tree_map(lambda a, b, w=weight: (a - b) * (w / step), at(shift), at(-shift))
        total = term if total is None else tree_map(torch.add, total, term)
    return total


def add(
    group: str,
    name: str,
    factory: Callable[[torch.Generator], Case],
    *,
    oracle: Oracle = forward_mode,
    tolerance: float = 1e-12,
    still: bool = False,
    rounded: bool = False,
    gradient: bool = True,
    refusable: bool = False,
) -> None:
    """List a case."""
    key = f"{group}: {name}"
    assert key not in ZOO, f"{key} is listed twice"
    ZOO[key] = Entry(group, factory, oracle, tolerance, still, rounded, gradient, refusable)


def listed(group: str, **claims: Any) -> Callable[[Callable[[torch.Generator], Case]], Any]:
    """Decorator of a factory: list it under its own name, with spaces."""

    def keep(factory: Callable[[torch.Generator], Case]) -> Any:
        add(group, factory.__name__.strip("_").replace("_", " "), factory, **claims)
        return factory

    return keep


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype)


def drawn(module: nn.Module, generator: torch.Generator, *, dtype: torch.dtype = F64, by: float = 0.2) -> nn.Module:
    """The module in double precision; parameters that start at zero or one are no longer so."""
    module = module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * normal(generator, *parameter.shape).to(parameter.dtype))
    return module


def jump(
    function: Function, generator: torch.Generator, *shape: int, module: nn.Module | None = None, times: int = 2
) -> Case:
    """``function(z, t, s)`` along ``(v, 1, 0)``."""
    z, v = normal(generator, *shape), normal(generator, *shape)
    t, s = torch.rand(2, shape[0], generator=generator, dtype=F64)
    primals, tangents = (z, t, s), (v, torch.ones_like(t), torch.zeros_like(s))
    return Case(function, primals[: 1 + times], tangents[: 1 + times], module)


def fragment(function: Function, *shapes: tuple[int, ...], equivalent: Function | None = None) -> Any:
    """A factory: ``function`` of normal tensors of these shapes, each with a tangent."""

    def factory(generator: torch.Generator) -> Case:
        primals = tuple(normal(generator, *shape) for shape in shapes)
        tangents = tuple(normal(generator, *shape) for shape in shapes)
        return Case(function, primals, tangents, None, equivalent)

    return factory


def layer(make: Callable[[], nn.Module], *shape: int, train: bool = True, after: Function | None = None) -> Any:
    """A factory: a module of ``z`` scaled by ``1 + t``, the time of its sample."""

    def factory(generator: torch.Generator) -> Case:
        module = drawn(make(), generator).train(train)

        def function(z: Tensor, t: Tensor) -> Any:
            out = module(z * (1 + t.view(-1, *[1] * (z.ndim - 1))))
            return out if after is None else after(out)

        return jump(function, generator, *shape, module=module, times=1)

    return factory
