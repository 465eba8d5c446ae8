"""One-step generation as a functional core: objectives as pure functions that return a prediction and a target.

Two wings build targets, one wing closes the regression, and the objectives are built on all three:

* :mod:`onestep_core.flow`: trajectories: paths, times, derivatives, solvers, identities of flow maps;
* :mod:`onestep_core.fields`: clouds of samples: kernels, couplings, drift fields, divergences;
* :mod:`onestep_core.regression`: the pair, distances, weights;
* :mod:`onestep_core.objectives`: the methods.

:mod:`onestep_core.diagnostics` (Gaussian mixtures in closed form, monitors, calibration) is imported by its own name.
"""

from onestep_core import errors as errors
from onestep_core import fields as fields
from onestep_core import flow as flow
from onestep_core import objectives as objectives
from onestep_core import protocols as protocols
from onestep_core import regression as regression
from onestep_core import shapes as shapes
from onestep_core import typing as typing
from onestep_core import validators as validators
from onestep_core.errors import ArgumentError as ArgumentError
from onestep_core.errors import ConfigError as ConfigError
from onestep_core.errors import MissingExtraError as MissingExtraError
from onestep_core.errors import OneStepError as OneStepError
from onestep_core.errors import UnsupportedDerivative as UnsupportedDerivative
from onestep_core.fields import Drift as Drift
from onestep_core.fields import FDivergence as FDivergence
from onestep_core.fields import Potentials as Potentials
from onestep_core.fields import Radial as Radial
from onestep_core.fields import denoising_error as denoising_error
from onestep_core.fields import density_ratio as density_ratio
from onestep_core.fields import distances as distances
from onestep_core.fields import drift_field as drift_field
from onestep_core.fields import energy_distance as energy_distance
from onestep_core.fields import energy_field as energy_field
from onestep_core.fields import f_divergence_scale as f_divergence_scale
from onestep_core.fields import forward_kl as forward_kl
from onestep_core.fields import gaussian as gaussian
from onestep_core.fields import geometric_temperature as geometric_temperature
from onestep_core.fields import inverse_multiquadric as inverse_multiquadric
from onestep_core.fields import jeffreys as jeffreys
from onestep_core.fields import jensen_shannon as jensen_shannon
from onestep_core.fields import kernel_gradient_field as kernel_gradient_field
from onestep_core.fields import laplace as laplace
from onestep_core.fields import matern as matern
from onestep_core.fields import mean_shift_field as mean_shift_field
from onestep_core.fields import mmd as mmd
from onestep_core.fields import mmd_field as mmd_field
from onestep_core.fields import multi_temperature as multi_temperature
from onestep_core.fields import neyman as neyman
from onestep_core.fields import notebook_drift as notebook_drift
from onestep_core.fields import ratio_means as ratio_means
from onestep_core.fields import released_drift as released_drift
from onestep_core.fields import reverse_kl as reverse_kl
from onestep_core.fields import score_gap as score_gap
from onestep_core.fields import sinkhorn as sinkhorn
from onestep_core.fields import sinkhorn_divergence as sinkhorn_divergence
from onestep_core.fields import sinkhorn_field as sinkhorn_field
from onestep_core.fields import sliced_wasserstein as sliced_wasserstein
from onestep_core.fields import softened_reverse_kl as softened_reverse_kl
from onestep_core.fields import softmax_both as softmax_both
from onestep_core.fields import softmax_rows as softmax_rows
from onestep_core.fields import squared_distances as squared_distances
from onestep_core.fields import squared_hellinger as squared_hellinger
from onestep_core.fields import stepped_temperature as stepped_temperature
from onestep_core.fields import unnormalized as unnormalized
from onestep_core.flow import Chord as Chord
from onestep_core.flow import EulerForm as EulerForm
from onestep_core.flow import EulerVarianceForm as EulerVarianceForm
from onestep_core.flow import Factors as Factors
from onestep_core.flow import Interval as Interval
from onestep_core.flow import Linear as Linear
from onestep_core.flow import NoiseScaled as NoiseScaled
from onestep_core.flow import PathPoint as PathPoint
from onestep_core.flow import Ramp as Ramp
from onestep_core.flow import Reversed as Reversed
from onestep_core.flow import Scalings as Scalings
from onestep_core.flow import SkipForm as SkipForm
from onestep_core.flow import StepTimes as StepTimes
from onestep_core.flow import TangentRule as TangentRule
from onestep_core.flow import TimePair as TimePair
from onestep_core.flow import Trigonometric as Trigonometric
from onestep_core.flow import VarianceExploding as VarianceExploding
from onestep_core.flow import VarianceForm as VarianceForm
from onestep_core.flow import VariancePreserving as VariancePreserving
from onestep_core.flow import alpha_schedule as alpha_schedule
from onestep_core.flow import ancestral as ancestral
from onestep_core.flow import annealed as annealed
from onestep_core.flow import average_velocity_from_displacement as average_velocity_from_displacement
from onestep_core.flow import average_velocity_from_flow_map as average_velocity_from_flow_map
from onestep_core.flow import average_velocity_from_network as average_velocity_from_network
from onestep_core.flow import boundary_times as boundary_times
from onestep_core.flow import central_difference as central_difference
from onestep_core.flow import central_steps as central_steps
from onestep_core.flow import chord as chord
from onestep_core.flow import clamped as clamped
from onestep_core.flow import classifier_free as classifier_free
from onestep_core.flow import consistency as consistency
from onestep_core.flow import consistency_from_flow_map as consistency_from_flow_map
from onestep_core.flow import consistency_scalings as consistency_scalings
from onestep_core.flow import data_from_both as data_from_both
from onestep_core.flow import data_from_noise as data_from_noise
from onestep_core.flow import data_from_score as data_from_score
from onestep_core.flow import data_from_v_prediction as data_from_v_prediction
from onestep_core.flow import data_from_velocity as data_from_velocity
from onestep_core.flow import data_of_ddim_step as data_of_ddim_step
from onestep_core.flow import ddim as ddim
from onestep_core.flow import ddim_scalings as ddim_scalings
from onestep_core.flow import denoised_heun as denoised_heun
from onestep_core.flow import denoiser_from_both as denoiser_from_both
from onestep_core.flow import denoiser_from_network as denoiser_from_network
from onestep_core.flow import denoiser_from_noise as denoiser_from_noise
from onestep_core.flow import denoiser_from_v_prediction as denoiser_from_v_prediction
from onestep_core.flow import denoiser_from_velocity as denoiser_from_velocity
from onestep_core.flow import derivative_along as derivative_along
from onestep_core.flow import discrete_levels as discrete_levels
from onestep_core.flow import discretized_log_normal as discretized_log_normal
from onestep_core.flow import doubling_points as doubling_points
from onestep_core.flow import dpm_2 as dpm_2
from onestep_core.flow import dpmpp_2m as dpmpp_2m
from onestep_core.flow import drift_negative_weight as drift_negative_weight
from onestep_core.flow import drop_labels as drop_labels
from onestep_core.flow import dyadic_times as dyadic_times
from onestep_core.flow import ect_ratio as ect_ratio
from onestep_core.flow import ect_times as ect_times
from onestep_core.flow import edm as edm
from onestep_core.flow import edm_scalings as edm_scalings
from onestep_core.flow import empirical_denoiser as empirical_denoiser
from onestep_core.flow import empirical_velocity as empirical_velocity
from onestep_core.flow import euler as euler
from onestep_core.flow import euler_scalings as euler_scalings
from onestep_core.flow import eulerian_derivative as eulerian_derivative
from onestep_core.flow import eulerian_target as eulerian_target
from onestep_core.flow import exponential_ramp as exponential_ramp
from onestep_core.flow import few_step_grid as few_step_grid
from onestep_core.flow import flow_map_from_average_velocity as flow_map_from_average_velocity
from onestep_core.flow import flow_map_from_network as flow_map_from_network
from onestep_core.flow import from_duration as from_duration
from onestep_core.flow import from_log_step as from_log_step
from onestep_core.flow import from_reversed as from_reversed
from onestep_core.flow import frozen_value as frozen_value
from onestep_core.flow import guidance_scales as guidance_scales
from onestep_core.flow import guided_velocity as guided_velocity
from onestep_core.flow import halving_stages as halving_stages
from onestep_core.flow import heun as heun
from onestep_core.flow import input_scalings as input_scalings
from onestep_core.flow import instantaneous as instantaneous
from onestep_core.flow import integrate as integrate
from onestep_core.flow import interval_around as interval_around
from onestep_core.flow import jump as jump
from onestep_core.flow import kappa_for_scale as kappa_for_scale
from onestep_core.flow import karras_grid as karras_grid
from onestep_core.flow import karras_levels as karras_levels
from onestep_core.flow import karras_times as karras_times
from onestep_core.flow import keep_apart as keep_apart
from onestep_core.flow import lagrangian_derivative as lagrangian_derivative
from onestep_core.flow import lagrangian_target as lagrangian_target
from onestep_core.flow import limit_duration as limit_duration
from onestep_core.flow import linear_ramp as linear_ramp
from onestep_core.flow import log_noise as log_noise
from onestep_core.flow import log_normal_times as log_normal_times
from onestep_core.flow import log_steps as log_steps
from onestep_core.flow import logarithmic_ramp as logarithmic_ramp
from onestep_core.flow import logit_normal_times as logit_normal_times
from onestep_core.flow import lower_noise_ratio as lower_noise_ratio
from onestep_core.flow import noise_from_data as noise_from_data
from onestep_core.flow import noise_ratio as noise_ratio
from onestep_core.flow import not_after as not_after
from onestep_core.flow import ordered as ordered
from onestep_core.flow import polyexponential_grid as polyexponential_grid
from onestep_core.flow import power_law as power_law
from onestep_core.flow import preconditioned as preconditioned
from onestep_core.flow import preconditioned_flow_map as preconditioned_flow_map
from onestep_core.flow import progressive_points as progressive_points
from onestep_core.flow import progressive_times as progressive_times
from onestep_core.flow import raw_target as raw_target
from onestep_core.flow import relative_step as relative_step
from onestep_core.flow import renoise as renoise
from onestep_core.flow import renoise_clean as renoise_clean
from onestep_core.flow import reverse as reverse
from onestep_core.flow import sample_guidance_scales as sample_guidance_scales
from onestep_core.flow import sample_log_normal as sample_log_normal
from onestep_core.flow import sample_logit_normal as sample_logit_normal
from onestep_core.flow import sample_uniform as sample_uniform
from onestep_core.flow import score_from_data as score_from_data
from onestep_core.flow import semigroup_target as semigroup_target
from onestep_core.flow import sigmoid_ramp as sigmoid_ramp
from onestep_core.flow import simple_edm_scalings as simple_edm_scalings
from onestep_core.flow import single_pass as single_pass
from onestep_core.flow import stay_where as stay_where
from onestep_core.flow import student_steps_at as student_steps_at
from onestep_core.flow import tangent_rule as tangent_rule
from onestep_core.flow import tangent_warmup as tangent_warmup
from onestep_core.flow import target_decay as target_decay
from onestep_core.flow import time_between as time_between
from onestep_core.flow import time_of_noise_ratio as time_of_noise_ratio
from onestep_core.flow import times_with_less_noise as times_with_less_noise
from onestep_core.flow import times_with_more_noise as times_with_more_noise
from onestep_core.flow import trigflow as trigflow
from onestep_core.flow import trigflow_from_denoiser as trigflow_from_denoiser
from onestep_core.flow import trigflow_tangent as trigflow_tangent
from onestep_core.flow import trigflow_time as trigflow_time
from onestep_core.flow import trigflow_velocity as trigflow_velocity
from onestep_core.flow import truncated as truncated
from onestep_core.flow import truncated_log_normal_times as truncated_log_normal_times
from onestep_core.flow import truncated_logit_normal_times as truncated_logit_normal_times
from onestep_core.flow import two_jump_target as two_jump_target
from onestep_core.flow import two_jumps as two_jumps
from onestep_core.flow import two_pass as two_pass
from onestep_core.flow import uniform_grid as uniform_grid
from onestep_core.flow import uniform_levels as uniform_levels
from onestep_core.flow import uniform_times as uniform_times
from onestep_core.flow import unwrap as unwrap
from onestep_core.flow import v_prediction_from_data as v_prediction_from_data
from onestep_core.flow import velocity_from_data as velocity_from_data
from onestep_core.flow import velocity_from_denoiser as velocity_from_denoiser
from onestep_core.flow import velocity_from_flow_map as velocity_from_flow_map
from onestep_core.flow import velocity_on_path as velocity_on_path
from onestep_core.flow import velocity_scalings as velocity_scalings
from onestep_core.flow import vp_grid as vp_grid
from onestep_core.flow import with_graph as with_graph
from onestep_core.objectives import ImprovedMeanFlowPairs as ImprovedMeanFlowPairs
from onestep_core.objectives import alpha_flow_regression as alpha_flow_regression
from onestep_core.objectives import consistency_regression as consistency_regression
from onestep_core.objectives import consistency_trajectory_regression as consistency_trajectory_regression
from onestep_core.objectives import continuous_consistency_regression as continuous_consistency_regression
from onestep_core.objectives import denoising_regression as denoising_regression
from onestep_core.objectives import distribution_matching_regression as distribution_matching_regression
from onestep_core.objectives import drifting_regression as drifting_regression
from onestep_core.objectives import drifting_regressions as drifting_regressions
from onestep_core.objectives import feature_normalized as feature_normalized
from onestep_core.objectives import flow_matching_regression as flow_matching_regression
from onestep_core.objectives import improved_meanflow_regression as improved_meanflow_regression
from onestep_core.objectives import improved_meanflow_regressions as improved_meanflow_regressions
from onestep_core.objectives import knowledge_distillation_regression as knowledge_distillation_regression
from onestep_core.objectives import meanflow_regression as meanflow_regression
from onestep_core.objectives import moment_matching_loss as moment_matching_loss
from onestep_core.objectives import progressive_regression as progressive_regression
from onestep_core.objectives import rectified_flow_regression as rectified_flow_regression
from onestep_core.objectives import score_identity as score_identity
from onestep_core.objectives import score_identity_loss as score_identity_loss
from onestep_core.objectives import shortcut_regression as shortcut_regression
from onestep_core.objectives import solution_flow_regression as solution_flow_regression
from onestep_core.objectives import split_meanflow_regression as split_meanflow_regression
from onestep_core.objectives import terminal_velocity_regression as terminal_velocity_regression
from onestep_core.regression import Regression as Regression
from onestep_core.regression import adaptive as adaptive
from onestep_core.regression import cosine as cosine
from onestep_core.regression import exponential as exponential
from onestep_core.regression import field_regression as field_regression
from onestep_core.regression import gradient_balance as gradient_balance
from onestep_core.regression import hinge_discriminator as hinge_discriminator
from onestep_core.regression import hinge_generator as hinge_generator
from onestep_core.regression import inverse_duration as inverse_duration
from onestep_core.regression import inverse_jump as inverse_jump
from onestep_core.regression import karras as karras
from onestep_core.regression import l1 as l1
from onestep_core.regression import l2 as l2
from onestep_core.regression import mse as mse
from onestep_core.regression import non_saturating_discriminator as non_saturating_discriminator
from onestep_core.regression import non_saturating_generator as non_saturating_generator
from onestep_core.regression import normalize_tangent as normalize_tangent
from onestep_core.regression import pseudo_huber as pseudo_huber
from onestep_core.regression import r1_penalty as r1_penalty
from onestep_core.regression import rescale_residual as rescale_residual
from onestep_core.regression import separate_means as separate_means
from onestep_core.regression import sigmoid_elbo as sigmoid_elbo
from onestep_core.regression import signal_weight as signal_weight
from onestep_core.regression import snr as snr
from onestep_core.regression import snr_plus_one as snr_plus_one
from onestep_core.regression import soft_min_snr as soft_min_snr
from onestep_core.regression import square_root_weight as square_root_weight
from onestep_core.regression import squared_l2 as squared_l2
from onestep_core.regression import truncated_snr as truncated_snr
from onestep_core.regression import uncertainty as uncertainty
from onestep_core.regression import uniform_weight as uniform_weight
from onestep_core.shapes import clouds as clouds
from onestep_core.shapes import expand_like as expand_like
from onestep_core.shapes import per_sample as per_sample
from onestep_core.shapes import per_sample_mean as per_sample_mean
from onestep_core.shapes import per_sample_sum as per_sample_sum
from onestep_core.shapes import uncloud as uncloud

