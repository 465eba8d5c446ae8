"""Parts of a Gaussian mixture: its parameters, checked, and its results: the posterior, and nodes of a quadrature."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError

Points: TypeAlias = Float[Tensor, "batch dim"]
"""A batch of states of a mixture, ``[batch, dim]``."""
Numbers: TypeAlias = Tensor | Sequence[Any] | float


class Posterior(NamedTuple):
    """Data given the state: again a mixture, one a sample.

    ``responsibilities [batch, k]``, ``means [batch, k, dim]``, ``covariances [batch, k, dim, dim]``.
    """

    responsibilities: Tensor
    means: Tensor
    covariances: Tensor


class Quadrature(NamedTuple):
    """Nodes of the posterior: ``E[g(data, noise) | z] = sum_i weights_i g(data_i, noise_i)``.

    ``data`` and ``noise``, ``[batch, node, dim]``, are the pairs that give ``z``; ``weights [batch, node]``.
    """

    data: Tensor
    noise: Tensor
    weights: Tensor


class Given(NamedTuple):
    """For every component, given the state: log joint density ``[batch, k]``, means of data and noise."""

    log_joint: Tensor
    data: Tensor
    noise: Tensor

    def responsibilities(self) -> Tensor:
        """Probability of every component given the state, ``[batch, k]``."""
        # Written out: the forward derivative of softmax itself costs fifty times as much.
        return (self.log_joint - self.log_joint.logsumexp(1, keepdim=True)).exp()


def to_tensor(value: Numbers) -> Tensor:
    """In float64, without gradient."""
    return torch.as_tensor(value, dtype=torch.float64).detach()


def spectrum(value: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of covariances ``[k, dim, dim]``.

    Raises:
        ConfigError: if they are of another shape, or not finite.
    """
    if value.ndim != 3 or value.shape[1] != value.shape[2] or not bool(value.isfinite().all()):
        raise ConfigError(f"covariances of shape {tuple(value.shape)}: expected finite [k, dim, dim]")
    result = torch.linalg.eigh(value)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast(tuple[Tensor, Tensor], result)


def probabilities(_: object, __: object, value: Tensor) -> None:
    """An attrs validator: positive numbers ``[k]`` with sum 1."""
    if value.ndim != 1 or not bool((value > 0).all()) or abs(float(value.sum()) - 1) > 1e-6:
        raise ConfigError(
            f"weights of shape {tuple(value.shape)} and sum {float(value.sum()):.6g}: expected positive "
            "probabilities [k] with sum 1; divide them by their sum"
        )


def one_mean_each(mixture: Any, _: object, value: Tensor) -> None:
    """An attrs validator: finite ``[k, dim]`` for ``k`` weights."""
    k: int = mixture.weights.shape[0]
    if value.ndim != 2 or value.shape[0] != k or not bool(value.isfinite().all()):
        raise ConfigError(f"means of shape {tuple(value.shape)}: expected finite [k, dim] with k = {k}")


def positive_definite(mixture: Any, _: object, value: Tensor) -> None:
    """An attrs validator: symmetric, positive definite ``[k, dim, dim]``."""
    k, dim = cast(tuple[int, int], mixture.means.shape)
    if value.shape != (k, dim, dim):
        raise ConfigError(f"covariances of shape {tuple(value.shape)}: expected {(k, dim, dim)}")
    if not torch.allclose(value, value.mT) or not bool((spectrum(value)[0] > 0).all()):
        raise ConfigError(
            "covariances: expected symmetric, positive definite matrices; for point masses give the "
            "points a small standard deviation"
        )
