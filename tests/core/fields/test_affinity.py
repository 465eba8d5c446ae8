"""Streamed, swept and dense evaluation of affinities agree, near-duplicates and far samples included."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import Tensor

import onestep_core as core
from onestep_core import (
    Radial,
    drift_field,
    energy_field,
    gaussian,
    kernel_gradient_field,
    laplace,
    matern,
    mean_shift_field,
    mmd_field,
    released_drift,
    sinkhorn,
    sinkhorn_field,
    softmax_both,
    softmax_rows,
    unnormalized,
)
from onestep_core.fields.affinity import streamed_distances
from onestep_core.fields.attraction_repulsion import drift_fields
from onestep_core.fields.clouds import Clouds
from tests.cases import KERNELS

F64 = torch.float64


BELL, SHARP = partial(gaussian, bandwidth=0.7), partial(laplace, temperature=0.5)


COUPLINGS = {
    "unnormalized": unnormalized,
    "rows": softmax_rows,
    "both": softmax_both,
    "sinkhorn": partial(sinkhorn, iterations=3),
    "alternating": partial(sinkhorn, iterations=2, symmetric=False),
}


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


def opaque(kernel):
    """The same kernel, which nobody can recognise: it is evaluated whole, and dense where it fits."""
    return lambda x, y: kernel(x, y)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)
@pytest.mark.parametrize("channels", [3, 40])
def test_swept_streamed_and_dense_agree(name, coupling, channels):
    kernel = KERNELS[name][0]
    x, y, extra = draw(2, 11, channels), draw(2, 13, channels, seed=1), draw(2, 4, channels, seed=2)
    weights = draw(2, 4, seed=3).square()
    fields = [
        drift_field(x, y, kernel=k, coupling=coupling, extra_negatives=extra, extra_weights=weights, block_size=size)
        for k, size in ((opaque(kernel), None), (opaque(kernel), 4), (kernel, None), (kernel, 4), (kernel, 1))
    ]
    for other in fields[1:]:
        torch.testing.assert_close(other.field, fields[0].field, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kept", [0, 2 * 13 * 4, 2**24])
@pytest.mark.parametrize("swept", [2 * 28 * 4, 2**22])
@pytest.mark.parametrize("grouped", [1, 3 * (2 * 11 * 28 + 39 * 9), 2**20])
def test_fields_do_not_depend_on_what_is_held(monkeypatch, kept, swept, grouped):
    """Distances kept from sweep to sweep, rows in a block, groups in a block: only time and memory."""
    x, y, extra = draw(5, 11, 9), draw(5, 13, 9, seed=1), draw(5, 4, 9, seed=2)
    kernels = [partial(laplace, temperature=0.5), partial(gaussian, bandwidth=0.7)]
    call = partial(drift_fields, Clouds(x, y, extra_negatives=extra), coupling=partial(sinkhorn, iterations=3))
    expected = call(kernels=[opaque(k) for k in kernels])
    for name, count in (("_DENSE", kept), ("_SWEPT", swept), ("_GROUPED", grouped)):
        monkeypatch.setattr(streamed_distances, f"{name}_ELEMENTS", count)
    for one, other in zip(call(kernels=kernels), expected, strict=True):
        torch.testing.assert_close(one.field, other.field, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(one.force_norms, other.force_norms, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("field", WHOLE.values(), ids=WHOLE)
def test_other_fields_stream(field):
    x, y = draw(2, 11, 12), draw(2, 13, 12, seed=1)
    for size in (1, 4):
        torch.testing.assert_close(field(x, y, block_size=size).field, field(x, y).field, rtol=1e-11, atol=1e-13)


def hard(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Duplicates, near-duplicates, a tight cluster, and one sample 200 times away."""
    x, y, extra = (draw(count, channels, seed=channels + count, dtype=torch.float32) for count in (300, 320, 60))
    y[:20], extra[:5], y[20:30] = x[:20], x[:5], x[40:50] * (1 + 1e-6)
    x[100:110] = x[100] + 1e-4 * x[100:110]
    x[-1] = 200 * x[-1]
    return x.to(dtype), y.to(dtype), extra.to(dtype)


@pytest.mark.parametrize("channels", [2, 9, 64, 256])
@pytest.mark.parametrize("relative", [0.02, 0.2])
def test_float32_is_right_with_duplicates_and_with_a_far_sample(channels, relative):
    kernel = partial(laplace, temperature=relative * math.sqrt(2 * channels))

    def field(dtype: torch.dtype, **keywords) -> Tensor:
        x, y, extra = hard(channels, dtype)
        return drift_field(x, y, kernel=kernel, coupling=softmax_both, extra_negatives=extra, **keywords).field

    exact = field(F64)
    assert float((field(torch.float32) - exact).abs().max()) < 1e-5 * float(exact.abs().max())


