"""Training that can be interrupted and resumed: state, companions, loop, moving average, checkpoint."""

from onestep_adapters.training.checkpoint import load_checkpoint as load_checkpoint
from onestep_adapters.training.checkpoint import save_checkpoint as save_checkpoint
from onestep_adapters.training.companions import Companion as Companion
from onestep_adapters.training.companions import not_trained as not_trained
from onestep_adapters.training.companions import trained_in_turns as trained_in_turns
from onestep_adapters.training.companions import trained_jointly as trained_jointly
from onestep_adapters.training.descent import LossStep as LossStep
from onestep_adapters.training.descent import TrainingError as TrainingError
from onestep_adapters.training.ema import constant_decay as constant_decay
from onestep_adapters.training.ema import update_ema as update_ema
from onestep_adapters.training.ema import warmed_decay as warmed_decay
from onestep_adapters.training.folder import CheckpointError as CheckpointError
from onestep_adapters.training.folder import SavedRun as SavedRun
from onestep_adapters.training.folder import latest_checkpoint as latest_checkpoint
from onestep_adapters.training.folder import read_config as read_config
from onestep_adapters.training.folder import read_run as read_run
from onestep_adapters.training.loop import StepRecord as StepRecord
from onestep_adapters.training.loop import Turn as Turn
from onestep_adapters.training.loop import train as train
from onestep_adapters.training.loop import writing_into as writing_into
from onestep_adapters.training.processes import side_by_side as side_by_side
from onestep_adapters.training.schedules import Schedule as Schedule
from onestep_adapters.training.schedules import cosine_decay as cosine_decay
from onestep_adapters.training.state import TrainingState as TrainingState
from onestep_adapters.training.state import new_state as new_state
