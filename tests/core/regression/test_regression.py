"""Pairs, distances and weights beyond the laws: precision, gradients where they vanish, factors as losses."""

from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_core import (
    Linear,
    Regression,
    VarianceExploding,
    adaptive,
    cosine,
    exponential,
    field_regression,
    karras,
    l1,
    l2,
    mse,
    pseudo_huber,
    rescale_residual,
    snr,
    snr_plus_one,
    squared_l2,
    truncated_snr,
    uniform_weight,
)
from onestep_core.errors import ArgumentError
from onestep_core.regression import regression

DISTANCES = [squared_l2, mse, l1, l2, cosine, partial(pseudo_huber, c=0.3)]


WEIGHTS = [
    partial(adaptive, power=1.0, epsilon=0.01),
    partial(exponential, amplitude=0.5, rate=-0.1),
    uniform_weight,
    partial(snr, path=VarianceExploding()),
    partial(snr_plus_one, path=VarianceExploding()),
    partial(truncated_snr, path=VarianceExploding()),
    partial(karras, sigma_data=0.5),
    partial(snr, path=Linear()),
]


def name(function):
    return getattr(function, "func", function).__name__


@pytest.mark.parametrize("distance", DISTANCES, ids=name)
def test_a_distance_refuses_to_broadcast(distance):
    with pytest.raises(ArgumentError):
        distance(torch.ones(4, 3), torch.ones(4, 1))
    with pytest.raises(ArgumentError):
        distance(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("distance", DISTANCES, ids=name)
def test_a_distance_works_in_float32_whatever_comes(distance):
    p = torch.full((2, 2000), 1.0, dtype=torch.bfloat16)
    q = torch.full((2, 2000), 1.0078125, dtype=torch.bfloat16)
    value = distance(p, q)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, distance(p.double(), q.double()).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", [d for d in DISTANCES if d is not cosine], ids=name)
def test_a_distance_is_flat_or_finite_at_zero(distance):
    p = torch.zeros(2, 3, requires_grad=True)
    distance(p, torch.zeros(2, 3)).sum().backward()
    assert torch.equal(p.grad, torch.zeros(2, 3))


def test_cosine_of_a_zero_vector_is_finite():
    p = torch.zeros(2, 3, requires_grad=True)
    value = cosine(p, torch.ones(2, 3))
    value.sum().backward()
    assert torch.equal(value, torch.ones(2))
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("weight", WEIGHTS, ids=name)
def test_a_weight_used_as_a_loss_raises(weight):
    argument = torch.full((3,), 0.5, requires_grad=True)
    factor = weight(argument)
    assert factor.shape == (3,)
    with pytest.raises(RuntimeError, match="does not require grad"):
        factor.mean().backward()


def test_values_of_the_weights():
    sigma = torch.tensor([0.25, 2.0], dtype=torch.float64)
    torch.testing.assert_close(karras(sigma, sigma_data=0.5) * 0.25 * sigma**2, sigma**2 + 0.25)
    torch.testing.assert_close(snr(sigma / 4, path=Linear()), ((1 - sigma / 4) / (sigma / 4)) ** 2)


def test_a_pair_is_frozen_on_one_side_in_both_modes():
    network = torch.nn.Linear(3, 3, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)

    def value(weight):
        out = x @ weight.T
        return squared_l2(*regression(out, 2 * out)).sum()

    weight = network.weight.detach()
    direction = torch.randn_like(weight)
    reverse = torch.func.grad(value)(weight)
    _, forward = torch.func.jvp(value, (weight,), (direction,))
    torch.testing.assert_close(forward, (reverse * direction).sum())


def test_pull_moves_samples_along_the_field():
    x = torch.randn(5, 2, requires_grad=True)
    field = torch.randn(5, 2)
    loss = squared_l2(*field_regression(x, field))
    torch.testing.assert_close(loss, field.square().sum(1))
    loss.sum().backward()
    torch.testing.assert_close(x.grad, -2 * field)


def test_rescaling_a_residual_is_not_weighting_a_loss():
    prediction = torch.tensor([[3.0, 4.0]], requires_grad=True)
    pair = Regression(prediction, torch.zeros(1, 2))
    half = partial(exponential, amplitude=0.5, rate=0.0)
    loss = squared_l2(*rescale_residual(pair, half))
    torch.testing.assert_close(loss, torch.tensor([6.25]))
    loss.backward()
    torch.testing.assert_close(prediction.grad, torch.tensor([[3.0, 4.0]]))


F64 = torch.float64


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def test_a_learned_log_variance_finds_the_logarithm_of_the_mean_loss():
    losses = torch.tensor([0.1, 0.5, 3.0], dtype=F64)
    u = losses.mean().log().expand(3).clone().requires_grad_()
    (slope,) = torch.autograd.grad(one.uncertainty(losses, u).sum(), u)
    assert abs(float(slope.sum())) < 1e-12
    raw = losses.clone().requires_grad_()
    (weight,) = torch.autograd.grad(one.uncertainty(raw, u.detach()).sum(), raw)
    close(weight, torch.full_like(weight, 1 / float(losses.mean())))
    with pytest.raises(ArgumentError):
        one.uncertainty(losses, u[:2])


def test_a_cosine_of_no_number_is_none():
    nan, zero = torch.tensor([[torch.nan]]), torch.zeros(1, 1)
    for pair in ((nan, zero), (zero, nan), (torch.tensor([[torch.inf]]), zero)):
        assert bool(one.cosine(*pair).isnan())
    assert float(one.cosine(zero, torch.ones(1, 1))) == 1
