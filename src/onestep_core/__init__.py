"""One-step generation as a functional core: objectives as pure functions that return a prediction and a target.

Two wings build targets, one closes them, the objectives sit on top:

* :mod:`onestep_core.flow`: trajectories: paths, times, derivatives, solvers, identities of flow maps;
* :mod:`onestep_core.fields`: clouds of samples: kernels, couplings, drift fields, divergences;
* :mod:`onestep_core.regression`: the pair, distances, weights;
* :mod:`onestep_core.objectives`: the methods.

:mod:`onestep_core.evidence` (oracles in closed form, monitors) is imported by its own name.
"""

from onestep_core import errors as errors
from onestep_core import fields as fields
from onestep_core import flow as flow
from onestep_core import objectives as objectives
from onestep_core import protocols as protocols
from onestep_core import regression as regression
from onestep_core import shapes as shapes
from onestep_core import typing as typing
from onestep_core.errors import OneStepError as OneStepError
from onestep_core.errors import ConfigError as ConfigError
from onestep_core.errors import MissingExtraError as MissingExtraError
from onestep_core.errors import NumericalWarning as NumericalWarning
from onestep_core.errors import PerformanceWarning as PerformanceWarning
from onestep_core.flow import central_difference as central_difference
from onestep_core.flow import two_pass as two_pass
from onestep_core.flow import with_graph as with_graph
from onestep_core.flow import discrete_levels as discrete_levels
from onestep_core.flow import few_step_grid as few_step_grid
from onestep_core.flow import karras_grid as karras_grid
from onestep_core.flow import karras_levels as karras_levels
from onestep_core.flow import uniform_grid as uniform_grid
from onestep_core.flow import classifier_free as classifier_free
from onestep_core.flow import drift_negative_weight as drift_negative_weight
from onestep_core.flow import drop_labels as drop_labels
from onestep_core.flow import guided_velocity as guided_velocity
from onestep_core.flow import average_velocity_from_displacement as average_velocity_from_displacement
from onestep_core.flow import average_velocity_from_flow_map as average_velocity_from_flow_map
from onestep_core.flow import consistency_from_flow_map as consistency_from_flow_map
from onestep_core.flow import eulerian_target as eulerian_target
from onestep_core.flow import flow_map_from_average_velocity as flow_map_from_average_velocity
from onestep_core.flow import from_duration as from_duration
from onestep_core.flow import from_log_step as from_log_step
from onestep_core.flow import from_reversed as from_reversed
from onestep_core.flow import instantaneous as instantaneous
from onestep_core.flow import jump as jump
from onestep_core.flow import lagrangian_target as lagrangian_target
from onestep_core.flow import semigroup_target as semigroup_target
from onestep_core.flow import Linear as Linear
from onestep_core.flow import PathPoint as PathPoint
from onestep_core.flow import Reversed as Reversed
from onestep_core.flow import Trigonometric as Trigonometric
from onestep_core.flow import VarianceExploding as VarianceExploding
from onestep_core.flow import VariancePreserving as VariancePreserving
from onestep_core.flow import reverse as reverse
from onestep_core.flow import Scalings as Scalings
from onestep_core.flow import consistency as consistency
from onestep_core.flow import consistency_scalings as consistency_scalings
from onestep_core.flow import edm as edm
from onestep_core.flow import edm_scalings as edm_scalings
from onestep_core.flow import data_from_noise as data_from_noise
from onestep_core.flow import data_from_score as data_from_score
from onestep_core.flow import data_from_velocity as data_from_velocity
from onestep_core.flow import denoiser_from_noise as denoiser_from_noise
from onestep_core.flow import denoiser_from_velocity as denoiser_from_velocity
from onestep_core.flow import noise_from_data as noise_from_data
from onestep_core.flow import score_from_data as score_from_data
from onestep_core.flow import velocity_from_data as velocity_from_data
from onestep_core.flow import velocity_from_denoiser as velocity_from_denoiser
from onestep_core.flow import ddim as ddim
from onestep_core.flow import euler as euler
from onestep_core.flow import heun as heun
from onestep_core.flow import integrate as integrate
from onestep_core.flow import TimePair as TimePair
from onestep_core.flow import limit_duration as limit_duration
from onestep_core.flow import log_normal_times as log_normal_times
from onestep_core.flow import logit_normal_times as logit_normal_times
from onestep_core.flow import not_after as not_after
from onestep_core.flow import ordered as ordered
from onestep_core.flow import power_law as power_law
from onestep_core.flow import sample_log_normal as sample_log_normal
from onestep_core.flow import sample_logit_normal as sample_logit_normal
from onestep_core.flow import sample_uniform as sample_uniform
from onestep_core.flow import stay_where as stay_where
from onestep_core.flow import truncated_log_normal_times as truncated_log_normal_times
from onestep_core.flow import uniform_times as uniform_times
from onestep_core.objectives import denoising_regression as denoising_regression
from onestep_core.objectives import flow_matching_regression as flow_matching_regression
from onestep_core.objectives import meanflow_regression as meanflow_regression
from onestep_core.regression import cosine as cosine
from onestep_core.regression import l1 as l1
from onestep_core.regression import l2 as l2
from onestep_core.regression import mse as mse
from onestep_core.regression import pseudo_huber as pseudo_huber
from onestep_core.regression import squared_l2 as squared_l2
from onestep_core.regression import Regression as Regression
from onestep_core.regression import pull as pull
from onestep_core.regression import adaptive as adaptive
from onestep_core.regression import exponential as exponential
from onestep_core.regression import inverse_variance as inverse_variance
from onestep_core.regression import inverse_variance_plus_one as inverse_variance_plus_one
from onestep_core.regression import karras as karras
from onestep_core.regression import rescale_residual as rescale_residual
from onestep_core.regression import snr as snr
from onestep_core.regression import truncated_inverse_variance as truncated_inverse_variance
from onestep_core.regression import uniform as uniform
from onestep_core.shapes import expand_like as expand_like
from onestep_core.shapes import per_sample_sum as per_sample_sum
from onestep_core.shapes import per_sample_mean as per_sample_mean
from onestep_core.shapes import per_sample as per_sample
from onestep_core.shapes import clouds as clouds
from onestep_core.shapes import uncloud as uncloud
