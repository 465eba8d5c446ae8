"""Golden groups of consistency models: losses, scalings, curricula; easy tuning, FastGen's variants, truncation."""

import json
from functools import partial

import torch

from onestep_core.flow import (
    VarianceExploding,
    boundary_times,
    classifier_free,
    consistency,
    consistency_scalings,
    ect_ratio,
    ect_times,
    edm,
    edm_scalings,
    euler,
    heun,
    karras_grid,
    keep_apart,
    log_noise,
    log_normal_times,
    progressive_points,
    student_steps_at,
    target_decay,
    truncated,
    velocity_from_denoiser,
)
from onestep_core.objectives import consistency_regression
from onestep_core.regression import (
    inverse_duration,
    karras,
    l1,
    l2,
    mse,
    pseudo_huber,
    separate_means,
    snr,
    snr_plus_one,
    squared_l2,
    truncated_snr,
    uniform_weight,
)
from tests.golden.harness import Case, check_gradients, mlp, parameters

RELEASED_TIME = partial(log_noise, scale=250.0, epsilon=1e-44)


def weights_at(sigma_data):
    """The weights of the released consistency models by the names they have there."""
    return {
        "snr": partial(snr, path=VarianceExploding()),
        "snr+1": partial(snr_plus_one, path=VarianceExploding()),
        "karras": partial(karras, sigma_data=sigma_data),
        "truncated-snr": partial(truncated_snr, path=VarianceExploding()),
        "uniform": uniform_weight,
    }


def cm_loss(case: Case) -> None:
    weights = parameters(case, "model_")
    data, noise, index = case["x_start"], case["noise"], case["indices"]
    sigma_data, low = case.python("arg_sigma_data"), case.python("arg_sigma_min")
    levels = {"sigma_min": low, "sigma_max": case.python("arg_sigma_max")}
    grid = karras_grid(case.python("num_scales"), **levels, rho=case.python("arg_rho"), dtype=case.dtype)
    t, m = grid[index], grid[index + 1]
    path = VarianceExploding(**levels)

    def raw(weights):
        return lambda x, sigma: mlp(weights, x, x, 1e-3 * RELEASED_TIME(sigma))

    online, target = (
        consistency(raw(w), sigma_data=sigma_data, sigma_min=low) for w in (weights, parameters(case, "target_"))
    )
    z = path(data, noise, t).z
    if case.has("teacher_W1"):
        velocity = velocity_from_denoiser(edm(raw(parameters(case, "teacher_")), sigma_data=sigma_data), path=path)
        z_m = heun(velocity, z, t, m)
    else:
        z_m = path(data, noise, m).z
    pair = consistency_regression(online, target, z, z_m, t, m)
    distance = {"l1": l1, "l2": mse}[case.python("loss_norm")]
    loss = distance(*pair) * weights_at(sigma_data)[case.python("weight_schedule")](t)
    for name, value in {
        "loss": loss,
        "t": t,
        "t2": m,
        "x_t": z,
        "x_t2": z_m,
        "D_model": pair.prediction,
        "D_target": pair.target,
        "grad_D": torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0],
    }.items():
        case.check(name, value)
    check_gradients(case, weights, loss.sum())


def cm_scalings(case: Case) -> None:
    sigma, sigma_data, low = case["sigma"], case.python("arg_sigma_data"), case.python("arg_sigma_min")
    for prefix, scalings in {
        "edm": edm_scalings(sigma, sigma_data=sigma_data),
        "cm": consistency_scalings(sigma, sigma_data=sigma_data, sigma_min=low),
    }.items():
        for name, value in scalings._asdict().items():
            case.check(f"{prefix}_{name}", value)
    for name, weight in weights_at(sigma_data).items():
        case.check(f"weight_{name}", weight(sigma))
    case.check("rescaled_t", RELEASED_TIME(sigma))
    ends = {"sigma_min": low, "sigma_max": case.python("arg_sigma_max"), "rho": case.python("arg_rho")}
    for count in {int(match[1]) for match in case.names(r"sigmas_karras_(\d+)_f\d\d")}:
        case.check(f"sigmas_karras_{count}", karras_grid(count, **ends, dtype=case.dtype))


