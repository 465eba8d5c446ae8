"""Small random models of every class, and what they are conditioned on."""

from typing import NamedTuple

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

BATCH = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _unet(**options):
    return UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        **options,
    )


def labelled(size, widths, groups, *, classes=10, attention=True, seed=0, **options):
    """A UNet of one channel with classes, the same for the same seed."""
    torch.manual_seed(seed)
    return UNet2DModel(
        size,
        1,
        1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D"),
        up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=groups,
        attention_head_dim=4,
        num_class_embeds=classes,
        **options,
    )


def _conditional(**options):
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=6,
        **options,
    )


def _dit(**options):
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=2,
        **{"out_channels": 2, **options},
    )


def _sd3(**options):
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=7,
        pos_embed_max_size=8,
        **options,
    )


def _flux(**options):
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=7,
        axes_dims_rope=(2, 2, 4),
        **options,
    )


class Model(NamedTuple):
    """A class with the options and the keywords by which it is made and called."""

    build: object
    options: dict
    keywords: tuple
    time_scale: float = 1000.0


MODELS = {
    "unet": Model(_unet, {}, ()),
    "unet, classes": Model(_unet, {"num_class_embeds": 5}, ("class_labels",)),
    "conditional unet": Model(_conditional, {}, ("encoder_hidden_states",)),
    "conditional unet, everything": Model(
        _conditional,
        {"num_class_embeds": 5, "time_cond_proj_dim": 4},
        ("encoder_hidden_states", "class_labels", "timestep_cond"),
    ),
    "dit": Model(_dit, {}, ("class_labels",)),
    "dit, variance": Model(_dit, {"out_channels": 4}, ("class_labels",)),
    "sd3": Model(_sd3, {}, ("encoder_hidden_states", "pooled_projections")),
    "flux": Model(_flux, {}, ("encoder_hidden_states", "pooled_projections"), 1.0),
    "flux, guided": Model(
        _flux, {"guidance_embeds": True}, ("encoder_hidden_states", "pooled_projections", "guidance"), 1.0
    ),
}


def model_of(name):
    """In evaluation mode; no weight is zero."""
    torch.manual_seed(0)
    made = MODELS[name].build(**MODELS[name].options)
    return awake(made).eval()


def awake(module):
    """Zero weights, as of fresh output layers and second times, become random ones: they hide what lies before."""
    with torch.no_grad():
        for p in module.parameters():
            if not bool(p.any()):
                p.add_(0.1 * torch.randn(p.shape, generator=seeded(5)).to(p))
    return module


def condition_of(name, batch=BATCH, dtype=torch.float32):
    given = {
        "class_labels": torch.tensor([0, 1, 4]).repeat(batch)[:batch],
        "encoder_hidden_states": torch.randn(batch, 3, 6, generator=seeded(1)).to(dtype),
        "pooled_projections": torch.randn(batch, 7, generator=seeded(2)).to(dtype),
        "timestep_cond": torch.randn(batch, 4, generator=seeded(3)).to(dtype),
        "guidance": torch.linspace(1, 3, batch).to(dtype),
    }
    return {key: given[key] for key in MODELS[name].keywords}


def states(batch=BATCH, dtype=torch.float32):
    """States, directions, and times t > s of the linear path."""
    z, v = torch.randn(2, batch, 2, 8, 8, generator=seeded(4)).to(dtype)
    t = torch.linspace(0.3, 0.9, batch, dtype=dtype)
    return z, v, t, t * torch.linspace(0.2, 0.8, batch, dtype=dtype)
