"""Distribution matching against closed forms: its gradient is the divergence's, and what turns it away is named."""

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import onestep_core as one
from onestep_core import flow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from tests.toy import F64

REAL = GaussianMixture.isotropic([0.35, 0.65], [[-1.0], [1.3]], 0.5)


PATHS = {
    "linear": one.Linear(),
    "trigonometric": one.Trigonometric(0.8),
    "exploding": one.VarianceExploding(0.0, 80.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


TIME = 0.45


def generator() -> Tensor:
    """Slope and shift of an affine generator of Gaussian noise."""
    return torch.tensor([0.8, 0.4], dtype=F64, requires_grad=True)


def nodes(count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Hermite nodes of two independent normal numbers, ``[count^2, 1]`` each, and their weights."""
    places, masses = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(count))
    pairs, weights = torch.cartesian_prod(places, places), torch.cartesian_prod(masses, masses).prod(1)
    return pairs[:, :1], pairs[:, 1:], weights / weights.sum()


def noised(parameters: Tensor, path: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples with their graph, noised states with theirs, times and weights."""
    latent, noise, weights = nodes()
    samples = parameters[0] * latent + parameters[1]
    t = torch.full_like(weights, TIME)
    return samples, path(samples, noise, t).z, t, weights


def fake_law(parameters: Tensor) -> GaussianMixture:
    slope, shift = parameters.detach().tolist()
    return GaussianMixture([1.0], [[shift]], [[[slope**2]]])


def gradient(parameters: Tensor, path: object, *, real: GaussianMixture = REAL, **options: object) -> Tensor:
    samples, z, t, weights = noised(parameters, path)
    denoisers = (partial(law.denoiser, path=path) for law in (real, fake_law(parameters)))
    pair = one.distribution_matching_regression(*denoisers, samples, z, t, path=path, **options)
    return torch.autograd.grad((weights * one.squared_l2(*pair)).sum() / 2, parameters)[0]


def densities(parameters: Tensor, path: object) -> tuple[Tensor, Tensor, float]:
    """Logarithms of both noised densities on a grid; the fake one with its graph in the parameters."""
    z = torch.linspace(-9, 9, 6001, dtype=F64)[:, None]
    t = torch.full((len(z),), TIME, dtype=F64)
    alpha, sigma = (c[0] for c in path.coefficients(t))
    variance = (alpha * parameters[0]) ** 2 + sigma**2
    fake = -0.5 * ((z[:, 0] - alpha * parameters[1]) ** 2 / variance + (2 * torch.pi * variance).log())
    return REAL.log_density(z, t, path=path), fake, float(z[1] - z[0])


@each_path
@pytest.mark.parametrize("weight", [None, 0.3])
def test_without_the_normaliser_the_gradient_is_that_of_the_divergence(path, weight):
    parameters = generator()
    real, fake, step = densities(parameters, path)
    divergence = ((fake.exp() * (fake - real)).sum() * step) * (weight or 1)
    exact = torch.autograd.grad(divergence, parameters)[0]
    scale = None if weight is None else torch.full((3600,), weight, dtype=F64)
    found = gradient(parameters, path, normalizer=None, scale=scale)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)


@each_path
def test_the_published_normaliser_turns_the_gradient(path):
    """The gradient's length may change with a step size; its direction can not be undone by one."""
    parameters = generator()
    exact = gradient(parameters, path, normalizer=None)
    for normalizer in (one.denoising_error, partial(one.denoising_error, epsilon=1e-6)):
        turned = gradient(parameters, path, normalizer=normalizer)
        assert torch.nn.functional.cosine_similarity(exact, turned, dim=0) < 0.995


@each_path
def test_equal_laws_do_not_move(path):
    parameters = generator()
    real = fake_law(parameters)
    for normalizer in (one.denoising_error, None):
        assert float(gradient(parameters, path, real=real, normalizer=normalizer).abs().max()) == 0


F_DIVERGENCES = {
    one.reverse_kl: lambda r: -r.log(),
    one.forward_kl: lambda r: r * r.log(),
    one.jensen_shannon: lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
    one.softened_reverse_kl: lambda r: (1 + r) * ((1 + r) / (2 * r)).log(),
    one.neyman: lambda r: 1 / (2 * r),
    one.squared_hellinger: lambda r: 2 * (1 - r.sqrt()) ** 2,
    one.jeffreys: lambda r: (r - 1) * r.log(),
}


@pytest.mark.parametrize("divergence", F_DIVERGENCES, ids=lambda d: d.__name__)
def test_the_scale_of_an_f_divergence_gives_its_gradient(divergence):
    parameters, path = generator(), one.Linear()
    real, fake, step = densities(parameters, path)
    value = (fake.exp() * F_DIVERGENCES[divergence]((real - fake).clamp(-200, 200).exp())).sum() * step
    exact = torch.autograd.grad(value, parameters)[0]
    _, z, t, _ = noised(parameters, path)
    z = z.detach()
    logits = REAL.log_density(z, t, path=path) - fake_law(parameters).log_density(z, t, path=path)
    found = gradient(parameters, path, normalizer=None, scale=divergence(logits.exp()))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


def test_the_scale_has_mean_one_and_follows_the_ratio_of_its_samples():
    logits, t = torch.tensor([[-1.0], [0.0], [2.0], [50.0]], dtype=F64), torch.full((4,), 0.5, dtype=F64)
    scale = one.f_divergence_scale(logits, t, divergence=one.forward_kl, epsilon=0.0)
    torch.testing.assert_close(scale.mean(), torch.ones((), dtype=F64))
    torch.testing.assert_close(scale[2] / scale[1], torch.tensor(2.0, dtype=F64).exp())
    torch.testing.assert_close(scale[3] / scale[1], torch.tensor(20.0, dtype=F64))


def test_means_of_bins_take_the_level_of_a_time_away():
    """Samples of a time that all have the same ratio count alike, whatever the ratio of their time is."""
    t = torch.tensor([0.1, 0.2, 0.9, 0.9], dtype=F64)
    logits = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    span = {"low": 0.0, "high": 1.0}
    means = one.ratio_means(one.density_ratio(logits), t, torch.ones(2, dtype=F64), **span)
    scale = one.f_divergence_scale(logits, t, divergence=one.forward_kl, means=means, **span)
    torch.testing.assert_close(scale, torch.ones_like(scale), rtol=0, atol=1e-5)
    kept = one.ratio_means(torch.full((1,), 9.0), torch.zeros(1), torch.tensor([1.0, 4.0]), decay=0.75, **span)
    torch.testing.assert_close(kept, torch.tensor([3.0, 4.0]))


@each_path
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.2])
def test_score_identity_has_its_value_for_every_alpha(path, alpha):
    """``E <R - F, (R - x) - alpha (R - F)> = (1 - alpha) E |R - F|^2`` where the fake denoiser is exact."""
    parameters = generator()
    samples, z, t, weights = (part.detach() for part in noised(parameters, path))
    real, fake = (partial(law.denoiser, path=path) for law in (REAL, fake_law(parameters)))
    loss = one.score_identity_loss(real, fake, samples, z, t, alpha=alpha, normalizer=None)
    gap = one.squared_l2(real(z, t), fake(z, t))
    torch.testing.assert_close((weights * loss).sum(), (1 - alpha) * (weights * gap).sum(), rtol=1e-5, atol=1e-6)


