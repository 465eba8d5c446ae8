"""Recipes: each wires an objective, its times and weights, a network and a sampler; one table names them all."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from onestep_adapters.recipes.alpha_flow import AlphaFlow as AlphaFlow
from onestep_adapters.recipes.alpha_flow import SolutionFlow as SolutionFlow
from onestep_adapters.recipes.consistency_distillation import ConsistencyDistillation as ConsistencyDistillation
from onestep_adapters.recipes.consistency_training import ConsistencyTraining as ConsistencyTraining
from onestep_adapters.recipes.consistency_trajectory import ConsistencyTrajectory as ConsistencyTrajectory
from onestep_adapters.recipes.continuous_consistency import ContinuousConsistency as ContinuousConsistency
from onestep_adapters.recipes.distribution_matching import DistributionMatching as DistributionMatching
from onestep_adapters.recipes.drifting import Drifting as Drifting
from onestep_adapters.recipes.easy_consistency import EasyConsistency as EasyConsistency
from onestep_adapters.recipes.flow_matching import FlowMatching as FlowMatching
from onestep_adapters.recipes.improved_meanflow import ImprovedMeanFlow as ImprovedMeanFlow
from onestep_adapters.recipes.meanflow import MeanFlow as MeanFlow
from onestep_adapters.recipes.moment_matching import MomentMatching as MomentMatching
from onestep_adapters.recipes.names import choose
from onestep_adapters.recipes.options import Network as Network
from onestep_adapters.recipes.options import Training as Training
from onestep_adapters.recipes.problems import DIGITS, PROBLEMS, Problem
from onestep_adapters.recipes.problems import open_problem as open_problem
from onestep_adapters.recipes.progressive import Progressive as Progressive
from onestep_adapters.recipes.rectified_flow import Reflow as Reflow
from onestep_adapters.recipes.rectified_meanflow import RectifiedMeanFlow as RectifiedMeanFlow
from onestep_adapters.recipes.setting import Setting as Setting
from onestep_adapters.recipes.shortcut import Shortcut as Shortcut
from onestep_adapters.recipes.shortcut import SplitMeanFlow as SplitMeanFlow
from onestep_adapters.recipes.terminal_velocity import TerminalVelocity as TerminalVelocity
from onestep_adapters.recipes.truncated_consistency import TruncatedConsistency as TruncatedConsistency
from onestep_adapters.training import LossStep


class Recipe(Protocol):
    """Options of a method that know how to train and to sample it."""

    @property
    def training(self) -> Training:
        """How long and how fast."""
        ...

    @property
    def teacher(self) -> FlowMatching | None:
        """Options of the teacher that it learns from, or ``None``."""
        ...

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        ...

    @property
    def calls(self) -> int:
        """Forward passes in an update: of the network, its average, a teacher, a discriminator."""
        ...

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """A fresh network."""
        ...

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss."""
        ...

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise ``[count, *shape]``."""
        ...


@runtime_checkable
class TwoPlayers(Protocol):
    """What a recipe has besides where a second network learns in turns with the first."""

    @property
    def ratio(self) -> int:
        """Updates of the second network for one of the first."""
        ...

    @property
    def opponent_pace(self) -> float:
        """Its learning rate, in units of the first one's."""
        ...

    def build_opponent(self, problem: Problem) -> nn.Module | None:
        """A fresh second network; none where the options need none."""
        ...

    def opponent_step(self, setting: Setting) -> LossStep:
        """The loss of one of its updates."""
        ...


class Method(NamedTuple):
    """A line of the table."""

    summary: str
    digits: Recipe
    toys: Recipe
    notes: str
    """What was chosen on the validation split, and why; the report prints it."""

    def options(self, data: str) -> Recipe:
        """The preset for a data set.

        Raises:
            ConfigError: for an unknown one, with the nearest names.
        """
        return self.digits if choose(data, PROBLEMS, "data set") == DIGITS else self.toys


