"""Consistency trajectory models (CTM): a flow map between any two times, with or without an adversary."""

from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset, Draws
from onestep_adapters.methods.few_steps import jumped
from onestep_adapters.methods.flow_matching import COUPLED_IMAGE_TEACHER, COUPLED_POINT_TEACHER, Distillation
from onestep_adapters.methods.linear_path import PATH, solved
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import POINT_NETWORK, WIDE_IMAGE_NETWORK, Preset
from onestep_adapters.methods.students import start_from_teacher
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import as_average_velocity, frozen, with_condition
from onestep_adapters.samplers import one_step
from onestep_adapters.training import Companion, trained_jointly
from onestep_core import (
    consistency_trajectory_regression,
    flow_map_from_average_velocity,
    flow_matching_regression,
    gradient_balance,
    hinge_discriminator,
    hinge_generator,
    instantaneous,
    mse,
    r1_penalty,
    time_between,
)
from onestep_core.protocols import FlowMap
from onestep_core.validators import not_negative, positive_count, share

DISCRIMINATOR = "discriminator"
"""Name of the companion; it is trained in the network's own update."""


def _map(network: Callable[..., Tensor], labels: Tensor | None) -> FlowMap:
    return flow_map_from_average_velocity(as_average_velocity(network, label=labels))


