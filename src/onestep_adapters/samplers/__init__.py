"""From noise to samples, in one step or many."""

from onestep_adapters.samplers.gamma import gamma_multistep as gamma_multistep
from onestep_adapters.samplers.multistep import backward_simulation as backward_simulation
from onestep_adapters.samplers.multistep import consistency_multistep as consistency_multistep
from onestep_adapters.samplers.multistep import multistep as multistep
from onestep_adapters.samplers.multistep import noised_multistep as noised_multistep
from onestep_adapters.samplers.ode import sample_ode as sample_ode
from onestep_adapters.samplers.one_step import one_step as one_step
from onestep_adapters.samplers.schedule import standard_normal as standard_normal
from onestep_adapters.samplers.teachers import sample_ancestral as sample_ancestral
from onestep_adapters.samplers.teachers import sample_denoiser as sample_denoiser
from onestep_adapters.samplers.teachers import sample_dpmpp_2m as sample_dpmpp_2m
