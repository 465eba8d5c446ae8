"""Consistency trajectories (CTM): a flow map from anywhere to anywhere, with or without an adversary."""

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity, frozen, with_condition
from onestep_adapters.recipes.draws import draw
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import PATH, solved
from onestep_adapters.recipes.students import start_from_teacher, teacher_velocity
from onestep_adapters.samplers import one_step
from onestep_adapters.training import LossStep
from onestep_core import (
    between,
    consistency_trajectory_regression,
    flow_map_from_average_velocity,
    flow_matching_regression,
    gradient_balance,
    hinge_discriminator,
    hinge_generator,
    instantaneous,
    mse,
    r1_penalty,
)
from onestep_core.protocols import FlowMap


class Players(nn.Module):
    """A generator and its discriminator under one optimiser. Called, it is the generator."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def forward(self, z: Tensor, t: Tensor, s: Tensor, label: Tensor | None = None) -> Tensor:
        """The generator's average velocity."""
        return self.generator(z, t, s, label=label)


def _map(network: nn.Module, labels: Tensor | None) -> FlowMap:
    return flow_map_from_average_velocity(as_average_velocity(network, label=labels))


@attrs.frozen
class ConsistencyTrajectory:
    """Soft consistency by the teacher's solver, a flow-matching term and, if asked for, a hinge discriminator.

    The map is ``z + (s - t) a(z, t, s)``, the published Euler form on the linear path, and its denoising term there is
    flow matching of ``a(z, t, t)``.
    """

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """Whose solver makes the middle state; its network is the student's, which starts from its weights."""
    solver_steps: int = attrs.field(default=2, validator=positive)
    """Heun steps of the teacher from ``t`` to the middle time."""
    ends: float = attrs.field(default=0.25, validator=share)
    """Share of the jumps that start at pure noise, and as many, drawn anew, end at the data; the others anywhere."""
    matching: float = attrs.field(default=1.0, validator=not_negative)
    """Factor of the flow-matching term, after it has been balanced against the consistency term."""
    adversarial: float = attrs.field(default=0.0, validator=not_negative)
    """Factor of the generator's adversarial term, balanced likewise; 0 leaves the discriminator out."""
    adversarial_start: float = attrs.field(default=0.25, validator=share)
    """Share of the training before the adversarial term reaches the generator."""
    penalty: float = attrs.field(default=0.1, validator=not_negative)
    """Half the factor of the discriminator's squared gradient at data."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: two of the network, three of its average, two a solver step of the teacher."""
        return 5 + 2 * self.solver_steps + 4 * (self.adversarial > 0)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """An average-velocity network; with an adversary, beside a discriminator that gives a logit a coordinate."""
        network = self.network.build(problem, 2, generator)
        return Players(network, self.network.build(problem, 0, generator)) if self.adversarial else network

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        start_from_teacher(setting, part=_generator)
        state, last = setting.state, _generator(setting.state.network).output.weight

        def balanced(main: Tensor, added: Tensor, smallest: float, largest: float) -> Tensor:
            pulls = (torch.autograd.grad(term, last, retain_graph=True)[0] for term in (main, added))
            return gradient_balance(*pulls, smallest=smallest, largest=largest) * added

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            # Coupled as the teacher's pairs were: the flow-matching term says the same flow.
            coupling = self.teacher.coupling
            data, noise, labels, _ = draw(setting.problem, self.training.batch, generator, coupling=coupling)
            t, m, s = self._times(len(data), generator)
            z, v = PATH(data, noise, t)
            z_m = solved(teacher_velocity(setting, labels), z, t, m, steps=self.solver_steps)
            online, average = _map(network, labels), _map(frozen(state.ema), labels)
            pair = consistency_trajectory_regression(online, average, average, z, z_m, t, m, s, end=PATH.data_time)
            consistency = mse(*pair).mean()
            average_velocity = as_average_velocity(network, label=labels)
            matching = mse(*flow_matching_regression(instantaneous(average_velocity), z, v, t)).mean()
            total = consistency + self.matching * balanced(consistency, matching, 0.0, 1e4)
            logs = {"consistency": consistency, "matching": matching}
            if self.adversarial:
                judge: nn.Module = state.network.discriminator  # type: ignore[assignment]
                fooled = hinge_generator(frozen(judge)(pair.prediction, label=labels)).mean()
                told = self._discriminating(judge, data, pair.prediction.detach(), labels)
                if state.step >= self.adversarial_start * self.training.steps:
                    total = total + self.adversarial * balanced(consistency, fooled, 0.01, 10.0)
                total, logs = total + told, {**logs, "discriminator": told}
            return total, logs

        return loss

    def _times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        start, stop, middle, first, last = torch.rand(5, count, generator=generator)
        t = torch.where(first < self.ends, PATH.noise_time, start)
        s = torch.where(last < self.ends, PATH.data_time, t * stop)
        return t, between(t, s, share=middle), s

    def _discriminating(self, judge: nn.Module, data: Tensor, made: Tensor, labels: Tensor | None) -> Tensor:
        logits = with_condition(judge, label=labels)
        told = hinge_discriminator(logits(data), logits(made)).mean()
        return told + self.penalty * r1_penalty(logits, data).mean()

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return one_step(as_average_velocity(network, label=labels), noise, path=PATH)


def _generator(module: nn.Module) -> nn.Module:
    return module.generator if isinstance(module, Players) else module
