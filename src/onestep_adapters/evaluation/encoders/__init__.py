"""Evaluation of encoders by probes, beside pixels and random networks. Pictures need matplotlib: ``.pictures``."""

from onestep_adapters.evaluation.encoders.measuring import METRICS as METRICS
from onestep_adapters.evaluation.encoders.measuring import Probed as Probed
from onestep_adapters.evaluation.encoders.measuring import encoder_rows as encoder_rows
from onestep_adapters.evaluation.encoders.measuring import probe as probe
from onestep_adapters.evaluation.encoders.measuring import probed as probed
from onestep_adapters.evaluation.encoders.probes import LinearProbe as LinearProbe
from onestep_adapters.evaluation.encoders.probes import few_shot_accuracy as few_shot_accuracy
from onestep_adapters.evaluation.encoders.probes import layer_features as layer_features
from onestep_adapters.evaluation.encoders.probes import linear_probe as linear_probe
from onestep_adapters.evaluation.encoders.probes import moved as moved
from onestep_adapters.evaluation.encoders.probes import shifted_accuracy as shifted_accuracy
from onestep_adapters.evaluation.encoders.reports import EncoderReport as EncoderReport
from onestep_adapters.evaluation.encoders.reports import encoder_markdown as encoder_markdown
from onestep_adapters.evaluation.encoders.reports import encoder_summary as encoder_summary
from onestep_adapters.evaluation.encoders.reports import evaluate_encoders as evaluate_encoders
from onestep_adapters.evaluation.encoders.reports import write_encoder_report as write_encoder_report
