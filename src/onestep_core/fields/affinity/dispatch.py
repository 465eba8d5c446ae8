"""Which engine evaluates affinities: Triton kernels on a CUDA device, else torch, streamed over blocks.

Triton's are used for float32 on NVIDIA's devices where it can be imported, outside ``torch.func``, graphs and tracing
modes, for log-kernels that have a :class:`~onestep_core.fields.kernel_forms.KernelForm`. ``ONESTEP_TRITON=0``
leaves all to torch.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor

from onestep_core.fields.affinity.fused_affinities import FusedAffinities
from onestep_core.fields.affinity.fused_distances import FusedDistances
from onestep_core.fields.affinity.streamed_affinities import Affinities
from onestep_core.fields.affinity.streamed_distances import Distances, plain
from onestep_core.fields.kernels import form_of
from onestep_core.protocols import Kernel

SWITCH = "ONESTEP_TRITON"
"""Environment variable that leaves everything to torch where it is 0."""
AnyDistances: TypeAlias = Distances | FusedDistances
AnyAffinities: TypeAlias = Affinities | FusedAffinities


def fusible(x: Tensor, y: Tensor) -> bool:
    """Whether these points can be left to the kernels."""
    if not (x.is_cuda and x.dtype == y.dtype == torch.float32 and plain(x, y)) or os.environ.get(SWITCH) == "0":
        return False
    return torch.version.cuda is not None and find_spec("triton") is not None


def distances_of(x: Tensor, y: Tensor, *, themselves: bool, kernels: int, block_size: int | None) -> AnyDistances:
    """Distances in blocks; arguments as :class:`~onestep_core.fields.affinity.streamed_distances.Distances`."""
    if fusible(x, y):
        return FusedDistances(x, y, themselves=themselves, block_size=block_size)
    return Distances(x, y, themselves=themselves, kernels=kernels, block_size=block_size)


def affinities_of(
    x: Tensor,
    y: Tensor,
    kernels: Sequence[Kernel],
    *,
    self_penalties: Sequence[float] | None = None,
    block_size: int | None = None,
    apart: AnyDistances | None = None,
) -> AnyAffinities:
    """Affinities; arguments as :class:`~onestep_core.fields.affinity.streamed_affinities.Affinities`."""
    if isinstance(apart, Distances):
        return Affinities(x, y, kernels, self_penalties=self_penalties, block_size=block_size, apart=apart)
    if apart is not None or fusible(x, y):
        forms = [known for known in map(form_of, kernels) if known is not None]
        if len(forms) == len(kernels) and len({(known.shape, known.smallest) for known in forms}) == 1:
            apart = apart or FusedDistances(x, y, themselves=self_penalties is not None, block_size=block_size)
            return FusedAffinities(apart, forms, self_penalties=self_penalties)
    return Affinities(x, y, kernels, self_penalties=self_penalties, block_size=block_size)
