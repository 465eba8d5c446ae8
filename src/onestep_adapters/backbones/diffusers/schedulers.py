"""Schedulers of diffusers as paths, and pretrained models as denoisers and velocities on them.

============================================ ======================================== ==================================
scheduler                                    states                                   times of the path
============================================ ======================================== ==================================
DDPM, DDIM, PNDM, LCM, TCD, DEIS, UniPC,     ``alpha data + sigma noise``, squares    steps of the table, 0 to 999,
DPMSolver, SASolver                          sum to one                               fractions included
Euler, EulerAncestral, Heun, LMS, KDPM2      ``data + sigma noise``                   steps of the table, likewise
EDMEuler, EDMDPMSolver                       ``data + sigma noise``                   the noise level ``sigma``
FlowMatchEuler, FlowMatchHeun, FlowMatchLCM, ``(1 - sigma) data + sigma noise``       ``sigma``, 0 to 1: the scheduler's
and others with ``use_flow_sigmas``                                                   timesteps / num_train_timesteps
============================================ ======================================== ==================================

A ``shift`` (static, dynamic, terminal) and Karras' sigmas move the times that are visited, not the path: take
``scheduler.sigmas`` or ``scheduler.timesteps`` after ``set_timesteps`` as the grid of a sampler. ``clip_sample`` and
``thresholding`` belong to a scheduler's step and are not applied: see ``onestep_core.clamped``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onestep_adapters.backbones.diffusers.calls import FLUX_TIMES, Call, call_of, evaluate, unwrapped
from onestep_adapters.backbones.diffusers.network import DiffusersNetwork
from onestep_adapters.backbones.diffusers.tables import NoiseLevelTable, ZeroTerminalTable
from onestep_adapters.networks import as_velocity
from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.flow.paths import Linear, VarianceExploding, VariancePreserving
from onestep_core.flow.preconditioning import edm_scalings
from onestep_core.precision import full
from onestep_core.protocols import Denoiser, Path, Velocity
from onestep_core.shapes import expand_like

try:
    import diffusers
    from diffusers import SchedulerMixin
except ImportError as error:
    raise MissingExtraError("schedulers of diffusers need it: pip install 'onestep[diffusers]'") from error

_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_NOISE_LEVELS = (
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
_PRESERVING = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler",
    "PNDMScheduler", "LCMScheduler", "TCDScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
)  # fmt: skip

Estimates = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From states, the model's output and times to the expected data and noise."""


class Meaning(NamedTuple):
    """``path``: of the states. ``scale``: what the model gets is ``scale(t)`` times the state. ``model_time``: the time
    that it gets. ``estimates``: what its output means. ``predicts_noise``: whether that is the noise itself."""

    path: Path
    scale: Callable[[Tensor], Tensor]
    model_time: Callable[[Tensor], Tensor]
    estimates: Estimates
    predicts_noise: bool = False


