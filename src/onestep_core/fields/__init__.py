"""Clouds: kernels, couplings, drift fields and divergences."""

from onestep_core.fields.attraction_repulsion import drift_field as drift_field
from onestep_core.fields.attraction_repulsion import multi_temperature as multi_temperature
from onestep_core.fields.couplings import sinkhorn as sinkhorn
from onestep_core.fields.couplings import softmax_both as softmax_both
from onestep_core.fields.couplings import softmax_rows as softmax_rows
from onestep_core.fields.couplings import unnormalized as unnormalized
from onestep_core.fields.divergences import energy_distance as energy_distance
from onestep_core.fields.divergences import mmd as mmd
from onestep_core.fields.divergences import sinkhorn_divergence as sinkhorn_divergence
from onestep_core.fields.divergences import sliced_wasserstein as sliced_wasserstein
from onestep_core.fields.kernels import distances as distances
from onestep_core.fields.kernels import gaussian as gaussian
from onestep_core.fields.kernels import inverse_multiquadric as inverse_multiquadric
from onestep_core.fields.kernels import laplace as laplace
from onestep_core.fields.kernels import matern as matern
from onestep_core.fields.kernels import squared_distances as squared_distances
from onestep_core.fields.mean_shift import mean_shift_field as mean_shift_field
from onestep_core.fields.released import notebook_drift as notebook_drift
from onestep_core.fields.released import released_drift as released_drift
from onestep_core.fields.score import denoising_error as denoising_error
from onestep_core.fields.score import score_gap as score_gap
from onestep_core.protocols import Drift as Drift
from onestep_core.protocols import Potentials as Potentials
