"""The score of a sampler on a law that can be drawn from without end.

``E2`` is the unbiased squared energy distance between fresh draws of the sampler and of the law. Its scale
depends on the law, so it is read between two references measured against the *same* draws of the law: a
second set of the law, and a Gaussian with the law's mean and covariance::

    score = (E2 - floor) / (moments - floor)           0: the law itself     1: two moments right

Since the references share the draws, their noise mostly cancels. The score of the law itself is 0 in
expectation and as often below as above.

A law is any object with ``sample(count, *, generator) -> [count, d]``; one with ``means`` (``[modes, d]``,
well separated) is also checked mode by mode, every sample belonging to the nearest mean. Masses and standard
deviations are compared with those of draws of the law, counted the same way.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from onestep_adapters.metrics.measurement import estimate
from onestep_core.errors import ConfigError

TRAINED = 0.03
"""What a yardstick's own score may be at most."""

MASS_TOLERANCE = 0.05
"""Total variation of the mode masses at most."""

SPREAD_TOLERANCE = 0.2
"""How far from 1 the ratio of a mode's standard deviation may be."""

Sampler = Callable[[int, torch.Generator], Tensor]


class Law(Protocol):
    """What a toy has to offer; ``means`` is optional."""

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``[count, d]`` independent draws."""
        ...


class ToyReference(NamedTuple):
    """Draws of a law with the energy distances that give a score its scale; shared by all methods.

    ``real`` is ``[draws, count, d]``, ``within`` the mean distance inside each draw, ``floor`` and ``moments`` one
    ``E2`` for each draw; ``means`` and the
    masses and standard deviations of the modes are ``None`` where the law names no means.
    """

    real: Tensor
    within: Tensor
    floor: Tensor
    moments: Tensor
    means: Tensor | None
    masses: Tensor | None
    spreads: Tensor | None


class ToyScore(NamedTuple):
    """How far a sampler is from a law, in units of the Gaussian with the law's two moments.

    ``se`` is the standard error of ``score`` over draws, ``mass_error`` the total variation of the mode
    masses, ``spreads`` each mode's standard deviation over the law's (0 where no sample came).
    """

    score: float
    se: float
    energy: float
    floor: float
    moments: float
    mass_error: float | None = None
    spreads: tuple[float, ...] | None = None


class ToyVerdict(NamedTuple):
    """``text`` is "pass", "miss" or "yardstick not trained"; ``reasons`` say in numbers why."""

    passed: bool
    text: str
    limit: float
    reasons: tuple[str, ...]


@torch.no_grad()
def toy_reference(
    law: Law, *, generator: torch.Generator | None = None, count: int = 10_000, draws: int = 5
) -> ToyReference:
    """Draws of ``law`` with their floor and moments: computed once, used for every method.

    Args:
        law: see the module.
        generator: of all draws.
        count: samples in a draw.
        draws: independent draws, at least two, for the standard error.

    Raises:
        ConfigError: for fewer than two draws or two samples in one.
    """
    if min(count, draws) < 2:
        raise ConfigError(f"a standard error needs two draws of two samples at least; got {draws} of {count}")
    real = torch.stack([law.sample(count, generator=generator) for _ in range(draws)]).double()
    again = torch.stack([law.sample(count, generator=generator) for _ in range(draws)]).double()
    mean, root = _gaussian(again.flatten(0, 1))
    noise = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real)
    normal = mean + noise @ root.mT
    means = getattr(law, "means", None)
    masses = spreads = None
    if means is not None:
        means = torch.as_tensor(means).to(real)
        masses, spreads = _modes(real.flatten(0, 1), means)
    within = _within(real)
    floor, moments = _energies(again, real, within), _energies(normal, real, within)
    return ToyReference(real, within, floor, moments, means, masses, spreads)


@torch.no_grad()
def toy_score(
    sampler: Sampler,
    law: Law,
    *,
    generator: torch.Generator | None = None,
    count: int = 10_000,
    draws: int = 5,
    reference: ToyReference | None = None,
) -> ToyScore:
    """``(E2 - floor) / (moments - floor)`` of a sampler on a law, with its standard error over draws.

    Args:
        sampler: ``count, generator -> [count, d]``.
        law: see the module.
        generator: of the reference's draws and of the sampler's.
        count: samples in a draw, where ``reference`` is not given.
        draws: independent draws, where ``reference`` is not given.
        reference: of :func:`toy_reference`: saves most of the time from the second method on, and
            compares all methods with the same draws.

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
    if reference is None:
        reference = toy_reference(law, generator=generator, count=count, draws=draws)
    real = reference.real
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator().manual_seed(seed)
    drawn = torch.stack([_checked(sampler(real.shape[1], own), real[0]) for _ in range(len(real))])
    energies = _energies(drawn, real, reference.within)
    floor, moments = reference.floor.mean(), reference.moments.mean()
    score = estimate(((energies - reference.floor) / (moments - floor)).tolist())
    mass_error = spreads = None
    if reference.means is not None and reference.masses is not None and reference.spreads is not None:
        masses, deviations = _modes(drawn.flatten(0, 1), reference.means)
        mass_error = float(0.5 * (masses - reference.masses).abs().sum())
        spreads = tuple((deviations / reference.spreads).tolist())
    return ToyScore(
        score.mean, score.se or 0.0, float(energies.mean()), float(floor), float(moments), mass_error, spreads
    )


