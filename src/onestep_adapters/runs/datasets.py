"""The data set of a run: a name or an object, and the same one again when a run is opened."""

import os
import re

from onestep_adapters.data import DATASETS, Dataset, open_dataset
from onestep_core.errors import ConfigError


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


def data_of_run(folder: str | os.PathLike[str], name: str, data: Dataset | None) -> Dataset:
    """The data set ``name`` of the run in ``folder``, or the object that the caller gave for it.

    Raises:
        ConfigError: if the run needs an object, or the object has another name.
    """
    if data is None and name not in DATASETS:
        raise ConfigError(f"{folder} is a run on {name!r}, an object of your own: give it, open_run(folder, data=...)")
    if data is None:
        return open_dataset(name)
    if data.name != name:
        raise ConfigError(
            f"{folder} is a run on {name!r}, the data set given is {data.name!r}: give the data set of the run"
        )
    return data
