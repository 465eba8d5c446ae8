"""Networks of diffusers and transformers from small configurations."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.flow.derivatives.case import F64, Case, add, drawn, jump, listed, normal, two_backwards


def of(library: str, name: str, **configuration: Any) -> Any:
    """An instance of a class of a library that may be absent."""
    pytest.importorskip(library)
    return getattr(importlib.import_module(library), name)(**configuration)


def of_transformers(model: str, configuration: str, **numbers: Any) -> Any:
    pytest.importorskip("transformers")
    return of("transformers", model, config=of("transformers", configuration, **numbers))


CHANNELS = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1}


@listed("diffusers", oracle=two_backwards, tolerance=1e-6)
def UNet2DModel_with_attention(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "UNet2DModel",
            sample_size=8,
            in_channels=1,
            out_channels=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            **CHANNELS,
        ),
        generator,
    )
    return jump(lambda z, t: module(z, t).sample, generator, 2, 1, 8, 8, module=module, times=1)


@listed("diffusers", tolerance=1e-6)
def UNet2DModel_without_attention(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "UNet2DModel",
            sample_size=8,
            in_channels=1,
            out_channels=1,
            down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D"),
            add_attention=False,
            resnet_time_scale_shift="scale_shift",
            **CHANNELS,
        ),
        generator,
    )
    return jump(lambda z, t: module(z, 10 * t, return_dict=False)[0], generator, 2, 1, 8, 8, module=module, times=1)


@listed("diffusers", oracle=two_backwards, tolerance=1e-6)
def UNet2DModel_with_a_second_time(generator: torch.Generator) -> Case:
    """The second time as the class embedding, and sliced attention in a list of processors."""
    module = drawn(
        of(
            "diffusers",
            "UNet2DModel",
            sample_size=8,
            in_channels=1,
            out_channels=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            class_embed_type="identity",
            dropout=0.1,
            **CHANNELS,
        ),
        generator,
    )
    columns = normal(generator, 16)
    return jump(
        lambda z, t, s: module(z, t, class_labels=torch.outer(t - s, columns)).sample,
        generator,
        2,
        1,
        8,
        8,
        module=module,
    )


def conditional_unet(generator: torch.Generator) -> Any:
    return of(
        "diffusers",
        "UNet2DConditionModel",
        sample_size=8,
        in_channels=2,
        out_channels=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        time_cond_proj_dim=4,
        **CHANNELS,
    )


@listed("diffusers", tolerance=1e-6, oracle=two_backwards)
def UNet2DConditionModel(generator: torch.Generator) -> Case:
    module = drawn(conditional_unet(generator), generator)
    text = normal(generator, 2, 3, 6)

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return module(z, t, text, timestep_cond=torch.stack([s, t, s - t, t * s], 1)).sample

    return jump(function, generator, 2, 2, 8, 8, module=module)


@listed("diffusers", tolerance=1e-6, oracle=two_backwards)
def UNet2DConditionModel_with_attention_by_products(generator: torch.Generator) -> Case:
    """The older processor, ``baddbmm`` and ``softmax``, and gradient checkpointing."""
    module = drawn(conditional_unet(generator), generator)
    module.set_attn_processor(importlib.import_module("diffusers.models.attention_processor").AttnProcessor())
    module.enable_gradient_checkpointing()
    text = normal(generator, 2, 3, 6)
    return jump(lambda z, t: module(z, t, text).sample, generator, 2, 2, 8, 8, module=module, times=1)


@listed("diffusers", tolerance=1e-6)
def DiTTransformer2DModel(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "DiTTransformer2DModel",
            sample_size=4,
            in_channels=2,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            patch_size=2,
            norm_num_groups=2,
            num_embeds_ada_norm=10,
        ),
        generator,
    )
    label = torch.tensor([1, 3, 2])
    return jump(
        lambda z, t: module(z, 10 * t, class_labels=label).sample, generator, 3, 2, 4, 4, module=module, times=1
    )


@listed("diffusers", tolerance=1e-6)
def SD3Transformer2DModel(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "SD3Transformer2DModel",
            sample_size=4,
            patch_size=2,
            in_channels=2,
            out_channels=2,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=6,
            caption_projection_dim=8,
            pooled_projection_dim=5,
            pos_embed_max_size=4,
            qk_norm="rms_norm",
        ),
        generator,
    )
    text, pooled = normal(generator, 2, 3, 6), normal(generator, 2, 5)

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return module(z, text, pooled * s[:, None], 10 * t, return_dict=False)[0]

    return jump(function, generator, 2, 2, 4, 4, module=module)


@listed("diffusers", tolerance=1e-6)
def FluxTransformer2DModel(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "FluxTransformer2DModel",
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=6,
            pooled_projection_dim=5,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        generator,
    )
    text, pooled = normal(generator, 2, 3, 6), normal(generator, 2, 5)
    places = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(2.0), torch.arange(2.0), indexing="ij"), -1)

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return module(
            z, text, pooled, t / 100, places.view(4, 3), torch.zeros(3, 3), guidance=(t - s) / 100, return_dict=False
        )[0]

    return jump(function, generator, 2, 4, 4, module=module)


@listed("diffusers", tolerance=1e-6)
def Transformer2DModel_of_PixArt(generator: torch.Generator) -> Case:
    module = drawn(
        of(
            "diffusers",
            "PixArtTransformer2DModel",
            sample_size=4,
            in_channels=2,
            out_channels=2,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=6,
            norm_num_groups=2,
            use_additional_conditions=False,
        ),
        generator,
    )
    text, kept = normal(generator, 2, 3, 6), torch.tensor([[1, 1, 0], [1, 1, 1]])
    added = {"resolution": None, "aspect_ratio": None}

    def function(z: Tensor, t: Tensor) -> Tensor:
        return module(z, text, 10 * t, added_cond_kwargs=added, encoder_attention_mask=kept, return_dict=False)[0]

    return jump(function, generator, 2, 2, 4, 4, module=module, times=1)


@listed("diffusers", oracle=two_backwards)
def AutoencoderKL(generator: torch.Generator) -> Case:
    """Encoder and decoder of latents, through the mean of the posterior."""
    module = drawn(
        of(
            "diffusers",
            "AutoencoderKL",
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            in_channels=1,
            out_channels=1,
            latent_channels=2,
            sample_size=8,
            **CHANNELS,
        ),
        generator,
    )
    return jump(
        lambda z: module.decode(module.encode(z).latent_dist.mode()).sample,
        generator,
        2,
        1,
        8,
        8,
        module=module,
        times=0,
    )


TRANSFORMER: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
IMAGES: dict[str, Any] = {**TRANSFORMER, "image_size": 8, "patch_size": 4, "num_channels": 1}


def vision(model: str, configuration: str, *, attention: str = "sdpa", **more: Any) -> Any:
    def factory(generator: torch.Generator) -> Case:
        module = drawn(
            of_transformers(model, configuration, attn_implementation=attention, **IMAGES, **more), generator
        )
        return jump(lambda z: module(z).last_hidden_state, generator, 2, 1, 8, 8, module=module, times=0)

    return factory


add("transformers", "ViT", vision("ViTModel", "ViTConfig"))
add("transformers", "ViT with eager attention", vision("ViTModel", "ViTConfig", attention="eager"), tolerance=1e-6)
add("transformers", "DINOv2", vision("Dinov2Model", "Dinov2Config", mlp_ratio=2, use_swiglu_ffn=True))


@listed("transformers")
def ViTMAE(generator: torch.Generator) -> Case:
    """Reconstruction of the masked patches; without ``noise`` the mask is another one at each call."""
    module = drawn(
        of_transformers(
            "ViTMAEForPreTraining",
            "ViTMAEConfig",
            decoder_num_attention_heads=2,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_intermediate_size=12,
            **IMAGES,
        ),
        generator,
    )
    noise = torch.rand(2, 4, generator=generator, dtype=F64)

    def function(z: Tensor) -> tuple[Tensor, Tensor]:
        out = module(z, noise=noise)
        return out.logits, out.loss

    return jump(function, generator, 2, 1, 8, 8, module=module, times=0)


def language(**more: Any) -> Any:
    return of_transformers(
        "LlamaForCausalLM",
        "LlamaConfig",
        vocab_size=11,
        num_key_value_heads=1,
        max_position_embeddings=16,
        **TRANSFORMER,
        **more,
    )


@listed("transformers", tolerance=1e-6)
def Llama(generator: torch.Generator) -> Case:
    """A language model of embeddings, as continuous diffusion over text uses it."""
    module = drawn(language(attn_implementation="sdpa"), generator)
    return jump(lambda z: module(inputs_embeds=z).logits, generator, 2, 5, 8, module=module, times=0)


@listed("transformers", tolerance=1e-6)
def Llama_with_padding_and_cache(generator: torch.Generator) -> Case:
    """A cache of keys and values, filled in one call and read in the next."""
    module = drawn(language(attn_implementation="sdpa"), generator)
    kept = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])

    def function(z: Tensor) -> Tensor:
        one = module(inputs_embeds=z[:, :3], attention_mask=kept[:, :3], use_cache=True)
        two = module(inputs_embeds=z[:, 3:], attention_mask=kept, past_key_values=one.past_key_values)
        return torch.cat([one.logits, two.logits], 1)

    return jump(function, generator, 2, 5, 8, module=module, times=0)


@listed("transformers", tolerance=1e-6)
def T5_encoder(generator: torch.Generator) -> Case:
    """Relative positions enter as a learnt bias of attention."""
    module = drawn(
        of_transformers(
            "T5EncoderModel", "T5Config", vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2
        ),
        generator,
    )
    return jump(lambda z: module(inputs_embeds=z).last_hidden_state, generator, 2, 5, 8, module=module, times=0)
