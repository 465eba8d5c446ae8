"""Preconditioning: a raw network as a denoiser, a consistency function or a flow map."""

from onestep_core.flow.preconditioning.networks import consistency as consistency
from onestep_core.flow.preconditioning.networks import edm as edm
from onestep_core.flow.preconditioning.networks import preconditioned as preconditioned
from onestep_core.flow.preconditioning.networks import preconditioned_flow_map as preconditioned_flow_map
from onestep_core.flow.preconditioning.networks import raw_target as raw_target
from onestep_core.flow.preconditioning.networks import truncated as truncated
from onestep_core.flow.preconditioning.networks import unwrap as unwrap
from onestep_core.flow.preconditioning.scalings import Scalings as Scalings
from onestep_core.flow.preconditioning.scalings import consistency_scalings as consistency_scalings
from onestep_core.flow.preconditioning.scalings import ddim_scalings as ddim_scalings
from onestep_core.flow.preconditioning.scalings import edm_scalings as edm_scalings
from onestep_core.flow.preconditioning.scalings import euler_scalings as euler_scalings
from onestep_core.flow.preconditioning.scalings import input_scalings as input_scalings
from onestep_core.flow.preconditioning.scalings import log_noise as log_noise
from onestep_core.flow.preconditioning.scalings import simple_edm_scalings as simple_edm_scalings
from onestep_core.flow.preconditioning.scalings import velocity_scalings as velocity_scalings
