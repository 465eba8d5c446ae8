"""The score of a sampler on a distribution with unlimited draws, such as the 2-D toys.

``E2`` is the unbiased squared energy distance between fresh draws of the sampler and of the distribution. Its scale
depends on the distribution, so it is put between two references measured against the *same* draws of the distribution:
a second set of draws, and a Gaussian with the distribution's mean and covariance::

    score = (E2 - floor) / (moments - floor)           0: the distributions are equal     1: two moments are right

The references share the draws, so most of their noise cancels. The score of the distribution itself is 0 in
expectation, and is below 0 as often as above.

A distribution is any object with ``sample(count, *, generator) -> [count, d]``. One with ``modes`` (an object with
``means``, ``[modes, d]``, well separated) is also checked mode by mode: every sample belongs to the nearest mean.
Masses and standard deviations are compared with those of draws of the distribution, counted in the same way.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from onestep_adapters.metrics.estimates import device_of, estimate, new_generator
from onestep_adapters.tracking import Track, counting, untracked
from onestep_core.errors import ConfigError
from onestep_core.validators import require_call

Sampler = Callable[[int, torch.Generator], Tensor]


class Distribution(Protocol):
    """What a score needs of a distribution; an attribute ``modes`` is optional."""

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, d]`` independent draws."""
        ...


class ToyReference(NamedTuple):
    """Draws of a distribution with the energy distances that give a score its scale; shared by all methods.

    ``real`` is ``[draws, count, d]``, ``within`` the mean distance inside each draw, ``floor`` and ``moments`` one
    ``E2`` for each draw; ``means`` and the
    masses and standard deviations of the modes are ``None`` where the modes are not known.
    """

    real: Tensor
    within: Tensor
    floor: Tensor
    moments: Tensor
    means: Tensor | None
    masses: Tensor | None
    spreads: Tensor | None


class ToyScore(NamedTuple):
    """How far a sampler is from a distribution, in units of the distance of the Gaussian with its two moments.

    ``se`` is the standard error of ``score`` over draws (``None`` for a single draw), ``mass_error`` the total
    variation of the mode masses, ``spreads`` each mode's standard deviation over that of the distribution (0 where no
    sample came).
    """

    score: float
    se: float | None
    energy: float
    floor: float
    moments: float
    mass_error: float | None = None
    spreads: tuple[float, ...] | None = None


@torch.no_grad()
def toy_reference(
    distribution: Distribution,
    *,
    generator: torch.Generator | None = None,
    count: int = 10_000,
    draws: int = 5,
    track: Track = untracked,
) -> ToyReference:
    """Draws of ``distribution`` with their floor and moments: computed once, used for every method.

    Args:
        distribution: see the module.
        generator: of all draws; every tensor is made on its device.
        count: samples in a draw.
        draws: independent draws, at least one; one alone gives no standard error.
        track: shows the progress.

    Raises:
        ConfigError: without a draw, or for fewer than two samples in one.
    """
    require_call("the distribution's sample", getattr(distribution, "sample", None), ("count",), ("generator",))
    if count < 2 or draws < 1:
        raise ConfigError(
            f"{draws} draws of {count} samples: expected at least one draw of at least two samples, and two draws for "
            "a standard error"
        )
    real = torch.stack([distribution.sample(count, generator=generator) for _ in range(draws)]).double()
    again = torch.stack([distribution.sample(count, generator=generator) for _ in range(draws)]).double()
    mean, root = _gaussian(again.flatten(0, 1))
    noise = torch.randn(real.shape, generator=generator, dtype=torch.float64, device=device_of(generator)).to(real)
    normal = mean + noise @ root.mT
    modes = getattr(distribution, "modes", None)
    means = masses = spreads = None
    if modes is not None:
        means = torch.as_tensor(modes.means).to(real)
        masses, spreads = _modes(real.flatten(0, 1), means)
    with counting(track, "reference rows", 5 * draws) as each:
        within = _within(real, each)
        floor, moments = (_energies(drawn, real, within, each) for drawn in (again, normal))
    return ToyReference(real, within, floor, moments, means, masses, spreads)


