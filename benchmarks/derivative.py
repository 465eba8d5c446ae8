"""Time and memory of a MeanFlow step with each derivative, relative to a plain flow-matching step of the same network.

    python -m benchmarks.derivative                        # all networks, five rounds; minutes
    python -m benchmarks.derivative --networks dit-64 --rounds 21 --threads 2
    python -m benchmarks.derivative --compiled --ways single_pass   # each step compiled as a whole, where torch can
    python -m benchmarks.derivative --device cuda          # DiT-B/2 in bfloat16

A step is forward and backward pass, without optimizer. In each round every step is made once, one after the other, so
that a machine that slows down slows all. Times are medians over the rounds, of the ratio to the flow-matching step of
the same round. ``memory``: the largest number of bytes of tensors that a step holds beyond what was there before it,
from torch's profiler (on a GPU from its allocator), relative to the flow-matching step. ``off``: the largest
difference of the gradient to that of ``two_pass``, relative to its largest entry. A way that fails is left out, with
its error.

``single_pass, a quarter moves``: the first quarter of the batch has ``s < t`` and the other pairs ``s = t``, as in the
paper's settings; ``moving=`` says so.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import onestep_core as one
from benchmarks import harness
from onestep_adapters.backbones import DiT

Network = Callable[..., Tensor]
Step = Callable[[], Tensor]


def dit(side: int) -> tuple[nn.Module, Network, tuple[int, ...]]:
    """Width 256, depth 6, patches of 2 x 2 of 4 channels: ``(side / 2)^2`` tokens."""
    module = DiT((4, side, side), patch=2, width=256, depth=6, heads=4, times=2)
    return module, module, (4, side, side)


def dit_b2() -> tuple[nn.Module, Network, tuple[int, ...]]:
    """The size of DiT-B/2 on latents of 32 x 32."""
    module = DiT((4, 32, 32), patch=2, width=768, depth=12, heads=12, times=2)
    return module, module, (4, 32, 32)


def unet() -> tuple[nn.Module, Network, tuple[int, ...]]:
    """UNet2DModel of diffusers with attention; the second time enters as the class embedding."""
    import diffusers

    module = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        class_embed_type="identity",
    )
    columns = torch.linspace(-1, 1, 256)
    return module, lambda z, t, s: module(z, t, class_labels=torch.outer(t - s, columns.to(t))).sample, (4, 16, 16)


def sd3() -> tuple[nn.Module, Network, tuple[int, ...]]:
    """SD3Transformer2DModel of diffusers; the second time enters with the pooled text."""
    import diffusers

    module = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=64,
        caption_projection_dim=192,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    text, columns = torch.randn(1, 16, 64), torch.linspace(-1, 1, 64)

    def network(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        pooled = torch.outer(t - s, columns.to(z))
        return module(z, text.to(z).expand(len(z), -1, -1), pooled, 1000 * t, return_dict=False)[0]

    return module, network, (4, 16, 16)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Network, tuple[int, ...]]]] = {
    "dit-64": partial(dit, 16),
    "dit-256": partial(dit, 32),
    "unet": unet,
    "sd3": sd3,
    "dit-b2": dit_b2,
}


def two_pass(function: Network, primals: Any, tangents: Any, **options: Any) -> Any:
    """The value by the fast kernels; the tangent by ``torch.func.jvp``."""
    return one.two_pass(function, primals, tangents)


def with_graph(function: Network, primals: Any, tangents: Any, **options: Any) -> Any:
    """One ``torch.func.jvp``, whose graph of the tangent is kept until the loss is."""
    return one.with_graph(function, primals, tangents)


def single_pass(function: Network, primals: Any, tangents: Any, **options: Any) -> Any:
    return one.single_pass(function, primals, tangents, **options)


FLOW_MATCHING, QUARTER = "flow matching", "single_pass, a quarter moves"
WAYS: dict[str, Any] = {
    FLOW_MATCHING: None,
    "single_pass": single_pass,
    "two_pass": two_pass,
    "with_graph": with_graph,
    QUARTER: single_pass,
}


def steps(name: str, *, batch: int, device: str, dtype: torch.dtype | None) -> tuple[nn.Module, dict[str, Step]]:
    """A network and, for each way, a function that computes the loss of one step."""
    torch.manual_seed(0)
    module, network, shape = NETWORKS[name]()
    module.to(device)
    with torch.no_grad():
        for parameter in module.parameters():  # those that start at zero would make the derivative zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    data, noise = torch.randn(2, batch, *shape, device=device)
    t = torch.rand(batch, device=device)
    z, v = one.Linear()(data, noise, t)

    def loss(way: str) -> Tensor:
        with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            if way == FLOW_MATCHING:
                pair = one.flow_matching_regression(lambda z, t: network(z, t, t), z, v, t)
            else:
                moving = max(1, batch // 4) if way == QUARTER else None
                s = 0.3 * t if moving is None else torch.cat([0.3 * t[:moving], t[moving:]])
                pair = one.meanflow_regression(network, z, v, t, s, derivative=WAYS[way], moving=moving)
            return one.squared_l2(*pair).mean()

    return module, {way: partial(loss, way) for way in WAYS}


def whole(module: nn.Module, loss: Step) -> Callable[[], None]:
    """Forward and backward pass; nothing is left of it."""

    def step() -> None:
        loss().backward()
        module.zero_grad()

    return step


def gradient(module: nn.Module, loss: Step) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(), [*module.parameters()], materialize_grads=True)])


def peak(call: Callable[[], None]) -> float:
    """MiB of tensors that a call holds at its highest, beyond what was there before."""
    if torch.cuda.is_available():
        return harness.device_memory(call)
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 2**20


def compare(
    name: str, *, ways: Sequence[str], batch: int, rounds: int, device: str, compiled: bool
) -> list[dict[str, Any]]:
    """Time, memory and gradient of some ways on one network."""
    dtype = torch.bfloat16 if device == "cuda" else None
    module, losses = steps(name, batch=batch, device=device, dtype=dtype)
    calls: dict[str, Callable[[], None]] = {}
    for way in (FLOW_MATCHING, *ways):
        try:
            loss = losses[way]
            call = whole(module, torch.compile(loss, fullgraph=True) if compiled else loss)
            call()
            calls[way] = call
        except Exception as error:
            print(f"{name}: {way} is left out: {str(error).strip().splitlines()[0][:150]}", flush=True)
    reference = gradient(module, losses["two_pass"]) if "two_pass" in calls else None
    off = {
        way: float((gradient(module, losses[way]) - reference).abs().max() / reference.abs().max())
        for way in calls
        if reference is not None and way not in (FLOW_MATCHING, QUARTER)
    }
    times = harness.interleaved(calls, rounds=rounds)
    memory = {way: peak(call) for way, call in calls.items()}
    return [
        {
            "network": name,
            "batch": batch,
            "way": way,
            "seconds": times[way]["seconds"],
            "ratio": times[way]["ratio"],
            "MiB": memory[way],
            "memory": memory[way] / memory[FLOW_MATCHING],
            "off": off.get(way),
        }
        for way in calls
    ]


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """A line for each network, a column for each way: times of the time, times of the memory."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["network"], {"network": row["network"], "batch": row["batch"]})
        line[row["way"]] = f"{row['ratio']:.2f} / {row['memory']:.2f}"
    return harness.table(list(lines.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="networks to measure")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS][1:], default=[*WAYS][1:], help="derivatives to measure")
    parser.add_argument("--batch", type=int, help="samples in a step; 16, on a GPU 64")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    parser.add_argument("--compiled", action="store_true", help="compile each step as a whole")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.ones(1).sqrt()
    on_cpu = arguments.device == "cpu"
    names = arguments.networks or ([name for name in NETWORKS if name != "dit-b2"] if on_cpu else ["dit-b2"])
    if arguments.compiled:
        # All ways are one function to torch, compiled anew for each of them.
        torch._dynamo.config.recompile_limit = 64
    options = {
        "ways": arguments.ways,
        "rounds": arguments.rounds,
        "device": arguments.device,
        "compiled": arguments.compiled,
    }
    rows: list[dict[str, Any]] = []
    for name in names:
        print(f"{name} ...", flush=True)
        rows += compare(name, batch=arguments.batch or (16 if on_cpu else 64), **options)
        torch._dynamo.reset()
    kind = ("-compiled" if arguments.compiled else "") + ("" if on_cpu else f"-{arguments.device}")
    print(harness.record(f"derivative{kind}", rows))
    print(summary(rows))


if __name__ == "__main__":
    main()
