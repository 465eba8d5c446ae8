"""Evidence: oracles whose answers are known, and monitors of what a loss does not show."""

from onestep_core.evidence.oracles import GaussianMixture as GaussianMixture
from onestep_core.evidence.oracles import Posterior as Posterior
from onestep_core.evidence.oracles import Quadrature as Quadrature
