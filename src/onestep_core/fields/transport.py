"""The gradient flow of the Sinkhorn divergence: transport to the data minus transport to the samples themselves.

With the cost ``|x - y|^2 / 2`` and entropy ``epsilon``, the optimal plan between two clouds sends a sample to the mean
``T(x_i)`` of its targets under the plan, and ``x_i - T(x_i)`` is the gradient of the transport cost. The divergence
``OT(q, p) - OT(q, q) / 2 - OT(p, p) / 2`` therefore has the descent direction

    V_i = T_{q -> p}(x_i) - T_{q -> q'}(x_i)

In contrast to a softmax over rows, the plan must serve every target, so no mode is left out. The plan is global, so
mass moves even where no target is near. The divergence is zero only for equal distributions.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.fields.affinity.dispatch import affinities_of
from onestep_core.fields.attraction_repulsion import evaluated
from onestep_core.fields.clouds import Clouds, stack
from onestep_core.fields.couplings import sinkhorn
from onestep_core.fields.kernels import gaussian
from onestep_core.fields.mean_shift import centre
from onestep_core.protocols import Drift
from onestep_core.typing import typed
from onestep_core.validators import require_length


@typed
def sinkhorn_field(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    epsilon: float,
    iterations: int = 20,
    symmetric: bool = True,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
    block_size: int | None = None,
) -> Drift:
    """``V_i = T_{q -> p}(x_i) - T_{q -> q'}(x_i)``, the steepest descent of the Sinkhorn divergence.

    The samples have equal masses ``1 / n``; targets have masses in proportion to their weights, which here are
    marginals of the plan. Integer weights equal repetition of points.

    Args:
        samples: points to move, ``[.., n, channel]``.
        positives: real points, ``[.., p, channel]``.
        negatives: the self term. A second, independent batch of samples: the two-batch form, unbiased in that no
            sample meets itself. The samples themselves: the gradient of the divergence of the two given clouds.
            ``None``: the samples, self pairs masked.
        epsilon: entropy, in units of a squared length of the keys, positive; the kernel is
            ``exp(-|x - y|^2 / (2 epsilon))``.
        iterations: iterations of :func:`onestep_core.fields.sinkhorn`, at least 1; more for a smaller ``epsilon``.
        symmetric: its symmetric form, see there.
        extra_negatives: real points that repel as well, ``[.., u, channel]``.
        positive_weights: ``[.., p]``.
        negative_weights: ``[.., q]`` or ``[.., n]``.
        extra_weights: ``[.., u]``.
        keys: features in which distances are measured; the points themselves are moved.
        block_size: rows of the kernel matrix held at a time; ``None`` chooses by shape.

    Returns:
        A :class:`Drift`, scale 1. A plan depends on its farthest point: exponents are costs over ``epsilon``, rounded
        to the precision of the inputs, so give float64 where the largest squared distance is 10^4 ``epsilon`` or more.

    Raises:
        ConfigError: if ``epsilon`` is not positive, without an iteration, on an empty set, a lone sample with self
            pairs masked, weights without their set, or an empty block.
        ArgumentError: if channels or leading axes differ.

    Source: Han et al., One-Step Generative Modeling via Wasserstein Gradient Flows,
    https://arxiv.org/abs/2605.11755; the gradient: Feydy et al., https://arxiv.org/abs/1810.08278.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> sinkhorn_field(x, x + 2, x, epsilon=1.0, iterations=100).field.round(decimals=3)
        tensor([[2.],
                [2.]])
    """
    require_length("epsilon", epsilon)
    given = Clouds(
        samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys
    )
    sets = stack(given)
    n = samples.shape[-2]

    def transported(part: slice, *, themselves: bool) -> Tensor:
        points = sets.targets[..., part, :]
        affinities = affinities_of(
            sets.sample_keys,
            sets.target_keys[..., part, :],
            [partial(gaussian, bandwidth=epsilon**0.5)],
            self_penalties=[torch.inf] if themselves else None,
            block_size=block_size,
        )
        masses = points.new_ones(points.shape[:-1]) if sets.weights is None else sets.weights[..., part]
        mass = masses.sum(-1, keepdim=True)
        coupling = partial(
            sinkhorn,
            iterations=iterations,
            symmetric=symmetric,
            row_sums=points.new_full((n,), 1 / n),
            column_sums=masses / torch.where(mass > 0, mass, 1.0),
        )
        (sums,) = affinities.apply(affinities.potentials(coupling), points, weights=None)
        return centre(sums, sets.samples)

    towards = transported(sets.positive, themselves=False)
    return evaluated(samples, towards - transported(sets.negative, themselves=sets.repel_one_another))