def cm_schedules(case: Case) -> None:
    for i in (match[1] for match in case.names(r"modes_(\d+)")):
        numbers = case.expected(f"start_ema_start_scales_end_scales_total_distill_{i}").tolist()
        initial, (start, end, total, every) = numbers[0], map(int, numbers[1:])
        decay, scale = case.expected(f"modes_{i}").tolist()
        sizes = {
            "fixed": lambda step, start=start: start,
            "progressive": partial(progressive_points, total=total, start=start, end=end),
            "progdist": partial(student_steps_at, every=every, start=start),
        }
        size = [sizes[scale](step) for step in case.expected(f"step_{i}").tolist()]
        assert size == case.expected(f"scales_{i}").tolist(), f"curriculum {i}"
        match decay, scale:
            case "adaptive", "progressive":
                decays = [target_decay(n - 1, start=start, initial=initial) for n in size]
            case "fixed", "progdist":
                decays = [1.0] * len(size)
            case "fixed", _:
                decays = [initial] * len(size)
            case other:
                raise AssertionError(f"unknown modes {other!r}")
        expected = torch.from_numpy(case.expected(f"target_ema_{i}"))
        torch.testing.assert_close(torch.tensor(decays, dtype=torch.float64), expected, rtol=1e-12, atol=0)


def ect(case: Case) -> None:
    weights = parameters(case)
    data, noise, c = case["x"], case["eps"], case.python("arg_c", 0.0)
    sigma_data = case.python("arg_sigma_data", 0.5)
    t = log_normal_times(case["normal_t"], mean=case.python("arg_P_mean", -1.1), std=case.python("arg_P_std", 2.0))
    ratio = ect_ratio(case.python("stage"), factor=case.python("arg_q", 2.0))
    shape = ect_shape(
        {name: case.python(f"arg_{name}") for name in ("adj", "k", "b") if case.has(f"arg_{name}")},
    )
    m = ect_times(t, ratio=ratio, **shape)
    path = VarianceExploding(0.0)

    def raw(x, sigma):
        return mlp(weights, x, x, log_noise(sigma))

    denoiser = edm(raw, sigma_data=sigma_data)
    z, z_m = path(data, noise, t).z, path(data, noise, m).z
    pair = consistency_regression(denoiser, denoiser, z, z_m, t, m, end=path.data_time)
    distance = partial(pseudo_huber, c=c) if c else l2
    loss = distance(*pair) * inverse_duration(t, m)
    for name, value in {
        "loss": loss,
        "t": t,
        "r": m,
        "ratio": torch.tensor(ratio, dtype=case.dtype),
        "D_t": pair.prediction,
        "grad_D_t": torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0],
    }.items():
        case.check(name, value)
    if case.has("D_r_raw"):
        case.check("D_r_raw", denoiser(z_m, m))
    check_gradients(case, weights, loss.sum())
    boundary = consistency(raw, sigma_data=sigma_data, sigma_min=case.python("ecmprecond_sigma_min"))
    if case.dtype == torch.float32:
        case.check("ecmprecond_train", denoiser(data, t))
        case.check("ecmprecond_eval", boundary(data, t))


def ect_shape(released):
    """Keyword arguments of ``ect_times`` from those of the released map."""
    names = {"k": "amplitude", "b": "steepness"}
    shape = {names[name]: released[name] for name in names if name in released}
    match released.get("adj", "sigmoid"):
        case "sigmoid":
            return shape
        case "const":
            return shape | {"amplitude": 0.0}
        case other:
            raise AssertionError(f"unknown adjustment {other!r}")


def ect_map(case: Case) -> None:
    t = case["t"]
    for match in case.names(r"r_(\d+)_stage(\d+)"):
        i, stage = match[1], int(match[2])
        released = json.loads(str(case.python(f"args_{i}")))
        ratio = ect_ratio(stage, **({"factor": released["q"]} if "q" in released else {}))
        case.check(f"ratio_{i}_stage{stage}", torch.tensor(ratio, dtype=case.dtype))
        case.check(match[0], ect_times(t, ratio=ratio, **ect_shape(released)))


