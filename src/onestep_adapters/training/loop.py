"""The loop: loss, gradient, checks, update, average, checkpoint.

It is a generator. The caller's ``for`` sees a record after every update and may print, evaluate or stop; a loop
that is left early, or a process that is killed, continues from the latest checkpoint bit for bit, on the same
machine and build, provided that ``loss_step`` draws from the generator that it is given or, as dropout does, from
torch's global one, which follows from it.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from onestep_adapters.training.checkpoint import save_checkpoint
from onestep_adapters.training.ema import update_ema
from onestep_adapters.training.folder import check_folder, latest_checkpoint
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import ConfigError, OneStepError

LossStep: TypeAlias = Callable[[nn.Module, torch.Generator], tuple[Tensor, Mapping[str, float | Tensor]]]
"""``(network, generator) -> (scalar loss, numbers to log)``; every draw comes from the generator, or is torch's own."""

Schedule: TypeAlias = Callable[[int], float]
"""A number as a function of the updates made so far."""


class TrainingError(OneStepError):
    """Training cannot go on; the message names step, method, cause and the last good checkpoint."""


class StepRecord(NamedTuple):
    """One update.

    ``step`` counts from 1; ``loss`` is before the update; ``gradient_norm`` is the Euclidean norm over all
    parameters, before clipping; ``seconds`` is the wall time of the update without its checkpoint.
    """

    step: int
    loss: float
    gradient_norm: float
    seconds: float
    logs: dict[str, float]


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
) -> Iterator[StepRecord]:
    """Update ``state`` in place until ``state.step == steps``, yielding a record after each update.

    Args:
        state: from :func:`new_state` or :func:`load_checkpoint`.
        loss_step: ``(network, generator) -> (loss, logs)``; the loss is 0-d, the logs are single numbers.
        steps: total number of updates, those already made included.
        learning_rate: of update ``i``, counted from 0: :func:`cosine` or one's own.
        ema: decay of update ``i``: :func:`constant_decay`, :func:`warmed_decay` or one's own.
        clip: largest gradient norm, positive; ``None`` for none.
        checkpoint_every: updates between checkpoints; with a ``folder`` there is one at the end in any case.
        folder: of the checkpoints.
        history_every: updates between entries of ``state.history``.

    Raises:
        ConfigError: at once for arguments out of range; during the run for a loss that is not 0-d.
        CheckpointError: at once, if the folder holds another run or is further on.
        TrainingError: during the run, before any parameter is touched, if the loss or the norm of its gradient
            is not finite or no parameter has a gradient. State and checkpoints are then those after the last
            good update (buffers that ``loss_step`` changes itself excepted).

    Example:
        >>> from onestep_adapters.training import constant_decay, new_state
        >>> state = new_state("demo", nn.Linear(1, 1))
        >>> def loss_step(network, generator):
        ...     return network(torch.randn(8, 1, generator=generator)).square().mean(), {}
        >>> run = train(state, loss_step, steps=3, learning_rate=cosine(1e-2, 3), ema=constant_decay(0.9))
        >>> [record.step for record in run]
        [1, 2, 3]
    """
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip = {clip!r}: expected a positive norm, or None for no clipping")

    def update() -> StepRecord:
        start = time.perf_counter()
        decay = checked_decay(ema, state.step)
        loss, norm, logs = descend(
            state, state.network, state.optimizer, loss_step, learning_rate=learning_rate, clip=clip, folder=folder
        )
        update_ema(state.ema, state.network, decay=decay)
        state.step += 1
        return StepRecord(state.step, loss, norm, time.perf_counter() - start, logs)

    return updates(
        state, update, steps=steps, checkpoint_every=checkpoint_every, folder=folder, history_every=history_every
    )


def updates(
    state: TrainingState,
    update: Callable[[], StepRecord],
    *,
    steps: int,
    checkpoint_every: int | None,
    folder: str | os.PathLike[str] | None,
    history_every: int,
) -> Iterator[StepRecord]:
    """The part of a loop that every kind of update shares: records, history and checkpoints.

    Args:
        state: moved on by ``update``.
        update: makes one and returns its record; raises with the state as it was.
        steps: as for :func:`train`, like the other arguments and the errors.
        checkpoint_every: see there.
        folder: see there.
        history_every: see there.
    """
    for name, count in (("checkpoint_every", checkpoint_every), ("history_every", history_every)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} = {count!r}: expected at least 1")
    if steps < 0:
        raise ConfigError(f"steps = {steps!r}: expected a number that is not negative")
    if checkpoint_every is not None and folder is None:
        raise ConfigError(f"checkpoint_every = {checkpoint_every} without a folder: give folder=")
    if folder is not None:
        check_folder(folder, state)

    def records() -> Iterator[StepRecord]:
        while state.step < steps:
            record = update()
            if record.step % history_every == 0 or record.step == steps:
                state.history.append(record._asdict())
            due = record.step == steps or (checkpoint_every is not None and record.step % checkpoint_every == 0)
            if folder is not None and due:
                save_checkpoint(folder, state)
            yield record

    return records()


