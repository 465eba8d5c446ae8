"""Forms of a flow map on the variance-exploding path."""

from functools import partial

import attrs
import pytest
import torch

from onestep_adapters.testing import strategies
from onestep_core import flow
from onestep_core.errors import ConfigError
from onestep_core.shapes import expand_like, per_sample
from tests.cases import FORMS, TWO_MODES
from tests.toy import Net

F64 = torch.float64


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def problem(path, mixture, count=4, seed=0):
    """Pairs on a path with three times; every jump is towards the data, the middle time inside it."""
    data = mixture.sample(count, generator=torch.Generator().manual_seed(seed))
    noise = strategies.normal(seed + 1, *data.shape)
    first, second = (strategies.spread_times(path, count, seed + i, margin=0.1) for i in (2, 3))
    later = (first - path.data_time).abs() > (second - path.data_time).abs()
    t, s = torch.where(later, first, second), torch.where(later, second, first)
    return strategies.at(path, data, noise, t, 0.4 * t + 0.6 * s, s)


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


@each_form
def test_a_map_of_any_form_stays_at_a_data_end_without_noise(form):
    zero = torch.zeros(4, dtype=F64)
    made = attrs.evolve(form, sigma_min=0.0) if hasattr(form, "sigma_min") else form
    z = strategies.normal(0, 4, 2)
    close(flow.flow_map_from_network(toy, form=made)(z, zero, zero), z)
