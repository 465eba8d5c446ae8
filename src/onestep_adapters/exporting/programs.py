"""Write a generator to a file: ``torch.export`` (.pt2) or ONNX. The file is checked before it is moved into place.

    noise [batch, *shape] float32, labels [batch] int64 (with classes only) -> samples

The batch size is free. The file is opened again and compared with the module on fresh inputs of batch sizes 1, 2 and 5.
A ``.pt2`` needs torch alone: ``torch.export.load(file).module()(noise, labels)``. ONNX needs an ONNX runtime alone; it
computes what ``torch.onnx`` makes of the same exported program.
"""

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from onestep_adapters.exporting.errors import ExportError, Run, first_line
from onestep_adapters.exporting.generator import Generator
from onestep_adapters.files import require_path, write_whole
from onestep_core.errors import ConfigError, OneStepError

FORMATS = ("torch", "onnx")

_EXAMPLE = 3
"""Batch size of the example that is traced."""

_BATCHES = (1, 2, 5)
"""Batch sizes of the comparison."""

_MEAN, _LARGEST = 1e-4, 2e-2
"""Largest mean and largest single difference, as shares of the largest sample. The second one is above one grey level,
because a difference of rounding can move a value to the next level."""


def export(
    generator: Generator,
    file: str | os.PathLike[str],
    *,
    format: Literal["torch", "onnx"],
    facts: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write ``generator`` to ``file``, which is whole and checked, or as it was before.

    Args:
        generator: what is exported.
        file: ``NAME.pt2`` or ``NAME.onnx``, in a folder that exists.
        format: ``"torch"`` or ``"onnx"``.
        facts: further facts to keep in the file beside the shape of the noise and the number of classes; JSON.
        seed: of the inputs of the comparison.

    Returns:
        The file.

    Raises:
        ConfigError: for another format or another ending of the file's name.
        MissingExtraError: for ONNX, if ``onnx``, ``onnxruntime`` and ``onnxscript`` are not installed.
        ExportError: if torch cannot export the generator, or the file computes something else.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from onestep_adapters.exporting import direct_generator
        >>> generator = direct_generator(torch.nn.Linear(2, 2), shape=(2,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export(generator, Path(folder) / "generator.pt2", format="torch")
        ...     torch.export.load(file).module()(torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """
    if format not in FORMATS:
        raise ConfigError(f"format = {format!r}: expected 'torch' or 'onnx'")
    file, ending = require_path("file", file), {"torch": ".pt2", "onnx": ".onnx"}[format]
    if file.suffix != ending:
        raise ConfigError(f"{file}: a file of the format {format} ends with {ending}")
    kept = {"noise": list(generator.shape), "classes": generator.classes} | (facts or {})
    if format == "torch":
        data, run = _torch_program(_exported(generator), kept)
    else:
        # The libraries of ONNX are an extra.
        from onestep_adapters.exporting.onnx import onnx_program

        with _quiet():
            data, run = onnx_program(_exported(generator), kept)
    _compare(generator, run, seed)
    write_whole(file, data)
    return file


def _exported(generator: Generator) -> ExportedProgram:
    batch = Dim("batch")
    inputs = _inputs(generator, _EXAMPLE, torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(generator, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    except OneStepError:
        raise
    except Exception as error:
        reason = first_line(error)
        if reason.startswith("Constraints violated"):
            reason = "its code depends on the batch size (len(x) does, and a comparison of x.shape[0] with a number)"
        raise ExportError(f"torch.export cannot export this generator: {reason}") from error


def _torch_program(program: ExportedProgram, facts: dict[str, Any]) -> tuple[bytes, Run]:
    stream = io.BytesIO()
    try:
        with _quiet():
            torch.export.save(program, stream, extra_files={"onestep.json": json.dumps(facts)})
            data = stream.getvalue()
            return data, torch.export.load(io.BytesIO(data)).module()
    except Exception as error:
        raise ExportError(f"torch.export cannot save this generator: {first_line(error)}") from error


def _inputs(generator: Generator, count: int, draws: torch.Generator) -> tuple[Tensor, ...]:
    noise = torch.randn(count, *generator.shape, generator=draws)
    if generator.classes is None:
        return (noise,)
    return noise, torch.randint(generator.classes, (count,), generator=draws)


def _compare(generator: Generator, run: Run, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for count in _BATCHES:
        inputs = _inputs(generator, count, draws)
        try:
            with torch.no_grad():
                expected, found = generator(*inputs), run(*inputs)
        except Exception as error:
            raise ExportError(f"the exported program fails at a batch size of {count}: {first_line(error)}") from error
        if found.shape != expected.shape:
            raise ExportError(f"the exported program returns {tuple(found.shape)} instead of {tuple(expected.shape)}")
        difference = (found.double() - expected.double()).abs()
        scale = max(1.0, float(expected.abs().max()))
        if not (float(difference.mean()) <= _MEAN * scale and float(difference.max()) <= _LARGEST * scale):
            raise ExportError(
                f"the exported program differs from the generator by up to {float(difference.max()):.2g} at a batch "
                f"size of {count}: the file was not written"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings and notes of torch's exporters, which say nothing to do, are not shown."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
