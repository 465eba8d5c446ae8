"""``single_pass`` on every network and fragment of the zoo, against forward mode or two backward passes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules import activation
from torch.utils._pytree import tree_leaves, tree_map

import onestep_core as one
from tests.core.flow.derivatives.case import Case, differentiable, forward_mode
from tests.core.flow.derivatives.checks import (
    QUIET,
    assert_close,
    check,
    copies,
    error,
    expected_tangent,
    outcome,
    seeded,
)
from tests.core.flow.derivatives.zoo import ZOO, activations

pytestmark = QUIET


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", ZOO)
def test_value_tangent_and_gradients(name):
    check(ZOO[name])


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.group in ("backbones", "structure")])
def test_without_a_graph(name):
    """A teacher's derivative: the same numbers, and no graph."""
    entry = ZOO[name]
    plain, oracle, case = entry.build(), entry.build(), entry.build()
    with torch.no_grad():
        expected = seeded(plain.function, *plain.primals)
        value, tangent = seeded(one.single_pass, case.function, case.primals, case.tangents)
    assert_close(
        value if name != "structure: network of no gradient" else copies(value), copies(expected), 0.0, "value"
    )
    assert_close(copies(tangent), expected_tangent(oracle, entry.oracle), entry.tolerance, "tangent")


SINGLE = ("activations", "convolutions", "recurrent", "norms", "attention", "backbones", "diffusers", "transformers")


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.group in SINGLE])
def test_in_float32(name):
    """Torch has other kernels for it (oneDNN's convolutions and recurrent layers), which is what users run."""
    single(name)


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.group in ("recurrent", "attention")])
def test_in_float32_without_a_graph(name):
    """And others again for inference; the fused encoder layer of torch takes plain tensors alone."""
    with torch.no_grad():
        single(name, rounded="TransformerEncoder eval" in name)


def single(name: str, *, rounded: bool = False) -> None:
    entry = ZOO[name]
    oracle, plain, case = entry.build(), in_float32(entry.build()), in_float32(entry.build())
    try:
        value = seeded(plain.function, *plain.primals)
    except RuntimeError as mismatch:
        pytest.skip(str(mismatch))
    found = outcome(case.function, case.primals, case.tangents)
    if isinstance(found, one.UnsupportedDerivative):
        # The fused kernel takes the bias as a keyword, whose tangent has no rule.
        assert entry.refusable or name == "attention: sdpa with a bias that has a tangent", found
        return
    # Recurrent layers run without oneDNN's kernel, which has no forward derivative.
    rounded = rounded or entry.rounded or entry.group == "recurrent"
    assert_close(copies(found[0]), copies(value), 1e-5 if rounded else 0.0, "value")
    with torch.enable_grad():
        expected = expected_tangent(oracle, entry.oracle)
    for a, b in zip(tree_leaves(found[1]), tree_leaves(expected), strict=True):
        if differentiable(b):
            assert error(a, b) < 1e-3


def in_float32(case: Case) -> Case:
    if case.module is not None:
        case.module.float()
    primals, tangents = tree_map(
        lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, (case.primals, case.tangents)
    )
    return case._replace(primals=primals, tangents=tangents)


def test_a_network_that_writes_into_its_input():
    """The first layer works in place; the given tangent is not written."""
    network = torch.nn.Sequential(
        torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 4), torch.nn.SiLU(inplace=True)
    ).double()
    z, v = torch.randn(2, 3, 4, dtype=torch.float64)
    value, tangent = one.single_pass(network, (z.clone(),), (given := v.clone(),))
    assert torch.equal(value, network(z.clone()))
    assert torch.equal(given, v)
    assert_close(tangent, copies(forward_mode(network, (z,), (v,))), 1e-12, "tangent")


def seen(z: Tensor) -> dict[str, Any]:
    """What a network may ask of a tensor."""
    return {
        "shape": z.shape, "ndim": z.ndim, "size": z.size(), "stride": z.stride(), "dtype": z.dtype, "device": z.device,
        "layout": z.layout, "numel": z.numel(), "dim": z.dim(), "contiguous": z.is_contiguous(), "sparse": z.is_sparse,
        "requires_grad": z.requires_grad, "floating": z.is_floating_point(), "complex": torch.is_complex(z),
        "instance": isinstance(z, Tensor), "cuda": z.is_cuda, "hash": z in {z: 1}, "element": z.element_size(),
        "number": float(z.sum().detach()), "text": len(str(z.detach())), "tensor": torch.is_tensor(z),
        "nested": z.is_nested, "quantized": z.is_quantized, "list": len(z.detach().tolist()) if z.ndim else 0,
        "bytes": z.nbytes, "promoted": torch.result_type(z, 1.0),
    }  # fmt: skip


def test_tensors_look_as_in_a_plain_call():
    """Of an argument, a view, a result and what was written in place."""

    def function(z: Tensor, t: Tensor) -> Tensor:
        hidden = layer(z * t[:, None])
        hidden.mul_(2.0)
        for x in (z, z[1:], z.t(), t, hidden, hidden.sum(), hidden.detach()):
            records.append(seen(x))
        return hidden

    layer = torch.nn.Linear(4, 4).double()
    z, v = torch.randn(2, 3, 4, dtype=torch.float64)
    t = torch.rand(3, dtype=torch.float64)
    both: list[list[dict[str, Any]]] = []
    for call in (lambda *x: function(*x), lambda *x: one.single_pass(function, x, (v, torch.ones_like(t)))):
        records: list[dict[str, Any]] = []
        call(z.clone().requires_grad_(), t.clone().requires_grad_())
        both.append(records)
    for plain, found in zip(*both, strict=True):
        assert {k: v for k, v in found.items() if v != plain[k]} == {}


def test_all_activations_are_here():
    """A new activation of torch has to be added."""
    assert set(activation.__all__) - {"MultiheadAttention"} == set(activations.MODULES)
