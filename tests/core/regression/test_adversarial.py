"""Adversarial losses against released values and closed forms."""

from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_core.errors import ArgumentError, ConfigError
from onestep_core.shapes import per_sample

F64 = torch.float64


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


LOGITS = {
    "f-distill": (
        [15.0, -0.14982513, -0.33564004, -0.28669858, -0.40025732, -0.43209389],
        [-0.43209389, -0.40025732, -0.28669858, -0.33564004, -0.14982513, 15.0],
        0.7230175,
        3.67861584,
    ),
    "DMD2": (
        [1.02455723, 1.90670383, 3.97886586, -3.05710053, -1.23796713],
        [-2.90356636, 3.28131509, 0.14837611, 1.67313969, -1.88174534],
        1.01188162,
        2.69710357,
    ),
}


@pytest.mark.parametrize("fake, real, generator, discriminator", LOGITS.values(), ids=LOGITS)
def test_released_values_of_the_non_saturating_pair(fake, real, generator, discriminator):
    fake, real = (torch.tensor(logits, dtype=F64)[:, None] for logits in (fake, real))
    assert float(one.non_saturating_generator(fake).mean()) == pytest.approx(generator, rel=1e-7)
    assert float(one.non_saturating_discriminator(real, fake).mean()) == pytest.approx(discriminator, rel=1e-7)


def test_the_best_discriminators_are_known():
    """Over two densities on a grid: the log ratio for the softplus pair, a sign for the hinge pair."""
    x = torch.linspace(-3, 3, 25, dtype=F64)
    p, q = (torch.exp(-((x - m) ** 2) / 2) for m in (0.5, -0.5))

    def slope(loss, logits):
        """Of the expected loss: a point is met as real with weight ``p`` and as fake with weight ``q``."""
        moving, still = logits[:, None].clone().requires_grad_(), logits[:, None]
        total = (p * loss(moving, still) + q * loss(still, moving)).sum()
        return torch.autograd.grad(total, moving)[0][:, 0]

    best = (p / q).log()
    assert float(slope(one.non_saturating_discriminator, best).abs().max()) < 1e-12
    for away in (-0.1, 0.1):
        assert bool((slope(one.non_saturating_discriminator, best + away) * away > 0).all())
    sign = torch.where(p > q, 1.0, -1.0)[p != q]
    for size, towards in ((0.9, -1), (1.1, 1)):
        found = slope(one.hinge_discriminator, size * torch.where(p > q, 1.0, -1.0).double())[p != q]
        assert bool((found * sign * towards > 0).all())


def test_adversarial_losses_are_per_sample_in_float32_at_least():
    real, fake = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    for loss in (one.non_saturating_discriminator, one.hinge_discriminator):
        out = loss(real, fake)
        assert out.shape == (3,)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out[1:2], loss(real[1:2], fake[1:2]))
        with pytest.raises(ArgumentError):
            loss(real, fake[:2])
    for loss in (one.non_saturating_generator, one.hinge_generator):
        leaf = fake.float().requires_grad_()
        assert loss(leaf).shape == (3,)
        (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        assert bool((slope < 0).all())  # every logit should rise


def test_the_r1_penalty_and_its_gradient_in_closed_form():
    """``D(x) = w . x^2``: the squared slope is ``|2 w x|^2``, its gradient in ``w`` ``8 w x^2``."""
    w = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    x = torch.tensor([[1.0, 0.5], [2.0, 0.0]], dtype=F64)

    def discriminator(x):
        return (w * x.square()).sum(1, keepdim=True)

    penalty = one.r1_penalty(discriminator, x)
    close(penalty, (2 * w * x).square().sum(1))
    close(torch.autograd.grad(penalty.sum(), w)[0], (8 * w * x.square()).sum(0))
    alone = per_sample(partial(one.r1_penalty, discriminator))(x)
    close(alone[:, 0], penalty)
    traced = torch.compile(lambda x: one.r1_penalty(discriminator, x), fullgraph=True, backend="aot_eager")
    close(traced(x), penalty)


def test_gradient_balance_makes_two_losses_pull_alike():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    main, added = 10 * weight.square().sum(), weight.sin().sum()
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (main, added))
    factor = one.gradient_balance(first, second, epsilon=0.0)
    (scaled,) = torch.autograd.grad(factor * added, weight)
    close(scaled.norm(), first.norm())
    assert factor.ndim == 0
    assert not one.gradient_balance(main.expand(2), added.expand(2)).requires_grad
    assert float(one.gradient_balance(first, 0 * second)) == 1e4
    assert float(one.gradient_balance(0 * first, second, smallest=0.01, largest=10.0)) == 0.01
    assert float(one.gradient_balance(torch.ones(1), torch.ones(1))) == pytest.approx(1 / 1.0001)
    with pytest.raises(ConfigError, match="one tensor"):
        one.gradient_balance(first, second[0])
    with pytest.raises(ConfigError, match="bounds"):
        one.gradient_balance(first, second, smallest=2.0, largest=1.0)
