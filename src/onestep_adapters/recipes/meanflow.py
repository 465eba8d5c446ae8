"""MeanFlow: the average velocity, sampled in one evaluation."""

from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.anchored import Anchored
from onestep_adapters.recipes.flow_matching import mixed_times
from onestep_adapters.recipes.options import Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.samplers import one_step
from onestep_adapters.training import LossStep
from onestep_core import (
    Linear,
    adaptive,
    flow_matching_regression,
    frozen_value,
    instantaneous,
    meanflow_regression,
    ordered,
    squared_l2,
    stay_where,
)


@attrs.frozen
class MeanFlow:
    """Regress the average velocity onto its own identity; sample by one jump."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    moving: float = attrs.field(default=0.75, validator=share)
    """Share of the pairs with s != t, the first of each batch; the others are flow matching. Released: 0.25 (JAX)."""
    anchor: float = attrs.field(default=0.5, validator=share)
    """Share of the training, at its start, in which no pair moves: flow matching, without a derivative."""
    velocity: Literal["own", "pair"] = "own"
    """In the second phase: that of the network at the end of the first, frozen, or as published that of the pair."""
    uniform_share: float = attrs.field(default=1.0, validator=share)
    """Share of training times that are uniform; the others are logit-normal."""
    mean: float = 0.0
    """Of the logit of those others; released: -0.4."""
    power: float = attrs.field(default=0.0, validator=not_negative)
    """Exponent of the adaptive weight on the summed squared distance: 1 as released (JAX), 0 for none."""
    epsilon: float = attrs.field(default=0.01, validator=positive)
    """Added to the loss inside that weight."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> float:
        """Forward passes in an update, on average: the value; later the forward-mode pass, and the anchor's."""
        anchored = round(self.anchor * self.training.steps) / self.training.steps
        return anchored + (1 - anchored) * (3 if self.velocity == "own" else 2)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The average-velocity network, with room for the anchor where there is one."""
        network = self.network.build(problem, 2, generator)
        return Anchored(network) if self.velocity == "own" else network

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path, dimension = Linear(), float(torch.Size(setting.problem.shape).numel())
        count, anchored = self.training.batch, round(self.anchor * self.training.steps)
        moving = round(self.moving * count)

        def times(generator: torch.Generator) -> Tensor:
            return mixed_times(count, self.uniform_share, generator, mean=self.mean)

        def weighted(raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            if self.power == 0:
                return raw.mean() / dimension, {}
            return (raw * adaptive(raw, power=self.power, epsilon=self.epsilon)).mean(), {"raw": raw.mean() / dimension}

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            data, labels = setting.problem.batch(count, generator)
            noise = torch.randn(data.shape, generator=generator)
            average_velocity = as_average_velocity(network, label=labels)
            if setting.state.step < anchored:
                t = times(generator)
                z, v = path(data, noise, t)
                return weighted(squared_l2(*flow_matching_regression(instantaneous(average_velocity), z, v, t)))
            t, s = ordered(times(generator), times(generator))
            t, s = stay_where(t, s, torch.arange(count) >= moving)
            z, v = path(data, noise, t)
            if isinstance(network, Anchored):
                if setting.state.step == anchored:
                    network.drop_anchor(setting.state.ema.network)
                v = frozen_value(as_average_velocity(network.anchor, label=labels), z, t, t)
            return weighted(squared_l2(*meanflow_regression(average_velocity, z, v, t, s, moving=moving)))

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_step(as_average_velocity(network, label=labels), noise, path=Linear())
