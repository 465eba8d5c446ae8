"""Numbers that would make a loss meaningless are refused where they are Python numbers."""

import math
from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_adapters.testing import LawError, laws
from onestep_core.errors import ConfigError

X, Y = (
    torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
    torch.randn(7, 3, generator=torch.Generator().manual_seed(1)),
)
T = torch.linspace(0.2, 0.9, 6)
S, LOSS, LINE = T / 2, T**2, one.Linear()
LAPLACE = partial(one.laplace, temperature=1.0)
NAN, INF = math.nan, math.inf


def net(z, *times):
    return z


def in_field(field, **options):
    return lambda name, value: field(X, Y, **{**options, name: value})


DRIFT = in_field(one.drift_field, kernel=LAPLACE, coupling=one.softmax_both)
LENGTHS = [0.0, -1.0, NAN, 1e-30]
CASES = {
    "temperature": (lambda v: one.laplace(X, Y, temperature=v), LENGTHS),
    "bandwidth": (lambda v: one.gaussian(X, Y, bandwidth=v), LENGTHS),
    "lengthscale": (lambda v: one.matern(X, Y, smoothness=1.5, lengthscale=v), LENGTHS),
    "scale": (lambda v: one.inverse_multiquadric(X, Y, scale=v), LENGTHS),
    "temperature of the released field": (lambda v: one.released_drift(X, Y, temperatures=(v,)), LENGTHS),
    "temperature of the notebook": (lambda v: one.notebook_drift(X, Y, temperature=v), LENGTHS),
    "temperatures": (lambda v: one.geometric_temperature(0.5, start=v, end=1.0), LENGTHS),
    "entropic width": (lambda v: one.sinkhorn_divergence(X, Y, epsilon=v, iterations=2), LENGTHS),
    "entropic width of a field": (lambda v: one.sinkhorn_field(X, Y, epsilon=v, iterations=2), LENGTHS),
    "length of moment matching": (
        lambda v: one.moment_matching_loss(net, net, X, X, T, S, S, particles=2, kernel=LAPLACE, length=v),
        [0.0, -1.0, NAN],
    ),
    "attraction": (partial(DRIFT, "attraction"), [-1.0, NAN]),
    "repulsion": (partial(DRIFT, "repulsion"), [-1.0, NAN]),
    "affinity floor": (partial(DRIFT, "affinity_floor"), [-1.0, NAN]),
    "attraction of mean shift": (
        lambda v: one.mean_shift_field(X, Y, kernel=LAPLACE, attraction=v),
        [-1.0, NAN],
    ),
    "attraction of the released field": (lambda v: one.released_drift(X, Y, attraction=v), [-1.0, NAN]),
    "repulsion of the released field": (lambda v: one.released_drift(X, Y, repulsion=v), [-1.0, NAN]),
    "share between times": (lambda v: one.time_between(T, S, share=v), [2.0, -1.0, NAN]),
    "std of log-normal times": (lambda v: one.log_normal_times(T, mean=0.0, std=v), [-1.0, 0.0, NAN]),
    "std of logit-normal times": (lambda v: one.logit_normal_times(T, mean=0.0, std=v), [-1.0, 0.0, NAN]),
    "std of truncated times": (
        lambda v: one.truncated_logit_normal_times(T, mean=0.0, std=v, low=0.1, high=0.9),
        [-1.0, 0.0, NAN],
    ),
    "range of uniform times": (lambda v: one.uniform_times(T, low=1.0, high=v), [0.0, NAN]),
    "power of an adaptive weight": (lambda v: one.adaptive(LOSS, power=v, epsilon=0.1), [-1.0, NAN, INF]),
    "epsilon of an adaptive weight": (lambda v: one.adaptive(LOSS, power=1.0, epsilon=v), [-1.0, NAN]),
    "weight of one group": (lambda v: one.separate_means(LOSS, LOSS > 0.3, weight=v), [-1.0, NAN]),
    "power of an inverse duration": (lambda v: one.inverse_duration(T, S, power=v), [-1.0, NAN]),
    "constant of a tangent": (lambda v: one.normalize_tangent(X, constant=v), [-1.0, NAN]),
    "c of pseudo-Huber": (lambda v: one.pseudo_huber(X, X, c=v), [0.0, -1.0, NAN, INF]),
    "epsilon of a denoising error": (lambda v: one.denoising_error(X, X, epsilon=v), [-1.0, NAN]),
    "limit of a density ratio": (lambda v: one.density_ratio(LOSS, limit=v), [-1.0, NAN]),
    "scale of guidance": (lambda v: one.classifier_free(net, net, scale=v), [NAN, INF]),
    "omega": (lambda v: one.guided_velocity(X, X, X, omega=v, kappa=0.0), [NAN, INF]),
    "scale of MeanFlow's derivative": (lambda v: one.meanflow_regression(net, X, X, T, S, scale=v), [-1.0, NAN]),
    "end of consistency": (lambda v: one.consistency_regression(net, net, X, X, T, S, end=v), [NAN]),
    "alpha of SiD": (lambda v: one.score_identity_loss(net, net, X, X, T, alpha=v), [NAN, INF]),
    "sigma_data of EDM": (lambda v: one.edm(net, sigma_data=v), [0.0, -1.0, NAN]),
    "sigma_data of a consistency function": (lambda v: one.consistency(net, sigma_data=v), [0.0, -1.0, NAN]),
    "step of a difference": (lambda v: one.central_difference(net, (X,), (X,), step=v), [0.0, -1.0, NAN, INF]),
    "progress of a curriculum": (lambda v: one.annealed(v, begin=0, end=10, initial=1.0, final=0.0), [NAN]),
    "margin of the boundary": (lambda v: one.boundary_times(T, T > 0.5, transition=0.5, margin=v), [-1.0, NAN]),
}


