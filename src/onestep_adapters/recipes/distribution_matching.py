"""Distribution matching from a teacher: DMD, DMD2, f-distill and SiD, a generator and a fake score in turns."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.backbones import Critic
from onestep_adapters.networks import frozen
from onestep_adapters.recipes.flow_matching import FlowMatching
from onestep_adapters.recipes.options import (
    DISTANCES,
    Distance,
    Network,
    Training,
    count,
    finite,
    not_negative,
    positive,
    share,
)
from onestep_adapters.recipes.pairs import teacher_pairs
from onestep_adapters.recipes.problems import Batch, Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.recipes.straight import PATH, straight_consistency
from onestep_adapters.recipes.students import required_teacher, start_from_teacher, take_over
from onestep_adapters.recipes.teachers import ORACLE, oracle_denoiser
from onestep_adapters.samplers import backward_simulation, consistency_multistep, standard_normal
from onestep_adapters.training import LossStep
from onestep_core import (
    data_from_velocity,
    denoising_error,
    density_ratio,
    distribution_matching_regression,
    empirical_denoiser,
    f_divergence_scale,
    flow_matching_regression,
    forward_kl,
    jeffreys,
    jensen_shannon,
    knowledge_distillation_regression,
    mse,
    neyman,
    non_saturating_discriminator,
    non_saturating_generator,
    ratio_means,
    reverse_kl,
    score_identity_loss,
    softened_reverse_kl,
    squared_hellinger,
)
from onestep_core.errors import ConfigError
from onestep_core.evidence import calibration
from onestep_core.flow import renoise_clean
from onestep_core.objectives import Divergence
from onestep_core.protocols import Denoiser

DIVERGENCES: dict[str, Divergence] = {
    "reverse-kl": reverse_kl,
    "forward-kl": forward_kl,
    "jensen-shannon": jensen_shannon,
    "softened-reverse-kl": softened_reverse_kl,
    "neyman": neyman,
    "squared-hellinger": squared_hellinger,
    "jeffreys": jeffreys,
}
"""What f-distill can be asked to lessen."""

_BINS = 10


def _following(noise: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Fresh noise for a sampler, each sample's from a generator that its first noise seeds."""
    bits = noise.detach().float().flatten(1).contiguous().cpu().view(torch.int32).long()
    # A sum would not tell noises apart whose numbers are in another order.
    places = torch.arange(1, bits.shape[1] + 1)
    generators = [torch.Generator().manual_seed(int(seed) % 2**63) for seed in (bits * places).sum(1)]

    def draw(step: int, like: Tensor) -> Tensor:
        each = [torch.randn(like.shape[1:], generator=generator, dtype=like.dtype) for generator in generators]
        return torch.stack(each).to(like.device) if each else torch.empty_like(like)

    return draw


