"""Closing a regression: the pair, distances, weights."""

from onestep_core.regression.distances import cosine as cosine
from onestep_core.regression.distances import l1 as l1
from onestep_core.regression.distances import l2 as l2
from onestep_core.regression.distances import mse as mse
from onestep_core.regression.distances import pseudo_huber as pseudo_huber
from onestep_core.regression.distances import squared_l2 as squared_l2
from onestep_core.regression.pair import Regression as Regression
from onestep_core.regression.pair import pull as pull
from onestep_core.regression.pair import regression as regression
from onestep_core.regression.weights import adaptive as adaptive
from onestep_core.regression.weights import exponential as exponential
from onestep_core.regression.weights import inverse_variance as inverse_variance
from onestep_core.regression.weights import inverse_variance_plus_one as inverse_variance_plus_one
from onestep_core.regression.weights import karras as karras
from onestep_core.regression.weights import rescale_residual as rescale_residual
from onestep_core.regression.weights import snr as snr
from onestep_core.regression.weights import soft_min_snr as soft_min_snr
from onestep_core.regression.weights import truncated_inverse_variance as truncated_inverse_variance
from onestep_core.regression.weights import uniform as uniform
