"""``single_pass`` on every network and fragment of the zoo, against forward mode or two backward passes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules import activation

import onestep_core as one
from tests.core.flow.derivatives.case import forward_mode
from tests.core.flow.derivatives.checks import QUIET, assert_close, check, copies, expected_tangent, seeded
from tests.core.flow.derivatives.zoo import ZOO, activations

pytestmark = QUIET


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
        "layout": z.layout, "numel": z.numel(), "length": z.dim(), "contiguous": z.is_contiguous(), "leaf": z.is_leaf,
        "requires_grad": z.requires_grad, "floating": z.is_floating_point(), "complex": torch.is_complex(z),
        "instance": isinstance(z, Tensor), "cuda": z.is_cuda, "offset": z.storage_offset(), "node": type(z.grad_fn),
        "hash": z in {z: 1}, "number": float(z.sum().detach()), "text": len(str(z.detach())), "sparse": z.is_sparse,
        "tensor": torch.is_tensor(z), "element": z.element_size(), "nested": z.is_nested, "base": z._base is None,
        "version": z._version, "quantized": z.is_quantized, "inference": z.is_inference(),
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
