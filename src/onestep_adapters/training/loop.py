"""The loop: turns of the companions, the network's update, average, checkpoint.

One update of a run without turns is ``network <- network - rate grad loss_step``. A fake score has to follow a
generator that changes. With a :class:`Turn`, it is updated before each update of the network:

    for r in 1 .. updates:    companion <- companion - rate' grad turn.loss_step
    network <- network - rate grad loss_step;    average <- ...

If the loss of one module gives gradients in another module, they are cleared before the update ends. It is faster not
to compute them: with ``networks.frozen(companion)`` gradients reach the samples, but no parameter.

The loop is a generator. Your ``for`` loop gets a record after every update and can print, evaluate or stop. A run that
was stopped or killed is resumed from the latest checkpoint. The results are bit-identical on the same machine and
build, if every loss draws from the generator that it is given, or from torch's global generator, as dropout does
(``train`` seeds it from the run's generator).
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import attrs
from torch import nn
from torch.optim import Optimizer

from onestep_adapters.files import make_folder, one_writer, require_path
from onestep_adapters.training.checkpoint import save_checkpoint
from onestep_adapters.training.descent import Descent, LossStep, descend
from onestep_adapters.training.ema import update_ema
from onestep_adapters.training.folder import LOCK, check_folder
from onestep_adapters.training.schedules import Schedule, require_schedule, scheduled
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import ConfigError
from onestep_core.validators import require_call, require_count


class StepRecord(NamedTuple):
    """One update.

    ``step`` counts from 1; ``loss`` is before the update; ``gradient_norm`` is the Euclidean norm over all
    parameters, before clipping; ``seconds`` is the wall time of the update, its turns included, without its
    checkpoint.
    """

    step: int
    loss: float
    gradient_norm: float
    seconds: float
    logs: dict[str, float]


@attrs.frozen
class Turn:
    """Updates of a companion before each update of the network.

    Source: Yin et al., Improved Distribution Matching Distillation, section 4.2 (two time-scale update rule),
    https://arxiv.org/abs/2405.14867.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> Turn("fake_score", lambda module, generator: (module.weight.sum(), {}), updates=5,
        ...      learning_rate=lambda i: 1e-4).updates
        5
    """

    companion: str
    """Name of a companion that is trained in turns."""
    loss_step: LossStep
    """``(companion's module, generator) -> (loss, logs)``; it finds the network in the state, and takes its samples
    without their graph."""
    updates: int = attrs.field(kw_only=True)
    """Updates of the companion before each of the network's, at least 1; 5 in DMD2."""
    learning_rate: Schedule = attrs.field(kw_only=True)
    """Learning rate before the network's update ``i``, the same for all updates of the turn."""
    clip: float | None = attrs.field(default=None, kw_only=True)
    """Largest norm of the companion's gradient, positive; ``None`` for no clipping."""

    def __attrs_post_init__(self) -> None:
        whose = f" of the companion {self.companion!r}"
        require_count(f"updates{whose}", self.updates, least=1)
        require_call(f"loss_step{whose}", self.loss_step, ("network", "generator"))
        require_schedule(f"learning_rate{whose}", self.learning_rate)
        _check_clip(self.clip, whose)


def train(
    state: TrainingState,
    loss_step: LossStep,
    *,
    steps: int,
    learning_rate: Schedule,
    ema: Schedule,
    clip: float | None = None,
    checkpoint_every: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    history_every: int = 1,
    turns: Sequence[Turn] = (),
) -> Iterator[StepRecord]:
    """Update ``state`` in place until ``state.step == steps``, yielding a record after each update.

    Args:
        state: from :func:`new_state` or :func:`load_checkpoint`.
        loss_step: ``(network, generator) -> (loss, logs)``; the loss is 0-d, the logs are single numbers.
        steps: total number of updates, those already made included.
        learning_rate: of update ``i``, counted from 0: :func:`cosine_decay` or one's own. With several parameter groups
            it is the rate of the group whose rate was the largest at the start; the others keep their ratio to it.
        ema: decay of update ``i``: :func:`constant_decay`, :func:`warmed_decay` or one's own. Companions have none.
        clip: largest gradient norm, positive; ``None`` for none.
        checkpoint_every: updates between checkpoints; with a ``folder`` there is one at the end in any case.
        folder: of the checkpoints.
        history_every: updates between entries of ``state.history``.
        turns: updates of companions before each update of the network, in this order.

    Returns:
        Records of the network's updates. For each turn, the logs have the companion's last loss, gradient norm and
        logs too, under names that begin with its own: ``fake_score_loss``, ``fake_score_gradient_norm``.

    Raises:
        ConfigError: at the call, if an argument is out of range, or a turn names no companion that is trained in
            turns; during the run, if a loss is not 0-d.
        CheckpointError: at the call, if the folder holds another run or a later step of this run.
        LockedError: at the call, if another process trains into the folder.
        OSError: at the call, if the folder cannot be written to.
        TrainingError: during the run, if a loss or its gradient norm is not finite, or no parameter has a gradient.
            It is raised before the parameters of the module are changed. Checkpoints only hold complete updates. The
            state is that after the last good update, but companions may already have been updated in this update
            (and ``loss_step`` may have changed buffers).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from onestep_adapters.training import constant_decay, cosine_decay, new_state, trained_in_turns
        >>> fake_score = trained_in_turns(nn.Linear(1, 1))
        >>> state = new_state("demo", nn.Linear(1, 1), companions={"fake_score": fake_score})
        >>> def loss_step(network, generator):
        ...     return -fake_score.module(network(torch.randn(8, 1, generator=generator))).mean(), {}
        >>> def fake_score_step(module, generator):
        ...     return module(torch.randn(8, 1, generator=generator)).square().mean(), {}
        >>> turn = Turn("fake_score", fake_score_step, updates=3, learning_rate=lambda i: 1e-2)
        >>> run = train(
        ...     state, loss_step, steps=2, learning_rate=cosine_decay(1e-2, 2), ema=constant_decay(0.9), turns=[turn]
        ... )
        >>> [(record.step, sorted(record.logs)) for record in run]
        [(1, ['fake_score_gradient_norm', 'fake_score_loss']), (2, ['fake_score_gradient_norm', 'fake_score_loss'])]
    """
    _check_clip(clip)
    if not isinstance(state, TrainingState):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(state).__name__} as state: expected one of new_state(name, network)")
    require_call("loss_step", loss_step, ("network", "generator"))
    require_schedule("learning_rate", learning_rate)
    require_schedule("ema", ema)
    require_count("steps", steps)
    require_count("history_every", history_every, least=1)
    if checkpoint_every is not None:
        require_count("checkpoint_every", checkpoint_every, least=1)
    if checkpoint_every is not None and folder is None:
        raise ConfigError(f"checkpoint_every = {checkpoint_every} without a folder: give folder=")
    _check_turns(state, turns)
    writing = contextlib.ExitStack()
    if folder is not None:
        writing.enter_context(writing_into(folder, state))

    def update() -> StepRecord:
        start = time.perf_counter()
        decay = _checked_decay(ema, state.step)
        logs, made, kept = dict[str, float](), 0, dict(state.kept)
        try:
            for turn in turns:
                theirs = _take(turn, state, folder, made)
                made += turn.updates
                shown = {"loss": theirs.loss, "gradient_norm": theirs.gradient_norm, **theirs.logs}
                logs |= {f"{turn.companion}_{name}": number for name, number in shown.items()}
            own = descend(
                state,
                state.network,
                state.optimizer,
                loss_step,
                learning_rate=learning_rate,
                clip=clip,
                folder=folder,
                turn=made,
            )
        except BaseException:
            state.kept = kept
            raise
        finally:
            _clear_gradients(state)
        update_ema(state.ema, state.network, decay=decay)
        state.step += 1
        return StepRecord(state.step, own.loss, own.gradient_norm, time.perf_counter() - start, own.logs | logs)

    def records() -> Iterator[StepRecord]:
        with writing:
            while state.step < steps:
                record = update()
                if record.step % history_every == 0 or record.step == steps:
                    state.history.append(record._asdict())
                due = record.step == steps or (checkpoint_every is not None and record.step % checkpoint_every == 0)
                if folder is not None and due:
                    save_checkpoint(folder, state)
                yield record

    return records()


