"""The project's own objects with the laws that they claim."""

from functools import partial
from typing import Any

import torch

from onestep_adapters.testing import Law, laws, strategies
from onestep_core import flow, objectives, regression
from onestep_core.evidence import GaussianMixture
from onestep_core.fields import (
    drift_field,
    gaussian,
    inverse_multiquadric,
    laplace,
    matern,
    mean_shift_field,
    multi_temperature,
    notebook_drift,
    released_drift,
    sinkhorn,
    softmax_both,
    softmax_rows,
    unnormalized,
)

TWO_MODES = GaussianMixture.isotropic([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], 0.5)

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
    "three_temperatures": (
        multi_temperature(
            lambda t: partial(drift_field, kernel=partial(laplace, temperature=t), coupling=softmax_both),
            (0.2, 0.5, 2.0),
            normalize=False,
        ),
        {},
    ),
    # One scale and one root mean square for the whole call: groups meet.
    "released": (released_drift, {"explicit_negatives": False, "grouped": False}),
    # The floor of distances, 1e-4 in absolute units, enters its scale through the self pairs.
    "released_in_other_units": (
        released_drift,
        {"explicit_negatives": False, "grouped": False, "scale_free": True, "tolerance": 1e-7},
    ),
    "notebook": (
        partial(notebook_drift, temperature=0.5),
        {"explicit_negatives": False, "grouped": False},
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
    "two_pass": (flow.two_pass, {}),
    "with_graph": (flow.with_graph, {"frozen": False}),
    "central_difference": (partial(flow.central_difference, step=1e-5), {"tolerance": 1e-8}),
}

PRECONDITIONINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "edm": (partial(flow.edm, sigma_data=0.5), {"unit_variance": 0.5, "boundary": 0.0}),
    "consistency": (partial(flow.consistency, sigma_data=0.5, sigma_min=0.002), {"boundary": 0.002}),
}


def _oracle(name: str, **keywords: Any) -> Any:
    def exact(mixture: GaussianMixture, path: Any) -> Any:
        return partial(getattr(mixture, name), path=path, **keywords)

    return exact


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
            "exact": _oracle("average_velocity", steps=6),
            "marginal": True,
            "unbiased": True,
            "compiled": True,
        },
    ),
    "meanflow_by_differences": (
        lambda network, p: objectives.meanflow_regression(
            network, p.z, p.v, p.t, p.s, derivative=partial(flow.central_difference, step=1e-4)
        ),
        {"exact": _oracle("average_velocity", steps=6), "marginal": True},
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
            network, p.z, TWO_MODES.flow_map(p.z, p.t, p.s, path=flow.Linear(), steps=8).to(p.z.dtype), p.t, p.s
        ),
        {"exact": _oracle("flow_map", steps=8), "marginal": True},
    ),
    "drifting": (
        lambda network, p: objectives.drifting_regression(network(p.noise), p.data, field=FIELDS["drift_both"][0]),
        {"independent": False},
    ),
}

AVERAGE_VELOCITIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    name: (
        partial(TWO_MODES.average_velocity, path=path, steps=6),
        partial(TWO_MODES.velocity, path=path),
        {"states": strategies.problems(TWO_MODES, path), "tolerance": 1e-3},
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
