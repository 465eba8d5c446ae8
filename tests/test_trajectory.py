"""Continuous-time consistency, consistency trajectories, and the pieces of which they are composed."""

import math
from functools import partial
from itertools import pairwise

import attrs
import pytest
import torch
from jaxtyping import TypeCheckError

import onestep_core as one
from onestep_adapters.networks import frozen as frozen_network
from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.regression import regression
from onestep_core.shapes import expand_like, per_sample, per_sample_sum
from tests.cases import FORMS, TWO_MODES, trigflow_truth
from tests.toy import Net, batch

F64 = torch.float64
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

MIXTURES = {
    1: GaussianMixture.isotropic([0.4, 0.6], [[-1.0], [1.0]], 0.5),
    2: TWO_MODES,
    3: GaussianMixture(
        [0.5, 0.5], [[-0.7, 0.0, 0.4], [0.7, 0.3, 0.0]], torch.eye(3, dtype=F64).mul(0.4).expand(2, 3, 3)
    ),
}
each_dimension = pytest.mark.parametrize("dim", MIXTURES)
PATHS = {
    "linear": flow.Linear(),
    "trigonometric": flow.Trigonometric(0.7),
    "cosine": flow.VariancePreserving(strategies.cosine_log_snr),
    "exploding": flow.VarianceExploding(0.002, 10.0),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def problem(path, mixture, count=4, seed=0):
    """Pairs on a path with three times; every jump is towards the data, the middle time inside it."""
    data = mixture.sample(count, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    first, second = (strategies.spread_times(path, count, seed + i, margin=0.1) for i in (2, 3))
    later = (first - path.data_time).abs() > (second - path.data_time).abs()
    t, s = torch.where(later, first, second), torch.where(later, second, first)
    return strategies.at(path, data, noise, t, 0.4 * t + 0.6 * s, s)


def shift_gradient(loss, z):
    """The gradient of every sample's loss in a shift of its network."""
    shift = torch.zeros_like(z).requires_grad_()
    return torch.autograd.grad(loss(shift).sum(), shift)[0]


# The derivative along a curve.


def curved(t):
    return torch.stack([t.sin(), t.square()], 1), t


def known(z, t):
    return z.prod(1, keepdim=True) * expand_like(t.exp(), z)


def known_slope(t):
    """Of ``sin(t) t^2 e^t``."""
    return (t.exp() * (t.square() * t.cos() + (2 * t + t.square()) * t.sin()))[:, None]


def test_along_is_of_second_order_on_the_curve_with_a_step_for_each_sample():
    t = torch.tensor([0.3, 0.8, 1.4], dtype=F64)
    rate = torch.tensor([1.0, 0.5, -2.0], dtype=F64)
    errors = []
    for h in (1e-2, 5e-3):
        step = h * torch.tensor([1.0, 2.0, 0.5], dtype=F64)
        value, slope = flow.derivative_along(curved, step)(known, curved(t), (torch.zeros(3, 2, dtype=F64), rate))
        close(value, known(*curved(t)))
        errors.append((slope - rate[:, None] * known_slope(t)).abs().flatten())
    ratio = errors[0] / errors[1]
    assert bool(((ratio > 3.95) & (ratio < 4.05)).all()), ratio


def test_along_a_straight_line_is_the_central_difference():
    net, (_, z, v, t, s) = Net(2), batch()
    line = flow.derivative_along(lambda tau: (z + expand_like(tau - t, v) * v, tau, s), 1e-4)
    primals, tangents = (z, t, s), (v, torch.ones_like(t), torch.zeros_like(s))
    torch.testing.assert_close(
        line(net, primals, tangents), flow.two_pass(net, primals, tangents), rtol=1e-7, atol=1e-8
    )
    expected = flow.central_difference(net, primals, tangents, step=1e-4)
    torch.testing.assert_close(line(net, primals, tangents), expected, rtol=1e-9, atol=1e-9)
    end = flow.derivative_along(lambda tau: (z, t, tau), 1e-4, argument=2)
    lagrangian = (torch.zeros_like(z), torch.zeros_like(t), torch.ones_like(s))
    expected = flow.two_pass(net, primals, lagrangian)
    torch.testing.assert_close(end(net, primals, lagrangian), expected, rtol=1e-7, atol=1e-8)


def test_along_differentiates_the_curve_whatever_velocity_it_is_given():
    """Its condition: the tangent of the state is that of the curve. Otherwise it is another derivative."""
    net, (_, z, v, t, _) = Net(1), batch()
    line = flow.derivative_along(lambda tau: (z + expand_like(tau - t, v) * v, tau), 1e-4)
    one_ = torch.ones_like(t)
    assert torch.equal(line(net, (z, t), (v, one_))[1], line(net, (z, t), (2 * v, one_))[1])
    wrong = line(net, (z, t), (2 * v, one_))[1] - flow.two_pass(net, (z, t), (2 * v, one_))[1]
    assert float(wrong.abs().max()) > 0.1


def test_along_takes_and_returns_trees_without_graph():
    weight = torch.tensor(2.0, dtype=F64, requires_grad=True)

    def function(tree, t):
        return {"square": weight * tree["z"].square(), "kept": "text"}, t[:, None, None] * tree["z"][:, :, None]

    t = torch.tensor([0.5, 1.0], dtype=F64)
    curve = flow.derivative_along(lambda t: ({"z": torch.stack([t, 2 * t], 1)}, t), 1e-3)
    value, slope = curve(
        function, ({"z": torch.stack([t, 2 * t], 1)}, t), ({"z": torch.zeros(2, 2)}, torch.ones_like(t))
    )
    assert value[0]["square"].requires_grad
    assert not slope[0]["square"].requires_grad
    close(slope[0]["square"], 2 * torch.stack([2 * t, 8 * t], 1))
    close(slope[1], torch.stack([2 * t, 4 * t], 1)[:, :, None])


def test_along_keeps_digits_in_float32():
    """The width of a step is taken as rounded: by ``2 h`` a straight line would lose three digits."""
    t = torch.linspace(0.9, 1.5, 64)
    _, slope = flow.derivative_along(lambda t: (t[:, None], t), 1e-5)(
        lambda z, t: z, (t[:, None], t), (0 * t[:, None], t.new_ones(64))
    )
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-6, atol=0)


def test_along_refuses_steps_that_cannot_work():
    with pytest.raises(ConfigError, match="positive"):
        flow.derivative_along(curved, 0.0)
    for numbers in ({"fraction": 0.0}, {"smallest": -1.0}):
        with pytest.raises(ConfigError, match="positive"):
            flow.relative_step(torch.ones(1), **numbers)


# TrigFlow.


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_trigflow_of_the_oracle_s_denoiser_is_its_velocity(sigma_data):
    """EDM's denoiser through ``F`` is the trigonometric path's velocity, its consistency function the denoiser."""
    path, exploding = flow.Trigonometric(sigma_data), flow.VarianceExploding(0.0, 80.0)
    p = problem(path, TWO_MODES)
    network = flow.trigflow_from_denoiser(partial(TWO_MODES.denoiser, path=exploding), sigma_data=sigma_data)
    close(flow.trigflow_velocity(network, sigma_data=sigma_data)(p.z, p.t), TWO_MODES.velocity(p.z, p.t, path=path))
    close(flow.trigflow(network, sigma_data=sigma_data)(p.z, p.t), TWO_MODES.denoiser(p.z, p.t, path=path))
    sigma = strategies.spread_times(exploding, 5, 0)
    t = flow.trigflow_time(sigma, sigma_data=sigma_data)
    close(one.snr(t, path=path), one.snr(sigma, path=exploding))
    close(t.tan() * sigma_data, sigma)


def test_trigflow_at_its_ends():
    net, (_, z, _, _, _) = Net(1), batch()
    f = flow.trigflow(net, sigma_data=0.5)
    zero, noise_end = torch.zeros(5, dtype=F64), torch.full((5,), math.pi / 2, dtype=F64)
    assert torch.equal(f(z, zero), z)
    close(f(z, noise_end), -0.5 * net(z, noise_end))


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_trigflow_tangent_is_the_derivative_of_the_consistency_function(sigma_data, channels):
    """``g = cos(t) df/dt`` along ``(v, 1)``, for any network and any velocity."""
    path, net = flow.Trigonometric(sigma_data), Net(1, channels)
    generator = torch.Generator().manual_seed(3)
    data, noise, v = torch.randn(3, 5, channels, generator=generator, dtype=F64)
    t = torch.linspace(0.1, 1.5, 5, dtype=F64)
    z, _ = path(data, noise, t)
    f = flow.trigflow(net, sigma_data=sigma_data)
    _, slope = torch.func.jvp(f, (z, t), (v, torch.ones_like(t)))
    pair = one.continuous_consistency_regression(net, z, v, t, sigma_data=sigma_data, normalize=None)
    close(pair.target - pair.prediction, expand_like(t.cos(), z) * slope)


def test_without_warm_up_continuous_consistency_is_flow_matching():
    """At ``warmup = 0`` the gradient is flow matching's of ``sigma_data F`` with the weight ``cos^2 / sigma_data``."""
    net, t = Net(1), torch.linspace(0.1, 1.4, 5, dtype=F64)
    data, _, _, _, _ = batch()
    path = flow.Trigonometric(0.5)
    z, v = path(data, data.flip(0), t)
    sgd = partial(torch.autograd.grad, inputs=list(net.parameters()))
    pair = one.continuous_consistency_regression(net, z, v, t, sigma_data=0.5, warmup=0.0, normalize=None)
    velocity = flow.trigflow_velocity(net, sigma_data=0.5)
    plain = one.squared_l2(*one.flow_matching_regression(velocity, z, v, t))
    close(sgd(one.squared_l2(*pair).sum()), sgd((plain * t.cos().square() / 0.5).sum()))
    each = one.continuous_consistency_regression(net, z, v, t, sigma_data=0.5, warmup=0 * t, normalize=None)
    assert torch.equal(each.target, pair.target)


def test_trigflow_refuses_numbers_that_cannot_work():
    z, t = torch.ones(1, 1), torch.ones(1)
    for call in (
        lambda: flow.trigflow(lambda z, t: z, sigma_data=0.0),
        lambda: flow.trigflow_velocity(lambda z, t: z, sigma_data=-1.0),
        lambda: flow.trigflow_from_denoiser(lambda z, t: z, sigma_data=0.0),
        lambda: flow.trigflow_time(t, sigma_data=0.0),
        lambda: one.continuous_consistency_regression(lambda z, t: z, z, z, t, sigma_data=0.0),
    ):
        with pytest.raises(ConfigError, match="sigma_data"):
            call()
    for numbers in ((-1, 10), (1, 0)):
        with pytest.raises(ConfigError, match="warm-up"):
            flow.tangent_warmup(numbers[0], iterations=numbers[1])
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=f"warmup = {share}: expected a share from 0 to 1"):
            one.continuous_consistency_regression(lambda z, t: z, z, z, t, sigma_data=0.5, warmup=share)


