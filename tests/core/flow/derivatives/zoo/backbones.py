"""This library's backbones with two times, a plain U-Net, transformers and mixers written out."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep_adapters.backbones import MLP, ConvNet, DiT, plain_attention
from onestep_core import flow
from tests.core.flow.derivatives.case import Case, add, drawn, jump, listed, normal


def backbone(make: Any, *shape: int, label: bool = False) -> Any:
    def factory(generator: torch.Generator) -> Case:
        module = drawn(make(), generator)
        condition = {"label": torch.arange(shape[0]) % 3} if label else {}
        return jump(lambda z, t, s: module(z, t, s, **condition), generator, *shape, module=module)

    return factory


add("backbones", "MLP", backbone(lambda: MLP((3,), width=16, depth=2, times=2), 4, 3))
add(
    "backbones",
    "MLP with classes",
    backbone(lambda: MLP((3,), width=16, depth=2, times=2, classes=3), 4, 3, label=True),
)
add(
    "backbones",
    "ConvNet",
    backbone(lambda: ConvNet((1, 6, 6), width=8, depth=2, times=2, classes=3, frequencies=4), 3, 1, 6, 6, label=True),
)
_DIT: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "times": 2, "frequencies": 4}
add("backbones", "DiT", backbone(lambda: DiT((1, 4, 4), **_DIT), 3, 1, 4, 4))
add("backbones", "DiT with classes", backbone(lambda: DiT((2, 4, 6), classes=3, **_DIT), 3, 2, 4, 6, label=True))
add(
    "backbones",
    "DiT with plain attention",
    backbone(lambda: DiT((1, 4, 4), attention=plain_attention, **_DIT), 3, 1, 4, 4),
)
add(
    "backbones",
    "DiT with the fused function",
    backbone(lambda: DiT((1, 4, 4), attention=F.scaled_dot_product_attention, **_DIT), 3, 1, 4, 4),
)


@listed("backbones")
def guided_DiT(generator: torch.Generator) -> Case:
    """Two evaluations in one batch, as guidance makes them, and their combination."""
    module = drawn(DiT((1, 4, 4), classes=3, **_DIT), generator)
    label = torch.tensor([0, 1, 2, 3, 3, 3])

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        z, t, s = (torch.cat([x, x]) for x in (z, t, s))
        conditional, free = module(z, t, s, label=label).chunk(2)
        return free + 2.5 * (conditional - free)

    return jump(function, generator, 3, 1, 4, 4, module=module)


@listed("backbones")
def flow_map_of_a_network(generator: torch.Generator) -> Case:
    """A network in the form of a consistency trajectory model."""
    module = drawn(MLP((3,), width=16, depth=2, times=2), generator)
    flow_map = flow.flow_map_from_network(module, form=flow.EulerVarianceForm(0.7, 0.01))
    return jump(lambda z, t, s: flow_map(z, t + 0.5, s), generator, 4, 3, module=module)


class Attention(nn.Module):
    """Attention over pixels as in the networks of DDPM: a norm of groups, 1 x 1 convolutions, a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.projections = nn.Conv1d(channels, 3 * channels, 1)
        self.merge = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = (p.unflatten(1, (2, -1)).transpose(2, 3) for p in self.projections(self.norm(flat)).chunk(3, 1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.merge(mixed.transpose(2, 3).flatten(1, 2)).view_as(x)


class Block(nn.Module):
    """A residual block with the times added in the middle."""

    def __init__(self, channels: int, out: int, times: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(2, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.times = nn.Sequential(nn.SiLU(), nn.Linear(times, out))
        self.second = nn.Sequential(
            nn.GroupNorm(2, out), nn.SiLU(inplace=True), nn.Dropout(0.1), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.first(x) + self.times(times)[:, :, None, None])


class UNet(nn.Module):
    """A small U-Net with attention at the bottom, ``(z, t, s) -> z``."""

    def __init__(self, channels: int = 1, width: int = 4) -> None:
        super().__init__()
        self.times = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 8))
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, 8), Block(width, 2 * width, 8)])
        self.smaller = nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1), nn.AvgPool2d(2)])
        self.middle = nn.ModuleList([Block(2 * width, 2 * width, 8), Block(2 * width, 2 * width, 8)])
        self.attention = Attention(2 * width)
        self.up = nn.ModuleList([Block(4 * width, width, 8), Block(2 * width, width, 8)])
        self.output = nn.Sequential(nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = self.times(torch.stack([t, t - s], 1))
        hidden, skips = self.input(z), []
        for block, smaller in zip(self.down, self.smaller, strict=True):
            hidden = block(hidden, times)
            skips.append(hidden)
            hidden = smaller(hidden)
        hidden = self.middle[1](self.attention(self.middle[0](hidden, times)), times)
        for block in self.up:
            hidden = F.interpolate(hidden, scale_factor=2, mode="nearest")
            hidden = block(torch.cat([hidden, skips.pop()], 1), times)
        return self.output(hidden)


@listed("backbones")
def UNet_with_attention(generator: torch.Generator) -> Case:
    module = drawn(UNet(), generator)
    return jump(module, generator, 2, 1, 8, 8, module=module)


@listed("backbones")
def UNet_with_attention_in_evaluation(generator: torch.Generator) -> Case:
    module = drawn(UNet(), generator).eval()
    return jump(module, generator, 2, 1, 8, 8, module=module)


@listed("backbones")
def MLP_mixer(generator: torch.Generator) -> Case:
    module = drawn(
        nn.ModuleDict(
            {
                "patch": nn.Conv2d(1, 6, 2, 2),
                "tokens": nn.Linear(4, 4),
                "channels": nn.Linear(6, 6),
                "norm": nn.LayerNorm(6),
                "out": nn.ConvTranspose2d(6, 1, 2, 2),
            }
        ),
        generator,
    )

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x = module["patch"](z).flatten(2).transpose(1, 2)
        x = x + module["tokens"](module["norm"](x).transpose(1, 2)).transpose(1, 2) * t[:, None, None]
        x = x + F.gelu(module["channels"](module["norm"](x))) * s[:, None, None]
        return module["out"](x.transpose(1, 2).unflatten(2, (2, 2)))

    return jump(function, generator, 3, 1, 4, 4, module=module)


@listed("backbones")
def transformer_with_rotary_grouped_attention(generator: torch.Generator) -> Case:
    """RMS norms, rotary embedding, grouped heads, SwiGLU, a causal mask."""
    linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
    module = drawn(
        nn.ModuleDict(
            {
                "q": linear(8, 8),
                "k": linear(8, 4),
                "v": linear(8, 4),
                "o": linear(8, 8),
                "gate": linear(8, 12),
                "up": linear(8, 12),
                "down": linear(12, 8),
                "one": nn.RMSNorm(8),
                "two": nn.RMSNorm(8),
            }
        ),
        generator,
    )
    angles = torch.outer(torch.arange(5), torch.tensor([1.0, 0.1])).double()

    def rotate(x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.view_as_real(turned).flatten(-2)

    def function(z: Tensor, t: Tensor) -> Tensor:
        x = z + t[:, None, None]
        normed = module["one"](x)
        q, k, v = (module[name](normed).unflatten(-1, (-1, 4)).transpose(1, 2) for name in "qkv")
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + module["o"](mixed.transpose(1, 2).flatten(2))
        normed = module["two"](x)
        return x + module["down"](F.silu(module["gate"](normed)) * module["up"](normed))

    return jump(function, generator, 2, 5, 8, module=module, times=1)


@listed("backbones")
def hypernetwork(generator: torch.Generator) -> Case:
    """The weights of a layer are the output of another one."""
    module = drawn(nn.ModuleDict({"weights": nn.Linear(2, 20), "out": nn.Linear(4, 4)}), generator)

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        made = module["weights"](torch.stack([t, s], 1))
        weight, bias = made[:, :16].view(-1, 4, 4), made[:, 16:]
        return module["out"](torch.baddbmm(bias[:, None], z[:, None], weight).squeeze(1).tanh())

    return jump(function, generator, 3, 4, module=module)


@listed("backbones")
def mixture_of_experts(generator: torch.Generator) -> Case:
    """Each token goes to its best two of three experts, whose outputs are gathered by index_add."""
    module = drawn(nn.ModuleDict({"gate": nn.Linear(4, 3), **{str(i): nn.Linear(4, 4) for i in range(3)}}), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        x = (z * t[:, None, None]).flatten(0, 1)
        weights, chosen = module["gate"](x).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i in range(3):
            token, place = (chosen == i).nonzero(as_tuple=True)
            out.index_add_(0, token, F.gelu(module[str(i)](x[token])) * weights[token, place, None])
        return out.view_as(z)

    return jump(function, generator, 2, 5, 4, module=module, times=1)


@listed("backbones")
def graph_network(generator: torch.Generator) -> Case:
    module = drawn(nn.ModuleDict({"edge": nn.Linear(8, 6), "node": nn.Linear(10, 4)}), generator)
    start, end = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 0, 3]])

    def function(z: Tensor, t: Tensor) -> Tensor:
        messages = F.silu(module["edge"](torch.cat([z[start], z[end]], -1)))
        sums = torch.zeros(4, 6, dtype=z.dtype).index_add(0, end, messages)
        largest = torch.zeros(4, 6, dtype=z.dtype).scatter_reduce(0, end[:, None].expand(5, 6), messages, "amax")
        return module["node"](torch.cat([z, sums * largest], -1)) * t[:, None]

    return jump(function, generator, 4, 4, module=module, times=1)


