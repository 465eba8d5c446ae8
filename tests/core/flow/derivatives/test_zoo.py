"""``single_pass`` on every network and fragment of the zoo, against forward mode or two backward passes."""

import pytest
import torch
from torch.nn.modules import activation

import onestep_core as one
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


def test_all_activations_are_here():
    """A new activation of torch has to be added."""
    assert set(activation.__all__) - {"MultiheadAttention"} == set(activations.MODULES)
