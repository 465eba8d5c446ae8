"""Attraction to data, repulsion among samples: the drift field of drifting models.

With affinities ``A`` between a sample ``x_i`` and all its targets, positives ``p`` and negatives ``n``,

    V_i = sum_{p, n} A_ip A_in (y_p - y_n) = (sum_n A_in) sum_p A_ip y_p - (sum_p A_ip) sum_n A_in y_n.

Positives and negatives are normalised *together* by the coupling. Exchanging them changes the sign, so equal sets
give zero. A zero field does *not* imply equal distributions in general; that depends on kernel and coupling.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.affinity.dispatch import AnyAffinities, affinities_of
from onestep_core.fields.affinity.near import squared_lengths
from onestep_core.fields.clouds import Clouds, Stacked, stack
from onestep_core.precision import full
from onestep_core.protocols import Coupling, Drift, Kernel
from onestep_core.typing import typed
from onestep_core.validators import require_not_negative

_RMS_FLOOR = 1e-8


def displacements(
    affinities: AnyAffinities,
    coupling: Coupling,
    sets: Stacked,
    *,
    floor: float,
    attraction: float = 1.0,
    repulsion: float = 1.0,
) -> list[Tensor]:
    """The field of each kernel, ``[.., n, channel]``."""
    found = affinities.contrasts(
        affinities.potentials(coupling),
        sets.targets,
        negatives=sets.negative.stop,
        weights=sets.weights,
        floor=floor,
        attraction=attraction,
        repulsion=repulsion,
    )
    if attraction == repulsion:
        return [sums.products for sums in found]
    return [sums.products - sums.totals.unsqueeze(-1) * sets.samples for sums in found]


def evaluated(samples: Tensor, field: Tensor) -> Drift:
    """A drift in the units of the samples."""
    # By rows: no tensor as large as the field is allocated.
    mean_square = squared_lengths(field).mean() / field.shape[-1]
    return Drift(full(samples), field, field.new_ones(()), mean_square.reshape(1))


@typed
def drift_field(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    kernel: Kernel,
    coupling: Coupling,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
    affinity_floor: float = 0.0,
    attraction: float = 1.0,
    repulsion: float = 1.0,
    block_size: int | None = None,
) -> Drift:
    """``V_i = sum_{p, n} A_ip A_in (y_p - y_n)``, positives and negatives coupled together.

    Args:
        samples: points to move, ``[.., n, channel]``; leading axes are independent groups.
        positives: real points, ``[.., p, channel]``.
        negatives: exactly these repel, nothing is masked, ``[.., q, channel]``; ``None``: the samples repel one
            another and no sample itself.
        kernel: log-kernel, for example ``partial(laplace, temperature=0.2)``.
        coupling: from kernel to affinity, for example ``softmax_both``.
        extra_negatives: real points that repel as well, ``[.., u, channel]``: unconditional ones, for guidance.
        positive_weights: factor of each positive's affinity, after the coupling, ``[.., p]``.
        negative_weights: factor of each negative's (or sample's, as a negative), ``[.., q]`` or ``[.., n]``.
        extra_weights: factor of each extra negative's, ``[.., u]``.
        keys: features in which distances are measured, ``[.., k, channel] -> [.., k, key]``.
        affinity_floor: smallest affinity, before the weights; 1e-3 in the released code.
        attraction: factor of the part ``(sum_n A_in) sum_p A_ip (y_p - x_i)``.
        repulsion: factor of the part ``(sum_p A_ip) sum_n A_in (y_n - x_i)``. Unless both factors are equal, equal
            sets no longer give zero: for ablations.
        block_size: rows of the kernel matrix held at a time; ``None`` chooses by shape.

    Returns:
        A :class:`Drift`: the samples with their gradient, the displacement without, scale 1 and the mean square of
        the displacement.

    Raises:
        ConfigError: on an empty set, a lone sample with self pairs masked, weights without their set, a negative
            floor or an empty block.
        ArgumentError: if channels or leading axes differ.

    Source: Deng et al., Generative Modeling via Drifting, eq. of the field and algorithm A1,
    https://arxiv.org/abs/2602.04770. The released code differs; see :func:`released_drift`.

    Example:
        >>> from functools import partial
        >>> from onestep_core.fields import laplace, softmax_both
        >>> kernel = partial(laplace, temperature=1.0)
        >>> drift = drift_field(torch.zeros(2, 1), torch.ones(3, 1), kernel=kernel, coupling=softmax_both)
        >>> bool((drift.field > 0).all())
        True
    """
    require_not_negative("attraction", attraction)
    require_not_negative("repulsion", repulsion)
    (drift,) = drift_fields(
        Clouds(samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys),
        kernels=[kernel],
        coupling=coupling,
        affinity_floor=affinity_floor,
        attraction=attraction,
        repulsion=repulsion,
        block_size=block_size,
    )
    return drift


def drift_fields(
    given: Clouds,
    *,
    kernels: Sequence[Kernel],
    coupling: Coupling,
    affinity_floor: float = 0.0,
    attraction: float = 1.0,
    repulsion: float = 1.0,
    block_size: int | None = None,
) -> list[Drift]:
    """:func:`drift_field` for several kernels, which share the distances."""
    if not affinity_floor >= 0:
        raise ConfigError(f"affinity_floor = {affinity_floor}: expected zero or more")
    sets = stack(given)
    # A kernel may have parameters; a field has no gradient.
    with torch.no_grad():
        affinities = affinities_of(
            sets.sample_keys,
            sets.target_keys,
            kernels,
            self_penalties=[torch.inf] * len(kernels) if sets.repel_one_another else None,
            block_size=block_size,
        )
        fields = displacements(
            affinities, coupling, sets, floor=affinity_floor, attraction=attraction, repulsion=repulsion
        )
    return [evaluated(given.samples, field) for field in fields]


def summed_fields(drifts: Sequence[Drift], *, normalize: bool) -> Tensor:
    """The sum of the displacements, each at unit root mean square or as it is.

    As released, the mean square that divides is at least 1e-8.
    """
    first, *others = [drift.field for drift in drifts]
    if not normalize:
        return sum(others, first)
    factors = torch.cat([drift.force_norms for drift in drifts]).clamp(min=_RMS_FLOOR).rsqrt()
    total = first * factors[0]
    for field, factor in zip(others, factors[1:], strict=True):
        total = torch.addcmul(total, field, factor)
    return total
