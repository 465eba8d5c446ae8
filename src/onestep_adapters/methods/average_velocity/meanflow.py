"""MeanFlow: the average velocity, sampled in one evaluation; from data, or from a teacher's velocity."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset, Draws
from onestep_adapters.methods.average_velocity.jumps import EulerianMethod
from onestep_adapters.methods.flow_matching import COUPLED_IMAGE_TEACHER, COUPLED_POINT_TEACHER, FlowMatching
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.presets import (
    IMAGE_NETWORK,
    IMAGE_TRAINING,
    LONG_POINT_TRAINING,
    POINT_NETWORK,
    POINT_TRAINING,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.students import start_from_teacher
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_average_velocity
from onestep_core import drop_labels, guided_velocity, instantaneous, meanflow_regression, squared_l2
from onestep_core.errors import ConfigError
from onestep_core.validators import positive, share


@attrs.frozen
class MeanFlow(EulerianMethod):
    """Regress the average velocity onto the MeanFlow identity; sample by one jump."""

    objective: ClassVar[str] = "regression (average velocity)"
    ode: ClassVar[str] = "to train"

    teacher: FlowMatching | None = None  # type: ignore[misc]
    """Teacher whose velocity replaces that of the noise-data pair, and whose weights the network starts from (MeanFlow
    distillation). Type teacher:flow-matching or teacher:none (data alone, paper) as the last argument;
    teacher:flow-matching --help lists its options."""
    teacher_from: str = ""  # type: ignore[misc]
    """Folder of a finished flow-matching run on the same data, to use as the teacher; it implies teacher:flow-matching,
    and the options --teacher.* are then not used."""
    omega: float = attrs.field(default=1.0, validator=positive)
    """Guidance: the target is omega (noise - data) + kappa (own velocity with class) + (1 - omega - kappa) (own
    velocity without class); one evaluation then samples at guidance scale omega / (1 - kappa). 1 with kappa 0: no
    guidance. Above 0. Other values need classes, --label-dropout above 0 and no teacher."""
    kappa: float = attrs.field(default=0.0, validator=share)
    """Guidance: kappa in the formula of --omega, at least 0 and below 1."""
    label_dropout: float = attrs.field(default=0.0, validator=share)
    """Fraction of the labels replaced by "no class" in training, 0 to 1; needed for guidance. Paper: 0.1."""
    guidance_from: float = attrs.field(default=0.0, validator=share)
    """Smallest time t with guidance, 0 (data) to 1 (noise)."""
    guidance_to: float = attrs.field(default=1.0, validator=share)
    """Largest time t with guidance, 0 (data) to 1 (noise)."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.guidance_from > self.guidance_to:
            raise ConfigError(
                f"guidance_from = {self.guidance_from}, guidance_to = {self.guidance_to}: expected guidance_from <= "
                "guidance_to"
            )
        whole = (
            self.label_dropout > 0 and self.teacher is None and self.kappa < 1 and self.guidance_from < self.guidance_to
        )
        if self.guided and not whole:
            raise ConfigError(
                f"omega = {self.omega} and kappa = {self.kappa} with label_dropout = {self.label_dropout}, "
                f"{'a teacher' if self.teacher else 'no teacher'} and guided times from {self.guidance_from} to "
                f"{self.guidance_to}: guidance needs dropped labels (0.1, for example), data instead of a teacher, "
                "kappa below 1 and an interval of times"
            )

    @property
    def guided(self) -> bool:
        """Whether the target is guided."""
        return self.omega != 1 or self.kappa != 0

    @property
    def calls(self) -> int:
        """Network evaluations in one update: value, tangent, teacher, and guidance."""
        return 2 + (self.teacher is not None) + self.guided + (self.kappa != 0)

    def work(self, step: int, data: Dataset) -> Work:
        """The value of every pair, the tangent of the jumps, and what gives the velocity."""
        rows, others = self.training.batch, (self.teacher is not None) + self.guided + (self.kappa != 0)
        return trained(rows) + Work(tangent=self.jumps) + seen(others * rows)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The average-velocity network.

        Raises:
            ConfigError: if labels are dropped and the data have no classes.
        """
        if self.label_dropout and data.classes is None:
            raise ConfigError(
                f"label_dropout = {self.label_dropout} on {data.name}, which has no classes: guidance is for labelled "
                "data; give --label-dropout 0 --omega 1 --kappa 0"
            )
        return super().build(data, generator)

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights, if there is a teacher; the pairs."""
        if self.teacher is not None:
            start_from_teacher(context)
        return self.draws(context)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Weighted squared error of the average velocity; ``raw`` is the error without weight, per coordinate."""
        z, v, t, s, labels = self.drawn(context.prepared, generator)
        if self.teacher is not None:
            with torch.no_grad():
                v = context.required_teacher().velocity(labels)(z, t)
        classes = context.data.classes
        if self.label_dropout and labels is not None and classes is not None:
            null = torch.full_like(labels, classes)
            lost = torch.rand(len(labels), generator=generator, device=generator.device) < self.label_dropout
            labels = drop_labels(labels, classes, lost)
            v = self._guided(network, z, v, t, labels, null, active=~lost)
        average_velocity = as_average_velocity(network, label=labels)
        pair = meanflow_regression(average_velocity, z, v, t, s, moving=self.jumps)
        raw = squared_l2(*pair)
        return (raw * self.weight(raw, z)).mean(), {"raw": raw.detach().mean() / z[0].numel()}

    def _guided(
        self, network: nn.Module, z: Tensor, v: Tensor, t: Tensor, labels: Tensor, null: Tensor, *, active: Tensor
    ) -> Tensor:
        """The guided velocity for kept labels and times inside the interval; elsewhere that of the pair."""
        if not self.guided:
            return v
        with torch.no_grad():
            conditional = instantaneous(as_average_velocity(network, label=labels))(z, t) if self.kappa else None
            unconditional = instantaneous(as_average_velocity(network, label=null))(z, t)
        inside = (t >= self.guidance_from) & (t <= self.guidance_to)
        return guided_velocity(
            v, conditional, unconditional, omega=self.omega, kappa=self.kappa, active=active & inside
        )


_PAPER = {"adaptive_power": 1.0, "interval_share": 0.25, "uniform_share": 0.0, "time_mean": -0.4}

PRESETS = (
    Preset(
        "meanflow",
        "MeanFlow: average velocity, one step",
        MeanFlow(IMAGE_TRAINING, IMAGE_NETWORK, adaptive_power=0.5, coupling="precomputed"),
        MeanFlow(LONG_POINT_TRAINING, POINT_NETWORK, adaptive_power=0.5, coupling="precomputed"),
        "Learns from data alone. Images: an adaptive power of 0.5 with uniform times has the smallest energy "
        "distance on the validation split among the powers 0, 0.5 and 1 and the paper's times. The coupling of "
        "noise and data matters most: precomputed pairs leave a third of the energy distance of independent pairs. "
        "The remaining error: samples are too close to one another (density above 1). Points: the adaptive power "
        "matters most. Where noise can reach two modes, a squared error puts samples between them (2.5 % of all "
        "samples, which makes modes 20 % too wide); a distance closer to the first power does not.",
    ),
    Preset(
        "meanflow-distillation",
        "MeanFlow with a teacher's velocity in place of the pair's",
        MeanFlow(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, adaptive_power=0.5, teacher=COUPLED_IMAGE_TEACHER),
        MeanFlow(POINT_TRAINING, POINT_NETWORK, teacher=COUPLED_POINT_TEACHER),
        "The teacher's velocity replaces the pair's, and training starts from the teacher's weights; the teacher "
        "learned coupled pairs. Images: samples are as close to one another as MeanFlow's. Points: the teacher's "
        "flow is nearly straight, and this error is gone.",
    ),
    Preset(
        "meanflow-paper",
        "MeanFlow with the paper's loss weight, time distribution and fraction of jumps",
        MeanFlow(IMAGE_TRAINING, IMAGE_NETWORK, **_PAPER),
        MeanFlow(LONG_POINT_TRAINING, POINT_NETWORK, **_PAPER),
        "Paper settings, with the number of updates of meanflow. Reported even when worse.",
    ),
)
