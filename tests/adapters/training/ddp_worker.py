"""Two processes train MeanFlow and a consistency model for one step; run by test_ddp.py under torchrun."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import onestep_core as one
from onestep_adapters.networks import as_average_velocity
from tests.toy import Net, batch


def gradients(network, module, rows):
    _, z, v, t, s = (x[rows] for x in batch(8))
    one.squared_l2(*one.meanflow_regression(network, z, v, t, s)).mean().backward()
    return {name: p.grad.tolist() for name, p in module.named_parameters()}


def consistency_gradients(network, module, rows):
    """The wrapped network on both sides: with a graph, then without."""
    _, z, v, t, s = (x[rows] for x in batch(8))
    z_m = one.euler(lambda z, t: v, z, t, s)
    one.squared_l2(*one.consistency_regression(network, network, z, z_m, t, s)).mean().backward()
    return {name: p.grad.tolist() for name, p in module.named_parameters()}


class Labelled(Net):
    """A network with the times of most diffusion transformers and a condition."""

    def forward(self, z, *times, label):
        return super().forward(z * label[:, None], *(time / 1000 for time in times))


def scaled_gradients(network, module, rows):
    label = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[rows]
    return gradients(as_average_velocity(network, time_scale=1000.0, label=label), module, rows)


def main():
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    module = Net(2)
    ddp = DistributedDataParallel(module)
    rows = slice(4 * rank, 4 * rank + 4)
    result = {"two": gradients(ddp, module, rows)}
    module = Net(1)
    result["consistency two"] = consistency_gradients(DistributedDataParallel(module), module, rows)
    module = Labelled(2)
    result["scaled two"] = scaled_gradients(DistributedDataParallel(module), module, rows)
    if rank == 0:
        alone = Net(2)
        result["one"] = gradients(alone, alone, slice(0, 8))
        alone = Net(1)
        result["consistency one"] = consistency_gradients(alone, alone, slice(0, 8))
        alone = Labelled(2)
        result["scaled one"] = scaled_gradients(alone, alone, slice(0, 8))
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()  # neither process leaves while the other still computes
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors when the interpreter is finalised, and then abort the process
    # (https://github.com/pytorch/pytorch/pull/179291): everything is written, so leave without finalising.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
