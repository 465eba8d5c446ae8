"""The flow wing beyond the laws: errors, orders of accuracy, conversions, derivatives under autocast."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from onestep_core import flow
from onestep_core.errors import ConfigError
from onestep_core.shapes import clouds, expand_like, per_sample, uncloud

F64 = torch.float64


def cosine_log_snr(t):
    return -2 * torch.log(torch.tan(0.5 * torch.pi * (0.02 + 0.96 * t)))


PATHS = {
    "linear": flow.Linear(),
    "linear with a floor": flow.Linear(noise_floor=0.1),
    "trigonometric": flow.Trigonometric(sigma_data=0.5),
    "variance preserving": flow.VariancePreserving(cosine_log_snr),
    "variance exploding": flow.VarianceExploding(0.01, 5.0),
    "reversed": flow.reverse(flow.Linear()),
}


def inner_times(path, count=5):
    return torch.linspace(path.data_time, path.noise_time, count + 2, dtype=F64)[1:-1]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_predictions_convert_into_one_another(path):
    t = inner_times(path)
    data, noise = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    z, v = path(data, noise, t)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(flow.data_from_velocity(z, v, t, path=path), data)
    close(flow.data_from_noise(z, noise, t, path=path), data)
    close(flow.noise_from_data(z, data, t, path=path), noise)
    close(flow.velocity_from_data(z, data, t, path=path), v)
    score = flow.score_from_data(z, data, t, path=path)
    close(score, -noise / expand_like(path.coefficients(t)[1], noise))
    close(flow.data_from_score(z, score, t, path=path), data)
    close(flow.denoiser_from_velocity(lambda z, t: v, path=path)(z, t), data)
    close(flow.velocity_from_denoiser(lambda z, t: data, path=path)(z, t), v)
    close(flow.denoiser_from_noise(lambda z, t: noise, path=path)(z, t), data)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_ddim_is_exact_for_a_known_sample(path):
    t, s = inner_times(path), inner_times(path).flip(0)
    data, noise = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    out = flow.ddim(lambda z, t: data, path(data, noise, t).z, t, s, path=path)
    torch.testing.assert_close(out, path(data, noise, s).z, rtol=1e-9, atol=1e-9)


def test_a_table_is_a_path():
    table = torch.linspace(0.999, 0.01, 1000, dtype=F64)
    path = flow.VariancePreserving.from_table(table)
    alpha, sigma = path.coefficients(torch.tensor([0.0, 437.0, 999.0], dtype=F64))
    torch.testing.assert_close(alpha**2, table[[0, 437, 999]])
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, dtype=F64))
    assert path.coefficients(torch.tensor([3.0]))[0].dtype == torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: flow.Linear(noise_floor=-0.1),
        lambda: flow.Linear(noise_floor=1.0),
        lambda: flow.Trigonometric(sigma_data=0.0),
        lambda: flow.VarianceExploding(2.0, 1.0),
        lambda: flow.VarianceExploding(-1.0, 1.0),
        lambda: flow.VariancePreserving(torch.linspace(0.9, 0.1, 10)),
        lambda: flow.VariancePreserving(cosine_log_snr, data_time=1.0),
        lambda: flow.VariancePreserving.from_table(torch.tensor([0.1, 0.9])),
        lambda: flow.VariancePreserving.from_table(torch.tensor([0.9])),
        lambda: flow.reverse(flow.VarianceExploding(0.1, math.inf)),
        lambda: flow.uniform_grid(0, path=flow.Linear()),
        lambda: flow.uniform_grid(3, path=flow.Linear(), start=1.5),
        lambda: flow.karras_grid(1),
        lambda: flow.karras_levels(torch.zeros(1), sigma_min=0.0),
        lambda: flow.few_step_grid(0),
        lambda: flow.sample_uniform(3, low=-0.5, path=flow.Linear()),
        lambda: flow.sample_uniform(3, low=0.5, high=0.4),
        lambda: flow.sample_logit_normal(3, high=1.1, path=flow.Linear()),
        lambda: flow.sample_log_normal(3, high=100.0, path=flow.VarianceExploding()),
        lambda: flow.truncated_log_normal_times(torch.zeros(1), mean=0.0, std=1.0, low=0.0, high=1.0),
        lambda: flow.power_law(torch.zeros(1), low=0.0, high=1.0, power=2.0),
        lambda: flow.limit_duration(torch.zeros(1), torch.zeros(1), longest=-1.0),
        lambda: flow.integrate(partial(flow.euler, lambda z, t: z), torch.ones(1, 1), torch.ones(1)),
        lambda: flow.central_difference(lambda x: x, (torch.ones(1),), (torch.ones(1),), step=0.0),
        lambda: flow.from_log_step(lambda z, t, k: z, finest=-1),
        lambda: flow.guided_velocity(torch.ones(1, 1), None, torch.ones(1, 1), omega=1.0, kappa=0.5),
        lambda: flow.classifier_free(lambda z: z, lambda z: z[:1], scale=2.0)(torch.ones(3, 1)),
        lambda: flow.eulerian_derivative(lambda z, t, s: z[:, :1], *(torch.ones(3, 2),) * 2, *(torch.ones(3),) * 2),
        lambda: flow.drift_negative_weight(torch.ones(1), generated=0, unconditional=2),
        lambda: clouds(torch.ones(5, 1, 2), groups=2),
    ],
)
def test_what_cannot_work_is_refused(make):
    with pytest.raises(ConfigError, match=r"\d|expected|must"):
        make()


def test_wrong_shapes_name_their_axes():
    path, x = flow.Linear(), torch.ones(4, 3)
    with pytest.raises(TypeCheckError, match="batch"):
        path(x, x, torch.ones(3))
    with pytest.raises(TypeCheckError, match="t"):
        path(x, x, torch.tensor(0.5))
    with pytest.raises(TypeCheckError):
        path(x, torch.ones(4, 2), torch.ones(4))
    with pytest.raises(TypeCheckError):
        path(x.long(), x.long(), torch.ones(4))


@pytest.mark.parametrize(("solver", "order"), [(flow.euler, 1), (flow.heun, 2)])
def test_order_of_accuracy(solver, order):
    def velocity(z, t):
        return expand_like(t.cos(), z) * z

    exact = math.exp(math.sin(1.0))
    z = torch.ones(1, 1, dtype=F64)
    errors = []
    for steps in (64, 128):
        grid = torch.linspace(0, 1, steps + 1, dtype=F64)
        errors.append(abs(float(flow.integrate(partial(solver, velocity), z, grid)) - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_a_jump_samples_in_both_directions_of_time():
    """Noise at 1 or at 0: the same network, mirrored, and the same formula ``z + (s - t) a``."""
    forward, backward = flow.Linear(), flow.reverse(flow.Linear())
    data, noise = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    for path in (forward, backward):
        start = torch.full((3,), path.noise_time, dtype=F64)
        end = torch.full((3,), path.data_time, dtype=F64)
        velocity = path(data, noise, start).v
        out = flow.jump(lambda z, t, s, velocity=velocity: velocity, path.prior(noise), start, end)
        torch.testing.assert_close(out, data)
    torch.testing.assert_close(forward(data, noise, start).v, -backward(data, noise, start).v)


def test_a_jump_and_the_conversions_agree():
    def displacement(z, t, s):
        return expand_like((s - t) * (1 + s), z) * z

    z, t, s = torch.randn(4, 2, dtype=F64), torch.rand(4, dtype=F64), torch.rand(4, dtype=F64) + 2
    average = flow.average_velocity_from_displacement(displacement)
    flow_map = flow.flow_map_from_average_velocity(average)
    torch.testing.assert_close(flow_map(z, t, s), z + displacement(z, t, s))
    torch.testing.assert_close(flow.average_velocity_from_flow_map(flow_map)(z, t, s), average(z, t, s))
    torch.testing.assert_close(flow.consistency_from_flow_map(flow_map, end=3.0)(z, t), flow_map(z, t, 0 * t + 3))


def test_foreign_time_arguments():
    z, t, s = torch.ones(2, 1, dtype=F64), torch.tensor([0.9, 0.5], dtype=F64), torch.tensor([0.4, 0.5], dtype=F64)
    seen = {}

    def network(z, first, second):
        seen["times"] = (first, second)
        return z

    flow.from_duration(network)(z, t, s)
    torch.testing.assert_close(seen["times"], (t, t - s))
    flow.from_reversed(network)(z, t, s)
    torch.testing.assert_close(seen["times"], (s, t))
    flow.from_log_step(network, finest=5)(z, t, s)
    torch.testing.assert_close(seen["times"], (t, torch.tensor([1.0, 5.0], dtype=F64)))


def test_semigroup_target_of_no_jump_is_the_first_half():
    one, t = torch.ones(2, 1), torch.tensor([0.5, 1.0])
    out = flow.semigroup_target(one, 3 * one, t, t, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 3.0]))


def test_guidance():
    v, c, u = torch.randn(3, 4, 2, dtype=F64)
    omega, kappa = 1.7, 0.3
    expected = omega * v + kappa * c + (1 - omega - kappa) * u
    torch.testing.assert_close(flow.guided_velocity(v, c, u, omega=omega, kappa=kappa), expected)
    per_sample_weights = {"omega": torch.full((4,), omega, dtype=F64), "kappa": torch.full((4,), kappa, dtype=F64)}
    torch.testing.assert_close(flow.guided_velocity(v, c, u, **per_sample_weights), expected)
    active = torch.tensor([True, False, True, False])
    mixed = flow.guided_velocity(v, c, u, omega=omega, kappa=kappa, active=active)
    torch.testing.assert_close(mixed, torch.where(active[:, None], expected, v))
    assert torch.equal(flow.guided_velocity(v, None, u, omega=1.0), v)
    three = flow.classifier_free(lambda z, t, s: z, lambda z, t, s: 0 * z, scale=2.0)
    torch.testing.assert_close(three(v, None, None), 2 * v)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_draws_stay_in_range_and_obey_their_generator(count, seed):
    path = flow.VarianceExploding(0.01, 5.0)
    for draw in (
        partial(flow.sample_uniform, low=0.1, high=0.9, path=flow.Linear()),
        partial(flow.sample_logit_normal, low=0.1, high=0.9, path=flow.Linear()),
        partial(flow.sample_log_normal, low=0.01, high=5.0, path=path),
    ):
        first = draw(count, generator=torch.Generator().manual_seed(seed))
        again = draw(count, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(first, again)
        low, high = draw.keywords["low"], draw.keywords["high"]
        assert first.shape == (count,)
        assert ((first >= low) & (first <= high)).all()


def test_power_law_has_its_density():
    u = (torch.arange(10**6, dtype=F64) + 0.5) / 10**6
    for power in (1.0, 3.0, 5.0):
        x = flow.power_law(u, low=1.0, high=4.0, power=power)
        low, high = (((x >= a) & (x < b)).double().mean() for a, b in ((1.0, 1.1), (2.0, 2.2)))

        def mass(a, b, power=power):
            if power == 1:
                return math.log(b / a) / math.log(4.0)
            return (a ** (1 - power) - b ** (1 - power)) / (1 - 4.0 ** (1 - power))

        assert float(low) == pytest.approx(mass(1.0, 1.1), abs=1e-5)
        assert float(high) == pytest.approx(mass(2.0, 2.2), abs=1e-5)


def network(width=8):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, 2)).double()


DERIVATIVES = {
    "two_pass": (flow.two_pass, 1e-12),
    "central_difference": (partial(flow.central_difference, step=1e-5), 1e-8),
    "with_graph": (flow.with_graph, 1e-12),
}


@pytest.mark.parametrize(("derivative", "tolerance"), DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives_agree_inside_transforms(derivative, tolerance):
    """Under ``grad``, ``vmap`` and an outer ``jvp`` the value and tangent stay the same numbers."""
    net = network()

    def f(z, t):
        return net(torch.cat([z, t[:, None], t[:, None] ** 2], 1))

    z, v, t = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64), torch.rand(3, dtype=F64)
    primals, tangents = (z, t), (v, torch.ones_like(t))
    value, tangent = torch.func.jvp(f, primals, tangents)
    got = derivative(f, primals, tangents)
    torch.testing.assert_close(got, (value, tangent), rtol=tolerance, atol=tolerance)
    inside = per_sample(lambda z, t, v: derivative(f, (z, t), (v, torch.ones_like(t))))(z, t, v)
    torch.testing.assert_close(inside[1].squeeze(1), tangent, rtol=tolerance, atol=tolerance)
    outer, outer_tangent = torch.func.jvp(lambda z: derivative(f, (z, t), tangents)[0], (z,), (v,))
    torch.testing.assert_close(outer, value)
    exact = torch.func.jvp(lambda z: f(z, t), (z,), (v,))[1]
    torch.testing.assert_close(outer_tangent, exact)


def test_pytrees_and_a_tangent_function():
    def f(tree):
        return {"a": tree["x"] ** 2, "b": [tree["x"].sum()]}

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    value, tangent = flow.two_pass(f, ({"x": x},), ({"x": torch.ones(2)},))
    assert value["a"].requires_grad
    assert not tangent["a"].requires_grad
    torch.testing.assert_close(tangent, {"a": torch.tensor([2.0, 4.0]), "b": [torch.tensor(2.0)]})
    calls = []

    def wrapped(x):
        calls.append("value")
        return x

    def plain(x):
        calls.append("tangent")
        return x

    flow.two_pass(wrapped, (x,), (x,), tangent_function=plain)
    assert calls == ["value", "tangent"]


@pytest.mark.parametrize("moving", [0, 2, 5])
def test_the_rows_that_move_have_the_derivative_of_the_whole(moving):
    """Each row has its own conditioning, so another row's, or none, would give other numbers."""
    net, own = network(), torch.randn(5, 1, dtype=F64)

    def conditioned(rows):
        return lambda z, t: {"a": net(torch.cat([z, t[:, None], own[:rows]], 1)), "b": (z.sum(1) * t * own[:rows, 0])}

    z, v, t = torch.randn(5, 2, dtype=F64), torch.randn(5, 2, dtype=F64), torch.rand(5, dtype=F64)
    arguments = conditioned(5), (z, t), (v, torch.ones_like(t))
    value, whole = flow.two_pass(*arguments)
    seen = []

    def of_moving(z, t):
        seen.append(len(z))
        return conditioned(moving)(z, t)

    same, tangent = flow.two_pass(*arguments, moving=moving, moving_function=of_moving)
    assert seen == [moving]
    for name in ("a", "b"):
        assert same[name].equal(value[name])
        torch.testing.assert_close(tangent[name][:moving], whole[name][:moving], rtol=1e-12, atol=0)
        assert whole[name].ne(0).all()
        assert tangent[name][moving:].eq(0).all()
        assert tangent[name].shape == value[name].shape
        assert not tangent[name].requires_grad
    _, ignored = flow.two_pass(*arguments, moving=moving)
    torch.testing.assert_close(ignored, whole)


