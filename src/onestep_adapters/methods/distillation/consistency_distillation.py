"""Consistency distillation (CD): a teacher's solver computes the second state; both states map to the same data."""

from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset, Draws
from onestep_adapters.methods.few_steps import even_times, noised_again
from onestep_adapters.methods.flow_matching import COUPLED_IMAGE_TEACHER, COUPLED_POINT_TEACHER, Distillation
from onestep_adapters.methods.linear_path import PATH, one_evaluation, solved, straight_consistency
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import DISTANCES, Distance
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    LONG_POINT_TRAINING,
    POINT_NETWORK,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.students import start_from_teacher
from onestep_core import consistency_regression, progressive_times, uniform_levels
from onestep_core.validators import positive_count


@attrs.frozen
class ConsistencyDistillation(Distillation):
    """CD: the teacher's Heun step between neighbours of a grid of times; the moving average gives the target."""

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"
    few_steps: ClassVar[bool] = True

    intervals: int = attrs.field(default=18, validator=positive_count)
    """Intervals of the uniform grid of times on which the teacher makes its steps. More: smaller error, slower
    learning. Paper: 18 noise levels of EDM, which are 17 intervals."""
    solver_steps: int = attrs.field(default=1, validator=positive_count)
    """Heun steps of the teacher in one interval; each needs two evaluations. Paper: 1."""
    target: Literal["average", "online"] = "average"
    """Network that gives the target, without gradient. average: moving average of the weights with the decay --ema
    (paper). online: the current weights."""
    distance: Distance = "squared"
    """Distance between the network's outputs at the two times. squared: minimised by the mean of possible targets. l2:
    Euclidean, not squared; sharper."""

    @property
    def calls(self) -> int:
        """Network evaluations in one update: prediction, target, and two of the teacher per solver step."""
        return 2 + 2 * self.solver_steps

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """A velocity network."""
        return self.network.build(data, 1, generator)

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights; independent pairs."""
        start_from_teacher(context)
        return context.draws()

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Distance of the outputs at two neighbouring times."""
        data, noise, labels, _ = context.prepared(self.training.batch, generator)
        index = torch.randint(self.intervals, (len(data),), generator=generator, device=generator.device)
        t, _, m = progressive_times(index, self.intervals, levels=lambda fraction: uniform_levels(fraction, path=PATH))
        z = PATH(data, noise, t).z
        z_m = solved(context.required_teacher().velocity(labels), z, t, m, steps=self.solver_steps)
        online = straight_consistency(network, labels)
        target = online if self.target == "online" else straight_consistency(context.state.ema, labels)
        return DISTANCES[self.distance](*consistency_regression(online, target, z, z_m, t, m)).mean(), {}

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one evaluation at the noise end."""
        return one_evaluation(straight_consistency(network, labels), noise, path=PATH)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by evaluations at falling times, with fresh noise between them."""
        times = even_times(PATH, evaluations)
        return noised_again(straight_consistency(network, labels), noise, path=PATH, times=times)


PRESETS = (
    Preset(
        "consistency-distillation",
        "consistency distillation (CD) along a teacher's trajectories",
        ConsistencyDistillation(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, COUPLED_IMAGE_TEACHER, intervals=8, distance="l2"),
        ConsistencyDistillation(LONG_POINT_TRAINING, POINT_NETWORK, COUPLED_POINT_TEACHER, intervals=8),
        "Eight intervals with the moving average as target; the network itself as target over eighteen intervals "
        "was far worse. The teacher learned coupled pairs. Images: the Euclidean norm, as in reflow.",
    ),
)
