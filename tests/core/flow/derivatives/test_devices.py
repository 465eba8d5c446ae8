"""Kernels of attention, dropout and norms on each device: a GPU has others than the CPU, with the same derivatives."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

import onestep_core as one
from onestep_adapters.backbones import DiT
from tests.core.flow.derivatives.case import F64, Case, drawn, forward_mode, jump, normal
from tests.core.flow.derivatives.checks import outcome
from tests.core.flow.derivatives.test_contexts import relative
from tests.core.flow.derivatives.zoo.backbones import UNet
from tests.core.flow.derivatives.zoo.libraries import of

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
}
DIGITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Error in the norm that a dtype may have."""
KEPT = torch.tensor([True, False, True, True, False, True]).expand(1, 1, 8, 6)
FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "by itself": ({}, ((2, 2, 8, 16),) * 3),
    "causal": ({"is_causal": True}, ((2, 2, 8, 16),) * 3),
    "with a scale": ({"scale": 0.2}, ((2, 2, 8, 16),) * 3),
    "across": ({}, ((2, 2, 8, 16), (2, 2, 6, 16), (2, 2, 6, 16))),
    "with a mask": ({"attn_mask": KEPT}, ((2, 2, 8, 16), (2, 2, 6, 16), (2, 2, 6, 16))),
    "grouped": ({"enable_gqa": True}, ((2, 4, 8, 16), (2, 2, 8, 16), (2, 2, 8, 16))),
    "long": ({}, ((1, 2, 700, 16), (1, 2, 530, 16), (1, 2, 530, 16))),
}


