"""Data sets by the names of the command line."""

from collections.abc import Callable, Mapping
from functools import partial

from onestep_adapters.data.dataset import Dataset
from onestep_adapters.data.toys import TOYS, ToyDataset
from onestep_adapters.names import choose


def _digits() -> Dataset:
    # scikit-learn is an optional dependency: it is imported only when the digits are opened.
    from onestep_adapters.data.digits import digits_dataset

    return digits_dataset()


DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "digits": _digits,
    **{name: partial(ToyDataset, name) for name in TOYS},
}
"""A function that opens each data set, by name."""

DEFAULT_DATASET = next(iter(DATASETS))
"""The data set of a command without ``--data``."""


def open_dataset(name: str) -> Dataset:
    """Open a data set by its command-line name.

    Raises:
        ConfigError: if the name is unknown; the message lists the most similar names.
        MissingExtraError: if ``digits`` is opened and scikit-learn is not installed.

    Example:
        >>> open_dataset("checkerboard").shape
        (2,)
    """
    return DATASETS[choose(name, DATASETS, "data set")]()
