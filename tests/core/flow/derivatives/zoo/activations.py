"""Every activation of ``torch.nn``, and the elementwise functions of torch."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.flow.derivatives.case import add, forward_mode, fragment, layer, two_backwards

MODULES: dict[str, list[dict[str, Any]]] = {
    "ReLU": [{}, {"inplace": True}],
    "ReLU6": [{}, {"inplace": True}],
    "RReLU": [{}, {"inplace": True}],
    "Hardtanh": [{}, {"inplace": True}],
    "Sigmoid": [{}],
    "Hardsigmoid": [{}, {"inplace": True}],
    "Tanh": [{}],
    "SiLU": [{}, {"inplace": True}],
    "Mish": [{}, {"inplace": True}],
    "Hardswish": [{}, {"inplace": True}],
    "ELU": [{}, {"alpha": 0.5, "inplace": True}],
    "CELU": [{}, {"alpha": 0.5, "inplace": True}],
    "SELU": [{}, {"inplace": True}],
    "GLU": [{}, {"dim": 1}],
    "GELU": [{}, {"approximate": "tanh"}],
    "Hardshrink": [{}],
    "LeakyReLU": [{}, {"negative_slope": 0.3, "inplace": True}],
    "LogSigmoid": [{}],
    "Softplus": [{}, {"beta": 2.0, "threshold": 1.0}],
    "Softshrink": [{}],
    "PReLU": [{}, {"num_parameters": 4}],
    "Softsign": [{}],
    "Tanhshrink": [{}],
    "Softmin": [{"dim": 1}],
    "Softmax": [{"dim": 1}, {"dim": -1}],
    "Softmax2d": [{}],
    "LogSoftmax": [{"dim": 1}],
    "Threshold": [{"threshold": 0.1, "value": 0.5}, {"threshold": 0.1, "value": 0.5, "inplace": True}],
}
"""Each class of ``torch.nn.modules.activation`` but attention."""

for _name, _options in MODULES.items():
    for _keywords in _options:
        _words = " ".join(f"{key}={value}" for key, value in _keywords.items())
        add(
            "activations",
            f"{_name} {_words}".strip(),
            layer(partial(getattr(nn, _name), **_keywords), 2, 4, 3, 6),
            oracle=two_backwards if (_name, _words) == ("RReLU", "inplace=True") else forward_mode,
        )
add("activations", "RReLU eval", layer(nn.RReLU, 2, 4, 3, train=False))


def positive(x: Tensor) -> Tensor:
    return x.exp() + 0.1


def small(x: Tensor) -> Tensor:
    return 0.9 * x.tanh()


UNARY: dict[str, Any] = {
    "trigonometric": lambda x: x.sin() + x.cos() * torch.tan(0.3 * x) + torch.sinc(x),
    "inverse trigonometric": lambda x: small(x).asin() + small(x).acos() * x.atan(),
    "hyperbolic": lambda x: x.sinh() + x.cosh() * x.tanh(),
    "inverse hyperbolic": lambda x: x.asinh() + small(x).atanh() + (1.1 + x.square()).acosh(),
    "exponentials": lambda x: x.exp() + x.exp2() * x.expm1() + torch.special.expit(x),
    "logarithms": lambda x: positive(x).log() + positive(x).log2() * positive(x).log1p() + positive(x).log10(),
    "roots": lambda x: positive(x).sqrt() + positive(x).rsqrt() * x.reciprocal() + x.square(),
    "powers": lambda x: x**2 + x**3 + positive(x) ** 0.7 + 2**x + x**1 + x**0 + positive(x) ** -1.5,
    "power of a tensor": lambda x: positive(x) ** x + positive(x).float_power(2.0),
    "rounded": lambda x: x * x.floor() + x.ceil() * x + x.round() + x.trunc() + x.frac() + x.sign() * x.abs(),
    "remainders": lambda x: torch.fmod(x, 0.7) + torch.remainder(x, 0.7) * x,
    "error functions": lambda x: x.erf() + x.erfc() * small(x).erfinv(),
    "gamma functions": lambda x: positive(x).lgamma() + positive(x).digamma() * torch.polygamma(1, positive(x)),
    "special functions": lambda x: (
        torch.special.i0(x)
        + torch.special.i0e(x) * torch.special.i1(x)
        + torch.special.ndtr(x)
        + small(x).abs().logit()
    ),
    "nan to num": lambda x: x.nan_to_num() * positive(x).log().nan_to_num(0.0, 1.0, -1.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) * x.clamp(max=0.2) + x.clip(-1, 1),
    "clamp by tensors": lambda x: x.clamp(-x.roll(1).abs(), x.roll(1).abs()) + x.clamp_min(x.roll(1)) * x,
    "in place": lambda x: (2 * x).mul_(2).add_(x).neg_().sub_(1.0).div_(3.0).tanh_(),
    "in place, of itself": lambda x: (lambda y: y.add_(y, alpha=2).sub_(y.sum()))(x + 1),
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False) * x,
}
for _name, _function in UNARY.items():
    add("elementwise", _name, fragment(_function, (3, 5)))

BINARY: dict[str, Any] = {
    "sums": lambda x, y: (
        x + y - 2 * x + (1 - y) + torch.add(x, y, alpha=3) + torch.sub(x, y, alpha=0.5) + torch.rsub(x, y)
    ),
    "products": lambda x, y: x * y * 3 * (2 * y) + x.mul(y),
    "quotients": lambda x, y: x / positive(y) + 1 / positive(x) + x / 3 + torch.true_divide(y, 2),
    "integer quotients": lambda x, y: (
        x * torch.div(x, 0.5, rounding_mode="floor") + x * torch.div(y, 0.3, rounding_mode="trunc")
    ),
    "larger and smaller": lambda x, y: (
        torch.maximum(x, y) + torch.minimum(x, 0.5 * y) * torch.fmax(x, y) + torch.fmin(x, y)
    ),
    "where": lambda x, y: torch.where(x > y, x * y, y) + torch.where(x > 0, x, 0.0) + torch.where(y > 0, 1.0, y),
    "angles": lambda x, y: torch.atan2(x, y) + torch.hypot(x, y) * torch.copysign(x, y),
    "logarithms of sums": lambda x, y: torch.logaddexp(x, y) + torch.logaddexp2(x, y) + torch.xlogy(x, positive(y)),
    "between": lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, x.sigmoid()),
    "fused products": lambda x, y: (
        torch.addcmul(x, y, y, value=0.5) + torch.addcdiv(x, y, positive(x), value=2) + x.addcmul(x, x)
    ),
    "losses": lambda x, y: (
        F.mse_loss(x, y, reduction="none")
        + F.huber_loss(x, y)
        + F.smooth_l1_loss(x, y)
        + F.l1_loss(x, y)
        + F.kl_div(x.log_softmax(1), y.softmax(1), reduction="none")
        + F.binary_cross_entropy_with_logits(x, y.sigmoid())
    ),
    "cross entropy": lambda x, y: (
        F.cross_entropy(x, y.argmax(1), label_smoothing=0.1, reduction="none").outer(y[:, 0])
        + F.nll_loss(x.log_softmax(1), y.argmax(1))
    ),
    "similarities": lambda x, y: F.cosine_similarity(x, y) + F.pairwise_distance(x, y) + F.normalize(x).mul(y).sum(1),
    "comparisons": lambda x, y: (x > y) * x + (x <= 0).to(x.dtype) * y + (x.ne(y) & y.gt(0)) * (x + y),
}
for _name, _function in BINARY.items():
    add("elementwise", _name, fragment(_function, (3, 5), (3, 5)))

add("elementwise", "broadcasting", fragment(lambda x, y, c: (x + y) * c / (2 + y.cos()) - y, (3, 1), (4, 1, 5), (1,)))
add(
    "elementwise",
    "broadcasting in fused products",
    fragment(
        lambda x, y: torch.addcmul(x, y, x) + torch.lerp(x, y, x) + torch.where(y > 0, x, y) + x.clamp(max=y),
        (3, 1),
        (4, 1, 5),
    ),
)
add(
    "elementwise",
    "scalar tensors",
    fragment(lambda x, c: x * c + c.exp() - c / (2 + x.cos()) + (x * x + 1) ** c, (3, 4), ()),
)
