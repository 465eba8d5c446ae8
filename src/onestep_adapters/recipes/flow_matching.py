"""Flow matching: the velocity, sampled in many steps. The yardstick of the one-step recipes."""

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.networks import as_velocity
from onestep_adapters.recipes.draws import Coupling, draw
from onestep_adapters.recipes.options import Network, Training, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.samplers import sample_ode
from onestep_adapters.training import LossStep
from onestep_core import Linear, flow_matching_regression, mse, sample_logit_normal, sample_uniform


def mixed_times(count: int, uniform_share: float, generator: torch.Generator, *, mean: float = 0.0) -> Tensor:
    """Times of which ``uniform_share`` are uniform on (0, 1) and the others logit-normal(mean, 1).

    Example:
        >>> mixed_times(4, 0.5, torch.Generator().manual_seed(0)).shape
        torch.Size([4])
    """
    central = sample_logit_normal(count, mean=mean, std=1.0, generator=generator)
    anywhere = sample_uniform(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < uniform_share, anywhere, central)


@attrs.frozen
class FlowMatching:
    """Regress the velocity of a pair; sample by Heun's method."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    uniform_share: float = attrs.field(default=0.5, validator=share)
    """Share of training times that are uniform; the others are logit-normal(0, 1)."""
    coupling: Coupling = "independent"
    """Of data and noise; optimal, within a batch, makes the flow straighter. Published: independent."""
    sampling_steps: int = attrs.field(default=50, validator=positive)
    """Heun steps of the sampler, two network evaluations each."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 2 * self.sampling_steps

    @property
    def calls(self) -> int:
        """Forward passes in an update."""
        return 1

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The velocity network."""
        return self.network.build(problem, 1, generator)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        path = Linear()

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            data, noise, labels, _ = draw(setting.problem, self.training.batch, generator, coupling=self.coupling)
            t = mixed_times(len(data), self.uniform_share, generator)
            z, v = path(data, noise, t)
            return mse(*flow_matching_regression(as_velocity(network, label=labels), z, v, t)).mean(), {}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return sample_ode(as_velocity(network, label=labels), noise, path=Linear(), steps=self.sampling_steps)
