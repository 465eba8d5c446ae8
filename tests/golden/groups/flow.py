"""Golden groups of the flow wing: MeanFlow, its loss heads and times, EDM's denoising loss."""

import json
from functools import partial

import torch

from onestep_core.flow import (
    Linear,
    VarianceExploding,
    discrete_levels,
    drop_labels,
    edm,
    eulerian_target,
    few_step_grid,
    from_duration,
    guided_velocity,
    integrate,
    jump,
    limit_duration,
    logit_normal_times,
    not_after,
    ordered,
    power_law,
    stay_where,
    truncated_log_normal_times,
    two_pass,
    uniform_times,
)
from onestep_core.objectives import denoising_regression, meanflow_regression
from onestep_core.regression import (
    adaptive,
    exponential,
    karras,
    l2,
    mse,
    regression,
    rescale_residual,
    snr,
    snr_plus_one,
    squared_l2,
    truncated_snr,
    uniform_weight,
)
from tests.golden.harness import Case, check_gradients, mlp, parameters


def pymeanflow(case: Case) -> None:
    weights = parameters(case)
    x, e = case["x"], case["e"]
    net = from_duration(lambda z, t, h: mlp(weights, z, z, t, h))
    t, s = (
        logit_normal_times(case[f"normal_{k}"], mean=case.python(f"arg_P_mean_{k}"), std=case.python(f"arg_P_std_{k}"))
        for k in "tr"
    )
    stays = case["uniform_mask"] < 1 - case.python("arg_ratio")
    match case.python("arg_tr_sampler"):
        case "v0":
            t, s = stay_where(*ordered(t, s), stays)
        case "v1":
            t, s = not_after(*stay_where(t, s, stays))
        case other:
            raise AssertionError(f"unknown sampler {other!r}")
    z, v = Linear()(x, e, t)
    pair = meanflow_regression(net, z, v, t, s)
    raw = squared_l2(*pair)
    loss = (raw * adaptive(raw, power=case.python("arg_norm_p"), epsilon=case.python("arg_norm_eps"))).mean()
    case.check("loss", loss)
    case.check("t", t)
    case.check("r", s)
    case.check("u", pair.prediction)
    case.check("dudt", two_pass(net, (z, t, s), (v, torch.ones_like(t), torch.zeros_like(s)))[1])
    case.check("grad_u", torch.autograd.grad(loss, pair.prediction, retain_graph=True)[0])
    check_gradients(case, weights, loss)
    noise = case["sample_noise"]
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    case.check("sample", jump(net, noise, one, zero))


def meanflow_jax(case: Case) -> None:
    weights = parameters(case, names=("W1", "b1", "W2", "b2", "E"))
    x, e, labels, null = case["x"], case["e"], case["labels"], case.python("num_classes")
    batch = len(x)
    mean, std = case.python("arg_P_mean", -0.4), case.python("arg_P_std", 1.0)
    assert case.python("arg_noise_dist", "logit_normal") == "logit_normal"
    t, s = ordered(*(logit_normal_times(case[f"normal_{k}"], mean=mean, std=std) for k in "tr"))
    still = int(batch * case.python("arg_data_proportion", 0.75))
    t, s = stay_where(t, s, torch.arange(batch) < still)
    z, v = Linear()(x, e, t)

    def net(label):
        return from_duration(lambda z, t, h: mlp(weights, z, z, t, h, weights["E"][label]))

    guided = v
    if case.python("arg_guidance_eq", "cfg"):
        start, end = case.python("arg_t_start", 0.0), case.python("arg_t_end", 1.0)
        guided = guided_velocity(
            v,
            net(labels)(z, t, t),
            net(torch.full_like(labels, null))(z, t, t),
            omega=case.python("arg_omega", 1.0),
            kappa=case.python("arg_kappa", 0.5),
            active=(t >= start) & (t <= end),
        )
    case.check("v_guided", guided)
    dropped = int((case["uniform_drop"] < case.python("arg_class_dropout_prob", 0.1)).sum())
    drop = torch.arange(batch) < dropped
    kept = drop_labels(labels, null, drop)
    tangent = torch.where(drop.reshape(-1, *(1 for _ in v.shape[1:])), v, guided)
    case.check("tangent", tangent)
    pair = meanflow_regression(net(kept), z, tangent, *limit_duration(t, s, longest=1.0))
    raw = squared_l2(*pair)
    power, epsilon = case.python("arg_norm_p", 1.0), case.python("arg_norm_eps", 0.01)
    loss = (raw * adaptive(raw, power=power, epsilon=epsilon)).mean()
    case.check("loss", loss)
    case.check("t", t)
    case.check("r", s)
    case.check("u", pair.prediction)
    case.check("dudt", two_pass(net(kept), (z, t, s), (tangent, torch.ones_like(t), torch.zeros_like(s)))[1])
    case.check("v_loss", squared_l2(pair.prediction, v))
    check_gradients(case, weights, loss)
    case.check("sample_2step", integrate(partial(jump, net(labels)), e, case["sample_t_steps"]))


