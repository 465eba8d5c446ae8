"""Fields in Triton kernels: the same numbers as torch's. On a processor the kernels run in Triton's interpreter."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from onestep_core import (
    Radial,
    drift_field,
    gaussian,
    inverse_multiquadric,
    laplace,
    matern,
    mean_shift_field,
    multi_temperature,
    released_drift,
    sinkhorn,
    sinkhorn_field,
    softmax_both,
    softmax_rows,
    unnormalized,
)
from onestep_core.fields.affinity import dispatch, fused_affinities, fused_distances
from onestep_core.fields.affinity.dispatch import affinities_of
from onestep_core.fields.affinity.fused_affinities import FusedAffinities
from onestep_core.fields.affinity.fused_distances import FusedDistances
from onestep_core.fields.affinity.streamed_affinities import Affinities
from onestep_core.fields.affinity.streamed_distances import plain
from onestep_core.fields.kernels import form_of

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in (log2|exp2|multiply|subtract|divide):RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SHAPES = {
    "laplace": lambda d: partial(laplace, temperature=0.3 * d**0.5),
    "gaussian": lambda d: partial(gaussian, bandwidth=0.6 * d**0.5),
    "matern-0.5": lambda d: partial(matern, smoothness=0.5, lengthscale=0.5 * d**0.5),
    "matern-1.5": lambda d: partial(matern, smoothness=1.5, lengthscale=0.5 * d**0.5),
    "matern-2.5": lambda d: partial(matern, smoothness=2.5, lengthscale=0.5 * d**0.5),
    "inverse-multiquadric": lambda d: partial(inverse_multiquadric, scale=d**0.5),
}
FIELDS = {
    "drift": lambda k: partial(drift_field, kernel=k, coupling=softmax_both),
    "rows": lambda k: partial(drift_field, kernel=k, coupling=softmax_rows),
    "raw": lambda k: partial(drift_field, kernel=k, coupling=unnormalized),
    "floored": lambda k: partial(drift_field, kernel=k, coupling=softmax_both, affinity_floor=1e-2),
    "sinkhorn": lambda k: partial(drift_field, kernel=k, coupling=partial(sinkhorn, iterations=3), attraction=2.0),
    "alternating": lambda k: partial(
        drift_field, kernel=k, coupling=partial(sinkhorn, iterations=2, symmetric=False), repulsion=0.5
    ),
    "mean shift": lambda k: partial(mean_shift_field, kernel=k),
    "corrected": lambda k: partial(mean_shift_field, kernel=k, bias_correction=True),
}


@pytest.fixture
def kernels(monkeypatch):
    """Everything in float32 is left to the kernels, on a processor too; how often that came about."""
    made = []
    init = FusedAffinities.__init__

    def counted(self, *arguments, **keywords):
        made.append(self)
        init(self, *arguments, **keywords)

    monkeypatch.setattr(FusedAffinities, "__init__", counted)
    monkeypatch.setattr(dispatch, "fusible", lambda x, y: x.dtype == y.dtype == torch.float32 and plain(x, y))
    return made


def clouds(*lead: int, n: int, p: int, d: int, u: int = 5, seed: int = 0) -> list[Tensor]:
    """Samples, positives, extra negatives and positive weights; some positives are samples, some nearly so."""
    generator = torch.Generator().manual_seed(seed)
    x, y, extra = (torch.randn(*lead, count, d, generator=generator) for count in (n, p, u))
    y[..., :2, :] = x[..., :2, :]
    y[..., 2, :] = x[..., 2, :] + 1e-3
    return [t.to(DEVICE) for t in (x, y, extra, torch.rand(*lead, p, generator=generator) + 0.1)]


def agree(field, x: Tensor, y: Tensor, *, tolerance: float = 1e-5, **keywords) -> None:
    """With the dense field in float64."""
    found = field(x, y, **keywords).field
    exact = field(
        x.double(), y.double(), **{k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items()}
    ).field
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FIELDS)
def test_fused_fields_are_the_dense_ones(kernels, name, shape):
    x, y, extra, weights = clouds(n=9, p=12, d=20)
    field = FIELDS[name](SHAPES[shape](20))
    agree(field, x, y, extra_negatives=extra, positive_weights=weights)
    assert kernels


@pytest.mark.parametrize("name", FIELDS)
def test_groups_are_apart_and_blocks_do_not_matter(kernels, monkeypatch, name):
    x, y, _, weights = clouds(2, 1, n=11, p=13, d=3)
    field = FIELDS[name](SHAPES["laplace"](3))
    whole = field(x, y, positive_weights=weights).field
    agree(field, x, y, positive_weights=weights)
    blocked = field(x, y, positive_weights=weights, block_size=7).field
    torch.testing.assert_close(blocked, whole, rtol=1e-5, atol=1e-6)
    alone = field(x[1, 0], y[1, 0], positive_weights=weights[1, 0]).field
    torch.testing.assert_close(alone, whole[1, 0], rtol=1e-5, atol=1e-6)
    # One group and a few of its rows at a time, sums in shares.
    monkeypatch.setattr(fused_distances, "_KEPT_ELEMENTS", 100)
    monkeypatch.setattr(fused_affinities, "_SHARE", 8)
    torch.testing.assert_close(field(x, y, positive_weights=weights).field, whole, rtol=1e-5, atol=1e-6)
    assert len(kernels[-1]._apart.blocks) > 4


def test_a_small_last_block_with_many_kernels(kernels, monkeypatch):
    x, y, _, _ = clouds(n=9, p=8, d=3)

    def at(t):
        return partial(drift_field, kernel=partial(laplace, temperature=t), coupling=softmax_both)

    field = multi_temperature(at, (0.2, 0.3, 0.5, 0.8, 1.2, 2.0), normalize=True)
    # Blocks of four, four and one rows: all kernels of the last alone would fit.
    monkeypatch.setattr(fused_distances, "_KEPT_ELEMENTS", 6 * 17)
    agree(partial(field, block_size=4), x, y)
    assert [rows.stop - rows.start for _, rows in kernels[-1]._apart.blocks][-1] == 1


def test_explicit_negatives_and_keys(kernels):
    x, y, extra, _ = clouds(n=6, p=8, d=4)
    field = partial(drift_field, kernel=partial(laplace, temperature=0.5), coupling=softmax_both)
    agree(field, x, y, negatives=extra)
    agree(field, x, y, keys=lambda points: torch.cat([points, points.square()], -1))
    torch.testing.assert_close(field(x, y, extra).field, -field(x, extra, y).field)
    assert field(x, y, y).field.abs().max() < 1e-6


def test_released_drift_and_its_masked_pair(kernels):
    x, y, extra, weights = clouds(3, n=5, p=7, d=6)
    agree(released_drift, x, y, extra_negatives=extra, positive_weights=weights)
    agree(released_drift, x[0, :1], y[0])
    assert kernels


def test_sinkhorn_divergence_field_with_unequal_masses(kernels):
    x, y, _, weights = clouds(n=8, p=9, d=3)
    agree(partial(sinkhorn_field, epsilon=2.0, iterations=20), x, y, positive_weights=weights, tolerance=2e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_temperatures_share_the_distances(kernels, normalize):
    x, y, extra, _ = clouds(n=9, p=9, d=24)

    def at(t):
        return partial(drift_field, kernel=partial(laplace, temperature=t), coupling=softmax_both)

    agree(multi_temperature(at, (0.5, 1.0, 4.0), normalize=normalize), x, y, extra_negatives=extra)
    assert len(kernels) == 1


@pytest.mark.parametrize("d", [3, 40])
def test_duplicates_and_a_far_sample(kernels, d):
    x, y, _, _ = clouds(n=20, p=20, d=d)
    x[-1] *= 200
    agree(FIELDS["drift"](SHAPES["laplace"](d)), x, y)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_near_duplicates_keep_their_digits(offset):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(18, 33, generator=generator) + offset
    y = torch.cat([x, x + 1e-3 * torch.randn(18, 33, generator=generator), torch.randn(5, 33, generator=generator)])
    x, y = x.to(DEVICE), y.to(DEVICE)
    for themselves in (True, False):
        ((_, found),) = FusedDistances(x, y, themselves=themselves, block_size=None)
        exact = (x.double().unsqueeze(1) - y.double()).square().sum(-1).sqrt()
        assert found.shape == (1, 18, 41)
        torch.testing.assert_close(found[0].double(), exact, rtol=2e-5, atol=0.0 if not themselves else 1e-12)


def test_a_row_without_pairs_has_no_potential():
    x = torch.zeros(1, 4, device=DEVICE)
    apart = FusedDistances(x, x, themselves=True, block_size=None)
    lone = FusedAffinities(apart, [form_of(partial(laplace, temperature=1.0))], self_penalties=[math.inf])
    assert lone.rows().tolist() == [0.0]
    (sums,) = lone.apply(lone.potentials(softmax_rows), x, weights=None)
    assert sums.products.tolist() == [[0.0] * 4]
    assert sums.totals.tolist() == [0.0]


@pytest.mark.parametrize(
    "kernel",
    [lambda x, y: -(x.unsqueeze(-2) - y.unsqueeze(-3)).abs().sum(-1), Radial(lambda r: -r), partial(laplace)],
    ids=["function", "radial", "partial"],
)
def test_other_kernels_are_left_to_torch(kernels, kernel):
    x, y, _, _ = clouds(n=4, p=5, d=3)
    if isinstance(kernel, partial):
        kernel = [partial(laplace, temperature=1.0), partial(gaussian, bandwidth=1.0)]
    else:
        kernel = [kernel]
    assert isinstance(affinities_of(x, y, kernel), Affinities)
    assert not kernels


def test_transforms_gradients_and_other_types_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    x = torch.zeros(2, 3)
    seen = []

    def spied(points: Tensor) -> Tensor:
        seen.append(dispatch.fusible(points, x))
        return points.sum()

    assert dispatch.fusible(x, x)
    assert not dispatch.fusible(x.double(), x.double())
    assert not dispatch.fusible(x.clone().requires_grad_(), x)
    torch.func.grad(spied)(x)
    torch.vmap(spied)(x.unsqueeze(0))
    assert seen == [False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_holds_the_field():
    x, y, extra, _ = clouds(n=70, p=60, d=40)
    field = FIELDS["drift"](SHAPES["laplace"](40))
    eager = field(x, y, extra_negatives=extra).field
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = field(x, y, extra_negatives=extra).field
    graph.replay()
    torch.testing.assert_close(held, eager)


def test_what_is_no_number_shows(kernels):
    x, y, extra, _ = clouds(n=4, p=5, d=3)
    x[0, 0] = math.nan
    for name in ("drift", "mean shift", "floored"):
        found = FIELDS[name](SHAPES["laplace"](3))(x, y, extra).field
        assert found[0].isnan().all()
    y[0, 0] = math.nan
    assert released_drift(extra, y).field.isnan().all()


def test_a_mean_keeps_its_digits_where_affinities_underflow(kernels):
    x, y, _, weights = clouds(n=3, p=5, d=3)
    field = partial(mean_shift_field, kernel=partial(laplace, temperature=1.0), coupling=unnormalized)
    for far in (90.0, 1000.0):
        agree(partial(field, bias_correction=True), x + far, y, positive_weights=weights)
        agree(partial(mean_shift_field, kernel=partial(laplace, temperature=1.0), coupling=softmax_both), x + far, y)


def test_no_groups_make_no_field(kernels):
    field = FIELDS["drift"](SHAPES["laplace"](3))
    assert field(torch.ones(0, 3, 2, device=DEVICE), torch.zeros(0, 2, 2, device=DEVICE)).field.shape == (0, 3, 2)


def test_the_switch(monkeypatch):
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    x = torch.zeros(2, 3)
    assert dispatch.fusible(x, x)
    monkeypatch.setenv(dispatch.SWITCH, "0")
    assert not dispatch.fusible(x, x)
