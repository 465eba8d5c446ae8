"""The one table from command-line name to method: its recipe for images and for the plane, and what was chosen."""

from typing import Any, NamedTuple

import attrs

from onestep_adapters.recipes.alpha_flow import AlphaFlow, SolutionFlow
from onestep_adapters.recipes.consistency_distillation import ConsistencyDistillation
from onestep_adapters.recipes.consistency_training import ConsistencyTraining
from onestep_adapters.recipes.consistency_trajectory import ConsistencyTrajectory
from onestep_adapters.recipes.continuous_consistency import ContinuousConsistency
from onestep_adapters.recipes.distribution_matching import DistributionMatching
from onestep_adapters.recipes.drifting import Drifting
from onestep_adapters.recipes.easy_consistency import EasyConsistency
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.improved_meanflow import ImprovedMeanFlow
from onestep_adapters.recipes.meanflow import MeanFlow
from onestep_adapters.recipes.moment_matching import MomentMatching
from onestep_adapters.recipes.names import choose
from onestep_adapters.recipes.options import Network, Training
from onestep_adapters.recipes.problems import DIGITS, PROBLEMS
from onestep_adapters.recipes.progressive import Progressive
from onestep_adapters.recipes.recipe import Recipe
from onestep_adapters.recipes.rectified_flow import Reflow
from onestep_adapters.recipes.rectified_meanflow import RectifiedMeanFlow
from onestep_adapters.recipes.shortcut import Shortcut, SplitMeanFlow
from onestep_adapters.recipes.terminal_velocity import TerminalVelocity
from onestep_adapters.recipes.truncated_consistency import TruncatedConsistency


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
# A wider condition: better on the validation split for the yardstick and most of those that learn from it, and for
# shortcut, sCM and IMM; worse for the others.
_IMAGES_WIDE = Network("conv", width=32, depth=3, condition=4)
_PLANE = Network("mlp", width=192, depth=3, fourier=64)
# Without sinusoids: a gap of scores that have them is wrong between the modes, where neither saw any data, and only
# pairs (dmd) hold a generator against it.
_SMOOTH = Network("mlp", width=192, depth=3)
_IMAGE_TRAINING = Training(steps=2400, batch=64, learning_rate=3e-3)
_PLANE_TRAINING = Training(steps=3000, batch=256, learning_rate=2e-3)
_IMAGE_JUMPS = Training(steps=1000, batch=64, learning_rate=2e-3)
_PLANE_STUDENT = Training(steps=4000, batch=256, learning_rate=2e-3)
_PLANE_JUMPS = Training(steps=4000, batch=384, learning_rate=2.5e-3)
_PLANE_TRAJECTORY = Training(steps=2000, batch=256, learning_rate=2e-3)
# As many as three minutes bear.
_PLANE_DISTILLED = Training(steps=3500, batch=256, learning_rate=2e-3)
_IMAGE_ADVERSARIAL = Training(steps=700, batch=64, learning_rate=2e-3)
_PLANE_ADVERSARIAL = Training(steps=1600, batch=256, learning_rate=2e-3)
_IMAGE_TEACHER = FlowMatching(_IMAGE_TRAINING, _IMAGES_WIDE)
_IMAGE_TUTOR = FlowMatching(_IMAGE_TRAINING, _IMAGES_WIDE, coupling="precomputed")
_PLANE_TEACHER = FlowMatching(_PLANE_TRAINING, _PLANE)
# Twice as long: after as many updates as with sinusoids its own modes are an eighth too wide.
_SMOOTH_TEACHER = FlowMatching(Training(steps=6000, batch=256, learning_rate=2e-3), _SMOOTH)
_PLANE_TUTOR = FlowMatching(Training(steps=4000, batch=256, learning_rate=2e-3), _PLANE, coupling="optimal")

_IMAGE_MATCHING_AFTER_PAIRS = Training(steps=800, batch=64, learning_rate=5e-4)
_PLANE_MATCHING = Training(steps=2000, batch=256, learning_rate=1e-3)
# Half of a batch jumps, half of the jumps end at the data.
_COUPLED_JUMPS: dict[str, Any] = {"moving": 0.5, "coupling": "precomputed", "anchored": 0.5}
_NEAR_DATA: dict[str, Any] = {"entry": 0.75, "nearness": 2.5, "epsilon": 0.05}
_IMAGE_DMD2 = DistributionMatching(
    _IMAGE_MATCHING_AFTER_PAIRS,
    _IMAGES_WIDE,
    _IMAGE_TEACHER,
    ratio=3,
    adversarial=0.01,
    preparation=0.4,
    distance="l2",
    **_NEAR_DATA,
)
_PLANE_DMD2 = DistributionMatching(
    _PLANE_MATCHING,
    _PLANE,
    _SMOOTH_TEACHER,
    ratio=3,
    adversarial=0.003,
    preparation=0.5,
    distance="l2",
    **_NEAR_DATA,
)