@pytest.mark.parametrize("derivative", [flow.two_pass, partial(flow.central_difference, step=1e-2)])
def test_a_derivative_leaves_autocast_usable(derivative):
    """Casts made without graph must not be what a later forward pass finds in autocast's cache."""
    layer = torch.nn.Linear(2, 2)
    x, v = torch.randn(4, 2), torch.randn(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            pass
        value, tangent = derivative(layer, (x,), (v,))
        later = layer(x)
    (value.float().sum() + later.float().sum()).backward()
    assert layer.weight.grad.abs().sum() > 0
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 8.0))
    assert not tangent.requires_grad


def test_shapes():
    x = torch.randn(6, 4, 5)
    parts = clouds(x, groups=2)
    assert parts.shape == (8, 3, 5)
    torch.testing.assert_close(parts[5], x[3:, 1])
    assert torch.equal(uncloud(parts, groups=2), x)
    with pytest.raises(TypeCheckError):
        expand_like(torch.ones(3), torch.ones(4, 2))


def test_per_sample_takes_trees_and_in_dims():
    def f(tree, shared, x):
        return {"sum": (tree["a"] * shared + x).flatten(1).sum(1)}

    tree, x = {"a": torch.randn(3, 2)}, torch.randn(3, 2)
    out = per_sample(f, in_dims=(0, None, 0))(tree, torch.tensor(2.0), x)
    torch.testing.assert_close(out["sum"].squeeze(1), f(tree, torch.tensor(2.0), x)["sum"])
    pairs = per_sample(lambda pair: pair[0] + pair[1], in_dims=((0, None),))((x, torch.ones(1, 2)))
    torch.testing.assert_close(pairs.squeeze(1), x + 1)