# Continuous-time consistency at the oracle.


def scm_loss(p, mixture, sigma_data, **options):
    exact = trigflow_truth(mixture, flow.Trigonometric(sigma_data))
    options = {"normalize": None} | options

    def loss(shift):
        def network(z, t):
            return exact(z, t) + shift

        return one.squared_l2(
            *one.continuous_consistency_regression(network, p.z, p.v, p.t, sigma_data=sigma_data, **options)
        )

    return loss


@pytest.mark.parametrize("dim, sigma_data", [(1, 0.5), (2, 1.0), (3, 0.7)])
def test_distillation_has_no_gradient_in_any_sample_at_the_exact_map(dim, sigma_data):
    """Class (i): with the marginal velocity, per sample, normalised or not, once the warm-up is over."""
    path, mixture = flow.Trigonometric(sigma_data), MIXTURES[dim]
    p = problem(path, mixture)
    p = p._replace(v=mixture.velocity(p.z, p.t, path=path))
    for normalize in (None, one.normalize_tangent, partial(one.normalize_tangent, per_dimension=True)):
        assert float(shift_gradient(scm_loss(p, mixture, sigma_data, normalize=normalize), p.z).abs().max()) < 1e-6
    perturbed = 0.1 * strategies.normal(9, *p.z.shape)
    loss = scm_loss(p, mixture, sigma_data)
    slope = shift_gradient(lambda shift: loss(shift + perturbed), p.z)
    assert bool((per_sample_sum(slope * perturbed) > 0).all())


