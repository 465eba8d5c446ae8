"""What the trajectory recipes draw: data, noise and classes, and what a pair says about the flow.

Without a teacher the flow is known through pairs: the velocity of a pair is that of the flow on average, and the state
of the same pair a little nearer to the data is one on the trajectory up to a random error. Both become less random
where the expected data given the state, among more data than the pair's own, takes the place of the pair's data: a
stable target, https://arxiv.org/abs/2302.00670.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from onestep_adapters.recipes.problems import Batch, Problem, members
from onestep_core import ddim, empirical_denoiser, velocity_from_data
from onestep_core.errors import ConfigError
from onestep_core.flow.paths import point_on_path
from onestep_core.protocols import Path

Coupling = Literal["independent", "optimal", "precomputed"]
"""Pairs of data and noise: as they come; at the smallest total squared distance within a batch and a class (minibatch
optimal transport, https://arxiv.org/abs/2302.00482); or drawn from many pairs that were made once, at the smallest
distance within hundreds of a class, as far as a batch cannot reach (https://arxiv.org/abs/2506.05526). The nearer, the
straighter the flow."""

_IMAGES, _PLANE = (2**16, 512), (2**15, 1024)
"""Precomputed pairs, and how many of a class are coupled together: the time grows with the square of that. In the plane
it decides how near the pairs are, among images how many."""


class Draw(NamedTuple):
    """Data and noise ``[count, *shape]``, classes ``[count]`` or ``None``, and further data, or ``None``."""

    data: Tensor
    noise: Tensor
    labels: Tensor | None
    further: Batch | None = None


def draw(
    problem: Problem,
    count: int,
    generator: torch.Generator,
    *,
    references: int = 0,
    coupling: Coupling = "independent",
    alike: int = 1,
) -> Draw:
    """Training data, each with noise of its own, and ``references`` further data.

    Args:
        problem: where the data come from.
        count: pairs.
        generator: of all draws.
        references: further data, for stable targets; they presume independent pairs.
        coupling: whose noise is whose, see :data:`Coupling`.
        alike: how many pairs in a row have one class, for losses of groups.

    Raises:
        ConfigError: for ``references`` beside another coupling.
        MissingExtraError: for coupled pairs without scipy.

    Example:
        >>> from onestep_adapters.recipes.problems import open_problem
        >>> draw(open_problem("8gaussians"), 3, torch.Generator().manual_seed(0)).noise.shape
        torch.Size([3, 2])
    """
    if references and coupling != "independent":
        raise ConfigError(
            f"references = {references} beside coupling = {coupling!r}: the expected data given a state are known for "
            "independent pairs only; choose one"
        )
    if coupling == "precomputed":
        return _drawn(_precomputed(problem, generator.initial_seed()), count, generator, alike)
    data, labels = problem.batch(count, generator, alike=alike)
    noise = torch.randn(data.shape, generator=generator)
    if coupling == "optimal":
        noise = _optimal(data, noise, labels)
    return Draw(data, noise, labels, problem.batch(references, generator) if references else None)


def _optimal(data: Tensor, noise: Tensor, labels: Tensor | None, **keywords: int) -> Tensor:
    # scipy is an extra: other couplings work without it.
    from onestep_adapters.data.transport import optimal_noise

    return optimal_noise(data, noise, labels, **keywords)


@lru_cache(maxsize=2)
def _precomputed(problem: Problem, seed: int) -> Draw:
    """Pairs by class, the same for a seed, so that a run that goes on has them again."""
    generator = torch.Generator().manual_seed(seed)
    count, together = _PLANE if problem.classes is None else _IMAGES
    data, labels = problem.batch(count, generator)
    noise = torch.randn(data.shape, generator=generator)
    if labels is not None:
        order = labels.argsort(stable=True)
        data, labels = data[order], labels[order]
    return Draw(data, _optimal(data, noise, labels, size=together), labels)


def _drawn(pairs: Draw, count: int, generator: torch.Generator, alike: int) -> Draw:
    index = torch.randint(len(pairs.data), (count,), generator=generator)
    if pairs.labels is None:
        return Draw(pairs.data[index], pairs.noise[index], None)
    if alike > 1:
        kinds = pairs.labels[index[::alike]].repeat_interleave(alike)[:count]
        index = members(kinds, pairs.labels.bincount(), generator)
    return Draw(pairs.data[index], pairs.noise[index], pairs.labels[index])


def velocity_at(drawn: Draw, t: Tensor, *, path: Path) -> tuple[Tensor, Tensor]:
    """States at ``t`` and their velocities: of the pairs, or the expected ones among all data of the class.

    Example:
        >>> from onestep_adapters.recipes.straight import PATH
        >>> pair = Draw(torch.zeros(1, 2), torch.ones(1, 2), None)
        >>> velocity_at(pair, torch.tensor([0.5]), path=PATH)
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    z, v = point_on_path(path, drawn.data, drawn.noise, t)
    if drawn.further is None:
        return z, v
    return z, velocity_from_data(z, _expected(drawn, drawn.further, z, t, path), t, path=path)


def states_at(drawn: Draw, t: Tensor, m: Tensor, *, path: Path) -> tuple[Tensor, Tensor]:
    """States at ``t`` and, of the same trajectories, at ``m``: of the pairs, or by one step of DDIM from the first.

    Example:
        >>> from onestep_adapters.recipes.straight import PATH
        >>> pair = Draw(torch.zeros(1, 2), torch.ones(1, 2), None)
        >>> states_at(pair, torch.tensor([0.5]), torch.tensor([0.25]), path=PATH)[1]
        tensor([[0.2500, 0.2500]])
    """
    z, z_m = (point_on_path(path, drawn.data, drawn.noise, time).z for time in (t, m))
    if drawn.further is None:
        return z, z_m
    data = _expected(drawn, drawn.further, z, t, path)
    return z, ddim(lambda z, t: data, z, t, m, path=path)


def _expected(drawn: Draw, further: Batch, z: Tensor, t: Tensor, path: Path) -> Tensor:
    references = torch.cat([drawn.data, further.data])
    allowed = None
    if drawn.labels is not None and further.labels is not None:
        allowed = drawn.labels[:, None] == torch.cat([drawn.labels, further.labels])
    return empirical_denoiser(z, references, t, path=path, allowed=allowed)
