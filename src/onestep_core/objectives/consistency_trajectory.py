"""Consistency trajectories (CTM): a flow map between any two times, compared at the data end.

Two ways lead from ``z`` at ``t`` to ``s``: one jump, or a solver's step to ``z_m`` at ``m`` and a jump from there. They
are compared not at ``s`` but at the data end, where a distance between clean samples makes sense:

    outer(online(z, t, s), s, end)   against   sg[outer(inner(z_m, m, s), s, end)].

The three maps are usually one network and its moving average. *online* is trained. *inner* is the online map or the
average, without gradient. *outer* is the average, frozen in its parameters **but not in its input**: the gradient of
the prediction passes through it. ``onestep_adapters.networks.frozen(module)`` makes such a callable; one that runs
under ``no_grad`` or detaches its result would train nothing.

``m`` chooses the kind of consistency. Near ``t`` it is local: a cheap step of the solver, with errors that add up over
many. At ``m = s`` it is global: the whole way by the solver, which is distillation. Drawn between the two it is soft,
the published choice. The loss alone does not determine the map. It needs a form that is the identity at ``s = t``, a
solver from a teacher, a denoising loss and, as published, an adversarial loss.
"""

import torch
from torch import Tensor

from onestep_core.errors import like_states
from onestep_core.flow import frozen_value
from onestep_core.protocols import FlowMap
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed
from onestep_core.validators import require_finite


@typed
def consistency_trajectory_regression(
    online: FlowMap,
    inner: FlowMap | None,
    outer: FlowMap,
    z: Sample,
    z_m: Sample,
    t: Time,
    m: Time,
    s: Time,
    *,
    end: float,
) -> Regression:
    """``outer(online(z, t, s), s, end)`` against ``sg[outer(inner(z_m, m, s), s, end)]``.

    Args:
        online: the map that is trained, ``(z, t, s) -> state at s``.
        inner: the map of the target: the online one or its average. ``None``: the solver's own point is the target's
            last word before the end, ``sg[outer(z_m, m, end)]``.
        outer: carries both to the end. No gradient should reach its parameters, and one must reach its input.
        z: states at ``t``, ``[batch, *shape]``.
        z_m: states at ``m`` after the solver, ``[batch, *shape]``: by a teacher, or by the map itself.
        t: source times, ``[batch]``.
        m: times of ``z_m``, ``[batch]``, from ``t`` to ``s``.
        s: target times, ``[batch]``.
        end: the data end of the path; at ``s = end`` this is consistency distillation for every outer map that is the
            identity there.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32; both are data.

    Raises:
        ConfigError: if a map's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Kim et al., Consistency Trajectory Models, section 3, https://arxiv.org/abs/2310.02279. The released code
    (sony/ctm) takes LPIPS or features of a classifier for the distance, draws ``m`` a random number of grid points
    after ``t``, and adds two terms, each scaled by :func:`onestep_core.regression.gradient_balance`:
    ``denoising_regression(denoiser_from_network(g, form=form), ...)`` and a hinge loss.

    Example:
        >>> from onestep_core.flow import EulerForm, VarianceExploding, flow_map_from_network, heun
        >>> from onestep_core.regression import squared_l2
        >>> linear = torch.nn.Linear(4, 2)
        >>> def net(z, t, s):
        ...     return linear(torch.cat([z, t[:, None], s[:, None]], dim=1))
        >>> def fixed(z, t, s):
        ...     weight, bias = linear.weight.detach(), linear.bias.detach()
        ...     return torch.nn.functional.linear(torch.cat([z, t[:, None], s[:, None]], dim=1), weight, bias)
        >>> G, G_fixed = (flow_map_from_network(g, form=EulerForm()) for g in (net, fixed))
        >>> t, m, s = torch.tensor([[2.0, 9.0], [1.0, 4.0], [0.1, 4.0]])
        >>> z, _ = VarianceExploding()(torch.randn(2, 2), torch.randn(2, 2), t)
        >>> z_m = heun(lambda z, t: z / t[:, None], z, t, m)
        >>> pair = consistency_trajectory_regression(G, G_fixed, G_fixed, z, z_m, t, m, s, end=0.002)
        >>> squared_l2(*pair).mean().backward()
    """
    require_finite("end", end)
    last = torch.full_like(s, end)
    prediction = outer(like_states(online(z, t, s), z).to(z.dtype), s, last)

    def end_of(z_m: Tensor, m: Tensor, s: Tensor, last: Tensor) -> Tensor:
        if inner is None:
            return outer(z_m, m, last)
        return outer(like_states(inner(z_m, m, s), z_m).to(z_m.dtype), s, last)

    goal = frozen_value(end_of, z_m.to(z.dtype), m.to(t.dtype), s, last)
    return regression(like_states(prediction, z), like_states(goal, z))