def test_a_warm_up_moves_the_fixed_point():
    """At ``r < 1`` the exact map keeps ``1 - r`` of its distance to the velocity: a tangent, and a gradient."""
    path = flow.Trigonometric(0.5)
    p = problem(path, TWO_MODES)
    p = p._replace(v=TWO_MODES.velocity(p.z, p.t, path=path))
    start, half = (shift_gradient(scm_loss(p, TWO_MODES, 0.5, warmup=r), p.z) for r in (0.0, 0.5))
    assert float(start.abs().max()) > 1e-2
    torch.testing.assert_close(half, start / 2, rtol=1e-6, atol=1e-8)


@each_dimension
def test_training_is_unbiased_until_its_tangents_are_normalised(dim):
    """Class (ii): with the pair's velocity, zero in expectation over the posterior; normalised tangents break it."""
    path, mixture = flow.Trigonometric(0.5), MIXTURES[dim]
    p = problem(path, mixture, 3)
    rule = mixture.quadrature(p.z, p.t, path=path, nodes=4)
    count = rule.weights.shape[1]
    t = p.t.repeat_interleave(count)
    spread = strategies.at(path, rule.data.flatten(0, 1), rule.noise.flatten(0, 1), t, t, t)

    def expected(**options):
        slopes = shift_gradient(scm_loss(spread, mixture, 0.5, **options), spread.z).unflatten(0, (3, count))
        return (rule.weights[:, :, None] * slopes).sum(1)

    assert float(expected().abs().max()) < 1e-6
    assert float(shift_gradient(scm_loss(spread, mixture, 0.5), spread.z).abs().max()) > 0.1
    assert float(expected(normalize=one.normalize_tangent).abs().max()) > 1e-3


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_consistency_training_tends_to_continuous_consistency(sigma_data, channels):
    """CT with the weight ``cos t / (sigma_d sin t dt)``: its parameter gradient tends to sCM's at rate ``O(dt)``.

    Conditions: squared distance summed over a sample, the same pair at both times, the same network on both sides,
    no normalisation, warm-up over.
    """
    path, net = flow.Trigonometric(sigma_data), Net(1, channels)
    data, noise = torch.randn(2, 6, channels, generator=torch.Generator().manual_seed(5), dtype=F64)
    t = torch.linspace(0.2, 1.4, 6, dtype=F64)
    z, v = path(data, noise, t)
    f = flow.trigflow(net, sigma_data=sigma_data)

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(net.parameters()))])

    pair = one.continuous_consistency_regression(net, z, v, t, sigma_data=sigma_data, normalize=None)
    limit = gradient(one.squared_l2(*pair))
    errors = []
    for dt in (1e-2, 5e-3, 2.5e-3):
        m = t - dt
        raw = one.squared_l2(*regression(f(z, t), f(path(data, noise, m).z, m)))
        errors.append(float((gradient(raw * t.cos() / (sigma_data * t.sin() * dt)) - limit).norm() / limit.norm()))
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert 1.9 < coarse / fine < 2.1, errors


