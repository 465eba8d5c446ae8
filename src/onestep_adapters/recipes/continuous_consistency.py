"""Continuous-time consistency (sCM): the limit of consistency training, on the trigonometric path."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.draws import Coupling, draw, velocity_at
from onestep_adapters.recipes.options import PUBLISHED_SIGMA_DATA, Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import one_evaluation
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
)
from onestep_core.protocols import Velocity


@attrs.frozen
class ContinuousConsistency:
    """sCT: the network moves along the tangent of its own consistency function; no teacher."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data, and of the noise beside it."""
    mean: float = -1.0
    """Of the logarithm of the noise levels ``sigma_data tan t`` for data of 0.5; they scale with sigma_data."""
    std: float = attrs.field(default=1.4, validator=positive)
    """Of the logarithm of the noise levels."""
    warmup: float = attrs.field(default=0.1, validator=share)
    """Share of the training in which the tangent's second part grows to its full size."""
    normalized: bool = True
    """Whether tangents get length one, as published. Where there is no teacher that moves the minimiser."""
    prior_weight: bool = True
    """Whether the loss has the published weight ``1 / (sigma_data tan t)``."""
    references: int = attrs.field(default=0, validator=not_negative)
    """Further data in an update, by which the pairs' velocities become less random; 0, as published, for none."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: the value, and the forward-mode pass."""
        return 2

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The network of states of unit variance and times."""
        return self.network.build(problem, 1, generator)

    def field(self, network: nn.Module, labels: Tensor | None) -> Velocity:
        """``F(z, t)``, the network of states in the units of the data."""
        raw = as_velocity(network, label=labels)

        def velocity(z: Tensor, t: Tensor, /) -> Tensor:
            return raw(z / self.sigma_data, t)

        return velocity

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path = Trigonometric(self.sigma_data)
        ramp = max(1, round(self.warmup * self.training.steps))

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            drawn = draw(
                setting.problem, self.training.batch, generator, references=self.references, coupling=self.coupling
            )
            normal = torch.randn(self.training.batch, generator=generator)
            sigma = log_normal_times(normal, mean=self.mean, std=self.std) * (self.sigma_data / PUBLISHED_SIGMA_DATA)
            t = trigflow_time(sigma, sigma_data=self.sigma_data)
            z, v = velocity_at(drawn, t, path=path)
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
        path = Trigonometric(self.sigma_data)
        function = trigflow(self.field(network, labels), sigma_data=self.sigma_data)
        return one_evaluation(function, noise, path=path)
