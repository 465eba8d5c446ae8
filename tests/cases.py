"""The project's own objects with the laws that they claim."""

from functools import partial
from typing import Any

import torch

from onestep_adapters.testing import Law, laws, strategies
from onestep_core import flow, objectives, regression
from onestep_core.diagnostics import GaussianMixture
from onestep_core.fields import (
    drift_field,
    energy_field,
    gaussian,
    inverse_multiquadric,
    kernel_gradient_field,
    laplace,
    matern,
    mean_shift_field,
    mmd_field,
    multi_temperature,
    notebook_drift,
    released_drift,
    sinkhorn,
    sinkhorn_field,
    softmax_both,
    softmax_rows,
    unnormalized,
)
from onestep_core.protocols import FlowMapForm

TWO_MODES = GaussianMixture.isotropic([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], 0.5)
ONE_MODE = GaussianMixture.isotropic([1.0], [[0.2, 0.1]], 0.8)
# Of the integrator: six leave 5e-5 at one of ten thousand states, twelve 3e-7.
STEPS = 12
EXACT_AVERAGE = partial(TWO_MODES.average_velocity, path=flow.Linear(), steps=STEPS)
EXACT_VELOCITY = partial(TWO_MODES.velocity, path=flow.Linear())

KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "laplace": (partial(laplace, temperature=0.5), {}),
    "gaussian": (partial(gaussian, bandwidth=0.7), {}),
    "matern_1": (partial(matern, smoothness=0.5, lengthscale=1.0), {}),
    "matern_3": (partial(matern, smoothness=1.5, lengthscale=1.0), {}),
    "matern_5": (partial(matern, smoothness=2.5, lengthscale=1.0), {}),
    "inverse_multiquadric": (partial(inverse_multiquadric, scale=1.0), {}),
}

COUPLINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "unnormalized": (unnormalized, {}),
    "softmax_rows": (softmax_rows, {"row_sum": 1.0}),
    "softmax_both": (softmax_both, {}),
    "sinkhorn": (partial(sinkhorn, iterations=150), {"equal_marginals": True, "tolerance": 1e-6}),
    "sinkhorn_alternating": (
        partial(sinkhorn, iterations=100, symmetric=False),
        {"equal_marginals": True, "column_sum": 1.0, "tolerance": 1e-6},
    ),
    "sinkhorn_once": (partial(sinkhorn, iterations=1, symmetric=False), {"column_sum": 1.0}),
}

_SHARP, _BELL = KERNELS["laplace"][0], KERNELS["gaussian"][0]

FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "drift_unnormalized": (partial(drift_field, kernel=_SHARP, coupling=unnormalized), {}),
    "drift_rows": (partial(drift_field, kernel=_BELL, coupling=softmax_rows), {}),
    "drift_both": (partial(drift_field, kernel=_SHARP, coupling=softmax_both), {}),
    "drift_both_in_blocks": (partial(drift_field, kernel=_SHARP, coupling=softmax_both, block_size=2), {}),
    "drift_sinkhorn": (partial(drift_field, kernel=_BELL, coupling=partial(sinkhorn, iterations=5)), {}),
    "drift_with_floor": (
        partial(drift_field, kernel=_SHARP, coupling=softmax_both, affinity_floor=1e-3),
        {},
    ),
    "mean_shift": (partial(mean_shift_field, kernel=_SHARP), {}),
    "mean_shift_both": (partial(mean_shift_field, kernel=_BELL, coupling=softmax_both), {}),
    "mean_shift_corrected": (partial(mean_shift_field, kernel=_BELL, bias_correction=True), {}),
    "sinkhorn_divergence": (partial(sinkhorn_field, epsilon=0.5, iterations=5), {}),
    "sinkhorn_divergence_alternating": (partial(sinkhorn_field, epsilon=0.5, iterations=5, symmetric=False), {}),
    "kernel_gradient": (partial(kernel_gradient_field, kernel=_BELL), {}),
    "kernel_gradient_of_matern": (partial(kernel_gradient_field, kernel=KERNELS["matern_3"][0], block_size=2), {}),
    "mmd": (partial(mmd_field, kernel=_BELL), {}),
    "energy": (energy_field, {}),
    "three_temperatures": (
        multi_temperature(
            lambda t: partial(drift_field, kernel=partial(laplace, temperature=t), coupling=softmax_both),
            (0.2, 0.5, 2.0),
            normalize=False,
        ),
        {},
    ),
    # One scale and one root mean square for the whole call: groups meet. Scale-free but for the floor of distances,
    # 1e-4 in absolute units, which enters the scale through the self pairs (tests/core/objectives/test_drifting.py).
    "released": (released_drift, {"explicit_negatives": False, "grouped": False}),
    "notebook": (
        partial(notebook_drift, temperature=0.5),
        {"explicit_negatives": False, "grouped": False},
    ),
    # One scale for the whole call; self pairs enter it at the floor of distances, which does not grow with the points:
    # scale-free but for that (tests/core/objectives/test_drifting.py).
    "in_units_of_the_mean_distance": (
        objectives.feature_normalized(
            lambda length: partial(mean_shift_field, kernel=partial(laplace, temperature=0.4 * length))
        ),
        {"grouped": False},
    ),
}

