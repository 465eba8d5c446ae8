"""Golden groups of the methods on average velocities: improved MeanFlow, alpha-Flow, shortcut models, TVM."""

import json
from functools import partial

import torch

from onestep_core.diagnostics import trajectory_terms
from onestep_core.flow import (
    Linear,
    alpha_schedule,
    classifier_free,
    drop_labels,
    exponential_ramp,
    from_duration,
    from_log_step,
    guided_velocity,
    instantaneous,
    integrate,
    interval_around,
    jump,
    kappa_for_scale,
    linear_ramp,
    log_steps,
    logarithmic_ramp,
    logit_normal_times,
    ordered,
    power_law,
    reverse,
    sigmoid_ramp,
    stay_where,
    time_between,
    truncated_logit_normal_times,
    two_pass,
    uniform_times,
    with_graph,
)
from onestep_core.objectives import (
    alpha_flow_regression,
    flow_matching_regression,
    improved_meanflow_regressions,
    meanflow_regression,
    shortcut_regression,
    terminal_velocity_regression,
)
from onestep_core.regression import Regression, adaptive, mse, squared_l2
from onestep_core.shapes import expand_like
from tests.golden.harness import Case, check_gradients, mlp, parameters

EMBEDDED = ("W1", "b1", "W2", "b2", "E")


def where(mask, first, second):
    return torch.where(expand_like(mask, first), first, second)


def imf(case: Case) -> None:
    weights = parameters(case, names=EMBEDDED)
    x, e, labels, null = case["x"], case["e"], case["labels"], case.python("num_classes")
    index = torch.arange(len(x))
    mean, std = case.python("arg_P_mean", -0.4), case.python("arg_P_std", 1.0)
    t, s = ordered(*(logit_normal_times(case[f"normal_{k}"], mean=mean, std=std) for k in "tr"))
    still = index < int(len(x) * case.python("arg_data_proportion", 0.5))
    t, s = stay_where(t, s, still)
    interval = interval_around(case["uniform_tmin"], case["uniform_tmax"], everywhere=still)
    omega = power_law(case["uniform_omega"], low=1.0, high=8.0, power=case.python("arg_cfg_beta", 1.0))
    z, v = Linear()(x, e, t)

    def net(omega, low, high, label):
        def two_headed(z, t, h):
            both = mlp(weights, torch.cat([z, z], 1), z, t, h, omega, low, high, weights["E"][label])
            return tuple(half.reshape(z.shape) for half in both.flatten(1).chunk(2, dim=1))

        return from_duration(two_headed)

    zero, one, nothing = torch.zeros_like(t), torch.ones_like(t), torch.full_like(labels, null)
    active = (t >= interval.low) & (t <= interval.high)
    scale = torch.where(active, omega, 1.0)
    conditional = net(scale, zero, one, labels)(z, t, t)[1]
    unconditional = net(one, zero, one, nothing)(z, t, t)[1]
    guided = guided_velocity(v, conditional, unconditional, omega=1.0, kappa=kappa_for_scale(scale))
    dropped = index < int((case["uniform_drop"] < case.python("arg_class_dropout_prob", 0.1)).sum())
    kept, regressand = drop_labels(labels, null, dropped), where(dropped, v, guided)
    network = net(omega, *interval, kept)
    pairs = improved_meanflow_regressions(network, z, regressand, conditional, t, s)
    power, epsilon = case.python("arg_norm_p", 1.0), case.python("arg_norm_eps", 0.01)
    raw = [squared_l2(*pair) for pair in pairs]
    loss = sum(r * adaptive(r, power=power, epsilon=epsilon) for r in raw).mean()
    case.check("t", t)
    case.check("r", s)
    case.check("t_min", interval.low)
    case.check("t_max", interval.high)
    case.check("omega", omega)
    case.check("v_cond", conditional)
    case.check("v_guided", guided)
    case.check("u", pairs.average.prediction)
    case.check("v", pairs.instantaneous.prediction)
    case.check("tangent", conditional)
    case.check("dudt", two_pass(network, (z, t, s), (conditional.detach(), one, zero))[1][0])
    case.check("loss", loss)
    case.check("loss_u_mse", mse(*pairs.average).mean())
    case.check("loss_v_mse", mse(*pairs.instantaneous).mean())
    check_gradients(case, weights, loss)
    chosen = [torch.full_like(t, number) for number in case["sample_omega_tmin_tmax"].tolist()]
    sampler = net(*chosen, labels)
    case.check("sample_2step", integrate(partial(jump, lambda *a: sampler(*a)[0]), e, case["sample_t_steps"]))


