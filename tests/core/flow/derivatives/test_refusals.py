"""What hides an operation from the derivative: an exact tangent or an error that names it, never a wrong number."""

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import onestep_core as one
from tests.core.flow.derivatives.case import F64, drawn, normal, two_backwards
from tests.core.flow.derivatives.checks import assert_close, copies, outcome, seeded


class Cube(Function):
    """Written in the old style: the context is the first argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.square() * gradient


class Split(Function):
    """Written in the new style, with a number, two outputs and an input without tangent."""

    @staticmethod
    def forward(x: Tensor, factor: float, y: Tensor) -> tuple[Tensor, Tensor]:
        return factor * x * y, x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.factor, y = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx: Any, product: Tensor, sine: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return ctx.factor * y * product + x.cos() * sine, None, ctx.factor * x * product


class WithForwardMode(Function):
    """Has a forward-mode derivative of its own."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0]


class InPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


cube, split, exponential, in_place = Cube.apply, Split.apply, WithForwardMode.apply, InPlace.apply
"""Bound before any derivative runs, as libraries bind theirs at import."""


def custom_op(name: str, *, autograd: bool) -> Any:
    @torch.library.custom_op(f"onestep_tests::{name}", mutates_args=())
    def op(x: Tensor) -> Tensor:
        return x**3

    op.register_fake(torch.empty_like)
    if autograd:
        op.register_autograd(
            lambda ctx, gradient: 3 * ctx.saved_tensors[0].square() * gradient,
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        )
    return op


CUBE_OP, CUBE_OP_WITH_AUTOGRAD = custom_op("cube", autograd=False), custom_op("cube_with_autograd", autograd=True)
LIBRARY = torch.library.Library("onestep_tests", "FRAGMENT")
LIBRARY.define("cube_of_pieces(Tensor x) -> Tensor")
LIBRARY.impl("cube_of_pieces", lambda x: x * x * x, "CompositeImplicitAutograd")
LIBRARY.define("cube_of_a_kernel(Tensor x) -> Tensor")
LIBRARY.impl("cube_of_a_kernel", lambda x: torch.from_numpy(x.numpy() ** 3), "CPU")


def saved_and_loaded(x: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def written_by_numpy(x: Tensor) -> Tensor:
    """NumPy sees the memory of the tensor and writes there."""
    y = x * 2
    np.square(y.numpy(), out=y.numpy())
    return y


class OwnTensor(Tensor):
    """A subclass of somebody's, which takes part in the protocol as torch's own default does."""


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.sin() * x


def layer() -> nn.Module:
    torch.manual_seed(0)
    return drawn(nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 4)), torch.Generator().manual_seed(0))


def energy_gradient(x: Tensor) -> Tensor:
    """A score that is a gradient: the graph is made and used within the function."""
    with torch.enable_grad():
        y = x.clone()
        if not y.requires_grad:
            y.requires_grad_()
        return torch.autograd.grad(y.sin().square().sum(), y, create_graph=True)[0]


