"""Couplings: sums of rows and columns, weights as repetitions."""

from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_core import (
    drift_field,
    energy_field,
    gaussian,
    kernel_gradient_field,
    laplace,
    matern,
    mean_shift_field,
    mmd_field,
    sinkhorn,
    sinkhorn_field,
    softmax_both,
    softmax_rows,
)

F64 = torch.float64


BELL, SHARP = partial(gaussian, bandwidth=0.7), partial(laplace, temperature=0.5)


KERNEL_GRADIENTS = {"gaussian": BELL, "laplace": SHARP, "matern": partial(matern, smoothness=1.5, lengthscale=1.0)}


WHOLE = {
    "mean_shift": partial(mean_shift_field, kernel=SHARP),
    "sinkhorn": partial(sinkhorn_field, epsilon=8.0, iterations=60),
    "mmd": partial(mmd_field, kernel=BELL),
    "energy": energy_field,
    **{f"gradient_{name}": partial(kernel_gradient_field, kernel=kernel) for name, kernel in KERNEL_GRADIENTS.items()},
}
"""Fields of weighted empirical distributions: a weight is a repetition."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def rms(field: Tensor) -> float:
    return float(field.square().mean().sqrt())


def test_one_averaged_sinkhorn_step_is_the_softmax_over_both_axes():
    x, y, n = draw(7, 2), draw(6, 2, seed=1), draw(5, 2, seed=2)

    def field(coupling) -> Tensor:
        return drift_field(x, y, n, kernel=SHARP, coupling=coupling).field

    both = field(softmax_both)
    torch.testing.assert_close(field(partial(sinkhorn, iterations=1)), both, rtol=1e-12, atol=1e-14)
    alternating = field(partial(sinkhorn, iterations=1, symmetric=False))
    assert rms(alternating - both) > 0.1 * rms(both)


@pytest.mark.parametrize("symmetric", [True, False])
def test_sinkhorn_meets_unequal_marginals(symmetric):
    log_k = draw(4, 6)
    rows, columns = (draw(count, seed=count).square() + 0.1 for count in (4, 6))
    columns = columns * rows.sum() / columns.sum()

    row, column = sinkhorn(
        lambda c=None: (log_k if c is None else log_k - c).logsumexp(1),
        lambda r=None: (log_k if r is None else log_k - r[:, None]).logsumexp(0),
        iterations=300,
        symmetric=symmetric,
        row_sums=rows,
        column_sums=columns,
    )
    affinity = (log_k - row[:, None] - column).exp()
    torch.testing.assert_close(affinity.sum(1), rows, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(affinity.sum(0), columns, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("field", WHOLE.values(), ids=WHOLE)
def test_integer_weights_are_repetitions(field):
    x, y, n = draw(6, 2), draw(4, 2, seed=1), draw(3, 2, seed=2)
    times, again = torch.tensor([1, 3, 2, 1]), torch.tensor([2, 1, 1])
    weighted = field(x, y, n, positive_weights=times.to(F64), negative_weights=again.to(F64)).field
    repeated = field(x, y.repeat_interleave(times, 0), n.repeat_interleave(again, 0)).field
    torch.testing.assert_close(weighted, repeated, rtol=1e-9, atol=1e-11)


def test_integer_weights_of_a_drift_field_have_the_direction_of_repetitions():
    x, y, n = draw(6, 2), draw(4, 2, seed=1), draw(3, 2, seed=2)
    times = torch.tensor([1, 3, 2, 1])
    field = partial(drift_field, kernel=SHARP, coupling=softmax_rows)
    weighted = field(x, y, n, positive_weights=times.to(F64)).field
    repeated = field(x, y.repeat_interleave(times, 0), n).field
    cosine = torch.nn.functional.cosine_similarity(weighted, repeated, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)
    assert not torch.allclose(weighted, repeated, rtol=1e-2)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
def test_weights_of_a_transport_are_repetitions_long_before_it_converges(iterations, symmetric):
    x, y, z = draw(6, 2), draw(3, 2, seed=1), draw(5, 2, seed=2)
    counts = torch.tensor([3, 1, 0])
    field = partial(sinkhorn_field, epsilon=0.02, iterations=iterations, symmetric=symmetric)
    weighted = field(x, y, z, positive_weights=counts.double()).field
    repeated = field(x, y.repeat_interleave(counts, 0), z).field
    torch.testing.assert_close(weighted, repeated, rtol=1e-10, atol=1e-12)
