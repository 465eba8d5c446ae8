"""Golden groups of distillation and moment matching: progressive distillation twice, IMM's maps and samplers."""

import math
from functools import partial

import torch
from torch import Tensor

from onestep_adapters.samplers import noised_multistep
from onestep_core.flow import (
    Linear,
    NoiseScaled,
    VarianceExploding,
    VariancePreserving,
    classifier_free,
    ddim,
    ddim_scalings,
    denoiser_from_both,
    denoiser_from_noise,
    denoiser_from_v_prediction,
    edm,
    euler_scalings,
    integrate,
    karras_levels,
    noise_from_data,
    preconditioned_flow_map,
    progressive_times,
    renoise_clean,
    simple_edm_scalings,
    time_of_noise_ratio,
    uniform_grid,
    uniform_levels,
)
from onestep_core.objectives import progressive_regression
from onestep_core.regression import (
    karras,
    l1,
    mse,
    snr,
    snr_plus_one,
    truncated_snr,
    uniform_weight,
)
from tests.golden.harness import Case, check_gradients, mlp, parameters


def cm_pd(case: Case) -> None:
    sigma_data = case.python("arg_sigma_data", 0.5)
    levels = partial(
        karras_levels,
        sigma_min=case.python("arg_sigma_min", 0.002),
        sigma_max=case.python("arg_sigma_max", 80.0),
        rho=case.python("arg_rho", 7.0),
    )
    path = VarianceExploding(0.0)
    t, m, s = progressive_times(case["indices"], case.python("num_scales"), levels=levels, dtype=case.dtype)

    def network(weights):
        return edm(lambda z, sigma: mlp(weights, z, z, 1e-3 * 250 * (sigma + 1e-44).log()), sigma_data=sigma_data)

    weights = parameters(case, "model_")
    parameters(case, "target_")  # stored, and no part of this loss
    z, _ = path(case["x_start"], case["noise"], t)
    pair = progressive_regression(network(weights), network(parameters(case, "teacher_")), z, t, m, s, path=path)
    distance = {"l2": mse, "l1": l1}[case.python("loss_norm")]
    weight = {
        "snr": partial(snr, path=VarianceExploding()),
        "snr+1": partial(snr_plus_one, path=VarianceExploding()),
        "karras": partial(karras, sigma_data=sigma_data),
        "truncated-snr": partial(truncated_snr, path=VarianceExploding()),
        "uniform": uniform_weight,
    }[case.python("weight_schedule")]
    loss = distance(*pair) * weight(t)
    case.check("x_t", z)
    case.check("t", t)
    case.check("D_model", pair.prediction)
    case.check("loss", loss)
    case.check("grad_D", torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0])
    check_gradients(case, weights, loss.sum())


def pd_google(case: Case) -> None:
    path = VariancePreserving.cosine(
        log_snr_min=case.python("logsnr_min", -20.0), log_snr_max=case.python("logsnr_max", 20.0)
    )
    steps, index = case.python("num_steps"), case["i"]
    t, m, s = progressive_times(steps - 1 - index, steps, levels=partial(uniform_levels, path=path), dtype=case.dtype)
    denoisers = {
        "eps": partial(denoiser_from_noise, path=path),
        "v": partial(denoiser_from_v_prediction, path=path),
        "both": partial(denoiser_from_both, path=path),
        "x": lambda network: network,
    }
    losses = {
        "constant": uniform_weight,
        "snr": partial(snr, path=path),
        "snr_trunc": partial(truncated_snr, path=path),
        "v_mse": partial(snr_plus_one, path=path),
    }
    for kind in [match[1] for match in case.names(r"(\w+)_model_W1")]:

        def network(weights, kind=kind):
            def outputs(state, t):
                columns = torch.cat([state.flatten(1), 0.1 * path.log_snr(t)[:, None]], dim=1)
                out = mlp(weights, torch.cat([state, state], -1) if kind == "both" else state, columns)
                return out.chunk(2, dim=-1) if kind == "both" else out

            return denoisers[kind](outputs)

        weights = parameters(case, f"{kind}_model_")
        student, teacher = network(weights), network(parameters(case, f"{kind}_teacher_"))
        z, _ = path(case["x"], case["eps"], t)
        pair = progressive_regression(student, teacher, z, t, m, s, path=path, last=index == 0)
        middle = ddim(teacher, z, t, m, path=path)
        end = ddim(teacher, middle, m, s, path=path)
        case.check(f"u_{kind}", t)
        case.check(f"logsnr_{kind}", path.log_snr(t))
        case.check(f"z_{kind}", z)
        case.check(f"z_mid_{kind}", middle)
        case.check(f"z_teacher_{kind}", end)
        case.check(f"x_target_{kind}", pair.target)
        case.check(f"eps_target_{kind}", noise_from_data(z, pair.target, t, path=path))
        for name, weight in losses.items():
            loss = mse(*pair) * weight(t)
            case.check(f"loss_{kind}_{name}", loss)
            gradient = torch.autograd.grad(loss.sum(), weights["W1"], retain_graph=True)[0]
            case.check(f"gradW1_{kind}_{name}", gradient)

        def clipped(z, t, student=student):
            return student(z, t).clamp(-1, 1)

        grid = uniform_grid(steps, path=path, dtype=case.dtype)
        nearly = integrate(partial(ddim, clipped, path=path), case["z_T"], grid[:-1]) if steps > 1 else case["z_T"]
        case.check(f"ddim_{kind}", clipped(nearly, grid[-2].expand(len(nearly))))