def test_clusters_so_tight_that_everything_cancels():
    """Many pairs to repair: the whole block is expanded in float64."""
    centre = 100 * draw(1, 64)
    x, y = (centre + draw(200, 64, seed=seed) for seed in (1, 2))
    y[0] = y[0] + 3000  # or the common centre would remove the offset
    fields = [
        mean_shift_field(a, b, kernel=partial(laplace, temperature=2.0)).field
        for a, b in ((x.float(), y.float()), (x.float().double(), y.float().double()))
    ]
    assert float((fields[0] - fields[1]).abs().max()) < 1e-4 * float(fields[1].abs().max())


def test_a_radial_kernel_of_your_own_is_swept():
    mine = Radial(lambda r: -r.square().log1p())
    x, y = draw(2, 7, 5), draw(2, 6, 5, seed=1)
    fields = [
        drift_field(x, y, kernel=kernel, coupling=softmax_both, block_size=3).field for kernel in (mine, opaque(mine))
    ]
    torch.testing.assert_close(fields[0], fields[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperatures", [(30.0,), (100.0, 2.0)])
def test_the_released_penalty_of_self_pairs_is_the_same_swept_and_dense(temperatures, monkeypatch):
    """At temperatures at which a sample has weight on itself."""
    x, y = draw(21, 12), draw(17, 12, seed=1)
    swept = released_drift(x, y, temperatures=temperatures)
    monkeypatch.setattr(streamed_distances, "may_sweep", lambda *tensors: False)
    dense = released_drift(x, y, temperatures=temperatures)
    torch.testing.assert_close(swept.field, dense.field, rtol=1e-10, atol=1e-12)


def test_float64_duplicates_have_no_distance():
    x = draw(200, 16) + 30
    both = torch.cat([x, x])
    ((_, apart),) = streamed_distances.Distances(both, both.clone(), themselves=False, block_size=None)
    assert float(apart[0].diagonal().max()) == 0.0


def test_kernels_of_any_making_are_kernels():
    """Not hashable, with parameters that learn: the field is the same and has no gradient."""

    @dataclasses.dataclass
    class Made:
        length: float

        def __call__(self, x, y, *, factor=1.0):
            return -core.distances(x, y) * factor / self.length

    rate = torch.tensor(0.5, requires_grad=True)
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    kernels = [partial(Made(0.5), factor=1.0), Radial(lambda r: -r / rate), lambda a, b: -core.distances(a, b) / rate]
    for field in (partial(drift_field, coupling=softmax_both), mean_shift_field):
        expected = field(x, y, kernel=SHARP).field
        for kernel in kernels:
            found = field(x, y, kernel=kernel).field
            assert not found.requires_grad
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", [SHARP, opaque(SHARP)], ids=["swept", "dense"])
def test_a_coupling_may_give_one_column_for_all_groups(kernel):
    def flat(rows, columns):
        return core.Potentials(rows(), torch.zeros(9, dtype=F64))

    x, y = draw(3, 5, 2), draw(3, 4, 2, seed=1)
    expected = drift_field(x, y, kernel=kernel, coupling=softmax_rows).field
    torch.testing.assert_close(drift_field(x, y, kernel=kernel, coupling=flat).field, expected)


@pytest.mark.parametrize(
    "field",
    [
        partial(drift_field, kernel=SHARP, coupling=softmax_both),
        partial(mean_shift_field, kernel=SHARP),
        released_drift,
    ],
)
def test_no_groups_and_no_storage(field):
    extra = {"temperatures": (0.2,)} if field is released_drift else {}
    assert field(torch.zeros(0, 4, 12), torch.zeros(0, 3, 12), **extra).field.shape == (0, 4, 12)
    shapes = field(torch.zeros(2, 4, 12, device="meta"), torch.zeros(2, 3, 12, device="meta"), **extra)
    assert shapes.field.shape == (2, 4, 12)


def test_near_duplicates_keep_their_distance_in_float32():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=g)
    y = x + 2.5e-5 * torch.randn(700, 16, generator=g)
    exact = (x.double() - y.double()).norm(dim=1)
    assert (core.distances(x, y).diagonal().double() / exact - 1).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_float64_keeps_near_duplicates_under_transforms_too(scale):
    """Large enough that float32 would be expanded: eager, mapped and differentiated fields are the same numbers."""
    x = 3 * draw(500, 64)
    assert core.distances(x, x).diagonal().max() == 0
    beside = x[:250] + scale * draw(250, 64, seed=1)

    def field(points: Tensor) -> Tensor:
        return drift_field(points, beside, kernel=partial(laplace, temperature=5.0), coupling=softmax_both).field

    swept = field(x)
    mapped = torch.func.vmap(field)(x[None])[0]
    assert (swept - mapped).abs().max() < 1e-12 * swept.abs().max()
    energy = energy_field(x, beside, x[:1] + 100).field
    alone = energy_field(x[:1], beside, x[:1] + 100).field
    torch.testing.assert_close(energy[:1], alone, rtol=1e-12, atol=1e-13)