@contextlib.contextmanager
def writing_into(folder: str | os.PathLike[str], state: TrainingState) -> Iterator[None]:
    """Inside, this process alone trains into ``folder``, and ``state`` may be saved there.

    Entered and left before a long preparation, it finds out at once what ``train`` would find out after it.

    Args:
        folder: created if it does not exist.
        state: of the run.

    Raises:
        CheckpointError: if the folder holds another run or a later step of this run.
        LockedError: if another process trains into the folder.
        OSError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torch import nn
        >>> from onestep_adapters.training import new_state
        >>> with tempfile.TemporaryDirectory() as folder, writing_into(folder, new_state("demo", nn.Linear(1, 1))):
        ...     [file.name for file in Path(folder).iterdir()]
        ['.lock']
    """
    lock = require_path("folder", folder) / LOCK
    if not lock.exists():
        # Nothing is written into a folder that holds something else.
        check_folder(folder, state)
    make_folder(lock.parent)
    with one_writer(lock):
        # Under the lock: another process may have saved a later step meanwhile.
        check_folder(folder, state)
        yield


def _take(turn: Turn, state: TrainingState, folder: str | os.PathLike[str] | None, made: int) -> Descent:
    """Make all updates of a turn and return the last one. ``made`` updates of other turns were made before."""
    module, optimizer = _trained_in(turn, state)
    descents = [
        descend(
            state,
            module,
            optimizer,
            turn.loss_step,
            learning_rate=turn.learning_rate,
            clip=turn.clip,
            folder=folder,
            turn=made + number,
        )
        for number in range(turn.updates)
    ]
    return descents[-1]


def _clear_gradients(state: TrainingState) -> None:
    for optimizer in (state.optimizer, *(companion.optimizer for companion in state.companions.values())):
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)


def _checked_decay(ema: Schedule, step: int) -> float:
    if not 0 <= (decay := scheduled("EMA's decay", ema, step)) <= 1:
        raise ConfigError(f"the EMA's decay at update {step} is {decay!r}: expected a number in [0, 1]")
    return decay


def _check_clip(clip: float | None, whose: str = "") -> None:
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise ConfigError(f"clip = {clip!r}{whose}: expected a positive norm, or None for no clipping")


def _check_turns(state: TrainingState, turns: Sequence[Turn]) -> None:
    for turn in turns:
        if not isinstance(turn, Turn):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a {type(turn).__name__} as a turn: expected Turn(companion, loss_step, ...)")
    names = [turn.companion for turn in turns]
    if len(set(names)) < len(names):
        raise ConfigError(f"turns of {names}: expected one turn for each companion; raise its updates")
    for turn in turns:
        _trained_in(turn, state)


def _trained_in(turn: Turn, state: TrainingState) -> tuple[nn.Module, Optimizer]:
    companion = state.companions.get(turn.companion)
    if companion is None or companion.optimizer is None:
        found = {name: companion.trained for name, companion in state.companions.items()}
        raise ConfigError(
            f"a turn of {turn.companion!r}, but the companions of the state are {found}: expected one that is trained "
            f"in turns; new_state(..., companions={{{turn.companion!r}: trained_in_turns(module)}})"
        )
    return companion.module, companion.optimizer
