"""The measure of memory, and the words of the table of what works."""

import pytest
import torch

from benchmarks.derivative import peak, summary
from benchmarks.derivative_table import largest, reason, verdict
from tests.core.flow.derivatives.case import forward_mode, value_and_tangent
from tests.core.flow.derivatives.zoo import ZOO


def test_the_peak_is_what_is_held_at_once():
    def call():
        one = torch.empty(2**18)  # 1 MiB
        two = torch.empty(2**19)
        del one
        return torch.empty(2**17), two

    assert peak(call) == pytest.approx(3.0, abs=0.01)


def test_a_line_for_each_network():
    rows = [
        {"network": "a", "batch": 2, "way": "flow matching", "ratio": 1.0, "memory": 1.0},
        {"network": "a", "batch": 2, "way": "single_pass", "ratio": 1.4, "memory": 1.06},
    ]
    assert summary(rows).splitlines()[1].split() == ["a", "2", "1.00", "/", "1.00", "1.40", "/", "1.06"]


def test_verdicts():
    exact, refused = ZOO["backbones: MLP"], ZOO["views and in-place: out argument"]
    assert verdict(exact, value_and_tangent) == "exact"
    assert verdict(exact, lambda f, x, v: (f(*x), 1.1 * forward_mode(f, x, v))).startswith("**off by 1e-01")
    assert verdict(refused, value_and_tangent) == "no forward derivative of `mul_out`"
    assert reason(RuntimeError("One `thing` | failed. Then more.")) == "fails: One thing / failed"
    assert largest((torch.ones(2), torch.tensor(3)), (torch.ones(2) * 2, torch.tensor(4))) == 0.5
