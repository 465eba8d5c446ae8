"""Sums, products, extrema, norms, orders, cumulative functions, softmax."""

from typing import Any

import torch
from torch import Tensor

from tests.core.flow.derivatives.case import add, fragment


def one(values: Any) -> Tensor:
    return values.values


REDUCTIONS: dict[str, Any] = {
    "sums": lambda x: x.sum() + x.sum(1) * x.sum((0, 2)).sum() + x.sum(-1, keepdim=True).sin().sum(),
    "means": lambda x: x.mean() + x.mean(1) * x.mean((0, 2)).sum() + x.mean(-1, keepdim=True).sin().mean(),
    "sum in another dtype": lambda x: x.sum(1, dtype=torch.float64) + x.mean(1, dtype=torch.float64),
    "products over a dimension": lambda x: x.prod(1) * x.prod(-1, keepdim=True).sum(),
    "product of all": lambda x: x.prod(),
    "product with a zero": lambda x: torch.cat([x[:, :2], 0 * x[:, :1]], 1).prod(1) + x.prod(1),
    "sums without nan": lambda x: x.nansum(1) + x.nanmean(1),
    "cumulative sum": lambda x: x.cumsum(1) + x.cumsum(-1).sin(),
    "cumulative product": lambda x: x.cumprod(1) + x.cumprod(-1).sin(),
    "cumulative logsumexp": lambda x: x.logcumsumexp(1),
    "cumulative extrema": lambda x: x.cummax(1).values + x.cummin(2)[0],
    "max of all": lambda x: x.max() * x.min() + x.aminmax().max,
    "max over a dimension": lambda x: one(x.max(1)) + one(x.min(1)) * x.max(1, keepdim=True)[0].sum(),
    "extrema over dimensions": lambda x: x.amax((1, 2)) + x.amin((1, 2)) * x.amax(),
    "extrema with equals": lambda x: torch.stack([x, x], 1).amax((1, 3)) + torch.stack([x, x]).max(0).values.sum(2),
    "aminmax": lambda x: x.aminmax(dim=1).min * x.aminmax(dim=1).max,
    "argmax as an index": lambda x: x.take_along_dim(x.argmax(1, keepdim=True), 1) + x.argmin().sin() * x,
    "norms": lambda x: x.norm() + x.norm(dim=1) * x.norm(p=1, dim=1) + x.norm(p=3, dim=1) + x.norm(p=torch.inf, dim=1),
    "vector norms": lambda x: (
        torch.linalg.vector_norm(x, dim=(1, 2)) + torch.linalg.vector_norm(x, 0.5) + torch.linalg.norm(x[0])
    ),
    "distance": lambda x: torch.dist(x, x.sin()),
    "standard deviations": lambda x: x.std() + x.std(1) * x.std((0, 2), correction=0).sum(),
    "variances": lambda x: x.var() + x.var(1, unbiased=False) * x.var((0, 2)).sum(),
    "variance and mean": lambda x: torch.var_mean(x, 1)[0] * torch.var_mean(x, 1)[1] + torch.std_mean(x, 1)[0],
    "logsumexp": lambda x: x.logsumexp(1) + x.logsumexp((1, 2), keepdim=True)[:, 0] + x.logsumexp(-1).sum(),
    "softmax": lambda x: x.softmax(1) + x.softmax(-1).sin() + (-x).softmax(0),
    "log softmax": lambda x: x.log_softmax(1) + x.log_softmax(-1).exp(),
    "softmax in another dtype": lambda x: x.softmax(1, dtype=torch.float64),
    "sort": lambda x: x.sort(1).values + x.sort(2, descending=True)[0] + x.msort(),
    "order": lambda x: x.gather(1, x.argsort(1).flip(1)),
    "topk": lambda x: x.topk(2, 1).values * x.topk(2, 1, largest=False)[0],
    "median and kth value": lambda x: x.median(1).values + x.kthvalue(2, 1).values * x.median(),
    "quantile": lambda x: x.quantile(0.3, 1) + x.quantile(torch.tensor([0.2, 0.5], dtype=x.dtype), 2).sum(),
    "mode": lambda x: x.mode(1).values,
    "differences": lambda x: x.diff(dim=1) + x.diff(n=2, dim=2).sum(),
    "trapezoids": lambda x: torch.trapezoid(x, dim=1) + torch.cumulative_trapezoid(x, dx=0.5, dim=1)[:, 0],
    "bounded norm of rows": lambda x: x.renorm(2, 0, 1.0),
    "covariance": lambda x: torch.cov(x[0]) + torch.corrcoef(x[0]),
    "histogram counts are constants": lambda x: x.sum() * torch.histc(x.detach(), 4, -2, 2),
    "counts are constants": lambda x: x * (x > 0).sum(1, keepdim=True) + x.count_nonzero(),
    "any and all": lambda x: x * (x > 0).any(1, keepdim=True) + x * (x > -9).all(),
    "mean of a mask": lambda x: (x * (x > 0)).sum(1) / (x > 0).sum(1).clamp(min=1),
}
for _name, _function in REDUCTIONS.items():
    add("reductions", _name, fragment(_function, (3, 4, 5)))
add("reductions", "of a number", fragment(lambda x: x.sum() + x.mean() + x.max() * x.softmax(0) + x.norm(), ()))
