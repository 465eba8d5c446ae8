"""Inductive moment matching: jumps from ``t`` and from ``m`` agree as distributions, not sample by sample.

In groups of ``M`` particles that share their times, with ``y_j = X(z_j, t, s)`` and ``y'_j = sg X'(z_m_j, m, s)``,

    loss = 1/M^2 sum_jk [ k(y_j, y_k) + k(y'_j, y'_k) - 2 k(y_j, y'_k) ],

the squared maximum mean discrepancy of the two sets (V-statistic, self pairs included). The middle state lies on the
path of the same pair, ``z_m = path(data, noise, m).z``, which is DDIM from ``z`` with the true data; the middle time is
:func:`onestep_core.flow.lower_noise_ratio`. The third term attracts ``y`` to the targets, the first drives the
particles apart.

The loss belongs to a group of particles. Therefore this objective returns the loss itself and not a pair.

What holds at the exact flow map ``X = X'``:

* with ``z_m`` on the *trajectory* of ``z`` the two sets coincide; value and gradient are zero in every group (for the
  Laplace kernel, which has a cusp, only where points coincide to the last digit);
* with ``z_m`` of the same *pair* they are two samples of one distribution. The expected loss is ``1/M`` times that of
  one particle, and so is its gradient: consistency training's bias, which vanishes as groups grow. In the population
  limit the loss is zero;
* with one particle the loss is ``2 (1 - k(y, y'))``, a bounded distance of consistency training: times ``h / 2`` it
  tends to ``l2`` for the Laplace kernel, times ``h^2`` to ``squared_l2`` for the Gaussian one, as the length ``h``
  grows. The paper's kernel ``-|x - y|^2`` would be that limit; it is no log-kernel, and compares means alone.
"""

import math

from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow import frozen_value
from onestep_core.precision import without_gradient
from onestep_core.protocols import FlowMap, Kernel
from onestep_core.regression import regression
from onestep_core.shapes import expand_like
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import require_positive


@typed
def moment_matching_loss(
    online: FlowMap,
    target: FlowMap,
    z: Sample,
    z_m: Sample,
    t: Time,
    m: Time,
    s: Time,
    *,
    particles: int,
    kernel: Kernel,
    length: float | Time | None = None,
) -> Float[Tensor, "group"]:
    """The squared maximum mean discrepancy of ``online(z, t, s)`` and ``sg[target(z_m, m, s)]``, one number a group.

    Args:
        online: the network, ``(z, t, s) -> state at s``, for example ``flow.preconditioned_flow_map``.
        target: the map of the second set: the same network, its parameters frozen.
        z: states at ``t``, ``[batch, *shape]``. A group lies contiguously: ``batch = group * particles``.
        z_m: states at ``m`` of the same pairs, ``[batch, *shape]``.
        t: source times, ``[batch]``, equal within a group.
        m: middle times, ``[batch]``, between ``t`` and ``s``, equal within a group.
        s: target times, ``[batch]``, equal within a group.
        particles: ``M``, at least 1; the paper's is 4.
        kernel: positive definite, ``log k`` of two clouds ``[group, M, channel]``, in units of ``length``:
            ``partial(laplace, temperature=1.0)``.
        length: divides the particles before the kernel, a number or ``[batch]``, positive, equal within a group; 1
            without it. The paper's is ``|c_out(t, s)| * dimension``, ``c_out`` being the factor of the network's output
            in the map (``flow.simple_edm_scalings(t, s, ...).c_out``), so that a step has its own bandwidth.

    Returns:
        One loss a group, ``[batch / particles]``, not negative up to rounding, in at least float32. The weight of the
        paper is ``sigmoid_elbo(t[::particles], path=path, shift=b, power=a)``.

    Raises:
        ConfigError: if ``particles`` does not divide the batch, or is below 1; if a number as ``length`` is not
            positive; if the map's answer is not of the shape of the states.
        ArgumentError: if other shapes disagree.

    Source: Zhou et al., Inductive Moment Matching, sections 3 and 4; one particle: section 5,
    https://arxiv.org/abs/2503.07565. The paper bounds the distance in the kernel from below by a small number to keep
    its gradient finite; :func:`onestep_core.fields.laplace` has gradient zero where points coincide. The released
    repository contains sampling only.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from onestep_core.fields import laplace
        >>> from onestep_core.flow import Linear, lower_noise_ratio, preconditioned_flow_map, simple_edm_scalings
        >>> from onestep_core.regression import sigmoid_elbo
        >>> path, (data, noise) = Linear(), torch.randn(2, 8, 3)
        >>> t, s = torch.tensor([0.8, 0.5]).repeat_interleave(4), torch.tensor([0.2, 0.1]).repeat_interleave(4)
        >>> m = lower_noise_ratio(t, s, path=path, decrement=0.1)
        >>> scalings = partial(simple_edm_scalings, path=path, sigma_data=1.0)
        >>> flow_map = preconditioned_flow_map(lambda z, t, s: torch.tanh(z), scalings=scalings)
        >>> loss = moment_matching_loss(
        ...     flow_map, flow_map, path(data, noise, t).z, path(data, noise, m).z, t, m, s,
        ...     particles=4, kernel=partial(laplace, temperature=1.0), length=3 * scalings(t, s).c_out.abs(),
        ... )
        >>> loss = (loss * sigmoid_elbo(t[::4], path=path, shift=5.0)).mean()
    """
    batch = z.shape[0]
    if isinstance(particles, bool):
        raise ConfigError(f"particles = {particles}: expected a whole number")
    if particles < 1 or batch % particles:
        raise ConfigError(
            f"a batch of {batch} in groups of {particles} particles: expected at least one particle, and groups that "
            "fill the batch; lay the particles of a group contiguously, with one t, m and s"
        )
    wanted = like_states(frozen_value(target, z_m.detach().to(z.dtype), m.to(t.dtype), s), z)
    made, wanted = regression(like_states(online(z, t, s), z), wanted)
    if isinstance(length, Tensor):
        unit = expand_like(without_gradient(length), made)
        made, wanted = made / unit, wanted / unit
    elif length is not None:
        require_positive("length", length)
        made, wanted = made / length, wanted / length
    shape = (batch // particles, particles, math.prod(made.shape[1:]))
    x, y = made.reshape(shape), wanted.reshape(shape)

    def mean_affinity(x: Tensor, y: Tensor) -> Tensor:
        found = kernel(x, y)
        if not isinstance(found, Tensor) or found.shape != (*x.shape[:-1], y.shape[-2]):  # pyright: ignore[reportUnnecessaryIsInstance]
            said = list(found.shape) if isinstance(found, Tensor) else type(found).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"the kernel answered {said} to clouds {list(x.shape)} and {list(y.shape)}: expected log k of every "
                "pair of points, [group, n, m]"
            )
        return found.exp().mean((-2, -1))

    return mean_affinity(x, x) + mean_affinity(y, y) - 2 * mean_affinity(x, y)
