"""A run: a method on a data set, with its training state and its teacher."""

import os
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import torch
from torch import Tensor

from onestep_adapters.data import Dataset
from onestep_adapters.encoders.encoder import Encoder
from onestep_adapters.files import LockedError
from onestep_adapters.methods import Context, Method, Teacher
from onestep_adapters.tracking import Track, untracked
from onestep_adapters.training import (
    CheckpointError,
    StepRecord,
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    read_run,
    train,
    warmed_decay,
    writing_into,
)
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count, whole_numbers

CHUNK = 250
"""Samples in one network evaluation, by default."""


@attrs.define(eq=False)
class Run:
    """A method on a data set, with its training state. :func:`~onestep_adapters.runs.start_run` makes one.

    Attributes:
        name: name of the method, as on the command line.
        options: the method with its options.
        data: the data set.
        state: network, moving average of its weights, optimiser, random generator, step.
        teacher: the teacher, or ``None``.
        teacher_run: the run that trains the teacher before the first update, or ``None``.
        teacher_folder: folder of ``teacher_run``.
        cache: folder for results that are computed once with the teacher or the encoder, or ``None``.
        missing_teacher: if not empty, the reason why the teacher is missing. Such a run can generate samples, but
            cannot be trained further.
        encoder: the encoder of a method that uses the features of one, or ``None``.
        missing_encoder: if not empty, the reason why the encoder is missing, as ``missing_teacher``.
        sampled: number of network evaluations for one sample; ``None``: the method's own. See :meth:`sampled_in`.
    """

    name: str
    options: Method
    data: Dataset
    state: TrainingState
    teacher: Teacher | None = None
    teacher_run: "Run | None" = None
    teacher_folder: Path | None = None
    cache: Path | None = None
    missing_teacher: str = ""
    encoder: Encoder | None = None
    missing_encoder: str = ""
    sampled: int | None = None

    @property
    def evaluations(self) -> int:
        """Network evaluations for one sample."""
        return self.options.evaluations if self.sampled is None else self.sampled

    @property
    def seconds(self) -> float:
        """Wall-clock time of all updates so far, in seconds."""
        return sum(entry["seconds"] for entry in self.state.history)

    @property
    def finished(self) -> bool:
        """Whether all updates are done."""
        return self.state.step >= self.options.training.steps

    @property
    def device(self) -> torch.device:
        """Device of the network and of training."""
        return self.state.generator.device

    def updates(
        self, folder: str | os.PathLike[str] | None = None, *, track: Track = untracked
    ) -> Iterator[StepRecord]:
        """Train to the last update and yield one record for each update.

        A teacher that is not finished is trained first, without records; use :meth:`teaching` to show its progress.

        Args:
            folder: folder for checkpoints; ``None`` writes no checkpoints.
            track: shows the progress of the preparation before the first update.

        Raises:
            TrainingError: if a loss is not finite; state and checkpoints stay at the last finite update.
            CheckpointError: if ``folder`` holds another run.
            LockedError: if another process trains into the folder.
            OSError: if the folder cannot be written to.
            ConfigError: if the teacher or the encoder is missing.
        """
        if self.finished:
            return iter(())
        if self.missing_teacher:
            raise ConfigError(f"this run cannot be trained further: {self.missing_teacher}; sampling needs no teacher")
        if self.missing_encoder:
            raise ConfigError(f"this run cannot be trained further: {self.missing_encoder}; sampling needs no encoder")
        if folder is not None:
            # Before minutes of preparation.
            with writing_into(folder, self.state):
                pass
        for _ in self.teaching(track=track):
            pass
        method, training = self.options, self.options.training
        context = self.prepared(track)
        return train(
            self.state,
            partial(method.loss, context),
            steps=training.steps,
            learning_rate=training.rate,
            ema=warmed_decay(training.ema),
            clip=training.clip,
            checkpoint_every=None if folder is None else training.checkpoint_every,
            folder=folder,
            turns=method.turns(context),
        )

    def prepared(self, track: Track = untracked) -> Context:
        """The context that the loss uses, after the method's ``prepare``. The teacher has to be finished."""
        context = self.context(track)
        context.prepared = self.options.prepare(context)
        return context

    def context(self, track: Track = untracked) -> Context:
        """The context of the method, before its ``prepare``."""
        return Context(self.data, self.state, self.teacher, self.cache, track, encoder=self.encoder)

    def ahead(self) -> list[str]:
        """What is done before the next update, one line each, with its cost: a teacher's training, pairs, features.

        Example:
            >>> from onestep_adapters.runs import start_run
            >>> start_run("meanflow", "8gaussians").ahead()  # doctest: +ELLIPSIS
            ['... coupled pairs of data and noise: optimal transport among ... at a time']
        """
        if self.finished or self.missing_teacher or self.missing_encoder:
            return []
        found, shared, teacher = list[str](), set[str](), self.teacher_run
        if teacher is not None and not teacher.finished:
            theirs = teacher.ahead()
            left = teacher.options.training.steps - teacher.state.step
            kept = "" if self.teacher_folder is None else f", kept for other trainings in {self.teacher_folder}"
            found = [f"for the teacher: {line}" for line in theirs]
            found.append(f"a teacher ({teacher.name}): {left:,} updates{kept}")
            if teacher.options.training.seed == self.options.training.seed:
                shared = set(theirs)  # coupled pairs are made once for both
        return found + [line for line in self.options.preparations(self.context()) if line not in shared]

    def teaching(self, *, track: Track = untracked) -> Iterator[StepRecord]:
        """Train the teacher to its last update, into ``teacher_folder``, and yield one record for each update.

        If another process trains the same teacher, wait until it has ended, and go on from what it saved.

        Args:
            track: shows the progress of the preparation before the first update.
        """
        teacher, folder = self.teacher_run, self.teacher_folder
        waiting = False
        while teacher is not None and not (teacher.finished or self.finished):
            try:
                updates = teacher.updates(folder, track=track)
            except (LockedError, CheckpointError) as error:
                further = _saved_step(folder) > teacher.state.step
                if not (further or isinstance(error, LockedError)):
                    raise
                if isinstance(error, LockedError) and not waiting:
                    warnings.warn(f"{error.holder} trains the teacher in {folder}: waiting for it", stacklevel=2)
                    waiting = True
                time.sleep(_PAUSE)
                if further and folder is not None:
                    load_checkpoint(folder, teacher.state)
                continue
            yield from updates

    @torch.no_grad()
    def samples(
        self,
        count: int,
        *,
        generator: torch.Generator,
        labels: Tensor | None = None,
        chunk: int = CHUNK,
        track: Track = untracked,
    ) -> tuple[Tensor, Tensor | None]:
        """Generate ``count`` samples with the averaged weights. Returns samples and classes, on the generator's device.

        ``finish`` of the data set has been applied to the samples.

        Args:
            count: number of samples, at least 1.
            generator: draws classes and noise. A generator on the CPU gives the same noise for every device.
            labels: classes to generate, ``[count]``; by default drawn with the frequencies of the training data.
            chunk: number of samples in one network evaluation.
            track: shows how many chunks are done.

        Raises:
            ConfigError: if ``count`` is not positive, if labels do not fit, or if the run trains an encoder.
        """
        if not self.options.generates:
            raise ConfigError(
                f"a run of {self.name} trains an encoder: it has no samples; see what its features are worth by "
                "onestep evaluate RUN, or train a generator with them by onestep train drifting --encoder RUN"
            )
        if not isinstance(generator, torch.Generator):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a {type(generator).__name__} as generator: expected torch.Generator().manual_seed(0)")
        if not isinstance(count, int) or not isinstance(chunk, int) or min(count, chunk) < 1:
            raise ConfigError(f"count = {count}, chunk = {chunk}: expected whole numbers, at least one sample")
        classes = self.data.classes
        if labels is None:
            labels = self.data.labels(count, generator)
        elif not isinstance(labels, Tensor) or classes is None or labels.shape != (count,):
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
            raise ConfigError(
                f"labels of shape {shape} for {count} samples of {self.data.name}, which has "
                f"{classes or 'no'} classes: expected one label for each sample, or none"
            )
        elif not whole_numbers(labels) or not _within(labels, classes):
            raise ConfigError(
                f"labels {labels.unique().tolist()} of {self.data.name}: expected integers, 0 to {classes - 1}"
            )
        else:
            labels = labels.long()
        # All noise is drawn at once, so that samples do not depend on the chunk.
        noise = torch.randn(count, *self.options.noise_shape(self.data), generator=generator, device=generator.device)
        there = None if labels is None else labels.to(self.device)
        parts = []
        starts = range(0, count, chunk)
        for start in track(starts, "samples", len(starts)):
            here = slice(start, start + chunk)
            part = noise[here].to(self.device)
            parts.append(self._sample(part, None if there is None else there[here]))
        return self.data.finish(torch.cat(parts).to(generator.device)), labels

    def _sample(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        if self.sampled is None:
            return self.options.sample(self.state.ema, noise, labels)
        return self.options.sample_in(self.state.ema, noise, labels, self.sampled)

    def sampled_in(self, evaluations: int) -> "Run":
        """The same run with samples in this number of network evaluations; both runs share the state.

        Raises:
            ConfigError: for a method that samples in its own number of evaluations alone.
        """
        if evaluations != self.options.evaluations and not self.options.few_steps:
            raise ConfigError(
                f"{self.name} samples in {self.options.evaluations} network evaluations only, not in {evaluations}"
            )
        require_count("evaluations", evaluations, least=1)
        return attrs.evolve(self, sampled=evaluations)

    def guided(self, alpha: float) -> "Run":
        """The same run with guidance scale ``alpha`` for sampling; both runs share the state.

        Raises:
            ConfigError: if the method has no guidance scale, or this run was not trained at this scale.
        """
        return attrs.evolve(self, options=self.options.with_alpha(alpha))

    def previewed(self) -> "Run":
        """The same run with a faster sampler, for curves during training; both runs share the state."""
        return attrs.evolve(self, options=self.options.previewed())

    def milliseconds_per_1000(self) -> float:
        """Milliseconds to generate 1,000 samples; the shortest of three measurements."""
        times = []
        for seed in range(3):
            start = time.perf_counter()
            self.samples(1000, generator=torch.Generator().manual_seed(seed))
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)


_PAUSE = 1.0
"""Seconds between two looks at a teacher that another process trains."""


def _saved_step(folder: Path | None) -> int:
    """Updates of the checkpoint in a folder; -1 without one."""
    return -1 if folder is None or latest_checkpoint(folder) is None else read_run(folder).step


def _within(labels: Tensor, classes: int) -> bool:
    return 0 <= int(labels.min()) <= int(labels.max()) < classes
