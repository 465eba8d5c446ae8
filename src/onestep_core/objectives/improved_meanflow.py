"""Improved MeanFlow: MeanFlow whose derivative is taken along a predicted velocity.

The eulerian identity uses the *marginal* velocity ``v(z, t) = E[v | z]`` in two places. One is the regressand, where
the pair's noisy velocity has the right mean. The other is the direction of ``D_t``; MeanFlow uses the pair's velocity
there too, so a Jacobian times its noise enters the target. Here that direction is predicted, by the network at
``s = t`` or by a second head, and the loss is a regression of the compound velocity

    V(z, t, s) = a(z, t, s) - (s - t) sg[D_t a(z, t, s)]      D_t: derivative of (z, t, s) along (tangent, 1, 0)

onto ``v``. Since the derivative has no gradient, ``V - v`` is ``a`` minus MeanFlow's target with another tangent: the
same value and the same gradient. So the pairs here hold ``a`` and that target.
"""

from typing import NamedTuple

from torch import Tensor

from onestep_core.errors import ConfigError, like_states
from onestep_core.flow import eulerian_derivative, eulerian_target, single_pass
from onestep_core.protocols import AverageVelocity, Derivative, TwoHeadedVelocity
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


class ImprovedMeanFlowPairs(NamedTuple):
    """The two regressions of a two-headed network; their losses are weighted apart and added."""

    average: Regression
    instantaneous: Regression


@typed
def improved_meanflow_regression(
    average_velocity: AverageVelocity,
    z: Sample,
    v: Sample,
    tangent: Sample,
    t: Time,
    s: Time,
    *,
    moving: int | None = None,
    derivative: Derivative = single_pass,
) -> Regression:
    """``a(z, t, s)`` against ``sg[v + (s - t) D_t a(z, t, s)]``, ``D_t`` along ``(sg[tangent], 1, 0)``.

    Args:
        average_velocity: the network, ``(z, t, s) -> mean velocity``.
        z: states on a path at ``t``, ``[batch, *shape]``.
        v: regressand of the compound velocity, ``[batch, *shape]``: velocities of the pairs, or guided.
        tangent: a prediction of the marginal velocity, ``[batch, *shape]``: ``average_velocity(z, t, t)``, or a second
            head's. It gets no gradient from here.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``; on either side of ``t``.
        moving: a promise that only the first ``moving`` samples have ``s != t``, by which a derivative may save.
        derivative: method for ``D_t a``, see :mod:`onestep_core.flow.derivatives`.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if the network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Geng et al., Improved Mean Flows, section 4 and algorithm 1, https://arxiv.org/abs/2512.02012. The released
    code orders times ``(z, t, t - s)`` and weights the distance summed over a sample by
    ``adaptive(power=1.0, epsilon=0.01)``.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear, instantaneous
        >>> from onestep_core.regression import squared_l2
        >>> network = torch.nn.Linear(4, 2)
        >>> def net(z, t, s):
        ...     return network(torch.cat([z, t[:, None], s[:, None]], dim=1))
        >>> t, s = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5])
        >>> z, v = Linear()(torch.randn(2, 2), torch.randn(2, 2), t)
        >>> tangent = instantaneous(net)(z, t)
        >>> loss = squared_l2(*improved_meanflow_regression(net, z, v, tangent, t, s)).mean()
    """
    prediction, slope = eulerian_derivative(average_velocity, z, tangent, t, s, derivative=derivative, moving=moving)
    return regression(like_states(prediction, z), eulerian_target(v, slope, t, s))


@typed
def improved_meanflow_regressions(
    two_headed: TwoHeadedVelocity,
    z: Sample,
    v: Sample,
    tangent: Sample,
    t: Time,
    s: Time,
    *,
    moving: int | None = None,
    derivative: Derivative = single_pass,
) -> ImprovedMeanFlowPairs:
    """:func:`improved_meanflow_regression` of the first head, and flow matching of the second onto the same ``v``.

    Args:
        two_headed: the network, ``(z, t, s) -> (mean velocity, instantaneous velocity)``, evaluated once.
        z: states on a path at ``t``, ``[batch, *shape]``.
        v: regressand of both heads, ``[batch, *shape]``: velocities of the pairs, or guided.
        tangent: a prediction of the marginal velocity, ``[batch, *shape]``: the second head's, at ``s = t``.
        t: source times, ``[batch]``.
        s: target times, ``[batch]``.
        moving: a promise that only the first ``moving`` samples have ``s != t``.
        derivative: method for ``D_t a``.

    Returns:
        ``average`` and ``instantaneous``, each a prediction and a target ``[batch, *shape]``.

    Raises:
        ConfigError: if the network has not two heads, each of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Lyy-iiis/imeanflow, ``iMeanFlow.forward``: the two adaptively weighted losses are added with equal weight.

    Example:
        >>> import torch
        >>> from onestep_core.regression import squared_l2
        >>> one, t = torch.ones(1, 2), torch.ones(1)
        >>> pairs = improved_meanflow_regressions(lambda z, t, s: (z, 2 * z), one, one, one, t, t)
        >>> [squared_l2(*pair) for pair in pairs]
        [tensor([0.]), tensor([2.])]
    """
    heads, slopes = eulerian_derivative(two_headed, z, tangent, t, s, derivative=derivative, moving=moving)
    if isinstance(heads, Tensor) or len(heads) != 2:
        raise ConfigError(
            f"the network answered {type(heads).__name__}: expected two heads, the average velocity and the "
            "instantaneous one; for one head there is improved_meanflow_regression"
        )
    (average, velocity), (slope, _) = heads, slopes
    return ImprovedMeanFlowPairs(regression(average, eulerian_target(v, slope, t, s)), regression(velocity, v))