def path_of(scheduler: Any) -> Path:
    """The path of a scheduler's states, ``z = alpha(t) data + sigma(t) noise``, in the scheduler's own times.

    Args:
        scheduler: of diffusers; see the table at the top of the module.

    Raises:
        ConfigError: for a scheduler without such a path, or not in the table.

    Example:
        >>> from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
        >>> path = path_of(DDPMScheduler())
        >>> path.data_time, path.noise_time
        (0.0, 999.0)
        >>> path_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
        Linear(noise_floor=0.0)
    """
    if not isinstance(scheduler, SchedulerMixin):
        raise ConfigError(
            f"a {type(scheduler).__name__} as scheduler: expected one of diffusers, such as DDPMScheduler"
        )
    config = scheduler.config
    if config.get("invert_sigmas"):
        raise ConfigError("invert_sigmas=True: times of this scheduler run from data to noise; expected the default")
    if _is(scheduler, _FLOW) or config.get("use_flow_sigmas"):
        return Linear()
    if _is(scheduler, _EDM):
        return VarianceExploding(config.sigma_min, config.sigma_max)
    table = getattr(scheduler, "alphas_cumprod", None)
    if _is(scheduler, _NOISE_LEVELS) and isinstance(table, Tensor):
        sigma = ((1 - table.double()) / table.double()).sqrt()
        if config.get("timestep_type") == "continuous" and config.prediction_type == "v_prediction":
            return VarianceExploding(float(sigma[0]), float(sigma[-1]))
        # As the scheduler itself does between two steps: its own sigmas are linear, Karras' and others' logarithmic.
        logarithms = any(config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta"))
        return NoiseLevelTable(sigma.log() if logarithms else sigma, logarithms)
    if _is(scheduler, _PRESERVING) and isinstance(table, Tensor):
        if table[-1] == 0 or config.get("rescale_betas_zero_snr"):
            # DPMSolver and UniPC have 2**-24 in place of the last zero, which is above some entries before it.
            return ZeroTerminalTable.of(torch.cat([table[:-1], table.new_zeros(1)]))
        return VariancePreserving.from_table(table)
    raise ConfigError(
        f"{type(scheduler).__name__}: no path is known for it; expected one of "
        f"{', '.join((*_PRESERVING, *_NOISE_LEVELS, *_EDM, *_FLOW))}"
    )


def denoiser_of(model: Callable[..., Any], scheduler: Any, **condition: Any) -> Denoiser:
    """``(z, t) -> expected data`` of a pretrained model, on :func:`path_of` its scheduler.

    The model is evaluated once a call, on the scaled state (``scale_model_input``) and the time that it was trained on.
    Its prediction (``epsilon``, ``v_prediction``, ``sample``, a flow) is converted; a predicted variance is left out.

    Args:
        model: of diffusers, a :class:`DiffusersNetwork` of one time (whose ``time_scale`` is not used), or any callable
            ``(sample, timestep, **condition)``. Call ``eval()`` first; ``onestep_adapters.networks.frozen`` for a
            teacher.
        scheduler: the model's, with its ``prediction_type``.
        condition: the model's own keywords, such as ``class_labels``, ``encoder_hidden_states``.

    Returns:
        A denoiser. Not finite where the model predicts noise and the state has no signal (zero terminal SNR).

    Raises:
        ConfigError: for a scheduler that :func:`path_of` refuses, an unknown prediction, or a network of two times.

    Example:
        >>> from diffusers import DDPMScheduler
        >>> denoiser = denoiser_of(lambda z, t: 0 * z, DDPMScheduler(prediction_type="sample"))
        >>> denoiser(torch.ones(1, 2), torch.tensor([500.0]))
        tensor([[0., 0.]])
    """
    estimate = _estimator(model, scheduler, condition)

    def denoiser(z: Tensor, t: Tensor, /) -> Tensor:
        return estimate(z, _float(t))[0]

    return denoiser


def velocity_of(model: Callable[..., Any], scheduler: Any, **condition: Any) -> Velocity:
    """``(z, t) -> dz/dt`` of a pretrained model, on :func:`path_of` its scheduler: ``alpha' data + sigma' noise``.

    Nothing is divided by a small number that the prediction does not require: with ``v_prediction`` and flows it is
    finite at both ends. For a velocity on another path see ``onestep_core.velocity_on_path``. Arguments, errors and the
    number of evaluations are those of :func:`denoiser_of`.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> velocity = velocity_of(lambda z, timestep: z, FlowMatchEulerDiscreteScheduler())
        >>> velocity(torch.ones(1, 2), torch.tensor([0.5]))
        tensor([[1., 1.]])
    """
    estimate, path = _estimator(model, scheduler, condition), path_of(scheduler)

    def velocity(z: Tensor, t: Tensor, /) -> Tensor:
        t = _float(t)
        data, noise = estimate(z, t)
        alpha_rate, sigma_rate = (expand_like(rate, data) for rate in path.rates(full(t)))
        return alpha_rate * data + sigma_rate * noise

    return velocity


def _is(scheduler: Any, names: tuple[str, ...]) -> bool:
    return isinstance(scheduler, tuple(kind for name in names if (kind := getattr(diffusers, name, None))))


def _float(t: Tensor) -> Tensor:
    """A scheduler's integer steps are times too."""
    return t if t.is_floating_point() else t.to(torch.float32)


def _estimator(
    model: Callable[..., Any], scheduler: Any, condition: dict[str, Any]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(z, t) -> (data, noise)``, one evaluation."""
    meaning, call = meaning_of(scheduler), call_of(model)
    network: Callable[..., Tensor] = _Plain(call, model)
    unit = 1.0
    plain = unwrapped(model)
    if isinstance(plain, DiffusersNetwork):
        if plain.times != 1:
            raise ConfigError(f"a network with times={plain.times}: expected times=1, a model of denoising or velocity")
        network, call, unit = model, plain.call, plain.time_scale
    elif isinstance(model, nn.Module):
        network = DiffusersNetwork(model)
    unit = unit * FLUX_TIMES if call.packed else unit
    predict = as_velocity(network, **condition)

    def estimate(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z = full(z)
        t = t.to(z.device)
        states = z * expand_like(meaning.scale(full(t)), z)
        answer = full(predict(states, meaning.model_time(full(t)) / unit))
        return meaning.estimates(states, answer, full(t))

    return estimate


class _Plain(NamedTuple):
    """A callable that is no module."""

    call: Call
    model: Callable[..., Any]

    def __call__(self, z: Tensor, t: Tensor, /, **condition: Any) -> Tensor:
        return evaluate(self.call, self.model, z, t, condition)


def meaning_of(scheduler: Any) -> Meaning:
    """What a scheduler says about the model that it belongs to.

    Raises:
        ConfigError: for a scheduler that :func:`path_of` refuses, or an unknown prediction.
    """
    path, config = path_of(scheduler), scheduler.config
    if isinstance(path, Linear):
        count = config.num_train_timesteps
        named = config.get("prediction_type", "flow_prediction")
        if named != "flow_prediction":
            raise ConfigError(f"prediction_type = {named!r} with flow sigmas: expected 'flow_prediction'")
        return Meaning(path, torch.ones_like, lambda t: t * count, _of_flow)
    if _is(scheduler, _EDM):
        sign = _EDM_SIGNS.get(config.prediction_type)
        if sign is None:
            raise ConfigError(f"prediction_type = {config.prediction_type!r}: expected one of {list(_EDM_SIGNS)}")
        return Meaning(
            path,
            lambda t: edm_scalings(t, sigma_data=config.sigma_data).c_in,
            lambda t: t.log() / 4,
            lambda x, out, t: _of_edm(x, out, t, sigma_data=config.sigma_data, sign=sign),
        )
    formula = _FORMULAS.get(config.prediction_type)
    if formula is None:
        raise ConfigError(f"prediction_type = {config.prediction_type!r}: expected one of {list(_FORMULAS)}")

    def scale(t: Tensor) -> Tensor:
        """One for states of unit variance; ``1 / sqrt(sigma^2 + 1)`` for Euler's."""
        if not _is(scheduler, _NOISE_LEVELS):
            return torch.ones_like(t)
        return (1 + path.coefficients(t)[1].square()).rsqrt()

    def estimates(x: Tensor, out: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (expand_like(scale(t) * part, x) for part in path.coefficients(t))
        return formula(x, out, alpha, sigma)

    continuous = isinstance(path, VarianceExploding)
    model_time: Callable[[Tensor], Tensor] = (lambda t: t.log() / 4) if continuous else (lambda t: t)
    return Meaning(path, scale, model_time, estimates, predicts_noise=formula is _of_noise)


def _of_flow(x: Tensor, out: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``out = noise - data``."""
    t = expand_like(t, x)
    return x - t * out, x + (1 - t) * out


def _of_edm(x: Tensor, out: Tensor, t: Tensor, *, sigma_data: float, sign: float) -> tuple[Tensor, Tensor]:
    """EDM's preconditioning, of the scaled state ``x``."""
    skip, factor, into = (expand_like(part, x) for part in edm_scalings(t, sigma_data=sigma_data))
    z = x / into
    data = skip * z + sign * factor * out
    return data, (z - data) / expand_like(t, x)


_EDM_SIGNS = {"epsilon": 1.0, "v_prediction": -1.0}


def _of_noise(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    return (x - sigma * out) / alpha, out


def _of_v(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    return alpha * x - sigma * out, sigma * x + alpha * out


def _of_data(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    return out, (x - alpha * out) / sigma


_FORMULAS = {"epsilon": _of_noise, "v_prediction": _of_v, "sample": _of_data}
"""What the output means on states of unit variance."""
