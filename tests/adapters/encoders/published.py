"""Small random state dicts in published layouts, and the networks that they belong to, written out."""

import torch
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, linear, max_pool2d, relu, silu

from tests.adapters.tiny import seeded

F64 = torch.float64


class Weights:
    """Draws weights of the given shapes."""

    def __init__(self):
        self.generator, self.state = seeded(11), {}

    def draw(self, name, *shape, around=0.0, scale=0.3):
        self.state[name] = around + scale * torch.randn(*shape, generator=self.generator, dtype=F64)

    def layer(self, name, outs, ins, *, bias=True):
        self.draw(f"{name}.weight", outs, ins)
        if bias:
            self.draw(f"{name}.bias", outs)

    def norm(self, name, width):
        self.draw(f"{name}.weight", width, around=1.0)
        self.draw(f"{name}.bias", width)

    def batch_norm(self, name, width):
        self.norm(name, width)
        self.draw(f"{name}.running_mean", width)
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.generator, dtype=F64)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def resnet_state(*, bottleneck, depths=(2, 1, 1, 2), stem=8, widths=(4, 8, 4, 6)):
    """A ResNet by torchvision's names; bottlenecks are four times narrower inside."""
    weights, ins = Weights(), stem
    weights.draw("conv1.weight", stem, 3, 7, 7)
    weights.batch_norm("bn1", stem)
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        outs = 4 * width if bottleneck else width
        sizes = (
            [(ins, width, 1), (width, width, 3), (width, outs, 1)]
            if bottleneck
            else [(ins, width, 3), (width, outs, 3)]
        )
        for block in range(depth):
            name = f"layer{stage}.{block}"
            for number, (a, b, side) in enumerate(sizes, 1):
                weights.draw(f"{name}.conv{number}.weight", b, outs if block and number == 1 else a, side, side)
                weights.batch_norm(f"{name}.bn{number}", b)
            if block == 0 and (stage > 1 or ins != outs):
                weights.draw(f"{name}.downsample.0.weight", outs, ins, 1, 1)
                weights.batch_norm(f"{name}.downsample.1", outs)
        ins = outs
    return weights.state


def resnet_forward(state, x):
    """The outputs of all stages."""

    def norm(name, x):
        keys = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-5)

    x = relu(norm("bn1", conv2d(x, state["conv1.weight"], stride=2, padding=3)))
    x, outputs, stage = max_pool2d(x, 3, 2, 1), [], 1
    while f"layer{stage}.0.conv1.weight" in state:
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            bottleneck = f"{name}.conv3.weight" in state
            inner, numbers = x, (1, 2, 3) if bottleneck else (1, 2)
            for number in numbers:
                weight = state[f"{name}.conv{number}.weight"]
                strided = number == (2 if bottleneck else 1)
                inner = conv2d(inner, weight, stride=stride if strided else 1, padding=weight.shape[-1] // 2)
                inner = norm(f"{name}.bn{number}", inner)
                inner = relu(inner) if number != numbers[-1] else inner
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
            x = relu(inner + x)
            block += 1
        outputs.append(x)
        stage += 1
    return outputs


def vit_state(*, width=16, depth=2, side=8, patch=4, hidden=24, registers=0, scales=False, gated=False, bias=True):
    """A ViT by timm's names, or DINOv2 with ``scales``."""
    weights = Weights()
    weights.draw("cls_token", 1, 1, width)
    weights.draw("pos_embed", 1, (side // patch) ** 2 + 1, width)
    if registers:
        weights.draw("register_tokens", 1, registers, width)
    weights.draw("patch_embed.proj.weight", width, 3, patch, patch)
    weights.draw("patch_embed.proj.bias", width)
    for block in range(depth):
        name = f"blocks.{block}"
        weights.norm(f"{name}.norm1", width)
        weights.layer(f"{name}.attn.qkv", 3 * width, width, bias=bias)
        weights.layer(f"{name}.attn.proj", width, width)
        weights.norm(f"{name}.norm2", width)
        if scales:
            weights.draw(f"{name}.ls1.gamma", width)
            weights.draw(f"{name}.ls2.gamma", width)
        if gated:
            inner = (int(4 * width * 2 / 3) + 7) // 8 * 8
            weights.layer(f"{name}.mlp.w12", 2 * inner, width)
            weights.layer(f"{name}.mlp.w3", width, inner)
        else:
            weights.layer(f"{name}.mlp.fc1", hidden, width)
            weights.layer(f"{name}.mlp.fc2", width, hidden)
    weights.norm("norm", width)
    return weights.state


def vit_forward(state, x, *, heads):
    """All tokens after the last normalisation."""
    width = state["cls_token"].shape[-1]
    patch = state["patch_embed.proj.weight"].shape[-1]

    def affine(name, x):
        return linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, x):
        return layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    x = conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + state["pos_embed"]
    if "register_tokens" in state:
        registers = state["register_tokens"].expand(len(x), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
    block = 0
    while f"blocks.{block}.norm1.weight" in state:
        name = f"blocks.{block}"
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in affine(f"{name}.attn.qkv", norm(f"{name}.norm1", tokens)).chunk(3, -1)
        )
        mixed = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        mixed = affine(f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
        tokens = tokens + mixed * state.get(f"{name}.ls1.gamma", 1.0)
        inner = norm(f"{name}.norm2", tokens)
        if f"{name}.mlp.w12.weight" in state:
            gate, value = affine(f"{name}.mlp.w12", inner).chunk(2, -1)
            inner = affine(f"{name}.mlp.w3", silu(gate) * value)
        else:
            inner = affine(f"{name}.mlp.fc2", gelu(affine(f"{name}.mlp.fc1", inner)))
        tokens = tokens + inner * state.get(f"{name}.ls2.gamma", 1.0)
        block += 1
    return norm("norm", tokens)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}
