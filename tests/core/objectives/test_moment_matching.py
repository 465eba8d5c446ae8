"""Inductive moment matching: its definition, its limits, what holds at the exact map."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ArgumentError, ConfigError
from onestep_core.fields import gaussian, inverse_multiquadric, laplace, matern, mmd
from onestep_core.objectives import moment_matching_loss
from onestep_core.regression import l2, regression, sigmoid_elbo, squared_l2
from tests.cases import TWO_MODES
from tests.core.test_transforms import compiled
from tests.toy import Net

F64 = torch.float64


LINE = flow.Linear()


PATHS = {
    "linear": LINE,
    "reversed": flow.reverse(LINE),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0),
    "exploding": flow.VarianceExploding(0.002, 80.0),
}


KERNELS = {
    "laplace": partial(laplace, temperature=1.0),
    "gaussian": partial(gaussian, bandwidth=1.0),
    "matern": partial(matern, smoothness=1.5, lengthscale=1.0),
    "inverse_multiquadric": partial(inverse_multiquadric, scale=1.0),
}


ONE_DIMENSION = GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.4)


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


each_count = pytest.mark.parametrize("particles", [1, 2, 4, 8])


def given(y: Tensor):
    """A map that says ``y`` whatever it is asked."""
    return lambda z, t, s: y


def loss_of(made: Tensor, wanted: Tensor, **options) -> Tensor:
    """The loss of two given batches of particles."""
    t = torch.zeros(len(made), dtype=made.dtype)
    return moment_matching_loss(given(made), given(wanted), made, wanted, t, t, t, **options)


def clouds(batch: int, *shape: int) -> tuple[Tensor, Tensor]:
    return strategies.normal(0, batch, *shape), 0.5 + strategies.normal(1, batch, *shape)


def problem(path, batch: int, particles: int, seed: int = 0, mixture=TWO_MODES):
    """Data, noise and times ``t, m, s`` that are equal within a group."""
    groups = batch // particles
    t, s = (strategies.spread_times(path, groups, seed + i, margin=0.1) for i in (1, 2))
    t, s = (time.clamp(max=5.0) if path is PATHS["exploding"] else time for time in (t, s))
    t = torch.where((t - s).abs() < 0.05, s + 0.2, t)
    data = mixture.sample(batch, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 3, *data.shape)
    t, m, s = (time.repeat_interleave(particles) for time in (t, (t + s) / 2, s))
    return data, noise, t, m, s


@each_kernel
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 3)], ids=str)
def test_it_is_the_v_statistic_of_every_group(kernel, shape):
    made, wanted = clouds(12, *shape)
    losses = loss_of(made, wanted, particles=4, kernel=kernel)
    assert losses.shape == (3,)
    for group, loss in enumerate(losses):
        rows = slice(4 * group, 4 * group + 4)
        expected = mmd(made[rows].flatten(1), wanted[rows].flatten(1), kernel=kernel, unbiased=False)
        torch.testing.assert_close(loss, expected)


def test_a_length_is_a_bandwidth_for_each_group():
    made, wanted = clouds(8, 3)
    length = torch.tensor([0.5, 2.0], dtype=F64)
    scaled = loss_of(made, wanted, particles=4, kernel=KERNELS["laplace"], length=length.repeat_interleave(4))
    for group in range(2):
        rows, kernel = slice(4 * group, 4 * group + 4), partial(laplace, temperature=float(length[group]))
        torch.testing.assert_close(scaled[group], mmd(made[rows], wanted[rows], kernel=kernel, unbiased=False))


@each_kernel
@each_count
def test_it_is_not_negative_and_kernels_are_positive_definite(kernel, particles):
    for seed in range(5):
        made, wanted = (strategies.normal(seed + i, 8 * particles, 2) for i in (0, 100))
        assert float(loss_of(made, wanted, particles=particles, kernel=kernel).min()) >= -1e-14
    points = strategies.normal(7, 30, 2)
    assert float(torch.linalg.eigvalsh(kernel(points, points).exp()).min()) > -1e-12


def test_the_order_of_particles_does_not_matter_and_their_group_does():
    made, wanted = clouds(8, 2)
    kernel = KERNELS["laplace"]
    before = loss_of(made, wanted, particles=4, kernel=kernel)
    inside, across = torch.tensor([3, 1, 0, 2, 4, 5, 6, 7]), torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])
    torch.testing.assert_close(loss_of(made[inside], wanted, particles=4, kernel=kernel), before)
    assert float((loss_of(made[across], wanted, particles=4, kernel=kernel) - before).abs().max()) > 1e-3


@each_kernel
@each_path
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_particle_is_consistency_training_with_a_bounded_distance(kernel, path, dim):
    """``M = 1`` and ``s`` the data end, on the path of one pair: ``2 (1 - k)`` of two consistency functions' outputs.

    Values and parameter gradients, for any network; the distance grows with ``|p - q|`` and never beyond 2.
    """
    data, noise, t, m, _ = problem(path, 6, 1, mixture=GaussianMixture.isotropic([1.0], [[0.0] * dim], 1.0))
    s = torch.full_like(t, path.data_time)
    network = Net(2, dim)
    scalings = partial(flow.simple_edm_scalings, path=path, sigma_data=1.0)
    flow_map = flow.preconditioned_flow_map(network, scalings=scalings)
    consistency = flow.consistency_from_flow_map(flow_map, end=path.data_time)
    z, z_m = path(data, noise, t).z, path(data, noise, m).z
    p, q = regression(consistency(z, t), consistency(z_m, m))
    distance = torch.stack([2 * (1 - kernel(a[None], b[None]).exp().squeeze()) for a, b in zip(p, q, strict=True)])
    loss = moment_matching_loss(flow_map, flow_map, z, z_m, t, m, s, particles=1, kernel=kernel)
    torch.testing.assert_close(loss, distance)
    assert float(loss.detach().max()) <= 2
    wanted, found = (torch.autograd.grad(value.sum(), list(network.parameters())) for value in (distance, loss))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("kernel", "distance", "factor", "rate"),
    [("laplace", l2, lambda h: h / 2, 1), ("gaussian", squared_l2, lambda h: h**2, 2)],
    ids=["laplace", "gaussian"],
)
def test_one_particle_and_a_long_length_is_a_known_distance(kernel, distance, factor, rate):
    """``h / 2`` times the loss tends to ``|p - q|`` as ``1 / h`` (Laplace), ``h^2`` times it squared as ``h^-2``."""
    made, wanted = clouds(6, 3)
    gaps = []
    for h in (32.0, 64.0, 128.0):
        length = torch.full((6,), h, dtype=F64)
        loss = loss_of(made, wanted, particles=1, kernel=KERNELS[kernel], length=length)
        gaps.append(float((factor(h) * loss - distance(made, wanted)).abs().max()))
    for coarse, fine in itertools.pairwise(gaps):
        assert math.log2(coarse / fine) == pytest.approx(rate, abs=0.1)


@each_count
def test_a_long_gaussian_length_sees_means_alone(particles):
    """``h^2`` times the loss tends to the squared distance of the groups' means: first moments, the paper's view of CT.

    A short one separates more: particles at the right mean in one place differ from particles that are spread.
    """
    made, wanted = clouds(2 * particles, 3)
    means = [x.unflatten(0, (2, particles)).mean(1) for x in (made, wanted)]
    length = torch.full((2 * particles,), 1e4, dtype=F64)
    kernel = KERNELS["gaussian"]
    loss = loss_of(made, wanted, particles=particles, kernel=kernel, length=length)
    torch.testing.assert_close(1e8 * loss, squared_l2(*means), rtol=1e-5, atol=1e-6)
    if particles > 1:
        together = means[1].repeat_interleave(particles, 0)
        assert float(1e8 * loss_of(together, wanted, particles=particles, kernel=kernel, length=length).max()) < 1e-5
        assert float(loss_of(together, wanted, particles=particles, kernel=kernel).min()) > 5e-3


@each_path
@each_kernel
@pytest.mark.parametrize("particles", [1, 4])
def test_no_gradient_at_the_exact_map_when_the_middle_lies_on_the_trajectory(path, kernel, particles):
    """Class (i), given the oracle's flow map as solver: both sets are the same points, in every group."""
    data, noise, t, m, s = problem(path, 8, particles)
    z, exact = path(data, noise, t).z, partial(TWO_MODES.flow_map, path=path, steps=16)
    z_m = exact(z, t, m)
    length = 0.5 + torch.arange(8 // particles, dtype=F64).repeat_interleave(particles)

    def slope(shift: Tensor) -> tuple[Tensor, Tensor]:
        shifts = shift.expand_as(z).clone().requires_grad_()
        loss = moment_matching_loss(
            lambda *a: exact(*a) + shifts, exact, z, z_m, t, m, s, particles=particles, kernel=kernel, length=length
        )
        return loss.detach(), torch.autograd.grad(loss.sum(), shifts)[0]

    loss, gradient = slope(torch.zeros(2, dtype=F64))
    assert float(loss.abs().max()) < 1e-6
    if kernel is KERNELS["laplace"]:  # whose cusp turns rounding into a direction; where points coincide it has none
        gradient = slope_where_equal(exact(z, t, s), particles, kernel, length)
    assert float(gradient.abs().max()) < 1e-6
    shift = torch.tensor([0.05, -0.02], dtype=F64)
    loss, gradient = slope(shift)
    assert float(loss.min()) > 0
    along = (gradient * shift).sum(1).unflatten(0, (-1, particles)).sum(1)
    assert bool((along > 0).all())


def slope_where_equal(y: Tensor, particles: int, kernel, length: Tensor) -> Tensor:
    made = y.clone().requires_grad_()
    return torch.autograd.grad(loss_of(made, y, particles=particles, kernel=kernel, length=length).sum(), made)[0]


@pytest.mark.parametrize("mixture", [ONE_DIMENSION, TWO_MODES], ids=["1", "2"])
@pytest.mark.parametrize("name", ["linear", "trigonometric"])
def test_pairs_leave_one_particle_s_bias_over_their_number(mixture, name):
    """Class (iii), and its rate: the middle on the *pair's* path; ``M`` times the expected loss is the same for all M.

    So is the gradient in a scale of the exact map. Over 2^14 particles in groups of 1, 2, 4, 8, within five standard
    errors; for one particle both are far from zero (it is consistency training), and the part that comes from different
    particles, all that is left in the population, is zero within its error.
    """
    path, count = PATHS[name], 2**14
    data = mixture.sample(count, generator=torch.Generator().manual_seed(0))
    noise = strategies.normal(1, *data.shape)
    t, m, s = (torch.full((count,), time, dtype=F64) for time in (0.8, 0.5, 0.1))
    exact = partial(mixture.flow_map, path=path, steps=6)
    made, wanted = exact(path(data, noise, t).z, t, s), exact(path(data, noise, m).z, m, s)

    def expectations(particles: int, kernel) -> tuple[Tensor, Tensor]:
        """Mean and standard error of ``M loss`` and of ``M`` times its slope in a common scale, stacked."""
        scale = torch.ones(count, 1, dtype=F64, requires_grad=True)
        loss = loss_of(made * scale, wanted, particles=particles, kernel=kernel)
        (slope,) = torch.autograd.grad(loss.sum(), scale)
        both = particles * torch.stack([loss.detach(), slope.reshape(-1, particles).sum(1)], 1)
        return both.mean(0), both.std(0) / math.sqrt(len(both))

    kernel = KERNELS["gaussian"]
    single, error = expectations(1, kernel)
    assert bool((single > 10 * error).all())  # the loss, and its slope: the map is drawn together
    for particles in (2, 4, 8):
        mean, spread = expectations(particles, kernel)
        assert bool(((mean - single).abs() < 5 * (error.square() + spread.square()).sqrt()).all())
        # M (loss of M) - loss of 1 is (M - 1) times the part of different particles: the population's discrepancy.
        assert float((mean - single).abs().max()) / (particles - 1) < 0.02


def test_a_wrong_map_is_seen_in_the_population():
    """Not zero in expectation: for large groups it tends to the discrepancy of the two distributions."""
    path, count = LINE, 1024
    data = TWO_MODES.sample(count, generator=torch.Generator().manual_seed(0))
    noise = strategies.normal(1, *data.shape)
    t, m, s = (torch.full((count,), time, dtype=F64) for time in (0.8, 0.5, 0.1))
    exact = partial(TWO_MODES.flow_map, path=path, steps=6)
    made, wanted = exact(path(data, noise, t).z, t, s), exact(path(data, noise, m).z, m, s)
    losses = [
        float(loss_of(made * factor, wanted, particles=count, kernel=KERNELS["laplace"])) for factor in (1.0, 0.7)
    ]
    assert losses[0] < 2e-3
    assert losses[1] > 10 * losses[0]


def network_problem(particles: int = 2):
    data, noise, t, m, s = problem(LINE, 6, particles, mixture=GaussianMixture.isotropic([1.0], [[0.0] * 3], 1.0))
    scalings = partial(flow.simple_edm_scalings, path=LINE, sigma_data=1.0)
    return Net(2), scalings, (LINE(data, noise, t).z, LINE(data, noise, m).z, t, m, s)


def loss_in(module, scalings, particles=2):
    def loss(parameters, *arguments):
        raw = lambda *inputs: functional_call(module, parameters, inputs)  # noqa: E731
        flow_map = flow.preconditioned_flow_map(raw, scalings=scalings)
        return moment_matching_loss(flow_map, flow_map, *arguments, particles=particles, kernel=KERNELS["laplace"])

    return loss


def test_groups_are_independent_under_every_transform():
    """A batch of groups, ``vmap`` over groups, and ordinary backward agree; a bare ``vmap`` over particles raises."""
    module, scalings, arguments = network_problem()
    loss, parameters = loss_in(module, scalings), {k: p.detach() for k, p in module.named_parameters()}
    groups = [a.unflatten(0, (3, 2)) for a in arguments]
    torch.testing.assert_close(
        vmap(loss, in_dims=(None, 0, 0, 0, 0, 0))(parameters, *groups)[:, 0], loss(parameters, *arguments)
    )
    single = vmap(grad(lambda *a: loss(*a).sum()), in_dims=(None, 0, 0, 0, 0, 0))(parameters, *groups)
    batched = grad(lambda *a: loss(*a).sum())(parameters, *arguments)
    loss(dict(module.named_parameters()), *arguments).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(single[name].sum(0), batched[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parameter.grad, batched[name], rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError):
        vmap(loss, in_dims=(None, 0, 0, 0, 0, 0))(parameters, *arguments)


def test_it_compiles_without_a_break():
    module, scalings, arguments = network_problem()
    weight = partial(sigmoid_elbo, path=LINE, shift=5.0)

    def step(*arguments):
        flow_map = flow.preconditioned_flow_map(module, scalings=scalings)
        length = 3 * scalings(arguments[2], arguments[4]).c_out.abs()
        loss = moment_matching_loss(
            flow_map, flow_map, *arguments, particles=2, kernel=KERNELS["laplace"], length=length
        )
        return (loss * weight(arguments[2][::2])).mean()

    eager = torch.autograd.grad(step(*arguments), list(module.parameters()))
    fast = torch.autograd.grad(compiled(step)(*arguments), list(module.parameters()))
    torch.testing.assert_close(fast, eager, rtol=1e-7, atol=1e-9)


def test_the_second_set_is_frozen():
    made, wanted = (x.requires_grad_() for x in clouds(4, 2))
    loss_of(made, wanted, particles=2, kernel=KERNELS["gaussian"]).sum().backward()
    assert made.grad is not None
    assert wanted.grad is None
    tangent = torch.func.jvp(
        lambda q: loss_of(made.detach(), q, particles=2, kernel=KERNELS["gaussian"]),
        (wanted.detach(),),
        (torch.ones_like(wanted),),
    )[1]
    assert float(tangent.abs().max()) == 0


def test_half_precision_networks_give_float32():
    z, t = strategies.normal(0, 4, 2).float(), torch.ones(4)
    half = lambda z, t, s: (2 * z).bfloat16()  # noqa: E731
    loss = moment_matching_loss(half, half, z, z + 1, t, t, t, particles=2, kernel=KERNELS["laplace"])
    assert loss.dtype == torch.float32
    assert clouds(4, 2)[0].dtype == loss_of(*clouds(4, 2), particles=2, kernel=KERNELS["laplace"]).dtype


@pytest.mark.parametrize("particles", [0, -1, 3])
def test_groups_that_do_not_fill_the_batch_are_refused(particles):
    with pytest.raises(ConfigError, match="groups of"):
        loss_of(*clouds(4, 2), particles=particles, kernel=KERNELS["laplace"])


def test_wrong_shapes_are_refused():
    made, _ = clouds(4, 2)
    with pytest.raises(ArgumentError):
        loss_of(made, made[:, :1], particles=2, kernel=KERNELS["laplace"])
    with pytest.raises(ArgumentError):
        loss_of(made, made, particles=2, kernel=KERNELS["laplace"], length=torch.ones(2, dtype=F64))


def test_the_whole_step_trains():
    """The paper's parts together, on two modes: a hundred steps halve the discrepancy of samples in one step."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2)).double()
    scalings = partial(flow.simple_edm_scalings, path=LINE, sigma_data=1.0)
    raw = lambda z, t, s: module(torch.cat([z, t[:, None], s[:, None]], 1))  # noqa: E731
    flow_map = flow.preconditioned_flow_map(raw, scalings=scalings)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    count, particles = 256, 16
    real, noise = TWO_MODES.sample(1000, generator=generator), strategies.normal(5, 1000, 2)
    one, zero = torch.ones(1000, dtype=F64), torch.zeros(1000, dtype=F64)

    def score() -> float:
        with torch.no_grad():
            made = flow_map(noise, one, zero)
        return float(mmd(made, real, kernel=partial(laplace, temperature=1.0)))

    before = score()
    for _ in range(100):
        data = TWO_MODES.sample(count, generator=generator)
        draws = torch.randn(count, 2, dtype=F64, generator=generator)
        u = torch.rand(2, count // particles, dtype=F64, generator=generator)
        t = 0.01 + 0.98 * u[0]
        t, s = (time.repeat_interleave(particles) for time in (t, u[1] * t))
        m = flow.lower_noise_ratio(t, s, path=LINE, decrement=0.5)
        loss = moment_matching_loss(
            flow_map, flow_map, LINE(data, draws, t).z, LINE(data, draws, m).z, t, m, s,
            particles=particles, kernel=KERNELS["laplace"], length=2 * scalings(t, s).c_out.abs() + 1e-3,
        )  # fmt: skip
        optimizer.zero_grad()
        (loss * sigmoid_elbo(t[::particles], path=LINE, shift=5.0)).mean().backward()
        optimizer.step()
    assert score() < before / 2
