"""Samples in a number of network evaluations that the caller chooses, for networks that were trained for one."""

from collections.abc import Callable

import torch
from torch import Tensor

from onestep_adapters.samplers import consistency_multistep, multistep
from onestep_core.flow.paths import prior_state
from onestep_core.flow.solvers import renoise_clean
from onestep_core.protocols import ConsistencyFunction, FlowMap, Path

_RHO = 7.0


def even_times(path: Path, evaluations: int) -> list[float]:
    """``evaluations + 1`` times at equal distances, from the noise end to the data end.

    Example:
        >>> from onestep_core import Linear
        >>> even_times(Linear(), 2)
        [1.0, 0.5, 0.0]
    """
    start, end = path.noise_time, path.data_time
    return [start + (end - start) * k / evaluations for k in range(evaluations)] + [end]


def noise_levels(path: Path, evaluations: int) -> list[float]:
    """The same number of noise levels, at equal distances in their seventh root, as in EDM.

    Source: Karras et al., Elucidating the Design Space, equation 5, https://arxiv.org/abs/2206.00364.

    Example:
        >>> from onestep_core import VarianceExploding
        >>> [round(level, 3) for level in noise_levels(VarianceExploding(0.002, 80.0), 2)]
        [80.0, 2.515, 0.002]
    """
    start, end = path.noise_time ** (1 / _RHO), path.data_time ** (1 / _RHO)
    inner = [(start + (end - start) * k / evaluations) ** _RHO for k in range(1, evaluations)]
    return [path.noise_time, *inner, path.data_time]


def jumped(flow_map: FlowMap, noise: Tensor, *, path: Path, evaluations: int) -> Tensor:
    """Samples by jumps of equal length, one after the other; deterministic."""
    return multistep(flow_map, prior_state(path, noise), even_times(path, evaluations), path=path)


def noised_again(function: ConsistencyFunction, noise: Tensor, *, path: Path, times: list[float]) -> Tensor:
    """Samples by a consistency function: a jump to the data, then fresh noise up to the next of ``times``."""
    return consistency_multistep(function, prior_state(path, noise), times, path=path, noise=noise_of(noise))


def noised_from(function: ConsistencyFunction, z: Tensor, noise: Tensor, *, path: Path, times: list[float]) -> Tensor:
    """The same from a state ``z`` at the first of ``times``; what a jump gives counts as clean data."""
    draws = noise_of(noise)
    return consistency_multistep(function, z, times, path=path, noise=draws, renoise=renoise_clean)


def noise_of(noise: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Fresh noise for a sampler; each sample's generator is seeded by its first noise, so that a sample does not depend
    on what else is in the batch.

    Example:
        >>> noise = torch.randn(3, 2)
        >>> whole, alone = noise_of(noise)(0, noise), noise_of(noise[1:2])(0, noise[1:2])
        >>> torch.equal(whole[1:2], alone)
        True
    """
    bits = noise.detach().float().flatten(1).contiguous().cpu().view(torch.int32).long()
    # A plain sum would not distinguish noises with the same numbers in another order.
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    generators = [torch.Generator().manual_seed(int(seed) % 2**63) for seed in (bits * places).sum(1)]

    def draw(step: int, like: Tensor) -> Tensor:
        shape, dtype = like.shape[1:], like.dtype
        each = [torch.randn(shape, generator=own, dtype=dtype, device=own.device) for own in generators]
        return torch.stack(each).to(like.device) if each else torch.empty_like(like)

    return draw
