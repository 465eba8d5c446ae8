"""Every law catches a deliberate mistake and names itself; no law is left without one."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep_adapters.testing import LawError, laws, strategies
from onestep_adapters.testing.law import drawn
from onestep_core import flow, objectives
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.precision import full, without_gradient
from onestep_core.protocols import Drift, Potentials
from onestep_core.regression import Regression, mse, squared_l2
from onestep_core.shapes import expand_like
from tests.cases import TWO_MODES

# A correct object of every kind, written out so that each mistake is one visible change.


def log_kernel(x: Tensor, y: Tensor) -> Tensor:
    return -torch.cdist(full(x), full(y), compute_mode="donot_use_mm_for_euclid_dist")


def displacement(x: Tensor, positives: Tensor, negatives: Tensor | None) -> Tensor:
    """Towards the kernel mean of the positives, away from that of the negatives."""

    def pull(y: Tensor, mask: bool) -> Tensor:
        log_k = log_kernel(x, y)
        if mask:
            log_k = log_k - 1e6 * torch.eye(x.shape[-2], dtype=x.dtype)
        return log_k.softmax(-1) @ y - x

    return pull(positives, False) - pull(x if negatives is None else negatives, negatives is None)


def drift(
    samples: Tensor, positives: Tensor, negatives: Tensor | None = None, *, step: Callable[..., Tensor] = displacement
) -> Drift:
    x, p = full(samples), without_gradient(positives)
    n = None if negatives is None else without_gradient(negatives)
    field = without_gradient(step(without_gradient(samples), p, n))
    return Drift(x, field, field.new_ones(()), field.new_ones(1))


def changed(step: Callable[..., Tensor]) -> Callable[..., Drift]:
    return partial(drift, step=step)


def self_masked(x: Tensor, p: Tensor, n: Tensor | None) -> Tensor:
    """A self mask where the negatives were given: they may be any points."""
    log_k = log_kernel(x, x if n is None else n)
    return displacement(x, p, n) - 0.1 * (log_k - 1e6 * torch.eye(*log_k.shape[-2:])).softmax(-1).amax(-1, keepdim=True)


def normalised(samples: Tensor, positives: Tensor, negatives: Tensor | None = None, *, power: float = 1.0) -> Drift:
    """A field in units of the positives' spread; right for ``power = 1``."""
    scale = (positives - positives.mean(-2, keepdim=True)).square().mean().sqrt()
    parts = (None if part is None else part / scale**power for part in (samples, positives, negatives))
    return drift(*parts)._replace(scale=scale)  # type: ignore[arg-type]


def weights_by_position(x: Tensor, p: Tensor, n: Tensor | None) -> Tensor:
    return displacement(x, p, n) + p[..., :1, :] - p.mean(-2, keepdim=True)


def rows_by_position(x: Tensor, p: Tensor, n: Tensor | None) -> Tensor:
    return displacement(x, p, n) * torch.arange(1, x.shape[-2] + 1, dtype=x.dtype)[:, None]


def gradient_kept(samples: Tensor, positives: Tensor, negatives: Tensor | None = None) -> Drift:
    field = displacement(full(samples), full(positives), None if negatives is None else full(negatives))
    return Drift(full(samples), field, field.new_ones(()), field.new_ones(1))


def tangent_kept(samples: Tensor, positives: Tensor, negatives: Tensor | None = None) -> Drift:
    """The gradient is cut in reverse mode only."""
    with torch.no_grad():
        away = samples if negatives is None else negatives
        step = full(positives).mean(-2, keepdim=True) - full(away).mean(-2, keepdim=True) - 0 * full(samples)
        step = step + 0.1 * full(samples)
    return Drift(full(samples), step, step.new_ones(()), step.new_ones(1))


def half_precision(samples: Tensor, positives: Tensor, negatives: Tensor | None = None) -> Drift:
    drifted = drift(samples, positives, negatives)
    return drifted._replace(field=drifted.field.to(samples.dtype))


def coarse(samples: Tensor, positives: Tensor, negatives: Tensor | None = None) -> Drift:
    """Digits lost in float32 alone."""
    drifted = drift(samples, positives, negatives)
    single = drifted.field.dtype == torch.float32
    return drifted._replace(field=drifted.field.half().float() * 1.01 if single else drifted.field)


