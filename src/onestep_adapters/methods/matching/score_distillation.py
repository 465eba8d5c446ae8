"""Shared by DMD, DMD2 and SiD: a generator, a fake score trained in turns on its samples, and the teacher's pairs.

The fake score starts from the teacher's weights; so does the generator if it has the same network. The generator is
evaluated at ``generator_time`` with pure noise as its state; its expected data are the samples. One update consists of
``fake_score_updates`` updates of the fake score and one of the generator. The history has both losses and
``fake_score_calibration``: the slope of a regression of samples on the fake score's expected data, 1 if it is right.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.backbones import Critic
from onestep_adapters.data import Dataset
from onestep_adapters.methods.flow_matching import Distillation
from onestep_adapters.methods.linear_path import PATH, evaluated_at, straight_consistency
from onestep_adapters.methods.method import Context, Loss
from onestep_adapters.methods.options import DISTANCES, Distance
from onestep_adapters.methods.students import start_from_teacher, take_over
from onestep_adapters.methods.teacher import EXACT, Teacher
from onestep_adapters.methods.teacher_pairs import teacher_pairs, teacher_pairs_to_make
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.networks import frozen
from onestep_adapters.training import Companion, Turn, trained_in_turns
from onestep_core import data_from_velocity, flow_matching_regression, knowledge_distillation_regression, mse
from onestep_core.diagnostics import calibration
from onestep_core.errors import ConfigError
from onestep_core.validators import not_negative, positive, positive_count, share

FAKE_SCORE = "fake_score"
"""Name of the companion."""


class Pairs(NamedTuple):
    """Noise and the teacher's samples from it, ``[count, *shape]``, with their classes."""

    noise: Tensor
    data: Tensor
    labels: Tensor | None


class FakeScore(NamedTuple):
    """The expected data of the fake score at a state, and its head's logits, if it has a head."""

    denoised: Tensor
    logits: Tensor | None


class Matched(NamedTuple):
    """The fake score's flow-matching loss and logs; its times and, with a head, its logits on the samples."""

    loss: Tensor
    logs: dict[str, Tensor]
    t: Tensor
    logits: Tensor | None


