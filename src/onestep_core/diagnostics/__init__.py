"""Diagnostics: Gaussian mixtures in closed form, monitors of what a loss does not show, calibration."""

from onestep_core.diagnostics.calibration import calibration as calibration
from onestep_core.diagnostics.gaussian_mixture import GaussianMixture as GaussianMixture
from onestep_core.diagnostics.mixture_parts import Posterior as Posterior
from onestep_core.diagnostics.mixture_parts import Quadrature as Quadrature
from onestep_core.diagnostics.monitors import RealisedDrift as RealisedDrift
from onestep_core.diagnostics.monitors import TangentTerms as TangentTerms
from onestep_core.diagnostics.monitors import TrajectoryTerms as TrajectoryTerms
from onestep_core.diagnostics.monitors import affinity_saturation as affinity_saturation
from onestep_core.diagnostics.monitors import drift_norm as drift_norm
from onestep_core.diagnostics.monitors import effective_sample_size as effective_sample_size
from onestep_core.diagnostics.monitors import guidance_deficit as guidance_deficit
from onestep_core.diagnostics.monitors import held_out_energy as held_out_energy
from onestep_core.diagnostics.monitors import mode_mass_error as mode_mass_error
from onestep_core.diagnostics.monitors import mode_masses as mode_masses
from onestep_core.diagnostics.monitors import realised_drift as realised_drift
from onestep_core.diagnostics.monitors import spread as spread
from onestep_core.diagnostics.monitors import tangent_terms as tangent_terms
from onestep_core.diagnostics.monitors import trajectory_terms as trajectory_terms
