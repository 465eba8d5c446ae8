"""What Python code around the operations does: hooks, state, structure, control flow, dtypes, checkpoints."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.core.flow.derivatives.case import F64, Case, add, drawn, fragment, jump, listed, normal, two_backwards


def body(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 6), nn.SiLU(), nn.LayerNorm(6), nn.Linear(6, width))


@listed("structure")
def list_of_modules(generator: torch.Generator) -> Case:
    module = drawn(nn.ModuleList([body() for _ in range(3)]), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        for block in module:
            z = z + block(z) * t[:, None]
        return z

    return jump(function, generator, 3, 4, module=module, times=1)


@listed("structure")
def hooks(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)
    module[0].register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    module[1].register_forward_hook(lambda module, arguments, out: out + arguments[0])
    module[3].register_forward_pre_hook(
        lambda module, arguments, keywords: ((keywords["input"].sin(),), {}), with_kwargs=True
    )
    return jump(lambda z, t: module[3](input=module[:3](z * t[:, None])), generator, 3, 4, module=module, times=1)


class Remembers(nn.Module):
    """Keeps what it computed and reads it later in the same call, as a cache of keys or of skips does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.kept: list[Tensor] = []
        self.by_name: dict[str, Any] = {}

    def forward(self, z: Tensor) -> Tensor:
        self.kept = [self.first(z)]
        self.by_name["skip"] = (z, self.kept[0].sin())
        hidden = self.second(self.kept[0])
        before, skip = self.by_name["skip"]
        return hidden * skip + before + self.kept.pop()


@listed("structure")
def cache_within_a_call(generator: torch.Generator) -> Case:
    module = drawn(Remembers(), generator)
    return jump(module, generator, 3, 4, module=module, times=0)


