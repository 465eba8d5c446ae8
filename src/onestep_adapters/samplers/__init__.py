"""From noise to samples, in one step or many."""

from onestep_adapters.samplers.ode import sample_ode as sample_ode
from onestep_adapters.samplers.one_step import one_step as one_step
