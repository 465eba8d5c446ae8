"""Small networks with random weights, whose features the tests compare, and the layers that are read."""

import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 2,
}


class Plain(nn.Module):
    """A convolutional network with everything that features must not depend on: dropout, running statistics, and an
    addition in place to the output of a layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.second = nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.first(x)
        hidden += 1
        return self.activation(self.second(hidden))


def awake(module):
    """The module with no weight and no running statistic at its initial value."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator).to(value)
                value.copy_(1 + 0.1 * noise.abs() if "running_var" in name else value + 0.1 * noise)
    return module


def _resnet():
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[12, 20], depths=[2, 1], layer_type="basic"))


NETWORKS = {
    "plain": (Plain, ("first", "second"), 8),
    "resnet": (_resnet, ("encoder.stages.0.layers.0.layer", "encoder.stages.0", "encoder.stages.1.layers.0"), 32),
    "vit": (lambda: ViTModel(ViTConfig(**_VIT)), ("layers.0", "layers.1", "pooler"), 8),
    "dinov2": (
        lambda: Dinov2Model(Dinov2Config(**_VIT, mlp_ratio=2)),
        ("encoder.layer.0", "encoder.layer.1.mlp"),
        8,
    ),
    "registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_VIT, mlp_ratio=2)),
        ("encoder.layer.0", "encoder.layer.1"),
        8,
    ),
    "vitmae": (lambda: ViTMAEModel(ViTMAEConfig(**_VIT)), ("layers.0", "layers.1"), 8),
}
"""Networks by name: how it is made, the layers, the side of its images."""


def network(name):
    make, layers, side = NETWORKS[name]
    return awake(make()), layers, side
