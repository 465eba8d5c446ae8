"""Modules as callables: evaluations counted, parameters frozen, conditions, units, shared dropout."""

from functools import partial

import pytest
import torch
from torch import nn

import onestep_core as one
from onestep_adapters.networks import (
    as_average_velocity,
    as_flow_map,
    as_one_step,
    as_velocity,
    count_calls,
    frozen,
    shared_dropout,
    with_condition,
)
from onestep_adapters.samplers import one_step, sample_ode
from onestep_core.errors import ConfigError
from onestep_core.flow import Linear, Trigonometric, VarianceExploding, euler, flow_map_from_average_velocity, heun
from onestep_core.flow import reverse as reverse_path
from onestep_core.objectives import consistency_regression
from tests.toy import F64, Net

PATHS = [Linear(), Trigonometric(0.5), VarianceExploding(0.01, 5.0), reverse_path(Linear())]


def noise(count=6):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(3), dtype=F64)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_one_step_is_exact_on_a_straight_flow_and_calls_once(path):
    """Data concentrated at mu: the average velocity between any two times is known for every path."""
    mu = torch.tensor([1.0, -2.0, 0.5], dtype=F64)

    def position(z, t, s):
        (a_t, b_t), (a_s, b_s) = path.coefficients(t), path.coefficients(s)
        return a_s[:, None] * mu + (b_s / b_t)[:, None] * (z - a_t[:, None] * mu)

    network = count_calls(lambda z, t, s: (position(z, t, s) - z) / (s - t)[:, None])
    samples = one_step(network, noise(), path=path)
    assert network.calls == 1
    first, last = (path.coefficients(torch.full((1,), end, dtype=F64)) for end in (path.noise_time, path.data_time))
    # The prior has no data in it; where the path's noise end has, the difference is felt at the data end.
    expected = last[0] * mu + last[1] * (noise() - first[0] / first[1] * mu)
    torch.testing.assert_close(samples, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(as_one_step(network, path=path)(noise()), samples)
    assert network.calls == 2


@pytest.mark.parametrize(("method", "cost", "order"), [(euler, 1, 1), (heun, 2, 2)])
def test_ode_sampler_converges_at_the_methods_order_and_says_its_cost(method, cost, order):
    """Data N(0, s^2): velocity linear in z, and the map from noise to data is multiplication by s."""
    scale, path = 0.5, Linear()

    def velocity(z, t):
        variance = (1 - t) ** 2 * scale**2 + t**2
        return z * ((t - (1 - t) * scale**2) / variance)[:, None]

    errors = []
    for steps in (20, 40):
        network = count_calls(velocity)
        samples = sample_ode(network, noise(), path=path, steps=steps, method=method)
        assert network.calls == cost * steps
        errors.append((samples - scale * noise()).abs().max())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def test_samplers_keep_gradients_and_refuse_no_steps():
    z = noise().requires_grad_()
    one_step(lambda z, t, s: z.square(), z, path=Linear()).sum().backward()
    torch.testing.assert_close(z.grad, 1 - 2 * z.detach())
    with pytest.raises(ConfigError, match="steps = 0: expected a whole number, at least 1"):
        sample_ode(lambda z, t: z, noise(), path=Linear(), steps=0)


def test_frozen_passes_gradients_to_the_input_only_and_follows_the_module():
    net, t = Net(1), torch.rand(6, dtype=F64)
    z = noise().requires_grad_()
    stopped = frozen(net)
    stopped(z, t).square().sum().backward()
    gradient = z.grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    z.grad = None
    net(z, t).square().sum().backward()
    torch.testing.assert_close(z.grad, gradient)
    with torch.no_grad():
        net.last.bias.add_(1.0)
    assert torch.equal(stopped(z, t), net(z, t))
    with pytest.raises(ConfigError, match=r"nn\.Module"):
        frozen(lambda z: z)


def test_frozen_under_transforms():
    net, t = Net(1), torch.rand(6, dtype=F64)
    parameters = dict(net.named_parameters())

    def loss(parameters, z):
        return torch.func.functional_call(net, parameters, (frozen(net)(z, t), t)).sum()

    # The inner, frozen call contributes nothing; the outer one does.
    inner = net(noise(), t).detach()
    expected = torch.func.grad(lambda p: torch.func.functional_call(net, p, (inner, t)).sum())(parameters)
    found = torch.func.grad(loss)(parameters, noise())
    for name in parameters:
        torch.testing.assert_close(found[name], expected[name])
    value, tangent = torch.func.jvp(lambda z: frozen(net)(z, t), (noise(),), (noise(),))
    torch.testing.assert_close(tangent, torch.func.jvp(lambda z: net(z, t), (noise(),), (noise(),))[1])
    compiled = torch.compile(lambda z: frozen(net)(z, t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(noise()), value)


def test_conditions_units_and_outputs():
    class Foreign(nn.Module):
        def forward(self, z, *times, label, return_dict=True):
            return {"sample": torch.cat([z * times[-1][:, None], z], 1) + label[:, None]}

    label, t, s = torch.arange(6.0, dtype=F64), torch.full((6,), 0.5, dtype=F64), torch.full((6,), 0.25, dtype=F64)
    network = with_condition(Foreign(), label=label)
    first = partial(torch.Tensor.narrow, dim=1, start=0, length=3)
    velocity = as_velocity(network, time_scale=1000.0, output=lambda r: first(r["sample"]))
    torch.testing.assert_close(velocity(noise(), t), noise() * 500 + label[:, None])
    for adapt in (as_average_velocity, as_flow_map):
        network_of_two = adapt(network, output=lambda r: first(r["sample"]))
        torch.testing.assert_close(network_of_two(noise(), t, s), noise() * 0.25 + label[:, None])
    with pytest.raises(ConfigError, match="returned a dict"):
        as_velocity(network)(noise(), t)
    with pytest.raises(ConfigError, match="extra"):
        as_flow_map(network, output=lambda r: r["sample"])(noise(), t, s)


def test_one_step_is_the_flow_map_between_the_ends():
    net, path = Net(2), Linear()
    ends = (torch.ones(6, dtype=F64), torch.zeros(6, dtype=F64))
    expected = flow_map_from_average_velocity(net)(noise(), *ends)
    assert torch.equal(one_step(net, noise(), path=path), expected)


class Noisy(nn.Module):
    """A network with dropout and rows that are skipped at random."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 64), nn.Linear(64, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, z, t):
        hidden = self.dropout(self.first(torch.cat([z, t[:, None]], 1)).relu())
        keep = torch.rand(len(z), 1, device=z.device) < 0.5
        return self.last(hidden * keep)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_one_step_from_within_the_path_starts_at_noise_of_that_level(path):
    """With the constant velocity of a flow to a point, the jump ends there by its own length."""
    start, seen = 0.25 * path.data_time + 0.75 * path.noise_time, []

    def average_velocity(z, t, s):
        seen.append((z, t, s))
        return torch.full_like(z, 2.0)

    samples = as_one_step(average_velocity, path=path, start=start)(noise())
    (z, t, s), sigma = seen[0], path.coefficients(torch.full((1,), start, dtype=F64))[1]
    torch.testing.assert_close(z, sigma * noise())
    assert (t.tolist(), s.tolist()) == ([start] * 6, [path.data_time] * 6)
    torch.testing.assert_close(samples, sigma * noise() + 2.0 * (path.data_time - start))
    for wrong in (path.data_time, path.noise_time + path.noise_time - path.data_time):
        with pytest.raises(ConfigError, match="start = "):
            as_one_step(average_velocity, path=path, start=wrong)


def test_a_pair_shares_its_dropout_and_leaves_the_generator_one_evaluation_further():
    net, other, z, t = Noisy(), Noisy(), torch.randn(6, 3), torch.rand(6)
    other.load_state_dict(net.state_dict())
    for twin in (None, other):
        torch.manual_seed(0)
        alone = net(z, t)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        online, target = shared_dropout(net, twin)
        assert torch.equal(online(z, t), alone)
        assert torch.equal(torch.get_rng_state(), after)
        with torch.no_grad():
            assert torch.equal(target(z, t), alone)
            assert torch.equal(target(z, t), alone)
        assert torch.equal(torch.get_rng_state(), after)
        # The next pair has its own masks.
        assert not torch.equal(online(z, t), alone)
        assert not torch.equal(target(z, t), alone)
    assert not torch.equal(net(z, t), net(z, t))


def test_a_shared_mask_zeroes_the_same_units_for_other_inputs():
    seen = []
    dropout = nn.Dropout(0.5)

    def net(z, t):
        seen.append(dropout(z + 10))
        return seen[-1]

    online, target = shared_dropout(net)
    consistency_regression(online, target, torch.rand(4, 50), torch.rand(4, 50), torch.ones(4), torch.zeros(4))
    assert len(seen) == 2
    assert torch.equal(seen[0] == 0, seen[1] == 0)
    assert not torch.equal(*seen)


def test_a_pair_without_dropout_is_the_network_twice():
    net, t = Net(1), torch.rand(6, dtype=F64)
    before = torch.get_rng_state()
    online, target = shared_dropout(net)
    assert torch.equal(online(noise(), t), net(noise(), t))
    assert torch.equal(target(noise(), t), net(noise(), t))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pair_keeps_the_generator_where_the_target_fails_and_wants_its_order():
    def fails(z, t):
        torch.rand(3)
        raise RuntimeError("inside")

    net, z, t = Noisy(), torch.randn(6, 3), torch.rand(6)
    online, target = shared_dropout(net, fails)
    with pytest.raises(ConfigError, match="before the target"):
        target(z, t)
    online(z, t)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"):
        target(z, t)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pair_on_a_gpu_shares_its_dropout():
    net, z, t = Noisy().cuda(), torch.randn(6, 3).cuda(), torch.rand(6).cuda()
    online, target = shared_dropout(net)
    assert torch.equal(online(z, t), target(z, t))
    assert not torch.equal(online(z, t), online(z, t))


def test_a_difference_has_a_step_in_the_unit_of_the_path():
    """A module that takes times of 0 to 1000 changes a thousand times faster: so much smaller is the step."""
    t, s = torch.linspace(0.2, 0.9, 8), torch.linspace(0.0, 0.5, 8)
    z, v = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))

    def network(z, t, s):
        return z * torch.sin(t)[:, None] + torch.cos(0.3 * s)[:, None]

    average = as_average_velocity(network, time_scale=1000.0)
    primals, tangents = (z, t, s), (v, torch.ones(8), torch.zeros(8))
    exact = one.single_pass(average, primals, tangents)[1]
    for step, low, high in ((5e-2 / 1000, 0.0, 3e-3), (5e-3, 0.9, 2.0)):
        found = one.central_difference(average, primals, tangents, step=step)[1]
        assert low <= ((found - exact).norm() / exact.norm()).item() < high