# name -> (the function, the same in plain operations, what a refusal has to name)
HIDDEN: dict[str, tuple[Any, Any, str]] = {
    "Function": (lambda x: Cube.apply(x.sin()), lambda x: x.sin() ** 3, "Cube"),
    "Function bound before": (lambda x: cube(x.sin()), lambda x: x.sin() ** 3, "Cube"),
    "Function of an argument": (cube, lambda x: x**3, "Cube"),
    "Function in a module": (
        nn.Sequential(layer(), type("Cubed", (nn.Module,), {"forward": lambda self, x: cube(x)})()),
        nn.Sequential(layer(), type("Cubed", (nn.Module,), {"forward": lambda self, x: x**3})()),
        "Cube",
    ),
    "Function without gradient": (torch.no_grad()(lambda x: cube(x.sin())), lambda x: x.sin() ** 3, "Cube"),
    "Function with many arguments": (
        lambda x: torch.cat(Split.apply(x, 2.0, x.detach())),
        lambda x: torch.cat([2 * x * x.detach(), x.sin()]),
        "Split",
    ),
    "Function with many arguments, bound before": (
        lambda x: torch.cat(split(torch.ones(3, 4, dtype=F64), 2.0, x.cos())),
        lambda x: torch.cat([2 * x.cos(), torch.ones(3, 4, dtype=F64).sin()]),
        "Split",
    ),
    "Function with a forward-mode derivative": (
        lambda x: WithForwardMode.apply(x.sin()),
        lambda x: x.sin().exp(),
        "WithForwardMode",
    ),
    "Function with a forward-mode derivative, bound before": (
        lambda x: exponential(x.sin()),
        lambda x: x.sin().exp(),
        "WithForwardMode",
    ),
    "Function in place": (lambda x: InPlace.apply(x * 1.0) + x, lambda x: 3 * x, "InPlace"),
    "Function in place, bound before": (lambda x: in_place(x * 1.0) + x, lambda x: 3 * x, "InPlace"),
    "custom op": (lambda x: CUBE_OP(x.sin()), lambda x: x.sin() ** 3, "cube"),
    "custom op called by its name": (
        lambda x: torch.ops.onestep_tests.cube(x.sin()),
        lambda x: x.sin() ** 3,
        "cube",
    ),
    "custom op with autograd": (lambda x: CUBE_OP_WITH_AUTOGRAD(x.sin()), lambda x: x.sin() ** 3, "cube_with_autograd"),
    "custom op of pieces": (
        lambda x: torch.ops.onestep_tests.cube_of_pieces(x.sin()),
        lambda x: x.sin() ** 3,
        "cube_of_pieces",
    ),
    "custom op of a kernel": (
        lambda x: torch.ops.onestep_tests.cube_of_a_kernel(x.sin()),
        lambda x: x.sin() ** 3,
        "cube_of_a_kernel",
    ),
    "a scripted function": (lambda x: scripted(x.cos()), lambda x: x.cos().sin() * x.cos(), ""),
    "a compiled module": (lambda x: torch.compile(layer(), backend="eager")(x.sin()), lambda x: layer()(x.sin()), ""),
    "a compiled function": (
        torch.compile(lambda x: x.sin() * x, backend="aot_eager", fullgraph=True),
        lambda x: x.sin() * x,
        "",
    ),
    "a reentrant checkpoint": (
        lambda x: checkpoint(torch.sin, x * 2, use_reentrant=True),
        lambda x: (x * 2).sin(),
        "Checkpoint",
    ),
    "vmap inside": (
        lambda x: torch.func.vmap(lambda row: row.sin() * row.sum())(x),
        lambda x: x.sin() * x.sum(1, True),
        "",
    ),
    "grad inside": (lambda x: torch.func.grad(lambda y: y.sin().square().sum())(x), lambda x: (2 * x).sin(), ""),
    "vjp inside": (lambda x: torch.func.vjp(torch.sin, x)[1](x)[0], lambda x: x.cos() * x, ""),
    "jvp inside": (lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1], lambda x: x.cos() * x, ""),
    "jvp inside, of what it holds": (
        lambda x: torch.func.jvp(lambda y: y.sin() * x, (torch.ones(3, 4, dtype=F64),), (torch.ones(3, 4, dtype=F64),))[
            1
        ],
        lambda x: math.cos(1) * x,
        "",
    ),
    "with_graph inside, of what it holds": (
        lambda x: one.with_graph(lambda y: y.sin() * x, (torch.ones(3, 4, dtype=F64),), (torch.ones(3, 4, dtype=F64),))[
            1
        ],
        lambda x: math.cos(1) * x,
        "",
    ),
    "running statistics with a tangent": (
        lambda x: F.batch_norm(x, x.mean(0), x.square().mean(0), training=False),
        lambda x: (x - x.mean(0)) / (x.square().mean(0) + 1e-5).sqrt(),
        "",
    ),
    "autograd inside": (energy_gradient, lambda x: (2 * x).sin(), ""),
    "a deep copy": (lambda x: copy.deepcopy(x).sin(), torch.sin, ""),
    "a pickle": (lambda x: pickle.loads(pickle.dumps(x)).sin(), torch.sin, ""),
    "saved and loaded": (saved_and_loaded, lambda x: x * 1, ""),
    "numpy": (lambda x: torch.from_numpy(np.sin(x.numpy())), torch.sin, "numpy"),
    "numpy by itself": (np.sin, torch.sin, ""),
    "an array of numpy": (lambda x: torch.tensor(np.asarray(x)), lambda x: x * 1, ""),
    "numpy writes": (written_by_numpy, lambda x: (x * 2).square(), "numpy"),
    "dlpack": (lambda x: torch.from_dlpack(x).sin(), torch.sin, ""),
    "dlpack by hand": (lambda x: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)), lambda x: x * 1, ""),
    "the storage": (
        lambda x: torch.empty(0, dtype=F64).set_(x.untyped_storage(), 0, x.shape, x.stride()).sin(),
        torch.sin,
        "",
    ),
    "set": (lambda x: torch.empty(0, dtype=F64).set_(x.exp()).sin(), lambda x: x.exp().sin(), ""),
    "resized": (lambda x: (x * 2).resize_(2, 4).sin(), lambda x: (x[:2] * 2).sin(), ""),
    "data assigned": (lambda x: _with_data(x), lambda x: x.detach().exp().sin() + 0 * x, ""),
    "swapped": (lambda x: _swapped(x), lambda x: x.exp() - x, ""),
    "a sparse matrix": (
        lambda x: torch.sparse.mm(torch.eye(3, dtype=F64).to_sparse(), x).sin(),
        torch.sin,
        "",
    ),
    "made sparse": (lambda x: x.to_sparse().to_dense().sin(), torch.sin, ""),
    "a nested tensor": (
        lambda x: torch.nested.as_nested_tensor([x[:1], x[1:]], layout=torch.jagged).values().sin(),
        torch.sin,
        "",
    ),
    "another subclass": (lambda x: x.as_subclass(OwnTensor).sin().as_subclass(Tensor), torch.sin, ""),
    "a parameter made inside": (lambda x: nn.Parameter(x * 2) * x, lambda x: (x * 2).detach() * x, ""),
    "a map of the processor": (lambda x: x.sin().map_(x, lambda a, b: a * b), lambda x: x.sin() * x, ""),
    "an apply of the processor": (lambda x: x.sin().apply_(lambda a: a * a), lambda x: x.sin().square(), ""),
    "rows shared among threads": (lambda x: _threaded(x), torch.sin, ""),
    "conditional": (lambda x: torch.cond(x.sum() > -99, torch.sin, torch.cos, (x,)), torch.sin, ""),
    "itself": (lambda x: one.single_pass(torch.sin, (x,), (torch.ones_like(x),))[0] * x, lambda x: x.sin() * x, ""),
}


