"""Random programs: value, tangent and gradients are those of ``torch.func.jvp`` and of autograd.

A register that is written in place by ``no_grad`` code, or through ``detach``, is what forward mode makes of it.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

import onestep_core as one
from onestep_core.errors import UnsupportedDerivative
from tests.core.flow.derivatives.case import F64, forward_mode
from tests.core.flow.derivatives.checks import error
from tests.core.flow.derivatives.programs import BINARY, ELEMENTWISE, IMAGES, REDUCTIONS, WRITES, Program

SHAPES = [(3, 4), (2, 3, 4), (4,), (3, 1), (2, 2, 2), (1, 3, 4)]


def normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def compare(data: st.DataObject, length: int) -> None:
    def choose(options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    primals = tuple(normal(10 + i, choose(SHAPES)) for i in range(choose([1, 2, 3])))
    still = choose(range(2 * len(primals))) if len(primals) > 1 else None  # often none
    tangents = tuple(None if i == still else normal(20 + i, x.shape) for i, x in enumerate(primals))
    program = Program(choose, primals, choose(range(1, length + 1)))
    note(str(program))
    tolerance = 1e-4 if program.approximate else 1e-10
    expected = forward_mode(program, primals, tangents)
    assume(all(bool(x.isfinite().all()) for x in expected))
    plain = program(*primals)
    value, tangent = one.single_pass(program, primals, tangents)
    scale = max([1.0, *(float(x.detach().abs().max()) for x in expected if x.numel())])
    for place, (a, b, c, e) in enumerate(zip(value, plain, tangent, expected, strict=True)):
        assert type(a) is type(c) is Tensor
        assert torch.equal(a, b), f"output {place}: another value"
        assert c.shape == e.shape, f"output {place}: a tangent of shape {tuple(c.shape)} for {tuple(e.shape)}"
        assert c.dtype == e.dtype, f"output {place}: a tangent of {c.dtype} for {e.dtype}"
        assert error(c, e, scale=scale) <= tolerance, f"output {place} is {error(c, e, scale=scale):.1e} off"
    same_gradients(program, primals, tangents)


def same_gradients(program: Program, primals: Any, tangents: Any) -> None:
    """Where autograd takes the program (it refuses many writes), gradients are those of the plain call."""

    def gradients(call: Any) -> Any:
        inputs = [x.clone().requires_grad_() for x in primals]
        leaves = [x for x in call(inputs) if x.requires_grad]
        weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in leaves]
        return torch.autograd.grad(leaves, inputs, weights, allow_unused=True) if leaves else ()

    try:
        expected = gradients(lambda inputs: program(*inputs))
    except RuntimeError:
        return
    found = gradients(lambda inputs: one.single_pass(program, tuple(inputs), tangents)[0])
    assert [x is None for x in found] == [x is None for x in expected]
    for a, b in zip(found, expected, strict=True):
        if b is not None and bool(b.isfinite().all()):
            assert error(a, b, scale=max(1.0, float(b.abs().max()))) <= 1e-10, "another gradient"


UNCHECKED = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
]


def drawn(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=UNCHECKED,
    )


@drawn(100)
@given(st.data())
def test_programs(data):
    compare(data, 8)


@pytest.mark.thorough
@pytest.mark.parametrize("length", [4, 10, 20])
def test_many_programs(length):
    @drawn(1000)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        compare(data, length)

    run()


def test_every_step_is_drawn():
    """By chance, from a fixed seed: each operation of the lists is one that torch accepts somewhere."""
    generator, seen = torch.Generator().manual_seed(0), set()

    def choose(options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    for _ in range(150):
        program = Program(choose, [normal(1, (2, 3, 4)), normal(2, (3, 4))], 12)
        seen |= {step.text.partition("(")[0] for step in program.steps}
    missing = {*ELEMENTWISE, *BINARY, *REDUCTIONS, *IMAGES, *(f"{name}_" for name in WRITES)} - seen
    assert not missing


def _two_detached(x: Tensor) -> tuple[Tensor, ...]:
    first, second = x.detach(), x.detach()
    row = first[1]
    first.add_(x.clone())
    return x + 0, first, second, row, first[0], second[0]


def _without_gradients(x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return _two_detached(x)


def _buffer_detached(x: Tensor) -> tuple[Tensor, ...]:
    buffer = torch.zeros_like(x.detach())
    buffer.add_(x)
    copy = buffer.detach()
    copy.mul_(2)
    return buffer, copy, copy[0]


@pytest.mark.parametrize("program", [_two_detached, _without_gradients, _buffer_detached])
def test_a_detached_tensor_shares_memory_and_no_tangent(program):
    x, v = normal(1, (3, 4)), normal(2, (3, 4))
    value, tangent = one.single_pass(program, (x.clone(),), (v,))
    expected, moved = torch.func.jvp(program, (x.clone(),), (v,))
    for found, right in zip((*value, *tangent), (*expected, *moved), strict=True):
        torch.testing.assert_close(found, right)


def test_two_tangents_in_the_memory_of_a_detached_tensor_are_refused():
    def program(x: Tensor) -> Tensor:
        buffer = torch.zeros_like(x.detach())
        buffer.add_(x)
        return buffer.detach().add_(x)

    x = normal(1, (3, 4))
    with pytest.raises(UnsupportedDerivative, match="write into a clone"):
        one.single_pass(program, (x,), (x,))
