"""Objectives and fields under ``torch.func`` and ``torch.compile``."""

import os
from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, vmap

import onestep_core as one
from onestep_core.errors import ArgumentError
from onestep_core.regression.pair import field_regression, regression
from onestep_core.shapes import per_sample
from tests.toy import Net, batch

F64 = torch.float64


def flow_matching(net, data, z, v, t, s):
    return one.flow_matching_regression(net, z, v, t)


def denoising(net, data, z, v, t, s):
    return one.denoising_regression(net, z, data, t)


def difference(function, primals, tangents, /, *, moving=None):
    """With a step that fits the precision."""
    step = 1e-5 if primals[0].dtype is F64 else 0.1
    return one.central_difference(function, primals, tangents, step=step)


def meanflow(net, data, z, v, t, s, **options):
    return one.meanflow_regression(net, z, v, t, s, **options)


def improved_meanflow(net, data, z, v, t, s):
    return one.improved_meanflow_regression(net, z, v, 0.5 * v + z, t, s)


def both_heads(net, data, z, v, t, s):
    """The second head is the network at equal times; the two pairs side by side."""
    pairs = one.improved_meanflow_regressions(lambda z, t, s: (net(z, t, s), net(z, t, t)), z, v, 0.5 * v + z, t, s)
    return one.Regression(*(torch.cat(halves, dim=1) for halves in zip(*pairs, strict=True)))


def alpha_flow(net, data, z, v, t, s):
    return one.alpha_flow_regression(net, net, z, v, t, s, alpha=0.3, bound=2.0)


def split_meanflow(net, data, z, v, t, s):
    return one.split_meanflow_regression(net, net, z, t, one.time_between(t, s, share=0.3), s)


def shortcut(net, data, z, v, t, s):
    return one.shortcut_regression(net, net, z, t, s, bound=2.0)


def terminal_velocity(net, data, z, v, t, s, **options):
    return one.terminal_velocity_regression(net, one.instantaneous(net), z, t, s, **options)


def solution_flow(net, data, z, v, t, s):
    solution = one.flow_map_from_average_velocity(net)
    return one.solution_flow_regression(solution, solution, z, v, t, one.time_between(t, s, share=0.1), s)


def consistency(net, data, z, v, t, s, **options):
    """On the linear path the pair's state at ``s`` lies on the line through ``z`` along ``v``."""
    return one.consistency_regression(net, net, z, one.euler(lambda z, t: v, z, t, s), t, s, **options)


def continuous_consistency(net, data, z, v, t, s, **options):
    return one.continuous_consistency_regression(net, z, v, t, sigma_data=0.5, **options)


def continuous_consistency_along(net, data, z, v, t, s):
    straight = one.derivative_along(lambda tau: (z + one.expand_like(tau - t, v) * v, tau), one.relative_step(t))
    return continuous_consistency(net, data, z, v, t, s, derivative=straight)


def consistency_trajectory(net, data, z, v, t, s):
    """The network is online and inner map; another, without gradient in its parameters, is the outer one."""
    online, outer = one.flow_map_from_average_velocity(net), one.flow_map_from_average_velocity(OUTER)
    m = one.time_between(t, s, share=0.5)
    z_m = z + one.expand_like(m - t, v) * v
    return one.consistency_trajectory_regression(online, online, outer, z, z_m, t, m, s, end=0.0)


OUTER = Net(2).requires_grad_(False)
LINE = one.Linear(0.01)


def progressive(net, data, z, v, t, s):
    return one.progressive_regression(net, net, z, t, one.time_between(t, s, share=0.5), s, path=LINE, last=s < 0.2)


def rectified_flow(net, data, z, v, t, s):
    return one.rectified_flow_regression(net, z, data, t, one.time_between(t, s, share=0.5), s)


def knowledge_distillation(net, data, z, v, t, s):
    return one.knowledge_distillation_regression(net, z, data, t, s)


LINE = one.Linear()


def matched(net, z, v, t):
    """Samples, their noised states, and two denoisers."""
    samples = net(LINE(z, v, t).z.to(z.dtype), t)
    real, fake = (lambda z, t, shrink=shrink: shrink * torch.sin(z) for shrink in (0.5, 0.8))
    return real, fake, samples, LINE(samples, v, t).z, t


def distribution_matching(net, data, z, v, t, s, **options):
    return one.distribution_matching_regression(*matched(net, z, v, t), path=LINE, **options)


