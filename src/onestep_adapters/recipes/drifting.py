"""Drifting: a one-step generator that follows a field of data and its own samples."""

from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.recipes.options import Network, Training, not_negative, positive
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Setting
from onestep_adapters.training import LossStep
from onestep_core import (
    drift_field,
    drifting_regression,
    laplace,
    mean_shift_field,
    mse,
    multi_temperature,
    released_drift,
    softmax_both,
)
from onestep_core.errors import ConfigError
from onestep_core.evidence import drift_norm, spread
from onestep_core.protocols import Drift, Field


@attrs.frozen
class Drifting:
    """Pull samples along a drift field; sample by calling the generator."""

    teacher: ClassVar[None] = None
    training: Training = Training()
    network: Network = Network()
    field: Literal["mean-shift", "attraction-repulsion", "released"] = "mean-shift"
    """mean-shift: attraction and repulsion normalised apart. attraction-repulsion: together, over both axes.
    released: the algorithm of the released ImageNet training, temperatures relative to the mean distance."""
    temperatures: tuple[float, ...] = (1.0,)
    """Of the Laplace kernel, in units of the data (released: of the mean distance); the fields are averaged."""
    final_temperatures: tuple[float, ...] | None = None
    """Where the temperatures end: they move there geometrically over the training, coarse to fine. None: they stay."""
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
        if self.field == "released" and self.final_temperatures is not None:
            raise ConfigError("the released field has fixed temperatures: leave final_temperatures out")

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        return 1

    @property
    def calls(self) -> int:
        """Forward passes in an update."""
        return 1

    def build(self, problem: Problem, generator: torch.Generator) -> nn.Module:
        """The generator: noise, and a class where there are any, to a sample."""
        return self.network.build(problem, 0, generator)

    def field_at(self, progress: float) -> Field:
        """The field at a share of the training, 0 to 1."""
        if self.field == "released":
            return partial(released_drift, temperatures=self.temperatures)
        ends = self.final_temperatures or self.temperatures
        now = [a * (b / a) ** progress for a, b in zip(self.temperatures, ends, strict=True)]

        def at(temperature: float) -> Field:
            kernel = partial(laplace, temperature=temperature)
            if self.field == "mean-shift":
                return partial(mean_shift_field, kernel=kernel)
            return partial(drift_field, kernel=kernel, coupling=softmax_both)

        summed = multi_temperature(at, now, normalize=False)

        def field(*sets: Tensor | None, **keywords: Tensor) -> Drift:
            drift: Drift = summed(*sets, **keywords)  # type: ignore[arg-type]
            return drift._replace(field=drift.field * (self.gain / len(now)))

        return field

    def loss_step(self, setting: Setting) -> LossStep:
        """One update's loss, with the monitors that move while it does not."""
        problem, groups = setting.problem, setting.problem.classes or 1
        each = max(2, self.training.batch // groups)
        labels = None if problem.classes is None else torch.arange(groups).repeat_interleave(each)

        def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            positives = problem.groups(self.positives, generator)
            samples = network(torch.randn(groups * each, *problem.shape, generator=generator), label=labels)
            seen: list[Drift] = []

            def watched(*sets: Tensor, **keywords: Tensor) -> Drift:
                seen.append(self.field_at(setting.state.step / self.training.steps)(*sets, **keywords))
                return seen[-1]

            pair = drifting_regression(samples.flatten(1), positives.flatten(1), field=watched, groups=groups)
            monitors = {"spread": spread(samples.detach(), positives), "drift": drift_norm(seen[-1]).mean()}
            return mse(*pair).mean(), monitors

        return loss

    def generate(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples from noise; ``labels`` are the classes asked for."""
        return network(noise, label=labels)
