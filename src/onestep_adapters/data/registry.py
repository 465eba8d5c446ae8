"""Data sets by the names of the command line."""

from collections.abc import Callable, Mapping
from functools import partial

from onestep_adapters.data.dataset import Dataset
from onestep_adapters.data.toys import TOYS, ToyDataset
from onestep_adapters.names import choose


def _digits() -> Dataset:
    # scikit-learn is an extra: it is imported only by those who ask for the digits.
    from onestep_adapters.data.digits import digits_dataset

    return digits_dataset()


DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "digits": _digits,
    **{name: partial(ToyDataset, name) for name in TOYS},
}
"""How to open each data set."""

DEFAULT_DATASET = next(iter(DATASETS))
"""The data set of a command that names none."""


def open_dataset(name: str) -> Dataset:
    """The data set of a command-line name.

    Raises:
        ConfigError: for an unknown name, with the nearest ones.
        MissingExtraError: for ``digits`` without scikit-learn.

    Example:
        >>> open_dataset("checkerboard").shape
        (2,)
    """
    return DATASETS[choose(name, DATASETS, "data set")]()
