"""Golden groups of samplers: consistency models, k-diffusion, consistency trajectory models."""

from functools import partial

import torch
from torch import Tensor

from onestep_adapters.samplers import (
    consistency_multistep,
    gamma_multistep,
    multistep,
    noised_multistep,
    sample_ancestral,
    sample_denoiser,
    sample_dpmpp_2m,
)
from onestep_core.flow import (
    VarianceExploding,
    clamped,
    consistency,
    ddim,
    dpm_2,
    edm,
    edm_scalings,
    karras_grid,
    karras_times,
    polyexponential_grid,
    raw_target,
    times_with_less_noise,
    vp_grid,
)
from onestep_core.regression import karras, mse, regression, snr, soft_min_snr
from onestep_core.shapes import expand_like
from tests.golden.harness import Case, check_gradients, mlp, parameters


def _rescaled(sigma: Tensor) -> Tensor:
    """The column by which the released networks see a noise level."""
    return 1e-3 * 250 * (sigma + 1e-44).log()


def cm_samplers(case: Case) -> None:
    weights = parameters(case)
    steps, ts = case.python("steps"), case["ts"].tolist()
    numbers = {key: case.python(f"arg_{key}") for key in ("sigma_min", "sigma_max", "rho")}
    path = VarianceExploding(numbers["sigma_min"], numbers["sigma_max"])
    sigma_data = case.python("arg_sigma_data")
    z, noises, churn_noises = path.prior(case["x_T_unit"]), case["noises"], case["churn_noises"]

    def net(z, sigma):
        return mlp(weights, z, z, _rescaled(sigma))

    final = consistency(net, sigma_data=sigma_data, sigma_min=path.sigma_min)
    ends = [path.sigma_max, path.sigma_min]
    levels = karras_times(ts, steps=steps, dtype=case.dtype, **numbers)
    grid, short = (karras_grid(n, dtype=case.dtype, **numbers) for n in (steps, 5))
    churn = {"churn": 40.0, "low": 0.05, "high": 50.0, "noise_scale": 1.003}

    def samples(wrap):
        f, d = wrap(final), wrap(edm(net, sigma_data=sigma_data))
        return {
            "onestep": consistency_multistep(f, z, ends, path=path, noise=None),
            "multistep": consistency_multistep(f, z, levels, path=path, noise=noises),
            "heun": sample_denoiser(d, z, grid, path=path),
            "heun_churn": sample_denoiser(d, z, grid, path=path, noise=churn_noises, **churn),
            "euler": sample_denoiser(d, z, grid, path=path, step=ddim),
            "progdist": multistep(partial(ddim, d, path=path), z, short[:-1], path=path),
            "ancestral": sample_ancestral(d, z, grid, path=path, noise=churn_noises),
        }

    raw = samples(lambda f: f)
    for name, value in raw.items():
        if case.has(f"raw_{name}"):
            case.check(f"raw_{name}", value)
        case.check(name, value.clamp(-1, 1))
    for name, value in samples(clamped).items():
        case.check(f"{name}_clip", value.clamp(-1, 1))


