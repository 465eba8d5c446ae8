"""A network beside a frozen copy of itself: what it was at the end of its first phase."""

import copy
from typing import Any

from torch import Tensor, nn


class Anchored(nn.Module):
    """Calls ``network``; ``anchor`` is a copy that no update touches.

    Both are in the state dictionary, so a run that resumes in its second phase finds the anchor where it was.

    Args:
        network: the one that learns.

    Example:
        >>> both = Anchored(nn.Linear(2, 2))
        >>> sum(p.requires_grad for p in both.parameters()), len(both.state_dict())
        (2, 4)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.anchor = copy.deepcopy(network).requires_grad_(False)

    def forward(self, *args: Any, **keywords: Any) -> Tensor:
        """The network's answer."""
        return self.network(*args, **keywords)

    def drop_anchor(self, source: nn.Module) -> None:
        """Make the anchor equal to ``source``, a module of the network's layout."""
        self.anchor.load_state_dict(source.state_dict())
