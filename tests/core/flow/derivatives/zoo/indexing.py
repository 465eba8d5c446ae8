"""Slices, indices, scatter and gather, parts put together: without writing in place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.flow.derivatives.case import F64, add, fragment

I = torch.tensor([[0, 2, 1, 0], [3, 1, 1, 2], [1, 0, 3, 3]])
ROWS = torch.tensor([2, 0, 2])
KEEP = torch.tensor([[True, False, True, True], [False, True, False, False], [True, True, True, False]])

READS: dict[str, Any] = {
    "slices": lambda x: x[1:] * x[:-1] + x[None, ..., 0:1].sin().sum() + x[:, ::2].sum() + x[-1],
    "integers and none": lambda x: x[0, 1] * x[:, None, 2] + x[..., None].sum() + x[1][2],
    "index tensors": lambda x: x[ROWS] * x[ROWS, ROWS][:, None] + x[:, I[0]] + x[I[:, :1] % 3, I].sum(),
    "boolean index": lambda x: x[KEEP] * x[x > -5].sum() + x[KEEP[:, 0]].sum(),
    "boolean index of the data": lambda x: x[x > 0].sin().sum() + x[x < 0],
    "list as an index": lambda x: x[[0, 2]] * x[[1, 1]],
    "gather": lambda x: x.gather(1, I) * x.gather(0, I % 3).sin(),
    "take": lambda x: x.take(torch.tensor([0, 5, 11])) * x.take_along_dim(I, 1).sum(),
    "index select": lambda x: x.index_select(0, ROWS) + torch.select(x, 1, 2)[:, None] * x.narrow(1, 1, 1),
    "masked select": lambda x: x.masked_select(KEEP).sin(),
    "nonzero": lambda x: x[(x > 0).nonzero(as_tuple=True)].cos(),
    "chunks": lambda x: torch.cat([a.sin() for a in x.chunk(2, 1)], 0) + x.split([1, 3], 1)[0].sum(),
    "split by an index": lambda x: x.tensor_split((1, 3), dim=1)[1] * x.unbind(1)[0][:, None] + x.hsplit(2)[1],
    "windows": lambda x: x.unfold(1, 2, 1).prod(-1) + x.as_strided((3, 3), (4, 1), 1),
    "diagonals": lambda x: x.diagonal() * x.trace() + torch.diag_embed(x).sum((1, 2)) + x.diag().diag().sum(),
    "triangles": lambda x: x.tril() + x.triu(1).sin(),
    "turned": lambda x: x.flip(1) + x.roll(1, 0) * x.roll((1, 2), (0, 1)) + torch.fliplr(x) + torch.rot90(x, 2),
    "shapes": lambda x: x.view(4, 3).T * x.reshape(2, 6).reshape(-1).unflatten(0, (3, 4)) + x.flatten().view_as(x),
    "dimensions": lambda x: (
        x.unsqueeze(1).transpose(0, 2).permute(2, 1, 0).squeeze(1) * x.mT.movedim(0, 1).swapaxes(0, 0)
    ),
    "contiguous": lambda x: x.t().contiguous().view(-1) * x.t().clone(memory_format=torch.contiguous_format).view(-1),
    "expanded": lambda x: x[:, :1].expand(3, 4) * x[:1].expand_as(x) + torch.broadcast_to(x[0], (3, 4)),
    "repeated": lambda x: x.repeat(2, 1).sin()[:3] + x.tile(1, 2)[:, 4:] * x.repeat_interleave(2, 0)[::2],
    "put together": lambda x: torch.cat([x, x.sin()], 1) + torch.stack([x, x], 1).view(3, 8) + torch.hstack([x, x]),
    "put together with constants": lambda x: (
        torch.cat([torch.ones(3, 1, dtype=F64), x, torch.zeros(3, 1, dtype=F64)], 1).cumsum(1)
        + torch.stack([x.sum(), torch.tensor(2.0, dtype=F64)]).prod()
    ),
    "stacks": lambda x: (
        torch.vstack([x, x])
        + torch.dstack([x, x])[..., 0].repeat(2, 1)
        + torch.column_stack([x, x])[:, :4].repeat(2, 1)
    ),
    "grids": lambda x: torch.meshgrid(x[0], x[1], indexing="ij")[0] * torch.cartesian_prod(x[0], x[1])[:, 1].view(4, 4),
    "pairs": lambda x: torch.combinations(x[0]).prod(1).sum() * x + torch.block_diag(x, x[:, :1]).sum(),
    "padded": lambda x: F.pad(x, (1, 0), value=2.0) * F.pad(x, (0, 1, 1, -1)),
    "scatter": lambda x: (
        torch.zeros(3, 4, dtype=F64).scatter(1, I[:, :2], x[:, :2]) + x.scatter(1, I[:, 1:3], x[:, 2:].sin())
    ),
    "scatter of a number": lambda x: x.scatter(1, I[:, :1], 3.0) * x.scatter(1, I[:, 2:3], -1.0),
    "scatter add": lambda x: x.scatter_add(1, I, x.sin()) * x,
    "scatter reduce": lambda x: x.scatter_reduce(1, I, x.sin(), "amax") + x.scatter_reduce(1, I, x.cos(), "mean"),
    "index add": lambda x: x.index_add(0, ROWS, x.sin(), alpha=2) * x.index_copy(0, ROWS[:2], x[:2].exp()),
    "index fill": lambda x: x.index_fill(1, ROWS[:2], 2.0) * x,
    "index put": lambda x: x.index_put((ROWS, ROWS), x[:, 0]) + x.index_put((ROWS, ROWS), x[:, 0], accumulate=True),
    "masked fill": lambda x: x.masked_fill(KEEP, -1.0) * x.masked_fill(x > 0, 0.0) + x.masked_fill(KEEP, x.sum()),
    "masked scatter": lambda x: torch.zeros_like(x).masked_scatter(KEEP, x) * x.masked_scatter(KEEP, x.flip(0)),
    "scattered parts": lambda x: (
        x.slice_scatter(x[:, :2].sin(), 1, 0, 2) * x.select_scatter(x[0].exp(), 0, 1) + x.diagonal_scatter(x[:, 0])
    ),
    "put": lambda x: x.put(torch.tensor([1, 7]), x[0, :2].sin()) * x,
    "sorted positions are constants": lambda x: (
        x * torch.searchsorted(x.detach().sort(1).values, x) + torch.bucketize(x, torch.tensor([0.0])) * x
    ),
    "one hot of a choice": lambda x: F.one_hot(x.argmax(1), 4) * x,
    "einops of patches": lambda x: (
        x.view(1, 1, 3, 4).unfold(2, 3, 3).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).sin()
    ),
}
for _name, _function in READS.items():
    add("indexing", _name, fragment(_function, (3, 4)))


def patches(x: Tensor) -> Tensor:
    """Windows of a Swin transformer: shifted, parted, and put back."""
    b, h, w, c = x.shape
    shifted = torch.roll(x, (-1, -1), (1, 2))
    windows = shifted.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
    mixed = (windows @ windows.transpose(1, 2)).softmax(-1) @ windows
    back = mixed.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, c)
    return torch.roll(back, (1, 1), (1, 2))


add("indexing", "shifted windows", fragment(patches, (2, 4, 4, 3)))