# Tangents and weights.


def test_normalised_tangents_keep_their_direction_and_are_bounded():
    g = (
        torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
        * torch.logspace(-4, 4, 6)[:, None, None]
    )
    norm = per_sample_sum(g.square()).sqrt()
    for constant in (0.0, 0.1, 2.0):
        plain, mean = (one.normalize_tangent(g, constant=constant, per_dimension=flag) for flag in (False, True))
        length = per_sample_sum(plain.square()).sqrt()
        close(length, norm / (norm + constant))
        close(one.cosine(plain, g), torch.zeros(6, dtype=F64))
        close(mean, math.sqrt(8) * one.normalize_tangent(g, constant=math.sqrt(8) * constant))
    assert torch.equal(one.normalize_tangent(0 * g, constant=0.0), 0 * g)
    assert not one.normalize_tangent(g.requires_grad_()).requires_grad
    with pytest.raises(ConfigError, match="constant"):
        one.normalize_tangent(g, constant=-0.1)


def test_a_learned_log_variance_finds_the_logarithm_of_the_mean_loss():
    losses = torch.tensor([0.1, 0.5, 3.0], dtype=F64)
    u = losses.mean().log().expand(3).clone().requires_grad_()
    (slope,) = torch.autograd.grad(one.uncertainty(losses, u).sum(), u)
    assert abs(float(slope.sum())) < 1e-12
    raw = losses.clone().requires_grad_()
    (weight,) = torch.autograd.grad(one.uncertainty(raw, u.detach()).sum(), raw)
    close(weight, torch.full_like(weight, 1 / float(losses.mean())))
    with pytest.raises(TypeCheckError):
        one.uncertainty(losses, u[:2])


def test_weights_of_trajectories():
    t, s = torch.tensor([4.0, 9.0], requires_grad=True), torch.tensor([2.0, 3.0])
    assert one.square_root_weight(t).tolist() == [2.0, 3.0]
    torch.testing.assert_close(one.inverse_jump(t, s, power=1.0), torch.tensor([2.0, 1.5]))
    assert not one.inverse_jump(t, s, power=1.0).requires_grad


# Forms of a flow map.


def ve_problem(mixture=TWO_MODES):
    return problem(flow.VarianceExploding(0.002, 10.0), mixture, 6)


def toy(z, t, s):
    return torch.tanh(z * expand_like(1 / (1 + t), z) + expand_like(s.sqrt(), z))


@each_form
def test_a_map_of_any_form_stays_where_it_is(form):
    p = ve_problem()
    flow_map = flow.flow_map_from_network(toy, form=form)
    close(flow_map(p.z, p.t, p.t), p.z)
    away = (flow_map(p.z, p.t, p.s) - p.z).abs().amax(1)
    assert bool((away > 1e-3).all())


@each_form
def test_the_limit_of_a_form_is_the_denoiser_of_its_velocity(form):
    """The closed factors against the map's own derivative in ``s`` at ``s = t``, with gradients in the network."""
    p = ve_problem()
    scale = torch.tensor(1.3, dtype=F64, requires_grad=True)

    def network(z, t, s):
        return scale * toy(z, t, s)

    velocity = flow.velocity_from_flow_map(flow.flow_map_from_network(network, form=form))
    by_slope = flow.denoiser_from_velocity(velocity, path=flow.VarianceExploding())(p.z, p.t)
    closed = flow.denoiser_from_network(network, form=form)(p.z, p.t)
    close(closed, by_slope)
    slopes = [torch.autograd.grad(value.square().sum(), scale)[0] for value in (closed, by_slope)]
    close(slopes[0], slopes[1])
    assert float(slopes[0].abs()) > 1e-3


