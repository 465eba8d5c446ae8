"""What a training run is between two updates: everything that a checkpoint has to hold."""

import copy
import json
import math
from typing import Any

import attrs
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from onestep_core.errors import ConfigError


@attrs.define(eq=False)
class Opponent:
    """A second player: what learns beside the network, by a loss of its own. Made by :func:`new_opponent`.

    Attributes:
        network: the module that learns: a fake score, a discriminator, both.
        optimizer: of its parameters.
    """

    network: nn.Module
    optimizer: Optimizer


@attrs.define(eq=False)
class TrainingState:
    """A run between two updates. Mutable: :func:`~onestep_adapters.training.train` moves it on in place.

    Attributes:
        method: name of what is trained; a checkpoint of another method is refused.
        network: the module that learns.
        ema: a module of the same layout, the average of ``network`` over the updates.
        optimizer: of the parameters of ``network``.
        generator: the only source of randomness of the run.
        step: updates made so far.
        history: one dictionary an update, as recorded by ``train``; JSON.
        config: what built the run; JSON.
        opponent: a second player with an optimiser of its own, moved by
            :func:`~onestep_adapters.training.train_two_players`, or ``None``.
        memory: what the run keeps between updates beside its network, a queue of samples for one; saved with it.

    Example:
        >>> state = new_state("flow matching", nn.Linear(2, 2), learning_rate=1e-3, seed=0)
        >>> state.step, state.history
        (0, [])
    """

    method: str
    network: nn.Module
    ema: nn.Module
    optimizer: Optimizer
    generator: torch.Generator
    step: int = 0
    history: list[dict[str, Any]] = attrs.field(factory=list)
    config: dict[str, Any] = attrs.field(factory=dict)
    opponent: Opponent | None = None
    memory: nn.Module | None = None


def new_state(
    method: str,
    network: nn.Module,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    opponent: Opponent | None = None,
    memory: nn.Module | None = None,
) -> TrainingState:
    """A run at step 0: AdamW, an EMA that equals the network, a generator on the network's device.

    Args:
        method: name of what is trained.
        network: trained in place; its weights are the caller's to draw, its mode is left alone.
        learning_rate: of the first update, unless ``train`` is given a schedule; positive.
        betas: AdamW's, each in [0, 1).
        weight_decay: AdamW's, per unit of learning rate, not negative.
        seed: of the generator.
        config: what built the run, JSON; kept as JSON keeps it (tuples become lists).
        opponent: a second player.
        memory: a module whose state belongs to the run although nothing trains it; ``None`` for none.

    Returns:
        The state. Its EMA is in evaluation mode and takes no gradient.

    Raises:
        ConfigError: for a number out of range, a network without parameters, or a config that is not JSON.

    Example:
        >>> state = new_state("meanflow", nn.Linear(2, 2), seed=7, config={"width": 2})
        >>> state.config, state.generator.initial_seed()
        ({'width': 2}, 7)
    """
    optimizer = _optimizer(network, learning_rate, betas, weight_decay)
    try:
        kept = json.loads(json.dumps({} if config is None else config))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"config cannot be kept as JSON ({error}): expected dictionaries with string keys, lists, strings, "
            "numbers, booleans and None"
        ) from error
    ema = copy.deepcopy(network).requires_grad_(False).eval()
    device = optimizer.param_groups[0]["params"][0].device
    generator = torch.Generator(device=device).manual_seed(seed)
    return TrainingState(method, network, ema, optimizer, generator, config=kept, opponent=opponent, memory=memory)


def new_opponent(
    network: nn.Module,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> Opponent:
    """A second player with an AdamW of its own. Arguments and errors as :func:`new_state`.

    Example:
        >>> state = new_state("dmd", nn.Linear(2, 2), opponent=new_opponent(nn.Linear(2, 1), betas=(0.0, 0.999)))
        >>> state.opponent.optimizer.defaults["betas"]
        (0.0, 0.999)
    """
    return Opponent(network, _optimizer(network, learning_rate, betas, weight_decay))


def _optimizer(network: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float) -> AdamW:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigError(f"learning_rate = {learning_rate!r}: expected a positive number")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas = {betas!r}: expected two numbers in [0, 1)")
    if not weight_decay >= 0:
        raise ConfigError(f"weight_decay = {weight_decay!r}: expected a number that is not negative")
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(
            f"{type(network).__name__} has no parameter that takes a gradient: nothing to train; "
            "call requires_grad_(True) on what should learn"
        )
    return AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
