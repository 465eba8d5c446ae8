"""The drift as released: the ImageNet algorithm and the authors' notebook, with all their constants.

Both differ from the paper's formula, and from one another. In both the samples are always negatives.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields.affinity.dispatch import AnyDistances, affinities_of, distances_of
from onestep_core.fields.affinity.streamed_affinities import signed
from onestep_core.fields.affinity.streamed_distances import flat
from onestep_core.fields.attraction_repulsion import displacements, evaluated, summed_fields
from onestep_core.fields.clouds import Clouds, Stacked, stack
from onestep_core.fields.couplings import softmax_both
from onestep_core.fields.euclidean import distances
from onestep_core.fields.kernel_forms import KernelForm
from onestep_core.fields.kernels import Radial
from onestep_core.precision import full, no_autocast
from onestep_core.protocols import Drift
from onestep_core.typing import typed
from onestep_core.validators import require_length, require_not_negative

_DISTANCE_FLOOR = 1e-4
_SCALE_FLOOR = 1e-3
_SELF_PENALTY = 100.0


def _always(negatives: Tensor | None, name: str) -> None:
    if negatives is not None:
        raise ConfigError(
            f"{name} takes no explicit negatives: in this algorithm the samples always repel one another; "
            "give further ones as extra_negatives, or use drift_field"
        )


@typed
def released_drift(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    affinity_floor: float = 1e-3,
    attraction: float = 1.0,
    repulsion: float = 1.0,
    block_size: int | None = None,
) -> Drift:
    """The drift of the released ImageNet training.

    With targets ``Y = [x | extra negatives | positives]``, weights ``w`` and ``d_ij = max(|x_i - Y_j|, 1e-4)``:

    1. one scale for the whole call, ``s = mean(d w) / mean(w)``, self pairs included; ``s_in = max(s / sqrt(channel),
       1e-3)``;
    2. per temperature ``R``: log-kernel ``-d / (max(s, 1e-3) R)``, the self pair lowered by ``100 / R``; affinity
       ``A = w max(softmax_both, affinity_floor)``;
    3. ``F_R`` = the attraction-repulsion field of ``A`` in coordinates divided by ``s_in``; ``m_R`` its mean square
       over the whole call;
    4. ``V = sum_R F_R / sqrt(max(m_R, 1e-8))``.

    The masked self pair and every far pair keep the affinity ``affinity_floor``. Scale and root mean square are shared
    by all groups, so groups influence one another. At one temperature the mean of ``V^2`` is 1 whatever the samples:
    the loss shows nothing of the progress, ``scale`` and ``force_norms`` do. Small temperatures collapse raw pixels
    to the mean image. The distance floor is in absolute units, so scaling all points changes ``V`` a little (1e-5).

    Args:
        samples: points to move, ``[.., n, channel]``.
        positives: real points, ``[.., p, channel]``.
        negatives: must be ``None``; the samples are the negatives.
        extra_negatives: real unconditional points, ``[.., u, channel]``.
        temperatures: relative to the mean distance, positive; their order is that of ``force_norms``.
        positive_weights: ``[.., p]``.
        negative_weights: weights of the samples as negatives, ``[.., n]``; the rows of the loss are not weighted.
        extra_weights: ``[.., u]``, see :func:`onestep_core.flow.drift_negative_weight`.
        affinity_floor: 1e-3 as released; 0 is the paper's algorithm A1.
        attraction: factor of the positives' part of ``F_R``, as in :func:`onestep_core.fields.drift_field`.
        repulsion: factor of the negatives' part. Unless both factors are equal, equal sets no longer give zero: for
            ablations. ``V`` is scaled to unit mean square afterwards, so only their ratio matters.
        block_size: rows of the kernel matrix held at a time; ``None`` chooses by shape.

    Returns:
        A :class:`Drift` with ``samples = x / s_in`` (its gradient through ``x`` alone), ``field = V``, ``scale = s``
        and ``force_norms = m_R``, ``[temperature]``.

    Raises:
        ConfigError: with explicit negatives, an empty set, no temperature or one that is not positive.

    Source: Deng et al., Generative Modeling via Drifting, appendix A, https://arxiv.org/abs/2602.04770; released
    code lambertae/drifting, ``drift_loss.py`` (its loss is the mean of ``V^2`` over a row; it computes in float32).

    Example:
        >>> drift = released_drift(torch.randn(4, 3), torch.randn(6, 3), temperatures=(0.2,))
        >>> drift.field.square().mean().round(decimals=3)
        tensor(1.)
    """
    _always(negatives, "released_drift")
    if not temperatures:
        raise ConfigError("no temperature: expected at least one")
    for temperature in temperatures:
        require_length("temperature", temperature)
    require_not_negative("affinity_floor", affinity_floor)
    require_not_negative("attraction", attraction)
    require_not_negative("repulsion", repulsion)
    given = Clouds(samples, positives, None, extra_negatives, positive_weights, negative_weights, extra_weights)
    sets = stack(given, lone_sample=True)
    apart = distances_of(sets.samples, sets.targets, themselves=True, kernels=len(temperatures), block_size=block_size)
    scale = _mean_distance(apart, sets)
    unit = (scale / samples.shape[-1] ** 0.5).clamp(min=_SCALE_FLOOR)
    length = scale.clamp(min=_SCALE_FLOOR)

    def kernel(temperature: float) -> Radial:
        def log_k(r: Tensor) -> Tensor:
            return r.clamp_(min=_DISTANCE_FLOOR).div_(length * -temperature)

        return Radial(log_k, KernelForm("laplace", length * temperature, smallest=_DISTANCE_FLOOR))

    affinities = affinities_of(
        sets.samples,
        sets.targets,
        [kernel(t) for t in temperatures],
        self_penalties=[_SELF_PENALTY / t for t in temperatures],
        block_size=block_size,
        apart=apart,
    )
    in_units = sets._replace(samples=sets.samples / unit, targets=sets.targets / unit)
    fields = displacements(
        affinities, softmax_both, in_units, floor=affinity_floor, attraction=attraction, repulsion=repulsion
    )
    drifts = [evaluated(samples, field) for field in fields]
    total = summed_fields(drifts, normalize=True)
    return Drift(full(samples) / unit, total, scale, torch.cat([drift.force_norms for drift in drifts]))


def _mean_distance(apart: AnyDistances, sets: Stacked) -> Tensor:
    """``mean(d w) / mean(w)`` over every pair of the call, 0-d."""
    # As the blocks are: leading axes are one.
    weights = None if sets.weights is None else flat(sets.weights.unsqueeze(-2))
    total = sets.samples.new_zeros(())
    for (groups, _), d in apart:
        d = d.clamp(min=_DISTANCE_FLOOR)
        total = total + (d if weights is None else d * weights[groups]).sum()
    mass = total.new_ones(()) if sets.weights is None else sets.weights.mean()
    return total / (sets.samples[..., 0].numel() * sets.targets.shape[-2]) / mass


@typed
def notebook_drift(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    temperature: float = 0.05,
) -> Drift:
    """The drift of the authors' two-dimensional notebook: no scaling, no floor, normalised in the linear domain.

    ``k = exp(-d / temperature)`` with ``d = 1e6`` for self pairs, ``A = k / sqrt(max(row sum * column sum, 1e-12))``,
    ``V_i = (sum_n A_in) sum_p A_ip y_p - (sum_p A_ip) sum_n A_in x_n``. Where all distances are much larger than the
    temperature the kernel underflows and the drift with it. Dense: for the notebook's sizes.

    Args:
        samples: points to move, ``[.., n, channel]``; a lone one gets no drift.
        positives: real points, ``[.., p, channel]``.
        negatives: must be ``None``; the samples are the negatives.
        temperature: in units of the points, positive; 0.05 in the notebook.

    Returns:
        A :class:`Drift`, scale 1. The notebook's loss is the mean of ``field^2`` over everything.

    Raises:
        ConfigError: with explicit negatives, an empty set, or a temperature that is not positive.

    Source: lambertae/lambertae.github.io, ``drifting_model_demo.ipynb``, ``compute_drift``.

    Example:
        >>> notebook_drift(torch.zeros(1, 2), torch.ones(3, 2)).field
        tensor([[0., 0.]])
    """
    _always(negatives, "notebook_drift")
    require_length("temperature", temperature)
    sets = stack(Clouds(samples, positives), lone_sample=True)
    d = distances(sets.samples, sets.targets)
    index = torch.arange(d.shape[-1], device=d.device)
    k = (d.masked_fill(index[: d.shape[-2]].unsqueeze(-1) == index, 1e6) / -temperature).exp()
    affinity = k / (k.sum(-1, keepdim=True) * k.sum(-2, keepdim=True)).clamp(min=1e-12).sqrt()
    with no_autocast(d):
        field = signed(affinity, sets.negative.stop) @ sets.targets
    return evaluated(samples, field)
