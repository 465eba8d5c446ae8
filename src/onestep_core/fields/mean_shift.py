"""Mean shift: attraction and repulsion normalised apart.

    V_i = sum_p A_ip y_p / sum_p A_ip  -  sum_n B_in y_n / sum_n B_in

Each side is a weighted mean, so its length is that of a distance however far the samples are from the data, and
neither side can starve the other: the first form of the drifting paper, not the one it released. With a Gaussian
kernel it is ``bandwidth^2`` times the difference of the smoothed scores.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.fields.attraction_repulsion import evaluated
from onestep_core.fields.clouds import gather
from onestep_core.fields.couplings import softmax_rows
from onestep_core.fields.streaming import Affinities, Sums
from onestep_core.protocols import Coupling, Drift, Kernel
from onestep_core.typing import typed


@typed
def mean_shift_field(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    kernel: Kernel,
    coupling: Coupling = softmax_rows,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
    block_size: int | None = None,
) -> Drift:
    """``V_i`` = affinity-weighted mean of the positives minus that of the negatives.

    Integer weights equal repetition of points wherever the coupling normalises no columns. Arguments as
    :func:`onestep_core.fields.drift_field`; the coupling is found for positives and for negatives separately.

    Returns:
        A :class:`Drift`, scale 1.

    Raises:
        ConfigError: on an empty set, a lone sample with self pairs masked, weights without their set, or an empty
            block.
        jaxtyping.TypeCheckError: if channels or leading axes differ.

    Source: Deng et al., Generative Modeling via Drifting, eq. of ``V+`` and ``V-``, https://arxiv.org/abs/2602.04770;
    Fukunaga and Hostetler, mean shift, https://doi.org/10.1109/TIT.1975.1055330.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import laplace
        >>> kernel = partial(laplace, temperature=1.0)
        >>> mean_shift_field(torch.tensor([[0.0], [2.0]]), torch.ones(3, 1), kernel=kernel).field
        tensor([[-1.],
                [ 1.]])
    """
    sets = gather(
        samples,
        positives,
        negatives,
        extra_negatives,
        positive_weights=positive_weights,
        negative_weights=negative_weights,
        extra_weights=extra_weights,
        keys=keys,
    )

    def mean(part: slice, self_penalty: float | None) -> Tensor:
        keys = sets.target_keys[..., part, :]
        affinities = Affinities(sets.sample_keys, keys, kernel, self_penalty=self_penalty, block_size=block_size)
        weights = None if sets.weights is None else sets.weights[..., part]
        everything = [(slice(None), sets.targets[..., part, :])]
        (sums,) = affinities.apply(affinities.potentials(coupling), everything, weights=weights, floor=0.0)
        return _mean(sums, sets.samples)

    attraction = mean(sets.positive, None)
    repulsion = mean(sets.negative, torch.inf if sets.repel_one_another else None)
    return evaluated(samples, attraction - repulsion)


def _mean(sums: Sums, otherwise: Tensor) -> Tensor:
    """``products / totals``; the sample itself where nothing has any weight."""
    totals = sums.totals.unsqueeze(-1)
    some = totals > 0
    return torch.where(some, sums.products / torch.where(some, totals, 1.0), otherwise)
