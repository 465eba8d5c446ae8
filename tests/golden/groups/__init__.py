"""The table from a group's name to its test."""

from tests.golden.groups import distillation, drifting, flow
from tests.golden.harness import Group

GROUPS: dict[str, Group] = {
    "cm_pd": distillation.cm_pd,
    "imm": distillation.imm,
    "pd_google": distillation.pd_google,
    "drifting": drifting.drifting,
    "drifting_cfg_sampling": flow.drifting_cfg_sampling,
    "drifting_toy": drifting.drifting_toy,
    "drifting_train": drifting.drifting_train,
    "edm_loss": flow.edm_loss,
    "fastgen_mf_head": flow.fastgen_mf_head,
    "fastgen_ts": flow.fastgen_ts,
    "meanflow_jax": flow.meanflow_jax,
    "pymeanflow": flow.pymeanflow,
}