def test_the_limit_keeps_its_digits_in_float32():
    """At large noise levels the state cancels; a difference ``z - t v`` would keep the rounding of ``z``."""
    z, t = 80 * strategies.normal(0, 64, 3), torch.full((64,), 80.0, dtype=F64)
    for form in FORMS.values():
        if isinstance(form, flow.SkipForm):
            continue  # keeps the state by construction
        denoiser = flow.denoiser_from_network(lambda z, t, s: torch.tanh(z), form=form)
        error = (denoiser(z.float(), t.float()).double() - denoiser(z, t)).abs().max()
        assert float(error) < 3e-7


def test_euler_s_form_is_an_average_velocity_and_a_ddim_step():
    """For every network, and at ``s = t`` too; DDIM with the target as a condition of the denoiser."""
    p, path = ve_problem(), flow.VarianceExploding()
    flow_map = flow.flow_map_from_network(toy, form=flow.EulerForm())
    average = flow.average_velocity_from_network(toy)
    expected = flow_map(p.z, p.t, p.s)
    close(flow.jump(average, p.z, p.t, p.s), expected)
    close(flow.average_velocity_from_flow_map(flow_map)(p.z, p.t, p.s), average(p.z, p.t, p.s))
    close(flow.ddim(lambda z, t: toy(z, t, p.s), p.z, p.t, p.s, path=path), expected)
    velocity = flow.velocity_from_denoiser(flow.denoiser_from_network(toy, form=flow.EulerForm()), path=path)
    close(flow.instantaneous(average)(p.z, p.t), velocity(p.z, p.t))


def test_the_skip_form_at_the_data_end_is_the_consistency_model():
    p, net = ve_problem(), Net(1, 2)
    scalings = partial(flow.input_scalings, sigma_data=0.5)
    network = flow.preconditioned(lambda z, t, s: net(z, t), scalings)
    flow_map = flow.flow_map_from_network(network, form=flow.SkipForm(0.5))
    expected = flow.consistency(net, sigma_data=0.5, sigma_min=0.002)(p.z, p.t)
    close(flow.consistency_from_flow_map(flow_map, end=0.002)(p.z, p.t), expected)


def test_preconditioned_generalises_the_two_time_wrappers():
    p, net = ve_problem(), Net(1, 2)
    numbers = {"sigma_data": 0.7, "sigma_min": 0.01}
    general = flow.preconditioned(net, partial(flow.edm_scalings, sigma_data=0.7))
    assert torch.equal(general(p.z, p.t), flow.edm(net, sigma_data=0.7)(p.z, p.t))
    general = flow.preconditioned(net, partial(flow.consistency_scalings, **numbers))
    assert torch.equal(general(p.z, p.t), flow.consistency(net, **numbers)(p.z, p.t))
    seen = flow.preconditioned(lambda z, t, s: z + expand_like(s, z), partial(flow.input_scalings, sigma_data=0.7))
    close(seen(p.z, p.t, p.s), p.z / expand_like((p.t.square() + 0.49).sqrt(), p.z) + expand_like(p.s, p.z))


@each_path
def test_the_velocity_of_the_exact_flow_map(path):
    p = problem(path, TWO_MODES)
    velocity = flow.velocity_from_flow_map(partial(TWO_MODES.flow_map, path=path, steps=2))
    torch.testing.assert_close(velocity(p.z, p.t), TWO_MODES.velocity(p.z, p.t, path=path), rtol=1e-8, atol=1e-8)


def test_the_exact_map_in_euler_s_form_implies_the_exact_denoiser():
    p, path = ve_problem(), flow.VarianceExploding()

    def network(z, t, s):
        return z - expand_like(t, z) * TWO_MODES.average_velocity(z, t, s, path=path)

    close(
        flow.flow_map_from_network(network, form=flow.EulerForm())(p.z, p.t, p.s),
        TWO_MODES.flow_map(p.z, p.t, p.s, path=path),
    )
    close(flow.denoiser_from_network(network, form=flow.EulerForm())(p.z, p.t), TWO_MODES.denoiser(p.z, p.t, path=path))


@each_form
def test_maps_of_a_form_run_per_sample_and_compile(form):
    p = ve_problem()
    flow_map, denoiser = flow.flow_map_from_network(toy, form=form), flow.denoiser_from_network(toy, form=form)

    def both(z, t, s):
        return torch.cat([flow_map(z, t, s), denoiser(z, t)], 1)

    expected = both(p.z, p.t, p.s)
    close(per_sample(both)(p.z, p.t, p.s)[:, 0], expected)
    torch._dynamo.reset()
    close(torch.compile(both, fullgraph=True, backend="aot_eager")(p.z, p.t, p.s), expected)


