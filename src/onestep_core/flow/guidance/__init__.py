"""Guidance: mixing conditional and unconditional answers, and draws of scales for training."""

from onestep_core.flow.guidance.mixing import classifier_free as classifier_free
from onestep_core.flow.guidance.mixing import drift_negative_weight as drift_negative_weight
from onestep_core.flow.guidance.mixing import drop_labels as drop_labels
from onestep_core.flow.guidance.mixing import guided_velocity as guided_velocity
from onestep_core.flow.guidance.mixing import kappa_for_scale as kappa_for_scale
from onestep_core.flow.guidance.scales import Interval as Interval
from onestep_core.flow.guidance.scales import guidance_scales as guidance_scales
from onestep_core.flow.guidance.scales import interval_around as interval_around
from onestep_core.flow.guidance.scales import power_law as power_law
from onestep_core.flow.guidance.scales import sample_guidance_scales as sample_guidance_scales
