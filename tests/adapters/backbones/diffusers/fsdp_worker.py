"""Gradients of MeanFlow under ``fully_shard`` are those without; run by test_network.py in a process of its own."""

import copy
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from onestep_adapters.backbones.diffusers import DiffusersNetwork
from onestep_adapters.networks import as_average_velocity
from onestep_core import meanflow_regression, squared_l2
from tests.adapters.backbones.diffusers.small import MODELS, awake, condition_of, model_of, states


def gradients(network, name):
    z, v, t, s = states()
    squared_l2(*meanflow_regression(as_average_velocity(network, **condition_of(name)), z, v, t, s)).mean().backward()
    full = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    return {key: g.full_tensor() if hasattr(g, "full_tensor") else g for key, g in full.items()}


def main():
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        for name in ("sd3", "dit", "unet, classes"):
            network = awake(DiffusersNetwork(model_of(name), times=2, time_scale=MODELS[name].time_scale))
            alone = copy.deepcopy(network)
            for block in getattr(network.model, "transformer_blocks", []):
                # DiT uses the time embedding of its first block once more, after that block's call.
                fully_shard(block, mesh=mesh, reshard_after_forward=name != "dit")
            fully_shard(network, mesh=mesh)
            expected, found = gradients(alone, name), gradients(network, name)
            assert expected.keys() == found.keys()
            for key, gradient in expected.items():
                torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
            print("equal")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
