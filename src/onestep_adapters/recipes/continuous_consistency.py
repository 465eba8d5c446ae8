"""Continuous-time consistency (sCM): the limit of consistency training, on the trigonometric path."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.draws import Coupling, draw, velocity_at
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import PUBLISHED_SIGMA_DATA, Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import PATH, one_evaluation
from onestep_adapters.recipes.students import required_teacher, start_from_teacher
from onestep_adapters.training import LossStep
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


@attrs.frozen
class ContinuousConsistency:
    """sCM: the network moves along the tangent of its own consistency function, with a teacher or without."""

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching | None = None
    """What to start from, as published; ``None``: from scratch."""
    distilled: bool = False
    """Whether the teacher's velocity takes the place of the pair's (sCD); otherwise (sCT) it lends its weights."""
    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data, and of the noise beside it."""
    mean: float = -1.0
    """Of the logarithm of the noise levels ``sigma_data tan t`` for data of 0.5; they scale with sigma_data."""
    std: float = attrs.field(default=1.4, validator=positive)
    """Of the logarithm of the noise levels."""
    ramp: float = attrs.field(default=0.1, validator=share)
    """Share of the training in which the tangent's second part grows to its full size."""
    normalized: bool = True
    """Whether tangents get length one, as published. Where there is no teacher that moves the minimiser."""
    prior_weight: bool = True
    """Whether the loss has the published weight ``1 / (sigma_data tan t)``."""
    references: int = attrs.field(default=0, validator=not_negative)
    """Further data in an update, by which the pairs' velocities become less random; 0, as published, for none."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""

    def __attrs_post_init__(self) -> None:
        if self.distilled and self.teacher is None:
            raise ConfigError(
                "distilled without a teacher: give the options of one, or distilled = False (--no-distilled) to learn "
                "from the data alone"
            )
        if self.distilled and self.references:
            raise ConfigError(
                f"references = {self.references} beside a teacher's velocity, which has no pair's in it: choose one"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: the value, the forward-mode pass and, for its velocity, the teacher."""
        return 2 + self.distilled

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The network of states of unit variance and times."""
        return self.network.build(problem, 1, generator)

    def field(self, network: nn.Module, labels: Tensor | None) -> Velocity:
        """``F(z, t)``, the velocity in units of the data: the network, or a teacher's, which knows the linear path."""
        raw = as_velocity(network, label=labels)
        if self.teacher is None:
            return lambda z, t, /: raw(z / self.sigma_data, t)
        velocity = velocity_on_path(raw, source=PATH, target=self.path)
        return lambda z, t, /: velocity(z, t) / self.sigma_data

    @property
    def path(self) -> Trigonometric:
        """With noise as wide as the data."""
        return Trigonometric(self.sigma_data)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path = self.path
        ramp = max(1, round(self.ramp * self.training.steps))
        if self.teacher is not None:
            start_from_teacher(setting)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            drawn = draw(
                setting.problem, self.training.batch, generator, references=self.references, coupling=self.coupling
            )
            normal = torch.randn(self.training.batch, generator=generator)
            sigma = log_normal_times(normal, mean=self.mean, std=self.std) * (self.sigma_data / PUBLISHED_SIGMA_DATA)
            t = trigflow_time(sigma, sigma_data=self.sigma_data)
            z, v = velocity_at(drawn, t, path=path)
            if self.distilled:
                with torch.no_grad():
                    v = self.sigma_data * self.field(required_teacher(setting), drawn.labels)(z, t)
            pair = continuous_consistency_regression(
                self.field(network, drawn.labels),
                z,
                v,
                t,
                sigma_data=self.sigma_data,
                warmup=tangent_warmup(setting.state.step, iterations=ramp),
                normalize=normalize_tangent if self.normalized else None,
            )
            raw = mse(*pair)
            weight = snr(t, path=path).sqrt() if self.prior_weight else 1.0
            return (raw * weight).mean(), {"raw": raw.mean()}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        path = self.path
        function = trigflow(self.field(network, labels), sigma_data=self.sigma_data)
        return one_evaluation(function, noise, path=path)
