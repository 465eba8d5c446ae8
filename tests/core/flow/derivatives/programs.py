"""Random programs over the operations of torch: registers of small tensors that steps read, write and view.

A program is drawn while it runs, so that each step is one that torch accepts. ``choose`` picks one of a sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.flow.derivatives.case import F64

Choose = Callable[[Sequence[Any]], Any]
Registers = list[Tensor]
Run = Callable[[Registers], Any]
"""From the registers to new ones (a tensor or a sequence), or ``None`` where registers were written."""

LARGEST = 96
"""Numbers in a register."""
NOISE = torch.randn(4096, generator=torch.Generator().manual_seed(5), dtype=F64)


class Step(NamedTuple):
    text: str
    run: Run


class Drawing:
    """What the makers of steps need: the registers as they are, and choices of them."""

    def __init__(self, choose: Choose, registers: Registers) -> None:
        self.choose, self.registers = choose, registers

    def one_of(self, fits: Callable[[Tensor], bool] = lambda x: True) -> int | None:
        places = [i for i, x in enumerate(self.registers) if fits(x)]
        return self.choose(places) if places else None

    def dimension(self, i: int) -> int:
        return self.choose(range(self.registers[i].ndim))


def constant(*shape: int, start: int = 0) -> Tensor:
    """A constant of this shape, the same at each call."""
    count = int(torch.Size(shape).numel())
    return NOISE[start : start + count].reshape(shape).clone()


def large(x: Tensor) -> bool:
    return x.ndim >= 1 and x.numel() >= 2


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "exp": lambda x: x.tanh().exp(),
    "abs": torch.abs,
    "square": torch.square,
    "neg": torch.neg,
    "atan": torch.atan,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "softplus": F.softplus,
    "mish": F.mish,
    "elu": F.elu,
    "leaky relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "sqrt": lambda x: (x.square() + 0.1).sqrt(),
    "rsqrt": lambda x: (x.square() + 0.1).rsqrt(),
    "log": lambda x: (x.square() + 0.1).log(),
    "reciprocal": lambda x: (2 + x.cos()).reciprocal(),
    "clamp": lambda x: x.clamp(-0.7, 0.7),
    "power": lambda x: (x.square() + 0.1) ** 1.3,
    "cube": lambda x: x**3,
    "scalars": lambda x: 1 - 2 * x / 3 + 0.5,
    "rsub": lambda x: torch.rsub(x, 2.0),
    "floor": lambda x: x.floor() * x,
    "clone": torch.clone,
    "contiguous": torch.Tensor.contiguous,
    "detach": torch.detach,
    "data": lambda x: x.data,
    "no grad": torch.no_grad()(lambda x: x.sin() * 2),
    "complex": lambda x: (x.to(torch.complex128) * (1 + 1j)).imag,
    "float32": lambda x: x.float().double(),
    "integer": lambda x: x * x.long(),
    "boolean": lambda x: x * (x > 0.1),
    "where": lambda x: torch.where(x > 0, x * 2, 0.5),
    "masked fill": lambda x: x.masked_fill(x > 0.5, 0.3),
    "ones like": lambda x: torch.ones_like(x) + x,
    "empty like": lambda x: torch.empty_like(x).copy_(x),
    "new zeros": lambda x: x.new_zeros(x.shape) + 2 * x,
    "nan to num": torch.nan_to_num,
    "in a buffer": lambda x: torch.zeros(2, *x.shape, dtype=F64).index_copy(0, torch.tensor([1]), x[None])[1],
    "dropout of evaluation": lambda x: F.dropout(x, 0.5, False),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: x / (2 + y.cos()),
    "add scaled": lambda x, y: torch.add(x, y, alpha=-0.5),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda x, y: torch.where(x > y, x, 2 * y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp by tensor": lambda x, y: torch.lerp(x, y, y.sigmoid()),
    "hypot": lambda x, y: torch.hypot(x, y + 2.5),
    "addcmul": lambda x, y: torch.addcmul(x, y, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, 2 + y.cos()),
    "atan2": lambda x, y: torch.atan2(x, y.square() + 0.5),
    "logaddexp": torch.logaddexp,
    "clamp": lambda x, y: x.clamp(max=y),
    "polynomial": lambda x, y: x * y + y * y - x,
}
REDUCTIONS: dict[str, Callable[[Tensor, int, bool], Any]] = {
    "sum": lambda x, d, k: x.sum(d, keepdim=k),
    "mean": lambda x, d, k: x.mean(d, keepdim=k),
    "amax": lambda x, d, k: x.amax(d, keepdim=k),
    "max": lambda x, d, k: x.max(d, keepdim=k).values,
    "logsumexp": lambda x, d, k: x.logsumexp(d, keepdim=k),
    "prod": lambda x, d, k: x.tanh().prod(d, keepdim=k),
    "norm": lambda x, d, k: torch.linalg.vector_norm(x.square() + 0.1, dim=d, keepdim=k),
    "var": lambda x, d, k: x.var(d, keepdim=k, correction=0),
    "std": lambda x, d, k: (x + constant(*x.shape)).std(d, correction=0, keepdim=k),
    "softmax": lambda x, d, k: x.softmax(d),
    "log softmax": lambda x, d, k: x.log_softmax(d),
    "cumsum": lambda x, d, k: x.cumsum(d),
    "cumprod": lambda x, d, k: x.tanh().cumprod(d),
    "sort": lambda x, d, k: x.sort(d).values,
    "topk": lambda x, d, k: x.topk(1, d).values,
    "all of it": lambda x, d, k: x.mean(),
    "argmax": lambda x, d, k: x.take_along_dim(x.argmax(d, keepdim=True), d),
    "aminmax": lambda x, d, k: tuple(x.aminmax(dim=d, keepdim=k)),
    "flip": lambda x, d, k: x.flip(d),
    "roll": lambda x, d, k: x.roll(1, d),
    "diff": lambda x, d, k: x.diff(dim=d),
    "index select": lambda x, d, k: x.index_select(d, torch.tensor([0, x.shape[d] - 1, 0])),
    "gather": lambda x, d, k: x.gather(d, torch.zeros_like(x, dtype=torch.long)),
    "repeat interleave": lambda x, d, k: x.repeat_interleave(2, d),
    "normalise": lambda x, d, k: F.normalize(x + 0.3, dim=d, eps=0.1),
    "pad": lambda x, d, k: F.pad(x, (1, 1)),
    "layer norm": lambda x, d, k: F.layer_norm(x, x.shape[-1:], eps=0.1),
    "layer norm with weight": lambda x, d, k: F.layer_norm(
        x, x.shape[-1:], constant(x.shape[-1]), constant(x.shape[-1], start=9), 0.1
    ),
    "rms norm": lambda x, d, k: F.rms_norm(x, x.shape[-1:], eps=0.1),
    "linear": lambda x, d, k: F.linear(x, constant(3, x.shape[-1]), constant(3)),
    "gram": lambda x, d, k: torch.einsum("...i,...j->...ij", x, x.tanh()).sum(-1),
    "glu": lambda x, d, k: F.glu(torch.cat([x, x], -1)),
    "rfft": lambda x, d, k: torch.view_as_real(torch.fft.rfft(x)).flatten(-2),
    "complex": lambda x, d, k: torch.fft.ifft(torch.fft.fft(x, dim=d).mul(1j), dim=d).imag,
    "scatter add": lambda x, d, k: x.scatter_add(d, torch.zeros_like(x, dtype=torch.long), x.sin()),
    "index add": lambda x, d, k: torch.zeros_like(x).index_add(d, torch.zeros(x.shape[d], dtype=torch.long), x),
    "split": lambda x, d, k: x.tensor_split(2, d)[0].sin(),
    "unbind": lambda x, d, k: torch.stack(list(x.unbind(d))[::-1]),
    "boolean index": lambda x, d, k: x[torch.arange(x.shape[0]) != 0],
    "list index": lambda x, d, k: x[[0, -1, 0]],
}
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "conv": lambda x: F.conv1d(x, constant(2, x.shape[1], 2), constant(2), padding=1),
    "conv strided": lambda x: F.conv1d(x, constant(2, x.shape[1], 1), stride=2),
    "transposed conv": lambda x: F.conv_transpose1d(x, constant(x.shape[1], 2, 2), stride=2),
    "conv of its own": lambda x: F.conv1d(x, x[:1, :, :1].tanh().expand(2, x.shape[1], 1)),
    "group norm": lambda x: F.group_norm(x.contiguous(), 1, eps=0.1),
    "batch norm": lambda x: F.batch_norm(x, None, None, constant(x.shape[1]), training=True, eps=0.1),
    "instance norm": lambda x: F.instance_norm(torch.cat([x, -x.sin()], 2), eps=0.1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x.cos(), is_causal=True, scale=0.7),
    "attention of one": lambda x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1].sin()),
    "average pooling": lambda x: F.avg_pool1d(x, 2, padding=1),
    "max pooling": lambda x: F.max_pool1d(x, 1, 1),
    "adaptive pooling": lambda x: F.adaptive_avg_pool1d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "linear": lambda x: F.interpolate(x, size=3, mode="linear"),
    "batch product": lambda x: x @ x.mT,
    "baddbmm": lambda x: torch.baddbmm(constant(x.shape[0], x.shape[1], x.shape[1]), x, x.mT, beta=0.5),
}


def elementwise(d: Drawing) -> Step | None:
    i, name = d.one_of(), d.choose(list(ELEMENTWISE))
    return None if i is None else Step(f"{name}(r{i})", lambda r, f=ELEMENTWISE[name]: f(r[i]))


def broadcasts(x: Tensor, y: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(x.shape, y.shape).numel() <= LARGEST
    except RuntimeError:
        return False


def binary(d: Drawing) -> Step | None:
    i = d.one_of()
    j = d.one_of(lambda y: broadcasts(d.registers[i], y))
    name = d.choose(list(BINARY))
    return Step(f"{name}(r{i}, r{j})", lambda r, f=BINARY[name]: f(r[i], r[j]))


def with_a_constant(d: Drawing) -> Step:
    i, name, first = d.one_of(), d.choose(list(BINARY)), d.choose([True, False])
    c, f = constant(*d.registers[i].shape[-1:], start=50), BINARY[name]
    return Step(f"{name}(r{i}, constant{', swapped' * first})", lambda r: f(c, r[i]) if first else f(r[i], c))


def along(d: Drawing) -> Step | None:
    i = d.one_of(large)
    if i is None:
        return None
    axis, keep, name = d.dimension(i), d.choose([True, False]), d.choose(list(REDUCTIONS))
    return Step(f"{name}(r{i}, {axis}, {keep})", lambda r, f=REDUCTIONS[name]: f(r[i], axis, keep))


def image(d: Drawing) -> Step | None:
    i = d.one_of(lambda x: x.ndim == 3 and min(x.shape) > 0)
    name = d.choose(list(IMAGES))
    return None if i is None else Step(f"{name}(r{i})", lambda r, f=IMAGES[name]: f(r[i]))


def product(d: Drawing) -> Step | None:
    i = d.one_of(lambda x: x.ndim >= 1)
    if i is None:
        return None
    j = d.one_of(lambda y: y.ndim >= 1 and y.shape[-1] == d.registers[i].shape[-1])
    form = d.choose(["matmul", "einsum", "linear", "mm in pieces"])

    def run(r: Registers) -> Tensor:
        x, y = r[i], r[j]
        if form == "einsum" and x.shape == y.shape:
            return torch.einsum("...a,...b->...ab", x, y)
        if form == "linear":
            return F.linear(x, y.reshape(-1, x.shape[-1]), None)
        if form == "mm in pieces" and x.ndim == 2 and y.ndim == 2:
            return torch.addmm(x[:, :1], x, y.t(), beta=0.5, alpha=2)
        return x @ (y.transpose(-1, -2) if y.ndim > 1 else y)

    return Step(f"{form}(r{i}, r{j})", run)


def together(d: Drawing) -> Step | None:
    i = d.one_of(lambda x: x.ndim >= 1)
    if i is None:
        return None
    j = d.one_of(lambda y: y.shape == d.registers[i].shape)
    axis = d.dimension(i)
    form = d.choose([torch.cat, torch.stack])
    middle = d.choose([None, constant(*d.registers[i].shape)])
    parts = lambda r: [x for x in (r[i], middle, r[j]) if x is not None]  # noqa: E731
    return Step(f"{form.__name__}(r{i}, r{j}, {axis}, {middle is not None})", lambda r: form(parts(r), axis))


def view(d: Drawing) -> Step | None:
    i = d.one_of(lambda x: x.ndim >= 1)
    if i is None:
        return None
    x, a = d.registers[i], d.dimension(i)
    b, n = d.dimension(i), x.shape[a]
    start = d.choose(range(max(n, 1)))
    forms: dict[str, Callable[[Tensor], Any]] = {
        "transpose": lambda x: x.transpose(a, b),
        "flatten": torch.flatten,
        "unsqueeze": lambda x: x.unsqueeze(a),
        "squeeze": torch.squeeze,
        "slice": lambda x: x.narrow(a, start, n - start),
        "select": lambda x: x.select(a, start),
        "every other": lambda x: x[::2],
        "expand": lambda x: x[None].expand(2, *x.shape),
        "chunk": lambda x: x.chunk(2, a),
        "reverse": lambda x: x.permute(*range(x.ndim - 1, -1, -1)),
        "view": lambda x: x.view(-1),
        "itself": lambda x: x,
        "reshape": lambda x: x.reshape(-1, x.shape[a]),
        "unfold": lambda x: x.unfold(a, 1, 1),
        "ellipsis": lambda x: x[..., -1:],
        "diagonal": torch.diagonal,
        "split": lambda x: x.split([start, n - start], a)[1],
        "view as": lambda x: x.view_as(x),
        "unflatten": lambda x: x.unflatten(a, (1, n)),
        "alias": lambda x: x[:],
        "real": lambda x: x.real,
        "unbind": lambda x: x.unbind(a)[0],
    }
    name = d.choose(list(forms))
    return Step(f"{name}(r{i}, {a}, {b}, {start})", lambda r, f=forms[name]: f(r[i]))


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda x, y: x.add_(y),
    "add scaled": lambda x, y: x.add_(y, alpha=0.5),
    "sub": lambda x, y: x.sub_(y),
    "mul": lambda x, y: x.mul_(y.tanh()),
    "copy": lambda x, y: x.copy_(y),
    "div": lambda x, y: x.div_(2 + y.cos()),
    "addcmul": lambda x, y: x.addcmul_(y, y, value=0.3),
    "lerp": lambda x, y: x.lerp_(y.expand(x.shape), 0.3),
    "slice": lambda x, y: x[...].__setitem__(slice(0, 1), y.expand(x.shape)[0:1]),
    "set all": lambda x, y: x.__setitem__(Ellipsis, y),
    "set where": lambda x, y: x.__setitem__(x > 0.2, y.reshape(-1)[0]),
    "masked fill": lambda x, y: x.masked_fill_(x > 0.1, y.reshape(-1)[0]),
    "fill": lambda x, y: x.fill_(y.reshape(-1)[0]),
    "number": lambda x, y: x.fill_(0.3),
    "zero": lambda x, y: x.zero_(),
    "relu": lambda x, y: x.relu_(),
    "tanh": lambda x, y: x.tanh_(),
    "sin": lambda x, y: x.sin_(),
    "neg": lambda x, y: x.neg_(),
    "clamp": lambda x, y: x.clamp_(-0.5, 0.6),
    "silu": lambda x, y: F.silu(x, inplace=True),
    "rows": lambda x, y: x[-1:].mul_(0.5),
    "number set": lambda x, y: x.__setitem__(0, 0.7),
    "transposed": lambda x, y: x.mT.mul_(0.7).add_(0.1),
    "square": lambda x, y: x.square_(),
    "index": lambda x, y: x.__setitem__([0], y.expand(x.shape)[:1] * 2),
    "detached": lambda x, y: x.detach().mul_(0.5),
    "no grad": torch.no_grad()(lambda x, y: x.add_(y)),
    "augmented": lambda x, y: x.__iadd__(y).__imul__(0.5),
    "index add": lambda x, y: x.index_add_(0, torch.tensor([0]), y.expand(x.shape)[:1]),
    "index fill": lambda x, y: x.index_fill_(0, torch.tensor([0]), 0.2),
    "cumsum": lambda x, y: x.cumsum_(0),
    "softmax back": lambda x, y: x.copy_(x.softmax(-1)),
    "masked scatter": lambda x, y: x.masked_scatter_(x > 0.3, y.expand(x.shape).contiguous()),
}


def fits_into(x: Tensor, y: Tensor) -> bool:
    return broadcasts(x, y) and torch.broadcast_shapes(x.shape, y.shape) == x.shape


def write(d: Drawing) -> Step | None:
    i = d.one_of(lambda x: large(x) and not torch._debug_has_internal_overlap(x) and 0 not in x.shape)
    if i is None:
        return None
    x, name = d.registers[i], d.choose(list(WRITES))
    j = d.one_of(lambda y: fits_into(x, y) and y.numel() > 0)
    shared = d.registers[j].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()

    def run(r: Registers) -> None:
        WRITES[name](r[i], r[j].clone() if shared else r[j])

    return Step(f"{name}_(r{i}, r{j}{'.clone()' * shared})", run)


def buffer(d: Drawing) -> Step | None:
    """A new tensor of constants, which later steps may write into and look at through views."""
    i, fill = d.one_of(large), d.choose([torch.zeros, torch.ones])
    if i is None:
        return None
    shape, base = d.registers[i].shape, d.choose([True, False])

    def run(r: Registers) -> Any:
        whole = fill(2, *shape, dtype=F64)
        return (whole, whole[1]) if base else whole[1]

    return Step(f"{fill.__name__}(2, *r{i}.shape){', base' * base}", run)


def forget(d: Drawing) -> Step | None:
    """A register is overwritten by another, so that its tensor may be freed."""
    i, j = d.one_of(), d.one_of()

    def run(r: Registers) -> None:
        r[i] = r[j]

    return Step(f"r{i} = r{j}", run)


KINDS: list[Callable[[Drawing], Step | None]] = [
    elementwise,
    elementwise,
    binary,
    binary,
    with_a_constant,
    along,
    along,
    along,
    image,
    product,
    together,
    view,
    view,
    view,
    write,
    write,
    write,
    buffer,
    forget,
]


class Program:
    """Steps on inputs; ``program(*inputs)`` returns some of the registers."""

    def __init__(self, choose: Choose, inputs: Sequence[Tensor], length: int) -> None:
        self.steps: list[Step] = []
        registers = [x.clone() for x in inputs]
        while len(self.steps) < length:
            step = choose(KINDS)(Drawing(choose, registers))
            if step is None or not self._accepted(step, registers):
                step = Step("sin(r0)", lambda r: r[0].sin())
            self._do(step, registers)
            self.steps.append(step)
        last = len(registers) - 1
        self.outputs = sorted({last, *(choose(range(last + 1)) for _ in range(3))})
        self.approximate = any("float32" in step.text for step in self.steps)

    @staticmethod
    def _accepted(step: Step, registers: Registers) -> bool:
        """Whether torch runs it on copies, and its results are small and finite."""
        bases = {x.untyped_storage().data_ptr(): x for x in registers}
        saved = {pointer: x.untyped_storage().clone() for pointer, x in bases.items()}
        trial = list(registers)
        try:
            Program._do(step, trial)
            return all(x.numel() <= LARGEST and bool((x.abs() < 50).all()) for x in trial)
        except (RuntimeError, IndexError, ValueError):
            return False
        finally:
            for pointer, x in bases.items():
                x.untyped_storage().copy_(saved[pointer])

    @staticmethod
    def _do(step: Step, registers: Registers) -> None:
        made = step.run(registers)
        if made is not None:
            registers += [made] if isinstance(made, Tensor) else list(made)[:2]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        registers = [x.clone() for x in inputs]
        for step in self.steps:
            self._do(step, registers)
        return tuple(registers[i] for i in self.outputs)

    def __str__(self) -> str:
        return "; ".join(step.text for step in self.steps) + f"; return {self.outputs}"
