"""A run: a method on a data set with the state of its training, and everything one does with it."""

import os
import time
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from onestep_adapters.recipes import Recipe, Setting, TwoPlayers
from onestep_adapters.recipes.problems import Problem
from onestep_adapters.recipes.setting import Guided
from onestep_adapters.recipes.teachers import (
    given_teacher,
    learns_from_oracle,
    made_folder,
    teacher_folder,
    weights_hash,
)
from onestep_adapters.training import (
    StepRecord,
    TrainingState,
    cosine,
    train,
    train_two_players,
    warmed_decay,
)
from onestep_core.errors import ConfigError


@attrs.define
class Run:
    """A method on a data set, with the state of its training.

    Attributes:
        method: name in :data:`onestep_adapters.recipes.METHODS`.
        data: name of the problem.
        recipe: the options.
        problem: the data.
        state: network, average, optimiser, generator, step.
        teacher: the run that this one learns from, or ``None``; trained, or opened, before the first update.
        seconds: wall-clock time of the updates made so far.
    """

    method: str
    data: str
    recipe: Recipe
    problem: Problem
    state: TrainingState
    teacher: "Run | None" = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the updates made so far."""
        return sum(entry["seconds"] for entry in self.state.history)

    @property
    def finished(self) -> bool:
        """Whether every update was made."""
        return self.state.step >= self.recipe.training.steps

    def updates(self, folder: str | os.PathLike[str] | None = None) -> Iterator[StepRecord]:
        """Train on to the end, one record an update; into ``folder``, with checkpoints, if given.

        A teacher that is not complete is trained first, without a record; :meth:`teaching` is for showing that.

        Raises:
            TrainingError: if a loss is not finite; state and checkpoints are those of the last good update.
            CheckpointError: if ``folder`` holds another run.
        """
        options = self.recipe.training
        if self.finished:
            return iter(())
        if self.teacher is None and self.recipe.teacher is not None and not learns_from_oracle(self.recipe):
            place = given_teacher(self.recipe) or teacher_folder(self.data, self.recipe.teacher)
            raise ConfigError(
                f"the teacher that this run learns from is not in {place} any more, or cannot be read: put it back to "
                "train on; sampling does without"
            )
        for _ in self.teaching():
            pass
        recipe, rate = self.recipe, cosine(options.learning_rate, options.steps, min(options.warmup, options.steps - 1))
        loss_step, every = recipe.loss_step(self._setting()), None if folder is None else options.checkpoint_every
        if isinstance(recipe, TwoPlayers) and self.state.opponent is not None:
            return train_two_players(
                self.state,
                loss_step,
                recipe.opponent_step(self._setting()),
                steps=options.steps,
                ratio=recipe.ratio,
                learning_rate=rate,
                opponent_learning_rate=lambda step: recipe.opponent_pace * rate(step),
                ema=warmed_decay(options.ema),
                clip=options.clip,
                opponent_clip=options.clip,
                checkpoint_every=every,
                folder=folder,
            )
        return train(
            self.state,
            loss_step,
            steps=options.steps,
            learning_rate=rate,
            ema=warmed_decay(options.ema),
            clip=options.clip,
            checkpoint_every=every,
            folder=folder,
        )

    def _setting(self) -> Setting:
        if self.teacher is None:
            return Setting(self.problem, self.state)
        state, config = self.teacher.state, self.teacher.state.config
        if given_teacher(self.recipe):
            # The folder may come to hold another training of the same options.
            config = {**config, "weights": weights_hash(state.ema)}
        return Setting(self.problem, self.state, state.ema, made_folder(config))

    def teaching(self) -> Iterator[StepRecord]:
        """Train the teacher to its end, one record an update, into the folder where teachers are kept."""
        options = self.recipe.teacher
        if self.teacher is not None and options is not None and not (self.teacher.finished or self.finished):
            yield from self.teacher.updates(teacher_folder(self.data, options))

    @torch.no_grad()
    def samples(
        self, count: int, *, generator: torch.Generator, labels: Tensor | None = None, chunk: int = 250
    ) -> tuple[Tensor, Tensor | None]:
        """``count`` samples of the averaged network, finished, and the classes that were asked for.

        Args:
            count: how many, at least 1.
            generator: of classes and noise.
            labels: classes to generate, ``[count]``; drawn like the training data's by default.
            chunk: samples at a time; few keep the activations of small networks in the cache.

        Raises:
            ConfigError: if ``count`` is not positive, or labels do not fit.
        """
        if count < 1:
            raise ConfigError(f"count = {count}: expected at least one sample")
        classes = self.problem.classes
        if labels is None:
            labels = self.problem.labels(count, generator)
        elif classes is None or labels.shape != (count,):
            raise ConfigError(
                f"labels of shape {tuple(labels.shape)} for {count} samples of {self.data}, which has "
                f"{classes or 'no'} classes: expected one a sample, or none"
            )
        elif labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ConfigError(
                f"labels {labels.unique().tolist()} of {self.data}: expected integers, 0 to {classes - 1}"
            )
        # Drawn at once, so that the samples do not depend on the chunk.
        noise, parts = torch.randn(count, *self.problem.shape, generator=generator), []
        for start in range(0, count, chunk):
            here = slice(start, start + chunk)
            parts.append(self.recipe.generate(self.state.ema, noise[here], None if labels is None else labels[here]))
        return self.problem.finish(torch.cat(parts)), labels

    def guided(self, alpha: float) -> "Run":
        """The same run, sampling at guidance scale ``alpha``; the state is shared.

        Raises:
            ConfigError: if the method takes no scale, or this run was not trained at such a one.
        """
        if not isinstance(self.recipe, Guided):
            raise ConfigError(f"{self.method} takes no guidance scale at sampling: leave alpha out")
        return attrs.evolve(self, recipe=self.recipe.with_alpha(alpha))  # type: ignore[arg-type]

    def milliseconds_per_1000(self) -> float:
        """Time to generate 1,000 samples, the better of three."""
        times = []
        for seed in range(3):
            start = time.perf_counter()
            self.samples(1000, generator=torch.Generator().manual_seed(seed))
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)