def _with_data(x: Tensor) -> Tensor:
    y = torch.zeros(3, 4, dtype=F64)
    y.data = x.exp()
    return y.sin()


def _swapped(x: Tensor) -> Tensor:
    y, z = x.exp(), x * 1
    torch.utils.swap_tensors(y, z)
    return z - y


def _threaded(x: Tensor) -> Tensor:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return torch.stack(list(pool.map(torch.sin, x)))


def state(rows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return normal(generator, rows, 4), normal(generator, rows, 4)


def refused_for(function: Any, x: Tensor, v: Tensor) -> Any:
    """Value and tangent, or an error: that of the library, or one of torch, which the plain call raises as well."""
    try:
        return outcome(function, (x,), (v,))
    except Exception as error:
        with pytest.raises(type(error)):
            function(x)
        return error


# With a deep copy, a pickle and the like torch itself refuses a tensor with a graph: they are tried without one too.
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "no graph"])
@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.filterwarnings("ignore")
def test_exact_or_refused(name, graph):
    function, plain, what = HIDDEN[name]
    x, v = state()
    expected = two_backwards(plain, (x,), (v,))
    apply = Function.__dict__["apply"]
    with torch.set_grad_enabled(graph):
        found = refused_for(function, x.clone().requires_grad_(graph), v)
    assert Function.__dict__["apply"] is apply
    assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0
    if isinstance(found, one.UnsupportedDerivative):
        assert what in str(found), f"the refusal does not name {what}: {found}"
        assert "tangent_rule" in str(found), f"the refusal names no remedy: {found}"
    elif not isinstance(found, Exception):
        value, tangent = found
        assert_close(copies(value), copies(plain(x)), 1e-14, "value")
        assert_close(copies(tangent), copies(expected), 1e-12, "tangent")