@torch.no_grad()
def mode_scores(samples: Tensor, reference: ToyReference) -> tuple[float, ...]:
    """Mode by mode: ``E2`` of the samples nearest to a mean and the law's draws nearest to it, in the law's own unit.

    A mode that is a Gaussian has no unit of its own, since its moments row is itself; the unit is that of
    :func:`toy_score`, ``moments - floor`` of the whole law. A mode shrunk to a point scores about 1 in these laws.

    Args:
        samples: ``[count, d]``.
        reference: of a law that names its means.

    Returns:
        One score a mode; infinity where fewer than two samples came.

    Raises:
        ConfigError: if the law names no means.

    Example:
        >>> from onestep_adapters.data import UnequalMixture
        >>> law, g = UnequalMixture(), torch.Generator().manual_seed(0)
        >>> scores = mode_scores(law.sample(500, generator=g), toy_reference(law, generator=g, count=2000, draws=2))
        >>> max(scores) < 0.1
        True
    """
    if reference.means is None:
        raise ConfigError("this law names no means: expected a mixture with known modes")
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


def average(scores: Sequence[ToyScore]) -> ToyScore:
    """One score for several training seeds: means, the worst modes, and the error of measuring.

    ``se`` is the error that the finite draws leave in the mean, ``sqrt(sum se^2) / n``. The spread between
    training seeds is a property of the method and buys it no tolerance.

    Raises:
        ConfigError: without scores.

    Example:
        >>> average([ToyScore(0.1, 0.03, 1.0, 0.0, 10.0), ToyScore(0.3, 0.04, 3.0, 0.0, 10.0)])[:2]
        (0.2, 0.025)
    """
    if not scores:
        raise ConfigError("an average needs at least one score: pass one for each training seed")
    n = len(scores)
    score, energy, floor, moments = (sum(s[i] for s in scores) / n for i in (0, 2, 3, 4))
    errors = [s.mass_error for s in scores if s.mass_error is not None]
    ratios = [s.spreads for s in scores if s.spreads is not None]
    return ToyScore(
        score,
        sum(s.se**2 for s in scores) ** 0.5 / n,
        energy,
        floor,
        moments,
        max(errors) if errors else None,
        tuple(max(mode, key=lambda r: abs(r - 1)) for mode in zip(*ratios, strict=True)) if ratios else None,
    )


def passes(method: ToyScore | Sequence[ToyScore], yardstick: ToyScore | Sequence[ToyScore]) -> ToyVerdict:
    """Whether a method matches its yardstick: ``score <= max(2 yardstick, 0.03) + 2 se``, and every mode is there.

    Args:
        method: one score, or one for each training seed.
        yardstick: the same, of a many-step sampler with the same network. Where its own score exceeds 0.03
            the text is "yardstick not trained", whatever the method does.

    Example:
        >>> good, bad = ToyScore(0.01, 0.001, 0, 0, 1), ToyScore(0.5, 0.001, 0, 0, 1)
        >>> passes(good, good).text, passes(bad, good).text, passes(good, bad).text
        ('pass', 'miss', 'yardstick not trained')
    """
    mine = method if isinstance(method, ToyScore) else average(method)
    peer = yardstick if isinstance(yardstick, ToyScore) else average(yardstick)
    limit = max(2 * peer.score, TRAINED) + 2 * mine.se
    checks = [
        (
            mine.score <= limit,
            f"score {mine.score:.4f}, at most {limit:.4f} = max(2 x {peer.score:.4f}, {TRAINED}) + 2 x {mine.se:.4f}",
        )
    ]
    if mine.mass_error is not None:
        checks.append(
            (mine.mass_error <= MASS_TOLERANCE, f"mode masses off by {mine.mass_error:.3f}, at most {MASS_TOLERANCE}")
        )
    if mine.spreads is not None:
        worst = max(mine.spreads, key=lambda r: abs(r - 1))
        checks.append(
            (
                abs(worst - 1) <= SPREAD_TOLERANCE,
                f"worst mode has {worst:.2f} times the standard deviation, within {SPREAD_TOLERANCE} of 1",
            )
        )
    reasons = tuple(f"{'pass' if ok else 'miss'}: {reason}" for ok, reason in checks)
    if not peer.score <= TRAINED:
        untrained = f"the yardstick's own score is {peer.score:.4f}, more than {TRAINED}: train it longer"
        return ToyVerdict(False, "yardstick not trained", limit, (untrained, *reasons))
    passed = all(ok for ok, _ in checks)
    return ToyVerdict(passed, "pass" if passed else "miss", limit, reasons)


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and a root ``R`` with ``R R^T`` the covariance."""
    values, vectors = torch.linalg.eigh(torch.cov(x.mT))
    return x.mean(0), vectors * values.clamp(min=0).sqrt()


def _energies(x: Tensor, y: Tensor, within: Tensor) -> Tensor:
    """``fields.divergences.energy_distance`` of each draw, without gradient and with ``E|y - y'|`` known."""
    across = torch.stack([_mean_distance(a, b) for a, b in zip(x, y, strict=True)])
    return 2 * across - _within(x) - within


def _within(x: Tensor) -> Tensor:
    n = x.shape[1]
    return torch.stack([_mean_distance(a, a) for a in x]) * n / (n - 1)


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
    if drawn.shape != like.shape:
        raise ConfigError(f"expected samples of shape {list(like.shape)}, got {list(drawn.shape)} from the sampler")
    broken = int((~drawn.isfinite()).any(1).sum())
    if broken:
        raise ConfigError(f"{broken} of {len(drawn)} samples hold NaN or infinity: the sampler diverged")
    return drawn.detach().to(like)
