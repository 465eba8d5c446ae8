"""ONNX by torch's exporter of exported programs, checked with onnxruntime."""

import json
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from onestep_adapters.exporting.errors import ExportError, Run, first_line
from onestep_core.errors import MissingExtraError

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx imports it when it exports
except ImportError as error:
    raise MissingExtraError("ONNX needs onnx, onnxruntime and onnxscript: pip install 'onestep[export]'") from error

_LARGEST = 2**31 - 2**20
"""Bytes of the largest file of one piece."""


def onnx_program(program: ExportedProgram, facts: dict[str, Any]) -> tuple[bytes, Run]:
    """The bytes of a file, and a function that runs them.

    Args:
        program: with the inputs ``noise`` and, for classes, ``labels``.
        facts: kept as JSON in the metadata of the model, under ``onestep``.

    Raises:
        ExportError: if torch cannot translate the program, it is larger than 2 GB, or onnxruntime refuses it.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _LARGEST:
        raise ExportError(f"the weights have {size / 2**30:.1f} GB, an ONNX file holds 2: export the format torch")
    names = ["noise", "labels"][: len(program.graph_signature.user_inputs)]
    try:
        made: Any = torch.onnx.export(
            program, (), input_names=names, output_names=["samples"], dynamo=True, external_data=False, verbose=False
        )
        model = made.model_proto
        _name_batch(model)
        model.metadata_props.add(key="onestep", value=json.dumps(facts))
        onnx.checker.check_model(model)
        data = model.SerializeToString()
    except Exception as error:
        raise ExportError(f"torch.onnx cannot translate this generator: {first_line(error)}") from error
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot read the exported generator: {first_line(error)}") from error

    def run(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return data, run


def _name_batch(model: Any) -> None:
    """Call the free axis of inputs and outputs ``batch``."""
    for value in (*model.graph.input, *model.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        if not axis.HasField("dim_value"):
            axis.dim_param = "batch"