class Descent(NamedTuple):
    """One step of one optimiser: the loss before it, the gradient's norm before clipping, the logs."""

    loss: float
    gradient_norm: float
    logs: dict[str, float]


def checked_decay(ema: Schedule, step: int) -> float:
    """The EMA's decay of an update.

    Raises:
        ConfigError: if it is not in [0, 1].
    """
    if not 0 <= (decay := ema(step)) <= 1:
        raise ConfigError(f"the EMA's decay at update {step} is {decay!r}: expected a number in [0, 1]")
    return decay


def descend(
    state: TrainingState,
    network: nn.Module,
    optimizer: Optimizer,
    loss_step: LossStep,
    *,
    learning_rate: Schedule,
    clip: float | None,
    folder: str | os.PathLike[str] | None,
    turn: int = 0,
) -> Descent:
    """One step of ``optimizer`` down ``loss_step(network, state.generator)``: gradient, checks, clipping; the
    ``turn``-th of an update.

    Raises:
        TrainingError: before any parameter is touched and with the generator as it was, as :func:`train` says.
    """
    rate = learning_rate(state.step)
    if not (math.isfinite(rate) and rate >= 0):
        raise ConfigError(f"the learning rate of update {state.step} is {rate!r}: expected a number, not negative")
    drawn = state.generator.get_state()
    optimizer.zero_grad(set_to_none=True)
    try:
        with own_randomness(state, turn):
            loss, logs = loss_step(network, state.generator)
        value, numbers = _number("loss", loss), {name: _number(name, log) for name, log in logs.items()}
        if not math.isfinite(value):
            raise _failure(state, folder, f"the loss is {value}", numbers)
        if not loss.requires_grad:
            raise _failure(state, folder, "the loss depends on no parameter", numbers)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            raise _failure(state, folder, "no parameter of the optimiser has a gradient", numbers)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(length := norm.item()):
            raise _failure(state, folder, f"the gradient norm is {length} at a loss of {value}", numbers)
    except BaseException:
        state.generator.set_state(drawn)
        optimizer.zero_grad(set_to_none=True)
        raise
    if clip is not None:
        clip_grads_with_norm_(parameters, clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Descent(value, length, numbers)


@contextlib.contextmanager
def own_randomness(state: TrainingState, turn: int = 0) -> Iterator[None]:
    """Inside, torch's global generator follows from the run's: dropout draws the same after a resumption, and
    something else in every turn of an update.

    The run's generator is not moved on, and the global one is put back.
    """
    device = state.generator.device
    twin = torch.Generator(device=device)
    twin.set_state(state.generator.get_state())
    seed = [int(torch.randint(2**62, (), generator=twin, device=device)) for _ in range(turn + 1)][-1] + state.step
    # Only what is put back is seeded: torch.manual_seed would move the generators of every device.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor):
        if value.ndim or value.is_complex():
            raise ConfigError(f"{name} has shape {tuple(value.shape)}, expected one real number: take its mean()")
        return float(value.detach())
    if name == "loss":
        raise ConfigError(f"loss_step returned a {type(value).__name__} as loss, expected a 0-d tensor")
    return float(value)


def _failure(
    state: TrainingState, folder: str | os.PathLike[str] | None, cause: str, logs: dict[str, float]
) -> TrainingError:
    checkpoint = None if folder is None else latest_checkpoint(folder)
    good = "there is no checkpoint" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
    shown = f" (logs: {logs})" if logs else ""
    return TrainingError(
        f"{state.method}, update {state.step + 1}: {cause}{shown}; no parameter was touched, {good}. Expected a finite "
        "loss and gradient: lower the learning rate, clip, or look for a division by a small time difference"
    )


def cosine(peak: float, steps: int, warmup: int = 0) -> Schedule:
    """``peak (i + 1) / warmup`` for ``i < warmup``, then ``peak (1 + cos(pi (i - warmup) / (steps - warmup))) / 2``.

    Args:
        peak: largest learning rate, positive.
        steps: where the rate reaches 0; it stays there.
        warmup: updates of the linear rise, fewer than ``steps``.

    Raises:
        ConfigError: for numbers out of range.

    Example:
        >>> rate = cosine(1.0, 12, warmup=2)
        >>> [rate(i) for i in (0, 1, 2, 7, 12)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if not (math.isfinite(peak) and peak > 0):
        raise ConfigError(f"peak = {peak!r}: expected a positive learning rate")
    if not 0 <= warmup < steps:
        raise ConfigError(f"warmup = {warmup} of {steps} steps: expected 0 <= warmup < steps")

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup)))) / 2

    return rate
