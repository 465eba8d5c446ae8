"""Inductive moment matching: small groups of jumps agree as distributions."""

from functools import partial
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_flow_map
from onestep_adapters.recipes.draws import Coupling, draw, states_at
from onestep_adapters.recipes.options import Network, Training, not_negative, positive
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.samplers import multistep
from onestep_adapters.training import LossStep
from onestep_core import (
    Linear,
    NoiseScaled,
    Scalings,
    frozen_value,
    laplace,
    lower_noise_ratio,
    moment_matching_loss,
    preconditioned_flow_map,
    sample_uniform,
    sigmoid_elbo,
    simple_edm_scalings,
)
from onestep_core.errors import ConfigError
from onestep_core.protocols import FlowMap

PATH = Linear()


@attrs.frozen
class MomentMatching:
    """IMM: a Laplace kernel between groups of particles, times drawn evenly, a constant step in the noise ratio."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    sigma_data: float = attrs.field(default=0.5, validator=positive)
    """Standard deviation of the data, and of the noise beside it."""
    particles: int = attrs.field(default=4, validator=positive)
    """Samples in a group, all of one class; they divide the batch."""
    earliest: float = attrs.field(default=0.006, validator=positive)
    """Smallest source time; the largest is as far from the other end."""
    decrement: float = attrs.field(default=160 / 2**12, validator=positive)
    """How much less noise, relative to the data, the middle state has."""
    shift: float = 5.0
    """Of the weight's sigmoid."""
    references: int = attrs.field(default=0, validator=not_negative)
    """Further data in an update, by which the pairs' second states become less random; 0, as published, for none."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""

    def __attrs_post_init__(self) -> None:
        if self.training.batch % self.particles or not self.earliest < 0.5:
            raise ConfigError(
                f"a batch of {self.training.batch} in groups of {self.particles}, times from {self.earliest}: "
                "expected groups that fill the batch, and a smallest time below 0.5"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update: both sets."""
        return 2

    @property
    def path(self) -> NoiseScaled:
        """The linear path with noise as wide as the data."""
        return NoiseScaled(PATH, self.sigma_data)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The raw network of scaled states, source and target times."""
        return self.network.build(problem, 2, generator)

    def flow_map(self, network: nn.Module, labels: Tensor | None) -> FlowMap:
        """The network as a flow map that is the identity at ``s = t``."""
        return preconditioned_flow_map(as_flow_map(network, label=labels), scalings=self._scalings)

    def _scalings(self, t: Tensor, s: Tensor) -> Scalings:
        return simple_edm_scalings(t, s, path=self.path, sigma_data=self.sigma_data)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path, groups = self.path, self.training.batch // self.particles
        dimension = torch.Size(setting.problem.shape).numel()

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            # A group is compared as a set, which does not see whose class is whose: it has one.
            drawn = draw(
                setting.problem,
                self.training.batch,
                generator,
                references=self.references,
                coupling=self.coupling,
                alike=self.particles,
            )
            latest = sample_uniform(groups, low=self.earliest, high=1 - self.earliest, generator=generator)
            times = (latest, latest * torch.rand(groups, generator=generator))
            t, s = (time.repeat_interleave(self.particles) for time in times)
            m = lower_noise_ratio(t, s, path=PATH, decrement=self.decrement)
            flow_map = self.flow_map(network, drawn.labels)
            raw = moment_matching_loss(
                flow_map,
                partial(frozen_value, flow_map),
                *states_at(drawn, t, m, path=path),
                t,
                m,
                s,
                particles=self.particles,
                kernel=partial(laplace, temperature=1.0),
                length=dimension * self._scalings(t, s).c_out.abs(),
            )
            return (raw * sigmoid_elbo(times[0], path=PATH, shift=self.shift)).mean(), {"raw": raw.mean()}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        ends = [PATH.noise_time, PATH.data_time]
        return multistep(self.flow_map(network, labels), self.path.prior(noise), ends, path=self.path)
