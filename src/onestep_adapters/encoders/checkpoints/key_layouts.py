"""Published names of weights, and the names of the same weights in the modules of ``transformers``.

A layout turns a state dict into a :class:`Layout`: which module, its sizes, and its weights by their new names. Sizes
are read from the shapes; the number of attention heads has no shape and follows a rule (:func:`attention_heads`). Keys
that no rule knows keep their name, so that loading names them as unexpected.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from onestep_core.errors import ConfigError

State = Mapping[str, Tensor]

_BATCH_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

_RESNET = [
    (r"conv1\.weight", r"embedder.embedder.convolution.weight"),
    (rf"bn1\.{_BATCH_NORM}", r"embedder.embedder.normalization.\1"),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.weight", r"encoder.stages.{\1}.layers.\2.layer.{\3}.convolution.weight"),
    (rf"layer(\d+)\.(\d+)\.bn(\d)\.{_BATCH_NORM}", r"encoder.stages.{\1}.layers.\2.layer.{\3}.normalization.\4"),
    (r"layer(\d+)\.(\d+)\.downsample\.0\.weight", r"encoder.stages.{\1}.layers.\2.shortcut.convolution.weight"),
    (rf"layer(\d+)\.(\d+)\.downsample\.1\.{_BATCH_NORM}", r"encoder.stages.{\1}.layers.\2.shortcut.normalization.\3"),
]
"""Patterns and replacements; a number in braces is lowered by one."""

_TOKENS = [
    (r"cls_token", r"embeddings.cls_token"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
]

_VIT = [
    *_TOKENS,
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"layers.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"layers.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(weight|bias)", r"layers.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"layers.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"layers.\1.mlp.\2.\3"),
]

_DINOV2 = [
    *_TOKENS,
    (r"(mask_token|register_tokens)", r"embeddings.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layer.\1.norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(weight|bias)", r"encoder.layer.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layer.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"encoder.layer.\1.mlp.\2.\3"),
    (r"blocks\.(\d+)\.mlp\.(gate|up)\.(weight|bias)", r"encoder.layer.\1.mlp.\2_proj.\3"),
    (r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)", r"encoder.layer.\1.mlp.down_proj.\2"),
]


_STAGES = 4
"""Stages of every published ResNet."""


class Layout(NamedTuple):
    """A kind of module of ``transformers``, the arguments of its configuration, and its weights by its own names."""

    family: Literal["resnet", "vit", "dinov2"]
    config: dict[str, Any]
    weights: dict[str, Tensor]
    rules: list[tuple[str, str]]
    """Patterns of published names and their replacements: :func:`published_name` goes back."""


def attention_heads(width: int, heads: int | None, published: Mapping[int, int]) -> int:
    """The number of attention heads: the one given, else the published one of this width, else ``width / 64``.

    Raises:
        ConfigError: if ``heads`` does not divide the width, or none is given for a width that 64 does not divide.

    Example:
        >>> attention_heads(768, None, {}), attention_heads(384, None, {384: 12})
        (12, 12)
    """
    if heads is None:
        heads = published.get(width, width // 64 if width % 64 == 0 else 0)
    if heads < 1 or width % heads:
        raise ConfigError(
            f"{heads or 'an unknown number of'} attention heads for a width of {width}: a checkpoint does not hold "
            "their number; give heads="
        )
    return heads


def resnet(state: State, heads: int | None) -> Layout:
    """A ResNet by torchvision's names: ``conv1 bn1 layer1.0.conv1 ... layer4.2.bn3``."""
    width, channels, *_ = _shape(state, "conv1.weight", 4)
    _shape(state, "layer1.0.conv1.weight", 4)
    found = sorted({int(match[1]) for match in (re.match(r"layer(\d+)\.", key) for key in state) if match})
    if absent := [f"layer{stage}" for stage in range(1, _STAGES + 1) if stage not in found]:
        raise ConfigError(
            f"the checkpoint has no weights of {', '.join(absent)}: expected a ResNet of {_STAGES} stages, layer1 to "
            f"layer{_STAGES}; a part of the file is missing"
        )
    stages = _consecutive(state, r"layer(\d+)\..*", "layer{}", first=1)
    last = 3 if "layer1.0.conv3.weight" in state else 2
    sizes = [_shape(state, f"layer{stage}.0.conv{last}.weight", 4)[0] for stage in range(1, stages + 1)]
    config = {
        "num_channels": channels,
        "embedding_size": width,
        "hidden_sizes": sizes,
        "depths": [
            _consecutive(state, rf"layer{stage}\.(\d+)\..*", f"layer{stage}.{{}}") for stage in range(1, stages + 1)
        ],
        "layer_type": "bottleneck" if last == 3 else "basic",
    }
    return Layout("resnet", config, _renamed(state, _RESNET), _RESNET)


def vit(published: Mapping[int, int]) -> Callable[[State, int | None], Layout]:
    """A ViT by timm's names; ``published`` are numbers of heads by width.

    MAE fine-tuned with global pooling has ``fc_norm``, a normalisation of the mean of the tokens, in place of ``norm``.
    It becomes the last normalisation of the module, which is that of every token.
    """

    def layout(state: State, heads: int | None) -> Layout:
        pooled = {key: value for key, value in state.items() if key.startswith("fc_norm.")}
        state = {key: value for key, value in state.items() if key not in pooled}
        if not any(key.startswith("norm.") for key in state):
            state |= {key.removeprefix("fc_"): value for key, value in pooled.items()}
        sizes = _transformer(state, heads, published) | {
            "intermediate_size": _shape(state, "blocks.0.mlp.fc1.weight", 2)[0],
        }
        return Layout("vit", sizes, _renamed(_split(state), _VIT), _VIT)

    return layout