class Skips(nn.Module):
    """A U of skips on a stack, with tensors in a dataclass on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.up = nn.ModuleList([nn.Linear(8, 4) for _ in range(3)])

    def forward(self, z: Tensor) -> Tensor:
        state = State(z, [])
        for block in self.down:
            state.skips.append(state.hidden)
            state.hidden = F.silu(block(state.hidden))
        for block in self.up:
            state.hidden = block(torch.cat([state.hidden, state.skips.pop()], -1))
        return state.hidden


@dataclass
class State:
    hidden: Tensor
    skips: list[Tensor]


@listed("structure")
def skips_in_a_dataclass(generator: torch.Generator) -> Case:
    module = drawn(Skips(), generator)
    return jump(module, generator, 3, 4, module=module, times=0)


class Pair(NamedTuple):
    mean: Tensor
    spread: Tensor


@listed("structure")
def trees_in_and_out(generator: torch.Generator) -> Case:
    """Lists, dicts and named tuples of tensors as arguments and as results."""
    module = drawn(body(), generator)

    def function(state: dict[str, Any], times: list[Tensor]) -> dict[str, Any]:
        hidden = module(state["z"] * times[0][:, None]) + state["pair"].mean
        return {"out": [hidden, {"deep": state["pair"].spread * times[1][:, None]}], "pair": Pair(hidden.sin(), hidden)}

    def tree() -> tuple[Any, ...]:
        z, mean, spread = (normal(generator, 3, 4) for _ in range(3))
        return {"z": z, "pair": Pair(mean, spread)}, [normal(generator, 3), normal(generator, 3)]

    return Case(function, tree(), tree(), module)


@listed("structure")
def some_arguments_have_no_tangent(generator: torch.Generator) -> Case:
    """``None`` for a whole argument, for a tree, and zeros; labels, which are integers, are arguments too."""
    module = drawn(body(), generator)

    def function(z: Tensor, t: Tensor, condition: dict[str, Tensor], s: Tensor, label: Tensor) -> Tensor:
        return module(z * condition["scale"] + t[:, None]) * s[:, None] + F.one_hot(label, 4)

    z, v, scale = (normal(generator, 3, 4) for _ in range(3))
    t, s = normal(generator, 3), normal(generator, 3)
    label = torch.tensor([0, 3, 1])
    return Case(function, (z, t, {"scale": scale}, s, label), (v, None, None, torch.zeros(3, dtype=F64), None), module)


@listed("structure", still=True)
def no_argument_has_a_tangent(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)
    return Case(
        lambda z, t: module(z) * t[:, None], (normal(generator, 3, 4), normal(generator, 3)), (None, None), module
    )


@listed("structure")
def a_primal_returned_unchanged(generator: torch.Generator) -> Case:
    return jump(lambda z, t, s: (z, t, z + s[:, None]), generator, 3, 4)


@listed("structure", still=True)
def an_output_that_does_not_depend(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)
    constant = normal(generator, 3, 4)
    return jump(
        lambda z, t: module(constant) + torch.ones_like(z) + z.shape[0], generator, 3, 4, module=module, times=1
    )


@listed("structure")
def one_output_of_two_depends(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)
    constant = normal(generator, 3, 4)
    return jump(lambda z: (module(constant), module(z), constant), generator, 3, 4, module=module, times=0)


@listed("structure")
def integers_and_booleans_beside(generator: torch.Generator) -> Case:
    return jump(lambda z: (z.sin(), z.argmax(1), z > 0, torch.tensor(3)), generator, 3, 4, times=0)


@listed("structure")
def closure_over_the_primal(generator: torch.Generator) -> Case:
    """The same object is an argument, which moves, and a condition, which does not."""
    z, v = normal(generator, 3, 4), normal(generator, 3, 4)
    return Case(lambda x: x.sin() * z + z.cos(), (z,), (v,))


@listed("structure")
def closure_over_the_tangent(generator: torch.Generator) -> Case:
    z, v = normal(generator, 3, 4), normal(generator, 3, 4)
    return Case(lambda x: x.sin() * v + v.mul(2), (z,), (v,))


@listed("structure")
def one_tensor_twice(generator: torch.Generator) -> Case:
    """The same object as two arguments, with two tangents."""
    z, v, w = (normal(generator, 3, 4) for _ in range(3))
    return Case(lambda x, y: x.sin() * y, (z, z), (v, w))


@listed("structure")
def one_tensor_twice_with_one_tangent(generator: torch.Generator) -> Case:
    z, v = normal(generator, 3, 4), normal(generator, 3, 4)
    return Case(lambda x, y: x.sin() * y, (z, z), (None, v))


@listed("structure")
def primals_that_are_views(generator: torch.Generator) -> Case:
    """Expanded times, a transposed state, two views of one tensor."""
    base, v = normal(generator, 8, 3), normal(generator, 4, 3)
    t = torch.rand(1, generator=generator, dtype=F64).expand(3)
    primals = (base[:4].t(), base[2:6].t(), t)
    return Case(
        lambda z, y, t: z.sin() * y * t[:, None], primals, (v.t(), v.flip(0).t(), torch.ones(1, dtype=F64).expand(3))
    )


@listed("structure")
def control_flow(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        steps = 0
        while z.norm() > 0.8 and steps < 4:
            z = 0.5 * module(z) if (z.sum() > 0).item() else 0.5 * module(-z) * t[:, None]
            steps += 1
        for i, row in enumerate(z):
            if row[0] > 0:
                z = z + i * row
        return z if bool(t.mean() > 0.5) else z * 2

    return jump(function, generator, 3, 4, module=module, times=1)


@listed("structure")
def numbers_read_from_tensors(generator: torch.Generator) -> Case:
    """As ``torch.func.jvp`` has it, a number that left torch is a constant."""
    return jump(lambda z: z * z[0, 0].item() + z.sum() * len(z.tolist()), generator, 3, 4, times=0)


@listed("structure")
def another_network_called_functionally(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)
    names = [name for name, _ in module.named_parameters()]

    def function(z: Tensor, t: Tensor) -> Tensor:
        parameters = dict(module.named_parameters())
        return functional_call(module, {name: parameters[name] * 2 for name in names}, (z * t[:, None],))

    return jump(function, generator, 3, 4, module=module, times=1)


@listed("structure")
def weights_with_a_tangent_called_functionally(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        parameters = {name: p * (1 + t[0]) for name, p in module.named_parameters()}
        return functional_call(module, parameters, (z,))

    return jump(function, generator, 3, 4, module=module, times=1)


@listed("structure")
def frozen_network(generator: torch.Generator) -> Case:
    module = drawn(body(), generator).requires_grad_(False)
    return jump(module, generator, 3, 4, module=module, times=0)


@listed("structure")
def network_of_no_gradient(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)

    def function(z: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = module(z)
        with torch.enable_grad():
            return module(hidden)

    return jump(function, generator, 3, 4, module=module, times=0)


@listed("structure", oracle=two_backwards)
def checkpointed(generator: torch.Generator) -> Case:
    module = drawn(nn.ModuleList([body(), body()]), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        for block in module:
            z = z + checkpoint(block, z * t[:, None], use_reentrant=False)
        return z

    return jump(function, generator, 3, 4, module=module, times=1)


@listed("structure", oracle=two_backwards)
def checkpointed_with_dropout(generator: torch.Generator) -> Case:
    module = drawn(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 4)), generator)
    return jump(
        lambda z: checkpoint_sequential(module, 2, z, use_reentrant=False), generator, 3, 4, module=module, times=0
    )


@listed("structure")
def dropout(generator: torch.Generator) -> Case:
    module = drawn(
        nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 4)), generator
    )
    return jump(module, generator, 3, 4, module=module, times=0)


@listed("structure")
def drawn_inside(generator: torch.Generator) -> Case:
    """Noise of the network's own: one draw for value and tangent."""
    module = drawn(body(), generator)
    return jump(
        lambda z: module(z * torch.randn_like(z) + torch.rand(3, 1, dtype=F64)), generator, 3, 4, module=module, times=0
    )


