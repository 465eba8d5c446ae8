"""Flow matching: the instantaneous velocity, sampled in many steps. It is the baseline of the one-step methods."""

from typing import ClassVar, Self

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Coupling, Dataset, Draws
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.method import Context, Loss, Method
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import (
    IMAGE_TRAINING,
    POINT_NETWORK,
    POINT_TRAINING,
    SMOOTH_POINT_NETWORK,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_adapters.methods.times import mixed_times
from onestep_adapters.networks import as_velocity
from onestep_adapters.samplers import sample_ode
from onestep_core import euler, flow_matching_regression, mse
from onestep_core.validators import positive_count, share

PREVIEW_STEPS = 10
"""Number of Heun steps for samples that are measured during training."""


@attrs.frozen
class FlowMatching(Method):
    """Regress the velocity of a pair; sample by Heun's method."""

    objective: ClassVar[str] = "regression (velocity)"
    ode: ClassVar[str] = "to sample"
    few_steps: ClassVar[bool] = True

    uniform_share: float = attrs.field(default=0.5, validator=share)
    """Fraction of training times that are uniform on (0, 1); the others are logit-normal(0, 1)."""
    coupling: Coupling = "independent"
    """Which noise is paired with which data sample. independent: random (papers). optimal: optimal-transport assignment
    within a batch and a class. precomputed: the same, made once before training over 65,536 pairs (images) or 32,768
    (points). The last two give straighter trajectories."""
    sampling_steps: int = attrs.field(default=50, validator=positive_count)
    """Heun steps from noise to data when samples are drawn; each needs two network evaluations. Of a teacher it has no
    effect on the student."""

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample."""
        return 2 * self.sampling_steps

    @property
    def calls(self) -> int:
        """Network evaluations in one update."""
        return 1

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The velocity network."""
        return self.network.build(data, 1, generator)

    def prepare(self, context: Context) -> Draws:
        """Make the draws of training pairs, with the chosen coupling."""
        return context.draws(self.coupling)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """Mean squared error of the velocity."""
        data, noise, labels, _ = context.prepared(self.training.batch, generator)
        t = mixed_times(len(data), self.uniform_share, generator)
        z, v = PATH(data, noise, t)
        return mse(*flow_matching_regression(as_velocity(network, label=labels), z, v, t)).mean(), {}

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by Heun's method."""
        return sample_ode(as_velocity(network, label=labels), noise, path=PATH, steps=self.sampling_steps)

    def previewed(self) -> Self:
        """The same method, sampled in :data:`PREVIEW_STEPS` steps."""
        return attrs.evolve(self, sampling_steps=PREVIEW_STEPS)

    def sample_in(self, network: nn.Module, noise: Tensor, labels: Tensor | None, evaluations: int) -> Tensor:
        """Samples by Euler steps of equal length; the method's own number by Heun's method."""
        if evaluations == self.evaluations:
            return self.sample(network, noise, labels)
        velocity = as_velocity(network, label=labels)
        return sample_ode(velocity, noise, path=PATH, steps=evaluations, method=euler)


@attrs.frozen
class Distillation(Method):
    """Options of the methods that learn from a flow-matching teacher."""

    teacher: FlowMatching = attrs.field(factory=FlowMatching)  # type: ignore[misc]
    """Options of the flow-matching teacher. A finished teacher with the same options in runs/teachers is reused;
    otherwise it is trained first and kept there. A method that starts from the teacher's weights needs the same network
    options for both."""
    teacher_from: str = ""  # type: ignore[misc]
    """Folder of a finished flow-matching run on the same data, or of a diffusers pipeline. Empty: train or reuse the
    teacher of --teacher.*. reflow, and dmd, dmd2, f-distill, sid with --pairs-weight 0 --pairs-only-share 0: also
    "exact", the exact score (8gaussians, unequal)."""


IMAGE_TEACHER = FlowMatching(IMAGE_TRAINING, WIDE_IMAGE_NETWORK)
"""Teacher of images; the baseline itself."""
COUPLED_IMAGE_TEACHER = FlowMatching(IMAGE_TRAINING, WIDE_IMAGE_NETWORK, coupling="precomputed")
"""Teacher of images, trained on coupled pairs: its flow is straighter, but it gives no score."""
POINT_TEACHER = FlowMatching(POINT_TRAINING, POINT_NETWORK)
"""Teacher of points; the baseline itself."""
COUPLED_POINT_TEACHER = FlowMatching(
    Training(steps=4000, batch=256, learning_rate=2e-3), POINT_NETWORK, coupling="optimal"
)
"""Teacher of points, trained on coupled pairs."""
SMOOTH_POINT_TEACHER = FlowMatching(Training(steps=6000, batch=256, learning_rate=2e-3), SMOOTH_POINT_NETWORK)
"""Teacher of scores for points, without Fourier features; trained longer: after 3,000 updates its modes are 12 % too
wide."""

PRESETS = (
    Preset(
        "flow-matching",
        "flow matching, many steps: the baseline",
        IMAGE_TEACHER,
        POINT_TEACHER,
        "Sampled in 50 Heun steps of two evaluations. Half of the times are uniform, half logit-normal. More "
        "channels or twice the updates lower the validation split's 1-NN accuracy a little and make the demo longer "
        "than five minutes.",
    ),
)
