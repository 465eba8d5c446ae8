"""The table from a group's name to its test."""

from tests.golden.groups import average, consistency, distillation, drifting, flow, samplers, trajectory
from tests.golden.harness import Group

GROUPS: dict[str, Group] = {
    "alphaflow": average.alphaflow,
    "alphaflow_sched": average.alphaflow_sched,
    "cm_loss": consistency.cm_loss,
    "cm_pd": distillation.cm_pd,
    "cm_samplers": samplers.cm_samplers,
    "cm_scalings": consistency.cm_scalings,
    "cm_schedules": consistency.cm_schedules,
    "ctm_G": trajectory.ctm_parameterisations,
    "ctm_loss": trajectory.ctm_loss,
    "ctm_sampler": samplers.ctm_sampler,
    "drifting": drifting.drifting,
    "drifting_cfg_sampling": flow.drifting_cfg_sampling,
    "drifting_toy": drifting.drifting_toy,
    "drifting_train": drifting.drifting_train,
    "ect": consistency.ect,
    "ect_map": consistency.ect_map,
    "edm_loss": flow.edm_loss,
    "fastgen_cm": consistency.fastgen_cm,
    "fastgen_mf_head": flow.fastgen_mf_head,
    "fastgen_ts": flow.fastgen_ts,
    "imf": average.imf,
    "imm": distillation.imm,
    "kdiff": samplers.kdiff,
    "meanflow_jax": flow.meanflow_jax,
    "pd_google": distillation.pd_google,
    "pymeanflow": flow.pymeanflow,
    "scm": trajectory.scm,
    "shortcut": average.shortcut,
    "tcm": consistency.tcm,
    "tvm": average.tvm,
}