def moved(tree: Any, device: str, dtype: torch.dtype) -> Any:
    def move(x: Any) -> Any:
        return x.to(device, dtype if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else x

    return tree_map(move, tree)


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore")
def test_attention(device, kernel, form, dtype):
    """Value bit for bit, tangent and gradients to the digits of the dtype, by every kernel that takes the call."""
    options, shapes = FORMS[form]
    generator = torch.Generator().manual_seed(0)
    primals, tangents = (tuple(normal(generator, *shape) for shape in shapes) for _ in range(2))
    exact = forward_mode(partial(F.scaled_dot_product_attention, **options), primals, tangents)
    primals, tangents = moved((primals, tangents), device, dtype)
    call = partial(F.scaled_dot_product_attention, **moved(options, device, dtype))
    for x in primals:
        x.requires_grad_()
    with sdpa_kernel(KERNELS[kernel]):
        try:
            plain = call(*primals)
        except RuntimeError as error:
            pytest.skip(str(error).splitlines()[0])
        value, tangent = one.single_pass(call, primals, tangents)
    assert torch.equal(value, plain)
    assert tangent.dtype == dtype
    assert relative(tangent.cpu(), exact) < DIGITS[dtype]
    weight = torch.randn_like(plain)
    found, given = (torch.autograd.grad(out, primals, weight) for out in (value, plain))
    for a, b in zip(found, given, strict=True):
        assert relative(a, b) < DIGITS[dtype]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore")
def test_dropout_of_attention(device, kernel):
    """For one mask the output is linear in the values: the tangent along them is the output for them. Or a refusal."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    generator = torch.Generator().manual_seed(0)
    q, k, v, along = (normal(generator, 2, 2, 16, 16).to(device, dtype) for _ in range(4))

    def call(v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)

    with sdpa_kernel(KERNELS[kernel]):
        try:
            plain, expected = call(v), call(along)
        except RuntimeError as error:
            pytest.skip(str(error).splitlines()[0])
        found = outcome(call, (v,), (along,))
    if not isinstance(found, one.UnsupportedDerivative):
        assert torch.equal(found[0], plain)
        assert relative(found[1], expected) < DIGITS[dtype]


@pytest.mark.parametrize("device", DEVICES)
def test_dropout(device):
    """A GPU has a kernel of its own for it."""
    z, v = normal(torch.Generator().manual_seed(0), 2, 300).float().to(device).unbind(0)
    value, tangent = one.single_pass(partial(F.dropout, p=0.4), (z,), (v,))
    assert torch.equal(value.ne(0), tangent.ne(0))
    assert relative(tangent, v * value / z) < 1e-6


def backbone(generator: torch.Generator) -> Case:
    module = drawn(DiT((2, 8, 8), width=32, depth=2, heads=2, times=2), generator, by=0.1)
    return jump(module, generator, 4, 2, 8, 8, module=module)


def unet(generator: torch.Generator) -> Case:
    module = drawn(UNet(width=8), generator, by=0.1).eval()
    return jump(module, generator, 4, 1, 8, 8, module=module)


def of_diffusers(generator: torch.Generator) -> Case:
    module = of(
        "diffusers",
        "DiTTransformer2DModel",
        sample_size=4,
        in_channels=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        patch_size=2,
        norm_num_groups=2,
        num_embeds_ada_norm=10,
    )
    module = drawn(module, generator, by=0.05).eval()

    def function(z: Tensor, t: Tensor) -> Tensor:
        return module(z, 10 * t, class_labels=torch.tensor([1, 3, 2], device=z.device)).sample

    return jump(function, generator, 3, 2, 4, 4, module=module, times=1)


def recurrent(generator: torch.Generator) -> Case:
    """cuDNN's kernel has no forward-mode derivative, so a refusal is an answer."""
    module = drawn(nn.LSTM(4, 8, num_layers=2, batch_first=True), generator)
    return jump(lambda z: module(z)[0], generator, 2, 5, 4, module=module, times=0)


NETWORKS: dict[str, Any] = {"DiT": backbone, "UNet": unet, "DiTTransformer2DModel": of_diffusers, "LSTM": recurrent}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_networks(device, name, dtype):
    torch.manual_seed(0)
    case = NETWORKS[name](torch.Generator().manual_seed(1))
    exact = forward_mode(case.function, case.primals, case.tangents).detach()
    case.module.to(device, dtype)
    primals, tangents = moved((case.primals, case.tangents), device, dtype)
    plain = case.function(*primals)
    found = outcome(case.function, primals, tangents)
    if isinstance(found, one.UnsupportedDerivative):
        assert (name, device) == ("LSTM", "cuda"), found
        return
    # A recurrent layer runs without oneDNN's kernel, which has no forward derivative.
    assert relative(found[0].cpu(), plain.cpu()) < 1e-6 if name == "LSTM" else torch.equal(found[0], plain)
    assert relative(found[1].cpu(), exact) < (1e-5 if name == "DiTTransformer2DModel" else DIGITS[dtype])
    with torch.autocast(device, torch.bfloat16):
        value, tangent = one.single_pass(case.function, primals, tangents)
        assert name == "LSTM" or torch.equal(value, case.function(*primals))
    assert relative(tangent.cpu(), exact) < 0.03


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_step_in_half_precision_with_scaled_gradients(device):
    """Gradients of a MeanFlow step under autocast in float16, with a scaler: near those of float32."""
    torch.manual_seed(0)
    case = backbone(torch.Generator().manual_seed(1))
    case.module.to(device, torch.float32)
    (z, t, s), (v, *_) = moved((case.primals, case.tangents), device, torch.float32)

    def gradient(low: bool) -> Tensor:
        case.module.zero_grad()
        scaler = torch.amp.GradScaler(device, init_scale=128.0, enabled=low)
        optimizer = torch.optim.SGD(case.module.parameters(), 0.0)
        with torch.autocast(device, torch.float16, enabled=low):
            pair = one.meanflow_regression(case.module, z, v, t, s, derivative=one.single_pass)
            loss = one.mse(*pair).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        return torch.cat([p.grad.flatten() for p in case.module.parameters()])

    assert relative(gradient(low=True), gradient(low=False)) < 0.02