def fastgen_pair(case: Case, t):
    """Times as FastGen keeps them, in float64 whatever the network runs in."""
    m = ect_times(t, ratio=case.python("ratio"), floor=0.002)
    return keep_apart(t, m, gap=1e-6)


FASTGEN_WEIGHTS = {
    "default": inverse_duration,
    "c_out": lambda t, m: karras(t, sigma_data=0.5, power=0.5),
    "c_out_sq": lambda t, m: karras(t, sigma_data=0.5),
    "sigma_sq": lambda t, m: snr(t, path=VarianceExploding()),
    "sqrt": partial(inverse_duration, power=0.5),
    "one": lambda t, m: uniform_weight(t),
}


def fastgen_cm(case: Case) -> None:
    weights, teacher = parameters(case), parameters(case, "teacher_")
    data, noise, condition = case["real_data"], case["noise"], case["condition"]
    wide = fastgen_pair(case, case["t"].double())
    t, m = (time.to(case.dtype) for time in wide)
    case.check("t_used", t)
    case.check("r", m)
    path = VarianceExploding()

    def denoiser(weights, condition):
        return edm(lambda x, sigma: mlp(weights, x, x, log_noise(sigma), condition))

    def velocity(condition):
        return velocity_from_denoiser(denoiser(teacher, condition), path=path)

    guided = classifier_free(velocity(condition), velocity(case["neg_condition"]), scale=case.python("guidance_scale"))
    z = path(data, noise, t).z
    student = denoiser(weights, condition)
    second = {
        "ct": lambda: path(data, noise, m).z,
        "cd": lambda: euler(velocity(condition), z, t, m),
        "cd_cfg": lambda: euler(guided, z, t, m),
    }
    distances = {"l2": l2, "sq": squared_l2, "huber": partial(pseudo_huber, c=case.python("huber_const"))}
    pairs = {name: consistency_regression(student, student, z, step(), t, m) for name, step in second.items()}
    case.check("D_t", pairs["ct"].prediction)
    for kind, name in {"ct": "D_r_ct", "cd": "D_r_cd", "cd_cfg": "D_r_cdcfg"}.items():
        case.check(name, pairs[kind].target)
    stored = {match.groups() for match in case.names(r"loss_((ct|cd|cd_cfg)_(l2|sq|huber)_(\w+))_f\d\d")}
    for name, kind, distance, weighting in sorted(stored):
        pair = pairs[kind]
        loss = distances[distance](*pair) * FASTGEN_WEIGHTS[weighting](*wide).to(case.dtype)
        case.check(f"loss_{name}", loss)
        case.check(f"grad_D_{name}", torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0])


def tcm(case: Case) -> None:
    weights, first_stage = parameters(case), parameters(case, "teacher_")
    data, noise, transition = case["real_data"], case["noise"], case.python("transition_t")
    order, batch = case["randperm"], len(case["randperm"])
    boundary = torch.zeros(batch, dtype=torch.bool)
    boundary[order[: int(batch * case.python("boundary_prob"))]] = True
    wide = fastgen_pair(case, boundary_times(case["t"].double(), boundary, transition=transition))
    t, m = (time.to(case.dtype) for time in wide)
    case.check("t_used", t)
    case.check("r", m)
    path = VarianceExploding()

    def stage(weights):
        return edm(lambda x, sigma: mlp(weights, x, x, log_noise(sigma)))

    f = truncated(stage(weights), stage({k: w.detach() for k, w in first_stage.items()}), transition=transition)
    pair = consistency_regression(f, f, path(data, noise, t).z, path(data, noise, m).z, t, m)
    case.check("D_t", pair.prediction)
    case.check("D_r", pair.target)
    c = case.python("huber_const")
    raw = (partial(pseudo_huber, c=c) if c else l2)(*pair)
    loss = raw * FASTGEN_WEIGHTS[case.python("weighting")](*wide).to(case.dtype)
    case.check("cm_loss", loss[~boundary].mean())
    case.check("loss_boundary", loss[boundary].mean())
    case.check("unweighted", raw[~boundary].mean())
    total = (loss * separate_means(loss, boundary, weight=case.python("w_boundary"))).mean()
    case.check("total_loss", total)
    check_gradients(case, weights, total)