def test_forms_refuse_numbers_that_cannot_work():
    for make in (flow.VarianceForm, flow.EulerVarianceForm):
        with pytest.raises(ConfigError, match="sigma_data"):
            make(sigma_data=0.0)
        with pytest.raises(ConfigError, match="sigma_min"):
            make(sigma_min=-1.0)
    with pytest.raises(ConfigError, match="sigma_data"):
        flow.SkipForm(sigma_data=float("nan"))


# Consistency trajectories.


def ctm_gradient(p, online, inner, outer, z_m, *, m=None, end, direction=None):
    """Gradient in the size of a perturbation of the online map, per sample; a constant one without ``direction``."""

    def loss(shift):
        def moved(z, t, s):
            return online(z, t, s) + shift * (1.0 if direction is None else direction(t, s))

        pair = one.consistency_trajectory_regression(
            moved, inner, outer, p.z, z_m, p.t, p.m if m is None else m, p.s, end=end
        )
        return one.squared_l2(*pair)

    return shift_gradient(loss, p.z)


@each_path
@each_dimension
def test_trajectories_have_no_gradient_in_any_sample_at_the_exact_map(path, dim):
    """Class (i): the oracle's flow map in all three roles and as the solver, for local, soft and global ``m``."""
    mixture = MIXTURES[dim]
    p = problem(path, mixture, 3)
    exact = partial(mixture.flow_map, path=path, steps=16)
    for share in (0.05, 0.5, 1.0):
        m = p.t + share * (p.s - p.t)
        slope = ctm_gradient(p, exact, exact, exact, exact(p.z, p.t, m), m=m, end=path.data_time)
        assert float(slope.abs().max()) < 1e-6


@each_path
def test_a_perturbation_that_vanishes_in_the_limit_points_back(path):
    """Self-consistency alone: ``X + (s - t) d`` in the online *and* the inner map. A constant shift it cannot see."""
    p = problem(path, TWO_MODES, 3)
    exact = partial(TWO_MODES.flow_map, path=path, steps=8)
    size = 0.1 * strategies.normal(3, *p.z.shape) / abs(path.noise_time - path.data_time)

    def perturbed(z, t, s):
        return exact(z, t, s) + expand_like(s - t, z) * size

    z_m = exact(p.z, p.t, p.m)
    slope = ctm_gradient(
        p, perturbed, perturbed, exact, z_m, end=path.data_time, direction=lambda t, s: expand_like(s - t, p.z)
    )
    assert bool((per_sample_sum(slope * size) > 0).all())

    def shifted(z, t, s):
        return exact(z, t, s) + size

    blind = ctm_gradient(p, shifted, shifted, exact, z_m, end=path.data_time)
    assert float(blind.abs().max()) < 1e-6


@pytest.mark.parametrize("solver, order", [(flow.euler, 2), (flow.heun, 3)])
def test_a_solver_s_error_is_the_bias(solver, order):
    """Not zero with one step of a solver, though its velocity is exact: the gradient falls as its local error."""
    path = flow.Linear()
    p = problem(path, TWO_MODES, 8)
    exact = partial(TWO_MODES.flow_map, path=path, steps=16)
    biases = []
    for h in (0.04, 0.02):
        m = p.t - h
        z_m = solver(partial(TWO_MODES.velocity, path=path), p.z, p.t, m)
        biases.append(ctm_gradient(p, exact, exact, exact, z_m, m=m, end=0.0).abs())
    assert float(biases[0].max()) > 1e-5
    assert float(biases[0].norm() / biases[1].norm()) == pytest.approx(2**order, rel=0.15)


@each_path
@each_dimension
@pytest.mark.parametrize("form", [*FORMS, "jump"])
def test_trajectories_to_the_data_end_are_consistency(path, dim, form):
    """At ``s = end`` the outer map is the identity, whatever its network: prediction, target and gradient agree.

    Condition: ``X(z, end, end) = z``; every form has that where times are not negative, a jump on every path.
    """
    p, last = problem(path, MIXTURES[dim]), path.data_time
    end = torch.full_like(p.t, last)
    nets = [Net(2, dim), Net(2, dim), toy]
    if form == "jump":
        maps = [flow.flow_map_from_average_velocity(net) for net in nets]
    else:
        maps = [flow.flow_map_from_network(net, form=FORMS[form]) for net in nets]
    online, inner, outer = maps
    z_m = p.z + 0.1
    pair = one.consistency_trajectory_regression(online, inner, outer, p.z, z_m, p.t, p.m, end, end=last)
    f, g = (flow.consistency_from_flow_map(flow_map, end=last) for flow_map in (online, inner))
    expected = regression(f(p.z, p.t), g(z_m, p.m))
    close(pair, expected)
    slopes = [torch.autograd.grad(one.squared_l2(*each).sum(), list(nets[0].parameters())) for each in (pair, expected)]
    close(*slopes)


