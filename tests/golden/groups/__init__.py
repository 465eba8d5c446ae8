"""The table from a group's name to its test."""

from tests.golden.groups import drifting, flow, samplers
from tests.golden.harness import Group

GROUPS: dict[str, Group] = {
    "cm_samplers": samplers.cm_samplers,
    "ctm_sampler": samplers.ctm_sampler,
    "drifting": drifting.drifting,
    "drifting_cfg_sampling": flow.drifting_cfg_sampling,
    "drifting_toy": drifting.drifting_toy,
    "drifting_train": drifting.drifting_train,
    "edm_loss": flow.edm_loss,
    "fastgen_mf_head": flow.fastgen_mf_head,
    "fastgen_ts": flow.fastgen_ts,
    "kdiff": samplers.kdiff,
    "meanflow_jax": flow.meanflow_jax,
    "pymeanflow": flow.pymeanflow,
}