def imm(case: Case) -> None:
    start, end, timescale, guidance = case["T_eps_timescale_cfg"].double().tolist()
    weights, embedding = parameters(case), case["E"]
    sigma_data, labels = case.python("sigma_data"), case["labels"]
    y, y_t, x_T, t, s = (case[name] for name in ("y", "y_t", "x_T", "t", "s"))
    schedules = {"fm": Linear(), "vp_cosine": VariancePreserving(lambda t: -2 * (0.5 * math.pi * t).tan().log())}
    scalings = {"euler_fm": euler_scalings, "identity": ddim_scalings, "simple_edm": simple_edm_scalings}
    second_time = {"identity": lambda t, s: s, "stride": lambda t, s: t - s}

    def map_of(schedule: str, form: str, times: str, *, scale: float | None = None):
        def network(labels):
            def raw(z, t, s):
                seconds = second_time[times](t, s)
                return mlp(weights, z, z, 1e-3 * timescale * t, 1e-3 * timescale * seconds, labels @ embedding)

            return raw

        guided = network(labels)
        if scale is not None:
            guided = classifier_free(guided, network(torch.zeros_like(labels)), scale=scale)
        path = NoiseScaled(schedules[schedule], sigma_data)
        return preconditioned_flow_map(guided, scalings=partial(scalings[form], path=path, sigma_data=sigma_data))

    def ratio_of(schedule: str, time: Tensor) -> Tensor:
        alpha, sigma = schedules[schedule].coefficients(time)
        return sigma / alpha

    def grid_of(kind: str, schedule: str) -> Tensor:
        ends = case["T_eps_timescale_cfg"][:2]
        if kind == "1":
            return ends
        if kind == "2":
            middle = time_of_noise_ratio(ends.new_full((1,), 1.4), path=schedules[schedule])
            return torch.cat([ends[:1], middle, ends[1:]])
        spacing, steps = kind[0], int(kind[1:])
        if spacing == "U":
            return uniform_grid(steps, path=schedules[schedule], start=start, end=end, dtype=case.dtype)
        high, low = ratio_of(schedule, ends.double()).tolist()
        fraction = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        levels = karras_levels(fraction, sigma_min=low, sigma_max=high, rho=7.0)
        return time_of_noise_ratio(levels, path=schedules[schedule]).to(case.dtype)

    forms = "(fm|vp_cosine)_(euler_fm|identity|simple_edm)_(identity|stride)_f64"
    for match in case.names(f"f_{forms}"):
        case.check(match[0].removesuffix("_f64"), map_of(*match.groups())(y_t, t, s))
    for match in case.names(rf"(push|restart)([A-Z]?\d+)_{forms}"):
        sampler, kind, *which = match.groups()
        flow_map, grid = map_of(*which, scale=guidance), grid_of(kind, which[0])
        if sampler == "push":
            sample = integrate(flow_map, x_T, grid)
        else:
            path, noises = NoiseScaled(schedules[which[0]], sigma_data), case["restart_noises"]
            landings = [*[end] * (len(grid) - 2), float(grid[-1])]
            sample = noised_multistep(flow_map, x_T, grid, landings, path=path, noise=noises, renoise=renoise_clean)
        case.check(match[0].removesuffix("_f64"), sample)
    for match in case.names("logsnr_(fm|vp_cosine)_f64"):
        schedule, plain = match[1], schedules[match[1]]
        case.check(f"logsnr_{schedule}", snr(t, path=plain).log())
        case.check(f"nt_to_t_{schedule}", time_of_noise_ratio(ratio_of(schedule, t), path=plain))
        case.check(f"ddim_{schedule}", ddim(lambda z, t: y, y_t, t, s, path=plain))
        case.check(f"addnoise_{schedule}", plain(y, case["noise"], t).z)
