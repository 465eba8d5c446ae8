"""The state of a training run between two updates: everything that is saved in a checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onestep_adapters.training.base import Hashes, base_hashes
from onestep_adapters.training.companions import Companion, adamw, checked_companions, require_module
from onestep_adapters.training.ema import averaged_copy
from onestep_core.errors import ConfigError
from onestep_core.validators import require_count


@attrs.define(eq=False)
class TrainingState:
    """The state of a run between two updates. Mutable: :func:`~onestep_adapters.training.train` updates it in place.

    Attributes:
        method: name of the trained method; a checkpoint of another method raises an error.
        network: the trained module.
        ema: a module of the same architecture with the moving average of the weights of ``network``.
        optimizer: optimiser of the parameters of ``network``, then of the companions that are trained jointly.
        generator: the only source of randomness of the run.
        step: updates made so far.
        history: one dictionary per recorded update, see ``history_every`` of ``train``; JSON.
        config: the configuration that the run was built from; JSON.
        replaced: a configuration that the saved checkpoints of this run may still have, if ``config`` has changed since
            (a run that goes on for more updates); not saved.
        companions: further modules of the run, by name; saved with it.
        kept: tensors of any shape that a loss leaves for the next update, by name; saved with the run, so that what is
            logged does not depend on interruptions.
        base: hashes of the parameters that took no gradient when the state was made. A checkpoint leaves them out as
            long as they do not change.

    Example:
        >>> state = new_state("flow matching", nn.Linear(2, 2), learning_rate=1e-3, seed=0)
        >>> state.step, state.history, state.companions
        (0, [], {})
    """

    method: str
    network: nn.Module
    ema: nn.Module
    optimizer: Optimizer
    generator: torch.Generator
    step: int = 0
    history: list[dict[str, Any]] = attrs.field(factory=list)
    config: dict[str, Any] = attrs.field(factory=dict)
    companions: dict[str, Companion] = attrs.field(factory=dict)
    kept: dict[str, Tensor] = attrs.field(factory=dict)
    base: Hashes = attrs.field(factory=dict)
    replaced: dict[str, Any] | None = None


def new_state(
    method: str,
    network: nn.Module,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    companions: Mapping[str, Companion] | None = None,
) -> TrainingState:
    """A run at step 0: AdamW, an EMA that equals the network, a generator on the network's device.

    Args:
        method: name of what is trained.
        network: trained in place; its initial weights and its mode (training or evaluation) are not changed here.
            Parameters that take no gradient, such as the base of a LoRA, are shared with the average and not saved: a
            checkpoint holds their hashes.
        learning_rate: of the first update, unless ``train`` is given a schedule; positive.
        betas: AdamW's, each in [0, 1).
        weight_decay: AdamW's, per unit of learning rate, not negative.
        seed: of the generator.
        config: what built the run, JSON; kept as JSON keeps it (tuples become lists).
        companions: other modules of the run, by names such as ``fake_score``. AdamW updates those that are trained
            jointly too; their parameters follow the network's in the order given here.

    Returns:
        The state. Its EMA is in evaluation mode, takes no gradient, and is kept in at least float32.

    Raises:
        ConfigError: for a number out of range, a network without parameters, a config that is not JSON, or companions
            that share parameters with one another or with the network.

    Example:
        >>> from onestep_adapters.training import trained_jointly
        >>> discriminator = trained_jointly(nn.Linear(2, 1))
        >>> state = new_state("demo", nn.Linear(2, 2), seed=7, config={"width": 2}, companions={"judge": discriminator})
        >>> state.config, state.generator.initial_seed(), len(state.optimizer.param_groups[0]["params"])
        ({'width': 2}, 7, 4)
    """
    if not isinstance(method, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"method = {method!r}: expected a name")
    if config is not None and not isinstance(config, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"config is a {type(config).__name__}: expected a dictionary")
    require_count("seed", seed, below=2**63)
    require_module("the network", network)
    kept = checked_companions(network, {} if companions is None else companions)
    joint = [companion.module for companion in kept.values() if companion.trained == "jointly"]
    optimizer = adamw([network, *joint], learning_rate, betas, weight_decay)
    try:
        plain = json.loads(json.dumps({} if config is None else config))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"config cannot be kept as JSON ({error}): expected dictionaries with string keys, lists, strings, "
            "numbers, booleans and None"
        ) from error
    ema, base = averaged_copy(network), base_hashes(network, kept)
    device = optimizer.param_groups[0]["params"][0].device
    if device.type == "meta":
        raise ConfigError(
            "the network is on the device meta, which holds no numbers: construct it on another device, or load "
            "weights after network.to_empty(device='cpu')"
        )
    generator = torch.Generator(device=device).manual_seed(seed)
    return TrainingState(method, network, ema, optimizer, generator, config=plain, companions=kept, base=base)