_IMAGES = Network("conv", width=32, depth=3)
_PLANE = Network("mlp", width=192, depth=3)
_IMAGE_TRAINING = Training(steps=2400, batch=64, learning_rate=3e-3)
_PLANE_TRAINING = Training(steps=3000, batch=256, learning_rate=2e-3)
_IMAGE_JUMPS = Training(steps=1000, batch=64, learning_rate=2e-3)
_PLANE_STUDENT = Training(steps=4000, batch=256, learning_rate=2e-3)
_PLANE_JUMPS = Training(steps=5000, batch=512, learning_rate=3e-3)
_IMAGE_TEACHER = FlowMatching(_IMAGE_TRAINING, _IMAGES)
_PLANE_TEACHER = FlowMatching(_PLANE_TRAINING, _PLANE)
_PLANE_TUTOR = FlowMatching(Training(steps=4000, batch=256, learning_rate=2e-3), _PLANE, coupling="optimal")

_IMAGE_MATCHING = Training(steps=500, batch=64, learning_rate=5e-4)
_PLANE_MATCHING = Training(steps=1500, batch=256, learning_rate=1e-3)
_NEAR_DATA: dict[str, float] = {"entry": 0.75, "nearness": 2.5, "epsilon": 0.05}

_PUBLISHED_MEANFLOW: dict[str, float] = {"power": 1.0, "moving": 0.25, "uniform_share": 0.0, "mean": -0.4}