@listed("structure")
def a_hook_on_a_tensor(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)

    def function(z: Tensor) -> Tensor:
        hidden = module(z)
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient * 2)
        return hidden.sin()

    return jump(function, generator, 3, 4, module=module, times=0)


@listed("structure")
def backward_hooks(generator: torch.Generator) -> Case:
    """Hooks of modules on gradients pass inputs and outputs through a custom Function of torch, an identity."""
    module = drawn(body(), generator)
    without = copy.deepcopy(module)
    module[0].register_full_backward_hook(
        lambda module, inward, outward: tuple(g if g is None else 2 * g for g in inward)
    )
    module[3].register_full_backward_pre_hook(lambda module, outward: (outward[0] * 3,))
    case = jump(lambda z, t: module(z * t[:, None]), generator, 3, 4, module=module, times=1)
    return case._replace(equivalent=lambda z, t: without(z * t[:, None]))


@listed("structure")
def gradients_retained(generator: torch.Generator) -> Case:
    module = drawn(body(), generator)

    def function(z: Tensor) -> Tensor:
        hidden = module[0](z)
        if hidden.requires_grad:
            hidden.retain_grad()
        return module[1:](hidden)

    return jump(function, generator, 3, 4, module=module, times=0)


@listed("structure")
def distributions(generator: torch.Generator) -> Case:
    """A sample of a normal distribution with moments of the network, and densities; arguments are validated."""
    module = drawn(body(), generator)

    def function(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        normal_ = torch.distributions.Normal(module(z), (1 + t[:, None]).expand(3, 4).exp())
        other = torch.distributions.Categorical(logits=module(z.sin()))
        sample = normal_.rsample()
        return sample + other.entropy()[:, None], normal_.log_prob(z).sum() + F.gumbel_softmax(z).sum()

    return jump(function, generator, 3, 4, module=module, times=1)


@listed("structure")
def deep(generator: torch.Generator) -> Case:
    """Hundreds of operations, one after the other."""

    def function(z: Tensor) -> Tensor:
        for _ in range(200):
            z = z + 0.02 * z.sin()
        return z

    return jump(function, generator, 3, 4, times=0)


DTYPES: dict[str, Any] = {
    "float32 inside": (lambda x: (x.float().sin() * 2).double() * x, 1e-6),
    "float32 inside by type": (lambda x: x.type(torch.float32).exp().to(x) + x.to(dtype=torch.float32).square(), 1e-6),
    "bfloat16 inside": (lambda x: x.bfloat16().mul(2).double() * x, 2e-2),
    "half inside": (lambda x: x.half().sin().double() * x, 5e-3),
    "complex inside": (lambda x: (x.to(torch.complex128) * 1j).exp().imag * x, 1e-12),
    "promoted": (
        lambda x: x.float() * torch.ones(3, 4, dtype=F64) + x * torch.arange(4) + x * torch.tensor(True),
        1e-6,
    ),
    "integers inside": (lambda x: x * x.long() + x * x.int().double(), 1e-12),
    "the norm in float32": (lambda x: F.layer_norm(x.float(), (4,)).type_as(x) * x, 1e-6),
}
for _name, (_function, _tolerance) in DTYPES.items():
    add("dtypes", _name, fragment(_function, (3, 4)), tolerance=_tolerance)


@listed("dtypes", tolerance=1e-6)
def float32_network_of_float32(generator: torch.Generator) -> Case:
    module = drawn(body(), generator, dtype=torch.float32)
    primals = (normal(generator, 3, 4).float(), normal(generator, 3).float())
    tangents = (normal(generator, 3, 4).float(), torch.ones(3))
    return Case(lambda z, t: module(z * t[:, None]), primals, tangents, module)


@listed("dtypes", tolerance=1e-6)
def tangent_of_another_dtype_inside(generator: torch.Generator) -> Case:
    """The time embedding is computed in float32, the rest in float64, as diffusers does."""
    module = drawn(nn.Linear(4, 4, dtype=torch.float32), generator, dtype=torch.float32)
    return jump(
        lambda z, t: z * module(t.float()[:, None] * torch.arange(4.0)).double(),
        generator,
        3,
        4,
        module=module,
        times=1,
    )


@listed("dtypes")
def complex_network(generator: torch.Generator) -> Case:
    module = drawn(nn.Linear(4, 4, dtype=torch.complex128), generator, dtype=torch.complex128)
    return jump(lambda z: module(torch.complex(z, z.sin())).abs(), generator, 3, 4, module=module, times=0)


partial_of_a_method = partial(torch.Tensor.sin)
add(
    "structure",
    "partial of a method of tensors",
    fragment(lambda x: partial_of_a_method(x) * torch.Tensor.mul(x, x), (3,)),
)
