"""Models, schedulers and pipelines of ``diffusers``. Needs the extra ``diffusers``."""

from onestep_adapters.backbones.diffusers.network import DiffusersNetwork as DiffusersNetwork