@torch.no_grad()
def toy_score(
    sampler: Sampler,
    distribution: Distribution,
    *,
    generator: torch.Generator | None = None,
    count: int = 10_000,
    draws: int = 5,
    reference: ToyReference | None = None,
    track: Track = untracked,
) -> ToyScore:
    """``(E2 - floor) / (moments - floor)`` of a sampler on a distribution, with its standard error over draws.

    Args:
        sampler: ``count, generator -> [count, d]``.
        distribution: see the module.
        generator: of the reference's draws and of the sampler's; every tensor is made on its device.
        count: samples in a draw, where ``reference`` is not given.
        draws: independent draws, where ``reference`` is not given.
        reference: of :func:`toy_reference`: saves most of the time from the second method on, and
            compares all methods with the same draws.
        track: shows the progress of the distances.

    Raises:
        ConfigError: if the sampler returns another shape or values that are not finite (it says how many).

    Source: the energy distance is Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.

    Example:
        >>> class Square:
        ...     def sample(self, count, *, generator=None):
        ...         return torch.rand(count, 2, generator=generator)
        >>> g = torch.Generator().manual_seed(0)
        >>> right = toy_score(lambda n, g: torch.rand(n, 2, generator=g), Square(), generator=g, count=500)
        >>> wrong = toy_score(lambda n, g: torch.zeros(n, 2), Square(), generator=g, count=500)
        >>> right.score < 1 < wrong.score
        True
    """
    require_call("sampler", sampler, ("count", "generator"))
    if reference is None:
        reference = toy_reference(distribution, generator=generator, count=count, draws=draws)
    real = reference.real
    own = new_generator(generator)
    drawn = torch.stack([_checked(sampler(real.shape[1], own), real[0]) for _ in range(len(real))])
    with counting(track, "distances", 2 * len(real)) as each:
        energies = _energies(drawn, real, reference.within, each)
    floor, moments = reference.floor.mean(), reference.moments.mean()
    score = estimate(((energies - reference.floor) / (moments - floor)).tolist())
    mass_error = spreads = None
    if reference.means is not None and reference.masses is not None and reference.spreads is not None:
        masses, deviations = _modes(drawn.flatten(0, 1), reference.means)
        mass_error = float(0.5 * (masses - reference.masses).abs().sum())
        spreads = tuple((deviations / reference.spreads).tolist())
    return ToyScore(score.mean, score.se, float(energies.mean()), float(floor), float(moments), mass_error, spreads)


@torch.no_grad()
def mode_scores(samples: Tensor, reference: ToyReference) -> tuple[float, ...]:
    """Mode by mode: ``E2`` between the samples nearest to a mean and the distribution's draws nearest to it.

    The unit is that of :func:`toy_score`, ``moments - floor`` of the whole distribution: a Gaussian mode has no unit of
    its own, because its moments reference is the mode itself. A mode shrunk to a point scores about 1 on the 2-D toys.

    Args:
        samples: ``[count, d]``.
        reference: of a distribution whose modes are known.

    Returns:
        One score for each mode; infinity where fewer than two samples came.

    Raises:
        ConfigError: if the modes are not known.

    Example:
        >>> class Modes(NamedTuple):
        ...     means: Tensor
        >>> class TwoModes:
        ...     modes = Modes(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
        ...     def sample(self, count, *, generator=None):
        ...         which = torch.randint(2, (count,), generator=generator)
        ...         return self.modes.means[which] + 0.3 * torch.randn(count, 2, generator=generator)
        >>> g = torch.Generator().manual_seed(0)
        >>> reference = toy_reference(TwoModes(), generator=g, count=2000, draws=2)
        >>> max(mode_scores(TwoModes().sample(500, generator=g), reference)) < 0.1
        True
    """
    if reference.means is None:
        raise ConfigError("the modes of this distribution are not known: expected one with an attribute modes")
    real, means = reference.real[0], reference.means
    samples = samples.to(real)
    mine, theirs = (torch.cdist(x, means).argmin(1) for x in (samples, real))
    unit = (reference.moments - reference.floor).mean()
    scores: list[float] = []
    for mode in range(len(means)):
        a, b = samples[mine == mode], real[theirs == mode]
        if len(a) < 2:
            scores.append(float("inf"))
            continue
        scores.append(float(_energies(a[None], b[None], _within(b[None])) / unit))
    return tuple(scores)


