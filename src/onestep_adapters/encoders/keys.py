"""MoCo's queue of keys: the negatives of a contrastive loss, from the last batches."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from onestep_core.errors import ConfigError


class KeyQueue(nn.Module):
    """The newest keys, a fixed number of them. At the start they are random directions, as in the released code.

    It is a module without parameters: ``.to(device)`` moves it, and its state dictionary holds everything, so a
    resumed run continues with the same keys.

    Args:
        size: number of keys, at least 1; 65,536 in the paper.
        width: numbers in a key.
        generator: draws the first keys; ``None`` for torch's default generator.

    Raises:
        ConfigError: if a size is below 1.

    Source: He et al., Momentum Contrast, algorithm 1, https://arxiv.org/abs/1911.05722. There the size has to be a
    multiple of the batch; here it does not.

    Example:
        >>> queue = KeyQueue(3, 2)
        >>> queue.push(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 4.0]]))
        >>> queue.keys.tolist(), int(queue.pushed)
        ([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], 4)
    """

    keys: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if min(size, width) < 1:
            raise ConfigError(f"a queue of {size} keys of {width} numbers: expected at least one of each")
        self.register_buffer("keys", normalize(torch.randn(size, width, generator=generator), dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Tensor:
        """A copy of the keys, ``[size, width]``: a push before the backward pass does not change the gradient."""
        return self.keys.clone()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Store ``keys`` ``[n, width]`` at unit length, in place of the oldest ones.

        Raises:
            ConfigError: for keys of another width.
        """
        size, width = self.keys.shape
        if keys.ndim != 2 or keys.shape[1] != width:
            raise ConfigError(f"keys of shape {tuple(keys.shape)}: expected [n, {width}]")
        kept = keys[-size:]
        first = self.pushed + len(keys) - len(kept)
        places = (first + torch.arange(len(kept), device=kept.device)) % size
        self.keys[places] = normalize(kept.detach().to(self.keys), dim=1)
        self.pushed += len(keys)