@pytest.mark.parametrize("function", [lambda x, w: Cube.apply(w) * x, lambda x, w: cube(w) * x])
def test_a_function_of_constants_is_no_matter(function):
    """Weights pass through a custom Function, as quantised or gathered ones do; they have no tangent."""
    (x, v), (w, _) = state(), state()
    w.requires_grad_()
    value, tangent = one.single_pass(lambda z: function(z, w), (x,), (v,))
    value.sum().backward()
    torch.testing.assert_close(tangent, w.detach() ** 3 * v)
    torch.testing.assert_close(w.grad, 3 * w.detach().square() * x)


def test_the_refusal_is_an_error_of_this_library():
    assert issubclass(one.UnsupportedDerivative, one.OneStepError)


def test_after_a_refusal_everything_is_as_before():
    """Also the tensors that the function had made, and a later derivative."""
    x, v = state()
    kept: list[Tensor] = []

    def function(z: Tensor) -> Tensor:
        kept.append(z.sin())
        raise KeyError("of the network")

    apply = Function.__dict__["apply"]
    with pytest.raises(KeyError, match="of the network"):
        one.single_pass(function, (x,), (v,))
    assert Function.__dict__["apply"] is apply
    assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0
    assert_close(one.single_pass(torch.sin, (x,), (v,))[1], x.cos() * v, 1e-14, "tangent")


