"""Golden groups of distribution matching: DMD2 twice, SiD, f-distill."""

from functools import partial

import torch
from torch import Tensor

from onestep_core.fields import (
    denoising_error,
    density_ratio,
    f_divergence_scale,
    forward_kl,
    jeffreys,
    jensen_shannon,
    neyman,
    ratio_means,
    reverse_kl,
    score_gap,
    softened_reverse_kl,
    squared_hellinger,
)
from onestep_core.flow import (
    VarianceExploding,
    VariancePreserving,
    central_steps,
    classifier_free,
    denoiser_from_noise,
    edm,
    karras_levels,
    log_normal_times,
)
from onestep_core.objectives import (
    denoising_regression,
    distribution_matching_regression,
    score_identity,
    score_identity_loss,
)
from onestep_core.regression import (
    Regression,
    field_regression,
    karras,
    mse,
    non_saturating_discriminator,
    non_saturating_generator,
    regression,
)
from tests.golden.harness import Case, mlp, parameters

EXPLODING = VarianceExploding(0.0)


def _fake_gradients(case: Case, weights: dict[str, Tensor], scalar: Tensor) -> None:
    for (name, _), gradient in zip(weights.items(), torch.autograd.grad(scalar, list(weights.values())), strict=True):
        case.check(f"fake_grad_{name}", gradient)


def _matching(case: Case, pair: Regression, samples: Tensor) -> None:
    loss = mse(*pair).mean() / 2
    case.check("loss_dm", loss)
    case.check("grad_latents", torch.autograd.grad(loss, samples)[0])
    case.check("dm_grad", (pair.prediction - pair.target).detach())


def dmd2_edm(case: Case) -> None:
    steps, labels = case.python("num_train_timesteps"), case["labels"]
    levels = karras_levels(
        torch.linspace(1, 0, steps, dtype=case.dtype),
        sigma_min=case.python("sigma_min"),
        sigma_max=case.python("sigma_max"),
        rho=case.python("rho"),
    )
    sigma_data, embedded = case.python("sigma_data"), case["E"][labels]

    def denoiser(weights):
        return edm(lambda z, sigma: mlp(weights, z, z, sigma.log() / 4, embedded), sigma_data=sigma_data)

    real, weights = denoiser(parameters(case, "real_")), parameters(case, "fake_")
    samples, t = case["latents"].requires_grad_(), levels[case["timesteps"]]
    z, _ = EXPLODING(samples.detach(), case["noise"], t)
    pair = distribution_matching_regression(real, denoiser(weights), samples, z, t, path=EXPLODING)
    case.check("karras_sigmas", levels)
    case.check("noisy", z)
    case.check("pred_real", real(z, t))
    case.check("pred_fake", denoiser(weights)(z, t))
    case.check("grad_norm", (pair.prediction - pair.target).detach().norm())
    _matching(case, pair, samples)

    drawn = central_steps(steps, low=case.python("min_step_percent"), high=case.python("max_step_percent"))
    assert drawn.start == case.python("min_step")
    assert drawn.stop == min(case.python("max_step") + 1, steps)
    assert all(step in drawn for step in case["timesteps"].tolist())

    sigma = levels[case["fake_timesteps"]]
    noised, _ = EXPLODING(samples.detach(), case["fake_noise"], sigma)
    pair = denoising_regression(denoiser(weights), noised, samples.detach(), sigma)
    loss = (mse(*pair) * karras(sigma, sigma_data=sigma_data)).mean()
    case.check("fake_x0_pred", pair.prediction)
    case.check("loss_fake", loss)
    _fake_gradients(case, weights, loss)

    case.check("gen_cls_loss", non_saturating_generator(case["fake_logits"]).mean())
    case.check("guidance_cls_loss", non_saturating_discriminator(case["real_logits"], case["fake_logits"]).mean())


