"""DMD: a generator follows the gap between the teacher's score and its samples' score; plus the teacher's pairs."""

from functools import partial
from typing import ClassVar

import attrs
from torch import Tensor

from onestep_adapters.methods.flow_matching import IMAGE_TEACHER, POINT_TEACHER, SMOOTH_POINT_TEACHER
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.matching.score_distillation import FakeScore, ScoreDistillation
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import (
    LONG_POINT_TRAINING,
    POINT_NETWORK,
    SMOOTH_POINT_NETWORK,
    WIDE_IMAGE_NETWORK,
    Preset,
)
from onestep_core import denoising_error, distribution_matching_regression, empirical_denoiser, mse
from onestep_core.errors import ConfigError
from onestep_core.validators import not_negative


@attrs.frozen
class ScoreGap(ScoreDistillation):
    """Options of the score gap, and the loss that follows it: DMD's and DMD2's."""

    objective: ClassVar[str] = "regression (score gap)"
    ode: ClassVar[str] = "no"

    normalize_gap: bool = True
    """Divide the score gap (here the difference of the two denoised samples, which is the score
    difference times a factor of t) by the mean absolute difference between the
    generated sample and the teacher's denoised one (DMD). Off: no
    division."""
    gap_epsilon: float = attrs.field(default=0.0, validator=not_negative)
    """Number added to that divisor, at least 0, in units of the data; only with --normalize-gap. It limits the gradient
    where the teacher hardly changes the sample. Paper: 0."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.gap_epsilon and not self.normalize_gap:
            raise ConfigError(f"gap_epsilon = {self.gap_epsilon} without normalize_gap, which it belongs to: give 0")

    def score_loss(self, context: Context, samples: Tensor, z: Tensor, t: Tensor, labels: Tensor | None) -> Loss:
        """Squared distance of the samples to a target without gradient: the samples plus the gap."""
        real = context.required_teacher().denoiser(labels)
        fake = self.fake(context, samples, z, t, labels)
        normalizer = partial(denoising_error, epsilon=self.gap_epsilon) if self.normalize_gap else None
        pair = distribution_matching_regression(
            real,
            lambda z, t: fake.denoised,
            samples,
            z,
            t,
            path=PATH,
            scale=self.gap_scale(fake, t),
            normalizer=normalizer,
        )
        total = mse(*pair).mean()
        added, logs = self.adversarial_loss(fake)
        return (total if added is None else total + added), {"gap": total, **logs}

    def gap_scale(self, fake: FakeScore, t: Tensor) -> Tensor | None:
        """Factor of each sample's gap, ``[batch]``; ``None`` for the reverse KL divergence."""
        return None

    def adversarial_loss(self, fake: FakeScore) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The generator's weighted adversarial loss and its log; ``None`` without a head."""
        return None, {}


@attrs.frozen
class DMD(ScoreGap):
    """Distribution matching distillation: the score gap and the teacher's pairs."""

    kernel_score: bool = False
    """Estimate the generator's score from the batch itself, as if its samples were all the data; no fake score network,
    and --fake-score-* have no effect."""

    @property
    def has_fake_score(self) -> bool:
        """Whether a network learns the samples' score."""
        return not self.kernel_score

    def fake(self, context: Context, samples: Tensor, z: Tensor, t: Tensor, labels: Tensor | None) -> FakeScore:
        """The fake score at ``z``, of the network or of the batch's kernel density."""
        if not self.kernel_score:
            return super().fake(context, samples, z, t, labels)
        allowed = None if labels is None else labels[:, None] == labels
        return FakeScore(empirical_denoiser(z, samples, t, path=PATH, allowed=allowed), None)


MATCHING_IMAGE_TRAINING = Training(steps=800, batch=64, learning_rate=5e-4)
"""Images: DMD2 and SiD."""
MATCHING_POINT_TRAINING = Training(steps=2000, batch=256, learning_rate=1e-3)
"""Points: DMD2."""

PRESETS = (
    Preset(
        "dmd",
        "DMD: difference of a teacher's and the samples' score, and regression onto the teacher's pairs",
        DMD(
            Training(steps=1000, batch=64, learning_rate=5e-4),
            WIDE_IMAGE_NETWORK,
            IMAGE_TEACHER,
            fake_score_updates=3,
            pairs_weight=0.02,
            pairs_only_share=0.4,
            pairs_distance="l2",
            generator_time=0.75,
            time_power=1.5,
            gap_epsilon=0.05,
        ),
        DMD(
            LONG_POINT_TRAINING,
            POINT_NETWORK,
            POINT_TEACHER,
            fake_score_updates=1,
            pairs_weight=2.0,
            generator_time=0.75,
            time_power=2.5,
            gap_epsilon=0.05,
        ),
        "DMD's pairs beside the score gap. Images: first pairs alone, then pairs with a small weight, by the "
        "Euclidean norm; a generator trained on pairs alone ends slightly further from the data than one that "
        "follows the gap. Points: a larger weight for the pairs, more updates, and networks with Fourier features. "
        "Without these features the teacher's modes were 20 % too wide; the pairs correct the gap between the "
        "modes, where it is wrong. The teacher learned independent pairs: other couplings give no score.",
    ),
    Preset(
        "dmd-paper",
        "DMD with the paper's weight of the pairs, time distribution and updates of the fake score",
        DMD(
            Training(steps=1500, batch=64, learning_rate=5e-4),
            WIDE_IMAGE_NETWORK,
            IMAGE_TEACHER,
            fake_score_updates=1,
            pairs_weight=0.25,
        ),
        DMD(
            Training(steps=4000, batch=256, learning_rate=1e-3),
            SMOOTH_POINT_NETWORK,
            SMOOTH_POINT_TEACHER,
            fake_score_updates=1,
            pairs_weight=0.25,
        ),
        "Paper settings, with as many network evaluations in training as dmd and far fewer updates than in the paper. "
        "Reported even when worse.",
    ),
)
