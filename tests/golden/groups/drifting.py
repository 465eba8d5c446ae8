"""Golden groups of drifting models: the released loss, its sum over features, the notebook."""

import torch
from einops import rearrange

from onestep_core import (
    drift_negative_weight,
    drifting_regressions,
    field_regression,
    mse,
    notebook_drift,
    released_drift,
)
from tests.golden.harness import Case


def drifting(case: Case) -> None:
    gen = case["gen"].requires_grad_()
    positives = case["pos"]
    extra = case["neg"] if case.has("neg") else None
    weights = {
        argument: case[name]
        for argument, name in (
            ("negative_weights", "weight_gen"),
            ("positive_weights", "weight_pos"),
            ("extra_weights", "weight_neg"),
        )
        if case.has(name)
    }
    if case.has("cfg_scale"):
        # The stored weights went through float32: 3e-8 is what they keep.
        each = drift_negative_weight(case["cfg_scale"], generated=gen.shape[1], unconditional=extra.shape[1])
        torch.testing.assert_close(
            weights["extra_weights"], each[:, None].expand_as(weights["extra_weights"]), rtol=1e-6, atol=0
        )
    temperatures = tuple(case["R_list"].double().tolist())
    drift = released_drift(gen, positives, extra_negatives=extra, temperatures=temperatures, **weights)
    raw = mse(*field_regression(drift.samples, drift.field))
    (gradient,) = torch.autograd.grad(raw.sum(), gen)
    everything = torch.cat([gen.detach(), positives], 1)
    if bool((everything == everything[:, :1]).all()):
        # Every point coincides: the exact answer is zero and the released one amplified rounding.
        assert all(x.isfinite().all() for x in (*drift, raw, gradient))
        if case.dtype == torch.float64:
            assert float(drift.field.abs().max()) < 1e-6
            case.note_read("V_scaled")
        case.note_read("loss", "grad_gen", "scale", "loss_R")
        return
    case.check("loss", raw)
    case.check("grad_gen", gradient)
    case.check("scale", drift.scale)
    case.check("loss_R", drift.force_norms)
    if case.has("V_scaled"):
        case.check("V_scaled", drift.field)


def drifting_toy(case: Case) -> None:
    gen = case["gen"].requires_grad_()
    drift = notebook_drift(gen, case["pos"], temperature=case.python("temp"))
    loss = mse(*field_regression(drift.samples, drift.field)).mean()
    case.check("V", drift.field, atol=1e-20)
    case.check("loss", loss, atol=1e-20)
    case.check("grad_gen", torch.autograd.grad(loss, gen)[0], atol=1e-20)


def drifting_train(case: Case) -> None:
    alpha, positives, unconditional = case["cfg_scale"], case.python("n_pos"), case.python("n_uncond")
    groups, generated = len(alpha), case.python("gen_per_label")
    temperatures = tuple(case["R_list"].double().tolist())

    def field(*sets, **keywords):
        return released_drift(*sets, temperatures=temperatures, **keywords)

    def batched(features):
        return rearrange(features, "group n location channel -> (group n) location channel")

    names = [m[1] for m in case.names(r"gen_(f\d+)")]
    leaves = {k: case[f"gen_{k}"].requires_grad_() for k in names}
    real = {k: case[f"sg_{k}"] for k in names}
    weights = drift_negative_weight(alpha, generated=generated, unconditional=unconditional)
    pairs = drifting_regressions(
        {k: batched(x) for k, x in leaves.items()},
        {k: batched(x[:, :positives]) for k, x in real.items()},
        field=field,
        groups=groups,
        extra_negatives={k: batched(x[:, positives:]) for k, x in real.items()},
        extra_weights=weights,
    )
    total = sum(mse(*pair) for pair in pairs.values()).mean()
    case.check("total_loss", total)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    for name, gradient in zip(names, gradients, strict=True):
        case.check(f"grad_{name}", gradient)
        clouds = [rearrange(x, "g n l c -> (g l) n c") for x in (leaves[name].detach(), real[name])]
        drift = field(
            clouds[0],
            clouds[1][:, :positives],
            extra_negatives=clouds[1][:, positives:],
            extra_weights=weights.repeat_interleave(leaves[name].shape[2])[:, None].expand(-1, unconditional),
        )
        case.check(f"scale_{name}", drift.scale)
        case.check(f"lossR_{name}", drift.force_norms)
