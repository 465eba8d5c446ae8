"""Models, schedulers and pipelines of ``diffusers``. Needs the extra ``diffusers``."""

from onestep_adapters.backbones.diffusers.network import DiffusersNetwork as DiffusersNetwork
from onestep_adapters.backbones.diffusers.pipeline import OneStepPipeline as OneStepPipeline
from onestep_adapters.backbones.diffusers.pretrained import OneStepGenerator as OneStepGenerator
from onestep_adapters.backbones.diffusers.pretrained import PretrainedVelocity as PretrainedVelocity
from onestep_adapters.backbones.diffusers.pretrained import load_velocity as load_velocity
from onestep_adapters.backbones.diffusers.saved_path import SavedPath as SavedPath
from onestep_adapters.backbones.diffusers.schedulers import denoiser_of as denoiser_of
from onestep_adapters.backbones.diffusers.schedulers import path_of as path_of
from onestep_adapters.backbones.diffusers.schedulers import velocity_of as velocity_of
