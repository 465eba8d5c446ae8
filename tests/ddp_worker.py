"""Two processes train MeanFlow for one step; run by tests/test_ddp.py under torchrun."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import onestep_core as one
from tests.toy import Net, batch


def gradients(network, tangent_function, rows):
    _, z, v, t, s = (x[rows] for x in batch(8))
    derivative = partial(one.two_pass, tangent_function=tangent_function)
    one.squared_l2(*one.meanflow_regression(network, z, v, t, s, derivative=derivative)).mean().backward()
    return {name: p.grad.tolist() for name, p in tangent_function.named_parameters()}


def main():
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    module = Net(2)
    ddp = DistributedDataParallel(module)
    result = {"two": gradients(ddp, module, slice(4 * rank, 4 * rank + 4))}
    if rank == 0:
        alone = Net(2)
        result["one"] = gradients(alone, alone, slice(0, 8))
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
