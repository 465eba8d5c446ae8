"""Grids: fixed sequences of times, for solvers, curricula and discrete training."""

from onestep_core.flow.grids.noise_levels import discrete_levels as discrete_levels
from onestep_core.flow.grids.noise_levels import few_step_grid as few_step_grid
from onestep_core.flow.grids.noise_levels import karras_grid as karras_grid
from onestep_core.flow.grids.noise_levels import karras_levels as karras_levels
from onestep_core.flow.grids.noise_levels import karras_times as karras_times
from onestep_core.flow.grids.noise_levels import polyexponential_grid as polyexponential_grid
from onestep_core.flow.grids.noise_levels import vp_grid as vp_grid
from onestep_core.flow.grids.progressive import StepTimes as StepTimes
from onestep_core.flow.grids.progressive import halving_stages as halving_stages
from onestep_core.flow.grids.progressive import progressive_times as progressive_times
from onestep_core.flow.grids.uniform import central_steps as central_steps
from onestep_core.flow.grids.uniform import uniform_grid as uniform_grid
from onestep_core.flow.grids.uniform import uniform_levels as uniform_levels