@attrs.frozen
class DistributionMatching:
    """A generator follows the gap between the teacher's score and that of its samples, which a second network learns.

    The fake score starts as the teacher, and so does the generator, unless its network is another. It is asked at
    ``entry``, where pure noise takes the place of the state; what it makes of it are the samples. An update is
    ``ratio`` of the fake score's and then one of the generator's. The history has both losses and
    ``opponent_calibration``: the slope of samples on what the fake score expected of them, 1 where it keeps up.
    """

    training: Training = Training()
    network: Network = Network()
    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """Whose score is real; its network is also the fake score's. A generator of the same network starts from its
    weights; one of another starts anew and needs pairs, by ``regression`` or ``preparation``."""
    teacher_from: str = ""
    """Another teacher: the folder of a finished flow-matching run on the same data, or "oracle", the law's exact score
    (8gaussians and unequal), from which no network can start. Nothing: the teacher of ``teacher``'s options. With a
    folder the scores' network is that of the run."""
    loss: Literal["gap", "identity"] = "gap"
    """gap: samples are pulled along the score gap (DMD). identity: the score identity (SiD)."""
    alpha: float = attrs.field(default=1.2, validator=finite)
    """Of the score identity."""
    normalized: bool = True
    """Divide the gap by the mean distance that the teacher moves a sample, as published; or it is one of scores."""
    epsilon: float = attrs.field(default=0.0, validator=not_negative)
    """Added to that distance, in units of the data: gaps of samples that the teacher hardly moves, which are mostly
    errors, then count less. Published: 0, and 1e-6 in FastGen."""
    divergence: Literal[
        "reverse-kl",
        "forward-kl",
        "jensen-shannon",
        "softened-reverse-kl",
        "neyman",
        "squared-hellinger",
        "jeffreys",
    ] = "reverse-kl"
    """Which the gap descends; any but the reverse KL needs the adversary, whose logits give the ratio of densities."""
    adversarial: float = attrs.field(default=0.0, validator=not_negative)
    """Factor of the generator's adversarial term; 0 leaves the head on the fake score's features out."""
    adversarial_told: float = attrs.field(default=0.1, validator=not_negative)
    """Factor of the discriminator's loss beside the fake score's."""
    regression: float = attrs.field(default=0.0, validator=not_negative)
    """Factor of the regression onto the teacher's own samples from the same noise (DMD); 0 makes no pairs."""
    preparation: float = attrs.field(default=0.0, validator=share)
    """Share of the training in which the generator learns from such pairs alone, before it follows the gap."""
    distance: Distance = "squared"
    """Of a pair's sample to the generator's: l2 puts what lies between modes on one side."""
    pairs: int = attrs.field(default=5000, validator=[count, positive])
    """How many pairs."""
    solver_steps: int = attrs.field(default=25, validator=[count, positive])
    """Heun steps of the teacher for a pair."""
    fake: Literal["network", "kernel"] = "network"
    """network: a fake score that learns. kernel: the batch itself as the samples' law, and no second network."""
    ratio: int = attrs.field(default=5, validator=[count, positive])
    """Updates of the fake score for one of the generator."""
    opponent_pace: float = attrs.field(default=1.0, validator=positive)
    """Learning rate of the fake score, in units of the generator's."""
    generator_steps: int = attrs.field(default=1, validator=[count, positive])
    """Steps of the generator. Several are trained by backward simulation: on what its own sampler leaves."""
    entry: float = attrs.field(default=1.0, validator=share)
    """Time at which the generator is asked first, 1 the noise end; SiD's is where the noise is five times the data."""
    earliest: float = attrs.field(default=0.02, validator=share)
    """Smallest time at which scores are compared."""
    latest: float = attrs.field(default=0.98, validator=share)
    """Largest."""
    nearness: float = attrs.field(default=1.0, validator=positive)
    """Power of the uniform numbers that times are: above 1 scores are compared, and the fake one learnt, nearer to the
    data. Published: 1."""

    def __attrs_post_init__(self) -> None:
        if not 0 < self.earliest < self.latest < 1 or not self.entry > 0:
            raise ConfigError(
                f"scores between {self.earliest} and {self.latest}, entry at {self.entry}: expected two times in order "
                "strictly between 0 and 1, and an entry above 0"
            )
        if not self.teacher_from:
            knows_a_score(self.teacher)
        if self.divergence != "reverse-kl" and not self.adversarial_head:
            raise ConfigError(
                f"divergence {self.divergence!r} without an adversary: its logits give the ratio of densities, so give "
                "adversarial a positive number"
            )
        unused = {
            "identity": {"divergence": "reverse-kl", "normalized": True, "epsilon": 0.0},
            "gap": {"alpha": 1.2},
        }[self.loss]
        for option, default in unused.items():
            if getattr(self, option) != default:
                raise ConfigError(
                    f"{option} = {getattr(self, option)!r} beside loss = {self.loss!r}, which has no use for it: give "
                    f"{option} = {default!r}, or the other loss"
                )
        if self.epsilon and not self.normalized:
            raise ConfigError(
                f"epsilon = {self.epsilon} without a normaliser, to which it is added: give epsilon = 0.0"
            )
        if self.fake == "kernel" and (self.adversarial or self.loss == "identity"):
            raise ConfigError(
                f"fake = kernel beside adversarial = {self.adversarial} and loss = {self.loss!r}: a kernel has no "
                "features for a head and no gradient for the identity; give adversarial = 0 and loss = gap, or fake = "
                "network"
            )
        if self.paired and (self.teacher_from == ORACLE or self.generator_steps > 1):
            told = "the oracle" if self.teacher_from == ORACLE else f"generator_steps = {self.generator_steps}"
            raise ConfigError(
                f"regression = {self.regression} and preparation = {self.preparation} beside {told}: pairs are made by "
                "a trained teacher, for a generator of one step; give 0 for both (--preparation 0 --regression 0)"
            )

    @property
    def paired(self) -> bool:
        """Whether the teacher makes pairs."""
        return self.regression > 0 or self.preparation > 0

    @property
    def any_teacher(self) -> bool:
        """Whether the generator's network may be another than the scores': it starts anew where there are pairs."""
        return self.paired or self.teacher_from == ORACLE

    @property
    def adversarial_head(self) -> bool:
        """Whether the fake score has a head."""
        return self.adversarial > 0

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return self.generator_steps

    @property
    def calls(self) -> int:
        """Forward passes in an update, on average: generator, teacher, fake score, and the fake score's own updates.

        Of a generator of one step; one of several simulates at most ``generator_steps - 1`` more each time.
        """
        network = self.fake == "network"
        game = 1 + (self.teacher_from != ORACLE) + (self.regression > 0) + network
        own = self.ratio * (2 + self.adversarial_head) if network else 0
        return round(self.preparation + (1 - self.preparation) * game + own)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The generator: a velocity network, whose expected data are the samples."""
        if self.teacher_from == ORACLE:
            oracle_denoiser(problem)
        return self.network.build(problem, 1, generator)

    def build_opponent(self, problem: Problem) -> nn.Module | None:
        """The fake score, a velocity network, with or without a head."""
        if self.fake == "kernel":
            return None
        generator = torch.Generator().manual_seed(self.training.seed + 1)
        score = self.teacher.network.build(problem, 1, generator)
        return Critic(score, width=self.teacher.network.width, generator=generator) if self.adversarial_head else score

    def loss_step(self, setting: Setting) -> LossStep:
        """One update of the generator."""
        self._start(setting)
        pairs = None
        if self.paired:
            pairs = teacher_pairs(
                required_teacher(setting),
                setting.problem,
                count=self.pairs,
                solver_steps=self.solver_steps,
                seed=self.training.seed,
                kept=setting.kept,
            )

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            if pairs is not None and setting.state.step < round(self.preparation * self.training.steps):
                total = self._pulled(network, *pairs, generator)
                return total, {"regression": total}
            samples, labels = self._samples(network, setting.problem, generator)
            t = self._times(len(samples), generator)
            z, _ = PATH(samples, torch.randn(samples.shape, generator=generator), t)
            total, logs = self._matching(setting, samples, z, t, labels)
            if pairs is not None and self.regression:
                regression = self._pulled(network, *pairs, generator)
                total, logs = total + self.regression * regression, {**logs, "regression": regression}
            return total, logs

        return loss

    def opponent_step(self, setting: Setting) -> LossStep:
        """One update of the fake score, and of its head."""

        def loss(opponent: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            problem = setting.problem
            with torch.no_grad():
                samples, labels = self._samples(setting.state.network, problem, generator)
            t = self._times(len(samples), generator, whole=True)
            z, v = PATH(samples, torch.randn(samples.shape, generator=generator), t)
            prediction, logits = _judged(opponent, z, t, labels)
            pair = flow_matching_regression(lambda z, t: prediction, z, v, t)
            matching = mse(*pair).mean()
            denoised = data_from_velocity(z, pair.prediction, t, path=PATH)
            logs = {"matching": matching, "calibration": calibration(denoised, samples)}
            if logits is None:
                return matching, logs
            data, classes = problem.batch(len(samples), generator)
            noised, _ = PATH(data, torch.randn(data.shape, generator=generator), t)
            real = cast(Tensor, _judged(opponent, noised, t, classes)[1])
            told = non_saturating_discriminator(real, logits).mean()
            return matching + self.adversarial_told * told, {**logs, "discriminator": told}

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for. Noise between steps follows from a sample's own, so
        that it is the same at each call, whatever else is in it."""
        return consistency_multistep(
            straight_consistency(network, labels),
            self.entry * noise,
            self._grid(),
            path=PATH,
            noise=_following(noise) if self.generator_steps > 1 else None,
            renoise=renoise_clean,
        )

    def _pulled(self, network: nn.Module, noise: Tensor, made: Batch, generator: torch.Generator) -> Tensor:
        """The loss of regression onto the teacher's own samples."""
        index = torch.randint(len(noise), (self.training.batch,), generator=generator)
        classes = None if made.labels is None else made.labels[index]
        one, zero = torch.ones(len(index)), torch.zeros(len(index))
        pair = knowledge_distillation_regression(
            lambda z, t, s: self.generate(network, z, classes), noise[index], made.data[index], one, zero
        )
        return DISTANCES[self.distance](*pair).mean()

    def _grid(self) -> list[float]:
        return [self.entry * (1 - k / self.generator_steps) for k in range(self.generator_steps)] + [PATH.data_time]

    def _times(self, count: int, generator: torch.Generator, *, whole: bool = False) -> Tensor:
        low, high = (0.0, 1.0) if whole else (self.earliest, self.latest)
        return low + (high - low) * torch.rand(count, generator=generator) ** self.nearness

    def _samples(
        self, network: nn.Module, problem: Problem, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """What the generator makes, at one of its steps; the steps before are its own sampler's."""
        count = self.training.batch
        noise, labels = torch.randn(count, *problem.shape, generator=generator), problem.labels(count, generator)
        student = straight_consistency(network, labels)
        last = int(torch.randint(self.generator_steps, (), generator=generator)) if self.generator_steps > 1 else 0
        grid = self._grid()[: last + 1]
        z = backward_simulation(
            student, self.entry * noise, grid, path=PATH, noise=standard_normal(generator), renoise=renoise_clean
        )
        return student(z, torch.full((count,), grid[-1])), labels

    def _start(self, setting: Setting) -> None:
        """Before the first update the fake score becomes the teacher, where there are its weights, and generator and
        average too, if their network is the same.
        """
        if self.teacher_from == ORACLE:
            return
        if self.network == self.teacher.network:
            start_from_teacher(setting)
        opponent = setting.state.opponent
        if setting.state.step == 0 and opponent is not None:
            score = opponent.network.score if isinstance(opponent.network, Critic) else opponent.network
            take_over(score, required_teacher(setting))

    def _real(self, setting: Setting, labels: Tensor | None) -> Denoiser:
        if self.teacher_from == ORACLE:
            return oracle_denoiser(setting.problem)
        return straight_consistency(frozen(required_teacher(setting)), labels)  # type: ignore[arg-type]

    def _matching(
        self, setting: Setting, samples: Tensor, z: Tensor, t: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        real, opponent = self._real(setting, labels), setting.state.opponent
        if opponent is None:
            allowed = None if labels is None else labels[:, None] == labels
            estimate, logits = empirical_denoiser(z, samples, t, path=PATH, allowed=allowed), None
        else:
            prediction, logits = _judged(frozen(opponent.network), z, t, labels)
            estimate = data_from_velocity(z, prediction, t, path=PATH)
        if self.loss == "identity":
            total = score_identity_loss(real, lambda z, t: estimate, samples, z, t, alpha=self.alpha).mean()
            logs = {"identity": total}
        else:
            scale = None if logits is None else self._scale(logits, t)
            normalizer = partial(denoising_error, epsilon=self.epsilon) if self.normalized else None
            pair = distribution_matching_regression(
                real, lambda z, t: estimate, samples, z, t, path=PATH, scale=scale, normalizer=normalizer
            )
            total = mse(*pair).mean()
            logs = {"gap": total}
        if logits is not None:
            fooled = non_saturating_generator(logits).mean()
            total, logs = total + self.adversarial * fooled, {**logs, "adversarial": fooled}
        return total, logs

    def _scale(self, logits: Tensor, t: Tensor) -> Tensor | None:
        if self.divergence == "reverse-kl":
            return None
        ends = {"low": self.earliest, "high": self.latest}
        means = ratio_means(density_ratio(logits), t, torch.ones(_BINS), **ends)
        return f_divergence_scale(logits, t, divergence=DIVERGENCES[self.divergence], means=means, **ends)


def knows_a_score(teacher: FlowMatching) -> None:
    """Refuse a teacher whose velocity is not that of independent pairs.

    Raises:
        ConfigError: under another coupling the expected data given a state are no denoiser, so they tell no score.

    Example:
        >>> knows_a_score(FlowMatching())
    """
    if teacher.coupling != "independent":
        raise ConfigError(
            f"a teacher trained with coupling = {teacher.coupling!r} beside a score that is compared with it: the "
            "expected data of its states tell a score for independent pairs only; give teacher.coupling = independent"
        )


def _judged(network: Callable[..., Any], z: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The velocity of a fake score, and its head's logits if it has one."""
    out = network(z, t, label=labels)
    return (out, None) if isinstance(out, Tensor) else out
