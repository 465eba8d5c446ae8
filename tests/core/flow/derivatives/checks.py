"""What is asserted of ``single_pass`` for one case."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

import onestep_core as one
from tests.core.flow.derivatives.case import Case, Entry, Oracle, differentiable

QUIET = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (
        "Using padding='same'",
        "Complex modules are",
        "`past_key_values` is deprecated",
        "LSTM with projections is not supported with oneDNN",
    )
]
"""Warnings of the networks themselves."""
SEED = 7
GRADIENTS = 1e-10


def seeded(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """A call with torch's generator at the same place: one mask of dropout."""
    torch.manual_seed(SEED)
    return function(*arguments, **keywords)


def with_gradient(primals: Any) -> Any:
    """The same tensors, which collect gradients."""
    return tree_map(lambda leaf: leaf.requires_grad_() if differentiable(leaf) else leaf, primals)


def gradients(case: Case, value: Any) -> list[Tensor | None]:
    """Of a weighted sum of the outputs, in the parameters and in the inputs."""
    leaves = [leaf for leaf in tree_leaves(value) if differentiable(leaf) and leaf.requires_grad]
    parameters = [p for p in (case.module.parameters() if case.module else ()) if p.requires_grad]
    inputs = [leaf for leaf in tree_leaves(case.primals) if differentiable(leaf) and leaf.requires_grad]
    if not leaves:
        return []
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype) for leaf in leaves]
    return list(torch.autograd.grad(leaves, [*parameters, *inputs], weights, allow_unused=True))


def error(found: Tensor, expected: Tensor, *, scale: float | None = None) -> float:
    """Largest difference, relative to the largest entry (of at least 1e-3)."""
    if not expected.numel():
        return 0.0
    found, expected = (x.detach().to(torch.complex128) for x in (found, expected))
    scale = max(1e-3, float(expected.abs().max())) if scale is None else scale
    difference = float((found - expected).abs().max()) / scale
    return difference if difference == difference else torch.inf


def assert_close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Two trees agree: structure, shapes, dtypes, and numbers relative to the largest entry of each tensor."""
    assert tree_structure(found) == tree_structure(expected), f"{what}: another structure"
    for place, (a, b) in enumerate(zip(tree_leaves(found), tree_leaves(expected), strict=True)):
        if not isinstance(b, Tensor):
            assert a == b, f"{what} {place}: {a} instead of {b}"
            continue
        assert type(a) is Tensor, f"{what} {place} is a {type(a).__name__}, expected a plain tensor"
        assert a.shape == b.shape, f"{what} {place}: shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"{what} {place}: {a.dtype} instead of {b.dtype}"
        off = error(a, b)
        assert off <= tolerance, f"{what} {place} is {off:.1e} off, allowed {tolerance:.1e}"


def expected_tangent(case: Case, oracle: Oracle) -> Any:
    """The tangent by an oracle; of integers and booleans it is zero."""
    return seeded(oracle, case.equivalent or case.function, case.primals, case.tangents)


def copies(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def state(module: nn.Module | None) -> dict[str, Tensor]:
    return copies(dict(module.state_dict())) if module is not None else {}


def assert_same_state(found: nn.Module | None, expected: nn.Module | None) -> None:
    """Parameters and buffers are equal, and are what they were: plain tensors."""
    for name, tensor in state(expected).items():
        assert torch.equal(state(found)[name], tensor), f"{name} differs after the derivative"
    for module in found.modules() if found is not None else ():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            assert type(tensor) in (Tensor, nn.Parameter), f"a {type(tensor).__name__} was left in {module}"


def outcome(function: Any, primals: Any, tangents: Any) -> Any:
    """Value and tangent, or the refusal."""
    try:
        return seeded(one.single_pass, function, primals, tangents)
    except one.UnsupportedDerivative as refusal:
        return refusal


def check(entry: Entry) -> None:
    """Value, tangent and gradients of ``single_pass``, and that it leaves nothing behind.

    As in training, where the parameters alone collect gradients, and with inputs that do; torch may take other kernels.
    """
    oracle = entry.build()
    tangent = expected_tangent(oracle, entry.oracle)
    moving = any(bool(leaf.ne(0).any()) for leaf in tree_leaves(tangent) if differentiable(leaf))
    assert moving != entry.still, "it moves" if moving else "the case proves nothing: its tangent is zero"
    for inputs in (False, True) if entry.gradient else (False,):
        _check(entry, tangent, inputs=inputs)


def _check(entry: Entry, tangent: Any, *, inputs: bool) -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    plain, case = entry.build(), entry.build()
    # Without any gradient torch may multiply plain tensors by another routine.
    rounded = entry.rounded or (not inputs and entry.group == "products")
    if inputs:
        with_gradient((plain.primals, case.primals))
    value = seeded(plain.function, *plain.primals)
    after = torch.get_rng_state()
    directions, places = copies(case.tangents), copies(case.primals)
    found = outcome(case.function, case.primals, case.tangents)
    if isinstance(found, one.UnsupportedDerivative):
        assert entry.refusable, f"refused: {found}"
        assert "tangent_rule" in str(found), f"the refusal names no remedy: {found}"
        return
    got_value, got_tangent = found
    assert torch.equal(torch.get_rng_state(), after), "the derivative draws other numbers than the plain call"
    for place, (a, b) in enumerate(zip(tree_leaves(got_value), tree_leaves(value), strict=True)):
        if isinstance(b, Tensor):
            assert type(a) is Tensor, f"value {place} is a {type(a).__name__}, expected a plain tensor"
            assert rounded or torch.equal(a, b), f"value {place} is not that of the plain call, bit for bit"
            assert a.requires_grad == b.requires_grad, f"value {place}: requires_grad is {a.requires_grad}"
    assert_close(copies(got_value), copies(value), 1e-13 if rounded else 0.0, "value")
    assert_close(got_tangent, tangent, entry.tolerance, "tangent")
    for leaf in tree_leaves(got_tangent):
        assert not (isinstance(leaf, Tensor) and leaf.requires_grad), "the tangent requires a gradient"
    expected, got = gradients(plain, value), gradients(case, got_value)
    assert [g is None for g in got] == [g is None for g in expected], "other tensors have a gradient"
    assert_close([g for g in got if g is not None], [g for g in expected if g is not None], GRADIENTS, "gradient")

    assert_close(copies(case.tangents), directions, 0.0, "the given tangent")
    assert_close(copies(case.primals), places, 0.0, "the given primal")
    assert torch.autograd.Function.__dict__["apply"] is apply, "torch.autograd.Function.apply was not put back"
    assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0, "a mode was left on"
    later, expected_later = (seeded(which.function, *which.primals) for which in (case, plain))
    assert_close(copies(later), copies(expected_later), 1e-13 if rounded else 0.0, "a later plain call")
    assert_same_state(case.module, plain.module)
