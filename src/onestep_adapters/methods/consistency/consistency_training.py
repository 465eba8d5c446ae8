"""Consistency training (iCT): a network is its own target, between two noise levels of one pair."""

from functools import partial
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draws, states_at
from onestep_adapters.methods.linear_path import one_evaluation
from onestep_adapters.methods.method import Context, Loss, Method
from onestep_adapters.methods.options import PAPER_SIGMA_DATA, Training
from onestep_adapters.methods.presets import IMAGE_NETWORK, IMAGE_TRAINING, POINT_NETWORK, Preset
from onestep_adapters.networks import as_velocity
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
from onestep_core.validators import count, not_negative, positive


@attrs.frozen
class ConsistencyTraining(Method):
    """iCT: a grid of noise levels that doubles, the network itself as target, a pseudo-Huber distance over ``t -
    m``."""

    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data. The noise levels below are for data of 0.5 and scale with it."""
    sigma_min: float = attrs.field(default=0.002, validator=positive)
    """Smallest noise level, where the function is the identity. Paper: 0.002."""
    sigma_max: float = attrs.field(default=80.0, validator=positive)
    """Largest noise level, where sampling starts. Paper: 80."""
    initial_intervals: int = attrs.field(default=10, validator=positive)
    """Intervals of the noise grid at the start of the training. Paper: 10."""
    final_intervals: int = attrs.field(default=1280, validator=positive)
    """Intervals of the noise grid at the end; the number doubles in between. Paper: 1280."""
    log_noise_mean: float = -1.1
    """Mean of the logarithm of the noise levels. Paper: -1.1."""
    log_noise_std: float = attrs.field(default=2.0, validator=positive)
    """Standard deviation of the logarithm of the noise levels. Paper: 2."""
    distance: Literal["pseudo-huber", "squared"] = "pseudo-huber"
    """Distance of the two answers. pseudo-huber (paper): close to the Euclidean norm. squared: minimised by the
    mean."""
    huber_constant: float = attrs.field(default=0.00054, validator=positive)
    """Constant of the pseudo-Huber distance, times the square root of the dimension. Paper: 0.00054."""
    weight_power: float = attrs.field(default=1.0, validator=not_negative)
    """Exponent p of the weight 1 / (t - m)^p, with t - m the difference of noise levels. Paper: 1; 0: no weight."""
    target: Literal["online", "average"] = "online"
    """Network that gives the target: online, the one in training (paper), or average, its moving average."""
    stable_targets: int = attrs.field(default=0, validator=count)
    """Data samples drawn beside each batch, for second states with lower variance. 0: off (paper)."""
    coupling: Coupling = "independent"
    """Which noise belongs to which data: independent (paper), optimal (nearest within a batch), or precomputed (nearest
    among many pairs)."""

    def __attrs_post_init__(self) -> None:
        if not (self.initial_intervals <= self.final_intervals and self.sigma_min < self.sigma_max):
            raise ConfigError(
                f"intervals from {self.initial_intervals} to {self.final_intervals} between noise levels "
                f"{self.sigma_min} and {self.sigma_max}: expected initial_intervals <= final_intervals and "
                "sigma_min < sigma_max"
            )

    @property
    def calls(self) -> int:
        """Network evaluations in one update: prediction and target."""
        return 2

    @property
    def path(self) -> VarianceExploding:
        """The path; time is the noise level."""
        return VarianceExploding(self.sigma_min * self.unit, self.sigma_max * self.unit)

    @property
    def unit(self) -> float:
        """Factor of the paper's noise levels."""
        return self.sigma_data / PAPER_SIGMA_DATA

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The raw network of scaled states and noise levels."""
        return self.network.build(data, 1, generator)

    def function(self, network: nn.Module, labels: Tensor | None) -> ConsistencyFunction:
        """The network as a consistency function of noise levels."""
        raw = as_velocity(network, label=labels)

        def conditioned(x: Tensor, sigma: Tensor, /) -> Tensor:
            return raw(x, log_noise(sigma / self.unit))

        return consistency(conditioned, sigma_data=self.sigma_data, sigma_min=self.path.sigma_min)

    def prepare(self, context: Context) -> Draws:
        """The pairs, coupled if asked for."""
        seed = self.training.seed
        return Draws(context.data, self.coupling, further=self.stable_targets, seed=seed, track=context.track)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted distance of the answers at two noise levels; ``raw`` is the distance without weight."""
        path, total = self.path, max(self.training.steps, (self.final_intervals // self.initial_intervals).bit_length())
        drawn = context.prepared(self.training.batch, generator)
        points = doubling_points(
            context.state.step, total=total, start=self.initial_intervals, end=self.final_intervals
        )
        levels = karras_grid(points, sigma_min=self.sigma_min, sigma_max=self.sigma_max, device=generator.device)[:-1]
        uniform = torch.rand(self.training.batch, generator=generator, device=generator.device)
        index = discretized_log_normal(uniform, levels, mean=self.log_noise_mean, std=self.log_noise_std)
        t, m = self.unit * levels[index], self.unit * levels[index + 1]
        online = self.function(network, drawn.labels)
        target = online if self.target == "online" else self.function(context.state.ema, drawn.labels)
        pair = consistency_regression(online, target, *states_at(drawn, t, m, path=path), t, m)
        width = self.unit * self.huber_constant * torch.Size(context.data.shape).numel() ** 0.5
        distance = squared_l2 if self.distance == "squared" else partial(pseudo_huber, c=width)
        raw = distance(*pair)
        return (raw * inverse_duration(t, m, power=self.weight_power)).mean(), {"raw": raw.mean()}

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one evaluation at the largest noise level."""
        return one_evaluation(self.function(network, labels), noise, path=self.path)


PRESETS = (
    Preset(
        "consistency-training",
        "consistency between two noise levels of a pair (iCT), one step",
        ConsistencyTraining(IMAGE_TRAINING, IMAGE_NETWORK, sigma_data=0.75, coupling="precomputed"),
        ConsistencyTraining(
            Training(steps=6000, batch=256, learning_rate=2e-3),
            POINT_NETWORK,
            sigma_data=1.2,
            sigma_max=20.0,
            initial_intervals=8,
            final_intervals=12,
            log_noise_mean=0.0,
            huber_constant=0.02,
            weight_power=0.0,
            target="average",
            coupling="precomputed",
        ),
        "Images: iCT's numbers, noise levels scaled to the data, coupled pairs. From random weights and with so few "
        "updates, samples do not always show the class that was asked for, and are too far from the data (density "
        "below 0.8). Points: iCT's numbers do not converge in so few updates. Used instead: few intervals and the "
        "moving average as target (the first consistency training), coupled pairs, and a larger pseudo-Huber "
        "constant; with a squared distance samples lie between the modes.",
    ),
)
