"""The digits as a problem to learn."""

import torch
from torch import Tensor

from onestep_adapters.data.digits import Labelled, load_digits, quantize
from onestep_adapters.metrics import Evaluation
from onestep_adapters.recipes.problems import DIGITS, Batch, members
from onestep_core.errors import ConfigError

_LEVEL = 1 / 8
"""Distance between two grey levels, in [-1, 1]."""


class DigitsProblem:
    """The training split of the digits, class by class.

    The images hold whole numbers of dots. Every method trains on *dequantised* ones, uniformly spread within their grey
    level, and every method's samples are rounded back to the levels: densities of whole numbers do not exist.

    Args:
        train: images ``[n, 1, 8, 8]`` in [-1, 1] and labels ``[n]``, 0 to 9.
        validation: others, for :meth:`held_out`.

    Raises:
        ConfigError: if a class is missing.

    Source of dequantisation: Theis et al., A note on the evaluation of generative models, section 3.1,
    https://arxiv.org/abs/1511.01844.
    """

    name = DIGITS
    shape: tuple[int, ...] = (1, 8, 8)
    classes: int | None = 10

    def __init__(self, train: Labelled, validation: Labelled) -> None:
        self._images, self._labels = train
        self._validation = validation.images
        self._counts = self._labels.bincount(minlength=10)
        self._by_class = self._labels.argsort(stable=True)
        missing = (self._counts == 0).nonzero().squeeze(1).tolist()
        if missing:
            raise ConfigError(f"no training image of the classes {missing}: expected all ten digits")

    def batch(self, count: int, generator: torch.Generator, *, alike: int = 1) -> Batch:
        """Images drawn with replacement, dequantised; each ``alike`` in a row have one class."""
        index = torch.randint(len(self._images), (count,), generator=generator)
        if alike > 1:
            kinds = self._labels[index[::alike]].repeat_interleave(alike)[:count]
            index = self._by_class[members(kinds, self._counts, generator)]
        return Batch(self._dequantised(self._images[index], generator), self._labels[index])

    def groups(self, each: int, generator: torch.Generator) -> Tensor:
        """``each`` different images of every class (fewer where a class has fewer is an error), dequantised."""
        smallest = int(self._counts.min())
        if each > smallest:
            raise ConfigError(f"{each} positives of every class were asked for; the smallest class has {smallest}")
        classes = self._by_class.split(self._counts.tolist())
        picks = [m[torch.randperm(len(m), generator=generator)[:each]] for m in classes]
        return self._dequantised(self._images[torch.cat(picks)], generator)

    def held_out(self, count: int, generator: torch.Generator) -> Tensor:
        """The first ``count`` images of the validation split, dequantised."""
        return self._dequantised(self._validation[:count], generator)

    def labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Classes of training images drawn with replacement."""
        return self._labels[torch.randint(len(self._labels), (count,), generator=generator)]

    def finish(self, samples: Tensor) -> Tensor:
        """Rounded to the 17 grey levels in [-1, 1]."""
        return quantize(samples)

    @staticmethod
    def _dequantised(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + _LEVEL * (torch.rand(images.shape, generator=generator) - 0.5)


def digits_problem() -> DigitsProblem:
    """The training split of scikit-learn's digits.

    Example:
        >>> digits_problem().shape
        (1, 8, 8)
    """
    splits = load_digits()
    return DigitsProblem(splits.train, splits.validation)


def digits_evaluation(split: str) -> Evaluation:
    """The training split beside ``"validation"`` (for choices) or ``"test"`` (for reports).

    Raises:
        ConfigError: for another name.

    Example:
        >>> len(digits_evaluation("validation").held_out)
        350
    """
    if split not in ("validation", "test"):
        raise ConfigError(f"no split is called {split!r}: expected 'validation' for choices or 'test' for reports")
    splits = load_digits()
    held_out = splits.validation if split == "validation" else splits.test
    return Evaluation(splits.train.images, held_out.images, splits.train.labels, name=split)
