"""Normalisations, in training and evaluation, and parametrised weights."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.core.flow.derivatives.case import F64, Case, add, drawn, fragment, jump, layer, listed, normal, two_backwards

LAYERS: dict[str, Any] = {
    "LayerNorm": (lambda: nn.LayerNorm(6), 2, 5, 6),
    "LayerNorm of two dimensions": (lambda: nn.LayerNorm((5, 6)), 2, 5, 6),
    "LayerNorm without weight": (lambda: nn.LayerNorm(6, elementwise_affine=False), 2, 5, 6),
    "LayerNorm without bias": (lambda: nn.LayerNorm(6, bias=False), 2, 5, 6),
    "RMSNorm": (lambda: nn.RMSNorm(6), 2, 5, 6),
    "RMSNorm without weight": (lambda: nn.RMSNorm((5, 6), eps=1e-6, elementwise_affine=False), 2, 5, 6),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), 2, 4, 3, 5),
    "GroupNorm of vectors": (lambda: nn.GroupNorm(2, 6), 3, 6),
    "GroupNorm 1d without weight": (lambda: nn.GroupNorm(4, 4, affine=False), 2, 4, 5),
    "GroupNorm 3d": (lambda: nn.GroupNorm(1, 4), 2, 4, 2, 3, 2),
    "InstanceNorm": (lambda: nn.InstanceNorm2d(4), 2, 4, 3, 5),
    "InstanceNorm affine": (lambda: nn.InstanceNorm1d(4, affine=True), 2, 4, 5),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), 2, 4, 3, 5),
    "CrossMapLRN": (lambda: nn.LocalResponseNorm(2, alpha=0.5, k=2.0), 2, 4, 6),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 3)), 2, 6),
    "weight norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), 2, 3, 5, 5),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), 2, 4),
}
for _name, (_make, *_shape) in LAYERS.items():
    add("norms", _name, layer(_make, *_shape))

RUNNING: dict[str, Any] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), 4, 6),
    "BatchNorm1d of sequences": (lambda: nn.BatchNorm1d(3), 2, 3, 5),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), 2, 3, 4, 4),
    "BatchNorm2d with a mean of all batches": (lambda: nn.BatchNorm2d(3, momentum=None), 2, 3, 4, 4),
    "BatchNorm3d without weight": (lambda: nn.BatchNorm3d(2, affine=False), 2, 2, 3, 2, 2),
    "InstanceNorm with statistics": (lambda: nn.InstanceNorm2d(3, track_running_stats=True, affine=True), 2, 3, 4, 4),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 3)), 2, 6),
    "spectral norm by a hook": (lambda: nn.utils.spectral_norm(nn.Linear(6, 3)), 2, 6),
}
for _name, (_make, *_shape) in RUNNING.items():
    add("norms", f"{_name}, training", layer(_make, *_shape), oracle=two_backwards)
    add("norms", f"{_name}, evaluation", layer(_make, *_shape, train=False))
add(
    "norms",
    "BatchNorm without statistics",
    layer(lambda: nn.BatchNorm2d(3, track_running_stats=False), 2, 3, 4, 4),
)


@listed("norms", oracle=two_backwards)
def GroupNorm_of_a_view(generator: torch.Generator) -> Case:
    """In diffusers' attention the input of the norm is a transposed tensor, which forward mode refuses."""
    module = drawn(nn.GroupNorm(2, 4), generator)
    return jump(lambda z: module(z.transpose(1, 2)), generator, 2, 5, 4, module=module, times=0)


@listed("norms", oracle=two_backwards)
def GroupNorm_of_channels_last(generator: torch.Generator) -> Case:
    """After a layer: torch 2.13 crashes in the backward pass of this norm where its input needs no gradient."""
    module = drawn(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), generator)
    return jump(
        lambda z: module(z.to(memory_format=torch.channels_last)), generator, 2, 4, 3, 3, module=module, times=0
    )


@listed("norms")
def LayerNorm_of_a_transposed_tensor(generator: torch.Generator) -> Case:
    module = drawn(nn.LayerNorm(5), generator)
    return jump(lambda z: module(z.transpose(1, 2)), generator, 2, 5, 4, module=module, times=0)


@listed("norms")
def adaptive_norm(generator: torch.Generator) -> Case:
    """Scale and shift come from the times: adaLN of a DiT."""
    module = drawn(
        nn.ModuleDict({"norm": nn.LayerNorm(6, elementwise_affine=False), "times": nn.Linear(2, 12)}), generator
    )

    def function(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        scale, shift = module["times"](torch.stack([t, t - s], 1))[:, None].chunk(2, -1)
        return module["norm"](z) * (1 + scale) + shift

    return jump(function, generator, 2, 5, 6, module=module)


def batch_normalised(training: bool) -> Any:
    def factory(generator: torch.Generator) -> Case:
        mean, variance = normal(generator, 3), normal(generator, 3).exp()

        def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training)

        shapes = ((4, 3, 2), (3,), (3,))
        primals, tangents = (tuple(normal(generator, *shape) for shape in shapes) for _ in range(2))
        return Case(function, primals, tangents)

    return factory


add("norms", "batch norm whose weight has a tangent", batch_normalised(False))
add("norms", "batch norm in training whose weight has a tangent", batch_normalised(True), oracle=two_backwards)
add(
    "norms",
    "layer norm whose weight has a tangent",
    fragment(lambda x, w, b: F.layer_norm(x, (6,), w, b), (2, 5, 6), (6,), (6,)),
)
add(
    "norms",
    "layer norm whose bias alone has a tangent",
    fragment(lambda b: F.layer_norm(torch.eye(6, dtype=F64), (6,), b.detach(), b), (6,)),
)
add(
    "norms",
    "group norm whose weight has a tangent",
    fragment(lambda x, w, b: F.group_norm(x, 2, w, b), (2, 4, 5), (4,), (4,)),
)
add("norms", "rms norm whose weight has a tangent", fragment(lambda x, w: F.rms_norm(x, (6,), w), (2, 5, 6), (6,)))
add("norms", "unit length", fragment(partial(F.normalize, dim=-1), (2, 5, 6)))