@each_form
def test_a_map_of_any_form_stays_at_a_data_end_without_noise(form):
    zero = torch.zeros(4, dtype=F64)
    made = attrs.evolve(form, sigma_min=0.0) if hasattr(form, "sigma_min") else form
    z = strategies.normal(0, 4, 2)
    close(flow.flow_map_from_network(toy, form=made)(z, zero, zero), z)


@each_path
@each_dimension
def test_a_flow_map_is_its_own_composition(path, dim):
    """The exact one in two jumps, each sample with its own middle; another map is not."""
    p = problem(path, MIXTURES[dim])
    exact = partial(MIXTURES[dim].flow_map, path=path, steps=40)
    torch.testing.assert_close(flow.two_jumps(exact, p.z, p.t, p.m, p.s), exact(p.z, p.t, p.s), rtol=1e-5, atol=1e-5)
    jumps = flow.flow_map_from_average_velocity(Net(2, dim))
    assert (flow.two_jumps(jumps, p.z, p.t, p.m, p.s) - jumps(p.z, p.t, p.s)).abs().max() > 1e-3


ANSWERS = {
    "flow_matching": lambda p, f, g: one.flow_matching_regression(f, p.z, p.v, p.t),
    "denoising": lambda p, f, g: one.denoising_regression(f, p.z, p.data, p.t),
    "meanflow": lambda p, f, g: one.meanflow_regression(f, p.z, p.v, p.t, p.s),
    "improved_meanflow": lambda p, f, g: one.improved_meanflow_regression(f, p.z, p.v, p.v, p.t, p.s),
    "alpha_flow": lambda p, f, g: one.alpha_flow_regression(f, g, p.z, p.v, p.t, p.s, alpha=0.5),
    "split_meanflow": lambda p, f, g: one.split_meanflow_regression(f, g, p.z, p.t, p.m, p.s),
    "shortcut": lambda p, f, g: one.shortcut_regression(f, g, p.z, p.t, p.s),
    "terminal_velocity": lambda p, f, g: one.terminal_velocity_regression(f, g, p.z, p.t, p.s),
    "solution_flow": lambda p, f, g: one.solution_flow_regression(f, g, p.z, p.v, p.t, p.m, p.s),
    "consistency": lambda p, f, g: one.consistency_regression(f, g, p.z, p.z, p.t, p.m),
    "continuous_consistency": lambda p, f, g: one.continuous_consistency_regression(f, p.z, p.v, p.t, sigma_data=0.5),
    "consistency_trajectory": lambda p, f, g: one.consistency_trajectory_regression(
        f, g, g, p.z, p.z, p.t, p.m, p.s, end=0.0
    ),
    "progressive": lambda p, f, g: one.progressive_regression(f, g, p.z, p.t, p.m, p.s, path=flow.Linear(0.01)),
    "moment_matching": lambda p, f, g: one.moment_matching_loss(
        f, g, p.z, p.z, p.t, p.m, p.s, particles=1, kernel=partial(one.laplace, temperature=1.0)
    ),
    "rectified_flow": lambda p, f, g: one.rectified_flow_regression(f, p.z, p.data, p.t, p.m, p.s),
    "knowledge_distillation": lambda p, f, g: one.knowledge_distillation_regression(f, p.z, p.data, p.t, p.s),
    "distribution_matching": lambda p, f, g: one.distribution_matching_regression(
        f, g, p.data, p.z, p.t, path=flow.Linear()
    ),
}
WRONG = {
    "wide": (lambda z, *times: torch.cat([z, z], -1), r"answered torch.float64 \[4, 4\] to states of shape \[4, 2\]"),
    "broadcast": (
        lambda z, *times: z.mean(0, keepdim=True),
        r"answered torch.float64 \[1, 2\] to states of shape \[4, 2\]",
    ),
    "several": (lambda z, *times: (z, z), "answered tuple to states|the network returned 2"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("make", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_another_shape_than_the_states_are_named(make, wrong, message):
    """The network's in training and the target's: where both are wrong alike, the pair does not show it."""
    p = problem(flow.Linear(), MIXTURES[2])
    right = lambda z, *times: 0.5 * z  # noqa: E731
    called = []
    make(p, right, lambda *state: called.append(1) or right(*state))
    for first, second in [(wrong, wrong), (wrong, right), (right, wrong)][: 3 if called else 2]:
        with pytest.raises(ConfigError, match=message):
            make(p, first, second)


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_so_are_answers_to_what_wraps_a_network(wrong, message):
    """Before scalings and skips broadcast them."""
    p = problem(flow.Linear(), MIXTURES[2])
    scalings = partial(flow.edm_scalings, sigma_data=0.5)
    of_two = partial(flow.euler_scalings, path=flow.Linear(), sigma_data=0.5)
    right = lambda z, *times: 0.5 * z  # noqa: E731
    for function in (
        flow.edm(wrong),
        flow.consistency(wrong),
        flow.preconditioned(wrong, scalings),
        flow.unwrap(wrong, scalings=scalings),
        flow.truncated(wrong, right, transition=0.5),
        flow.truncated(right, wrong, transition=0.5),
        flow.trigflow(wrong, sigma_data=0.5),
        flow.trigflow_velocity(wrong, sigma_data=0.5),
        flow.trigflow_from_denoiser(wrong, sigma_data=0.5),
        flow.denoiser_from_network(wrong, form=flow.EulerForm()),
    ):
        with pytest.raises(ConfigError, match=message):
            function(p.z, p.t)
    for flow_map in (
        flow.preconditioned_flow_map(wrong, scalings=of_two),
        flow.flow_map_from_network(wrong, form=flow.EulerForm()),
        flow.flow_map_from_average_velocity(wrong),
        flow.average_velocity_from_flow_map(wrong),
        flow.average_velocity_from_displacement(wrong),
        flow.average_velocity_from_network(wrong),
    ):
        with pytest.raises(ConfigError, match=message):
            flow_map(p.z, p.t, p.s)


def test_two_heads_are_two_and_answers_floating_point_numbers():
    p = problem(flow.Linear(), MIXTURES[2])
    for heads in (lambda z, t, s: z, lambda z, t, s: (z, z, z)):
        with pytest.raises(ConfigError, match="expected two heads"):
            one.improved_meanflow_regressions(heads, p.z, p.v, p.v, p.t, p.s)
    whole = lambda z, *times: z.long()  # noqa: E731
    for make in ANSWERS.values():
        with pytest.raises(ConfigError, match=r"answered torch.int64 \[4, 2\]"):
            make(p, whole, whole)


@pytest.mark.parametrize("name", ["shortcut", "split_meanflow", "alpha_flow", "rectified_flow", "meanflow"])
def test_single_precision_states_at_double_precision_times(name):
    """As times come from a script with another default than the data's."""
    p = problem(flow.Linear(), MIXTURES[2])
    single = p._replace(z=p.z.float(), v=p.v.float(), data=p.data.float())
    right = lambda z, *times: 0.5 * z  # noqa: E731
    close(
        ANSWERS[name](single, right, right).target.double(), ANSWERS[name](p, right, right).target, rtol=1e-5, atol=1e-6
    )


def test_the_published_target_without_an_inner_map():
    p = ve_problem()
    online, outer = (flow.flow_map_from_network(net, form=flow.EulerForm()) for net in (Net(2, 2), toy))
    z_m = p.z + 0.1
    pair = one.consistency_trajectory_regression(online, None, outer, p.z, z_m, p.t, p.m, p.s, end=0.002)
    close(pair.target, outer(z_m, p.m, torch.full_like(p.m, 0.002)))
    with_inner = one.consistency_trajectory_regression(online, outer, outer, p.z, z_m, p.t, p.m, p.s, end=0.002)
    close(pair.prediction, with_inner.prediction)
    assert not torch.allclose(pair.target, with_inner.target)


def test_the_outer_map_is_frozen_in_its_parameters_and_not_in_its_input():
    p = ve_problem()
    net, average = Net(2, 2), Net(2, 2)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9)
    online = flow.flow_map_from_network(net, form=flow.EulerForm())
    outer = flow.flow_map_from_network(frozen_network(average), form=flow.EulerForm())
    pair = one.consistency_trajectory_regression(online, outer, outer, p.z, p.z, p.t, p.m, p.s, end=0.002)
    one.squared_l2(*pair).sum().backward()
    assert all(parameter.grad is None for parameter in average.parameters())
    through = [parameter.grad.clone() for parameter in net.parameters()]
    assert all(float(gradient.abs().max()) > 1e-6 for gradient in through)
    # By hand: the residual at the end, carried back through the outer map to where the online one jumps.
    middle = online(p.z, p.t, p.s)
    end = torch.full_like(p.s, 0.002)
    _, back = torch.func.vjp(lambda x: outer(x, p.s, end), middle.detach())
    (cotangent,) = back(2 * (pair.prediction - pair.target).detach())
    by_hand = torch.autograd.grad(middle, list(net.parameters()), cotangent)
    close(list(by_hand), through)

    def cut(z, t, s):
        return outer(z, t, s).detach()

    pair = one.consistency_trajectory_regression(online, outer, cut, p.z, p.z, p.t, p.m, p.s, end=0.002)
    assert not pair.prediction.requires_grad


# Adversarial losses.

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
        with pytest.raises(TypeCheckError):
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
