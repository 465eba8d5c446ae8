"""Paths from data to noise: ``z = alpha(t) data + sigma(t) noise``."""

from onestep_core.flow.paths.changed import NoiseScaled as NoiseScaled
from onestep_core.flow.paths.changed import Reversed as Reversed
from onestep_core.flow.paths.changed import reverse as reverse
from onestep_core.flow.paths.closed_form import Linear as Linear
from onestep_core.flow.paths.closed_form import Trigonometric as Trigonometric
from onestep_core.flow.paths.closed_form import VarianceExploding as VarianceExploding
from onestep_core.flow.paths.point import PathPoint as PathPoint
from onestep_core.flow.paths.point import point_on_path as point_on_path
from onestep_core.flow.paths.point import prior_state as prior_state
from onestep_core.flow.paths.variance_preserving import VariancePreserving as VariancePreserving
