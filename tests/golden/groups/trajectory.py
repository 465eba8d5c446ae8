"""Golden groups of continuous-time consistency (sCM) and consistency trajectories (CTM)."""

from functools import partial

import torch
from torch import Tensor

from onestep_core.flow import (
    EulerForm,
    EulerVarianceForm,
    Trigonometric,
    VarianceExploding,
    VarianceForm,
    classifier_free,
    consistency,
    consistency_scalings,
    denoiser_from_network,
    derivative_along,
    edm,
    edm_scalings,
    flow_map_from_network,
    heun,
    input_scalings,
    karras_levels,
    log_normal_times,
    preconditioned,
    relative_step,
    tangent_warmup,
    trigflow,
    trigflow_from_denoiser,
    trigflow_time,
    trigflow_velocity,
    two_pass,
    velocity_from_denoiser,
)
from onestep_core.objectives import (
    consistency_trajectory_regression,
    continuous_consistency_regression,
    denoising_regression,
)
from onestep_core.regression import (
    inverse_jump,
    karras,
    mse,
    normalize_tangent,
    snr,
    snr_plus_one,
    square_root_weight,
    truncated_snr,
    uncertainty,
    uniform_weight,
)
from tests.golden.harness import Case, check_gradients, mlp, parameters


def scm(case: Case) -> None:
    weights = parameters(case)
    sigma, sigma_data = case["t"], case.python("sigma_data")
    data, noise, condition = case["real_data"], case["noise_unit"], case["condition"]
    path = Trigonometric(sigma_data)

    def network(weights: dict[str, Tensor], condition: Tensor):
        denoiser = edm(lambda y, at: mlp(weights, y, y, at.log() / 4, condition), sigma_data=sigma_data)
        return trigflow_from_denoiser(denoiser, sigma_data=sigma_data)

    net = network(weights, condition)
    t = trigflow_time(sigma, sigma_data=sigma_data)
    z, v = path(data, noise, t)
    # Guidance belongs to the teacher: training from data has no use for the condition's opposite.
    null, scale = case["neg_condition"], case.python("guidance_scale")
    if case.python("arg_use_cd", False):
        teacher = parameters(case, "teacher_")
        velocity, opposite = (trigflow_velocity(network(teacher, c), sigma_data=sigma_data) for c in (condition, null))
        if scale is not None:
            velocity = classifier_free(velocity, opposite, scale=scale)
        v = velocity(z, t).detach()
    derivative, fraction = two_pass, case.python("arg_jvp_finite_diff_eps", 1e-3)
    if case.python("arg_use_jvp_finite_diff", False):

        def curve(time: Tensor) -> tuple[Tensor, Tensor]:
            time = time.clamp(-torch.pi / 2 + 1e-5, torch.pi / 2 - 1e-5)
            return path(data, noise, time).z, time

        derivative = derivative_along(curve, relative_step(t, fraction=fraction))
    seen = []

    def watched(*arguments, **options):
        seen.append(derivative(*arguments, **options))
        return seen[-1]

    constant = case.python("arg_tangent_warmup_const", 0.1)
    per_dimension = bool(case.python("arg_g_norm_spatial_invariance", True))
    warmup = tangent_warmup(case.python("iteration"), iterations=case.python("arg_tangent_warmup_steps", 10_000))
    pair = continuous_consistency_regression(
        net,
        z,
        v,
        t,
        sigma_data=sigma_data,
        warmup=warmup,
        normalize=partial(normalize_tangent, constant=constant, per_dimension=per_dimension),
        derivative=watched,
    )
    slope, intercept = case["logvar_coef"]
    log_variance = slope * sigma.log() / 4 + intercept
    raw = mse(*pair)
    prior = snr(t, path=path).sqrt() if case.python("arg_prior_weighting_enabled", True) else uniform_weight(t)
    weighted = prior * raw / (data[0].numel() if case.python("arg_divide_x_0_spatial_dim", True) else 1)
    loss = uncertainty(weighted, log_variance)
    case.check("loss", loss)
    case.check("loss_unweighted", raw)
    case.check("logvar", log_variance[:, None])
    case.check("x0_pred", trigflow(net, sigma_data=sigma_data)(z, t))
    case.check("warmup", torch.tensor(warmup, dtype=case.dtype))
    case.check("grad_F", torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0])
    case.check("x_t_hat", z)
    case.check("t_hat", t)
    case.check("dxt_dt", v)
    case.check("F_jvp", seen[0][1])
    case.check("F", pair.prediction)
    check_gradients(case, weights, loss.sum())


