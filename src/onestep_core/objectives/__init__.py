"""The methods: each a function that returns a prediction and a frozen target."""

from onestep_core.objectives.consistency import consistency_regression as consistency_regression
from onestep_core.objectives.denoising import denoising_regression as denoising_regression
from onestep_core.objectives.drifting import drifting_regression as drifting_regression
from onestep_core.objectives.drifting import drifting_regressions as drifting_regressions
from onestep_core.objectives.flow_matching import flow_matching_regression as flow_matching_regression
from onestep_core.objectives.meanflow import meanflow_regression as meanflow_regression