PATHS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (flow.Linear(), {}),
    "linear_with_floor": (flow.Linear(0.005), {}),
    "reversed_linear": (flow.reverse(flow.Linear()), {}),
    "trigonometric": (flow.Trigonometric(0.5), {}),
    "variance_preserving": (flow.VariancePreserving(strategies.cosine_log_snr), {}),
    "cosine_with_ends": (flow.VariancePreserving.cosine(log_snr_min=-15.0, log_snr_max=15.0), {"clean_end": 1e-3}),
    "noise_of_the_spread_of_the_data": (flow.NoiseScaled(flow.Linear(), 0.5), {}),
    "table": (
        flow.VariancePreserving.from_table(torch.linspace(0.9999, 0.01, 20, dtype=torch.float64)),
        {"clean_end": 0.02},
    ),
    "variance_exploding": (flow.VarianceExploding(), {}),
}

DISTANCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "squared_l2": (regression.squared_l2, {}),
    "mse": (regression.mse, {}),
    "l1": (regression.l1, {}),
    "l2": (regression.l2, {}),
    "pseudo_huber": (partial(regression.pseudo_huber, c=0.03), {}),
    "cosine": (regression.cosine, {"definite": False}),
}

DERIVATIVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "single_pass": (flow.single_pass, {}),
    "two_pass": (flow.two_pass, {}),
    "with_graph": (flow.with_graph, {"frozen": False}),
    "central_difference": (partial(flow.central_difference, step=1e-5), {"tolerance": 1e-8}),
}

FORMS: dict[str, FlowMapForm] = {
    "euler": flow.EulerForm(),
    "variance": flow.VarianceForm(0.7, 0.01),
    "euler_variance": flow.EulerVarianceForm(0.7, 0.01),
    "skip": flow.SkipForm(0.7),
}


def _to_the_end(form: FlowMapForm) -> Any:
    """A raw network as the consistency function of a flow map of this form."""

    def wrap(network: Any) -> Any:
        return flow.consistency_from_flow_map(
            flow.flow_map_from_network(lambda z, t, s: network(z, t), form=form), end=0.002
        )

    return wrap


PRECONDITIONINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "edm": (partial(flow.edm, sigma_data=0.5), {"unit_variance": 0.5, "boundary": 0.0}),
    "consistency": (partial(flow.consistency, sigma_data=0.5, sigma_min=0.002), {"boundary": 0.002}),
    "trigflow": (partial(flow.trigflow, sigma_data=0.5), {"boundary": 0.0}),
    **{f"to_the_end_{name}": (_to_the_end(form), {"boundary": 0.002}) for name, form in FORMS.items()},
}


def _oracle(name: str, **keywords: Any) -> Any:
    def exact(mixture: GaussianMixture, path: Any) -> Any:
        return partial(getattr(mixture, name), path=path, **keywords)

    return exact


_LINE = flow.Linear()


def _at_middle(p: strategies.Problem) -> torch.Tensor:
    """The pair's own state at ``m``: the step of consistency training."""
    return _LINE(p.data, p.noise, p.m).z


def _difference(function, primals, tangents, /, *, moving=None):
    """With a step that fits the precision: a law asks a network that answers in bfloat16."""
    step = 1e-4 if primals[0].dtype == torch.float64 else 0.1
    return flow.central_difference(function, primals, tangents, step=step)


def _end_of_trajectory(mixture: GaussianMixture, path: Any) -> Any:
    return flow.consistency_from_flow_map(partial(mixture.flow_map, path=path, steps=STEPS), end=path.data_time)


def trigflow_truth(mixture: GaussianMixture, path: Any, steps: int = STEPS) -> Any:
    """The network whose consistency function is the exact flow map to the data end of a trigonometric path."""

    def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (c.unsqueeze(1) for c in path.coefficients(t))
        return (alpha * z - mixture.flow_map(z, t, 0 * t, path=path, steps=steps)) / sigma

    return network


TRIGFLOW = flow.Trigonometric(0.5)