CTM_DEFAULTS: dict[str, object] = {
    "start_scales": 18,
    "sigma_data": 0.5,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "rho": 7.0,
    "time_continuous": False,
    "outer_parametrization": "euler",
    "inner_parametrization": "edm",
    "training_mode": "ctm",
    "self_learn": False,
    "self_learn_iterative": False,
    "target_subtract": False,
    "ctm_estimate_outer_type": "target_model_sg",
    "ctm_estimate_inner_type": "model",
    "ctm_target_inner_type": "model_sg",
    "ctm_target_matching": False,
    "gan_training": False,
    "weight_schedule": "uniform",
    "weight_schedule_multiplier": 1.0,
    "loss_norm": "lpips",
    "diffusion_training": True,
    "diffusion_weight_schedule": "karras_weight",
    "apply_adaptive_weight": False,
}
"""The released configuration, where a file says nothing else."""


class Trajectories:
    """CTM's configuration of a file: forms, inner scalings, grid, weights and the toy network's features."""

    def __init__(self, case: Case) -> None:
        self.given = {name: case.python(f"arg_{name}", default) for name, default in CTM_DEFAULTS.items()}
        # Images, logs and turns of the released loop, and a count that the draw of `num_heun_step` replaces.
        for name in ("large_log", "rescaling", "g_learning_period", "save_png", "data_name", "num_heun_step"):
            case.python(f"arg_{name}")
        # The features of LPIPS were replaced by the pixels when the files were made.
        fixed = {"training_mode": "ctm", "ctm_estimate_inner_type": "model", "diffusion_training": True}
        off = ("target_subtract", "ctm_target_matching", "gan_training", "apply_adaptive_weight")
        for name, value in (fixed | dict.fromkeys(off, False)).items():
            assert self.given[name] == value, f"{name} = {self.given[name]!r}: the files are made with {value!r}"
        self.sigma_data, self.sigma_min = self.given["sigma_data"], self.given["sigma_min"]
        both = {"sigma_data": self.sigma_data, "sigma_min": self.sigma_min}
        self.forms = {
            "euler": EulerForm(),
            "variance": VarianceForm(**both),
            "euler_variance_mixed": EulerVarianceForm(**both),
        }
        self.scalings = {
            "edm": partial(edm_scalings, sigma_data=self.sigma_data),
            "cm": partial(consistency_scalings, **both),
            "no": partial(input_scalings, sigma_data=self.sigma_data),
        }

    def levels(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        fraction = index.to(dtype) / (1 if self.given["time_continuous"] else self.given["start_scales"] - 1)
        return karras_levels(fraction, **{name: self.given[name] for name in ("sigma_min", "sigma_max", "rho")})

    def inner(self, weights: dict[str, Tensor], name: str):
        def raw(z: Tensor, *times: Tensor) -> Tensor:
            return mlp(weights, z, z, *(1e-3 * 250 * (t + 1e-44).log() for t in times))

        return preconditioned(raw, self.scalings[name])

    def weight(self, name: str, t: Tensor, s: Tensor) -> Tensor:
        return {
            "snr": partial(snr, path=VarianceExploding()),
            "snr+1": partial(snr_plus_one, path=VarianceExploding()),
            "karras": partial(karras, sigma_data=self.sigma_data),
            "karras_weight": partial(karras, sigma_data=self.sigma_data),
            "truncated-snr": partial(truncated_snr, path=VarianceExploding()),
            "uniform": uniform_weight,
            "uniform_g": lambda t: inverse_jump(t, s, power=self.given["weight_schedule_multiplier"]),
            "sq-t-inverse": square_root_weight,
        }[name](t)

    def teacher(self, weights: dict[str, Tensor], wrap=edm, **numbers: float):
        def raw(z: Tensor, t: Tensor) -> Tensor:
            return mlp(weights, z, z, 1e-3 * 250 * (t + 1e-44).log())

        return wrap(raw, sigma_data=self.sigma_data, **numbers)


def ctm_parameterisations(case: Case) -> None:
    setting = Trajectories(case)
    z, t, s = case["x_t"], case["t"], case["s"]
    weights, teacher = parameters(case, "model_"), parameters(case, "teacher_")
    for name, form in setting.forms.items():
        for scaling in setting.scalings:
            g = setting.inner(weights, scaling)
            case.check(f"G_{name}_{scaling}", flow_map_from_network(g, form=form)(z, t, s))
            # The released function denoises beside a jump, with the network at the jump's target.
            beside = denoiser_from_network(lambda z, t, _, g=g: g(z, t, s), form=form)
            case.check(f"denoised_{name}_{scaling}", beside(z, t))
    case.check("teacher_denoised", setting.teacher(teacher)(z, t))
    case.check("cm_denoised", setting.teacher(teacher, consistency, sigma_min=setting.sigma_min)(z, t))
    for match in case.names(r"weight_(.+?)_f64"):
        case.check(f"weight_{match[1]}", setting.weight(match[1], t, s))


def ctm_loss(case: Case) -> None:
    setting = Trajectories(case)
    model, target, teacher = (parameters(case, f"{name}_") for name in ("model", "target", "teacher"))
    form, scaling = setting.forms[setting.given["outer_parametrization"]], setting.given["inner_parametrization"]
    inner = {name: setting.inner(w, scaling) for name, w in (("model", model), ("target", target))}
    maps = {name: flow_map_from_network(g, form=form) for name, g in inner.items()}
    roles = {"model": maps["model"], "model_sg": maps["model"], "target_model_sg": maps["target"], "no": None}

    index, count = case["t_index"], case.python("num_heun_step")
    t, m, s = (setting.levels(i, case.dtype) for i in (index, index + count, case["s_index"]))
    z, _ = VarianceExploding()(case["x_start"], case["noise"], t)
    z_m = z
    hop = 1
    if setting.given["self_learn"]:
        step = maps["target"]
        hop = 1 if setting.given["self_learn_iterative"] else count
    else:
        step = partial(heun, velocity_from_denoiser(setting.teacher(teacher), path=VarianceExploding()))
    with torch.no_grad():
        for k in range(0, count, hop):
            z_m = step(z_m, setting.levels(index + k, case.dtype), setting.levels(index + k + hop, case.dtype))
    pair = consistency_trajectory_regression(
        roles["model"],
        roles[setting.given["ctm_target_inner_type"]],
        roles[setting.given["ctm_estimate_outer_type"]],
        z,
        z_m,
        t,
        m,
        s,
        end=setting.sigma_min,
    )
    loss = mse(*pair) * setting.weight(setting.given["weight_schedule"], t, s)
    case.check("consistency_loss", loss)
    case.check("ctm_estimate", pair.prediction)
    case.check("ctm_target", pair.target)
    case.check("x_t_dt", z_m)
    case.check("t", t)
    case.check("t_dt", m)
    case.check("s", s)
    case.check("grad_estimate", torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0])
    check_gradients(case, model, loss.sum())

    sigma = log_normal_times(case["dsm_log_sigma_normal"], mean=-1.2, std=1.2)
    noisy, _ = VarianceExploding()(case["x_start"], case["dsm_noise"], sigma)
    denoiser = denoiser_from_network(inner["model"], form=form)
    raw = mse(*denoising_regression(denoiser, noisy, case["x_start"], sigma))
    denoising = raw * setting.weight(setting.given["diffusion_weight_schedule"], sigma, sigma)
    case.check("dsm_sigma", sigma)
    case.check("denoising_loss", denoising)
    gradients = torch.autograd.grad(denoising.sum(), list(model.values()))
    for name, gradient in zip(model, gradients, strict=True):
        case.check(f"dsm_grad_{name}", gradient)
