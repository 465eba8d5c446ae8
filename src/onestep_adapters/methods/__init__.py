"""Methods: each connects an objective with its times and weights, a network and a sampler.

A method is an immutable object of options with the members of :class:`Method`, in the same order in every file. Its
presets for each kind of data are at the end of its file; :data:`METHODS` collects them by command-line name,
:data:`ENCODERS` those that train an encoder.
"""

from onestep_adapters.methods.average_velocity.alpha_flow import AlphaFlow as AlphaFlow
from onestep_adapters.methods.average_velocity.improved_meanflow import ImprovedMeanFlow as ImprovedMeanFlow
from onestep_adapters.methods.average_velocity.meanflow import MeanFlow as MeanFlow
from onestep_adapters.methods.average_velocity.rectified_meanflow import RectifiedMeanFlow as RectifiedMeanFlow
from onestep_adapters.methods.average_velocity.shortcut import Shortcut as Shortcut
from onestep_adapters.methods.average_velocity.solution_flow import SolutionFlow as SolutionFlow
from onestep_adapters.methods.average_velocity.split_meanflow import SplitMeanFlow as SplitMeanFlow
from onestep_adapters.methods.average_velocity.terminal_velocity import TerminalVelocity as TerminalVelocity
from onestep_adapters.methods.consistency.consistency_training import ConsistencyTraining as ConsistencyTraining
from onestep_adapters.methods.consistency.consistency_trajectory import ConsistencyTrajectory as ConsistencyTrajectory
from onestep_adapters.methods.consistency.continuous_consistency import ContinuousConsistency as ContinuousConsistency
from onestep_adapters.methods.consistency.easy_consistency import EasyConsistency as EasyConsistency
from onestep_adapters.methods.consistency.truncated_consistency import TruncatedConsistency as TruncatedConsistency
from onestep_adapters.methods.distillation.consistency_distillation import (
    ConsistencyDistillation as ConsistencyDistillation,
)
from onestep_adapters.methods.distillation.progressive import Progressive as Progressive
from onestep_adapters.methods.distillation.rectified_flow import Reflow as Reflow
from onestep_adapters.methods.drifting.drifting import Drifting as Drifting
from onestep_adapters.methods.flow_matching import FlowMatching as FlowMatching
from onestep_adapters.methods.matching.dmd import DMD as DMD
from onestep_adapters.methods.matching.dmd2 import DMD2 as DMD2
from onestep_adapters.methods.matching.moment_matching import MomentMatching as MomentMatching
from onestep_adapters.methods.matching.sid import SiD as SiD
from onestep_adapters.methods.method import Context as Context
from onestep_adapters.methods.method import Method as Method
from onestep_adapters.methods.options import Network as Network
from onestep_adapters.methods.options import Training as Training
from onestep_adapters.methods.presets import Preset as Preset
from onestep_adapters.methods.pretraining.architecture import Architecture as Architecture
from onestep_adapters.methods.pretraining.base import Pretraining as Pretraining
from onestep_adapters.methods.pretraining.fine_tuning import FineTuning as FineTuning
from onestep_adapters.methods.pretraining.mae import MAE as MAE
from onestep_adapters.methods.pretraining.moco import MoCo as MoCo
from onestep_adapters.methods.pretraining.simclr import SimCLR as SimCLR
from onestep_adapters.methods.registry import ENCODERS as ENCODERS
from onestep_adapters.methods.registry import METHODS as METHODS
from onestep_adapters.methods.registry import find_preset as find_preset
from onestep_adapters.methods.registry import use_known_files
from onestep_adapters.methods.registry import use_methods as use_methods
from onestep_adapters.methods.teacher import Teacher as Teacher
from onestep_adapters.methods.teacher import exact_teacher as exact_teacher
from onestep_adapters.methods.teacher import network_teacher as network_teacher

use_known_files()
