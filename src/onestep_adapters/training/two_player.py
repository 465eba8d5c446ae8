"""Two players: a network and what it plays against, each with a loss and an optimiser of its own, in turns.

A fake score, or a discriminator, has to keep up with a generator that moves. One update of the run is therefore
``ratio`` updates of the opponent and then one of the network:

    for r in 1 .. ratio:    opponent <- opponent - rate' grad opponent_step
    network <- network - rate grad network_step;    average <- ...

What one player's loss does to the other is cleared away: a head's logits on generated samples send gradients into the
fake score that it reads, and none of them is there when the turn ends. It costs less not to make them at all:
``networks.frozen(opponent)`` lets the gradient pass to the samples and to no parameter.

Everything else is :func:`~onestep_adapters.training.train`'s: the records, the checks, the checkpoints, which hold both
players, and the promise that an interrupted run goes on to the bit.
"""

import os
import time
from collections.abc import Iterator

from onestep_adapters.training.ema import update_ema
from onestep_adapters.training.loop import LossStep, Schedule, StepRecord, checked_decay, descend, updates
from onestep_adapters.training.state import TrainingState
from onestep_core.errors import ConfigError

OPPONENT = "opponent_"
"""Begins the names of the opponent's numbers in a record: ``opponent_loss``, ``opponent_gradient_norm``, its logs."""


def train_two_players(
    state: TrainingState,
    network_step: LossStep,
    opponent_step: LossStep,
    *,
    steps: int,
    ratio: int,
    learning_rate: Schedule,
    opponent_learning_rate: Schedule,
    ema: Schedule,
    clip: float | None = None,
    opponent_clip: float | None = None,
    checkpoint_every: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    history_every: int = 1,
) -> Iterator[StepRecord]:
    """Update ``state`` in place until ``state.step == steps``, yielding a record after each of the network's updates.

    Args:
        state: from ``new_state(..., opponent=new_opponent(...))``, or loaded.
        network_step: ``(network, generator) -> (loss, logs)``; it finds the opponent in the state.
        opponent_step: ``(opponent, generator) -> (loss, logs)``; it finds the network in the state, whose samples it
            takes without their graph.
        steps: total number of the network's updates.
        ratio: updates of the opponent before each of the network's, at least 1; five in DMD2.
        learning_rate: of the network's update ``i``.
        opponent_learning_rate: of the opponent's updates before the network's update ``i``.
        ema: decay of the network's average at update ``i``; the opponent has none.
        clip: largest norm of the network's gradient.
        opponent_clip: of the opponent's.
        checkpoint_every: the other arguments are those of :func:`~onestep_adapters.training.train`.
        folder: see there.
        history_every: see there.

    Returns:
        Records of the network's updates. Their logs have the opponent's last loss, norm and logs besides, under names
        that begin with ``opponent_``.

    Raises:
        ConfigError: at once for numbers out of range or a state without an opponent; during the run as ``train`` does.
        CheckpointError: at once, if the folder holds another run or is further on.
        TrainingError: during the run, before a parameter of the player in turn is touched. The checkpoint is that of a
            whole update; in the state the opponent may be ahead of it.

    Source: Yin et al., Improved Distribution Matching Distillation, section 4.2 (two time-scale update rule),
    https://arxiv.org/abs/2405.14867.

    Example:
        >>> import torch
        >>> from onestep_adapters.training import constant_decay, new_opponent, new_state
        >>> state = new_state("demo", torch.nn.Linear(1, 1), opponent=new_opponent(torch.nn.Linear(1, 1)))
        >>> def network_step(network, generator):
        ...     return -state.opponent.network(network(torch.randn(8, 1, generator=generator))).mean(), {}
        >>> def opponent_step(opponent, generator):
        ...     return opponent(torch.randn(8, 1, generator=generator)).square().mean(), {}
        >>> run = train_two_players(
        ...     state, network_step, opponent_step, steps=2, ratio=3, learning_rate=lambda i: 1e-3,
        ...     opponent_learning_rate=lambda i: 1e-2, ema=constant_decay(0.9),
        ... )
        >>> [sorted(record.logs) for record in run]
        [['opponent_gradient_norm', 'opponent_loss'], ['opponent_gradient_norm', 'opponent_loss']]
    """
    opponent = state.opponent
    if opponent is None:
        raise ConfigError("the state has no opponent: make it by new_state(..., opponent=new_opponent(network))")
    if not isinstance(ratio, int) or ratio < 1:
        raise ConfigError(
            f"ratio = {ratio!r}: expected whole updates of the opponent for one of the network, at least one"
        )
    for name, norm in (("clip", clip), ("opponent_clip", opponent_clip)):
        if norm is not None and not norm > 0:
            raise ConfigError(f"{name} = {norm!r}: expected a positive norm, or None for no clipping")

    def update() -> StepRecord:
        start = time.perf_counter()
        decay = checked_decay(ema, state.step)
        turns = [
            descend(
                state,
                opponent.network,
                opponent.optimizer,
                opponent_step,
                learning_rate=opponent_learning_rate,
                clip=opponent_clip,
                folder=folder,
                turn=turn,
            )
            for turn in range(ratio)
        ]
        try:
            loss, norm, logs = descend(
                state,
                state.network,
                state.optimizer,
                network_step,
                learning_rate=learning_rate,
                clip=clip,
                folder=folder,
                turn=ratio,
            )
        finally:
            opponent.optimizer.zero_grad(set_to_none=True)
        update_ema(state.ema, state.network, decay=decay)
        state.step += 1
        theirs = turns[-1]
        shown = {"loss": theirs.loss, "gradient_norm": theirs.gradient_norm, **theirs.logs}
        logs |= {OPPONENT + name: number for name, number in shown.items()}
        return StepRecord(state.step, loss, norm, time.perf_counter() - start, logs)

    return updates(
        state, update, steps=steps, checkpoint_every=checkpoint_every, folder=folder, history_every=history_every
    )
