"""Flow matching: regression onto the velocity of a pair. The baseline of every one-step method.

The minimiser is the marginal velocity ``E[v | z]``. Its ordinary differential equation carries noise to data; sampling
integrates it in many evaluations.
"""

from onestep_core.errors import like_states
from onestep_core.protocols import Velocity
from onestep_core.regression import Regression, regression
from onestep_core.typing import Sample, Time, typed


@typed
def flow_matching_regression(velocity: Velocity, z: Sample, v: Sample, t: Time) -> Regression:
    """``velocity(z, t)`` against ``sg[v]``.

    Args:
        velocity: the network, ``(z, t) -> dz/dt``.
        z: states on a path, ``[batch, *shape]``.
        v: velocities of the pairs, ``[batch, *shape]``, from ``z, v = path(data, noise, t)``.
        t: times, ``[batch]``.

    Returns:
        Prediction and target, ``[batch, *shape]``, in at least float32.

    Raises:
        ConfigError: if a network's answer is not of the shape of its states.
        ArgumentError: if other shapes disagree.

    Source: Lipman et al., Flow Matching for Generative Modeling, eq. 9, https://arxiv.org/abs/2210.02747.

    Example:
        >>> import torch
        >>> from onestep_core.flow import Linear
        >>> from onestep_core.regression import squared_l2
        >>> t = torch.tensor([0.25, 0.75])
        >>> z, v = Linear()(torch.zeros(2, 3), torch.ones(2, 3), t)
        >>> squared_l2(*flow_matching_regression(lambda z, t: torch.ones_like(z), z, v, t))
        tensor([0., 0.])
    """
    return regression(like_states(velocity(z, t), z), v)