FIELDS = [
    ("field.antisymmetric", changed(lambda x, p, n: displacement(x, p, n) * (1 + p.mean().square())), {}),
    ("field.antisymmetric", changed(lambda x, p, n: displacement(x, p, n).abs()), {}),
    ("field.equal_sets_give_zero", changed(self_masked), {}),
    ("field.equal_sets_give_zero", changed(lambda x, p, n: displacement(x, p, n) - 0.1 * x), {}),
    ("field.samples_in_any_order", changed(rows_by_position), {}),
    ("field.targets_in_any_order", changed(weights_by_position), {}),
    ("field.translation", changed(lambda x, p, n: displacement(x, p, n) * (1 + x.square())), {}),
    ("field.rotation", changed(lambda x, p, n: displacement(x, p, n).sign()), {}),
    ("field.scale_free", partial(normalised, power=0.5), {"scale_free": True, "antisymmetric": False}),
    ("field.groups", changed(lambda x, p, n: displacement(x, p, n) / (1 + p.var())), {}),
    ("field.dtype", half_precision, {}),
    ("field.float32_near_float64", coarse, {}),
    ("field.no_gradient", gradient_kept, {}),
    ("field.no_gradient", tangent_kept, {}),
    ("field.no_gradient", lambda *a: drift(*a)._replace(samples=a[0].detach()), {}),
]

KERNELS = [
    ("kernel.shape", lambda x, y: log_kernel(x, y).mT, {}),
    ("kernel.symmetric", lambda x, y: log_kernel(x, 1.5 * y), {}),
    ("kernel.groups", lambda x, y: log_kernel(x, y) / log_kernel(x, y).mean().abs(), {}),
    ("kernel.dtype", lambda x, y: log_kernel(x, y).to(x.dtype), {}),
    ("kernel.finite_gradient", lambda x, y: -(full(x)[..., None, :] - full(y)).square().sum(-1).sqrt(), {}),
    ("kernel.channel_mismatch_raises", lambda x, y: -(full(x).mean(-1)[..., None] - full(y).mean(-1)).abs(), {}),
    ("kernel.translation", lambda x, y: full(x) @ full(y).mT, {}),
    ("kernel.rotation", lambda x, y: -(full(x)[..., None, :] - full(y)).abs().sum(-1), {}),
    ("kernel.positive_definite", lambda x, y: log_kernel(x, y).square(), {}),
    ("kernel.normalised", lambda x, y: log_kernel(x, y) + 1, {}),
]


def one_softmax(rows: Any, columns: Any) -> Potentials:
    return Potentials(rows(), torch.zeros_like(columns()))


def alternating(rows: Any, columns: Any, *, rounds: int) -> Potentials:
    column = torch.zeros_like(columns())
    row = rows()
    for _ in range(rounds):
        row = rows(column)
        column = columns(row)
    return Potentials(row, column)


def first_block(rows: Any, columns: Any) -> Potentials:
    """It looks at the callable behind the reductions."""
    potentials = one_softmax(rows, columns)
    return potentials._replace(row=potentials.row + len(rows.__self__.blocks))


def plain(rows: Any, columns: Any, *, shift: Callable[[Tensor], Tensor]) -> Potentials:
    row, column = one_softmax(rows, columns)
    return Potentials(row + shift(row), column)


COUPLINGS = [
    ("coupling.streamed_equals_dense", first_block, {}),
    ("coupling.any_order", partial(plain, shift=lambda r: torch.arange(r.shape[-1], dtype=r.dtype)), {}),
    ("coupling.groups", partial(plain, shift=lambda r: r.mean()), {}),
    ("coupling.row_sums", partial(alternating, rounds=1), {"row_sum": 1.0}),
    ("coupling.column_sums", one_softmax, {"column_sum": 1.0}),
    ("coupling.equal_marginals", partial(alternating, rounds=2), {"equal_marginals": True}),
]


class Course:
    """The linear path, with one function replaced."""

    data_time, noise_time = 0.0, 1.0

    def __init__(self, **changes: Any) -> None:
        self.__dict__.update(changes)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def prior(self, noise: Tensor) -> Tensor:
        return self.coefficients(torch.full((1,), self.noise_time, dtype=noise.dtype))[1] * noise

    def __call__(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), (da, db) = self.coefficients(t), self.rates(t)
        a, b, da, db = (expand_like(c, data) for c in (a, b, da, db))
        return a * data + b * noise, da * data + db * noise


