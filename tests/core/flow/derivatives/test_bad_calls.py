"""Functions, tangents and rules that do not fit are refused before the network runs, by every derivative alike."""

import math

import pytest
import torch

import onestep_core as one

Z, T = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 0.9, 4)
DERIVATIVES = [one.single_pass, one.two_pass, one.central_difference, one.with_graph]


def product(z, t):
    return z * t[:, None]


TANGENTS = {
    "on another device": ((Z.to("meta"), T), r"float32 \[4, 3\] on meta for a primal of float32 \[4, 3\]: .* device"),
    "of another shape": (
        (Z[:2], T),
        r"float32 \[2, 3\] for a primal of float32 \[4, 3\]: expected a tensor of its shape",
    ),
    "of integers": ((Z.long(), T), r"int64 \[4, 3\] for a primal of float32"),
    "a number": ((1.0, T), r"a tangent of float for a primal of"),
    "too few": ((Z,), "2 arguments and 1 tangents"),
    "a list": ([Z, T], "primals and tangents are tuple and list: expected tuples"),
    "of another structure": (
        ({"z": Z}, T),
        r"the tangents are \(\{z: float32 \[4, 3\]\}, float32 \[4\]\): expected the",
    ),
}


@pytest.mark.parametrize("derivative", DERIVATIVES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("tangents", "message"), TANGENTS.values(), ids=TANGENTS)
def test_tangents_that_do_not_fit_are_refused(derivative, tangents, message):
    ran = []
    with pytest.raises(one.ConfigError, match=message) as refused:
        derivative(lambda *primals: ran.append(1) or product(*primals), (Z, T), tangents)
    assert not ran
    assert "TreeSpec" not in str(refused.value)


@pytest.mark.parametrize("derivative", DERIVATIVES, ids=lambda f: f.__name__)
def test_no_function_is_refused(derivative):
    with pytest.raises(one.ConfigError, match="a NoneType as function: expected a function of the primals"):
        derivative(None, (Z, T), (Z, T))


@pytest.mark.parametrize("derivative", DERIVATIVES, ids=lambda f: f.__name__)
def test_none_is_the_tangent_of_a_constant(derivative):
    value, tangent = derivative(product, (Z, T), (Z, None))
    torch.testing.assert_close(value, product(Z, T))
    torch.testing.assert_close(tangent, product(Z, T), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("derivative", DERIVATIVES, ids=lambda f: f.__name__)
def test_nan_in_a_tangent_stays_visible(derivative):
    broken = Z.clone()
    broken[1, 2] = math.nan
    assert derivative(product, (Z, T), (broken, T))[1].isnan().nonzero().tolist() == [[1, 2]]


def test_a_number_that_a_function_returns_has_the_tangent_zero():
    assert one.single_pass(lambda z: (z, 3.0), (Z,), (Z,))[1][1] == 0.0


def plain(x):
    return x * 2


@pytest.mark.parametrize(
    "operation",
    [plain, lambda x: x, print, torch.nn.Linear(2, 2), torch.nn.SiLU, torch.autograd.Function, one.squared_l2, Z, None],
)
def test_a_rule_of_a_call_that_torch_does_not_dispatch_is_refused(operation):
    """It would be kept and never be used."""
    with pytest.raises(one.ConfigError, match=r"expected a subclass of torch\.autograd\.Function.*custom_op"):
        one.tangent_rule(operation)


@pytest.mark.parametrize(
    "operation",
    [torch.sin, torch.Tensor.sin, torch.nn.functional.silu, torch._C._nn.silu, torch.special.erf, torch.ops.aten.sin,
     torch.ops.aten.sin.default],
)  # fmt: skip
def test_functions_of_torch_can_have_a_rule(operation):
    with pytest.raises(one.ConfigError, match=r"rule is a int: expected a function of \(arguments, tangents\)"):
        one.tangent_rule(operation)(3)
    with pytest.raises(one.ConfigError, match=r"rule takes \(value\), and it is called with \(arguments, tangents\)"):
        one.tangent_rule(operation)(lambda value: value)


def test_a_function_that_dispatches_by_itself_can_have_a_rule():
    def doubled(x):
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(doubled, (x,), x)
        return torch.from_numpy(2 * x.detach().numpy())

    @one.tangent_rule(doubled)
    def rule(arguments, tangents):
        return 2 * tangents[0]

    value, tangent = one.single_pass(doubled, (Z,), (Z + 1,))
    torch.testing.assert_close((value, tangent), (2 * Z, 2 * (Z + 1)))