@each_path
def test_score_identity_with_alpha_one_half_has_half_of_the_fisher_divergences_gradient(path):
    """A fixed fake score, compared with the divergence differentiated with a fake score that depends on the samples."""
    parameters = generator()
    samples, z, t, weights = noised(parameters, path)
    real, fake = (partial(law.denoiser, path=path) for law in (REAL, fake_law(parameters)))
    alpha, sigma = (c[0] for c in path.coefficients(t))

    def following(z, t):
        gain = alpha * parameters[0] ** 2 / ((alpha * parameters[0]) ** 2 + sigma**2)
        return parameters[1] + gain * (z - alpha * parameters[1])

    torch.testing.assert_close(following(z, t), fake(z, t), rtol=1e-9, atol=1e-9)
    divergence = (weights * one.squared_l2(real(z, t), following(z, t))).sum()
    exact = torch.autograd.grad(divergence, parameters, retain_graph=True)[0]

    def slope(alpha):
        loss = one.score_identity_loss(real, fake, samples, z, t, alpha=alpha, normalizer=None)
        return torch.autograd.grad((weights * loss).sum(), parameters, retain_graph=True)[0]

    torch.testing.assert_close(slope(0.5), exact / 2, rtol=1e-5, atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(slope(1.2), exact, dim=0) < 0.999


def test_score_identity_passes_its_gradient_through_both_denoisers():
    x = torch.tensor([[1.0, -2.0]], dtype=F64, requires_grad=True)
    t = torch.full((1,), 0.5, dtype=F64)
    wired = one.score_identity_loss(lambda z, t: 0.3 * z, lambda z, t: 0.7 * z, x, 2 * x, t, alpha=1.2, normalizer=None)
    # R = 0.6 x and F = 1.4 x: (R - F) [(R - x) - 1.2 (R - F)] = -0.8 (-0.4 + 0.96) x^2.
    torch.testing.assert_close(torch.autograd.grad(wired.sum(), x)[0], 2 * -0.8 * 0.56 * x.detach())


def test_a_kernel_in_place_of_the_fake_network_is_drifting_by_mean_shift():
    """Gaussian kernels for both distributions: the gap is the mean-shift field at the noised samples."""
    path, sigma = one.VarianceExploding(0.0, 80.0), 0.7
    data, samples, noise = torch.randn(3, 12, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.full((12,), sigma, dtype=F64)
    z = path(samples, noise, t).z
    real, fake = (lambda z, t, y=y: one.empirical_denoiser(z, y, t, path=path) for y in (data, samples))
    pair = one.distribution_matching_regression(real, fake, samples, z, t, path=path, scale=t.square(), normalizer=None)
    drift = one.mean_shift_field(z, data, samples, kernel=partial(one.gaussian, bandwidth=sigma))
    torch.testing.assert_close(pair.target - pair.prediction, drift.field, rtol=1e-9, atol=1e-11)


def test_a_sample_that_the_real_denoiser_leaves_alone_stays():
    x = torch.ones(1, 2)
    assert torch.equal(one.score_gap(x, x, 2 * x), torch.zeros(1, 2))
    assert bool(one.score_gap(x, x * torch.nan, 2 * x).isnan().all()), "a teacher's failure is not hidden"
    assert bool(one.score_gap(x, x, 2 * x, normalizer=partial(one.denoising_error, epsilon=1e-6)).isfinite().all())


def test_guidance_and_other_predictions_are_adapted_from_outside():
    """The same field from velocities on a linear path as from denoisers."""
    parameters, path = generator(), one.Linear()
    samples, z, t, _ = noised(parameters, path)
    laws = (REAL, fake_law(parameters))
    direct = one.distribution_matching_regression(
        *(partial(law.denoiser, path=path) for law in laws), samples, z, t, path=path
    )
    adapted = one.distribution_matching_regression(
        *(one.denoiser_from_velocity(partial(law.velocity, path=path), path=path) for law in laws),
        samples,
        z,
        t,
        path=path,
    )
    torch.testing.assert_close(adapted, direct, rtol=1e-9, atol=1e-9)


def test_no_gradient_is_left_in_either_network():
    real, fake = (torch.nn.Linear(2, 2) for _ in range(2))
    samples, t = torch.randn(4, 2, requires_grad=True), torch.full((4,), 0.5)
    z = one.Linear()(samples, torch.randn(4, 2), t).z
    pair = one.distribution_matching_regression(
        lambda z, t: real(z), lambda z, t: fake(z), samples, z, t, path=one.Linear()
    )
    one.mse(*pair).mean().backward()
    assert samples.grad is not None
    assert all(p.grad is None for network in (real, fake) for p in network.parameters())


def picture():
    """The example as a module."""
    source = Path(__file__).parents[3] / "examples" / "f_divergences.py"
    spec = importlib.util.spec_from_file_location("f_divergences", source)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_the_picture_of_lost_modes(tmp_path):
    """Trained for a moment: what covers modes finds the lost one, what seeks them does not."""
    example = picture()
    results = {name: example.train(example.DIVERGENCES[name], steps=100) for name in ("forward KL", "Neyman")}
    assert results["forward KL"].masses[-1] > 0.1
    assert max(results["Neyman"].masses) < 0.02
    example.draw_picture(results, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_samples_density_of_the_picture_is_one():
    """It integrates to one, and its slope is the score that the empirical denoiser implies."""
    example = picture()
    samples, axis = torch.tensor([[0.3, -0.2], [-1.0, 0.5]], dtype=F64), torch.linspace(-6, 6, 121, dtype=F64)
    z = torch.cartesian_prod(axis, axis).requires_grad_()
    t = torch.full((len(z),), 0.4, dtype=F64)
    log_density = example.samples_log_density(z, samples, t)
    assert float(log_density.exp().sum().detach()) * 0.1**2 == pytest.approx(1, abs=1e-6)
    slope = torch.autograd.grad(log_density.sum(), z)[0]
    denoised = one.empirical_denoiser(z, samples, t, path=one.Linear())
    expected = one.score_from_data(z, denoised, t, path=one.Linear())
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: one.density_ratio(torch.zeros(1, 1), smallest=2.0, largest=1.0),
        lambda: one.ratio_means(torch.ones(1), torch.ones(1), torch.ones(2), decay=2.0),
        lambda: one.ratio_means(torch.ones(1), torch.ones(1), torch.ones(2), low=1.0, high=1.0),
        lambda: one.central_steps(10, low=0.9, high=0.1),
        lambda: one.central_steps(0),
        lambda: one.pseudo_huber(torch.ones(1, 1), torch.ones(1, 1), c=0.0),
        lambda: one.karras(torch.ones(1), sigma_data=0.0),
        lambda: one.soft_min_snr(torch.ones(1), sigma_data=-0.5),
        lambda: one.adaptive(torch.ones(1), power=1.0, epsilon=-1.0),
        lambda: flow.edm_scalings(torch.ones(1), sigma_data=0.0),
        lambda: flow.consistency_scalings(torch.ones(1), sigma_data=0.0, sigma_min=0.002),
        lambda: flow.input_scalings(torch.ones(1), sigma_data=float("nan")),
        lambda: flow.velocity_scalings(torch.ones(1), path=flow.Linear(), sigma_data=-1.0),
        lambda: flow.euler_scalings(torch.ones(1), torch.zeros(1), path=flow.Linear(), sigma_data=-1.0),
        lambda: flow.ddim_scalings(torch.ones(1), torch.zeros(1), path=flow.Linear(), sigma_data=-1.0),
        lambda: flow.simple_edm_scalings(torch.ones(1), torch.zeros(1), path=flow.Linear(), sigma_data=-1.0),
    ],
)
def test_bad_numbers_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


def test_half_precision_networks_get_states_of_their_own_type():
    """What is formed of their answers is float32."""
    weight = torch.eye(3, dtype=torch.bfloat16)
    denoiser = lambda z, t: z @ weight  # noqa: E731
    samples, z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    t = torch.full((4,), 0.5)
    pair = one.distribution_matching_regression(denoiser, denoiser, samples, z, t, path=one.Linear())
    assert {part.dtype for part in pair} == {torch.float32}
    previous = torch.ones(4, dtype=torch.bfloat16)
    assert one.ratio_means(torch.ones(4), t, previous, low=0.0, high=1.0).dtype == torch.float32


def test_an_answer_that_would_be_broadcast_is_named():
    z, t = torch.zeros(2, 3), torch.full((2,), 0.5)
    with pytest.raises(ConfigError, match="the network answered"):
        one.score_identity_loss(lambda z, t: z, lambda z, t: z[:1], z, z, t, alpha=1.0)
