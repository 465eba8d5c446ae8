"""Runs: train a method on a data set into a folder, resume it, sample from it. Trained teachers are saved for reuse."""

from onestep_adapters.runs.folders import open_encoder as open_encoder
from onestep_adapters.runs.folders import open_run as open_run
from onestep_adapters.runs.folders import options_of_run as options_of_run
from onestep_adapters.runs.folders import resume_or_start as resume_or_start
from onestep_adapters.runs.folders import start_run as start_run
from onestep_adapters.runs.generators import generator_of as generator_of
from onestep_adapters.runs.run import Run as Run
