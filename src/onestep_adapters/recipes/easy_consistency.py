"""Easy consistency tuning: consistency training that starts from a diffusion model and closes the gap in stages."""

from functools import partial
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.recipes.draws import Coupling, Draw, draw, states_at
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import PUBLISHED_SIGMA_DATA, Network, Training, not_negative, positive
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import PATH, one_evaluation, straight_consistency
from onestep_adapters.recipes.students import start_from_teacher
from onestep_adapters.training import LossStep
from onestep_core import (
    consistency_regression,
    ect_ratio,
    ect_times,
    inverse_duration,
    l2,
    log_normal_times,
    pseudo_huber,
    squared_l2,
)
from onestep_core.protocols import ConsistencyFunction


@attrs.frozen
class EasyConsistency:
    """ECT: the network starts from the teacher's denoiser, and ``m`` comes nearer to ``t`` stage by stage.

    Noise levels are drawn and paired as published; the states are those of the linear path with the same
    signal-to-noise ratio, ``z / (1 + sigma)``, for which the teacher was trained.
    """

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """What to start from; its network is the student's. Nothing else is learnt from it."""
    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data. All numbers of noise below are for data of 0.5 and scale with it."""
    stages: int = attrs.field(default=8, validator=positive)
    """Stages of equal length; stage ``k`` has ``m = t (1 - factor^-(k+1) ...)``."""
    factor: float = attrs.field(default=2.0, validator=positive)
    """How much nearer ``m`` comes from stage to stage, above 1."""
    amplitude: float = attrs.field(default=8.0, validator=not_negative)
    """How much wider the gap is at small noise levels."""
    mean: float = -1.1
    """Of the logarithm of the noise levels."""
    std: float = attrs.field(default=2.0, validator=positive)
    """Of the logarithm of the noise levels."""
    distance: Literal["l2", "pseudo-huber", "squared"] = "l2"
    """l2 is the released one; squared has the mean as its minimiser."""
    huber: float = attrs.field(default=0.06, validator=positive)
    """The pseudo-Huber constant."""
    weight_power: float = attrs.field(default=1.0, validator=not_negative)
    """Of the weight ``(t - m)^-power``: 1, as published, spends most on small noise, 0 is none."""
    target: Literal["online", "average"] = "online"
    """Whose answer at the second state is the target: the network's own, as published, or its moving average's."""
    references: int = attrs.field(default=0, validator=not_negative)
    """Further data in an update, by which the pairs' second states become less random; 0, as published, for none."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: prediction and target."""
        return 2

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A velocity network."""
        return self.network.build(problem, 1, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        start_from_teacher(setting)
        return self.tuning(setting, self.training.steps)

    def tuning(self, setting: Setting, steps: int) -> LossStep:
        """The stages, spread over ``steps`` updates."""

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            drawn = draw(
                setting.problem, self.training.batch, generator, references=self.references, coupling=self.coupling
            )
            sigma = log_normal_times(
                torch.randn(self.training.batch, generator=generator), mean=self.mean, std=self.std
            )
            nearer = self.nearer(sigma, setting.state.step * self.stages // steps)
            online = straight_consistency(network, drawn.labels)
            target = online if self.target == "online" else straight_consistency(setting.state.ema, drawn.labels)
            raw, weight = self.compared(online, target, drawn, sigma, nearer)
            return (raw * weight).mean(), {"raw": raw.mean()}

        return loss

    def nearer(self, sigma: Tensor, stage: int) -> Tensor:
        """The second noise levels of a stage, ``[batch]``."""
        return ect_times(sigma, ratio=ect_ratio(stage, factor=self.factor), amplitude=self.amplitude)

    def compared(
        self, online: ConsistencyFunction, target: ConsistencyFunction, drawn: Draw, sigma: Tensor, nearer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Distances of the answers at two noise levels of each pair, and their weights, ``[batch]``."""
        distances = {"l2": l2, "pseudo-huber": partial(pseudo_huber, c=self.unit * self.huber), "squared": squared_l2}
        t, m = self.time(sigma), self.time(nearer)
        pair = consistency_regression(online, target, *states_at(drawn, t, m, path=PATH), t, m, end=PATH.data_time)
        return distances[self.distance](*pair), inverse_duration(sigma, nearer, power=self.weight_power)

    def time(self, sigma: Tensor) -> Tensor:
        """Where the linear path has the signal-to-noise ratio of a noise level."""
        return PATH.time_at(self.unit * sigma)

    @property
    def unit(self) -> float:
        """The data's standard deviation over the published one."""
        return self.sigma_data / PUBLISHED_SIGMA_DATA

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_evaluation(straight_consistency(network, labels), noise, path=PATH)