def fastgen_mf_head(case: Case) -> None:
    u, derivative, v = (case[k] for k in ("u", "jvp", "dxt_dt"))
    t, s = limit_duration(case["t"], case["r"], longest=0.999)
    case.note_read("x_t")
    for match in case.names(r"cfg_(\d+)"):
        i = match[1]
        config = json.loads(str(case.python(f"cfg_{i}")))
        kind, *numbers = config["norm_method"].split("_")
        if kind == "poly":
            weight = partial(adaptive, power=float(numbers[0]), epsilon=config["norm_const"])
        else:
            amplitude, rate = map(float, numbers)
            weight = partial(exponential, amplitude=amplitude, rate=rate, offset=config["norm_const"])
        warmup = case.python(f"warmup_{i}")
        prediction = u.clone().requires_grad_()
        pair = regression(prediction, eulerian_target(v, derivative, t, s, scale=warmup))
        if config["loss_type"] == "l2":
            raw = squared_l2(*pair)
            factor, tangent = weight(raw), pair.target
            loss = raw * factor
        else:
            scaled = config["tangent_spatial_invariance"]
            plain = rescale_residual(pair, uniform_weight, per_dimension=scaled)
            factor, tangent = weight(l2(*plain)), plain.target - plain.prediction
            loss = squared_l2(*rescale_residual(pair, weight, per_dimension=scaled))
        case.check(f"weight_{i}", factor)
        case.check(f"tangent_{i}", tangent)
        case.check(f"loss_{i}", loss)
        case.check(f"grad_u_{i}", torch.autograd.grad(loss.sum(), prediction)[0])


def fastgen_ts(case: Case) -> None:
    u, n = case["uniform"], case["normal"]
    for match in case.names(r"edm_lognormal_args_(\d+)"):
        mean, std, low, high = case[match[0]].double().tolist()
        value = truncated_log_normal_times(u, mean=mean, std=std, low=low, high=high)
        case.check(f"edm_lognormal_{match[1]}", value)
    case.check("edm_uniform", uniform_times(u, low=0.002, high=80.0))
    case.check("edm_polynomial", discrete_levels(case["poly_idx"], dtype=case.dtype))
    case.check("rf_uniform", uniform_times(u, low=0.001, high=0.999))
    case.check("rf_logitnormal", logit_normal_times(n, mean=-0.4, std=1.0, low=0.001, high=0.999))
    case.check("trig_logitnormal", logit_normal_times(n, mean=-0.4, std=1.0, high=torch.pi / 2))
    for match in case.names(r"edm_t_list_(\d+)"):
        case.check(match[0], few_step_grid(int(match[1]), dtype=case.dtype))


def drifting_cfg_sampling(case: Case) -> None:
    for match in case.names(r"params_(\d+)"):
        low, high, power = case[match[0]].double().tolist()
        case.check(f"cfg_{match[1]}", power_law(case["frac"], low=low, high=high, power=power))


def edm_loss(case: Case) -> None:
    weights = parameters(case)
    data, sigma, sigma_data = case["x_start"], case["sigmas"], case.python("arg_sigma_data", 0.5)
    case.note_read(*(m[0] for m in case.names(r"arg_(sigma_min|sigma_max|rho)")))
    z, _ = VarianceExploding()(data, case["noise"], sigma)
    rescaled = 1000 * 0.25 * (sigma + 1e-44).log()
    denoiser = edm(lambda z, _: mlp(weights, z, z, 1e-3 * rescaled), sigma_data=sigma_data)
    raw = mse(*denoising_regression(denoiser, z, data, sigma))
    case.check("xs_mse", raw)
    schedules = {
        "snr": partial(snr, path=VarianceExploding()),
        "snr+1": partial(snr_plus_one, path=VarianceExploding()),
        "karras": partial(karras, sigma_data=sigma_data),
        "truncated-snr": partial(truncated_snr, path=VarianceExploding()),
        "uniform": uniform_weight,
    }
    for name, weight in schedules.items():
        case.check(f"loss_{name}", raw * weight(sigma))
    check_gradients(case, weights, (raw * karras(sigma, sigma_data=sigma_data)).sum())
