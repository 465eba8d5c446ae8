"""Drifting: a one-step generator that follows a field of data and its own samples."""

import math
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import SampleQueue
from onestep_adapters.encoders import RandomConvolutions, joined, pixels
from onestep_adapters.recipes.drift_fields import RELEASED, named_field
from onestep_adapters.recipes.drift_monitors import DriftMonitors, monitor_names
from onestep_adapters.recipes.options import Network, Training, not_negative, positive, share
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import (
    drift_negative_weight,
    drifting_regressions,
    geometric_temperature,
    mse,
    sample_guidance_scales,
)
from onestep_core.errors import ConfigError
from onestep_core.protocols import Features, Field

_GLOBAL = 1000
"""Unconditional samples in a queue, as released."""


@attrs.frozen
class Guidance:
    """How strongly a class is set off against all classes; the generator takes the strength as an input."""

    largest_alpha: float = 1.0
    """Largest guidance scale that the generator learns; 1: no guidance, and no such input."""
    alpha_power: float = attrs.field(default=3.0, validator=not_negative)
    """Scales in training have density alpha^-power from 1 to the largest."""
    unguided: float = attrs.field(default=0.5, validator=share)
    """Share of the scales in training that are exactly 1."""
    unconditional: int = attrs.field(default=16, validator=positive)
    """Real samples of any class that repel in each class, with the weight that the scale asks for."""
    alpha: float = 1.0
    """Guidance scale of the samples."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.alpha <= self.largest_alpha:
            raise ConfigError(
                f"alpha = {self.alpha}, largest_alpha = {self.largest_alpha}: expected 1 <= alpha <= largest_alpha; "
                "a generator samples at the scales that it was trained at (--largest-alpha)"
            )

    @property
    def learnt(self) -> bool:
        """Whether the generator takes a scale."""
        return self.largest_alpha > 1

    def as_time(self, alpha: Tensor) -> Tensor:
        """``log alpha / log largest``, in [0, 1]: what the network is given in the place of a time."""
        return alpha.log() / math.log(self.largest_alpha)


@attrs.frozen
class Queue:
    """Positives from a queue of the newest training samples in place of the whole data set."""

    queue_size: int = attrs.field(default=0, validator=not_negative)
    """Samples kept of each class; 0: no queue."""
    queue_pushes: int = attrs.field(default=64, validator=positive)
    """Samples that enter the queue in an update."""


class _Real(NamedTuple):
    """Positives of every class, contiguous; unconditional samples of every class, likewise, or ``None``."""

    positives: Tensor
    extra: Tensor | None


@attrs.frozen
class Drifting:
    """Pull samples along a drift field; sample by calling the generator."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    guidance: Guidance = Guidance()
    queue: Queue = Queue()
    field: Literal["mean-shift", "attraction-repulsion", "sinkhorn", "released"] = "mean-shift"
    """mean-shift: attraction and repulsion normalised apart. attraction-repulsion: together, over both axes; sinkhorn:
    likewise, three times. released: the algorithm of the released ImageNet training, always relative."""
    temperatures: tuple[float, ...] = (1.0,)
    """Of the Laplace kernel, in units of the data; the fields are averaged (released: normalised and summed)."""
    final_temperatures: tuple[float, ...] | None = None
    """Where the temperatures end: they move there geometrically, coarse to fine. None: they stay."""
    cooling: float = attrs.field(default=1.0, validator=[share, positive])
    """Share of the training in which the temperatures move; for the rest they are the final ones."""
    relative: bool = False
    """Temperatures are relative to the mean distance of each feature, in whose units the drift then is."""
    encoder: Literal["pixels", "random"] = "pixels"
    """Where distances are measured. pixels: the sample itself. random: pixels beside a random frozen convolutional
    encoder's features, each with its own field; needs images and relative temperatures."""
    positives: int = attrs.field(default=64, validator=positive)
    """Real samples of each class in an update."""
    gain: float = attrs.field(default=1.0, validator=not_negative)
    """Factor of the displacement."""

    def __attrs_post_init__(self) -> None:
        ends = self.final_temperatures or self.temperatures
        if not self.temperatures or len(ends) != len(self.temperatures) or min(*self.temperatures, *ends) <= 0:
            raise ConfigError(
                f"temperatures = {self.temperatures}, final_temperatures = {self.final_temperatures}: "
                "expected at least one positive number, and as many at the end as at the start"
            )
        if self.field == RELEASED and self.final_temperatures is not None:
            raise ConfigError("the released field has fixed temperatures: leave final_temperatures out")
        if self.encoder != "pixels" and not self._relative:
            raise ConfigError(f"features of encoder {self.encoder!r} differ in size: set relative, or field released")
        if 0 < self.queue.queue_size < self.positives:
            raise ConfigError(
                f"a queue of {self.queue.queue_size} samples cannot give {self.positives} positives of a class: "
                "a larger queue_size, or fewer positives"
            )

    @property
    def _relative(self) -> bool:
        return self.relative or self.field == RELEASED

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update; the monitors' own, one in twenty updates, apart."""
        return 1

    @property
    def monitors(self) -> tuple[str, ...]:
        """What the training display shows."""
        return monitor_names(self.temperatures)

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The generator: noise, a guidance scale if it learns any, and a class where there are any, to a sample."""
        if self.guidance.learnt and problem.classes is None:
            raise ConfigError(f"guidance needs classes, {problem.name} has none: leave largest_alpha at 1")
        return self.network.build(problem, int(self.guidance.learnt), generator)

    def memory(self, problem: Problem) -> nn.Module | None:
        """The queue, or ``None``."""
        if not self.queue.queue_size:
            return None
        return SampleQueue(
            problem.shape,
            classes=problem.classes or 1,
            capacity=self.queue.queue_size,
            unconditional=_GLOBAL if self.guidance.learnt else 0,
        )

    def features(self, problem: Problem) -> Features:
        """From samples to what the field sees."""
        if self.encoder == "pixels":
            return pixels
        if len(problem.shape) != 3:
            raise ConfigError(f"encoder {self.encoder!r} needs images, {problem.name} has samples of {problem.shape}")
        weights = torch.Generator().manual_seed(self.training.seed)
        return joined(pixels, RandomConvolutions(problem.shape[0], generator=weights))

    def _temperatures_at(self, progress: float) -> tuple[float, ...]:
        ends = self.final_temperatures or self.temperatures
        done = progress / self.cooling
        return tuple(
            geometric_temperature(done, start=start, end=end)
            for start, end in zip(self.temperatures, ends, strict=True)
        )

    def field_at(self, progress: float) -> Field:
        """The field at a share of the training, 0 to 1."""
        return named_field(self.field, self._temperatures_at(progress), relative=self._relative, gain=self.gain)

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the monitors that move while it does not."""
        problem, groups = setting.problem, setting.problem.classes or 1
        each = max(2, self.training.batch // groups)
        labels = None if problem.classes is None else torch.arange(groups).repeat_interleave(each)
        encode = self.features(problem)
        monitors = DriftMonitors(problem, self.temperatures, seed=self.training.seed, relative=self._relative)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            step, progress = setting.state.step, setting.state.step / self.training.steps
            real = self._real(setting, groups, generator)
            noise = torch.randn(groups * each, *problem.shape, generator=generator)
            alpha = self._scales(groups, generator)
            generate = partial(self._generated, network, noise, labels, alpha)
            samples = generate()
            field, generated = self.field_at(progress), encode(samples)
            with torch.no_grad():
                positives = encode(real.positives)
                extra = None if real.extra is None else encode(real.extra)
            weights = None
            if alpha is not None:
                weights = drift_negative_weight(alpha, generated=each, unconditional=self.guidance.unconditional)
            pairs = drifting_regressions(
                generated,
                positives,
                field={name: monitors.watched(name, field) for name in generated},
                groups=groups,
                extra_negatives=extra,
                extra_weights=weights,
            )
            numbers = monitors.logs(
                step,
                samples,
                real.positives,
                temperature=min(self._temperatures_at(progress)),
                alpha=alpha,
                again=lambda: encode(generate()),
            )
            return torch.stack([mse(*pair).mean() for pair in pairs.values()]).sum(), numbers

        return loss

    def _real(self, setting: Setting, groups: int, generator: torch.Generator) -> _Real:
        problem, queue = setting.problem, setting.state.memory
        unconditional = self.guidance.unconditional if self.guidance.learnt else 0
        if not isinstance(queue, SampleQueue):
            positives = problem.groups(self.positives, generator)
            return _Real(positives, problem.batch(groups * unconditional, generator).data if unconditional else None)
        queue.push(*problem.batch(self.queue.queue_pushes, generator))
        while int(queue.counts.min()) < self.positives or queue.total < unconditional:
            queue.push(*problem.batch(self.queue.queue_pushes, generator))
        positives = queue.positives(self.positives, generator=generator)
        return _Real(
            positives,
            queue.unconditional(unconditional, groups=groups, generator=generator) if unconditional else None,
        )

    def _scales(self, groups: int, generator: torch.Generator) -> Tensor | None:
        if not self.guidance.learnt:
            return None
        return sample_guidance_scales(
            groups,
            high=self.guidance.largest_alpha,
            power=self.guidance.alpha_power,
            plain=self.guidance.unguided,
            generator=generator,
        )

    def _generated(self, network: nn.Module, noise: Tensor, labels: Tensor | None, alpha: Tensor | None) -> Tensor:
        """Samples of all classes; one scale a class."""
        if alpha is None:
            return network(noise, label=labels)
        time = self.guidance.as_time(alpha).repeat_interleave(len(noise) // len(alpha))
        return network(noise, time, label=labels)

    def with_alpha(self, alpha: float) -> "Drifting":
        """The same recipe, sampling at guidance scale ``alpha``.

        Raises:
            ConfigError: if the generator was not trained at such a scale.
        """
        return attrs.evolve(self, guidance=attrs.evolve(self.guidance, alpha=alpha))

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        alpha = torch.full((len(noise),), self.guidance.alpha) if self.guidance.learnt else None
        return self._generated(network, noise, labels, alpha)
