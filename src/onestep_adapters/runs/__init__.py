"""Runs: a method on a data set, trained into a folder, resumed from it, sampled from it; their teachers are kept."""

from onestep_adapters.runs.folders import open_run as open_run
from onestep_adapters.runs.folders import options_of_run as options_of_run
from onestep_adapters.runs.folders import resume_or_start as resume_or_start
from onestep_adapters.runs.folders import start_run as start_run
from onestep_adapters.runs.run import Run as Run
