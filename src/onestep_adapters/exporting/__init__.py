"""One-step generators as files that run without this library: ``torch.export`` (.pt2) and ONNX."""

from onestep_adapters.exporting.errors import ExportError as ExportError
from onestep_adapters.exporting.generator import Generator as Generator
from onestep_adapters.exporting.generator import consistency_generator as consistency_generator
from onestep_adapters.exporting.generator import direct_generator as direct_generator
from onestep_adapters.exporting.generator import flow_map_generator as flow_map_generator
from onestep_adapters.exporting.generator import jump_generator as jump_generator
from onestep_adapters.exporting.programs import export as export
