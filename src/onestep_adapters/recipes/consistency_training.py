"""Consistency training: a network is its own target, between two noise levels of one pair."""

from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.draws import Coupling, draw, states_at
from onestep_adapters.recipes.options import PUBLISHED_SIGMA_DATA, Network, Training, not_negative, positive
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import one_evaluation
from onestep_adapters.training import LossStep
from onestep_core import (
    VarianceExploding,
    consistency,
    consistency_regression,
    discretized_log_normal,
    doubling_points,
    inverse_duration,
    karras_grid,
    log_noise,
    pseudo_huber,
    squared_l2,
)
from onestep_core.errors import ConfigError
from onestep_core.protocols import ConsistencyFunction


@attrs.frozen
class ConsistencyTraining:
    """iCT: a grid of noise levels that doubles, its own target, a pseudo-Huber distance over ``t - m``."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data. All numbers of noise below are for data of 0.5 and scale with it."""
    sigma_min: float = attrs.field(default=0.002, validator=positive)
    """Noise level at which the function is the identity."""
    sigma_max: float = attrs.field(default=80.0, validator=positive)
    """Noise level from which samples are made."""
    first: int = attrs.field(default=10, validator=positive)
    """Intervals of the grid at first."""
    last: int = attrs.field(default=1280, validator=positive)
    """Intervals of the grid at last."""
    mean: float = -1.1
    """Of the logarithm of the noise levels."""
    std: float = attrs.field(default=2.0, validator=positive)
    """Of the logarithm of the noise levels."""
    distance: Literal["pseudo-huber", "squared"] = "pseudo-huber"
    """pseudo-huber, as published, is a norm almost everywhere; squared has the mean as its minimiser."""
    huber: float = attrs.field(default=0.00054, validator=positive)
    """The pseudo-Huber constant, in units of the square root of the dimension."""
    weight_power: float = attrs.field(default=1.0, validator=not_negative)
    """Of the weight ``(t - m)^-power``: 1, as published, spends most on small noise, 0 is none."""
    target: Literal["online", "average"] = "online"
    """Whose answer at the second state is the target: the network's own, as published, or its moving average's."""
    references: int = attrs.field(default=0, validator=not_negative)
    """Further data in an update, by which the pairs' second states become less random; 0, as published, for none."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""

    def __attrs_post_init__(self) -> None:
        if not (self.first <= self.last and self.sigma_min < self.sigma_max):
            raise ConfigError(
                f"intervals from {self.first} to {self.last} between noise levels {self.sigma_min} and "
                f"{self.sigma_max}: expected first <= last and sigma_min < sigma_max"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: prediction and target."""
        return 2

    @property
    def path(self) -> VarianceExploding:
        """The path: time is the noise level."""
        return VarianceExploding(self.sigma_min * self.unit, self.sigma_max * self.unit)

    @property
    def unit(self) -> float:
        """What the published noise levels are multiplied by."""
        return self.sigma_data / PUBLISHED_SIGMA_DATA

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The raw network of scaled states and noise levels."""
        return self.network.build(problem, 1, generator)

    def function(self, network: nn.Module, labels: Tensor | None) -> ConsistencyFunction:
        """The network as a consistency function of noise levels."""
        raw = as_velocity(network, label=labels)

        def conditioned(x: Tensor, sigma: Tensor, /) -> Tensor:
            return raw(x, log_noise(sigma / self.unit))

        return consistency(conditioned, sigma_data=self.sigma_data, sigma_min=self.path.sigma_min)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path, steps = self.path, max(self.training.steps, (self.last // self.first).bit_length())
        width = self.unit * self.huber * torch.Size(setting.problem.shape).numel() ** 0.5
        distance = squared_l2 if self.distance == "squared" else partial(pseudo_huber, c=width)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            drawn = draw(
                setting.problem, self.training.batch, generator, references=self.references, coupling=self.coupling
            )
            points = doubling_points(setting.state.step, total=steps, start=self.first, end=self.last)
            levels = karras_grid(points, sigma_min=self.sigma_min, sigma_max=self.sigma_max)[:-1]
            uniform = torch.rand(self.training.batch, generator=generator)
            index = discretized_log_normal(uniform, levels, mean=self.mean, std=self.std)
            t, m = self.unit * levels[index], self.unit * levels[index + 1]
            online = self.function(network, drawn.labels)
            target = online if self.target == "online" else self.function(setting.state.ema, drawn.labels)
            pair = consistency_regression(online, target, *states_at(drawn, t, m, path=path), t, m)
            raw = distance(*pair)
            return (raw * inverse_duration(t, m, power=self.weight_power)).mean(), {"raw": raw.mean()}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_evaluation(self.function(network, labels), noise, path=self.path)
