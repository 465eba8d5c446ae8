"""The data set of a run: a name or an object, and the same one again when a run is opened."""

import os
import re
from collections.abc import Mapping
from inspect import signature
from typing import Any

from onestep_adapters.data import DATASETS, Dataset, open_dataset
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError, MissingExtraError, OneStepError


def dataset_of(data: str | Dataset) -> Dataset:
    """The data set of a name, or the object itself.

    Raises:
        ConfigError: for what is no data set, or a name that cannot be part of a file name.
    """
    if isinstance(data, str):
        return open_dataset(data)
    if not isinstance(data, Dataset):
        raise ConfigError(
            f"a {type(data).__name__} as data: expected the name of a data set, or an object with the members of "
            "onestep_adapters.data.Dataset, such as ArrayDataset(name, Batch(data, labels))"
        )
    if not re.fullmatch(r"\w[\w .+-]*", data.name):
        raise ConfigError(
            f"a data set is called {data.name!r}: expected letters, digits, spaces and . _ + - (a "
            "folder of its teachers has that name)"
        )
    return data


def data_of_run(
    folder: str | os.PathLike[str],
    name: str,
    data: Dataset | str | None,
    source: Mapping[str, Any] | None = None,
    *,
    track: Track = untracked,
    **changes: Any,
) -> Dataset:
    """The data set ``name`` of the run in ``folder``.

    Args:
        folder: of the run, for messages.
        name: name of its data set.
        data: an object that the caller gave, or the new place of images: ``"folder:PATH"``; ``None`` for neither.
        source: how the data set is opened again, from the configuration of the run.
        track: shows the progress of reading images.
        changes: options of :func:`~onestep_adapters.data.open_dataset` that replace those of the source.

    Raises:
        ConfigError: if the run needs an object; if the object has another name; if the images cannot be read, or are
            others.
    """
    if data is not None and not isinstance(data, str):
        if data.name != name:
            raise ConfigError(
                f"{folder} is a run on {name!r}, the data set given is {data.name!r}: give the data set of the run"
            )
        return data
    if source is None:
        if name not in DATASETS:
            raise ConfigError(
                f"{folder} is a run on {name!r}, an object of your own: give it, open_run(folder, data=...)"
            )
        return data_of_run(folder, name, open_dataset(data or name, track=track, **changes))
    return _reopened(folder, name, {**source, **changes, **({} if data is None else {"name": data})}, track)


def _reopened(folder: str | os.PathLike[str], name: str, source: Mapping[str, Any], track: Track) -> Dataset:
    """The images of a run, from the place that its configuration or the caller says."""
    place = source.get("name")
    how = "give their new place, --data folder:PATH or open_run(folder, data='folder:PATH')"
    if unknown := sorted(source.keys() - signature(open_dataset).parameters.keys()):
        raise ConfigError(f"{folder} has data with options that this version of onestep does not know: {unknown}")
    try:
        data = open_dataset(**source, track=track)
    except MissingExtraError:
        raise
    except OneStepError as error:
        raise ConfigError(
            f"{folder} is a run on the images {name!r}, which cannot be opened: {error}. If they were moved, {how}"
        ) from error
    if data.name != name and _content(data.name) == _content(name):
        # The same images in a folder of another name: the run keeps the name that it knows.
        data.name = name  # type: ignore[misc]
    if data.name != name:
        raise ConfigError(
            f"{folder} is a run on the images {name!r}, and {place} with the options of the run is {data.name!r} now: "
            f"files were added, removed or changed. Put the images of the run back, or {how}"
        )
    return data


def _content(name: str) -> str:
    """The part of a name that says shape, contents and options: all after the name of the place."""
    found = re.search(r"-(\d+x\d+x\d+-[0-9a-f]{8}.*)$", name)
    return found[1] if found else name