def average_score(scores: Sequence[ToyScore]) -> ToyScore:
    """One score for several training seeds: means, the worst modes, and the error of measuring.

    ``se`` is the error of the mean that comes from finite draws, ``sqrt(sum se^2) / n``. The spread between
    training seeds is a property of the method and does not add to it. It is ``None`` if that of a score is.

    Raises:
        ConfigError: without scores.

    Example:
        >>> average_score([ToyScore(0.1, 0.03, 1.0, 0.0, 10.0), ToyScore(0.3, 0.04, 3.0, 0.0, 10.0)])[:2]
        (0.2, 0.025)
    """
    if not scores:
        raise ConfigError("an average needs at least one score: pass one for each training seed")
    n = len(scores)
    score, energy, floor, moments = (sum(s[i] for s in scores) / n for i in (0, 2, 3, 4))
    known = [s.se for s in scores if s.se is not None]
    errors = [s.mass_error for s in scores if s.mass_error is not None]
    ratios = [s.spreads for s in scores if s.spreads is not None]
    return ToyScore(
        score,
        sum(se**2 for se in known) ** 0.5 / n if len(known) == n else None,
        energy,
        floor,
        moments,
        max(errors) if errors else None,
        tuple(max(mode, key=lambda r: abs(r - 1)) for mode in zip(*ratios, strict=True)) if ratios else None,
    )


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and a root ``R`` with ``R R^T`` the covariance."""
    values, vectors = torch.linalg.eigh(torch.cov(x.mT))
    return x.mean(0), vectors * values.clamp(min=0).sqrt()


def _energies(x: Tensor, y: Tensor, within: Tensor, track: Track = untracked) -> Tensor:
    """``fields.divergences.energy_distance`` of each draw, without gradient and with ``E|y - y'|`` known."""
    pairs = track(zip(x, y, strict=True), "distances", len(x))
    across = torch.stack([_mean_distance(a, b) for a, b in pairs])
    return 2 * across - _within(x, track) - within


def _within(x: Tensor, track: Track = untracked) -> Tensor:
    n = x.shape[1]
    return torch.stack([_mean_distance(a, a) for a in track(x, "distances", len(x))]) * n / (n - 1)


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    """Exact, in blocks: ``torch.cdist`` takes a fifth of the time of a distance that has all derivatives."""
    rows = (torch.cdist(block, y, compute_mode="donot_use_mm_for_euclid_dist").mean(1) for block in x.split(1024))
    return torch.cat(list(rows)).mean()


def _modes(x: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Share and standard deviation (root mean square over coordinates) of the samples nearest to each mean."""
    nearest = torch.cdist(x, means).argmin(1)
    belongs = torch.nn.functional.one_hot(nearest, len(means)).to(x)
    counts = belongs.sum(0)
    centres = (belongs.mT @ x) / counts.clamp(min=1)[:, None]
    squared = (x - centres[nearest]).square().mean(1)
    return counts / len(x), ((belongs.mT @ squared) / (counts - 1).clamp(min=1)).sqrt()


def _checked(drawn: Tensor, like: Tensor) -> Tensor:
    if not isinstance(drawn, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"the sampler returned a {type(drawn).__name__}: expected samples {list(like.shape)}")
    if drawn.shape != like.shape:
        raise ConfigError(f"expected samples of shape {list(like.shape)}, got {list(drawn.shape)} from the sampler")
    broken = int((~drawn.isfinite()).any(1).sum())
    if broken:
        raise ConfigError(f"{broken} of {len(drawn)} samples hold NaN or infinity: the sampler diverged")
    return drawn.detach().to(like)
