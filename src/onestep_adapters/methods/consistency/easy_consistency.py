"""Easy consistency tuning (ECT): consistency training that starts from a flow model and closes the gap in stages."""

from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draw, Draws, states_at
from onestep_adapters.methods.few_steps import even_times, noised_again
from onestep_adapters.methods.flow_matching import (
    COUPLED_POINT_TEACHER,
    IMAGE_TEACHER,
    Distillation,
)
from onestep_adapters.methods.linear_path import PATH, one_evaluation, straight_consistency
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import PAPER_SIGMA_DATA
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    LONG_POINT_TRAINING,
    POINT_NETWORK,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.students import start_from_teacher
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
from onestep_core.validators import count, not_negative, positive, positive_count


@attrs.frozen
class EasyConsistency(Distillation):
    """ECT: the network starts from the teacher's denoiser, and ``m`` moves towards ``t`` stage by stage.

    Noise levels are drawn and paired as in the paper. The states are those of the linear path with the same
    signal-to-noise ratio, ``z / (1 + sigma)``, for which the teacher was trained.
    """

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"
    few_steps: ClassVar[bool] = True

    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data. All noise levels below are given for 0.5, as in EDM, and are multiplied by
    sigma_data / 0.5."""
    gap_stages: int = attrs.field(default=8, validator=positive_count)
    """Number of equal parts of the training (TCM: of its first stage); in each the distance t - m of the two noise
    levels is smaller. Code: 8."""
    stage_factor: float = attrs.field(default=2.0, validator=positive)
    """Factor q, above 1, by which (t - m) / t shrinks from part to part: it is q^-n in part n = 1, 2, ..., before
    --gap-amplitude. Code: 2."""
    gap_amplitude: float = attrs.field(default=8.0, validator=not_negative)
    """k of ECT: the relative distance (t - m) / t is multiplied by 1 + k sigmoid(-noise level), and is at most 1;
    the noise level at sigma_data 0.5. Larger: a larger distance at small noise. 0: the same at every noise level.
    Code: 8."""
    log_noise_mean: float = -1.1
    """Mean of ln(noise level), at sigma_data 0.5. iCT and ECT: -1.1."""
    log_noise_std: float = attrs.field(default=2.0, validator=positive)
    """Standard deviation of ln(noise level). iCT and ECT: 2."""
    distance: Literal["l2", "pseudo-huber", "squared"] = "l2"
    """Distance between the network's outputs at the two noise levels. l2 (code): Euclidean, not squared. squared:
    minimised by the mean of possible targets. pseudo-huber: Euclidean for large errors, squared for small ones."""
    huber_constant: float = attrs.field(default=0.06, validator=positive)
    """c of the pseudo-Huber distance, not divided by sqrt(dimension) as in consistency-training; only with --distance
    pseudo-huber."""
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

    @property
    def calls(self) -> int:
        """Network evaluations in one update: prediction and target."""
        return 2

    @property
    def unit(self) -> float:
        """Factor of the paper's noise levels."""
        return self.sigma_data / PAPER_SIGMA_DATA

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """A velocity network."""
        return self.network.build(data, 1, generator)

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights; the pairs."""
        start_from_teacher(context)
        return self.draws(context)

    def draws(self, context: Context) -> Draws:
        """How a batch of pairs is drawn."""
        return context.draws(self.coupling, further=self.stable_targets)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted distance of the outputs at two noise levels; ``raw`` is the distance without weight."""
        return self.tuning(context, network, generator, self.training.steps)

    def tuning(self, context: Context, network: nn.Module, generator: torch.Generator, steps: int) -> Loss:
        """The loss, with the stages spread over ``steps`` updates."""
        drawn = context.prepared(self.training.batch, generator)
        normal = torch.randn(self.training.batch, generator=generator, device=generator.device)
        sigma = log_normal_times(normal, mean=self.log_noise_mean, std=self.log_noise_std)
        second = self.second_level(sigma, context.state.step * self.gap_stages // steps)
        online = straight_consistency(network, drawn.labels)
        target = online if self.target == "online" else straight_consistency(context.state.ema, drawn.labels)
        raw, weight = self.compared(online, target, drawn, sigma, second)
        return (raw * weight).mean(), {"raw": raw.mean()}

    def second_level(self, sigma: Tensor, stage: int) -> Tensor:
        """The second noise levels of a stage, ``[batch]``."""
        return ect_times(sigma, ratio=ect_ratio(stage, factor=self.stage_factor), amplitude=self.gap_amplitude)

    def compared(
        self, online: ConsistencyFunction, target: ConsistencyFunction, drawn: Draw, sigma: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Distances of the outputs at two noise levels of each pair, and their weights, ``[batch]``."""
        huber = partial(pseudo_huber, c=self.unit * self.huber_constant)
        distances = {"l2": l2, "pseudo-huber": huber, "squared": squared_l2}
        t, m = self.time(sigma), self.time(second)
        pair = consistency_regression(online, target, *states_at(drawn, t, m, path=PATH), t, m, end=PATH.data_time)
        return distances[self.distance](*pair), inverse_duration(sigma, second, power=self.weight_power)

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which the linear path has the signal-to-noise ratio of a noise level."""
        return PATH.time_at(self.unit * sigma)

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one evaluation at the noise end."""
        return one_evaluation(straight_consistency(network, labels), noise, path=PATH)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by evaluations at falling times, with fresh noise between them."""
        times = even_times(PATH, evaluations)
        return noised_again(straight_consistency(network, labels), noise, path=PATH, times=times)


PRESETS = (
    Preset(
        "easy-consistency",
        "easy consistency tuning (ECT): starts from a trained flow-matching model",
        EasyConsistency(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, IMAGE_TEACHER, sigma_data=0.75, coupling="precomputed"),
        EasyConsistency(LONG_POINT_TRAINING, POINT_NETWORK, COUPLED_POINT_TEACHER, coupling="optimal"),
        "Starts from the teacher's weights; numbers of the released code, coupled pairs.",
    ),
)