# DMD: one update of the fake score, a quarter of the pairs. DMD2: five, the head's factors. SiD: one, its alpha, its
# generator asked where noise is five times the data. All from the teacher's weights.
_PUBLISHED_DMD: dict[str, Any] = {"ratio": 1, "regression": 0.25}
_PUBLISHED_DMD2: dict[str, Any] = {"ratio": 5, "adversarial": 0.003, "adversarial_told": 0.01}
_PUBLISHED_SID: dict[str, Any] = {"loss": "identity", "ratio": 1, "alpha": 1.2, "entry": 5 / 6, "earliest": 0.004}
_PUBLISHED_MEANFLOW: dict[str, float] = {"power": 1.0, "moving": 0.25, "uniform_share": 0.0, "mean": -0.4}


def _published(summary: str, numbers: dict[str, Any]) -> Method:
    return Method(
        summary,
        DistributionMatching(_IMAGE_MATCHING_AFTER_PAIRS, _IMAGES_WIDE, _IMAGE_TEACHER, **numbers),
        DistributionMatching(_PLANE_MATCHING, _SMOOTH, _SMOOTH_TEACHER, **numbers),
        "The published default, with far fewer updates: its own row, also where it loses.",
    )


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
        MeanFlow(_IMAGE_TRAINING, _IMAGES, power=0.5, coupling="precomputed"),
        MeanFlow(_PLANE_STUDENT, _PLANE, power=0.5, coupling="precomputed"),
        "From the data alone. Images: adaptive weight of power 0.5 and uniform times have the smallest energy "
        "distance on the validation split among powers 0, 0.5 and 1 and the published times. What decides is how "
        "straight the flow is, that is how noise and data are coupled: among many pairs, made once, they leave a third "
        "of the energy distance of independent ones; what is left are samples too close to one another (density above "
        "1). In the plane the same weight decides: where noise divides between two modes, a squared distance puts "
        "samples between them (2.5 % of all, which leaves modes a fifth too wide), a distance nearer to the first "
        "power puts them on one side.",
    ),
    "meanflow-distillation": Method(
        "average velocity of a trained flow, one step",
        MeanFlow(_IMAGE_TRAINING, _IMAGES_WIDE, power=0.5, teacher=_IMAGE_TUTOR),
        MeanFlow(_PLANE_TRAINING, _PLANE, teacher=_PLANE_TUTOR),
        "The teacher's velocity in place of the pair's, from the weights of a teacher of coupled pairs. Images are as "
        "close to one another as MeanFlow's; in the plane the teacher's flow is nearly straight, and nothing is left "
        "of that.",
    ),
    "rectified-meanflow": Method(
        "average velocity between noise and what a flow makes of it, one step",
        RectifiedMeanFlow(
            _IMAGE_TRAINING,
            _IMAGES_WIDE,
            moving=0.25,
            power=0.5,
            teacher=_IMAGE_TEACHER,
            pairs=10_000,
            solver_steps=16,
            known=0.7,
        ),
        RectifiedMeanFlow(_PLANE_TRAINING, _PLANE, power=0.5, teacher=_PLANE_TUTOR),
        "Pairs of noise and what the teacher makes of it, from the teacher's weights: the flow between them is "
        "nearly straight. Images: a quarter of a batch jumps, as published; of the others, most get the whole jump "
        "from noise to data, whose average velocity is that of the pair. Of the variants tried on the digits' "
        "validation split (from data; the teacher's velocity at powers 0, 0.5 and 1, learning rates 1.5e-3 to "
        "6e-3; these pairs with a quarter, half or three quarters of jumps, whole jumps by their derivative, power "
        "0, fewer solver steps) this one was best.",
    ),
    "meanflow-released": Method(
        "average velocity as published: weight, times and share of moving pairs",
        MeanFlow(Training(steps=600, batch=64, learning_rate=3e-3), _IMAGES, **_PUBLISHED_MEANFLOW),
        MeanFlow(_PLANE_TRAINING, _PLANE, **_PUBLISHED_MEANFLOW),
        "The published default, with fewer steps: its own row, also where it loses.",
    ),
    "improved-meanflow": Method(
        "average velocity with a predicted tangent, one step",
        ImprovedMeanFlow(_IMAGE_TRAINING, _IMAGES, power=0.75, **_COUPLED_JUMPS),
        ImprovedMeanFlow(_PLANE_STUDENT, _PLANE, power=0.5, coupling="precomputed"),
        "Coupled pairs and an adaptive weight, as MeanFlow. Its tangent is the network's own velocity, which is learnt "
        "beside the rest: early on the derivative follows a velocity that is wrong.",
    ),
    "alpha-flow": Method(
        "average velocity, annealed from flow matching of whole jumps, one step",
        AlphaFlow(_IMAGE_TRAINING, _IMAGES, power=0.5, end=0.5, final=0.05, **_COUPLED_JUMPS),
        AlphaFlow(_PLANE_STUDENT, _PLANE, power=0.5, end=0.4, final=0.01, **_COUPLED_JUMPS),
        "Ends before MeanFlow, at an alpha of one or five hundredths: the last stretch adds variance. Half of the "
        "jumps end at the data. Coupled pairs and an adaptive weight, as MeanFlow. A target is a share of the "
        "pair's velocity and else the frozen network's, "
        "so an error of the network is inherited step by step.",
    ),
    "split-meanflow": Method(
        "average velocity that agrees with itself, one step",
        SplitMeanFlow(_IMAGE_TRAINING, _IMAGES, **_COUPLED_JUMPS),
        SplitMeanFlow(_PLANE_JUMPS, _PLANE, moving=0.5, references=1024, anchored=0.5),
        "Half of the jumps end at the data. Images: coupled pairs; in the plane the velocity is the expected one among "
        "further data of the batch (stable targets). Both of a target's jumps are the network's own, so that what a "
        "short jump gets wrong is in all that are made of it: samples too close to one another.",
    ),
    "shortcut": Method(
        "average velocity at step sizes 1, 1/2, 1/4, ..., one step",
        Shortcut(_IMAGE_TRAINING, _IMAGES_WIDE, moving=0.6, coupling="precomputed", biased=True),
        Shortcut(_PLANE_JUMPS, _PLANE, moving=0.6, references=1024, biased=True),
        "Longest jumps favoured, as an option of the released code does. Images: coupled pairs; in the plane stable "
        "targets. As in SplitMeanFlow, the errors of short jumps add up in long ones.",
    ),
    "terminal-velocity": Method(
        "average velocity whose end moves as it should, one step",
        TerminalVelocity(_IMAGE_TRAINING, _IMAGES, **_COUPLED_JUMPS),
        TerminalVelocity(
            Training(steps=2500, batch=256, learning_rate=2e-3), _PLANE, moving=0.5, coupling="optimal", anchored=0.5
        ),
        "Half of the jumps end at the data. Coupled pairs.",
    ),
    "solution-flow": Method(
        "the solution of the flow's equation, one step",
        SolutionFlow(_IMAGE_TRAINING, _IMAGES, power=0.5, first=0.2, last=0.05, **_COUPLED_JUMPS),
        SolutionFlow(_PLANE_STUDENT, _PLANE, power=0.5, first=0.3, last=0.01, **_COUPLED_JUMPS),
        "Half of the jumps end at the data. Coupled pairs and an adaptive weight, as MeanFlow. Its second point lies "
        "on a straight line from the first, a fixed share of the way: the error of that share is left.",
    ),
    "reflow": Method(
        "a teacher's noise and data, joined by straight lines, one step",
        Reflow(_IMAGE_TEACHER, _IMAGE_TRAINING, _IMAGES_WIDE, at_noise=0.5, pairs=8000, distance="l2"),
        Reflow(_PLANE_TUTOR, _PLANE_TRAINING, _PLANE, at_noise=0.5),
        "Half of the training times are the noise end, where the one step starts; published: none. Images: the "
        "distance itself, not its square (published), whose mean of several targets is nearer to the centre than any.",
    ),
    "progressive": Method(
        "a student halves its teacher's steps until one is left",
        Progressive(_IMAGE_TRAINING, _IMAGES_WIDE, _IMAGE_TEACHER),
        Progressive(_PLANE_STUDENT, _PLANE, _PLANE_TUTOR),
        "The last two stages are twice as long as the others. In the plane its teacher learnt optimally coupled pairs.",
    ),
    "consistency-distillation": Method(
        "consistency along a teacher's trajectories, one step",
        ConsistencyDistillation(_IMAGE_TRAINING, _IMAGES_WIDE, _IMAGE_TUTOR, intervals=8, distance="l2"),
        ConsistencyDistillation(_PLANE_STUDENT, _PLANE, _PLANE_TUTOR, intervals=8),
        "Few intervals, and the moving average as target, are what helped: the network itself over eighteen was "
        "far behind. Its teacher learnt coupled pairs. Images: the distance itself, as in reflow.",
    ),
    "consistency-training": Method(
        "consistency between two noise levels of a pair (iCT), one step",
        ConsistencyTraining(_IMAGE_TRAINING, _IMAGES, sigma_data=0.75, coupling="precomputed"),
        ConsistencyTraining(
            Training(steps=6000, batch=256, learning_rate=2e-3),
            _PLANE,
            sigma_data=1.2,
            sigma_max=20.0,
            first=8,
            last=12,
            mean=0.0,
            huber=0.02,
            weight_power=0.0,
            target="average",
            coupling="precomputed",
        ),
        "On images iCT's numbers, noise levels scaled to the data, and coupled pairs; from scratch and in few updates "
        "the class is not always heard, and samples end too far from the data (density below 0.8). In the plane, "
        "where iCT's numbers come nowhere near in so few updates, the first form: few intervals and the average as "
        "target, with coupled pairs and pseudo-Huber's distance of a larger constant: squared, samples fall between "
        "modes.",
    ),
    "easy-consistency": Method(
        "consistency training from a trained flow (ECT), one step",
        EasyConsistency(_IMAGE_TRAINING, _IMAGES_WIDE, _IMAGE_TEACHER, sigma_data=0.75, coupling="precomputed"),
        EasyConsistency(_PLANE_STUDENT, _PLANE, _PLANE_TUTOR, coupling="optimal"),
        "Starts from the teacher's weights; released numbers, coupled pairs.",
    ),
    "truncated-consistency": Method(
        "consistency training whose second stage leaves small noise to the first (TCM), one step",
        TruncatedConsistency(_IMAGE_TRAINING, _IMAGES_WIDE, _IMAGE_TEACHER, sigma_data=0.75, coupling="precomputed"),
        TruncatedConsistency(_PLANE_TRAINING, _PLANE, _PLANE_TUTOR, coupling="optimal"),
        "Half of the updates for each stage; the transition at noise as large as published. Coupled pairs. On images "
        "the second stage has 1,200 updates for the large noise levels, where the samples come from: they are "
        "still too far from the data (density below 0.8).",
    ),
    "continuous-consistency": Method(
        "consistency without a step size (sCM), one step",
        ContinuousConsistency(_IMAGE_TRAINING, _IMAGES_WIDE, _IMAGE_TEACHER, sigma_data=0.75),
        ContinuousConsistency(
            _PLANE_DISTILLED, _PLANE, _PLANE_TUTOR, distilled=True, sigma_data=1.2, mean=0.0, std=1.8
        ),
        "Images: as published, from a teacher's weights; from scratch samples did not listen to their class. In the "
        "plane distillation (sCD) with more of the large noise levels: the same start and coupled pairs in place of "
        "the teacher's velocity leave modes a quarter too wide, from scratch twice.",
    ),
    "consistency-trajectory": Method(
        "a flow map by a teacher's solver (CTM without its adversary), one step",
        ConsistencyTrajectory(_IMAGE_JUMPS, _IMAGES_WIDE, _IMAGE_TUTOR, solver_steps=1),
        ConsistencyTrajectory(_PLANE_TRAJECTORY, _PLANE, _PLANE_TUTOR, ends=0.5),
        "A quarter of the jumps start at noise, and as many, drawn anew, end at data; in the plane half. The inner map "
        "is the average, as published; the network in its place was far behind. Pairs are coupled as the teacher's "
        "were: independent ones beside a teacher of coupled ones leave modes wider.",
    ),
    "consistency-trajectory-adversarial": Method(
        "a flow map by a teacher's solver and a discriminator (CTM), one step",
        ConsistencyTrajectory(_IMAGE_ADVERSARIAL, _IMAGES_WIDE, _IMAGE_TUTOR, solver_steps=1, adversarial=1.0),
        ConsistencyTrajectory(_PLANE_ADVERSARIAL, _PLANE, _PLANE_TUTOR, ends=0.5, adversarial=0.3),
        "As without the adversary, and a hinge discriminator after a quarter of the training; in the plane it counts a "
        "third, with which fewer samples end between modes.",
    ),
    "dmd": Method(
        "a teacher's score against that of the samples, beside the teacher's pairs (DMD), one step",
        DistributionMatching(
            Training(steps=1000, batch=64, learning_rate=5e-4),
            _IMAGES_WIDE,
            _IMAGE_TEACHER,
            ratio=3,
            regression=0.02,
            preparation=0.4,
            distance="l2",
            **(_NEAR_DATA | {"nearness": 1.5}),
        ),
        DistributionMatching(_PLANE_STUDENT, _PLANE, _PLANE_TEACHER, ratio=1, regression=2.0, **_NEAR_DATA),
        "DMD's pairs beside the score gap. Images: pairs alone first, then with a small weight, by the distance "
        "itself: generators of pairs end a little further from the data than those of the gap. In the plane more "
        "weight on the pairs, more updates, and networks with sinusoids: without them the teacher's own modes were a "
        "fifth too wide, and the pairs hold the generator where the gap errs between modes. Its teacher learnt "
        "independent pairs: others tell no score.",
    ),
    "dmd-released": _published("DMD as published: its share of pairs, times and updates", _PUBLISHED_DMD),
    "dmd2": Method(
        "a teacher's score against that of the samples, and a head on the fake score (DMD2), one step",
        _IMAGE_DMD2,
        _PLANE_DMD2,
        "Entry below the noise end and nearness 2.5 leave fewer samples between modes than the published times. The "
        "generator learns from the teacher's pairs first, by the distance itself, which puts what lies between modes "
        "on one side; in the plane it has sinusoids, which the scores have not, and a weaker adversary: the head adds "
        "noise there.",
    ),
    "dmd2-released": _published(
        "DMD2 as published: no pairs, five updates of the fake score, the head's factors", _PUBLISHED_DMD2
    ),
    "sid": Method(
        "score identities of a teacher and of the samples (SiD), one step",
        DistributionMatching(
            _IMAGE_MATCHING_AFTER_PAIRS,
            _IMAGES_WIDE,
            _IMAGE_TEACHER,
            loss="identity",
            ratio=2,
            preparation=0.4,
            distance="l2",
            entry=0.75,
            nearness=2.0,
        ),
        DistributionMatching(
            Training(steps=2500, batch=256, learning_rate=1e-3),
            _PLANE,
            _SMOOTH_TEACHER,
            loss="identity",
            alpha=1.0,
            ratio=3,
            regression=0.1,
            preparation=0.5,
            distance="l2",
            entry=0.75,
            nearness=2.5,
        ),
        "Two updates of the fake score for one. Images: the teacher's pairs first, as dmd2. In the plane three "
        "updates, an alpha of 1, and a tenth of the pairs' weight stays beside the identity. Without any, as "
        "published, samples lie between the modes of 8 Gaussians; with pairs first and none later the identity moves "
        "mass from mode to mode; at a weight of 1 the pairs decide alone. By themselves they end where the two end "
        "together.",
    ),
    "sid-released": _published(
        "SiD as published: no pairs, one update of the fake score, an alpha of 1.2", _PUBLISHED_SID
    ),
    "f-distill": Method(
        "DMD2 along another divergence, here Jensen and Shannon's (f-distill), one step",
        attrs.evolve(_IMAGE_DMD2, divergence="jensen-shannon"),
        attrs.evolve(_PLANE_DMD2, divergence="jensen-shannon"),
        "The numbers of dmd2. The head tells little of samples that good, so that the divergence's factor stays near "
        "one and the row is close to dmd2's; where modes are missing it is not, see examples/f_divergences.py.",
    ),
    "moment-matching": Method(
        "jumps that agree as distributions (IMM), one step",
        MomentMatching(
            _IMAGE_TRAINING,
            _IMAGES_WIDE,
            sigma_data=0.75,
            particles=8,
            decrement=160 / 2**7,
            coupling="precomputed",
        ),
        MomentMatching(
            Training(steps=6000, batch=256, learning_rate=2e-3),
            _PLANE,
            sigma_data=1.2,
            particles=16,
            decrement=160 / 2**7,
            coupling="precomputed",
        ),
        "Images: 128 steps over the noise levels in place of 4,096, which few updates do not climb (samples then did "
        "not listen to their class), groups of eight, coupled pairs. In the "
        "plane the same steps and groups of sixteen, of "
        "which four times as many were no better. What is left of the miss there are five percent of the samples "
        "between modes.",
    ),
    "drifting": Method(
        "a field of data and samples, one step",
        Drifting(Training(steps=1200, batch=160, learning_rate=3e-3), _IMAGES, temperatures=(1.0,)),
        Drifting(
            Training(steps=6000, batch=512, learning_rate=2e-3),
            _PLANE,
            positives=512,
            temperatures=(0.4, 1.5),
            final_temperatures=(0.12, 0.5),
        ),
        "Mean shift, one temperature: the best on the validation split. In the plane two, which fall: the finer one "
        "shapes the modes, and the coarser one goes on carrying mass between them; without it a few percent "
        "of the unequal mixture ended in the wrong mode.",
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