@attrs.frozen
class ScoreDistillation(Distillation):
    """Options and updates of the methods that compare the teacher's score with that of the generator's samples."""

    pairs_weight: float = attrs.field(default=0.0, validator=not_negative)
    """Weight of the regression onto the teacher's samples from the same noise, after the phase of --pairs-only-share;
    the score loss has weight 1. 0: no pairs after that phase (DMD2, SiD). DMD: 0.25."""
    pairs_only_share: float = attrs.field(default=0.0, validator=share)
    """Fraction of the training, at its start, in which the generator learns only from pairs of the teacher, 0 to 1.
    Papers: 0."""
    pairs_distance: Distance = "squared"
    """Distance between the generator's and the teacher's sample. squared: minimised by the mean of possible targets.
    l2: Euclidean, not squared; fewer samples between modes."""
    pairs: int = attrs.field(default=5000, validator=positive_count)
    """Number of pairs (noise, teacher's sample) made before training; only with --pairs-weight or --pairs-only-share
    above 0."""
    solver_steps: int = attrs.field(default=25, validator=positive_count)
    """Heun steps of the teacher from noise to data for each pair; each needs two evaluations. Only if pairs are
    made (see --pairs)."""
    fake_score_updates: int = attrs.field(default=5, validator=positive_count)
    """Updates of the fake score network before each update of the generator. DMD 1, DMD2 5, SiD 1."""
    fake_score_rate: float = attrs.field(default=1.0, validator=positive)
    """Learning rate of the fake score network, as a multiple of --learning-rate."""
    generator_time: float = attrs.field(default=1.0, validator=[share, positive])
    """Time t at which the generator is evaluated, above 0, at most 1; its input is t times the noise. 1: DMD, DMD2.
    SiD: 5/6, where the coefficient of the noise, t, is five times that of the data, 1 - t.
    Lower: it starts nearer to what the teacher's weights already do."""
    min_time: float = attrs.field(default=0.02, validator=share)
    """Smallest time at which the scores are compared, above 0 (data). DMD: 0.02."""
    max_time: float = attrs.field(default=0.98, validator=share)
    """Largest time at which the scores are compared, below 1 (noise). DMD: 0.98."""
    time_power: float = attrs.field(default=1.0, validator=positive)
    """Times are min_time + (max_time - min_time) u^power, u uniform on (0, 1); above 1 more times are near the data.
    Papers: 1."""

    def __attrs_post_init__(self) -> None:
        if not 0 < self.min_time < self.max_time < 1:
            raise ConfigError(
                f"scores between the times {self.min_time} and {self.max_time}: expected 0 < min_time < max_time < 1"
            )
        if not self.teacher_from:
            _check_coupling(self.teacher.coupling)
        if self.uses_pairs and self.teacher_from == EXACT:
            raise ConfigError(
                f"pairs_weight = {self.pairs_weight} and pairs_only_share = {self.pairs_only_share} with the exact "
                "score: pairs are made by a trained teacher; give 0 for both (--pairs-weight 0 --pairs-only-share 0)"
            )

    @property
    def uses_pairs(self) -> bool:
        """Whether the teacher makes pairs."""
        return self.pairs_weight > 0 or self.pairs_only_share > 0

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the generator needs the teacher's network: without pairs it must start from the teacher's weights."""
        return not self.uses_pairs and self.teacher_from != EXACT

    @property
    def has_head(self) -> bool:
        """Whether the fake score has a discriminator head."""
        return False

    @property
    def calls(self) -> int:
        """Network evaluations in one update, rounded mean: generator, teacher, fake score, and the fake score's own."""
        score = self.has_fake_score
        game = 1 + (self.teacher_from != EXACT) + (self.pairs_weight > 0) + score
        own = self.fake_score_updates * (2 + self.has_head) if score else 0
        return round(self.pairs_only_share + (1 - self.pairs_only_share) * game + own)

    def work(self, step: int, data: Dataset) -> Work:
        """The fake score's updates, and the generator's: pairs alone at first, then the game of the scores."""
        rows, own = self.training.batch, Work()
        if self.has_fake_score:
            own = self.fake_score_updates * (seen(self._drawn_rows) + (1 + self.has_head) * trained(rows))
        if self.uses_pairs and step < round(self.pairs_only_share * self.training.steps):
            return own + trained(rows)
        game = trained(rows) + seen(self._drawn_rows - rows) + self.score_work
        return own + game + (self.pairs_weight > 0) * trained(rows)

    @property
    def score_work(self) -> Work:
        """What the two scores cost in an update of the generator; the adversary's gradient runs through the fake."""
        rows, score = self.training.batch, seen(self.training.batch)
        return (self.teacher_from != EXACT) * score + self.has_fake_score * score + Work(backward=self.has_head * rows)

    @property
    def _drawn_rows(self) -> int:
        """Rows that the generator evaluates for one batch of samples."""
        return self.training.batch

    @property
    def has_fake_score(self) -> bool:
        """Whether a network learns the samples' score."""
        return True

    def check_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher whose velocity gives no score.

        Raises:
            ConfigError: if it learned coupled pairs.
        """
        _check_coupling(teacher.coupling)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The generator: a velocity network whose expected data are the samples."""
        return self.network.build(data, 1, generator)

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """The fake score, a velocity network with the teacher's architecture."""
        if not self.has_fake_score:
            return {}
        own = torch.Generator().manual_seed(self.training.seed + 1)
        module = self.teacher.network.build(data, 1, own)
        if self.has_head:
            layer, width = getattr(module, "head_place", ("output", self.teacher.network.width))
            module = Critic(module, width=width, layer=layer, generator=own)
        return {FAKE_SCORE: trained_in_turns(module, learning_rate=self.training.learning_rate)}

    def prepare(self, context: Context) -> Pairs | None:
        """The teacher's weights for the fake score and, if it has the same network, the generator; the pairs."""
        teacher = context.required_teacher()
        if teacher.module is not None and context.state.step == 0:
            if self.network == self.teacher.network:
                start_from_teacher(context)
            if self.has_fake_score:
                module = context.companion(FAKE_SCORE)
                take_over(module.score if isinstance(module, Critic) else module, teacher.module)
        if not self.uses_pairs:
            return None
        noise, (data, labels) = teacher_pairs(context, **self._pairs)
        return Pairs(noise, data, labels)

    def preparations(self, context: Context) -> tuple[str, ...]:
        """The teacher's pairs, if they are used."""
        return teacher_pairs_to_make(context, **self._pairs) if self.uses_pairs else ()

    @property
    def _pairs(self) -> dict[str, int]:
        return {"count": self.pairs, "solver_steps": self.solver_steps, "seed": self.training.seed}

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """The loss of the generator: first only the pairs, then the scores and the pairs."""
        pairs: Pairs | None = context.prepared
        if pairs is not None and context.state.step < round(self.pairs_only_share * self.training.steps):
            total = self._pairs_loss(network, pairs, generator)
            return total, {"pairs": total}
        samples, labels = self.generated(context.data, network, generator)
        t = self._times(len(samples), generator, self.min_time, self.max_time)
        z, _ = PATH(samples, torch.randn(samples.shape, generator=generator, device=generator.device), t)
        total, logs = self.score_loss(context, samples, z, t, labels)
        if pairs is not None and self.pairs_weight:
            regression = self._pairs_loss(network, pairs, generator)
            total, logs = total + self.pairs_weight * regression, {**logs, "pairs": regression}
        return total, logs

    @abstractmethod
    def score_loss(self, context: Context, samples: Tensor, z: Tensor, t: Tensor, labels: Tensor | None) -> Loss:
        """The loss that compares the two scores at noised samples ``z``."""

    def turns(self, context: Context) -> Sequence[Turn]:
        """The updates of the fake score."""
        if not self.has_fake_score:
            return ()
        rate = self.training.rate
        turn = Turn(
            FAKE_SCORE,
            partial(self.fake_score_loss, context),
            updates=self.fake_score_updates,
            learning_rate=lambda step: self.fake_score_rate * rate(step),
            clip=self.training.clip,
        )
        return (turn,)

    def fake_score_loss(self, context: Context, module: nn.Module, generator: torch.Generator) -> Loss:
        """Flow matching on the generator's samples."""
        matched = self.matched(context, module, generator)
        return matched.loss, matched.logs

    def matched(self, context: Context, module: nn.Module, generator: torch.Generator) -> Matched:
        """Flow matching of the fake score on the generator's samples, and its head's logits on them."""
        with torch.no_grad():
            samples, labels = self.generated(context.data, context.state.network, generator)
        t = self._times(len(samples), generator, 0.0, 1.0)
        z, v = PATH(samples, torch.randn(samples.shape, generator=generator, device=generator.device), t)
        prediction, logits = _outputs(module(z, t, label=labels))
        pair = flow_matching_regression(lambda z, t: prediction, z, v, t)
        loss = mse(*pair).mean()
        denoised = data_from_velocity(z, pair.prediction, t, path=PATH)
        return Matched(loss, {"matching": loss, "calibration": calibration(denoised, samples)}, t, logits)

    def generated(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A batch of the generator's samples, and their classes."""
        count, device = self.training.batch, generator.device
        noise = torch.randn(count, *data.shape, generator=generator, device=device)
        labels = data.labels(count, generator)
        time = torch.full((count,), self.generator_time, device=device)
        return straight_consistency(network, labels)(self.generator_time * noise, time), labels

    def fake(self, context: Context, samples: Tensor, z: Tensor, t: Tensor, labels: Tensor | None) -> FakeScore:
        """The fake score at ``z``; gradients reach ``z``, never its parameters."""
        module = frozen(context.companion(FAKE_SCORE))
        prediction, logits = _outputs(module(z, t, label=labels))
        return FakeScore(data_from_velocity(z, prediction, t, path=PATH), logits)

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one evaluation at ``generator_time``."""
        function = straight_consistency(network, labels)
        return evaluated_at(function, self.generator_time * noise, self.generator_time)

    def _pairs_loss(self, network: nn.Module, pairs: Pairs, generator: torch.Generator) -> Tensor:
        """Distance of the generator's samples to the teacher's from the same noise."""
        device = generator.device
        index = torch.randint(len(pairs.noise), (self.training.batch,), generator=generator, device=device)
        classes = None if pairs.labels is None else pairs.labels[index]
        one, zero = torch.ones(len(index), device=device), torch.zeros(len(index), device=device)
        pair = knowledge_distillation_regression(
            lambda z, t, s: self.sample(network, z, classes), pairs.noise[index], pairs.data[index], one, zero
        )
        return DISTANCES[self.pairs_distance](*pair).mean()

    def _times(self, count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
        uniform = torch.rand(count, generator=generator, device=generator.device)
        return low + (high - low) * uniform**self.time_power


def _outputs(out: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """The velocity of a fake score, and its head's logits if it has one."""
    return (out, None) if isinstance(out, Tensor) else out


def _check_coupling(coupling: str) -> None:
    if coupling != "independent":
        raise ConfigError(
            f"a teacher with coupling = {coupling!r} for a method that compares scores: its expected data give a score "
            "for independent pairs only; give teacher.coupling = independent, or another teacher"
        )
