"""Code that writes in place and through views: each a small function meant to break what tracks tensors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.flow.derivatives.case import F64, add, fragment

KEEP = torch.tensor([[True, False, True, True], [False, True, False, False], [True, True, True, False]])


def slice_of_zeros(x: Tensor) -> Tensor:
    out = torch.zeros(3, 6, dtype=F64)
    out[:, 1:5] = x
    return out * out.roll(1, 1)


def rows_of_zeros(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        out[i] = row.sin()
    return out.cumsum(0)


def new_zeros(x: Tensor) -> Tensor:
    out = x.new_zeros(5, 4)
    out[1:4] += x
    out[::2] *= 2
    return out.square()


def part_of_new_empty(x: Tensor) -> Tensor:
    out = x.new_empty(3, 8)
    out[:, :4], out[:, 4:] = x.sin(), x.cos()
    return out


def copied(x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(x).sin_()


def copied_into_a_transposed(x: Tensor) -> Tensor:
    out = torch.empty(4, 3, dtype=F64)
    out.t().copy_(x)
    return out * 2


def copied_with_broadcasting(x: Tensor) -> Tensor:
    out = torch.ones(2, 3, 4, dtype=F64)
    out.copy_(x)
    out[1, :, :].copy_(x[0])
    return out


def view_of_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(12)[2:10].view(2, 4)[:, 1:3].mul_(3)
    return y.sin()


def view_made_before_the_write(x: Tensor) -> Tensor:
    y = x * 2
    view = y[1]
    y.mul_(x)
    return view + y[0]


def base_without_tangent(x: Tensor) -> Tensor:
    """The view is taken while nothing has a tangent, and written afterwards."""
    base = torch.ones(3, 4, dtype=F64)
    view = base[1:].view(-1)[1:5]
    view.mul_(x[0])
    return base + view.sum()


def base_read_through_another_view(x: Tensor) -> Tensor:
    base = torch.zeros(12, dtype=F64)
    one, other = base[:8].view(2, 4), base.view(3, 4)
    one.copy_(x[:2])
    return other * 2 + one.sum()


def a_chain_of_bases(x: Tensor) -> Tensor:
    base = torch.zeros(3, 4, dtype=F64)
    half = base[:, :2]
    column = half[:, 1]
    column.copy_(x[:, 0])
    base[:, :2].mul_(2)
    column.add_(x[:, 1])
    return torch.cat([base, half, column[:, None]], 1)


def written_by_a_constant(x: Tensor) -> Tensor:
    """What is overwritten by a constant has no tangent any more."""
    y = x * 2
    y[:, :2] = 1.0
    y[0].fill_(3.0)
    y[1, 2:].zero_()
    return y * x


def overwritten_by_a_tensor(x: Tensor) -> Tensor:
    y = x.sin()
    y.copy_(torch.ones(4, dtype=F64))
    return y + x[:1] * y


def constant_in_a_view(x: Tensor) -> Tensor:
    y = x.sin()
    y.t()[1].copy_(torch.ones(3, dtype=F64))
    return y.exp()


def chunk_then_in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    one, two = y[:, :2], y[:, 2:]
    one.add_(two, alpha=3)
    two.add_(one)
    one.mul_(x[:, 1:3])
    return y


def split_of_a_product(x: Tensor) -> Tensor:
    gate, value = (x @ torch.eye(4, dtype=F64)).split(2, 1)
    return gate.sigmoid() * value


def transposed_sum(x: Tensor) -> Tensor:
    y = x.sin()
    z = y.t()
    z += x.t()
    return y


def expanded_sum(x: Tensor) -> Tensor:
    y = torch.zeros(3, 4, dtype=F64)
    y += x[0]
    y -= x[:, :1].expand(3, 4)
    y.mul_(x[:1])
    return y


def augmented(x: Tensor) -> Tensor:
    y = x.clone()
    y += 1
    y *= x
    y -= x.sin()
    y /= x.exp()
    y **= 2
    return y


def masked(x: Tensor) -> Tensor:
    y = x * 2
    y[KEEP] = x.cos()[KEEP]
    y[..., KEEP[0]] = 0.5
    y[y > 0.4] *= 3
    return y


def filled(x: Tensor) -> Tensor:
    y = x * 2
    y.masked_fill_(KEEP, 0.0)
    y[0].masked_fill_(KEEP[0], x[1, 1])
    return y.sin()


def put_in_place(x: Tensor) -> Tensor:
    y = x * 2
    rows = torch.tensor([0, 2, 0])
    y.index_put_((rows, rows), x[:, 3], accumulate=True)
    y.index_add_(1, torch.tensor([1, 1]), x[:, :2])
    y.index_copy_(0, torch.tensor([1]), x[:1])
    return y.index_fill_(1, torch.tensor([3]), 0.5)


def scattered_in_place(x: Tensor) -> Tensor:
    where = torch.tensor([[0, 1], [2, 0], [3, 3]])
    y = torch.zeros(3, 4, dtype=F64)
    y.scatter_(1, where[:, :1], x[:, 1:2])
    y.scatter_add_(1, where, x[:, 2:].sin())
    y.t().scatter_(0, where[:, 1:].t(), 2.0)
    return y


def masked_scattered_in_place(x: Tensor) -> Tensor:
    return (x * 2).masked_scatter_(KEEP, x.sin())


def diagonal_in_place(x: Tensor) -> Tensor:
    y = x @ x.t()
    y.diagonal().add_(x[:, 0])
    y.fill_diagonal_(2.0)
    y.diagonal(1).mul_(x[0, 0])
    return y


def triangle_in_place(x: Tensor) -> Tensor:
    return (x * 2).tril_().triu_(-1) + x.sin().clamp_(-0.5, 0.5)


def shape_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.unsqueeze_(1)
    y.transpose_(0, 2)
    y.squeeze_(1)
    y.t_()
    return y.mul_(x)


def shape_in_place_keeps_views(x: Tensor) -> Tensor:
    y = x * 2
    z = y[1:]
    y.t_()
    y.mul_(x.t())
    return z.sum(0) + y.sum(1)


def out_argument(x: Tensor) -> Tensor:
    out = torch.empty(3, 4, dtype=F64)
    torch.mul(x, x.cos(), out=out)
    torch.add(out, x, out=out)
    return out.sin()


def out_argument_of_a_product(x: Tensor) -> Tensor:
    out, view = torch.empty(3, 3, dtype=F64), torch.zeros(2, 3, 4, dtype=F64)
    torch.mm(x, x.t(), out=out)
    torch.exp(x, out=view[1])
    return torch.cat([out, view.sum(0)], 1)


def out_argument_of_parts(x: Tensor) -> Tensor:
    out = torch.empty(3, 8, dtype=F64)
    torch.cat([x, x.sin()], 1, out=out)
    values, where = torch.empty(3, dtype=F64), torch.empty(3, dtype=torch.long)
    torch.max(x, 1, out=(values, where))
    return out * values[:, None]


def products_in_place(x: Tensor) -> Tensor:
    y = (x @ x.t()).addmm_(x, x.t(), beta=0.5).addcmul_(x[:, :3], x[:, 1:]).addcdiv_(x[:, :3], x[:, 1:].exp())
    return y.lerp_(y.t().clone(), 0.3).addr_(x[:, 0], x[:, 1])


def batch_products_in_place(x: Tensor) -> Tensor:
    y = torch.zeros(2, 3, 3, dtype=F64)
    y.baddbmm_(x.expand(2, 3, 4), x.t().expand(2, 4, 3), beta=0.0)
    return y.cumsum_(1).cumprod_(2)


def activations_in_place(x: Tensor) -> Tensor:
    y = F.relu(F.silu(x + 0.5, inplace=True), inplace=True)
    return F.leaky_relu_(y - 0.2, 0.1) + F.elu_(x * 2) + torch.sigmoid_(x * 2)


def relu_in_place_on_a_view(x: Tensor) -> Tensor:
    y = x * 2
    F.relu_(y[:, :2])
    torch.nn.functional.dropout(y[:, 2:], 0.0, inplace=True)
    return y


def swapped(x: Tensor) -> Tensor:
    y = x * 2
    first = y[0].clone()
    y[0] = y[1]
    y[1] = first
    return y.sin()


def shifted_in_itself(x: Tensor) -> Tensor:
    y = x * 2
    y[1:] = y[:-1].clone() * x[1:]
    return y


def written_in_a_loop(x: Tensor) -> Tensor:
    state = torch.zeros(3, dtype=F64)
    states = torch.empty(3, 4, dtype=F64)
    for i in range(4):
        state = (0.5 * state + x[:, i]).tanh()
        states[:, i] = state
    return states


def data_attribute(x: Tensor) -> Tensor:
    """``x.data`` is a constant, as ``x.detach()`` is."""
    return x * x.data + x.detach().sin()


def detached_view_is_written(x: Tensor) -> Tensor:
    """What is written through a detached view changes the value, and the tangent stays that of the rest."""
    y = x * 2
    y.detach()[:, 0] = 5.0
    return y + x


def without_gradient(x: Tensor) -> Tensor:
    """``no_grad`` keeps a tangent: it is about reverse mode."""
    with torch.no_grad():
        y = x.sin()
    return x * y


def in_place_without_gradient(x: Tensor) -> Tensor:
    y = torch.zeros(3, 4, dtype=F64)
    with torch.no_grad():
        y[1:] = x[1:].exp()
    return x * y


def clone_is_another(x: Tensor) -> Tensor:
    y = x.clone()
    z = y.clone()
    y.mul_(2)
    return y * z


def reshape_may_copy(x: Tensor) -> Tensor:
    """A reshaped transposed tensor is a copy, one of a contiguous tensor a view."""
    y = x * 2
    y.reshape(-1)[0] = 7.0
    y.t().reshape(-1)[1] = 9.0
    return y.sin()


def as_strided_is_written(x: Tensor) -> Tensor:
    y = x * 2
    y.as_strided((2, 2), (4, 1), 1).mul_(3)
    return y


def windows_are_written(x: Tensor) -> Tensor:
    y = x * 2
    y.unfold(1, 2, 2)[:, 1].copy_(x[:, :2].sin())
    return y


def real_view(x: Tensor) -> Tensor:
    c = torch.zeros(3, 2, dtype=torch.complex128)
    torch.view_as_real(c).copy_(x.view(3, 2, 2))
    return (c * c).imag


def tensors_of_a_list(x: Tensor) -> Tensor:
    ys = [x.sin(), x.cos(), x * 2]
    torch._foreach_mul_(ys, 2.0)
    ys = list(torch._foreach_add(ys, [x, x, x]))
    return sum(ys[1:], ys[0])


def set_by_ellipsis(x: Tensor) -> Tensor:
    y = torch.ones(2, 3, 4, dtype=F64)
    y[0, ...] = x
    y[..., 0] = x[:, 1]
    y[:, torch.tensor([0, 2]), 1] = x[:2, 2:]
    y[1][None, 2] = x[0].sum()
    return y.prod(0)


def set_by_a_number(x: Tensor) -> Tensor:
    y = x.sin()
    y[0, 0] = 2
    y[1] = x[0, 0]
    y[2, 1:] = x[0, 1]
    return y


def random_in_place(x: Tensor) -> Tensor:
    """Noise that overwrites has no tangent."""
    y = x * 2
    y[0].normal_()
    y[1].uniform_()
    return y * x + torch.randn_like(x) * x + torch.rand(3, 4, dtype=F64)


def swap_of_names(x: Tensor) -> Tensor:
    y, z = x.sin(), x.cos()
    y, z = z, y
    y += z
    return y / (2 + z)


def result_of_an_in_place_call_is_its_argument(x: Tensor) -> Tensor:
    y = x * 2
    z = y.add_(x)
    z.mul_(x)
    assert z is y or z.data_ptr() == y.data_ptr()
    return y + z


def many_small_tensors(x: Tensor) -> Tensor:
    """Objects that are made and dropped: an identity must not be mistaken for that of a dead tensor."""
    total = torch.zeros(4, dtype=F64)
    for i in range(60):
        total = total + torch.ones(4, dtype=F64) * (i if i % 3 else x[i % 3])
        _ = [torch.ones(4, dtype=F64) for _ in range(3)]
    return total


VIEWS: dict[str, Any] = {
    name.replace("_", " "): function
    for name, function in list(globals().items())
    if getattr(function, "__module__", None) == __name__ and callable(function)
}
# Functions with ``out=`` work without a graph alone, and not in forward mode.
OTHERS: dict[str, Any] = {
    "out argument": lambda x: (x * x.cos() + x).sin(),
    "out argument of a product": lambda x: torch.cat([x @ x.t(), x.exp()], 1),
    "out argument of parts": lambda x: torch.cat([x, x.sin()], 1) * x.max(1, keepdim=True).values,
}
for _name, _function in VIEWS.items():
    add(
        "views and in-place",
        _name,
        fragment(_function, (3, 4), equivalent=OTHERS.get(_name)),
        gradient=_name not in OTHERS,
        refusable=_name in OTHERS,
    )
