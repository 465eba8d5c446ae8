"""The call types: the functions that other functions take as arguments.

Networks are plain callables with a fixed positional meaning. The caller binds conditioning
(``functools.partial``, a lambda); the core never sees a module, a parameter or a device. The arguments of these
protocols are positional, so any parameter names fit.

``z`` is a state ``[batch, *shape]``; ``t``, ``m``, ``s`` are times ``[batch]``: source, middle, target.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from onestep_core.errors import ConfigError


@runtime_checkable
class Velocity(Protocol):
    """Instantaneous velocity ``dz/dt`` at ``(z, t)``."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor: ...


@runtime_checkable
class AverageVelocity(Protocol):
    """Mean velocity between ``t`` and ``s``: the jump is ``z + (s - t) * average_velocity(z, t, s)``."""

    def __call__(self, z: Tensor, t: Tensor, s: Tensor, /) -> Tensor: ...


@runtime_checkable
class TwoHeadedVelocity(Protocol):
    """Mean velocity between ``t`` and ``s``, and an estimate of the instantaneous one at ``(z, t)``."""

    def __call__(self, z: Tensor, t: Tensor, s: Tensor, /) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class FlowMap(Protocol):
    """The state at ``s`` of the trajectory through ``z`` at ``t``."""

    def __call__(self, z: Tensor, t: Tensor, s: Tensor, /) -> Tensor: ...


@runtime_checkable
class Denoiser(Protocol):
    """Expected data given the state ``z`` at ``t``."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor: ...


@runtime_checkable
class ConsistencyFunction(Protocol):
    """The end of the trajectory through ``z`` at ``t``: ``flow_map(z, t, data end)``."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor: ...


@runtime_checkable
class OneStepGenerator(Protocol):
    """Noise in, samples out, one evaluation."""

    def __call__(self, noise: Tensor, /) -> Tensor: ...


@runtime_checkable
class Features(Protocol):
    """A mapping from a name to features ``[batch, location, channel]``."""

    def __call__(self, x: Tensor, /) -> Mapping[str, Tensor]: ...


@runtime_checkable
class Path(Protocol):
    """``z = alpha(t) data + sigma(t) noise`` between ``data_time`` and ``noise_time``."""

    @property
    def data_time(self) -> float:
        """The time of the data."""
        ...

    @property
    def noise_time(self) -> float:
        """The time of the noise."""
        ...

    def coefficients(self, t: Tensor, /) -> tuple[Tensor, Tensor]:
        """``alpha(t), sigma(t)``, each ``[batch]``."""
        ...

    def rates(self, t: Tensor, /) -> tuple[Tensor, Tensor]:
        """``d alpha/dt, d sigma/dt``, each ``[batch]``."""
        ...


class Factors(NamedTuple):
    """Factors of the state and of the network in a flow map, each ``[batch]``."""

    skip: Tensor
    out: Tensor


@runtime_checkable
class FlowMapForm(Protocol):
    """The form of a flow map, ``X(z, t, s) = skip z + out g(z, t, s)``: its factors."""

    def factors(self, t: Tensor, s: Tensor, /) -> Factors:
        """Factors of the map from ``t`` to ``s``; 1 and 0 at ``s = t``."""
        ...

    def limit(self, t: Tensor, /) -> Factors:
        """Factors of the denoiser that the map implies at ``s = t``."""
        ...


@runtime_checkable
class RatioPath(Path, Protocol):
    """A path that gives the time of a noise ratio ``sigma / alpha`` in closed form."""

    def time_at(self, ratio: Tensor, /) -> Tensor:
        """The time with ``sigma = ratio * alpha``, ``[batch]``."""
        ...


@runtime_checkable
class SolverStep(Protocol):
    """One step of a solver, from ``t`` to ``s``."""

    def __call__(self, z: Tensor, t: Tensor, s: Tensor, /) -> Tensor: ...