def f_distill(net, data, z, v, t, s):
    return distribution_matching(net, data, z, v, t, s, scale=one.forward_kl(one.density_ratio(data)))


def score_identity(net, data, z, v, t, s):
    """No pair: the loss of a sample, against nothing."""
    loss = one.score_identity_loss(*matched(net, z, v, t), alpha=1.2)
    return one.Regression(loss, torch.zeros_like(loss))


TRAJECTORY = {
    "distribution matching": (distribution_matching, 1),
    "distribution matching, of scores": (partial(distribution_matching, normalizer=None), 1),
    "distribution matching, scaled by a density ratio": (f_distill, 1),
    "score identity": (score_identity, 1),
    "consistency": (consistency, 1),
    "consistency, some at the end": (partial(consistency, end=0.4), 1),
    "flow matching": (flow_matching, 1),
    "denoising": (denoising, 1),
    "meanflow": (meanflow, 2),
    "progressive": (progressive, 1),
    "rectified flow": (rectified_flow, 1),
    "knowledge distillation": (knowledge_distillation, 2),
    "meanflow, central difference": (partial(meanflow, derivative=difference), 2),
    "meanflow, with graph": (partial(meanflow, derivative=one.with_graph), 2),
    "improved meanflow": (improved_meanflow, 2),
    "improved meanflow, two heads": (both_heads, 2),
    "alpha-flow": (alpha_flow, 2),
    "split meanflow": (split_meanflow, 2),
    "shortcut": (shortcut, 2),
    "terminal velocity": (terminal_velocity, 2),
    "terminal velocity, frozen derivative": (partial(terminal_velocity, derivative=one.two_pass), 2),
    "solution flow": (solution_flow, 2),
    "continuous consistency": (continuous_consistency, 1),
    "continuous consistency, tangent as it is": (partial(continuous_consistency, normalize=None), 1),
    "continuous consistency, along a curve": (continuous_consistency_along, 1),
    "consistency trajectory": (consistency_trajectory, 2),
}


def loss_of(objective, module):
    def loss(parameters, *arguments):
        def net(*inputs):
            return functional_call(module, parameters, inputs)

        return one.squared_l2(*objective(net, *arguments))

    return loss


