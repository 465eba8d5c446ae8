"""MeanFlow: the average velocity, sampled in one evaluation."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.flow_matching import mixed_times
from onestep_adapters.recipes.options import Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.samplers import one_step
from onestep_adapters.training import LossStep
from onestep_core import Linear, adaptive, meanflow_regression, ordered, squared_l2, stay_where


@attrs.frozen
class MeanFlow:
    """Regress the average velocity onto its own identity; sample by one jump."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    moving: float = attrs.field(default=0.75, validator=share)
    """Share of the pairs with s != t, the first of each batch; the others are flow matching. Released: 0.25 (JAX)."""
    uniform_share: float = attrs.field(default=1.0, validator=share)
    """Share of training times that are uniform; the others are logit-normal(0, 1)."""
    power: float = attrs.field(default=0.0, validator=not_negative)
    """Exponent of the adaptive weight on the summed squared distance: 1 as released (JAX), 0 for none."""
    epsilon: float = attrs.field(default=0.01, validator=positive)
    """Added to the loss inside that weight."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes of the network in an update: the value, and the forward-mode pass."""
        return 2

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The average-velocity network."""
        return self.network.build(problem, 2, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path, dimension = Linear(), float(torch.Size(setting.problem.shape).numel())

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            data, labels = setting.problem.batch(self.training.batch, generator)
            noise = torch.randn(data.shape, generator=generator)
            count = len(data)
            t, s = ordered(*(mixed_times(count, self.uniform_share, generator) for _ in "ts"))
            moving = round(self.moving * count)
            t, s = stay_where(t, s, torch.arange(count) >= moving)
            z, v = path(data, noise, t)
            average_velocity = as_average_velocity(network, label=labels)
            pair = meanflow_regression(average_velocity, z, v, t, s, moving=moving)
            raw = squared_l2(*pair)
            if self.power == 0:
                return raw.mean() / dimension, {}
            return (raw * adaptive(raw, power=self.power, epsilon=self.epsilon)).mean(), {"raw": raw.mean() / dimension}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_step(as_average_velocity(network, label=labels), noise, path=Linear())