class Remembers(nn.Module):
    """Adds what it computed in the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        now = z.sin()
        out = now if self.before is None else now + 2 * self.before
        self.before = now
        return out


def test_a_tensor_kept_by_the_network_is_a_constant_in_the_next_call():
    """In a plain call, in another derivative, and for good."""
    (x, v), module = state(), Remembers()
    one.single_pass(module, (x,), (v,))
    plain = module(x)
    assert type(plain) is Tensor
    torch.testing.assert_close(plain, 3 * x.sin())
    one.single_pass(module, (x,), (v,))
    value, tangent = one.single_pass(module, (2 * x,), (v,))
    torch.testing.assert_close(value, (2 * x).sin() + 2 * x.sin())
    torch.testing.assert_close(tangent, (2 * x).cos() * v)


class Ruled(Cube):
    """The same Function, with a rule."""


class RuledSplit(Split):
    """The same Function, with a rule."""


ruled, ruled_split = Ruled.apply, RuledSplit.apply
RULED_OP = custom_op("ruled_cube", autograd=True)


@pytest.fixture(scope="module")
def rules():
    """A rule has the primals and tangents of the operation (``None``: none) and returns the tangent of its output."""

    @one.tangent_rule(Ruled)
    def of_cube(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Tensor:
        return 3 * primals[0].square() * tangents[0]

    @one.tangent_rule(RuledSplit)
    def of_split(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        (x, factor, y), (dx, nothing, dy) = primals, tangents
        assert nothing is None
        product, sine = torch.zeros_like(x), torch.zeros_like(x)
        if dx is not None:
            product, sine = product + factor * y * dx, x.cos() * dx
        if dy is not None:
            product = product + factor * x * dy
        return product, sine

    @one.tangent_rule(RULED_OP)
    def of_op(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Tensor:
        return 3 * primals[0].square() * tangents[0]

    return of_cube, of_split, of_op


RULED: dict[str, tuple[Any, Any]] = {
    "Function": (lambda x: Ruled.apply(x.sin()) * x, lambda x: x.sin() ** 3 * x),
    "Function bound before": (lambda x: ruled(x.sin()) * x, lambda x: x.sin() ** 3 * x),
    "Function of an argument": (lambda x: ruled(x), lambda x: x**3),
    "Function with many arguments": (
        lambda x: torch.cat(RuledSplit.apply(x.sin(), 2.0, x.cos())),
        lambda x: torch.cat([2 * x.sin() * x.cos(), x.sin().sin()]),
    ),
    "Function with many arguments, of which one has a tangent": (
        lambda x: torch.cat(ruled_split(torch.ones(3, 4, dtype=F64), 2.0, x.cos())),
        lambda x: torch.cat([2 * x.cos(), torch.ones(3, 4, dtype=F64).sin()]),
    ),
    "custom op": (lambda x: RULED_OP(x.sin()), lambda x: x.sin() ** 3),
    "custom op called by its name": (lambda x: torch.ops.onestep_tests.ruled_cube(x.sin()), lambda x: x.sin() ** 3),
}


@pytest.mark.parametrize(("function", "plain"), RULED.values(), ids=RULED)
def test_a_rule_makes_it_work(rules, function, plain):
    x, v = state()
    here, there = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, tangent = one.single_pass(function, (here,), (v,))
    assert_close(copies(value), copies(plain(x)), 1e-14, "value")
    assert_close(tangent, two_backwards(plain, (x,), (v,)), 1e-12, "tangent")
    value.sum().backward()
    plain(there).sum().backward()
    assert_close(here.grad, there.grad, 1e-12, "gradient")


def test_a_rule_of_the_wrong_shape_is_named(rules):
    class Wrong(Cube):
        pass

    @one.tangent_rule(Wrong)
    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Tensor:
        return tangents[0][:1]

    x, v = state()
    with pytest.raises((one.UnsupportedDerivative, one.ConfigError), match="Wrong"):
        one.single_pass(Wrong.apply, (x,), (v,))


def test_numbers_that_left_torch_are_as_in_forward_mode():
    """``item`` and ``tolist`` give numbers: constants for ``torch.func.jvp``, and here, or a refusal."""
    x, v = state()
    for function in (
        lambda z: z * z[0, 0].item() + float(z[1, 1]),
        lambda z: torch.tensor(z.tolist(), dtype=F64) * z,
        lambda z: torch.full((3, 4), z.sum().item(), dtype=F64) + z,
    ):
        found = seeded(outcome, function, (x,), (v,))
        if not isinstance(found, one.UnsupportedDerivative):
            assert_close(found, torch.func.jvp(function, (x,), (v,)), 1e-14, "value and tangent")


FITTING = torch.ones(3)


@pytest.mark.parametrize(
    ("primals", "tangents"),
    [
        ((FITTING,), (torch.ones(4),)),
        ((FITTING,), (torch.ones(1),)),
        ((FITTING, FITTING), (FITTING,)),
        ((FITTING,), ({"a": FITTING},)),
        (([FITTING, FITTING],), ([FITTING],)),
        ((FITTING.long(),), (FITTING.long(),)),
    ],
)
def test_tangents_that_do_not_fit_are_refused(primals, tangents):
    with pytest.raises(one.ConfigError):
        one.single_pass(lambda *x: x[0] * 2, primals, tangents)