@listed("backbones")
def spectral_network(generator: torch.Generator) -> Case:
    """A Fourier neural operator: learnt factors of the low frequencies, in complex numbers."""
    factors = nn.Parameter(torch.complex(normal(generator, 2, 2, 3), normal(generator, 2, 2, 3)))
    module = nn.Module()
    module.register_parameter("factors", factors)
    module.add_module("skip", drawn(nn.Conv1d(2, 2, 1), generator))

    def function(z: Tensor, t: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(z)
        out = torch.zeros_like(spectrum)
        out[..., :3] = torch.einsum("bif,iof->bof", spectrum[..., :3], factors)
        return F.gelu(torch.fft.irfft(out, n=z.shape[-1]) + module.skip(z)) * t[:, None, None]

    return jump(function, generator, 3, 2, 8, module=module, times=1)


@listed("backbones")
def state_space_scan(generator: torch.Generator) -> Case:
    module = drawn(
        nn.ModuleDict({"rate": nn.Linear(3, 3), "input": nn.Linear(3, 4), "output": nn.Linear(3, 4)}), generator
    )

    def function(z: Tensor, t: Tensor) -> Tensor:
        rate, into, out = F.softplus(module["rate"](z)), module["input"](z), module["output"](z)
        state = z.new_zeros(z.shape[0], 3, 4)
        values = []
        for i in range(z.shape[1]):
            decay = torch.exp(-rate[:, i, :, None] * t[:, None, None])
            state = decay * state + (rate[:, i] * z[:, i])[:, :, None] * into[:, i, None]
            values.append((state * out[:, i, None]).sum(-1))
        return torch.stack(values, 1)

    return jump(function, generator, 2, 5, 3, module=module, times=1)