@pytest.mark.parametrize(
    ("call", "value"),
    [(call, value) for call, values in CASES.values() for value in values],
    ids=[f"{name} {value}" for name, (_, values) in CASES.items() for value in values],
)
def test_a_meaningless_number_is_refused(call, value):
    with pytest.raises(ConfigError, match="expected"):
        call(value)


def test_a_loss_of_zero_without_epsilon_has_weight_zero_and_no_nan():
    loss = torch.tensor([0.0, 2.0], requires_grad=True)
    weighted = loss * one.adaptive(loss, power=1.0, epsilon=0.0)
    weighted.sum().backward()
    assert weighted.tolist() == [0.0, 1.0]
    assert loss.grad.tolist() == [0.0, 0.5]
    assert one.adaptive(loss, power=0.0, epsilon=0.0).tolist() == [1.0, 1.0]


def test_integer_times_and_images_of_bytes_say_what_to_do():
    with pytest.raises(ConfigError, match=r"t is int64.*t\.float\(\)"):
        one.flow_matching_regression(net, X, X, torch.arange(6))
    with pytest.raises(ConfigError, match=r"data is uint8.*127\.5 - 1"):
        LINE(torch.zeros(6, 3, dtype=torch.uint8), X, T)


def test_a_field_that_returns_a_tensor_is_told_what_a_field_returns():
    def wrong(samples, positives, negatives=None):
        return positives.mean(-2, keepdim=True) - samples

    with pytest.raises(ConfigError, match=r"returned a Tensor, expected a Drift"):
        one.drifting_regression(X, Y, field=wrong)
    with pytest.raises(LawError, match=r"returned a Tensor, expected a Drift"):
        laws.field(wrong)[0]()


@pytest.mark.parametrize("null", [torch.zeros(2), torch.zeros(1, 2), torch.zeros(3, 2), 0, 0.0])
def test_a_null_label_broadcasts_over_the_batch(null):
    labels = torch.ones(3, 2)
    found = one.drop_labels(labels, null, torch.tensor([True, False, True]))
    assert found.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_a_null_label_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match="expected one label"):
        one.drop_labels(torch.ones(3, 2), torch.zeros(3), torch.ones(3, dtype=torch.bool))


def test_trigflow_of_a_denoiser_is_finite_at_both_ends():
    """Data of standard deviation 0.5: the expected data is known at every noise level."""
    for dtype in (torch.float32, torch.float64):
        f = one.trigflow(
            one.trigflow_from_denoiser(lambda z, sigma: z / (1 + sigma[:, None].square() / 0.25), sigma_data=0.5),
            sigma_data=0.5,
        )
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
        path = one.Trigonometric(0.5)
        noise_end = f(z, torch.full((4,), path.noise_time, dtype=dtype))
        torch.testing.assert_close(noise_end, torch.zeros_like(z), rtol=0, atol=1e-3)
        torch.testing.assert_close(f(z, torch.zeros(4, dtype=dtype)), z)
