"""SiD: a generator trained by identities that hold between the teacher's score and its samples' score."""

from typing import ClassVar

import attrs
from torch import Tensor

from onestep_adapters.methods.flow_matching import IMAGE_TEACHER, SMOOTH_POINT_TEACHER
from onestep_adapters.methods.matching.dmd import MATCHING_IMAGE_TRAINING
from onestep_adapters.methods.matching.score_distillation import ScoreDistillation
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import Training
from onestep_adapters.methods.presets import POINT_NETWORK, SMOOTH_POINT_NETWORK, WIDE_IMAGE_NETWORK, Preset
from onestep_adapters.methods.teacher import EXACT
from onestep_adapters.methods.work import Work, trained
from onestep_core import score_identity_loss
from onestep_core.validators import finite


@attrs.frozen
class SiD(ScoreDistillation):
    """Score identity distillation: the gradient of the loss runs through both score networks."""

    objective: ClassVar[str] = "score identity"
    ode: ClassVar[str] = "no"

    alpha: float = attrs.field(default=1.2, validator=finite)
    """Weight alpha of the squared score difference that is subtracted in SiD's loss. 0: only the identity's product
    term. Paper: 1.2 or 1."""

    @property
    def score_work(self) -> Work:
        """Both scores; the gradient runs through both."""
        exact = self.teacher_from == EXACT
        return (2 - exact) * trained(self.training.batch)

    def score_loss(self, context: Context, samples: Tensor, z: Tensor, t: Tensor, labels: Tensor | None) -> Loss:
        """The score identity at noised samples."""
        real = context.required_teacher().denoiser(labels)
        fake = self.fake(context, samples, z, t, labels)
        total = score_identity_loss(real, lambda z, t: fake.denoised, samples, z, t, alpha=self.alpha).mean()
        return total, {"identity": total}


PRESETS = (
    Preset(
        "sid",
        "SiD: score identity distillation",
        SiD(
            MATCHING_IMAGE_TRAINING,
            WIDE_IMAGE_NETWORK,
            IMAGE_TEACHER,
            fake_score_updates=2,
            pairs_only_share=0.4,
            pairs_distance="l2",
            generator_time=0.75,
            time_power=2.0,
        ),
        SiD(
            Training(steps=2500, batch=256, learning_rate=1e-3),
            POINT_NETWORK,
            SMOOTH_POINT_TEACHER,
            alpha=1.0,
            fake_score_updates=3,
            pairs_weight=0.1,
            pairs_only_share=0.5,
            pairs_distance="l2",
            generator_time=0.75,
            time_power=2.5,
        ),
        "Images: two updates of the fake score for one of the generator; first the teacher's pairs alone, as in "
        "dmd2. Points: three updates, alpha 1, and the pairs keep a weight of 0.1. Without pairs (paper) samples "
        "lie between the modes of 8 Gaussians; with pairs at the start only, the identity moves mass from mode to "
        "mode; with a weight of 1 the pairs determine the result. Pairs alone give the same largest width of a mode.",
    ),
    Preset(
        "sid-paper",
        "SiD with the paper's generator time and one update of the fake score, without pairs",
        SiD(
            Training(steps=960, batch=64, learning_rate=5e-4),
            WIDE_IMAGE_NETWORK,
            IMAGE_TEACHER,
            fake_score_updates=1,
            alpha=1.2,
            generator_time=5 / 6,
            min_time=0.004,
        ),
        SiD(
            Training(steps=4000, batch=256, learning_rate=1e-3),
            SMOOTH_POINT_NETWORK,
            SMOOTH_POINT_TEACHER,
            fake_score_updates=1,
            alpha=1.2,
            generator_time=5 / 6,
            min_time=0.004,
        ),
        "Paper settings, with as many network evaluations in training as sid and far fewer updates than in the paper. "
        "Reported even when worse.",
    ),
)
