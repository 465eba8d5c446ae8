"""Times: draws of one time, and pairs of times."""

from onestep_core.flow.times.draws import Device as Device
from onestep_core.flow.times.draws import boundary_times as boundary_times
from onestep_core.flow.times.draws import discretized_log_normal as discretized_log_normal
from onestep_core.flow.times.draws import log_normal_times as log_normal_times
from onestep_core.flow.times.draws import logit_normal_times as logit_normal_times
from onestep_core.flow.times.draws import sample_log_normal as sample_log_normal
from onestep_core.flow.times.draws import sample_logit_normal as sample_logit_normal
from onestep_core.flow.times.draws import sample_uniform as sample_uniform
from onestep_core.flow.times.draws import truncated_log_normal_times as truncated_log_normal_times
from onestep_core.flow.times.draws import truncated_logit_normal_times as truncated_logit_normal_times
from onestep_core.flow.times.draws import uniform_times as uniform_times
from onestep_core.flow.times.pairs import TimePair as TimePair
from onestep_core.flow.times.pairs import dyadic_times as dyadic_times
from onestep_core.flow.times.pairs import keep_apart as keep_apart
from onestep_core.flow.times.pairs import limit_duration as limit_duration
from onestep_core.flow.times.pairs import log_steps as log_steps
from onestep_core.flow.times.pairs import lower_noise_ratio as lower_noise_ratio
from onestep_core.flow.times.pairs import not_after as not_after
from onestep_core.flow.times.pairs import ordered as ordered
from onestep_core.flow.times.pairs import stay_where as stay_where
from onestep_core.flow.times.pairs import time_between as time_between
