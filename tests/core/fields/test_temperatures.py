"""Fields at several temperatures, and temperatures that fall."""

from functools import partial

import pytest
import torch
from torch import Tensor

import onestep_core as core
from onestep_core import (
    Radial,
    drift_field,
    gaussian,
    geometric_temperature,
    inverse_multiquadric,
    laplace,
    matern,
    mean_shift_field,
    multi_temperature,
    released_drift,
    softmax_both,
    stepped_temperature,
)
from onestep_core.errors import ArgumentError
from onestep_core.fields import kernels
from onestep_core.fields.affinity import streamed_affinities

F64 = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def opaque(kernel):
    """The same kernel, which nobody can recognise: it is evaluated whole, and dense where it fits."""
    return lambda x, y: kernel(x, y)


@pytest.mark.parametrize("sets", [{}, {"extra_negatives": draw(3, 12, seed=5)}])
@pytest.mark.parametrize("base", [drift_field, mean_shift_field])
@pytest.mark.parametrize("normalize", [True, False])
def test_temperatures_that_share_distances_are_the_sum_of_those_that_do_not(base, normalize, sets):
    x, y = draw(9, 12), draw(8, 12, seed=1)

    def at(temperature: float):
        return partial(base, kernel=partial(laplace, temperature=temperature), coupling=softmax_both)

    def alone(temperature: float):
        return lambda *a, **k: at(temperature)(*a, **k)

    together, apart = (multi_temperature(f, (0.5, 1.0, 4.0), normalize=normalize)(x, y, **sets) for f in (at, alone))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda t: partial(laplace, temperature=t),
        lambda t: partial(gaussian, bandwidth=t),
        lambda t: partial(matern, smoothness=0.5, lengthscale=t),
        lambda t: partial(matern, smoothness=1.5, lengthscale=t),
        lambda t: partial(matern, smoothness=2.5, lengthscale=t),
        lambda t: partial(inverse_multiquadric, scale=t),
        lambda t: Radial(lambda r: -r.mul_(1 / t).log1p()),
    ],
    ids=["laplace", "gaussian", "matern_1", "matern_3", "matern_5", "inverse_multiquadric", "radial"],
)
def test_temperatures_share_one_matrix_of_distances_under_transforms_too(kernel, monkeypatch):
    """Nothing is swept there; the values are those of the temperatures apart."""
    counted = []

    def count(x: Tensor, y: Tensor) -> Tensor:
        counted.append(x.shape)
        return core.squared_distances(x, y)

    for module in (streamed_affinities, kernels):
        monkeypatch.setattr(module, "squared_distances", count)
    lengths, y = (0.5, 1.0, 4.0), draw(8, 12, seed=1)

    def at(length: float, *, opaquely: bool = False):
        made = kernel(length)
        return partial(drift_field, kernel=opaque(made) if opaquely else made, coupling=softmax_both)

    def mapped(make) -> Tensor:
        field = multi_temperature(make, lengths, normalize=False)
        return torch.func.vmap(lambda x: field(x, y).field)(draw(2, 9, 12))

    together = mapped(at)
    assert len(counted) == 1
    apart = mapped(partial(at, opaquely=True))
    assert len(counted) == 4
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-14)


def test_temperatures_fall_from_coarse_to_fine():
    geometric = [geometric_temperature(p, start=2.0, end=0.02) for p in (-1, 0, 0.25, 0.5, 0.75, 1, 2)]
    assert geometric == pytest.approx([2.0, 2.0, 2 * 10**-0.5, 0.2, 0.2 * 10**-0.5, 0.02, 0.02])
    stepped = [stepped_temperature(p, temperatures=(1.0, 0.1)) for p in (-1, 0, 0.49, 0.5, 1, 2)]
    assert stepped == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1]


def test_several_temperatures_check_what_one_does():
    field = multi_temperature(
        lambda t: partial(drift_field, kernel=partial(laplace, temperature=t), coupling=softmax_both),
        (0.1, 1.0),
        normalize=True,
    )
    for wrong in (
        (torch.ones(6, 12, dtype=torch.long), torch.randn(8, 12)),
        (torch.randn(6, 12), torch.randn(8, 11)),
        (torch.randn(6), torch.randn(6)),
    ):
        with pytest.raises(ArgumentError):
            field(*wrong)


def test_temperatures_that_change_while_torch_compiles():
    torch._dynamo.reset()
    x, y = draw(4, 3), draw(5, 3, seed=1)

    def released(t: float, x: Tensor) -> Tensor:
        return released_drift(x, y, temperatures=(t, 2 * t)).field

    compiled = torch.compile(released, backend="aot_eager", fullgraph=True)
    for t in (0.1, 0.2, 0.35):
        torch.testing.assert_close(compiled(t, x), released(t, x), rtol=1e-12, atol=1e-12)