def _along_the_pair(p: strategies.Problem) -> Any:
    return flow.derivative_along(lambda t: (TRIGFLOW(p.data, p.noise, t).z, t), flow.relative_step(p.t, fraction=3e-5))


def _trajectory(network: Any, p: strategies.Problem) -> regression.Regression:
    """Solver and inner map exact, since the loss alone compares two jumps without an anchor; any outer map serves."""
    exact = partial(TWO_MODES.flow_map, path=flow.Linear(), steps=STEPS)
    step = flow.flow_map_from_average_velocity(lambda z, t, s: TWO_MODES.velocity(z, t, path=flow.Linear()))
    z_m = exact(p.z, p.t, p.m)
    return objectives.consistency_trajectory_regression(network, exact, step, p.z, z_m, p.t, p.m, p.s, end=0.0)


def _matching(network: Any, p: strategies.Problem, **options: Any) -> regression.Regression:
    """The network is a generator; the noise of its samples is the pair's data, which it has not seen."""
    samples = network(p.noise)
    z, _ = _LINE(samples, p.data, p.t)
    denoisers = (partial(law.denoiser, path=_LINE) for law in (TWO_MODES, ONE_MODE))
    return objectives.distribution_matching_regression(*denoisers, samples, z, p.t, path=_LINE, **options)


OBJECTIVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "flow_matching": (
        lambda network, p: objectives.flow_matching_regression(network, p.z, p.v, p.t),
        {"exact": _oracle("velocity"), "marginal": True, "unbiased": True, "compiled": True},
    ),
    "denoising": (
        lambda network, p: objectives.denoising_regression(network, p.z, p.data, p.t),
        {"exact": _oracle("denoiser"), "unbiased": True},
    ),
    "meanflow": (
        lambda network, p: objectives.meanflow_regression(network, p.z, p.v, p.t, p.s),
        {
            "exact": _oracle("average_velocity", steps=STEPS),
            "marginal": True,
            "unbiased": True,
            "compiled": True,
        },
    ),
    "meanflow_by_differences": (
        lambda network, p: objectives.meanflow_regression(network, p.z, p.v, p.t, p.s, derivative=_difference),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True},
    ),
    # The tangent is the marginal velocity, whatever ``p.v`` is; then the derivative is the same for every pair.
    "improved_meanflow": (
        lambda network, p: objectives.improved_meanflow_regression(
            network, p.z, p.v, TWO_MODES.velocity(p.z, p.t, path=flow.Linear()), p.t, p.s
        ),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "unbiased": True},
    ),
    # Its own velocity as the tangent: a shifted one can push further away.
    "improved_meanflow_of_itself": (
        lambda network, p: objectives.improved_meanflow_regression(network, p.z, p.v, network(p.z, p.t, p.t), p.t, p.s),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "restoring": False, "compiled": True},
    ),
    # Biased at the oracle: tests/core/objectives/test_average_velocity.py measures it.
    "alpha_flow": (
        lambda network, p: objectives.alpha_flow_regression(network, network, p.z, p.v, p.t, p.s, alpha=0.3),
        {"compiled": True},
    ),
    "alpha_flow_at_one": (
        lambda network, p: objectives.alpha_flow_regression(
            lambda z, t, s: network(z, t), lambda z, t, s: network(z, t), p.z, p.v, p.t, p.s, alpha=1.0
        ),
        {"exact": _oracle("velocity"), "marginal": True, "unbiased": True},
    ),
    "solution_flow": (
        lambda network, p: objectives.solution_flow_regression(network, network, p.z, p.v, p.t, p.m, p.s),
        {"compiled": True},
    ),
    # A flow that is shifted agrees with itself as well as the true one: nothing here points back.
    "split_meanflow": (
        lambda network, p: objectives.split_meanflow_regression(network, network, p.z, p.t, p.m, p.s),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "restoring": False, "compiled": True},
    ),
    "shortcut": (
        lambda network, p: objectives.shortcut_regression(network, network, p.z, p.t, p.s),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "restoring": False, "compiled": True},
    ),
    "split_meanflow_of_a_teacher": (
        lambda network, p: objectives.split_meanflow_regression(network, EXACT_AVERAGE, p.z, p.t, p.m, p.s),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "fraction": 0.1},
    ),
    "shortcut_of_a_teacher": (
        lambda network, p: objectives.shortcut_regression(network, EXACT_AVERAGE, p.z, p.t, p.s),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "fraction": 0.1},
    ),
    # The end of a shifted jump lies where the velocity is another: over long jumps that outweighs the shift.
    "terminal_velocity": (
        lambda network, p: objectives.terminal_velocity_regression(network, EXACT_VELOCITY, p.z, p.t, p.s),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "restoring": False},
    ),
    "terminal_velocity_of_itself": (
        lambda network, p: objectives.terminal_velocity_regression(
            network, flow.instantaneous(network), p.z, p.t, p.s, derivative=flow.two_pass
        ),
        {"exact": _oracle("average_velocity", steps=STEPS), "marginal": True, "restoring": False, "compiled": True},
    ),
    "consistency_training": (
        lambda network, p: objectives.consistency_regression(network, network, p.z, _at_middle(p), p.t, p.m),
        {"compiled": True},
    ),
    # In one jump to the data the target is the data: denoising.
    "consistency_training_in_one_jump": (
        lambda network, p: objectives.consistency_regression(network, network, p.z, p.data, p.t, 0 * p.m, end=0.0),
        {"exact": _oracle("denoiser"), "unbiased": True, "compiled": True},
    ),
    # A shift of the whole function has no loss: the boundary condition, and not the objective, excludes it.
    "consistency_distillation": (
        lambda network, p: objectives.consistency_regression(
            network, network, p.z, TWO_MODES.flow_map(p.z, p.t, p.m, path=_LINE, steps=STEPS), p.t, p.m
        ),
        {"exact": _end_of_trajectory, "marginal": True, "restoring": False, "fraction": 0.1},
    ),
    "continuous_consistency": (
        lambda network, p: objectives.continuous_consistency_regression(
            network, p.z, p.v, p.t, sigma_data=0.5, normalize=None
        ),
        {"path": TRIGFLOW, "exact": trigflow_truth, "marginal": True, "unbiased": True, "compiled": True},
    ),
    "continuous_consistency_normalized": (
        lambda network, p: objectives.continuous_consistency_regression(network, p.z, p.v, p.t, sigma_data=0.5),
        {"path": TRIGFLOW, "exact": trigflow_truth, "marginal": True, "compiled": True},
    ),
    "continuous_consistency_along_the_pair": (
        lambda network, p: objectives.continuous_consistency_regression(
            network, p.z, p.v, p.t, sigma_data=0.5, normalize=None, derivative=_along_the_pair(p)
        ),
        {"path": TRIGFLOW, "exact": trigflow_truth, "unbiased": True},
    ),
    "consistency_trajectory": (
        _trajectory,
        {"exact": _oracle("flow_map", steps=STEPS), "marginal": True, "fraction": 0.1},
    ),
    "progressive": (
        lambda network, p: objectives.progressive_regression(
            network, network, p.z, p.t, p.m, p.s, path=PATHS["linear"][0]
        ),
        {"compiled": True},
    ),
    "rectified_flow": (
        lambda network, p: objectives.rectified_flow_regression(network, p.z, p.data, p.t, p.m, p.s),
        {"compiled": True},
    ),
    "knowledge_distillation": (
        lambda network, p: objectives.knowledge_distillation_regression(
            network, p.z, TWO_MODES.flow_map(p.z, p.t, p.s, path=flow.Linear(), steps=STEPS).to(p.z.dtype), p.t, p.s
        ),
        {"exact": _oracle("flow_map", steps=STEPS), "marginal": True, "fraction": 0.1},
    ),
    "distribution_matching": (_matching, {"compiled": True}),
    "distribution_matching_of_scores": (partial(_matching, normalizer=None), {"compiled": True}),
    "drifting": (
        lambda network, p: objectives.drifting_regression(network(p.noise), p.data, field=FIELDS["drift_both"][0]),
        {"independent": False},
    ),
}

AVERAGE_VELOCITIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    name: (
        partial(TWO_MODES.average_velocity, path=path, steps=6),
        partial(TWO_MODES.velocity, path=path),
        {"states": strategies.problems(TWO_MODES, path, batch=32), "tolerance": 1e-3},
    )
    for name, path in {"linear": flow.Linear(), "trigonometric": flow.Trigonometric(0.5)}.items()
}


def project_laws() -> list[tuple[str, Law]]:
    """Every law of every object above, with a name for both."""
    found: list[tuple[str, Law]] = []
    for group, table in (
        (laws.kernel, KERNELS),
        (laws.coupling, COUPLINGS),
        (laws.field, FIELDS),
        (laws.path, PATHS),
        (laws.distance, DISTANCES),
        (laws.derivative, DERIVATIVES),
        (laws.preconditioning, PRECONDITIONINGS),
        (laws.objective, OBJECTIVES),
    ):
        for name, (thing, claims) in table.items():
            found += [(f"{name}:{law}", law) for law in group(thing, **claims)]
    for name, (network, velocity, claims) in AVERAGE_VELOCITIES.items():
        found += [(f"{name}:{law}", law) for law in laws.average_velocity(network, velocity, **claims)]
    return found
