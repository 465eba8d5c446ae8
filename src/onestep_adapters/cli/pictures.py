"""Pictures of encoders after training and evaluation, where matplotlib is installed."""

from pathlib import Path

from onestep_adapters.cli.terminal import say
from onestep_adapters.runs import Run
from onestep_core.errors import MissingExtraError


def show_encoder(run: Run, folder: Path) -> list[Path]:
    """Draw nearest neighbours (for MAE reconstructions too) into the folder, and say where they are."""
    try:
        # Pictures are an extra.
        from onestep_adapters.evaluation.encoders.pictures import draw_encoder
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return []
    files = draw_encoder(run, folder)
    say(f"pictures: {', '.join(map(str, files))}")
    return files
