"""DMD2 and f-distill: the score gap with a discriminator head on the fake score, for one or several steps."""

from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset
from onestep_adapters.methods.few_steps import noised_from
from onestep_adapters.methods.flow_matching import IMAGE_TEACHER, SMOOTH_POINT_TEACHER
from onestep_adapters.methods.linear_path import PATH, straight_consistency
from onestep_adapters.methods.matching.dmd import MATCHING_IMAGE_TRAINING, MATCHING_POINT_TRAINING, ScoreGap
from onestep_adapters.methods.matching.score_distillation import FakeScore
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.presets import POINT_NETWORK, SMOOTH_POINT_NETWORK, WIDE_IMAGE_NETWORK, Preset
from onestep_adapters.samplers import backward_simulation, standard_normal
from onestep_core import (
    density_ratio,
    f_divergence_scale,
    forward_kl,
    jeffreys,
    jensen_shannon,
    neyman,
    non_saturating_discriminator,
    non_saturating_generator,
    ratio_means,
    reverse_kl,
    softened_reverse_kl,
    squared_hellinger,
)
from onestep_core.errors import ConfigError
from onestep_core.fields import FDivergence
from onestep_core.flow import renoise_clean
from onestep_core.validators import not_negative, positive_count

DIVERGENCES: dict[str, FDivergence] = {
    "reverse-kl": reverse_kl,
    "forward-kl": forward_kl,
    "jensen-shannon": jensen_shannon,
    "softened-reverse-kl": softened_reverse_kl,
    "neyman": neyman,
    "squared-hellinger": squared_hellinger,
    "jeffreys": jeffreys,
}
"""The divergences that can be reduced, by name."""

_BINS = 10


