"""``onestep distill PIPELINE --method METHOD``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep_adapters.cli.images import add_image_options, image_options
from onestep_adapters.cli.parsing import options
from onestep_adapters.cli.progress import track
from onestep_adapters.cli.terminal import filled, listed, say, use_threads
from onestep_adapters.cli.train import run_to_end
from onestep_adapters.data import open_dataset
from onestep_adapters.devices import choose_device
from onestep_adapters.methods import Method
from onestep_adapters.runs import options_of_run, resume_or_start
from onestep_adapters.runs.datasets import data_of_run
from onestep_adapters.runs.places import with_pipeline
from onestep_adapters.training import latest_checkpoint, read_config
from onestep_core.errors import ConfigError

_OPTIONS = (
    ("PIPELINE", "folder of a diffusers pipeline, written by save_pretrained: a model (unet or transformer) without "
     "condition or with classes, and its scheduler"),
    ("--method M", "how: see below"),
    ("--data D", "the images that it was trained on, as for onestep train (folder:PATH, fashion-mnist, ...); without "
     "it, images that the pipeline makes"),
    ("--samples N", "number of these images (default: 5000)"),
    ("--folder F", "folder of the run (default: runs/distilled-METHOD); the one-step pipeline is F/pipeline"),
    ("--resume", "continue the run in the folder from its last checkpoint; PIPELINE may have moved"),
    ("--device D", "auto (default: a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps"),
)  # fmt: skip


def help_text() -> str:
    """What ``onestep distill --help`` prints, as wide as the terminal."""
    # diffusers is an optional dependency.
    from onestep_adapters.runs.pipelines import DISTILLING

    opening = (
        "Distil a pretrained diffusers pipeline into one that samples in one step. The student starts from the "
        "pipeline's weights. Guide: docs/guides/distill.md."
    )
    usage = "onestep distill PIPELINE --method M [--data D] [--folder F] [--resume] [--device D] [options]"
    more = "`onestep distill PIPELINE --method M --help` lists the method's own options."
    return f"""{filled(opening)}

{filled(usage, "    ", first="  ")}

{listed(_OPTIONS)}

{
        filled(
            "M is one of " + ", ".join(DISTILLING) + ". Here meanflow means meanflow-distillation, and scm means "
            "continuous-consistency."
        )
    }

{filled(more)}"""


def _place(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="onestep distill", add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("method", "data", "folder"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="auto")
    add_image_options(parser)
    try:
        place, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}: see onestep distill --help") from error
    for name in ("method", "data", "folder", "device"):
        if getattr(place, name) == "":
            raise ConfigError(f"--{name} is empty: give a value, or leave the option out")
    if place.method is None:
        raise ConfigError(
            "no --method: expected onestep distill PIPELINE --method M; onestep distill --help lists them"
        )
    if place.samples < 1:
        raise ConfigError(f"--samples {place.samples}: expected at least one")
    return place, rest


def _options(pipeline: str, place: argparse.Namespace, rest: Sequence[str], name: str, default: Method) -> Method:
    """The method with its options.

    Raises:
        ConfigError: for a method of several evaluations, or one that needs a network without a time.
    """
    method = options(
        type(default),
        rest,
        prog=f"onestep distill {pipeline} --method {place.method}",
        description=f"Distil the pipeline by {name}. More: onestep distill --help.",
        default=default,
    )
    if not method.distils_models:
        raise ConfigError(
            f"{name} with these options has a network without a time, which the model of a pipeline cannot be: leave "
            "out the discriminator (--adversarial-weight 0)"
        )
    if method.evaluations != 1:
        raise ConfigError(
            f"{method.evaluations} evaluations for one sample (--sampling-steps): onestep distill makes pipelines of "
            "one step; docs/guides/distill.md shows more"
        )
    return method


def main(arguments: Sequence[str]) -> int:
    """Parse, make images where there are no data, train, write the pipeline."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say(help_text())
        return 0
    if arguments[0] == "":
        raise ConfigError("PIPELINE is empty: expected onestep distill PIPELINE --method M [options]")
    if arguments[0].startswith("-"):
        raise ConfigError(f"{arguments[0]} comes first: expected onestep distill PIPELINE --method M [options]")
    # diffusers is an optional dependency.
    from onestep_adapters.runs.pipelines import distillation, images_of, samples_like, save_pipeline

    pipeline = str(Path(arguments[0]).expanduser().resolve())
    place, rest = _place(arguments[1:])
    use_threads()
    device = choose_device(place.device)
    folder = Path(place.folder or f"runs/distilled-{place.method}")
    chosen = image_options(place)
    saved = options_of_run(folder) if place.resume and folder.is_dir() and latest_checkpoint(folder) else None
    # The options are read first: a mistake, or --help, is told before images are made.
    told = samples_like(pipeline)
    name, default = distillation(pipeline, place.method, told)
    if saved is not None and saved[0] != name:
        raise ConfigError(
            f"{folder} holds a distillation by {saved[0]}, and --method {place.method} is {name}: give the method of "
            "the run, or choose another --folder"
        )
    if saved is not None:
        default = with_pipeline(saved[2], pipeline)
    method = _options(arguments[0], place, rest, name, default)
    if told.classes is None and place.data is not None:
        chosen = {"classes": False, **chosen}
        say(f"note: the model in {arguments[0]} has no classes, so those of {place.data} are left out")
    if saved is not None:
        data = data_of_run(folder, saved[1], place.data, read_config(folder).get("source"), track=track, **chosen)
    elif place.data is None:
        made = images_of(pipeline, folder / "images", count=place.samples, device=device, track=track)
        data = open_dataset(f"folder:{made}", track=track, **chosen)
    else:
        data = open_dataset(place.data, track=track, **chosen)
    run = resume_or_start(folder, name, data, method, resume=place.resume, device=device)
    status = run_to_end(run, folder)
    if status is not None:
        return status
    file = save_pipeline(run, pipeline, folder / "pipeline")
    say(
        f"{file}: a pipeline of one step, OneStepPipeline.from_pretrained({str(file)!r}). Next: onestep sample "
        f"{folder}, onestep evaluate {folder}"
    )
    return 0