def dmd2_sd(case: Case) -> None:
    path = VariancePreserving.from_table(case["alphas_cumprod"].double())

    def predictor(weights, embedding):
        return lambda z, t: mlp(weights, z, z, t / 1000, embedding)

    real_weights, weights = parameters(case, "real_"), parameters(case, "fake_")
    text, empty = case["text_embedding"], case["uncond_embedding"]
    guided = classifier_free(
        predictor(real_weights, text), predictor(real_weights, empty), scale=case.python("real_guidance_scale")
    )
    fake_noise = predictor(weights, text)
    real, fake = (denoiser_from_noise(network, path=path) for network in (guided, fake_noise))
    samples, t = case["latents"].requires_grad_(), case["timesteps"].to(case.dtype)
    z, _ = path(samples.detach(), case["noise"], t)
    case.check("noisy", z)
    case.check("pred_real", real(z, t))
    case.check("pred_fake", fake(z, t))
    _matching(case, distribution_matching_regression(real, fake, samples, z, t, path=path), samples)

    t = case["fake_timesteps"].to(case.dtype)
    noised, _ = path(samples.detach(), case["fake_noise"], t)
    case.check("loss_fake", mse(*regression(fake_noise(noised, t), case["fake_noise"])).mean())


def sid(case: Case) -> None:
    images, alpha = case["images"].requires_grad_(), case.python("alpha")
    real_weights, weights = parameters(case, "true_"), parameters(case, "fake_")

    def denoiser(weights):
        return edm(lambda z, sigma: mlp(weights, z, z, sigma.log() / 4), sigma_data=0.5)

    real, fake = denoiser(real_weights), denoiser(weights)
    sigma = karras_levels(1 - case["uniform_t"] * case.python("tmax") / 1000)
    z, _ = EXPLODING(images, case["noise"], sigma)
    case.check("gen_loss_elementwise", score_identity(images, real(z, sigma), fake(z, sigma), alpha=alpha))
    total = score_identity_loss(real, fake, images, z, sigma, alpha=alpha).sum()
    case.check("grad_images", torch.autograd.grad(total, images)[0])

    sigma = log_normal_times(case["fake_normal_sigma"], mean=-1.2, std=1.2)
    noised, _ = EXPLODING(images.detach(), case["fake_noise"], sigma)
    pair = denoising_regression(fake, noised, images.detach(), sigma)
    weight = karras(sigma, sigma_data=0.5)
    coordinates = zip(*(half.flatten(1).unbind(1) for half in pair), strict=True)
    loss = torch.stack([mse(*coordinate) * weight for coordinate in coordinates], 1).reshape(images.shape)
    case.check("fake_loss_elementwise", loss)
    _fake_gradients(case, weights, loss.sum())


DIVERGENCES = {
    "kl": forward_kl,
    "js": jensen_shannon,
    "sf": softened_reverse_kl,
    "neyman": neyman,
    "sh": squared_hellinger,
    "jf": jeffreys,
}


def fdistill(case: Case) -> None:
    logits, t = case["fake_logits"], case["t"]
    bounds = {"smallest": case.python("ratio_lower"), "largest": case.python("ratio_upper")}
    bins = {"low": case.python("min_t"), "high": case.python("max_t")}
    means = ratio_means(density_ratio(logits, **bounds), t, case["bins"], decay=case.python("ratio_ema_rate"), **bins)
    case.check("bins_after", means)
    real, fake = case["teacher_x0"], case["fake_score_x0"]
    normalizer = partial(denoising_error, epsilon=1e-6)

    def check(name: str, scale: Tensor | None) -> None:
        samples = case["gen_data"].requires_grad_()
        loss = (
            mse(*field_regression(samples, score_gap(samples, real, fake, scale=scale, normalizer=normalizer))).mean()
            / 2
        )
        case.check(f"vsd_{name}", loss)
        case.check(f"vsdgrad_{name}", torch.autograd.grad(loss, samples)[0])

    check("plain", None)
    for kind, chosen in {"raw": None, "norm": means}.items():
        for name, divergence in DIVERGENCES.items():
            scale = f_divergence_scale(logits, t, divergence=divergence, means=chosen, **bounds, **bins)
            case.check(f"h_{name}_{kind}", scale)
            check(f"{name}_{kind}", scale)
        # The released code raises for the reverse KL, whose factors are all alike.
        scale = f_divergence_scale(logits, t, divergence=reverse_kl, means=chosen, **bounds, **bins)
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=0, atol=2e-6)
        assert str(case.expected(f"error_rkl_{kind == 'norm'}")).startswith("TypeError")
    case.check("gan_gen", non_saturating_generator(logits).mean())
    case.check("gan_disc", non_saturating_discriminator(logits.flip(0), logits).mean())
