"""Pairs of data and noise, and the states and velocities computed from them.

Without a teacher, training uses pairs. The velocity of a pair equals the velocity of the flow on average, and the state
of the same pair at a smaller noise level lies on the trajectory up to a random error. *Stable targets* have a smaller
variance: they replace the data of the pair by the expected data given the state, estimated from further data samples
(https://arxiv.org/abs/2302.00670).
"""

import math
from typing import Literal, NamedTuple, TypeAlias, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from onestep_adapters.data.dataset import Batch, Dataset, members
from onestep_adapters.names import choose
from onestep_adapters.tracking import Track, untracked
from onestep_core import ddim, empirical_denoiser, empirical_velocity, expand_like, velocity_from_data
from onestep_core.errors import ConfigError
from onestep_core.flow.paths import point_on_path
from onestep_core.protocols import Path
from onestep_core.validators import require_count

Coupling: TypeAlias = Literal["independent", "optimal", "precomputed"]
"""How noise is assigned to data.

``independent``: at random. ``optimal``: the assignment with the smallest total squared distance within a batch and a
class (minibatch optimal transport, https://arxiv.org/abs/2302.00482). ``precomputed``: many pairs are made once, before
training, with the smallest total squared distance within hundreds of samples of a class; a batch has fewer
(https://arxiv.org/abs/2506.05526). Smaller distances make the trajectories of the flow straighter."""

_IMAGES, _POINTS = (2**16, 512), (2**15, 1024)
"""Number of precomputed pairs, and number of samples of a class that are coupled together. The total time grows with
the square of the second number. For points the second number limits how close the pairs are, for images the first."""

_VALUES = 2**27
"""Most numbers in the data of precomputed pairs: 512 MiB of float32, and as much for the noise. Of images of 32 x 32
pixels in colour, 43,690 pairs; of larger ones fewer."""

_NEAR = 1e-3
"""A time closer than this to the data end is treated as the data end."""


class Draw(NamedTuple):
    """Data and noise ``[count, *shape]``, classes ``[count]`` or ``None``, and ``further`` data for stable targets."""

    data: Tensor
    noise: Tensor
    labels: Tensor | None
    further: Batch | None = None


class Pairs(NamedTuple):
    """Precomputed pairs: data and noise ``[count, *shape]``, sorted by class, and classes ``[count]`` or ``None``."""

    data: Tensor
    noise: Tensor
    labels: Tensor | None


class Draws:
    """Draws pairs from one data set: ``draws(count, generator) -> Draw``. The constructor makes precomputed pairs.

    Args:
        data: the data set.
        coupling: see :data:`Coupling`.
        further: number of additional data samples per batch, for stable targets. Needs ``independent`` pairs.
        alike: number of consecutive pairs that have the same class, for losses on groups.
        seed: seed of precomputed pairs. A resumed run with the same seed makes the same pairs.
        track: shows the progress while pairs are precomputed.

    Raises:
        ConfigError: for an unknown coupling or a number out of range; if ``further`` is given with another coupling
            than ``independent``.
        MissingExtraError: if the coupling needs scipy and scipy is not installed.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> Draws(open_dataset("8gaussians"))(3, torch.Generator().manual_seed(0)).noise.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        data: Dataset,
        coupling: Coupling = "independent",
        *,
        further: int = 0,
        alike: int = 1,
        seed: int = 0,
        track: Track = untracked,
    ) -> None:
        if not isinstance(data, Dataset):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a {type(data).__name__} as data: expected a data set, such as open_dataset(name)")
        choose(str(coupling), get_args(Coupling), "coupling")
        require_count("further", further)
        require_count("alike", alike, least=1)
        if further and coupling != "independent":
            raise ConfigError(
                f"{further} further data samples with coupling = {coupling!r}: the expected data given a state can be "
                "estimated for independent pairs only; use either further samples or the coupling"
            )
        self._data, self._coupling, self._further, self._alike = data, coupling, further, alike
        self._pairs = _precomputed(data, seed, track) if coupling == "precomputed" else None

    def __call__(self, count: int, generator: torch.Generator) -> Draw:
        """Draw ``count`` pairs on the generator's device."""
        if self._pairs is not None:
            self._pairs = Pairs(*(None if part is None else part.to(generator.device) for part in self._pairs))  # type: ignore[arg-type]
            return _drawn(self._pairs, count, generator, self._alike)
        data, labels = self._data.batch(count, generator, alike=self._alike)
        noise = torch.randn(data.shape, generator=generator, device=generator.device)
        if self._coupling == "optimal":
            noise = _optimal(data, noise, labels)
        return Draw(data, noise, labels, self._data.batch(self._further, generator) if self._further else None)


def _optimal(data: Tensor, noise: Tensor, labels: Tensor | None, **keywords: int) -> Tensor:
    # scipy is an optional dependency: other couplings work without it.
    from onestep_adapters.data.transport import optimal_noise

    return optimal_noise(data, noise, labels, **keywords)


_MADE: "WeakKeyDictionary[Dataset, dict[int, Pairs]]" = WeakKeyDictionary()
"""Precomputed pairs of each data set, by seed. A student and its teacher use the same pairs."""


