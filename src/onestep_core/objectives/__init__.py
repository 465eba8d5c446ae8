"""The methods: each a function that returns a prediction and a frozen target."""

from onestep_core.objectives.consistency_trajectory import (
    consistency_trajectory_regression as consistency_trajectory_regression,
)
from onestep_core.objectives.continuous_consistency import (
    continuous_consistency_regression as continuous_consistency_regression,
)
from onestep_core.objectives.denoising import denoising_regression as denoising_regression
from onestep_core.objectives.drifting import drifting_regression as drifting_regression
from onestep_core.objectives.drifting import drifting_regressions as drifting_regressions
from onestep_core.objectives.flow_matching import flow_matching_regression as flow_matching_regression
from onestep_core.objectives.meanflow import meanflow_regression as meanflow_regression
