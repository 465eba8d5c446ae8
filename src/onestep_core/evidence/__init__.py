"""Evidence: oracles whose answers are known, and monitors of what a loss does not show."""

from onestep_core.evidence.calibration import calibration as calibration
from onestep_core.evidence.monitors import RealisedDrift as RealisedDrift
from onestep_core.evidence.monitors import TrajectoryTerms as TrajectoryTerms
from onestep_core.evidence.monitors import affinity_saturation as affinity_saturation
from onestep_core.evidence.monitors import drift_norm as drift_norm
from onestep_core.evidence.monitors import effective_sample_size as effective_sample_size
from onestep_core.evidence.monitors import guidance_deficit as guidance_deficit
from onestep_core.evidence.monitors import held_out_energy as held_out_energy
from onestep_core.evidence.monitors import mode_mass_error as mode_mass_error
from onestep_core.evidence.monitors import mode_masses as mode_masses
from onestep_core.evidence.monitors import realised_drift as realised_drift
from onestep_core.evidence.monitors import spread as spread
from onestep_core.evidence.monitors import trajectory_terms as trajectory_terms
from onestep_core.evidence.oracles import GaussianMixture as GaussianMixture
from onestep_core.evidence.oracles import Posterior as Posterior
from onestep_core.evidence.oracles import Quadrature as Quadrature