@attrs.frozen
class ConsistencyTrajectory(Distillation):
    """Soft consistency by the teacher's solver, a flow-matching term and an optional hinge discriminator.

    The map is ``z + (s - t) a(z, t, s)``, the paper's Euler form on the linear path; its denoising term there is flow
    matching of ``a(z, t, t)``.
    """

    objective: ClassVar[str] = "consistency constraint"
    ode: ClassVar[str] = "to train"
    few_steps: ClassVar[bool] = True

    solver_steps: int = attrs.field(default=2, validator=positive_count)
    """Heun steps of the teacher from the start time t to a random time between t and s, where the target starts; each
    needs two evaluations."""
    endpoint_share: float = attrs.field(default=0.25, validator=share)
    """Probability that a jump starts at pure noise and, independently, that it ends at the data, 0 to 1."""
    flow_matching_weight: float = attrs.field(default=1.0, validator=not_negative)
    """Weight of the flow-matching loss, on top of an adaptive factor that gives it the gradient norm of the consistency
    loss. Paper: 1."""
    adversarial_weight: float = attrs.field(default=0.0, validator=not_negative)
    """Weight of the GAN loss in the generator's update, on top of an adaptive factor that gives it the gradient norm
    of the consistency loss. 0: no discriminator. Paper: 1."""
    adversarial_start: float = attrs.field(default=0.25, validator=share)
    """Fraction of the training after which the generator gets the GAN loss, 0 to 1; only with --adversarial-weight
    above 0."""
    r1_weight: float = attrs.field(default=0.1, validator=not_negative)
    """Weight of the R1 penalty, the squared gradient of the discriminator at the data (gamma / 2 of its paper); only
    with --adversarial-weight above 0."""

    @property
    def calls(self) -> int:
        """Network evaluations in one update: two of the network, three of its average, two per solver step."""
        return 5 + 2 * self.solver_steps + 4 * (self.adversarial_weight > 0)

    def work(self, step: int, data: Dataset) -> Work:
        """The online map, the average's and the teacher's; a gradient of each loss for its weight; the adversary's.

        Two maps with a gradient (the jump and flow matching), the outer map, which passes a gradient on, once for the
        update and once for the weight. The discriminator sees data, samples, the data of its penalty (two gradients)
        and the samples of the generator, whose gradient passes through the outer map for the weight.
        """
        rows = self.training.batch
        work = 4 * trained(rows) + seen((1 + 2 * self.solver_steps) * rows)
        if self.adversarial_weight:
            joined = step >= self.adversarial_start * self.training.steps
            work = work + Work(forward=4 * rows, backward=(4 + 4 * joined) * rows)
        return work

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """An average-velocity network."""
        return self.network.build(data, 2, generator)

    @property
    def distils_models(self) -> bool:
        """Only without the discriminator, a network of the same kind without a time."""
        return not self.adversarial_weight

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """With an adversary: a discriminator that gives one logit for each coordinate."""
        if not self.adversarial_weight:
            return {}
        return {DISCRIMINATOR: trained_jointly(self.network.build(data, 0, generator))}

    def prepare(self, context: Context) -> Draws:
        """The teacher's weights; pairs with the teacher's coupling, so that flow matching trains the same flow."""
        start_from_teacher(context)
        return context.draws(context.required_teacher().coupling)

    def preparations(self, context: Context) -> tuple[str, ...]:
        """The pairs of the teacher's coupling."""
        return context.pairs_to_make(context.required_teacher().coupling)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Consistency, flow matching and adversarial terms; the log has each."""
        state, last = context.state, cast(Tensor, cast(nn.Module, network.output).weight)

        def balanced(main: Tensor, added: Tensor, smallest: float, largest: float) -> Tensor:
            gradients = (torch.autograd.grad(term, last, retain_graph=True)[0] for term in (main, added))
            return gradient_balance(*gradients, smallest=smallest, largest=largest) * added

        data, noise, labels, _ = context.prepared(self.training.batch, generator)
        t, m, s = self._times(len(data), generator)
        z, v = PATH(data, noise, t)
        z_m = solved(context.required_teacher().velocity(labels), z, t, m, steps=self.solver_steps)
        online, average = _map(network, labels), _map(frozen(state.ema), labels)
        pair = consistency_trajectory_regression(online, average, average, z, z_m, t, m, s, end=PATH.data_time)
        consistency = mse(*pair).mean()
        average_velocity = as_average_velocity(network, label=labels)
        matching = mse(*flow_matching_regression(instantaneous(average_velocity), z, v, t)).mean()
        total = consistency + self.flow_matching_weight * balanced(consistency, matching, 0.0, 1e4)
        logs = {"consistency": consistency, "flow matching": matching}
        if self.adversarial_weight:
            discriminator = context.companion(DISCRIMINATOR)
            adversarial = hinge_generator(frozen(discriminator)(pair.prediction, label=labels)).mean()
            judged = self._discriminating(discriminator, data, pair.prediction.detach(), labels)
            if state.step >= self.adversarial_start * self.training.steps:
                total = total + self.adversarial_weight * balanced(consistency, adversarial, 0.01, 10.0)
            total, logs = total + judged, {**logs, "discriminator": judged}
        return total, logs

    def _times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        drawn = torch.rand(5, count, generator=generator, device=generator.device)
        start, stop, middle, first, last = drawn
        t = torch.where(first < self.endpoint_share, PATH.noise_time, start)
        s = torch.where(last < self.endpoint_share, PATH.data_time, t * stop)
        return t, time_between(t, s, share=middle), s

    def _discriminating(self, discriminator: nn.Module, data: Tensor, made: Tensor, labels: Tensor | None) -> Tensor:
        logits = with_condition(discriminator, label=labels)
        hinge = hinge_discriminator(logits(data), logits(made)).mean()
        return hinge + self.r1_weight * r1_penalty(logits, data).mean()

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one jump from the noise end to the data end."""
        return one_step(as_average_velocity(network, label=labels), noise, path=PATH)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by jumps of equal length from the noise end to the data end."""
        return jumped(_map(network, labels), noise, path=PATH, evaluations=evaluations)


PRESETS = (
    Preset(
        "consistency-trajectory",
        "consistency trajectory model (CTM) without GAN loss: jumps between any two times",
        ConsistencyTrajectory(
            Training(steps=1000, batch=64, learning_rate=2e-3),
            WIDE_IMAGE_NETWORK,
            COUPLED_IMAGE_TEACHER,
            solver_steps=1,
        ),
        ConsistencyTrajectory(
            Training(steps=2000, batch=256, learning_rate=2e-3),
            POINT_NETWORK,
            COUPLED_POINT_TEACHER,
            endpoint_share=0.5,
        ),
        "A quarter of the jumps start at noise and a quarter end at the data (points: half). The inner map is the "
        "moving average, as in the paper; with the network itself the results were far worse. Pairs have the "
        "teacher's coupling: independent pairs with a teacher of coupled pairs leave wider modes.",
    ),
    Preset(
        "consistency-trajectory-adversarial",
        "consistency trajectory model (CTM) with a discriminator",
        ConsistencyTrajectory(
            Training(steps=700, batch=64, learning_rate=2e-3),
            WIDE_IMAGE_NETWORK,
            COUPLED_IMAGE_TEACHER,
            solver_steps=1,
            adversarial_weight=1.0,
        ),
        ConsistencyTrajectory(
            Training(steps=1600, batch=256, learning_rate=2e-3),
            POINT_NETWORK,
            COUPLED_POINT_TEACHER,
            endpoint_share=0.5,
            adversarial_weight=0.3,
        ),
        "As consistency-trajectory, with a hinge discriminator after a quarter of the training. Points: adversarial "
        "weight 0.3, with which fewer samples lie between modes.",
    ),
)
