"""Mean shift: attraction and repulsion normalised apart.

    V_i = sum_p A_ip y_p / sum_p A_ip  -  sum_n B_in y_n / sum_n B_in

Each side is a weighted mean, so the displacement is as long as a distance, however far the samples are from the data,
and neither side can make the other vanish. This is the first form in the drifting paper, not the released one. With a
Gaussian kernel it is ``bandwidth^2`` times the difference of the smoothed scores,
``grad log sum_p w k - grad log sum_n w k``: the score field of kernel density estimates. For other kernels that is
:func:`onestep_core.fields.kernel_gradient_field`.

From a batch of ``n`` points a weighted mean is off by ``-E[k^2 (y - m)] / (n E[k]^2)`` on average, since its
denominator is random as well. The same batch estimates that, so it can be added back:

    m + sum_j a_j^2 (y_j - m) = sum_j a_j (1 + a_j - sum_l a_l^2) y_j     a_j = A_ij / sum_l A_il

whose weights still sum to one and are not negative. What remains is of order ``1 / n^2``.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.fields.affinity.dispatch import affinities_of
from onestep_core.fields.affinity.streamed_affinities import Sums
from onestep_core.fields.attraction_repulsion import evaluated
from onestep_core.fields.clouds import Clouds, stack
from onestep_core.fields.couplings import softmax_rows
from onestep_core.protocols import Coupling, Drift, Kernel, Potentials
from onestep_core.typing import typed
from onestep_core.validators import require_not_negative


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
    attraction: float = 1.0,
    repulsion: float = 1.0,
    bias_correction: bool = False,
    block_size: int | None = None,
) -> Drift:
    """``V_i`` = affinity-weighted mean of the positives minus that of the negatives.

    Integer weights equal repetition of points wherever the coupling normalises no columns. Arguments as
    :func:`onestep_core.fields.drift_field`; the coupling is found for positives and for negatives separately.

    Args:
        samples: points to move, ``[.., n, channel]``.
        positives: real points, ``[.., p, channel]``.
        negatives: exactly these repel, ``[.., q, channel]``; ``None``: the samples repel one another.
        kernel: log-kernel.
        coupling: applied to each side separately.
        extra_negatives: real points that repel as well, ``[.., u, channel]``.
        positive_weights: ``[.., p]``.
        negative_weights: ``[.., q]`` or ``[.., n]``.
        extra_weights: ``[.., u]``.
        keys: features in which distances are measured.
        attraction: factor of ``(mean of the positives) - x_i``.
        repulsion: factor of ``(mean of the negatives) - x_i``. Unless both are equal, equal sets no longer give zero:
            for ablations.
        bias_correction: take the bias of both means from ``O(1 / n)`` to ``O(1 / n^2)``, for independent points; a
            weight is then not a repetition. Meant for couplings that normalise no columns.
        block_size: rows of the kernel matrix held at a time; ``None`` chooses by shape.

    Returns:
        A :class:`Drift`, scale 1.

    Raises:
        ConfigError: on an empty set, a lone sample with self pairs masked, weights without their set, or an empty
            block.
        ArgumentError: if channels or leading axes differ.

    Source: Deng et al., Generative Modeling via Drifting, eq. of ``V+`` and ``V-``, https://arxiv.org/abs/2602.04770;
    Fukunaga and Hostetler, mean shift, https://doi.org/10.1109/TIT.1975.1055330; Zhang et al., Analytical Correction
    for Subsampling Bias in Drifting Models, https://arxiv.org/abs/2604.27239.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import laplace
        >>> kernel = partial(laplace, temperature=1.0)
        >>> mean_shift_field(torch.tensor([[0.0], [2.0]]), torch.ones(3, 1), kernel=kernel).field
        tensor([[-1.],
                [ 1.]])
    """
    require_not_negative("attraction", attraction)
    require_not_negative("repulsion", repulsion)
    (drift,) = mean_shift_fields(
        Clouds(samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys),
        kernels=[kernel],
        coupling=coupling,
        attraction=attraction,
        repulsion=repulsion,
        bias_correction=bias_correction,
        block_size=block_size,
    )
    return drift


def mean_shift_fields(
    given: Clouds,
    *,
    kernels: Sequence[Kernel],
    coupling: Coupling = softmax_rows,
    attraction: float = 1.0,
    repulsion: float = 1.0,
    bias_correction: bool = False,
    block_size: int | None = None,
) -> list[Drift]:
    """:func:`mean_shift_field` for several kernels, which share the distances."""
    sets = stack(given)

    def means(part: slice, *, themselves: bool) -> list[Tensor]:
        affinities = affinities_of(
            sets.sample_keys,
            sets.target_keys[..., part, :],
            kernels,
            self_penalties=[torch.inf] * len(kernels) if themselves else None,
            block_size=block_size,
        )
        weights = None if sets.weights is None else sets.weights[..., part]
        points = sets.targets[..., part, :]
        # A mean has no use for the row's potential: with the row's own, what is far from everything keeps its digits.
        potentials = affinities.potentials(coupling)
        if coupling is not softmax_rows:
            potentials = [Potentials(affinities.rows(p.column, kernel=k), p.column) for k, p in enumerate(potentials)]
        first = affinities.apply(potentials, points, weights=weights)
        plain = [centre(sums, sets.samples) for sums in first]
        if not bias_correction:
            return plain
        second = affinities.apply(potentials, points, weights=weights, squared=True)
        return [
            mean + squares.products - squares.totals.unsqueeze(-1) * mean
            for mean, squares in zip(plain, second, strict=True)
        ]

    # A kernel may have parameters; a field has no gradient.
    with torch.no_grad():
        towards = means(sets.positive, themselves=False)
        away = means(sets.negative, themselves=sets.repel_one_another)
    fields = (attraction * t - repulsion * a for t, a in zip(towards, away, strict=True))
    if attraction != repulsion:
        fields = (field + (repulsion - attraction) * sets.samples for field in fields)
    return [evaluated(given.samples, field) for field in fields]


def centre(sums: Sums, otherwise: Tensor) -> Tensor:
    """``products / totals``; the sample itself where nothing has any weight."""
    totals = sums.totals.unsqueeze(-1)
    none = totals == 0
    return torch.where(none, otherwise, sums.products / torch.where(none, 1.0, totals))
