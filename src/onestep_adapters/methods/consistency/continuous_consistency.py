"""Continuous-time consistency (sCM): the limit of consistency training, on the trigonometric path."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draws, velocity_at
from onestep_adapters.methods.few_steps import even_times, noised_again
from onestep_adapters.methods.flow_matching import COUPLED_POINT_TEACHER, IMAGE_TEACHER, FlowMatching
from onestep_adapters.methods.linear_path import PATH, one_evaluation
from onestep_adapters.methods.method import Context, Loss, Method
from onestep_adapters.methods.options import PAPER_SIGMA_DATA, Training
from onestep_adapters.methods.presets import IMAGE_TRAINING, POINT_NETWORK, WIDE_IMAGE_NETWORK, Preset
from onestep_adapters.methods.students import start_from_teacher
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_velocity
from onestep_core import (
    Trigonometric,
    continuous_consistency_regression,
    log_normal_times,
    mse,
    normalize_tangent,
    snr,
    tangent_warmup,
    trigflow,
    trigflow_time,
    velocity_on_path,
)
from onestep_core.errors import ConfigError
from onestep_core.protocols import Velocity
from onestep_core.validators import count, positive, share


@attrs.frozen
class ContinuousConsistency(Method):
    """sCM: the target uses the tangent of the network's own consistency function; with or without a teacher."""

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"
    few_steps: ClassVar[bool] = True

    teacher: FlowMatching | None = None  # type: ignore[misc]
    """Teacher whose weights the network starts from (paper). Type teacher:flow-matching or teacher:none (random
    weights) as the last argument; teacher:flow-matching --help lists its options."""
    teacher_from: str = ""  # type: ignore[misc]
    """Folder of a finished flow-matching run on the same data, to use as the teacher; it implies teacher:flow-matching,
    and the options --teacher.* are then not used."""
    distilled: bool = False
    """Use the teacher's velocity as the target (sCD); needs a teacher. Off: sCT, where the teacher only gives the
    initial weights."""
    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data and of the noise. Noise levels below are given for 0.5 and are multiplied by
    sigma_data / 0.5."""
    log_noise_mean: float = -1.0
    """Mean of ln(sigma_data tan t), at sigma_data 0.5; t is an angle here, 0 (data) to pi/2 (noise). Paper: -1 (sCT),
    -0.8 (sCD)."""
    log_noise_std: float = attrs.field(default=1.4, validator=positive)
    """Standard deviation of ln(sigma_data tan t). Paper: 1.4 (sCT), 1.6 (sCD)."""
    tangent_warmup_share: float = attrs.field(default=0.1, validator=share)
    """Fraction of the training in which the factor r of the tangent's unstable terms rises linearly from 0 to 1 (sCM).
    0: r is 1 from the start. Larger: a more stable start."""
    normalize_tangent: bool = True
    """Divide the tangent by its norm plus a constant (paper): more stable. With the noisy tangents of sCT it biases the
    solution."""
    prior_weight: bool = True
    """Use the paper's loss weight 1 / (sigma_data tan t). Off: weight 1."""
    stable_targets: int = attrs.field(default=0, validator=count)
    """Number of extra data samples in an update. The expected velocity given the state, over the batch and these
    samples, replaces the pair's velocity and has lower variance (stable target field,
    https://arxiv.org/abs/2302.00670). 0: off. Only with --coupling independent. A sample is averaged with
    samples of its own class."""
    coupling: Coupling = "independent"
    """Which noise is paired with which data sample. independent: random (papers). optimal: optimal-transport assignment
    within a batch and a class. precomputed: the same, made once before training over 65,536 pairs (images) or 32,768
    (points). The last two give straighter trajectories."""

    def __attrs_post_init__(self) -> None:
        if self.distilled and self.teacher is None:
            raise ConfigError(
                "distilled without a teacher: give the options of one, or distilled = False (--no-distilled) to learn "
                "from data alone"
            )
        if self.distilled and self.stable_targets:
            raise ConfigError(
                f"stable_targets = {self.stable_targets} with a teacher's velocity, which does not depend on pairs: "
                "choose one"
            )

    @property
    def calls(self) -> int:
        """Network evaluations in one update: value, tangent and, for its velocity, the teacher."""
        return 2 + self.distilled

    def work(self, step: int, data: Dataset) -> Work:
        """Value and tangent, and the teacher."""
        rows = self.training.batch
        return trained(rows) + Work(tangent=rows) + seen(self.distilled * rows)

    @property
    def path(self) -> Trigonometric:
        """The trigonometric path; the noise has the standard deviation of the data."""
        return Trigonometric(self.sigma_data)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The network as a function of states with unit variance and times."""
        return self.network.build(data, 1, generator)

    def scaled_velocity(self, network: nn.Module, labels: Tensor | None) -> Velocity:
        """``F(z, t)``, the velocity in units of the data. With a teacher the network predicts on the linear path."""
        raw = as_velocity(network, label=labels)
        if self.teacher is None:
            return lambda z, t, /: raw(z / self.sigma_data, t)
        return self._on_this_path(raw)

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights, if there is a teacher; the pairs."""
        if self.teacher is not None:
            start_from_teacher(context)
        return context.draws(self.coupling, further=self.stable_targets)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared error; ``raw`` is the error without weight."""
        path, ramp = self.path, max(1, round(self.tangent_warmup_share * self.training.steps))
        drawn = context.prepared(self.training.batch, generator)
        normal = torch.randn(self.training.batch, generator=generator, device=generator.device)
        sigma = log_normal_times(normal, mean=self.log_noise_mean, std=self.log_noise_std) * (
            self.sigma_data / PAPER_SIGMA_DATA
        )
        t = trigflow_time(sigma, sigma_data=self.sigma_data)
        z, v = velocity_at(drawn, t, path=path)
        if self.distilled:
            with torch.no_grad():
                teacher = self._on_this_path(context.required_teacher().velocity(drawn.labels))
                v = self.sigma_data * teacher(z, t)
        pair = continuous_consistency_regression(
            self.scaled_velocity(network, drawn.labels),
            z,
            v,
            t,
            sigma_data=self.sigma_data,
            warmup=tangent_warmup(context.state.step, iterations=ramp),
            normalize=normalize_tangent if self.normalize_tangent else None,
        )
        raw = mse(*pair)
        weight = snr(t, path=path).sqrt() if self.prior_weight else 1.0
        return (raw * weight).mean(), {"raw": raw.mean()}

    def _on_this_path(self, velocity: Velocity) -> Velocity:
        """A velocity on the linear path, converted to ``F(z, t)``."""
        moved = velocity_on_path(velocity, source=PATH, target=self.path)
        return lambda z, t, /: moved(z, t) / self.sigma_data

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one evaluation at the noise end."""
        function = trigflow(self.scaled_velocity(network, labels), sigma_data=self.sigma_data)
        return one_evaluation(function, noise, path=self.path)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by evaluations at falling times, with fresh noise between them."""
        function = trigflow(self.scaled_velocity(network, labels), sigma_data=self.sigma_data)
        return noised_again(function, noise, path=self.path, times=even_times(self.path, evaluations))


PRESETS = (
    Preset(
        "continuous-consistency",
        "continuous-time consistency (sCM): no step size",
        ContinuousConsistency(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, IMAGE_TEACHER, sigma_data=0.75),
        ContinuousConsistency(
            Training(steps=3500, batch=256, learning_rate=2e-3),
            POINT_NETWORK,
            COUPLED_POINT_TEACHER,
            distilled=True,
            sigma_data=1.2,
            log_noise_mean=0.0,
            log_noise_std=1.8,
        ),
        "Images: sCT from a teacher's weights, as in the paper; from random weights samples did not show the "
        "requested class. Points: sCD with more large noise levels. The same start with coupled pairs instead of "
        "the teacher's velocity leaves modes 25 % too wide, random weights 100 %.",
    ),
)