# fmt: off
__all__ = [
    # wings and base files; `typing` would hide the standard one in `from onestep_core import *`
    "errors", "fields", "flow", "objectives", "protocols", "regression", "shapes", "validators",
    # errors
    "ArgumentError", "ConfigError", "MissingExtraError", "OneStepError", "UnsupportedDerivative",
    # flow: trajectories
    "Chord", "EulerForm", "EulerVarianceForm", "Factors", "Interval", "Linear", "NoiseScaled", "PathPoint", "Ramp",
    "Reversed", "Scalings", "SkipForm", "StepTimes", "TangentRule", "TimePair", "Trigonometric",
    "VarianceExploding", "VarianceForm", "VariancePreserving", "alpha_schedule", "ancestral", "annealed",
    "average_velocity_from_displacement", "average_velocity_from_flow_map", "average_velocity_from_network",
    "boundary_times", "central_difference", "central_steps", "chord", "clamped", "classifier_free", "consistency",
    "consistency_from_flow_map", "consistency_scalings", "data_from_both", "data_from_noise", "data_from_score",
    "data_from_v_prediction", "data_from_velocity", "data_of_ddim_step", "ddim", "ddim_scalings", "denoised_heun",
    "denoiser_from_both", "denoiser_from_network", "denoiser_from_noise", "denoiser_from_v_prediction",
    "denoiser_from_velocity", "derivative_along", "discrete_levels", "discretized_log_normal", "doubling_points",
    "dpm_2", "dpmpp_2m", "drift_negative_weight", "drop_labels", "dyadic_times", "ect_ratio", "ect_times", "edm",
    "edm_scalings", "empirical_denoiser", "empirical_velocity", "euler", "euler_scalings", "eulerian_derivative",
    "eulerian_target", "exponential_ramp", "few_step_grid", "flow_map_from_average_velocity",
    "flow_map_from_network", "from_duration", "from_log_step", "from_reversed", "frozen_value", "guidance_scales",
    "guided_velocity", "halving_stages", "heun", "input_scalings", "instantaneous", "integrate", "interval_around",
    "jump", "kappa_for_scale", "karras_grid", "karras_levels", "karras_times", "keep_apart",
    "lagrangian_derivative", "lagrangian_target", "limit_duration", "linear_ramp", "log_noise", "log_normal_times",
    "log_steps", "logarithmic_ramp", "logit_normal_times", "lower_noise_ratio", "noise_from_data", "noise_ratio",
    "not_after", "ordered", "polyexponential_grid", "power_law", "preconditioned", "preconditioned_flow_map",
    "progressive_points", "progressive_times", "raw_target", "relative_step", "renoise", "renoise_clean",
    "reverse", "sample_guidance_scales", "sample_log_normal", "sample_logit_normal", "sample_uniform",
    "score_from_data", "semigroup_target", "sigmoid_ramp", "simple_edm_scalings", "single_pass", "stay_where",
    "student_steps_at", "tangent_rule", "tangent_warmup", "target_decay", "time_between", "time_of_noise_ratio",
    "times_with_less_noise", "times_with_more_noise", "trigflow", "trigflow_from_denoiser", "trigflow_tangent",
    "trigflow_time", "trigflow_velocity", "truncated", "truncated_log_normal_times",
    "truncated_logit_normal_times", "two_jump_target", "two_jumps", "two_pass", "uniform_grid", "uniform_levels",
    "uniform_times", "unwrap", "v_prediction_from_data", "velocity_from_data", "velocity_from_denoiser",
    "velocity_from_flow_map", "velocity_on_path", "velocity_scalings", "vp_grid", "with_graph",
    # fields: clouds of samples
    "Drift", "FDivergence", "Potentials", "Radial", "denoising_error", "density_ratio", "distances", "drift_field",
    "energy_distance", "energy_field", "f_divergence_scale", "forward_kl", "gaussian", "geometric_temperature",
    "inverse_multiquadric", "jeffreys", "jensen_shannon", "kernel_gradient_field", "laplace", "matern",
    "mean_shift_field", "mmd", "mmd_field", "multi_temperature", "neyman", "notebook_drift", "ratio_means",
    "released_drift", "reverse_kl", "score_gap", "sinkhorn", "sinkhorn_divergence", "sinkhorn_field",
    "sliced_wasserstein", "softened_reverse_kl", "softmax_both", "softmax_rows", "squared_distances",
    "squared_hellinger", "stepped_temperature", "unnormalized",
    # regression: the pair, distances, weights
    "Regression", "adaptive", "cosine", "exponential", "field_regression", "gradient_balance",
    "hinge_discriminator", "hinge_generator", "inverse_duration", "inverse_jump", "karras", "l1", "l2", "mse",
    "non_saturating_discriminator", "non_saturating_generator", "normalize_tangent", "pseudo_huber", "r1_penalty",
    "rescale_residual", "separate_means", "sigmoid_elbo", "signal_weight", "snr", "snr_plus_one", "soft_min_snr",
    "square_root_weight", "squared_l2", "truncated_snr", "uncertainty", "uniform_weight",
    # objectives: the methods
    "ImprovedMeanFlowPairs", "alpha_flow_regression", "consistency_regression", "consistency_trajectory_regression",
    "continuous_consistency_regression", "denoising_regression", "distribution_matching_regression",
    "drifting_regression", "drifting_regressions", "feature_normalized", "flow_matching_regression",
    "improved_meanflow_regression", "improved_meanflow_regressions", "knowledge_distillation_regression",
    "meanflow_regression", "moment_matching_loss", "progressive_regression", "rectified_flow_regression",
    "score_identity", "score_identity_loss", "shortcut_regression", "solution_flow_regression",
    "split_meanflow_regression", "terminal_velocity_regression",
    # shapes
    "clouds", "expand_like", "per_sample", "per_sample_mean", "per_sample_sum", "uncloud",
]
# fmt: on