@runtime_checkable
class DenoiserStep(Protocol):
    """One step of a solver, from ``t`` to ``s``, that evaluates a denoiser."""

    def __call__(self, denoiser: Denoiser, z: Tensor, t: Tensor, s: Tensor, /, *, path: Path) -> Tensor: ...


@runtime_checkable
class Renoise(Protocol):
    """From a state at ``t`` and fresh noise to a noisier state at ``s``."""

    def __call__(self, z: Tensor, noise: Tensor, t: Tensor, s: Tensor, /, *, path: Path) -> Tensor: ...


@runtime_checkable
class Derivative(Protocol):
    """Value (with graph) and directional derivative (without graph, unless documented) of a function of tensors.

    ``moving`` is a permission: only the first ``moving`` rows of the tangent will be used.
    """

    def __call__(
        self,
        function: Callable[..., Any],
        primals: tuple[Any, ...],
        tangents: tuple[Any, ...],
        /,
        *,
        moving: int | None = None,
    ) -> tuple[Any, Any]: ...


@runtime_checkable
class Distance(Protocol):
    """One number per sample from prediction and target, ``[batch]``."""

    def __call__(self, p: Tensor, q: Tensor, /) -> Tensor: ...


@runtime_checkable
class Kernel(Protocol):
    """``log k(x_i, y_j)`` for ``x [.., n, channel]`` and ``y [.., m, channel]``: ``[.., n, m]``."""

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor: ...


class Potentials(NamedTuple):
    """A diagonal scaling of a kernel: ``affinity = exp(log_k - row[:, None] - column[None, :])``."""

    row: Tensor
    column: Tensor


Rows: TypeAlias = Callable[..., Tensor]
"""``rows(column=None)``: ``logsumexp_j(log_k - column)``, ``[.., n]``; ``columns(row=None)`` likewise, ``[.., m]``."""


@runtime_checkable
class Coupling(Protocol):
    """Potentials from the two reductions of a kernel; a coupling never receives the kernel itself."""

    def __call__(self, rows: Rows, columns: Rows, /) -> Potentials: ...


class Drift(NamedTuple):
    """A field, evaluated: the samples, their displacement, and two numbers for monitors.

    ``samples`` carries the gradient (in the units of the field), ``field`` does not. ``scale`` is the 0-d unit
    of length that was divided out (1 where none was). ``force_norms`` holds the mean square of the
    displacement before normalisation, one number per temperature, ``[temperature]``.
    """

    samples: Tensor
    field: Tensor
    scale: Tensor
    force_norms: Tensor


def checked_drift(answer: object) -> Drift:
    """What a field returned.

    Raises:
        ConfigError: if it is no :class:`Drift`.
    """
    if isinstance(answer, Drift):
        return answer
    raise ConfigError(
        f"the field returned a {type(answer).__name__}, expected a Drift: return Drift(samples, displacement.detach(), "
        "scale=torch.ones(()), force_norms=torch.ones(1)), with samples that carry the gradient"
    )


@runtime_checkable
class Field(Protocol):
    """A displacement of every sample, towards ``positives`` and away from ``negatives``.

    Called as ``field(samples, positives, negatives)`` with clouds ``[.., n, channel]``; ``negatives=None``: the samples
    repel one another. Extra negatives come as the keywords ``extra_negatives`` and ``extra_weights``.
    """

    def __call__(
        self, samples: Tensor, positives: Tensor, negatives: Tensor | None = None, /, *rest: Any, **keywords: Any
    ) -> Drift: ...


@runtime_checkable
class Normalizer(Protocol):
    """From samples and their estimates by the real denoiser to a divisor, ``[batch]``."""

    def __call__(self, samples: Tensor, real_denoised: Tensor, /) -> Tensor: ...


Times: TypeAlias = Tensor | Sequence[float]
"""A grid of times, ``[steps + 1]``, in the order in which they are visited."""
