"""Consistency training (iCT): the network gives its own target, at a second noise level of the same pair."""

from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draws, states_at
from onestep_adapters.methods.few_steps import noise_levels, noised_again
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
from onestep_core.validators import count, not_negative, positive, positive_count


@attrs.frozen
class ConsistencyTraining(Method):
    """iCT: a grid of noise levels that doubles, the network itself as target, a pseudo-Huber distance over ``t -
    m``."""

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"
    few_steps: ClassVar[bool] = True

    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data. All noise levels below are given for 0.5, as in EDM, and are multiplied by
    sigma_data / 0.5."""
    sigma_min: float = attrs.field(default=0.002, validator=positive)
    """Smallest noise level, where the consistency function is the identity, at sigma_data 0.5. Paper: 0.002."""
    sigma_max: float = attrs.field(default=80.0, validator=positive)
    """Largest noise level, where sampling starts, at sigma_data 0.5. Paper: 80."""
    initial_intervals: int = attrs.field(default=10, validator=positive_count)
    """Intervals of the noise-level grid at the start of training. Paper: 10."""
    final_intervals: int = attrs.field(default=1280, validator=positive_count)
    """Largest number of intervals; the number doubles at equal parts of the training up to this. Paper: 1280."""
    log_noise_mean: float = -1.1
    """Mean of ln(noise level), at sigma_data 0.5. iCT and ECT: -1.1."""
    log_noise_std: float = attrs.field(default=2.0, validator=positive)
    """Standard deviation of ln(noise level). iCT and ECT: 2."""
    distance: Literal["pseudo-huber", "squared"] = "pseudo-huber"
    """Distance between the network's outputs at the two noise levels. pseudo-huber (paper): Euclidean for large errors,
    squared for small ones. squared: minimised by the mean of possible targets."""
    huber_constant: float = attrs.field(default=0.00054, validator=positive)
    """c / sqrt(dimension) of the pseudo-Huber distance, above 0; only with --distance pseudo-huber. Larger: closer to
    the squared distance. Paper: 0.00054."""
    weight_power: float = attrs.field(default=1.0, validator=not_negative)
    """Exponent p of the loss weight 1 / (t - m)^p, where t > m are the two compared noise levels. 0: no weight. iCT and
    ECT: 1."""
    target: Literal["online", "average"] = "online"
    """Network that gives the target, without gradient. online: the current weights (iCT, ECT). average: their moving
    average with the decay --ema."""
    stable_targets: int = attrs.field(default=0, validator=count)
    """Number of extra data samples in an update, from which the less noisy state is computed with lower variance
    (stable target field, https://arxiv.org/abs/2302.00670). 0: off. Only with --coupling independent. A sample is
    averaged with samples of its own class."""
    coupling: Coupling = "independent"
    """Which noise is paired with which data sample. independent: random (papers). optimal: optimal-transport assignment
    within a batch and a class. precomputed: the same, made once before training over 65,536 pairs (images) or 32,768
    (points). The last two give straighter trajectories."""

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
        """Make the draws of training pairs, with the chosen coupling."""
        return context.draws(self.coupling, further=self.stable_targets)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted distance of the outputs at two noise levels; ``raw`` is the distance without weight."""
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

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by evaluations at falling noise levels, with fresh noise between them."""
        times = noise_levels(self.path, evaluations)
        return noised_again(self.function(network, labels), noise, path=self.path, times=times)


PRESETS = (
    Preset(
        "consistency-training",
        "consistency training (iCT) between two noise levels of the same data and noise",
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
        "updates, samples do not always show the requested class, and are too far from the data (density "
        "below 0.8). Points: iCT's numbers do not converge in so few updates. Used instead: few intervals and the "
        "moving average as target (the first consistency training), coupled pairs, and a larger pseudo-Huber "
        "constant; with a squared distance samples lie between the modes.",
    ),
)