@attrs.frozen
class DMD2(ScoreGap):
    """The score gap and an adversarial term; with another divergence than the reverse KL it is f-distill."""

    adversarial_weight: float = attrs.field(default=0.003, validator=not_negative)
    """Weight of the GAN loss in the generator's update. 0: no discriminator head. DMD2's code (ImageNet-64): 0.003."""
    discriminator_weight: float = attrs.field(default=0.1, validator=not_negative)
    """Weight of the discriminator's GAN loss in the update of the fake score network; only with
    --adversarial-weight above 0. DMD2's code (ImageNet-64): 0.01."""
    divergence: Literal[
        "reverse-kl",
        "forward-kl",
        "jensen-shannon",
        "softened-reverse-kl",
        "neyman",
        "squared-hellinger",
        "jeffreys",
    ] = "reverse-kl"
    """Divergence that the score gap reduces. reverse-kl: DMD2; it prefers single modes. forward-kl prefers to cover all
    modes; the others lie between. Any other than reverse-kl: f-distill; it needs --adversarial-weight
    above 0, because the discriminator gives the ratio of densities."""
    sampling_steps: int = attrs.field(default=1, validator=positive_count)
    """Steps, which are network evaluations, of the generator for one sample, at equally spaced times from
    --generator-time to 0. Above 1 it is trained on its own intermediate samples (backward simulation)."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.divergence != "reverse-kl" and not self.has_head:
            raise ConfigError(
                f"divergence {self.divergence!r} without a discriminator head: its logits give the ratio of "
                "densities, so give adversarial_weight a positive number"
            )
        if self.uses_pairs and self.sampling_steps > 1:
            raise ConfigError(
                f"pairs_weight = {self.pairs_weight} and pairs_only_share = {self.pairs_only_share} with "
                f"sampling_steps = {self.sampling_steps}: pairs are for a generator of one step; give 0 for both "
                "(--pairs-weight 0 --pairs-only-share 0)"
            )

    @property
    def has_head(self) -> bool:
        """Whether the fake score has a discriminator head."""
        return self.adversarial_weight > 0

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample."""
        return self.sampling_steps

    @property
    def _drawn_rows(self) -> int:
        """In the mean: the generator's step is drawn, and its sampler makes the steps before."""
        return round(self.training.batch * (self.sampling_steps + 1) / 2)

    def gap_scale(self, fake: FakeScore, t: Tensor) -> Tensor | None:
        """Factor of each sample's gap by the divergence, ``[batch]``; ``None`` for the reverse KL divergence."""
        if self.divergence == "reverse-kl" or fake.logits is None:
            return None
        ends = {"low": self.min_time, "high": self.max_time}
        means = ratio_means(density_ratio(fake.logits), t, torch.ones(_BINS, device=t.device), **ends)
        return f_divergence_scale(fake.logits, t, divergence=DIVERGENCES[self.divergence], means=means, **ends)

    def adversarial_loss(self, fake: FakeScore) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The non-saturating loss of the generator, weighted."""
        if fake.logits is None:
            return None, {}
        adversarial = non_saturating_generator(fake.logits).mean()
        return self.adversarial_weight * adversarial, {"adversarial": adversarial}

    def fake_score_loss(self, context: Context, module: nn.Module, generator: torch.Generator) -> Loss:
        """Flow matching on the generator's samples; with a head, plus its weighted discriminator loss."""
        loss, logs, t, logits = self.matched(context, module, generator)
        if logits is None:
            return loss, logs
        data, labels = context.data.batch(len(t), generator)
        noised, _ = PATH(data, torch.randn(data.shape, generator=generator, device=generator.device), t)
        discriminator = non_saturating_discriminator(module(noised, t, label=labels).logits, logits).mean()
        return loss + self.discriminator_weight * discriminator, {**logs, "discriminator": discriminator}

    def generated(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A batch of samples of one random step of the generator; its own sampler makes the steps before."""
        if self.sampling_steps == 1:
            return super().generated(data, network, generator)
        batch, device = self.training.batch, generator.device
        noise = torch.randn(batch, *data.shape, generator=generator, device=device)
        labels = data.labels(batch, generator)
        student = straight_consistency(network, labels)
        last = int(torch.randint(self.sampling_steps, (), generator=generator, device=device))
        grid = self._grid()[: last + 1]
        draws = standard_normal(generator)
        start = self.generator_time * noise
        z = backward_simulation(student, start, grid, path=PATH, noise=draws, renoise=renoise_clean)
        return student(z, torch.full((batch,), grid[-1], device=device)), labels

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples in ``sampling_steps`` evaluations. The noise between steps follows from a sample's first noise: a
        sample does not depend on what else is in the batch."""
        if self.sampling_steps == 1:
            return super().sample(network, noise, labels)
        start, function = self.generator_time * noise, straight_consistency(network, labels)
        return noised_from(function, start, noise, path=PATH, times=self._grid())

    def _grid(self) -> list[float]:
        steps = self.sampling_steps
        return [self.generator_time * (1 - k / steps) for k in range(steps)] + [PATH.data_time]


_SHARED: dict[str, Any] = {
    "fake_score_updates": 3,
    "pairs_distance": "l2",
    "generator_time": 0.75,
    "time_power": 2.5,
    "gap_epsilon": 0.05,
}
_IMAGES = DMD2(
    MATCHING_IMAGE_TRAINING,
    WIDE_IMAGE_NETWORK,
    IMAGE_TEACHER,
    adversarial_weight=0.01,
    pairs_only_share=0.4,
    **_SHARED,
)
_POINTS = DMD2(
    MATCHING_POINT_TRAINING,
    POINT_NETWORK,
    SMOOTH_POINT_TEACHER,
    adversarial_weight=0.003,
    pairs_only_share=0.5,
    **_SHARED,
)
_PAPER: dict[str, Any] = {"fake_score_updates": 5, "adversarial_weight": 0.003, "discriminator_weight": 0.01}

PRESETS = (
    Preset(
        "dmd2",
        "DMD2: score difference, with a discriminator head on the fake score network",
        _IMAGES,
        _POINTS,
        "Evaluating the generator at time 0.75 and a time power of 2.5 leave fewer samples between modes than the "
        "paper's times. The generator first learns from the teacher's pairs alone, by the Euclidean norm, which "
        "also leaves fewer samples between modes. Points: the generator has Fourier features, the scores have none; "
        "the adversarial weight is smaller, because the head adds noise there.",
    ),
    Preset(
        "dmd2-paper",
        "DMD2 with the paper's generator time, five updates of the fake score, the code's GAN weights",
        DMD2(MATCHING_IMAGE_TRAINING, WIDE_IMAGE_NETWORK, IMAGE_TEACHER, **_PAPER),
        DMD2(MATCHING_POINT_TRAINING, SMOOTH_POINT_NETWORK, SMOOTH_POINT_TEACHER, **_PAPER),
        "Paper settings, with more network evaluations in training than dmd2 and far fewer updates than in the paper. "
        "Reported even when worse.",
    ),
    Preset(
        "f-distill",
        "f-distill: DMD2 with another divergence, here Jensen-Shannon",
        attrs.evolve(_IMAGES, divergence="jensen-shannon"),
        attrs.evolve(_POINTS, divergence="jensen-shannon"),
        "The numbers of dmd2. For samples this good the head's logits are near zero, so that the divergence's "
        "factor stays near one and the row is close to dmd2's. Where modes are missing it is not: see "
        "examples/f_divergences.py.",
    ),
)
