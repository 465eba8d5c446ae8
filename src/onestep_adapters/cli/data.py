"""``onestep data PLACE``."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from onestep_adapters.cli.parsing import Positional, options
from onestep_adapters.cli.progress import track
from onestep_adapters.cli.terminal import say, use_threads
from onestep_adapters.data import Dataset, ImageOptions, open_dataset
from onestep_adapters.data.images.opening import is_place, place_of
from onestep_core.errors import MissingExtraError

_SHOWN = 21


@attrs.frozen
class Data(ImageOptions):
    """Which data, and how images are read."""

    data: Positional[str] = attrs.field(kw_only=True, metadata={"metavar": "PLACE"})
    """What --data of onestep train takes, or the path of a folder or file."""
    autoencoder: str = ""
    """Folder of a diffusers AutoencoderKL: the data are then the latents of the images."""
    picture: Path | None = None
    """File of the contact sheet (PNG). Default: data-NAME.png in the current folder."""


def main(arguments: Sequence[str]) -> int:
    """Parse, open, print."""
    chosen: Data = options(
        Data,
        arguments,
        prog="onestep data",
        description="Show data: number, sizes, formats, classes, splits, files that cannot be read, and a picture. "
        "Images are read once and kept in a cache; training then starts at once. `onestep train --help` lists what the "
        "data can be: a name, folder:PATH, idx:PATH or hub:NAME.",
    )
    use_threads()
    name = chosen.data if is_place(chosen.data) else place_of(chosen.data) or chosen.data
    given = {field.name: getattr(chosen, field.name) for field in attrs.fields(ImageOptions)}
    # Files that cannot be read are listed below.
    skipped = {"skip_corrupt": True} if is_place(name) else {}
    data = open_dataset(name, **{**given, **skipped}, autoencoder=chosen.autoencoder, track=track)
    facts = getattr(data, "facts", {})
    for heading, text in _lines(data, facts):
        say(f"{heading:<10}{text}")
    corrupt = facts.get("skipped", ())
    if corrupt:
        say(f"{len(corrupt)} files cannot be read; onestep train leaves them out with --skip-corrupt:")
        for file, reason in corrupt[:_SHOWN]:
            say(f"  {file}: {reason}")
        if len(corrupt) > _SHOWN:
            say(f"  and {len(corrupt) - _SHOWN} more")
    try:
        # Pictures are an extra.
        from onestep_adapters.evaluation.pictures import draw_data
    except MissingExtraError as error:
        say(f"no picture: {error}")
        return 0
    say(f"picture   {draw_data(data, chosen.picture or Path(f'data-{data.name}.png'))}")
    return 0


def _lines(data: Dataset, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "data", facts.get("origin", data.title)
    yield "name", data.name
    yield "samples", f"{' x '.join(map(str, data.shape))} ({data.kind})"
    for heading, name in (("sizes", "sizes"), ("formats", "kinds")):
        if name in facts:
            yield heading, _counted(facts[name])
    splits = {split: _size(data, split) for split in ("train", "validation", "test")}
    if any(splits.values()):
        yield "images", f"{sum(splits.values()):,}: {_counted(splits)}"
    names = getattr(data, "class_names", None) or [str(k) for k in range(data.classes or 0)]
    counts = getattr(data, "class_counts", None)
    if names and counts is not None:
        totals = [sum(column) for column in zip(*(counts(split) for split in splits), strict=True)]
        yield "classes", f"{len(names)}: {_counted(dict(zip(names, totals, strict=True)))}"
    else:
        yield "classes", str(len(names)) if names else "none"
    if "cache" in facts:
        yield "cache", facts["cache"]


def _size(data: Dataset, split: Any) -> int:
    counts = getattr(data, "counts", None)
    if counts is not None:
        return counts[split]
    found = data.split(split)
    return 0 if found is None else len(found.data)


def _counted(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:_SHOWN]]
    return ", ".join(shown) + (f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")
