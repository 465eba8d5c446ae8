"""Training that can be interrupted: state, loop, average, checkpoint."""

from onestep_adapters.training.checkpoint import load_checkpoint as load_checkpoint
from onestep_adapters.training.checkpoint import save_checkpoint as save_checkpoint
from onestep_adapters.training.ema import constant_decay as constant_decay
from onestep_adapters.training.ema import update_ema as update_ema
from onestep_adapters.training.ema import warmed_decay as warmed_decay
from onestep_adapters.training.folder import CheckpointError as CheckpointError
from onestep_adapters.training.folder import Run as Run
from onestep_adapters.training.folder import latest_checkpoint as latest_checkpoint
from onestep_adapters.training.folder import read_config as read_config
from onestep_adapters.training.folder import read_run as read_run
from onestep_adapters.training.loop import LossStep as LossStep
from onestep_adapters.training.loop import Schedule as Schedule
from onestep_adapters.training.loop import StepRecord as StepRecord
from onestep_adapters.training.loop import TrainingError as TrainingError
from onestep_adapters.training.loop import cosine as cosine
from onestep_adapters.training.loop import train as train
from onestep_adapters.training.processes import side_by_side as side_by_side
from onestep_adapters.training.state import Opponent as Opponent
from onestep_adapters.training.state import TrainingState as TrainingState
from onestep_adapters.training.state import new_opponent as new_opponent
from onestep_adapters.training.state import new_state as new_state
from onestep_adapters.training.two_player import train_two_players as train_two_players
