"""Two processes take gradients of the MeanFlow loss with ``single_pass``; run by test_distributed.py under torchrun."""

import contextlib
import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import onestep_core as one
from tests.core.flow.derivatives.case import F64, drawn, normal
from tests.core.flow.derivatives.zoo.backbones import UNet

ROWS, MOVING = 8, 3
"""Rows of the whole batch; those of a process that move, in the runs with ``moving``."""


class Network(nn.Module):
    """A U-Net with attention, group norm and a buffer; ``(z, t, s) -> z``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = UNet()
        self.body.attention.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 1.5,))
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.full((1, 8, 8), 0.3))

    def forward(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.body(z + self.shift.to(z), t, s) * self.gain


class Checkpointed(Network):
    def forward(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return checkpoint(super().forward, z, t, s, use_reentrant=False)


class WithIdleWeight(Network):
    """A parameter that no output uses."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


def network(kind: type[nn.Module] = Network) -> nn.Module:
    torch.manual_seed(0)
    return drawn(kind(), torch.Generator().manual_seed(0)).eval()  # without dropout


def batch() -> tuple[Tensor, ...]:
    """States, velocities and times; in each process only the first rows have ``s < t``."""
    generator = torch.Generator().manual_seed(1)
    z, v = normal(generator, 2, ROWS, 1, 8, 8)
    t = torch.rand(ROWS, generator=generator, dtype=F64)
    return z, v, t, torch.where(torch.arange(ROWS) % (ROWS // 2) < MOVING, 0.4 * t, t)


def loss(net: Any, rows: slice, moving: int | None = None) -> Tensor:
    """The whole of a training step: nothing in it knows of processes."""
    z, v, t, s = (x[rows] for x in batch())
    return one.squared_l2(*one.meanflow_regression(net, z, v, t, s, derivative=one.single_pass, moving=moving)).mean()


def gradients(module: nn.Module) -> dict[str, Any]:
    found = {}
    for name, p in module.named_parameters():
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        found[name.replace("module.", "")] = None if grad is None else grad.double().tolist()
    return found


def sharded(*, low: bool = False, **options: Any) -> nn.Module:
    """FSDP2 for each part and for the whole; with ``low`` parts compute in bfloat16."""
    module, mesh = network(), init_device_mesh("cpu", (2,))
    dtype = torch.bfloat16 if low else None
    for part in (*module.body.down, *module.body.up, module.body.attention):
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype), **options)
    policy = MixedPrecisionPolicy(param_dtype=dtype, output_dtype=F64)
    return fully_shard(module, mesh=mesh, mp_policy=policy, **options)


WRAPPED: dict[str, Any] = {
    "ddp": lambda: DistributedDataParallel(network()),
    "ddp that looks for idle weights": lambda: DistributedDataParallel(
        network(WithIdleWeight), find_unused_parameters=True
    ),
    "ddp of a static graph": lambda: DistributedDataParallel(network(), static_graph=True),
    "ddp with buckets as views": lambda: DistributedDataParallel(
        network(), gradient_as_bucket_view=True, bucket_cap_mb=1e-3
    ),
    "ddp with checkpoints": lambda: DistributedDataParallel(network(Checkpointed)),
    "fsdp": sharded,
    "fsdp, kept after the forward pass": partial(sharded, reshard_after_forward=False),
    "fsdp in bfloat16": partial(sharded, low=True),
}


def step(wrap: Any, rows: slice, moving: int | None, times: int) -> dict[str, Any]:
    module = wrap()
    for _ in range(times):
        module.zero_grad()
        loss(module, rows, moving).backward()
    return gradients(module)


def accumulated(rows: slice) -> dict[str, Any]:
    """The rows in two parts, of which the first is not synchronised."""
    module = DistributedDataParallel(network())
    for part in (slice(rows.start, rows.start + 2), slice(rows.start + 2, rows.stop)):
        with module.no_sync() if part.start == rows.start else contextlib.nullcontext():
            (loss(module, part) / 2).backward()
    return gradients(module)


def outcome(run: Any) -> Any:
    """Gradients, or the error as text: the other runs go on."""
    try:
        return run()
    except Exception:
        return traceback.format_exc()


def main() -> None:
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    rows, result = slice(ROWS // 2 * rank, ROWS // 2 * (rank + 1)), {}
    for name, wrap in WRAPPED.items():
        for moving in (None, MOVING):
            result[f"{name}, moving={moving}"] = outcome(partial(step, wrap, rows, moving, 1 + ("static" in name)))
    result["ddp, accumulated"] = outcome(partial(accumulated, rows))
    if rank == 0:
        alone = network()
        loss(alone, slice(0, ROWS)).backward()
        result["alone"] = gradients(alone)
        result["alone by two passes"] = by_two_passes()
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()  # neither process leaves while the other still computes
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors when the interpreter is finalised, and then abort the process
    # (https://github.com/pytorch/pytorch/pull/179291): everything is written, so leave without finalising.
    sys.stdout.flush()
    os._exit(0)


def by_two_passes() -> dict[str, Any]:
    """The same gradients with ``torch.func.jvp`` and a forward pass."""
    module = network()
    z, v, t, s = batch()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        one.squared_l2(*one.meanflow_regression(module, z, v, t, s, derivative=one.two_pass)).mean().backward()
    return gradients(module)


if __name__ == "__main__":
    main()