@pytest.mark.parametrize(
    "path",
    [
        flow.Linear(),
        flow.Linear(0.05),
        flow.Trigonometric(0.7),
        flow.VarianceExploding(0.01, 5.0),
        flow.reverse(flow.Linear()),
    ],
    ids=["linear", "floor", "trigonometric", "exploding", "reversed"],
)
def test_velocity_scalings_leave_what_a_line_cannot_say(path):
    """For Gaussian data of that spread ``c_skip z`` is the marginal velocity, and the rest has the size ``c_out``."""
    sd, count = 0.6, 200_000
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    for share in (0.0, 0.3, 0.8, 1.0):
        t = torch.full((count,), path.data_time + share * (path.noise_time - path.data_time), dtype=torch.float64)
        z, v = path(sd * data, noise, t)
        scalings = flow.velocity_scalings(t, path=path, sigma_data=sd)
        left = v - scalings.c_skip[:, None] * z
        assert float((left * z).mean()) == pytest.approx(0, abs=5e-3 * float(z.std() * v.std()))
        assert float(left.std()) == pytest.approx(float(scalings.c_out[0].abs()), rel=1e-2)
        assert float((scalings.c_in[:, None] * z).std()) == pytest.approx(1, rel=1e-2)


def test_velocity_scalings_on_the_linear_path_are_the_slope_of_simple_edm():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    t, s = torch.rand(2, 6, generator=generator, dtype=torch.float64)

    def network(z, t, s):
        return z.sin() + (t - 2 * s)[:, None]

    settings = {"path": flow.Linear(), "sigma_data": 0.6}
    slope = flow.preconditioned(network, partial(flow.velocity_scalings, **settings))
    flow_map = flow.preconditioned_flow_map(network, scalings=partial(flow.simple_edm_scalings, **settings))
    torch.testing.assert_close(flow.jump(slope, z, t, s), flow_map(z, t, s))
