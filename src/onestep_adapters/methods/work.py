"""The cost of training in network evaluations, counted by rows: one sample through one network.

    evaluations = forward + tangent + 2 backward

A forward pass counts 1. The tangent that a derivative along a trajectory carries beside it counts 1. A gradient that
runs back through a network counts 2, whether it ends in the network's weights or in its input. Every network counts:
the trained one, its moving average, a teacher, a fake score, a discriminator. Encoders of features do not.
"""

from typing import Any

import attrs


@attrs.frozen
class Work:
    """Rows that pass through networks.

    Attributes:
        forward: rows of forward passes.
        backward: rows of backward passes.
        tangent: rows with a tangent.

    Example:
        >>> 2 * Work(forward=4, backward=4) + Work(tangent=3)
        Work(forward=8, backward=8, tangent=3)
        >>> Work(forward=4, backward=4, tangent=3).evaluations
        15
    """

    forward: int = 0
    backward: int = 0
    tangent: int = 0

    @property
    def evaluations(self) -> int:
        """Network evaluations."""
        return self.forward + self.tangent + 2 * self.backward

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.backward + other.backward, self.tangent + other.tangent)

    def __rmul__(self, times: int) -> "Work":
        return Work(times * self.forward, times * self.backward, times * self.tangent)


def trained(rows: int) -> Work:
    """Rows that pass forward and backward.

    Example:
        >>> trained(3).evaluations
        9
    """
    return Work(forward=rows, backward=rows)


def seen(rows: int) -> Work:
    """Rows that pass forward alone.

    Example:
        >>> seen(3).evaluations
        3
    """
    return Work(forward=rows)


def total_work(options: Any, data: Any) -> Work:
    """What the whole training of a method costs, without its teacher's training: all updates, and the pairs before.

    Args:
        options: a :class:`~onestep_adapters.methods.Method`.
        data: the data set.

    Example:
        >>> from onestep_adapters.data import open_dataset
        >>> from onestep_adapters.methods import FlowMatching
        >>> total_work(FlowMatching(), open_dataset("8gaussians"))
        Work(forward=512000, backward=512000, tangent=0)
    """
    each = [options.work(step, data) for step in range(options.training.steps)]
    updates = Work(sum(w.forward for w in each), sum(w.backward for w in each), sum(w.tangent for w in each))
    return updates + options.pairs_work
