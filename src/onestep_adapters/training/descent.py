"""One step of one optimiser: draws, loss, gradient, checks, clipping."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from onestep_adapters.training.folder import latest_checkpoint
from onestep_adapters.training.schedules import Schedule, scheduled
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import ConfigError, OneStepError

LossStep: TypeAlias = Callable[[nn.Module, torch.Generator], tuple[Tensor, Mapping[str, float | Tensor]]]
"""``(network, generator) -> (scalar loss, numbers to log)``; every draw comes from the generator, or is torch's own."""


class TrainingError(OneStepError):
    """Training cannot continue. The message names step, method, cause and the last good checkpoint."""


class Descent(NamedTuple):
    """One step of one optimiser: the loss before it, the gradient's norm before clipping, the logs."""

    loss: float
    gradient_norm: float
    logs: dict[str, float]


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
    """One step of ``optimizer`` along the negative gradient of ``loss_step(network, state.generator)``.

    Args:
        state: state of the run; its generator advances.
        network: the module to update: the network of the state or a companion.
        optimizer: optimiser of this module's parameters.
        loss_step: gives the loss and the logs.
        learning_rate: learning rate at ``state.step``.
        clip: largest gradient norm, or ``None``.
        folder: folder of the checkpoints, for the error message.
        turn: number of optimiser steps already made in this update of the run.

    Raises:
        ConfigError: for a learning rate out of range, or a loss or a log that is not one number.
        TrainingError: as described in :func:`~onestep_adapters.training.train`. No parameter has changed then, and
            the generator has its state from before the step.
    """
    rate = scheduled("learning rate", learning_rate, state.step)
    if not (math.isfinite(rate) and rate >= 0):
        raise ConfigError(f"the learning rate of update {state.step} is {rate!r}: expected a number, not negative")
    drawn = state.generator.get_state()
    optimizer.zero_grad(set_to_none=True)
    try:
        with own_randomness(state, turn):
            loss, logs = _pair(loss_step(network, state.generator))
        if names := [name for name in logs if not isinstance(name, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"logs are called {names}: expected names, texts such as 'accuracy'")
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
    _set_rates(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Descent(value, length, numbers)


def _set_rates(optimizer: Optimizer, rate: float) -> None:
    """Give every group the scheduled rate times its own rate, relative to the largest one when training began."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    largest = max(group["initial_lr"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        value = rate * (group["initial_lr"] / largest if largest > 0 else 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


@contextlib.contextmanager
def own_randomness(state: TrainingState, turn: int = 0) -> Iterator[None]:
    """Inside, torch's global generator is seeded from the generator of the run. So dropout draws the same masks
    after a resume, and different masks in every turn of an update.

    The run's generator does not advance, and the global generator is restored afterwards.
    """
    device = state.generator.device
    twin = torch.Generator(device=device)
    twin.set_state(state.generator.get_state())
    seed = [int(torch.randint(2**62, (), generator=twin, device=device)) for _ in range(turn + 1)][-1] + state.step
    # Only the generators that are restored are seeded: torch.manual_seed would change those of every device.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _pair(made: Any) -> tuple[Any, Mapping[str, Any]]:
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[1], Mapping):
        return made[0], made[1]
    found = type(made).__name__
    if isinstance(made, tuple | list):
        found += f" of {', '.join(type(part).__name__ for part in made)}"
    raise ConfigError(
        f"loss_step returned a {found}, expected (loss, logs): the loss as a 0-d tensor and a dictionary of numbers to "
        "log, {} for none"
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor):
        if value.ndim or value.is_complex():
            raise ConfigError(f"{name} has shape {tuple(value.shape)}, expected one real number: take its mean()")
        return float(value.detach())
    if name == "loss":
        raise ConfigError(f"loss_step returned a {type(value).__name__} as loss, expected a 0-d tensor")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"the log {name} is a {type(value).__name__}: expected one number") from None


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