def alphaflow(case: Case) -> None:
    weights = parameters(case)
    t, s, alpha = case["t"], case["t_next"], case.python("alpha")
    z, v = Linear()(case["x"], case["noise"], t)
    active = (t > case.python("arg_t_min")) & (t < case.python("arg_t_max"))
    labels = drop_labels(case["labels"], 0, active & (case["uniform_drop"] < case.python("arg_label_dropout")))

    def net(label):
        return lambda z, t, s: mlp(weights, z, z, t, s, label)

    guided = guided_velocity(
        v,
        net(labels)(z, t, t),
        net(torch.zeros_like(labels))(z, t, t),
        omega=case.python("arg_omega"),
        kappa=case.python("arg_kappa"),
        active=active,
    )
    discrete, bound = case["dt"] > 0, case.python("arg_clamp_utgt")
    moved = discrete.nonzero()[:, 0]
    torch.testing.assert_close(t[moved] + (s - t)[moved] * alpha, t[moved] - case["dt"][moved])
    pair = meanflow_regression(net(labels), z, guided, t, s)
    if len(moved):
        some, state, velocity, start, end = (x[moved] for x in (labels, z, guided, t, s))
        jumps = alpha_flow_regression(net(some), net(some), state, velocity, start, end, alpha=alpha, bound=bound)
        pair = Regression(*(whole.index_copy(0, moved, part) for whole, part in zip(pair, jumps, strict=True)))
    raw = mse(*pair)
    epsilon = case.python("arg_adaptive_loss_weight_eps")
    loss = raw * torch.where(discrete, alpha, torch.ones_like(raw)) * adaptive(raw, power=1.0, epsilon=epsilon)
    terms = trajectory_terms(pair, guided)
    case.check("x_t", z)
    case.check("labels_used", labels)
    case.check("velocity_cfg", guided)
    case.check("pred", pair.prediction)
    case.check("target", pair.target)
    case.check("loss", loss)
    case.check("loss_tfm", terms.flow_matching)
    # Where every target is the velocity this is rounding; the manifest allows 1e-6.
    case.check("loss_tcc", terms.consistency, atol=1e-6 if alpha == 1 else 0.0)
    case.check("grad_pred", torch.autograd.grad(loss.sum(), pair.prediction, retain_graph=True)[0])
    check_gradients(case, weights, loss.sum())


def alphaflow_sched(case: Case) -> None:
    for match in case.names(r"cfg_(\d+)"):
        config = json.loads(case.python(match[0]))
        ramp = {
            "linear": linear_ramp,
            "step": linear_ramp,
            "exponential": partial(exponential_ramp, power=config["gamma"]),
            "log": logarithmic_ramp,
            "sigmoid": partial(sigmoid_ramp, steepness=config["gamma"]),
        }[config["scheduler"]]
        schedule = partial(
            alpha_schedule,
            begin=config["change_init_steps"],
            end=config["change_end_steps"],
            initial=config["initial_value"],
            final=config["end_value"],
            ramp=ramp,
            margin=config["clamp_value"],
            upper=config["up_clamp_value"],
        )
        values = [schedule(step) for step in case[f"step_{match[1]}"].tolist()]
        case.check(f"value_{match[1]}", torch.tensor(values, dtype=case.dtype))


