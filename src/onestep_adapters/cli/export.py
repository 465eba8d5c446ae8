"""``onestep export RUN``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from onestep_adapters.cli.parsing import Positional, options
from onestep_adapters.cli.progress import track
from onestep_adapters.cli.terminal import say, use_threads
from onestep_adapters.exporting import export
from onestep_adapters.files import require_replaceable, require_writable
from onestep_adapters.runs import open_run
from onestep_adapters.runs.generators import generator_of
from onestep_core.errors import ConfigError

_ENDINGS = {"torch": ".pt2", "onnx": ".onnx"}


@attrs.frozen
class Export:
    """Which run, which format, which file."""

    run: Positional[Path] = attrs.field(kw_only=True, metadata={"metavar": "RUN"})
    """Folder of a trained run of a one-step method."""
    format: Literal["torch", "onnx"] = "torch"
    """torch: a program of torch.export (.pt2), which needs torch alone. onnx: needs an ONNX runtime alone."""
    out: Path | None = None
    """File to write; it ends with .pt2 or .onnx. Default: generator.pt2 or generator.onnx in the run's folder."""
    alpha: float | None = None
    """Guidance scale, a constant in the file, for a drifting run trained with --max-alpha above 1: from 1 (no guidance)
    to max-alpha. Default: the scale of the run."""
    raw: bool = False
    """Leave out the last step of the data: samples of images are then not rounded to grey levels, latents not
    decoded."""
    data: str | None = None
    """New place of the run's images, if they were moved: folder:PATH, idx:PATH or hub:NAME."""
    pipeline: Path | None = None
    """New place of the pipeline of diffusers that the run was distilled from, if it was moved."""


def main(arguments: Sequence[str]) -> int:
    """Parse, export, print."""
    chosen: Export = options(
        Export,
        arguments,
        prog="onestep export",
        description="Write the one-step generator of a run to a file that needs neither this library nor the run. "
        "Inputs: `noise` [batch, *shape], standard normal, float32; for data with classes `labels` [batch], int64. "
        "Output: `samples`. The batch size is free. The file is compared with the run before it is moved into place.",
    )
    use_threads()
    run = open_run(chosen.run, data=chosen.data, pipeline=chosen.pipeline, track=track)
    if chosen.alpha is not None:
        run = run.guided(chosen.alpha)
    out = chosen.run / f"generator{_ENDINGS[chosen.format]}" if chosen.out is None else chosen.out
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist")
    require_writable(out.parent)
    require_replaceable(out)
    generator = generator_of(run, finish=not chosen.raw)
    facts = {"method": run.name, "data": run.data.name, "step": run.state.step}
    file = export(generator, out, format=chosen.format, facts=facts)
    shape = ", ".join(map(str, generator.shape))
    labels = "" if generator.classes is None else f", labels [batch] int64 from 0 to {generator.classes - 1}"
    say(f"{file}: noise [batch, {shape}] float32{labels} -> samples; compared with the run on fresh noise")
    return 0
