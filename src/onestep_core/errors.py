"""The errors of this library.

Every error says what came, what was expected and what to do. A wrong shape, dtype or type is an
:class:`ArgumentError` with jaxtyping's own, longer report as its cause.
"""

import jaxtyping
from torch import Tensor


class OneStepError(Exception):
    """Base of the errors that this library raises itself."""


class ConfigError(OneStepError, ValueError):
    """A value chosen by the caller that cannot work: a range, a count, a name."""


class ArgumentError(ConfigError, jaxtyping.TypeCheckError):
    """An argument of another shape, dtype or type than the function takes; also a ``TypeError``."""


class MissingExtraError(OneStepError, ImportError):
    """An optional library is absent; the message names the pip extra that brings it."""


def like_states(answer: object, states: Tensor) -> Tensor:
    """The answer of a network, checked against its states: without the check an error would come later, or not at all.

    Raises:
        ConfigError: if the shapes differ, or the answer is no tensor of floating-point numbers.

    Example:
        >>> import torch
        >>> like_states(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[0., 0.]])
    """
    if not isinstance(answer, Tensor) or answer.shape != states.shape or not answer.is_floating_point():
        said = f"{answer.dtype} {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ConfigError(
            f"the network answered {said} to states of shape {list(states.shape)}: expected floating-point numbers of "
            "the same shape; wrap a network with several outputs so that it returns one tensor"
        )
    return answer


class UnsupportedDerivative(OneStepError, NotImplementedError):
    """An operation whose tangent is not known; the message names it and the remedy."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name}: {reason}. Teach single_pass its tangent with onestep_core.tangent_rule, or give the objective "
            "another derivative: derivative=two_pass (forward mode of torch) or derivative=central_difference"
        )