def shortcut(case: Case) -> None:
    weights, averaged = (parameters(case, f"{name}_", EMBEDDED) for name in ("model", "ema"))
    images, labels, null = case["images"], case["labels"], case.python("arg_num_classes")
    batch, finest = case.python("arg_batch_size"), case.python("arg_denoise_timesteps").bit_length() - 1
    bootstrapped = batch // case.python("arg_bootstrap_every")
    biased = bool(case.python("arg_bootstrap_dt_bias"))
    case.note_read("arg_class_dropout_prob", "t")
    k = log_steps(bootstrapped, finest=finest, biased=biased)
    path, t = reverse(Linear(noise_floor=1e-5)), torch.from_numpy(case.expected("t")).to(case.dtype)

    def net(parameters, label):
        def network(z, t, k):
            return mlp(parameters, z, z, t, 0.1 * k, parameters["E"][label])

        return from_log_step(network, finest=finest)

    first, rest = slice(0, bootstrapped), slice(0, batch - bootstrapped)
    teacher = averaged if case.python("arg_bootstrap_ema") else weights
    frozen = net(teacher, labels[first])
    if case.python("arg_bootstrap_cfg"):
        plain, empty = frozen, net(teacher, torch.full_like(labels[first], null))
        strong = classifier_free(plain, empty, scale=case.python("arg_cfg_scale"))

        def frozen(z, t, s):
            return where(k == finest - 1, strong(z, t, s), plain(z, t, s))
    else:
        case.note_read("arg_cfg_scale")
    start, end = t[first], t[first] + torch.exp2(-k.to(case.dtype))
    z, _ = path(images[first], case["noise_bootstrap"], start)
    long = shortcut_regression(net(weights, labels[first]), frozen, z, start, end, bound=4.0)

    kept = drop_labels(labels, null, case["label_drop"])[rest]
    z_rest, v = path(images[rest], case["noise_flow"][rest], t[bootstrapped:])
    short = flow_matching_regression(instantaneous(net(weights, kept)), z_rest, v, t[bootstrapped:])

    loss = torch.cat([mse(*long), mse(*short)]).mean()
    half = frozen(z, start, time_between(start, end, share=0.5))
    case.check("x_t", torch.cat([z, z_rest]))
    case.check("v_t", torch.cat([long.target, short.target]))
    case.check("dt_base", torch.cat([k, torch.full((batch - bootstrapped,), finest)]))
    case.check("labels_out", torch.cat([labels[first], kept]))
    case.check("v_mag_b1", half.square().mean().sqrt())
    case.check("loss", loss)
    check_gradients(case, weights, loss)


def tvm(case: Case) -> None:
    names = ("W1", "b1", "W2", "b2")
    weights, teacher = (parameters(case, f"{name}_", names) for name in ("model", "teacher"))
    images, noise, table = case["images"], case["noise"], case["E"]
    length = logit_normal_times(
        case["normal_gap"], mean=case.python("arg_gap_P_mean", -0.8), std=case.python("arg_gap_P_std", 1.0)
    )
    end = {"mean": case.python("arg_s_P_mean", -0.4), "std": case.python("arg_s_P_std", 1.0)}
    s = truncated_logit_normal_times(case["uniform_s"], **end, high=1 - length)
    t, other = (s + length).clamp(max=1.0), logit_normal_times(case["normal_sprime"], **end)
    beta = case["uniform_beta"]
    if case.has("arg_cfg"):
        beta = 1 / torch.full_like(t, case.python("arg_cfg"))
    elif case.has("arg_max_cfg"):
        beta = 1 / uniform_times(beta, low=case.python("arg_min_cfg"), high=case.python("arg_max_cfg"))
    dropped = case["uniform_drop"] < case.python("arg_label_dropout", 0.1)
    labels, beta = drop_labels(case["labels"], 0, dropped), torch.where(dropped, 1.0, beta)
    scaled = case.python("do_scale_param")
    derivative = two_pass if case.python("detach_jvp") else with_graph

    def net(parameters, label, beta):
        def network(z, t, h):
            out = mlp(parameters, z, z, t, h, label @ table, beta)
            return expand_like(1 / beta, out) * out if scaled else out

        return from_duration(network)

    student, (z, _), (z_other, v) = (
        net(weights, labels, beta),
        Linear()(images, noise, t),
        Linear()(images, noise, other),
    )
    pair = terminal_velocity_regression(
        student, instantaneous(net(teacher, labels, beta)), z, t, s, derivative=derivative
    )
    empty = net(teacher, torch.zeros_like(labels), torch.ones_like(beta))(z_other, other, other)
    regressand = guided_velocity(v, None, empty, omega=1 / beta)
    moves = ~torch.isclose(s, t)
    terminal = beta.square() * mse(*pair) * moves
    matching = beta.square() * mse(*flow_matching_regression(instantaneous(student), z_other, regressand, other))
    case.check("t", t)
    case.check("s", s)
    case.check("s_prime", other)
    case.check("beta", beta)
    case.check("labels_used", labels)
    case.check("v_target", v)
    case.check("f_ts", jump(student, z, t, s))
    case.check("df_ds", pair.prediction)
    case.check("terminal", terminal)
    case.check("fm", matching)
    case.check("loss", terminal + matching)
    check_gradients(case, weights, (terminal + matching).sum())