class VelocityOfTheOtherSign(Course):
    def __call__(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z, v = super().__call__(data, noise, t)
        return z, -v


PATHS = [
    ("path.rates_are_derivatives", Course(rates=lambda t: (-torch.ones_like(t), 1.001 * torch.ones_like(t))), {}),
    ("path.rates_are_derivatives", Course(rates=lambda t: (torch.ones_like(t), -torch.ones_like(t))), {}),
    ("path.ever_noisier", Course(coefficients=lambda t: (1 - t, (6 * t).sin())), {}),
    ("path.dtype", Course(coefficients=lambda t: (1 - t.float(), t.float())), {}),
    ("path.data_end", Course(data_time=1.0, noise_time=0.0), {}),
    ("path.prior", Course(prior=lambda noise: 2 * noise), {}),
    ("path.state_and_velocity", VelocityOfTheOtherSign(), {}),
]


def swapped_pair(function: Any, primals: Any, tangents: Any, *, moving: Any = None) -> Any:
    value, tangent = flow.two_pass(function, primals, tangents)
    return value, torch.utils._pytree.tree_map(torch.neg, tangent)


def value_without_graph(function: Any, primals: Any, tangents: Any, *, moving: Any = None) -> Any:
    with torch.no_grad():
        return flow.two_pass(function, primals, tangents)


def tangent_in_forward_mode(function: Any, primals: Any, tangents: Any, *, moving: Any = None) -> Any:
    with torch.no_grad():
        _, tangent = torch.func.jvp(function, primals, tangents)
    return function(*primals), tangent


def moving_rows_alone(function: Any, primals: Any, tangents: Any, *, moving: int | None = None) -> Any:
    value, tangent = flow.two_pass(function, primals, tangents)
    cut = (lambda x: x) if moving is None else (lambda x: torch.cat([x[: moving - 1], 0 * x[moving - 1 :]]))
    return value, torch.utils._pytree.tree_map(cut if moving else (lambda x: x), tangent)


def asks_for_values(function: Any, primals: Any, tangents: Any, *, moving: Any = None) -> Any:
    if all(bool((p == 0).all()) for p in primals):
        return function(*primals), tangents
    return flow.two_pass(function, primals, tangents)


DERIVATIVES = [
    ("derivative.value", value_without_graph, {}),
    ("derivative.tangent", swapped_pair, {}),
    ("derivative.tangent", partial(flow.central_difference, step=0.1), {}),
    ("derivative.tangent_graph", flow.with_graph, {}),
    ("derivative.tangent_graph", tangent_in_forward_mode, {}),
    ("derivative.tangent_graph", flow.two_pass, {"frozen": False}),
    ("derivative.moving", moving_rows_alone, {}),
    ("derivative.per_sample", asks_for_values, {}),
]


def scaled(network: Any, *, skip: Any, out: Any) -> Any:
    def function(z: Tensor, sigma: Tensor) -> Tensor:
        z, sigma = full(z), full(sigma)
        c_in = (sigma.square() + 0.25).rsqrt()
        a, b, c = (expand_like(part, z) for part in (skip(sigma), out(sigma), c_in))
        return a * z + b * network(c * z, sigma)

    return function


def right_skip(sigma: Tensor) -> Tensor:
    return 0.25 / (sigma.square() + 0.25)


PRECONDITIONINGS = [
    ("preconditioning.boundary", partial(scaled, skip=right_skip, out=lambda s: s + 0.1), {"boundary": 0.0}),
    ("preconditioning.boundary", partial(flow.consistency, sigma_min=0.002), {"boundary": 0.02}),
    ("preconditioning.unit_variance", partial(scaled, skip=right_skip, out=lambda s: s), {"unit_variance": 0.5}),
    ("preconditioning.unit_variance", flow.consistency, {"unit_variance": 0.5}),
    ("preconditioning.affine_in_the_network", lambda n: lambda z, s: full(n(z, s)).tanh(), {}),
    ("preconditioning.gradient_reaches_the_network", lambda n: lambda z, s: full(n(z, s)).detach(), {}),
    ("preconditioning.dtype", lambda network: network, {}),
]

DISTANCES = [
    ("distance.zero_at_equality", lambda p, q: squared_l2(p, q) + 1, {}),
    ("distance.not_negative", lambda p, q: full(p - q).flatten(1).sum(1), {}),
    ("distance.not_negative", lambda p, q: 0 * mse(p, q), {}),
    ("distance.finite_gradient", lambda p, q: squared_l2(p, q).sqrt(), {}),
    ("distance.one_number_per_sample", lambda p, q: squared_l2(p, q).mean(), {}),
    ("distance.one_number_per_sample", lambda p, q: squared_l2(p, q) / squared_l2(p, q).mean(), {}),
    ("distance.shape_mismatch_raises", lambda p, q: full(p - q).square().flatten(1).sum(1), {}),
    ("distance.dtype", lambda p, q: (p - q).square().flatten(1).sum(1), {}),
    ("distance.symmetric", lambda p, q: squared_l2(p, q) * (1 + squared_l2(p, 0 * p)), {}),
]

# MeanFlow once more, on bare tensors, with one line to change at a time.


def meanflow(
    network: Any,
    p: strategies.Problem,
    *,
    freeze: Callable[[Tensor], Tensor] = without_gradient,
    derivative: Any = flow.two_pass,
    target: Callable[..., Tensor] = lambda v, slope, gap: v + gap * slope,
    tangents: Callable[..., tuple[Tensor, ...]] = lambda v, one: (v, one, 0 * one),
) -> Regression:
    a, slope = derivative(network, (p.z, p.t, p.s), tangents(p.v, torch.ones_like(p.t)))
    gap = (p.s - p.t).reshape(-1, *(1 for _ in p.z.shape[1:])) if p.t.ndim else p.s - p.t
    return Regression(full(a), freeze(target(full(p.v), full(slope), full(gap))))


def exact(name: str) -> Callable[[GaussianMixture, Any], Any]:
    def bind(mixture: GaussianMixture, path: Any) -> Any:
        keywords = {"steps": 4} if name == "average_velocity" else {}
        return partial(getattr(mixture, name), path=path, **keywords)

    return bind


AVERAGE = {"exact": exact("average_velocity"), "marginal": True}
INSTANT = {"exact": exact("velocity"), "unbiased": True}


def matching(network: Any, p: strategies.Problem) -> Regression:
    return objectives.flow_matching_regression(network, p.z, p.v, p.t)


def retargeted(change: Callable[[Tensor, strategies.Problem], Tensor]) -> Any:
    def objective(network: Any, p: strategies.Problem) -> Regression:
        pair = matching(network, p)
        return pair._replace(target=change(pair.target, p))

    return objective


def breaks_the_graph(network: Any, p: strategies.Problem) -> Regression:
    factor = 1.0 if float(p.t.sum()) > -1 else 2.0
    return matching(network, p._replace(v=factor * p.v))


OBJECTIVES = [
    ("objective.shape_and_dtype", retargeted(lambda target, p: target.double()), {}),
    ("objective.shape_and_dtype", lambda network, p: Regression(network(p.z, p.t), network(p.z, p.t).detach()), {}),
    ("objective.shape_and_dtype", retargeted(lambda target, p: target.sum(1, keepdim=True)), {}),
    ("objective.target_has_no_gradient", partial(meanflow, freeze=full, derivative=flow.with_graph), {}),
    ("objective.target_has_no_gradient", lambda n, p: Regression(n(p.z, p.t), p.v), {}),
    (
        "objective.target_has_no_gradient",
        partial(meanflow, freeze=full, derivative=tangent_in_forward_mode, target=lambda v, d, gap: v.detach() + d),
        {},
    ),
    (
        "objective.prediction_has_gradient",
        lambda n, p: Regression(without_gradient(n(p.z, p.t)), without_gradient(p.v)),
        {},
    ),
    (
        "objective.per_sample_gradients",
        lambda n, p: Regression(full(n(p.z, p.t)) / n(p.z, p.t).std(), without_gradient(p.v)),
        {},
    ),
    ("objective.samples_are_independent", retargeted(lambda target, p: target - target.mean(0)), {}),
    ("objective.bare_vmap_raises", meanflow, {}),
    ("objective.compiles", breaks_the_graph, {"compiled": True}),
    # The source's slip: v = D_t a holds for displacements.
    (
        "objective.stationary_at_the_oracle_per_sample",
        partial(meanflow, target=lambda v, slope, gap: v - gap * slope),
        AVERAGE,
    ),
    (
        "objective.stationary_at_the_oracle_per_sample",
        partial(meanflow, tangents=lambda v, one: (v, 0 * one, one)),
        AVERAGE,
    ),
    (
        "objective.stationary_at_the_oracle_per_sample",
        partial(meanflow, tangents=lambda v, one: (0 * v, one, 0 * one)),
        AVERAGE,
    ),
    (
        "objective.stationary_at_the_oracle_per_sample",
        lambda network, p: meanflow(network, p._replace(t=p.s, s=p.t)),
        AVERAGE,
    ),
    ("objective.stationary_at_the_oracle_in_expectation", retargeted(lambda target, p: 0.9 * target), INSTANT),
    ("objective.stationary_at_the_oracle_in_expectation", retargeted(lambda target, p: p.noise), INSTANT),
    (
        "objective.points_back_per_sample",
        lambda n, p: Regression(2 * without_gradient(n(p.z, p.t)) - full(n(p.z, p.t)), without_gradient(p.v)),
        INSTANT | {"marginal": True},
    ),
    (
        "objective.points_back_in_expectation",
        lambda n, p: Regression(full(n(p.z, p.t)), without_gradient(2 * n(p.z, p.t) - p.v)),
        INSTANT,
    ),
]

TRUE_AVERAGE = partial(TWO_MODES.average_velocity, path=flow.Linear(), steps=4)
TRUE_VELOCITY = partial(TWO_MODES.velocity, path=flow.Linear())
TRUTH = {"states": strategies.problems(TWO_MODES, flow.Linear()), "tolerance": 0.01}


def wrong_far_away(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return TRUE_AVERAGE(z, t, s) * (1 + 0.3 * (s - t).square()).unsqueeze(1)


AVERAGE_VELOCITIES = [
    ("average_velocity.limit", lambda z, t, s: TRUE_AVERAGE(z, t, s) + 0.1, {}),
    ("average_velocity.semigroup", lambda z, t, s: TRUE_AVERAGE(z, s, t), {}),
    ("average_velocity.semigroup", wrong_far_away, {}),
    ("average_velocity.eulerian", lambda z, t, s: TRUE_AVERAGE(z, s, t), {}),
    ("average_velocity.eulerian", lambda z, t, s: TRUE_VELOCITY(z, t), {}),
    ("average_velocity.lagrangian", lambda z, t, s: TRUE_AVERAGE(z, s, t), {}),
    ("average_velocity.lagrangian", wrong_far_away, {}),
    ("average_velocity.transport", lambda z, t, s: TRUE_AVERAGE(z, s, t), {}),
    ("average_velocity.transport", lambda z, t, s: -TRUE_AVERAGE(z, t, s), {}),
]


def average_velocity_laws(network: Any, **_: Any) -> list[Any]:
    return laws.average_velocity(network, TRUE_VELOCITY, **TRUTH)


GROUPS: list[tuple[Callable[..., list[Any]], list[tuple[str, Any, dict[str, Any]]]]] = [
    (laws.field, FIELDS),
    (laws.kernel, KERNELS),
    (laws.coupling, COUPLINGS),
    (laws.path, PATHS),
    (laws.derivative, DERIVATIVES),
    (laws.preconditioning, PRECONDITIONINGS),
    (laws.distance, DISTANCES),
    (laws.objective, OBJECTIVES),
    (average_velocity_laws, AVERAGE_VELOCITIES),
]
MUTANTS = [(group, name, mutant, claims) for group, rows in GROUPS for name, mutant, claims in rows]


@pytest.mark.parametrize(
    "group, name, mutant, claims", MUTANTS, ids=[f"{index}-{row[1]}" for index, row in enumerate(MUTANTS)]
)
def test_the_law_catches_its_mutant(group, name, mutant, claims):
    (law,) = [law for law in group(mutant, **claims) if str(law) == name]
    with pytest.raises(LawError, match=rf"^{name}: "):
        law()


ORIGINALS = [
    (laws.field, drift, {}),
    (laws.field, normalised, {"scale_free": True, "antisymmetric": False, "grouped": False, "self_repelling": False}),
    (laws.kernel, log_kernel, {}),
    (laws.coupling, one_softmax, {"row_sum": 1.0}),
    (laws.coupling, partial(alternating, rounds=200), {"equal_marginals": True, "column_sum": 1.0}),
    (laws.path, Course(), {}),
    (laws.derivative, flow.two_pass, {}),
    (laws.preconditioning, flow.edm, {"unit_variance": 0.5, "boundary": 0.0}),
    (laws.distance, mse, {}),
    (laws.objective, matching, INSTANT | {"marginal": True, "compiled": True}),
    (average_velocity_laws, TRUE_AVERAGE, {}),
]


def test_every_law_has_a_mutant():
    known = {name for _, name, _, _ in MUTANTS}
    every = {str(law) for group, thing, claims in ORIGINALS for law in group(thing, **claims)}
    assert every == known


UNMUTATED = [law for group, thing, claims in ORIGINALS for law in group(thing, **claims)]


@pytest.mark.parametrize("law", UNMUTATED, ids=[f"{i}-{law}" for i, law in enumerate(UNMUTATED)])
def test_the_originals_obey(law, monkeypatch):
    """The mutants fail because of their mutation."""
    monkeypatch.setenv("ONESTEP_LAW_EXAMPLES", "3")
    law()


def test_a_swap_of_times_is_caught_on_a_trained_network():
    """A small network, trained by MeanFlow; wrapped for the other order of times, it fails by far."""
    generator = torch.Generator().manual_seed(0)
    one, line = GaussianMixture.isotropic([1.0], [[1.5, 0.0]], 0.3), flow.Linear()
    sizes = [(6, 48), (48, 48), (48, 2)]
    weights = [torch.randn(a, b, generator=generator).div(a**0.5).requires_grad_() for a, b in sizes]

    def network(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t, s = t.unsqueeze(1).to(z.dtype), s.unsqueeze(1).to(z.dtype)
        x = torch.cat([z, t, s, t * s, torch.ones_like(t)], dim=1)
        for weight in weights[:-1]:
            x = torch.tanh(x @ weight.to(z.dtype))
        return x @ weights[-1].to(z.dtype)

    optimiser = torch.optim.Adam(weights, 5e-3)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        data = one.sample(128, generator=generator).float()
        t, s = torch.rand(2, 128, generator=generator)
        z, _ = line(data, torch.randn(128, 2, generator=generator), t)
        v = one.velocity(z, t, path=line)
        optimiser.zero_grad()
        mse(*objectives.meanflow_regression(network, z, v, t, s)).mean().backward()
        optimiser.step()
    check = partial(
        laws.average_velocity,
        velocity=partial(one.velocity, path=line),
        states=strategies.problems(one, line, batch=32, margin=0.05),
        steps=16,
        tolerance=0.25,
    )
    for law in check(network):
        law()
    caught = []
    for law in check(lambda z, t, s: network(z, s, t)):
        try:
            law()
        except LawError as error:
            caught.append(str(error).split(":")[0])
    assert {"average_velocity.semigroup", "average_velocity.eulerian", "average_velocity.transport"} <= set(caught)


def test_a_field_takes_negatives_or_none():
    with pytest.raises(ConfigError, match="claim one"):
        laws.field(drift, explicit_negatives=False, self_repelling=False)


def test_shares_of_cases_and_claims_of_a_network_that_is_not_given():
    regress = lambda network, p: objectives.flow_matching_regression(network, p.z, p.v, p.t)  # noqa: E731
    for fraction in (0.0, -1.0, 2.0, float("nan")):
        with pytest.raises(ConfigError, match=f"fraction = {fraction}"):
            laws.objective(regress, fraction=fraction)
    for claim in ("marginal", "unbiased"):
        with pytest.raises(ConfigError, match="exact"):
            laws.objective(regress, **{claim: True})


def test_law_examples_are_read_from_the_environment(monkeypatch):
    seen = []
    law = drawn("numbers.any", seen.append, strategies.seeds())
    monkeypatch.setenv("ONESTEP_LAW_EXAMPLES", "7")
    law()
    first = list(seen)
    assert len(first) == 7
    law()
    assert seen == first + first  # the same cases in every run
    monkeypatch.setenv("ONESTEP_LAW_EXAMPLES", "none")
    with pytest.raises(LawError, match="ONESTEP_LAW_EXAMPLES"):
        law()


def test_hypothesis_missing_names_the_extra():
    code = "import sys; sys.modules['hypothesis'] = None; import onestep_adapters.testing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in run.stderr
    assert "pip install 'onestep[testing]'" in run.stderr


def test_the_suite_does_not_import_pytest():
    code = "import sys, onestep_adapters.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
