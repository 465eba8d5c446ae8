"""MeanFlow: the average velocity, sampled in one evaluation."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.jumps import EulerianRecipe
from onestep_adapters.recipes.options import positive, share
from onestep_adapters.recipes.problems import DIGITS, Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.students import start_from_teacher, teacher_velocity
from onestep_adapters.training import LossStep
from onestep_core import drop_labels, guided_velocity, instantaneous, meanflow_regression, squared_l2
from onestep_core.errors import ConfigError


@attrs.frozen
class MeanFlow(EulerianRecipe):
    """Regress the average velocity onto its own identity; sample by one jump. Released: ``moving`` 0.25 (JAX)."""

    teacher: FlowMatching | None = None  # type: ignore[misc]
    """Whose velocity takes the place of the pair's, and whose weights the network starts from (MeanFlow distillation);
    ``None``: the data alone, as published."""
    omega: float = attrs.field(default=1.0, validator=positive)
    """Guidance: weight of the pair's velocity in what is learnt, of which ``1 - omega - kappa`` is without the class.
    One evaluation then samples at the scale ``omega / (1 - kappa)``. 1 and ``kappa`` 0: none."""
    kappa: float = attrs.field(default=0.0, validator=share)
    """Guidance: weight of the network's own velocity of the class, 0 to 1."""
    dropped: float = attrs.field(default=0.0, validator=share)
    """Share of the labels that are dropped, from which the velocity without a class is learnt. Published: 0.1."""
    guided_from: float = attrs.field(default=0.0, validator=share)
    """Smallest time that is guided."""
    guided_to: float = attrs.field(default=1.0, validator=share)
    """Largest."""

    def __attrs_post_init__(self) -> None:
        whole = self.dropped > 0 and self.teacher is None and self.kappa < 1 and self.guided_from < self.guided_to
        if self.guided and not whole:
            raise ConfigError(
                f"omega = {self.omega} and kappa = {self.kappa} beside dropped = {self.dropped}, "
                f"{'a teacher' if self.teacher else 'no teacher'} and guided times from {self.guided_from} to "
                f"{self.guided_to}: guidance needs dropped labels (0.1, say), data in place of a teacher, kappa below "
                "1 and an interval"
            )

    @property
    def guided(self) -> bool:
        """Whether another velocity than the pair's is learnt."""
        return self.omega != 1 or self.kappa != 0

    @property
    def calls(self) -> int:
        """Forward passes in an update: the value, the forward-mode pass and, where there are such, the teacher's and
        those of guidance.
        """
        return 2 + (self.teacher is not None) + self.guided + (self.kappa != 0)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The average-velocity network.

        Raises:
            ConfigError: if labels are to be dropped where there are none.
        """
        if self.dropped and problem.classes is None:
            raise ConfigError(
                f"dropped = {self.dropped} on {problem.name}, which has no classes: guidance is for labelled data, "
                f"such as {DIGITS}; give --dropped 0 --omega 1 --kappa 0"
            )
        return super().build(problem, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        if self.teacher is not None:
            start_from_teacher(setting)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            z, v, t, s, labels = self.points(setting.problem, generator)
            if self.teacher is not None:
                with torch.no_grad():
                    v = teacher_velocity(setting, labels)(z, t)
            if self.dropped and labels is not None and setting.problem.classes is not None:
                null = torch.full_like(labels, setting.problem.classes)
                lost = torch.rand(len(labels), generator=generator) < self.dropped
                labels = drop_labels(labels, setting.problem.classes, lost)
                v = self._guided(network, z, v, t, labels, null, active=~lost)
            average_velocity = as_average_velocity(network, label=labels)
            derivative = self.derivative(network, labels)
            pair = meanflow_regression(average_velocity, z, v, t, s, moving=self.jumping, derivative=derivative)
            raw = squared_l2(*pair)
            return (raw * self.weight(raw, z)).mean(), {"raw": raw.detach().mean() / z[0].numel()}

        return loss

    def _guided(
        self, network: nn.Module, z: Tensor, v: Tensor, t: Tensor, labels: Tensor, null: Tensor, *, active: Tensor
    ) -> Tensor:
        """The velocity that is learnt: the pair's, further from that of no class, where labels and times say so."""
        if not self.guided:
            return v
        with torch.no_grad():
            conditional = instantaneous(as_average_velocity(network, label=labels))(z, t) if self.kappa else None
            unconditional = instantaneous(as_average_velocity(network, label=null))(z, t)
        inside = (t >= self.guided_from) & (t <= self.guided_to)
        return guided_velocity(
            v, conditional, unconditional, omega=self.omega, kappa=self.kappa, active=active & inside
        )
