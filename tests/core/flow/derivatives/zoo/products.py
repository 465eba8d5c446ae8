"""Matrix products of every rank, distances, linear algebra and transforms of Fourier."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.flow.derivatives.case import add, fragment

RANKS = [
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((2, 4), (4,)),
    ((2, 4), (4, 3)),
    ((5, 2, 4), (4, 3)),
    ((2, 4), (5, 4, 3)),
    ((5, 2, 4), (5, 4, 3)),
    ((5, 2, 4), (4,)),
    ((4,), (5, 4, 3)),
    ((5, 1, 2, 4), (6, 4, 3)),
    ((5, 6, 2, 4), (1, 6, 4, 3)),
    ((5, 1, 4), (1, 4, 3)),
]
for _a, _b in RANKS:
    add("products", f"matmul {_a} {_b}", fragment(lambda a, b: a @ b, _a, _b))
    add(
        "products",
        f"matmul {_a} {_b}, the second alone",
        fragment(lambda b, a=_a: torch.ones(a, dtype=b.dtype) @ b, _b),
    )

M, B = (3, 4), (2, 3, 4)
PRODUCTS: dict[str, Any] = {
    "mm": (torch.mm, M, (4, 2)),
    "mm of transposed": (lambda a, b: a.t() @ b.T + a.mT @ b.mT, M, (2, 3)),
    "bmm": (torch.bmm, B, (2, 4, 2)),
    "mv, dot, inner, outer": (lambda a, x: (a.mv(x).outer(x) * x.dot(x)).inner(x) + torch.vdot(x, x), M, (4,)),
    "addmm": (partial(torch.addmm, beta=0.5, alpha=2), (3, 2), M, (4, 2)),
    "addmm of a vector": (torch.addmm, (2,), M, (4, 2)),
    "addmv, addr": (lambda x, a, y: torch.addmv(x, a, y, beta=2).outer(y).addr(x, y, alpha=0.3), (3,), M, (4,)),
    "baddbmm": (partial(torch.baddbmm, beta=0.5, alpha=2), (2, 3, 2), B, (2, 4, 2)),
    "baddbmm into nothing": (
        lambda a, b: torch.baddbmm(torch.empty(2, 3, 2, dtype=a.dtype), a, b, beta=0, alpha=0.5),
        B,
        (2, 4, 2),
    ),
    "addbmm": (torch.addbmm, (3, 2), B, (2, 4, 2)),
    "einsum": (partial(torch.einsum, "bij,bjk->bik"), B, (2, 4, 2)),
    "einsum of three": (partial(torch.einsum, "bi,ij,bj->b"), (2, 3), M, (2, 4)),
    "einsum over a diagonal": (
        lambda a, b: torch.einsum("ii,ij->j", a, b) + torch.einsum("...ij->...ji", b)[:, 0].sum(),
        (3, 3),
        (3, 4),
    ),
    "einsum of heads": (lambda q, k: torch.einsum("bqhd,bkhd->bhqk", q, k), (2, 3, 2, 4), (2, 5, 2, 4)),
    "tensordot": (partial(torch.tensordot, dims=([1, 2], [0, 1])), B, (3, 4, 2)),
    "chain": (lambda a, b, c: torch.linalg.multi_dot([a, b, c]), M, (4, 2), (2, 5)),
    "kron": (torch.kron, (2, 3), (2, 2)),
    "cross": (partial(torch.linalg.cross, dim=-1), (2, 3), (2, 3)),
    "linear of a vector": (F.linear, (4,), (3, 4), (3,)),
    "linear": (F.linear, (2, 4), (3, 4), (3,)),
    "linear without bias": (F.linear, (2, 5, 4), (3, 4)),
    "linear of images": (F.linear, (2, 2, 5, 4), (3, 4), (3,)),
    "linear whose weight alone has a tangent": (lambda w: F.linear(torch.ones(2, 4, dtype=w.dtype), w), (3, 4)),
    "linear whose bias alone has a tangent": (
        lambda b: F.linear(b.detach().expand(2, 3), torch.eye(3, dtype=b.dtype), b),
        (3,),
    ),
    "bilinear": (F.bilinear, (2, 3), (2, 4), (5, 3, 4), (5,)),
}
for _name, (_function, *_shapes) in PRODUCTS.items():
    add("products", _name, fragment(_function, *_shapes))
add(
    "products",
    "bilinear with a constant weight",
    fragment(
        lambda x, y: F.bilinear(x, y, torch.linspace(-1, 1, 36, dtype=x.dtype).view(3, 3, 4)), (2, 5, 3), (2, 5, 4)
    ),
)


def by_differences(power: float) -> Any:
    """``cdist`` in operations that have a forward-mode derivative."""

    def distances(x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x[..., :, None, :] - y[..., None, :, :], power, dim=-1)

    return distances


for _power in (1.0, 1.5, 2.0, 3.0, torch.inf):
    add(
        "products",
        f"cdist p={_power}",
        fragment(partial(torch.cdist, p=_power), (2, 4, 3), (2, 5, 3), equivalent=by_differences(_power)),
        tolerance=1e-11,
    )
add(
    "products",
    "cdist of many points",
    fragment(torch.cdist, (30, 3), (28, 3), equivalent=by_differences(2.0)),
    tolerance=1e-9,  # by matrix products: x and y are near one another
)
add(
    "products",
    "cdist by matrix products",
    fragment(
        partial(torch.cdist, compute_mode="use_mm_for_euclid_dist"), (4, 3), (5, 3), equivalent=by_differences(2.0)
    ),
    tolerance=1e-11,
)
add(
    "products",
    "pdist",
    fragment(torch.pdist, (5, 3), equivalent=lambda x: by_differences(2.0)(x, x + 0.0)[*torch.triu_indices(5, 5, 1)]),
    refusable=True,
)


def definite(x: Tensor) -> Tensor:
    return x @ x.mT + 2 * torch.eye(x.shape[-1], dtype=x.dtype)


S = (2, 3, 3)
ALGEBRA: dict[str, Any] = {
    "inverse": lambda x: torch.linalg.inv(definite(x)),
    "solve": lambda x: torch.linalg.solve(definite(x), x.sin()),
    "triangular solve": lambda x: torch.linalg.solve_triangular(definite(x).tril(), x, upper=False),
    "Cholesky": lambda x: torch.linalg.cholesky(definite(x)),
    "Cholesky solve": lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(definite(x))),
    "determinant": lambda x: torch.linalg.det(definite(x)) + torch.logdet(definite(x)) * torch.linalg.slogdet(x)[1],
    "eigenvalues": lambda x: torch.linalg.eigvalsh(definite(x)),
    "singular values": torch.linalg.svdvals,
    "QR": lambda x: torch.linalg.qr(definite(x)).R.square(),
    "least squares": lambda x: torch.linalg.lstsq(definite(x), x).solution,
    "pseudo-inverse": lambda x: torch.linalg.pinv(definite(x)),
    "exponential of a matrix": torch.matrix_exp,
    "power of a matrix": lambda x: torch.linalg.matrix_power(x, 3) + torch.linalg.matrix_power(definite(x), -1),
    "norms of matrices": lambda x: (
        torch.linalg.matrix_norm(x) + torch.linalg.matrix_norm(x, 2) * torch.linalg.matrix_norm(x, 1)
    ),
}
for _name, _function in ALGEBRA.items():
    # LAPACK's last digit depends on the place in memory, and eigenvalues are found otherwise where vectors are too.
    add("linear algebra", _name, fragment(_function, S), tolerance=1e-11, rounded=True)

FOURIER: dict[str, Any] = {
    "fft": (lambda x: torch.view_as_real(torch.fft.fft(x) * torch.tensor(1 + 2j)), (2, 6)),
    "rfft and irfft": (lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2j, n=6), (2, 6)),
    "rfft2 and irfft2": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho").square(), s=(4, 5)), (2, 4, 5)),
    "fft2, shifted": (
        lambda x: torch.fft.ifft2(torch.fft.ifftshift(torch.fft.fftshift(torch.fft.fft2(x)).exp())).real,
        (2, 3, 4),
    ),
    "amplitude and phase": (lambda x: torch.fft.rfft(x).abs() + torch.fft.rfft(x)[..., 1:3].angle().sum(), (2, 6)),
    "complex output": (lambda x: torch.fft.rfft(x) * x.sum(), (2, 6)),
    "complex arithmetic": (
        lambda x, y: (torch.complex(x, y).exp() / torch.complex(y, x) * x.to(torch.complex128).conj()).imag,
        (2, 3),
        (2, 3),
    ),
    "complex in place": (lambda x: torch.view_as_real(torch.fft.fft(x).mul_(2j).add_(x)).sin(), (2, 6)),
    "real part written": (lambda x: _written(torch.fft.fft(x), x), (2, 6)),
    "short-time Fourier transform": (
        lambda x: (
            torch.stft(x, 4, hop_length=2, window=torch.hann_window(4, dtype=x.dtype), return_complex=True)
            .abs()
            .square()
        ),
        (2, 12),
    ),
}


def _written(c: Tensor, x: Tensor) -> Tensor:
    c.real.copy_(x.sin())
    return c.abs().square()


for _name, (_function, *_shapes) in FOURIER.items():
    add("Fourier", _name, fragment(_function, *_shapes))