def dinov2(state: State, heads: int | None) -> Layout:
    """DINOv2, with or without registers, with a plain or a gated feed-forward part.

    In blocks of chunks, ``blocks.1.7.`` is block 7 of all, in the second chunk.
    """
    state = _unchunked(state)
    gated = "blocks.0.mlp.w12.weight" in state
    config = _transformer(state, heads, {}) | {"use_swiglu_ffn": gated}
    width = config["hidden_size"]
    config["mlp_ratio"] = 4 if gated else max(1, _shape(state, "blocks.0.mlp.fc1.weight", 2)[0] // width)
    if "register_tokens" in state:
        config["num_register_tokens"] = _shape(state, "register_tokens", 3)[1]
    return Layout("dinov2", config, _renamed(_split(state), _DINOV2), _DINOV2)


def published_name(name: str, rules: list[tuple[str, str]]) -> str:
    """The published name of a weight of a module; a name that no rule gives is returned as it is.

    Example:
        >>> published_name("layers.3.attention.q_proj.weight", _VIT)
        'blocks.3.attn.qkv.weight'
    """
    for pattern, replacement in rules:
        groups = re.findall(r"\(.*?\)", pattern)
        back = re.escape(replacement)
        for number, group in enumerate(groups, 1):
            for written in (rf"{{\{number}}}", rf"\{number}"):
                back = back.replace(re.escape(written), f"(?P<g{number}>{group[1:-1]})")
        if match := re.fullmatch(back, name):
            values = [
                str(int(match[f"g{number}"]) + 1) if rf"{{\{number}}}" in replacement else match[f"g{number}"]
                for number in range(1, len(groups) + 1)
            ]
            filled = pattern.replace("\\.", ".")
            for group, value in zip(groups, values, strict=True):
                filled = filled.replace(group, value, 1)
            return re.sub(r"\.mlp\.(gate|up)\.", ".mlp.w12.", re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", filled))
    return name


def _transformer(state: State, heads: int | None, published: Mapping[int, int]) -> dict[str, Any]:
    width, channels, patch, _ = _shape(state, "patch_embed.proj.weight", 4)
    _shape(state, "blocks.0.norm1.weight", 1)
    side = round(max(0, _shape(state, "pos_embed", 3)[1] - 1) ** 0.5)
    return {
        "hidden_size": width,
        "num_hidden_layers": _consecutive(state, r"blocks\.(\d+)\..*", "blocks.{}"),
        "num_attention_heads": attention_heads(width, heads, published),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_norm_eps": 1e-6,
    }


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in state:
        some = ", ".join(list(state)[:4]) or "none"
        raise ConfigError(
            f"the checkpoint has no {name!r}, so its sizes are unknown; its first keys are {some} (a prefix is "
            "left out)"
        )
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ConfigError(f"{name!r} of the checkpoint has the shape {list(shape)}: expected {axes} axes, none empty")
    return shape


def _consecutive(state: State, pattern: str, name: str, *, first: int = 0) -> int:
    """The number of blocks or stages, which are numbered without a gap."""
    found = {int(match[1]) for match in (re.fullmatch(pattern, key) for key in state) if match}
    if gap := sorted(set(range(first, max(found, default=first))) - found):
        raise ConfigError(
            f"the checkpoint has weights of {name.format(max(found))} and none of "
            f"{', '.join(name.format(number) for number in gap)}: a part of the file is missing"
        )
    return len(found)


def _unchunked(state: State) -> State:
    """DINOv2's training groups blocks into chunks; the second number counts the blocks of all chunks."""
    renamed = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}
    if len(renamed) < len(state):
        raise ConfigError(
            "the checkpoint holds the blocks of DINOv2 in chunks, 'blocks.0.0.', and two chunks have a block of the "
            "same number: save it with block_chunks=0"
        )
    return renamed


def _split(state: State) -> dict[str, Tensor]:
    """Queries, keys and values, and gates and values of a gated part, as tensors of their own."""
    parts: dict[str, Tensor] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", key):
            _check_parts(key, value, 3)
            parts |= {f"{match[1]}{n}.{match[2]}": v for n, v in zip("qkv", value.chunk(3), strict=True)}
        elif match := re.fullmatch(r"(blocks\.\d+\.mlp\.)w12\.(weight|bias)", key):
            _check_parts(key, value, 2)
            parts |= {f"{match[1]}{n}.{match[2]}": v for n, v in zip(("gate", "up"), value.chunk(2), strict=True)}
        else:
            parts[key] = value
    return parts


def _check_parts(name: str, value: Tensor, parts: int) -> None:
    if value.ndim == 0 or len(value) % parts or len(value) == 0:
        raise ConfigError(f"{name!r} of the checkpoint has the shape {list(value.shape)}: expected {parts} equal parts")


def _renamed(state: State, rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    def name(key: str) -> str:
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                return re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) - 1), match.expand(replacement))
        return key

    return {name(key): value for key, value in state.items()}
