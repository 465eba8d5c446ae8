"""Parameters that a run does not train: the frozen base of an adapter such as LoRA.

A checkpoint stores what has changed since the run began. Of a parameter that took no gradient when the state was made,
and that still has its first value, it stores a hash. The network and its moving average share such parameters. The user
builds the same base again before resuming; another base is refused.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onestep_adapters.training.companions import Companion
from onestep_adapters.training.ema import unwrapped

Hashes = dict[str, dict[str, str]]
"""A hash of every frozen parameter, by the part of the state (``network``, ``companion.NAME``) and its name."""


def base_hashes(network: nn.Module, companions: Mapping[str, Companion]) -> Hashes:
    """Hashes of the parameters that take no gradient, of the network and of every companion that is trained.

    Args:
        network: the trained module; its average has the same base.
        companions: by name. One that is never trained is saved as a whole.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 1, bias=False).requires_grad_(False), nn.Linear(1, 1))
        >>> {part: list(names) for part, names in base_hashes(network, {}).items()}
        {'network': ['0.weight'], 'ema': ['0.weight']}
    """
    own = _frozen(network)
    trained = {f"companion.{name}": one.module for name, one in companions.items() if one.trained != "never"}
    found = {"network": own, "ema": own} | {part: _frozen(module) for part, module in trained.items()}
    return {part: names for part, names in found.items() if names}


def unchanged(module: nn.Module, hashes: Mapping[str, str]) -> dict[str, str]:
    """Those of ``hashes`` that the tensors of ``module`` still have.

    Example:
        >>> network = nn.Linear(1, 1).requires_grad_(False)
        >>> before = base_hashes(network, {})["network"]
        >>> _ = nn.init.constant_(network.bias, 7.0)
        >>> list(unchanged(network, before))
        ['weight']
    """
    own = module.state_dict()
    return {name: value for name, value in hashes.items() if name in own and tensor_hash(own[name]) == value}


def tensor_hash(tensor: Tensor) -> str:
    """A hash of dtype, shape and bits, 32 hexadecimal digits.

    Example:
        >>> tensor_hash(torch.zeros(2)) == tensor_hash(torch.zeros(2)) != tensor_hash(torch.zeros(2).double())
        True
    """
    bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(bits.numpy())
    return found.hexdigest()[:32]


def _frozen(module: nn.Module) -> dict[str, str]:
    return {
        name: tensor_hash(tensor)
        for name, tensor in unwrapped(module).state_dict(keep_vars=True).items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    }