def pairs_to_make(data: Dataset, coupling: Coupling, *, seed: int) -> str:
    """What :class:`Draws` makes before the first update, for an announcement; empty for nothing.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> pairs_to_make(open_dataset("8gaussians"), "optimal", seed=0)
        ''
    """
    if coupling != "precomputed" or seed in _kept(data):
        return ""
    count, together = _sizes(data)
    return f"{count:,} coupled pairs of data and noise: optimal transport among {together:,} at a time"


def _kept(data: Dataset) -> dict[int, Pairs]:
    try:
        return _MADE.setdefault(data, {})
    except TypeError:
        # The object cannot be a weak key (a dataclass, for example), so every run makes its own pairs.
        return {}


def _precomputed(data: Dataset, seed: int, track: Track) -> Pairs:
    kept = _kept(data)
    if seed not in kept:
        kept[seed] = _made(data, seed, track)
    return kept[seed]


def _sizes(dataset: Dataset) -> tuple[int, int]:
    """Number of precomputed pairs, and the largest number of them that are coupled together."""
    count, together = _POINTS if dataset.classes is None else _IMAGES
    return max(1, min(count, _VALUES // math.prod(dataset.shape))), together


def _made(dataset: Dataset, seed: int, track: Track) -> Pairs:
    """Make pairs, sorted by class, on the CPU. The same seed gives the same pairs."""
    generator = torch.Generator().manual_seed(seed)
    count, together = _sizes(dataset)
    data, labels = dataset.batch(count, generator)
    noise = torch.randn(data.shape, generator=generator, device=generator.device)
    if labels is not None:
        order = labels.argsort(stable=True)
        data, labels = data[order], labels[order]
    groups = [len(data)] if labels is None else [n for n in labels.bincount().tolist() if n]
    parts = [
        part for kind in torch.arange(len(data), device=data.device).split(groups) for part in kind.split(together)
    ]
    tracked = track(parts, "coupled pairs", len(parts))
    return Pairs(data, torch.cat([_optimal(data[p], noise[p], None, size=together) for p in tracked]), labels)


def _drawn(pairs: Pairs, count: int, generator: torch.Generator, alike: int) -> Draw:
    data, noise, labels = pairs
    index = torch.randint(len(data), (count,), generator=generator, device=generator.device)
    if labels is None:
        return Draw(data[index], noise[index], None)
    if alike > 1:
        kinds = labels[index[::alike]].repeat_interleave(alike)[:count]
        index = members(kinds, labels.bincount(), generator)
    return Draw(data[index], noise[index], labels[index])


def velocity_at(drawn: Draw, t: Tensor, *, path: Path) -> tuple[Tensor, Tensor]:
    """States at ``t`` and their velocities.

    Without ``further`` data the velocity is that of the pair. With ``further`` data it is the expected velocity given
    the state, estimated from all drawn data of the same class.

    Example:
        >>> from onestep_core import Linear
        >>> pair = Draw(torch.zeros(1, 2), torch.ones(1, 2), None)
        >>> velocity_at(pair, torch.tensor([0.5]), path=Linear())
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    z, v = point_on_path(path, drawn.data, drawn.noise, t)
    if drawn.further is None:
        return z, v
    return z, velocity_from_data(z, _expected(drawn, drawn.further, z, t, path), t, path=path)


def average_velocity_at(drawn: Draw, t: Tensor, *, path: Path) -> tuple[Tensor, Tensor]:
    """As :func:`velocity_at`, but very near the data end the velocity is always that of the pair.

    Near the data end both velocities are equal, and the formula of the expected velocity divides by a number near zero.
    """
    z, v = path(drawn.data, drawn.noise, t)
    if drawn.further is None:
        return z, v
    references, allowed = _references(drawn, drawn.further)
    mean = empirical_velocity(z, references, t, path=path, allowed=allowed)
    return z, torch.where(expand_like((t - path.data_time).abs() < _NEAR, z), v, mean)


def states_at(drawn: Draw, t: Tensor, m: Tensor, *, path: Path) -> tuple[Tensor, Tensor]:
    """States at ``t``, and states on the same trajectories at ``m``.

    Without ``further`` data the state at ``m`` is that of the pair. With ``further`` data it is one DDIM step from
    ``t`` with the expected data given the state.

    Example:
        >>> from onestep_core import Linear
        >>> pair = Draw(torch.zeros(1, 2), torch.ones(1, 2), None)
        >>> states_at(pair, torch.tensor([0.5]), torch.tensor([0.25]), path=Linear())[1]
        tensor([[0.2500, 0.2500]])
    """
    z, z_m = (point_on_path(path, drawn.data, drawn.noise, time).z for time in (t, m))
    if drawn.further is None:
        return z, z_m
    data = _expected(drawn, drawn.further, z, t, path)
    return z, ddim(lambda z, t: data, z, t, m, path=path)


def _expected(drawn: Draw, further: Batch, z: Tensor, t: Tensor, path: Path) -> Tensor:
    references, allowed = _references(drawn, further)
    return empirical_denoiser(z, references, t, path=path, allowed=allowed)


def _references(drawn: Draw, further: Batch) -> tuple[Tensor, Tensor | None]:
    """The data of the pairs and the further data, and a mask ``[pair, data]`` of equal classes."""
    references = torch.cat([drawn.data, further.data])
    if drawn.labels is None or further.labels is None:
        return references, None
    return references, drawn.labels[:, None] == torch.cat([drawn.labels, further.labels])
