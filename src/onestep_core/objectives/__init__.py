"""The methods: each a function that returns a prediction and a frozen target."""

from onestep_core.objectives.denoising import denoising_regression as denoising_regression
from onestep_core.objectives.drifting import drifting_regression as drifting_regression
from onestep_core.objectives.drifting import drifting_regressions as drifting_regressions
from onestep_core.objectives.flow_matching import flow_matching_regression as flow_matching_regression
from onestep_core.objectives.meanflow import meanflow_regression as meanflow_regression
from onestep_core.objectives.moment_matching import moment_matching_loss as moment_matching_loss
from onestep_core.objectives.progressive import progressive_regression as progressive_regression
from onestep_core.objectives.rectified_flow import (
    knowledge_distillation_regression as knowledge_distillation_regression,
)
from onestep_core.objectives.rectified_flow import rectified_flow_regression as rectified_flow_regression