def kdiff(case: Case) -> None:
    weights = parameters(case)
    sigma_data, steps = case.python("sigma_data"), case.python("n_steps")
    ends = {key: case.python(key) for key in ("sigma_min", "sigma_max")}
    rho = case.python("rho")
    path, sigma, data = VarianceExploding(0.0, ends["sigma_max"]), case["sigma"], case["x"]
    case.note_read("t_sched")  # an input of the run that none of the outputs depends on

    def net(z, sigma):
        return mlp(weights, z, z, sigma.log() / 4)

    scalings = edm_scalings(sigma, sigma_data=sigma_data)
    for name, value in zip(scalings._fields, scalings, strict=True):
        case.check(name, value)
    noisy = path(data, case["noise"], sigma).z
    denoiser = edm(net, sigma_data=sigma_data)
    case.check("denoised", denoiser(noisy, sigma))
    scaled = expand_like(scalings.c_in, noisy) * noisy
    raw = mse(*regression(net(scaled, sigma), raw_target(noisy, data, scalings)))
    unit = karras(sigma, sigma_data=sigma_data)
    case.check("loss_karras", raw)
    case.check("loss_snr", raw * snr(sigma, path=VarianceExploding()) / unit)
    case.check("loss_soft-min-snr", raw * soft_min_snr(sigma, sigma_data=sigma_data) / unit)
    check_gradients(case, weights, raw.sum())

    grid = karras_grid(steps, rho=rho, dtype=case.dtype, **ends)
    case.check("sigmas_karras", grid)
    case.check("sigmas_exponential", polyexponential_grid(steps, dtype=case.dtype, **ends))
    case.check("sigmas_polyexponential", polyexponential_grid(steps, rho=2.0, dtype=case.dtype, **ends))
    case.check("sigmas_vp", vp_grid(steps, dtype=case.dtype))
    z, noises = path.prior(case["x_T_unit"]), case["churn_noises"]
    churn = {"churn": 20.0, "low": 0.05, "high": 50.0, "noise_scale": 1.007}
    case.check("heun", sample_denoiser(denoiser, z, grid, path=path))
    case.check("heun_churn", sample_denoiser(denoiser, z, grid, path=path, noise=noises, **churn))
    case.check("euler", sample_denoiser(denoiser, z, grid, path=path, step=ddim))
    case.check("dpm_2", sample_denoiser(denoiser, z, grid, path=path, step=dpm_2))
    case.check("euler_ancestral", sample_ancestral(denoiser, z, grid, path=path, noise=noises))
    case.check("dpmpp_2m", sample_dpmpp_2m(denoiser, z, grid, path=path))


def ctm_sampler(case: Case) -> None:
    weights = {name.removeprefix("model_"): case[name] for name in ("model_W1", "model_b1", "model_W2", "model_b2")}
    numbers = {key: case.python(f"arg_{key}") for key in ("sigma_min", "sigma_max", "rho")}
    sigma_data = case.python("arg_sigma_data")
    assert case.python("arg_outer_parametrization") == "euler"
    assert case.python("arg_inner_parametrization") == "edm"
    case.note_read(*(m[0] for m in case.names(r"arg_.*")))  # of training
    path = VarianceExploding(numbers["sigma_min"], numbers["sigma_max"])
    z, noises = path.prior(case["x_T_unit"]), case["noises"]
    levels = partial(karras_times, dtype=case.dtype, **numbers)

    def flow_map(z, t, s):
        denoiser = edm(lambda z, t: mlp(weights, z, z, _rescaled(t), _rescaled(s)), sigma_data=sigma_data)
        return ddim(denoiser, z, t, s, path=path)

    times = levels(case["ts"].tolist(), steps=case.python("steps"))
    # The released samplers end where their last jump lands; the map has the last time for a target here.
    for name, gamma in (("gamma_multistep", case.python("gamma")), ("cm_multistep", 1.0)):
        released = {"path": path, "gamma": gamma, "floor": 0.002}
        ended = torch.cat([times[:-1], times_with_less_noise(times[-1:], **released)])
        value = gamma_multistep(flow_map, z, ended, noise=noises, **released)
        case.check(name, value)
        if case.has(f"karras_sample_{name}_clip"):
            case.check(f"karras_sample_{name}_clip", value.clamp(-1, 1))
    case.check("exact_multistep", multistep(flow_map, z, times, path=path))
    first, second, end = levels([case.python("ind_1"), case.python("ind_2"), 39], steps=40)
    points = torch.stack([torch.full_like(end, path.sigma_max), second, end])
    landings = torch.stack([first, end])
    case.check("gamma_2step", noised_multistep(flow_map, z, points, landings, path=path, noise=noises))