@pytest.mark.parametrize(("objective", "times"), TRAJECTORY.values(), ids=TRAJECTORY)
def test_per_sample_gradients_sum_to_the_batched_gradient(objective, times):
    module = Net(times)
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    arguments = batch()
    loss = loss_of(objective, module)
    batched = grad(lambda p, *a: loss(p, *a).sum())(parameters, *arguments)
    single = per_sample(grad(lambda p, *a: loss(p, *a).sum()), in_dims=(None, 0, 0, 0, 0, 0))(parameters, *arguments)
    loss(dict(module.named_parameters()), *arguments).sum().backward()
    for name, parameter in module.named_parameters():
        assert single[name].shape == (5, *parameter.shape)
        torch.testing.assert_close(single[name].sum(0), batched[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parameter.grad, batched[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("objective", "times"), TRAJECTORY.values(), ids=TRAJECTORY)
def test_an_empty_part_of_a_batch_has_no_loss_and_moves_nothing(objective, times):
    """So the losses of two parts of a batch can be joined, whatever the size of one."""
    module = Net(times)
    loss = loss_of(objective, module)(dict(module.named_parameters()), *(x[:0] for x in batch()))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(("objective", "times"), TRAJECTORY.values(), ids=TRAJECTORY)
def test_a_bare_vmap_over_samples_raises(objective, times):
    net = Net(times)
    with pytest.raises(ArgumentError):
        vmap(lambda *a: one.squared_l2(*objective(net, *a)))(*batch())


def test_moving_changes_nothing_where_the_others_stand_still():
    net = Net(2)
    _, z, v, t, s = batch()
    s = torch.where(torch.arange(5) < 2, s, t)
    torch.testing.assert_close(meanflow(net, None, z, v, t, s, moving=2), meanflow(net, None, z, v, t, s))


def test_meanflow_at_equal_times_is_flow_matching():
    net = Net(2)
    _, z, v, t, _ = batch()
    expected = one.flow_matching_regression(one.instantaneous(net), z, v, t)
    torch.testing.assert_close(one.meanflow_regression(net, z, v, t, t), expected)


def test_meanflow_with_a_given_scale_is_between():
    net = Net(2)
    _, z, v, t, s = batch()
    whole = one.meanflow_regression(net, z, v, t, s).target
    half = one.meanflow_regression(net, z, v, t, s, scale=0.5).target
    each = one.meanflow_regression(net, z, v, t, s, scale=torch.full_like(t, 0.5)).target
    torch.testing.assert_close(half, (v + whole) / 2)
    torch.testing.assert_close(each, half)


def points(seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, generator=generator, dtype=F64) for _ in range(4)]


LAPLACE = partial(one.laplace, temperature=0.7)
FIELDS = {
    "drift, both": partial(one.drift_field, kernel=LAPLACE, coupling=one.softmax_both),
    "drift, floor": partial(one.drift_field, kernel=LAPLACE, coupling=one.softmax_both, affinity_floor=1e-3),
    "drift, rows": partial(one.drift_field, kernel=LAPLACE, coupling=one.softmax_rows),
    "drift, unnormalised": partial(
        one.drift_field, kernel=partial(one.gaussian, bandwidth=0.7), coupling=one.unnormalized
    ),
    "drift, Sinkhorn": partial(one.drift_field, kernel=LAPLACE, coupling=partial(one.sinkhorn, iterations=3)),
    "drift, streamed": partial(one.drift_field, kernel=LAPLACE, coupling=one.softmax_both, block_size=3),
    "mean shift": partial(one.mean_shift_field, kernel=LAPLACE),
    "mean shift, corrected": partial(one.mean_shift_field, kernel=LAPLACE, bias_correction=True),
    "unbalanced": partial(one.drift_field, kernel=LAPLACE, coupling=one.softmax_both, attraction=2.0),
    "Sinkhorn divergence": partial(one.sinkhorn_field, epsilon=0.5, iterations=3),
    "kernel gradient": partial(one.kernel_gradient_field, kernel=LAPLACE, block_size=3),
    "MMD": partial(one.mmd_field, kernel=LAPLACE),
    "energy": one.energy_field,
    "several temperatures": one.multi_temperature(
        lambda temperature: partial(
            one.drift_field, kernel=partial(one.laplace, temperature=temperature), coupling=one.softmax_both
        ),
        (0.2, 1.0),
        normalize=True,
    ),
    "released": one.released_drift,
    "notebook": partial(one.notebook_drift, temperature=0.5),
    "in feature units": one.feature_normalized(
        lambda length: partial(one.mean_shift_field, kernel=partial(one.laplace, temperature=0.3 * length))
    ),
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_per_sample_gradients_of_a_field_computed_outside(field):
    """Samples of a field interact: the field is found batched, the pull is per sample."""
    _, positives, noise, _ = points()
    module = torch.nn.Linear(3, 3, dtype=F64)
    parameters = {k: p.detach() for k, p in module.named_parameters()}

    def generate(p, noise):
        return functional_call(module, p, (noise,))

    def batched(p):
        return one.squared_l2(*one.drifting_regression(generate(p, noise), positives, field=field)).sum()

    drift = field(generate(parameters, noise), positives)
    unit = (drift.samples / generate(parameters, noise)).mean().detach()

    def one_sample(p, noise, displacement):
        return one.squared_l2(*one.field_regression(unit * generate(p, noise), displacement)).sum()

    single = per_sample(grad(one_sample), in_dims=(None, 0, 0))(parameters, noise, drift.field)
    whole = grad(batched)(parameters)
    for name in parameters:
        torch.testing.assert_close(single[name].sum(0), whole[name], rtol=1e-8, atol=1e-10)


def compiled(function):
    """Traced without a break; the thorough run also generates and runs code."""
    torch._dynamo.reset()
    backend = "inductor" if os.environ.get("ONESTEP_COMPILE") == "inductor" else "aot_eager"
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize(("objective", "times"), TRAJECTORY.values(), ids=TRAJECTORY)
def test_objectives_compile_without_a_break(objective, times):
    module, (*rest, t, s) = Net(times), batch()
    # Both times in one storage, as ``torch.rand(2, batch)`` makes them.
    arguments = (*rest, *torch.stack([t, s]))

    def loss(*a):
        raw = one.squared_l2(*objective(module, *a))
        return (raw * one.adaptive(raw, power=1.0, epsilon=0.01)).mean()

    eager = torch.autograd.grad(loss(*arguments), list(module.parameters()))
    fast = torch.autograd.grad(compiled(loss)(*arguments), list(module.parameters()))
    torch.testing.assert_close(fast, eager, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_fields_compile_without_a_break(field):
    x, positives, _, _ = points()

    def loss(x):
        return one.mse(*one.drifting_regression(x, positives, field=field, groups=2)).mean()

    eager, fast = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(eager).backward()
    compiled(loss)(fast).backward()
    torch.testing.assert_close(fast.grad, eager.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("distance", [one.squared_l2, one.mse, one.l1, one.l2, one.cosine])
def test_distances_compile_without_a_break(distance):
    p, q = torch.randn(2, 4, 3)
    torch.testing.assert_close(compiled(distance)(p, q), distance(p, q))


SHAPES = {
    "mse": (one.mse, lambda z, v: (z[:, :1], v[:, 0])),
    "squared_l2": (one.squared_l2, lambda z, v: (z, v[:1])),
    "l1": (one.l1, lambda z, v: (z, v[:, :1])),
    "l2": (one.l2, lambda z, v: (z, v[0])),
    "cosine": (one.cosine, lambda z, v: (z, v[:, :1])),
    "pseudo_huber": (partial(one.pseudo_huber, c=0.1), lambda z, v: (z, v[:, :1])),
    "regression": (regression, lambda z, v: (z, v[:1])),
    "field_regression": (field_regression, lambda z, v: (z, v[:1])),
    "a path": (one.Linear(), lambda z, v: (z, v[:1], v[:, 0])),
    "a path's time": (one.Linear(), lambda z, v: (z, v, v[:1, 0])),
    "flow matching": (partial(one.flow_matching_regression, lambda z, t: z), lambda z, v: (z, v[:, :1], v[:, 0])),
    "meanflow": (partial(one.meanflow_regression, lambda z, t, s: z), lambda z, v: (z, v, v[:, 0], v[:1, 0])),
    "expand_like": (one.expand_like, lambda z, v: (v[:1, 0], z)),
    "energy distance": (one.energy_distance, lambda z, v: (z, v[:, :1])),
    "a kernel": (partial(one.laplace, temperature=1.0), lambda z, v: (z, v[:, :1])),
    "squared distances": (one.squared_distances, lambda z, v: (z, v[:, 0])),
    "a field": (
        partial(one.mean_shift_field, kernel=partial(one.laplace, temperature=1.0)),
        lambda z, v: (z, v[:, :1]),
    ),
}


@pytest.mark.parametrize(("function", "arguments"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("compiling", [False, True])
def test_shapes_that_disagree_raise_compiled_or_not(function, arguments, compiling):
    z, v = torch.rand(4, 3), torch.rand(4, 3)
    run = compiled(lambda *a: function(*a)) if compiling else function
    with pytest.raises((one.ConfigError, torch._dynamo.exc.TorchDynamoException)):
        run(*arguments(z, v))


def test_the_drop_in_lines():
    """As the README shows them, in float32, with a module that the core has never seen."""
    net = Net(2).float()
    data, noise, t, s = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4), torch.rand(4)
    z, v = one.Linear()(data, noise, t)
    raw = one.squared_l2(*one.meanflow_regression(net, z, v, t, s))
    loss = (raw * one.adaptive(raw, power=1.0, epsilon=0.01)).mean()
    loss.backward()
    assert raw.shape == (4,)
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_objectives_return_float32_under_autocast(dtype):
    net = Net(2).float()
    _, z, v, t, s = (x.float() for x in batch())
    with torch.autocast("cpu", dtype=dtype):
        pair = one.meanflow_regression(net, z, v, t, s)
        field = one.drift_field(z, v, kernel=LAPLACE, coupling=one.softmax_both).field
    assert pair.prediction.dtype == pair.target.dtype == field.dtype == torch.float32
    torch.testing.assert_close(field, one.drift_field(z, v, kernel=LAPLACE, coupling=one.softmax_both).field)
    exact = one.meanflow_regression(net, z, v, t, s)
    torch.testing.assert_close(pair.target, exact.target, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("objective", "times"), TRAJECTORY.values(), ids=TRAJECTORY)
def test_a_network_in_half_precision_sees_the_states_as_they_were_given(objective, times):
    """A bfloat16 network takes bfloat16 alone: any other state would raise in its first layer."""
    module, arguments = Net(times).bfloat16(), [x.bfloat16() for x in batch()]
    raw = one.squared_l2(*objective(module, *arguments))
    raw.sum().backward()
    assert raw.dtype in (torch.float32, torch.float64)
    assert raw.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())