METHODS: dict[str, Method] = {
    "flow-matching": Method(
        "velocity, many steps: the yardstick",
        _IMAGE_TEACHER,
        _PLANE_TEACHER,
        "Sampled in 50 steps of Heun, two evaluations each. Times half uniform, half logit-normal. More channels "
        "or twice the steps bring the validation split's 1-NN accuracy down a little, and take the demo beyond "
        "five minutes.",
    ),
    "meanflow": Method(
        "average velocity, one step",
        MeanFlow(_IMAGE_TRAINING, _IMAGES, power=0.5),
        MeanFlow(_PLANE_TRAINING, _PLANE, coupling="optimal"),
        "Adaptive weight of power 0.5 and uniform times: the smallest energy distance on the validation split "
        "among powers 0, 0.5 and 1 and the published times. Its samples keep too close to one another: density "
        "above 1, low recall. Exact marginal velocities in place of the pairs' do not change that, so noise in "
        "the target is not the reason.",
    ),
    "meanflow-distillation": Method(
        "average velocity of a trained flow, one step",
        MeanFlow(_IMAGE_TRAINING, _IMAGES, power=0.5, teacher=_IMAGE_TEACHER),
        MeanFlow(_PLANE_TRAINING, _PLANE, teacher=_PLANE_TUTOR),
        "",
    ),
    "rectified-meanflow": Method(
        "average velocity between noise and what a flow makes of it, one step",
        RectifiedMeanFlow(_IMAGE_TRAINING, _IMAGES, moving=0.5, power=0.5, teacher=_IMAGE_TEACHER, pairs=10_000),
        RectifiedMeanFlow(_PLANE_TRAINING, _PLANE, teacher=_PLANE_TUTOR),
        "",
    ),
    "meanflow-released": Method(
        "average velocity as published: weight, times and share of moving pairs",
        MeanFlow(Training(steps=600, batch=64, learning_rate=3e-3), _IMAGES, **_PUBLISHED_MEANFLOW),
        MeanFlow(_PLANE_TRAINING, _PLANE, **_PUBLISHED_MEANFLOW),
        "The published default, with fewer steps: its own row, also where it loses.",
    ),
    "improved-meanflow": Method(
        "average velocity with a predicted tangent, one step",
        ImprovedMeanFlow(_IMAGE_TRAINING, _IMAGES, moving=0.5, references=256, anchored=0.5),
        ImprovedMeanFlow(_PLANE_TRAINING, _PLANE, coupling="optimal"),
        "",
    ),
    "alpha-flow": Method(
        "average velocity, annealed from flow matching of whole jumps, one step",
        AlphaFlow(_IMAGE_TRAINING, _IMAGES, moving=0.5, references=256, anchored=0.5, end=0.5, final=0.05),
        AlphaFlow(_PLANE_TRAINING, _PLANE, moving=0.5, coupling="optimal", anchored=0.5, end=0.4, final=0.08),
        "",
    ),
    "split-meanflow": Method(
        "average velocity that agrees with itself, one step",
        SplitMeanFlow(_IMAGE_TRAINING, _IMAGES, moving=0.5, references=256, anchored=0.5),
        SplitMeanFlow(_PLANE_JUMPS, _PLANE, moving=0.5, references=1024, anchored=0.5),
        "",
    ),
    "shortcut": Method(
        "average velocity at step sizes 1, 1/2, 1/4, ..., one step",
        Shortcut(_IMAGE_TRAINING, _IMAGES, moving=0.6, references=256, biased=True),
        Shortcut(_PLANE_JUMPS, _PLANE, moving=0.6, references=1024, biased=True),
        "",
    ),
    "terminal-velocity": Method(
        "average velocity whose end moves as it should, one step",
        TerminalVelocity(_IMAGE_TRAINING, _IMAGES, moving=0.5, references=256, anchored=0.5),
        TerminalVelocity(_PLANE_TRAINING, _PLANE, moving=0.5, coupling="optimal", anchored=0.5),
        "",
    ),
    "solution-flow": Method(
        "the solution of the flow's equation, one step",
        SolutionFlow(_IMAGE_TRAINING, _IMAGES, moving=0.5, references=256, anchored=0.5, first=0.2, last=0.05),
        SolutionFlow(_PLANE_TRAINING, _PLANE, moving=0.5, coupling="optimal", anchored=0.5, first=0.3, last=0.08),
        "",
    ),
    "reflow": Method(
        "a teacher's noise and data, joined by straight lines, one step",
        Reflow(_IMAGE_TEACHER, _IMAGE_TRAINING, _IMAGES, at_noise=0.5, pairs=8000),
        Reflow(_PLANE_TUTOR, _PLANE_TRAINING, _PLANE, at_noise=0.5),
        "",
    ),
    "progressive": Method(
        "a student halves its teacher's steps until one is left",
        Progressive(_IMAGE_TRAINING, _IMAGES, _IMAGE_TEACHER),
        Progressive(_PLANE_STUDENT, _PLANE, _PLANE_TUTOR),
        "8 Gaussians, seed 0, three draws of 4,000: score 0.0075, mode std up to 1.22, a miss by 0.02. 6,000 "
        "steps leave 1.21, a first student of 8 steps 1.24. The checkerboard and the digits were not measured.",
    ),
    "consistency-distillation": Method(
        "consistency along a teacher's trajectories, one step",
        ConsistencyDistillation(_IMAGE_TRAINING, _IMAGES, _IMAGE_TEACHER, intervals=8),
        ConsistencyDistillation(_PLANE_STUDENT, _PLANE, _PLANE_TUTOR, intervals=8),
        "8 Gaussians, seed 0, three draws of 4,000: score 0.0043, mode std up to 1.19, a pass, narrowly; half the "
        "steps leave 1.32. The network itself as target over 18 intervals: 0.19 after 2,000 steps; few intervals "
        "and the average as target are what helped. Other seeds and data were not measured.",
    ),
    "consistency-training": Method(
        "consistency between two noise levels of a pair (iCT), one step",
        ConsistencyTraining(_IMAGE_TRAINING, _IMAGES, sigma_data=0.75),
        ConsistencyTraining(_PLANE_TRAINING, _PLANE, sigma_data=1.2, coupling="optimal"),
        "iCT's numbers, noise levels scaled to the data; not measured as it stands. With unscaled levels, width "
        "128 and 1,500 steps on 8 Gaussians: score 0.22, a miss. 80 intervals, 3,000 steps and stable targets: "
        "0.16, mode std up to 2.55; those against the average over 20 intervals: 0.29.",
    ),
    "easy-consistency": Method(
        "consistency training from a trained flow (ECT), one step",
        EasyConsistency(_IMAGE_TRAINING, _IMAGES, _IMAGE_TEACHER, sigma_data=0.75),
        EasyConsistency(_PLANE_TRAINING, _PLANE, _PLANE_TUTOR, coupling="optimal"),
        "Starts from the teacher's weights; released numbers. 8 Gaussians, seed 0, width 128, 1,500 steps, a "
        "weaker teacher: score 0.07, mode std up to 1.83, a miss. Not measured at this size.",
    ),
    "truncated-consistency": Method(
        "consistency training whose second stage leaves small noise to the first (TCM), one step",
        TruncatedConsistency(_IMAGE_TRAINING, _IMAGES, _IMAGE_TEACHER, sigma_data=0.75),
        TruncatedConsistency(_PLANE_TRAINING, _PLANE, _PLANE_TUTOR, coupling="optimal"),
        "",
    ),
    "continuous-consistency": Method(
        "consistency without a step size (sCM, training), one step",
        ContinuousConsistency(_IMAGE_TRAINING, _IMAGES, sigma_data=0.75),
        ContinuousConsistency(
            Training(steps=2000, batch=256, learning_rate=2e-3),
            _PLANE,
            sigma_data=1.2,
            mean=0.0,
            std=1.8,
            normalized=False,
            prior_weight=False,
            coupling="optimal",
        ),
        "In the plane without normalisation and prior weight, with stable targets and more of the large noise "
        "levels: score 0.27 on 8 Gaussians, seed 0, mode std up to 3.3, a miss. With the prior weight, the "
        "published noise levels and the pairs' velocities: 0.42. The published normalisation was not measured.",
    ),
    "consistency-trajectory": Method(
        "a flow map by a teacher's solver (CTM without its adversary), one step",
        ConsistencyTrajectory(_IMAGE_JUMPS, _IMAGES, _IMAGE_TEACHER, solver_steps=1),
        ConsistencyTrajectory(_PLANE_TRAINING, _PLANE, _PLANE_TUTOR, ends=0.5),
        "8 Gaussians, seed 0: score 0.0235, mode std up to 1.47, a miss. Half of the jumps start at noise, and half, "
        "drawn anew, end at data. With the network in the place of its average inside the target, one solver step "
        "and 2,000 steps: 0.18.",
    ),
    "consistency-trajectory-adversarial": Method(
        "a flow map by a teacher's solver and a discriminator (CTM), one step",
        ConsistencyTrajectory(_IMAGE_JUMPS, _IMAGES, _IMAGE_TEACHER, solver_steps=1, adversarial=1.0),
        ConsistencyTrajectory(_PLANE_TRAINING, _PLANE, _PLANE_TUTOR, ends=0.5, adversarial=1.0),
        "As without the adversary, and a hinge discriminator after a quarter of the training. Trains and samples; "
        "its quality was not measured.",
    ),
    "dmd": Method(
        "a teacher's score against that of the samples, beside the teacher's pairs (DMD), one step",
        DistributionMatching(_IMAGE_MATCHING, _IMAGES, _IMAGE_TEACHER, ratio=1, regression=0.25, **_NEAR_DATA),
        DistributionMatching(_PLANE_MATCHING, _PLANE, _PLANE_TUTOR, ratio=1, regression=0.25, **_NEAR_DATA),
        "DMD's pairs beside the score gap, with the numbers of dmd2. Trains and samples; its quality was not measured.",
    ),
    "dmd2": Method(
        "a teacher's score against that of the samples, and a head on the fake score (DMD2), one step",
        DistributionMatching(_IMAGE_MATCHING, _IMAGES, _IMAGE_TEACHER, ratio=3, adversarial=0.01, **_NEAR_DATA),
        DistributionMatching(_PLANE_MATCHING, _PLANE, _PLANE_TUTOR, ratio=3, adversarial=0.01, **_NEAR_DATA),
        "8 Gaussians, seed 0, three draws of 4,000, *without* the adversary: score 0.0144, masses within 0.039, mode "
        "std up to 1.27, a miss: a twentieth of the samples lies between modes. Published times, entry at the noise "
        "end, no epsilon and five updates of the fake score for one: 0.0083, 0.025 and 1.41. With an adversary of "
        "factor 0.03, three updates for one and 1,000 steps: 0.067 and 2.04. Other seeds and data were not measured.",
    ),
    "sid": Method(
        "score identities of a teacher and of the samples (SiD), one step",
        DistributionMatching(
            _IMAGE_MATCHING, _IMAGES, _IMAGE_TEACHER, loss="identity", ratio=2, entry=0.75, nearness=2.0
        ),
        DistributionMatching(_PLANE_MATCHING, _PLANE, _PLANE_TUTOR, loss="identity", ratio=2, entry=0.75, nearness=2.0),
        "8 Gaussians, seed 0, 900 of 1,500 updates at a learning rate of 5e-4, two draws of 2,000: score 0.070, masses "
        "within 0.034, mode std up to 1.75, a miss, still falling. The preset itself was not measured.",
    ),
    "f-distill": Method(
        "DMD2 along another divergence, here Jensen and Shannon's (f-distill), one step",
        DistributionMatching(
            _IMAGE_MATCHING,
            _IMAGES,
            _IMAGE_TEACHER,
            ratio=3,
            adversarial=0.01,
            divergence="jensen-shannon",
            **_NEAR_DATA,
        ),
        DistributionMatching(
            _PLANE_MATCHING, _PLANE, _PLANE_TUTOR, ratio=3, adversarial=0.01, divergence="jensen-shannon", **_NEAR_DATA
        ),
        "The numbers of dmd2. Trains and samples; its quality was not measured.",
    ),
    "moment-matching": Method(
        "jumps that agree as distributions (IMM), one step",
        MomentMatching(_IMAGE_TRAINING, _IMAGES, sigma_data=0.75),
        MomentMatching(
            Training(steps=2000, batch=256, learning_rate=2e-3),
            _PLANE,
            sigma_data=1.2,
            particles=16,
            coupling="optimal",
        ),
        "8 Gaussians, seed 0: score 0.41 with 16 particles and stable targets, mode std up to 3.4, a miss; 0.62 "
        "with 64 particles, a step of 2 in the noise ratio, and the pairs' states. A batch of 256 holds few "
        "groups; larger ones were not tried.",
    ),
    "drifting": Method(
        "a field of data and samples, one step",
        Drifting(Training(steps=1200, batch=160, learning_rate=3e-3), _IMAGES, temperatures=(1.0,)),
        Drifting(
            Training(steps=2500, batch=512, learning_rate=2e-3),
            _PLANE,
            positives=512,
            temperatures=(0.4,),
            final_temperatures=(0.12,),
        ),
        "Mean shift, one temperature: the best on the validation split. In the plane it falls from coarse, which "
        "carries mass between modes, to fine, which shapes them.",
    ),
    "drifting-released": Method(
        "the released drift: three small temperatures, normalised forces",
        Drifting(
            Training(steps=300, batch=160, learning_rate=3e-3),
            _IMAGES,
            field="released",
            temperatures=(0.02, 0.05, 0.2),
        ),
        Drifting(
            Training(steps=2000, batch=512, learning_rate=2e-3),
            _PLANE,
            positives=512,
            field="released",
            temperatures=(0.02, 0.05, 0.2),
        ),
        "The published field with its three temperatures: its own row, also where it loses. On raw pixels it "
        "collapses to the mean of a class, while the loss hardly moves.",
    ),
}
"""The one table from command name to method."""


def find_method(name: str) -> Method:
    """The method of a command-line name.

    Raises:
        ConfigError: for an unknown one, with the nearest names.

    Example:
        >>> find_method("meanflow").summary
        'average velocity, one step'
    """
    return METHODS[choose(name, METHODS, "method")]
