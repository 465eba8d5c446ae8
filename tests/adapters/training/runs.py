"""A small run for the tests, and what it is in comparable form."""

import hashlib
import json

import torch
from torch import nn

from onestep_adapters.training import cosine_decay, new_state, train, warmed_decay
from onestep_adapters.training.folder import checksum


class Network(nn.Module):
    """A perceptron with a tied weight, a float buffer and an integer buffer."""

    def __init__(self, width=5):
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.tied = nn.Linear(width, 2)
        self.tied.weight = self.last.weight
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, z):
        if self.training:
            self.running.lerp_(z.detach().mean(0), 0.1)
            self.count += 1
        hidden = nn.functional.silu(self.first(z))
        return self.last(hidden) + self.tied(hidden)


def fresh(width=5, seed=3, method="demo", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(width)
    return new_state(method, network, seed=seed, config={"width": width}, **options)


def loss_step(network, generator):
    z = torch.randn(8, 2, generator=generator)
    loss = (network(z) - z.flip(1)).square().mean()
    return loss, {"spread": network(z).std().detach(), "constant": 1.5}


def run(state, steps, loss=loss_step, **options):
    options = {"learning_rate": cosine_decay(1e-2, 20, warmup=3), "ema": warmed_decay(0.99), "clip": 0.5} | options
    return list(train(state, loss, steps=steps, **options))


def everything(state):
    """All that a run is, in comparable form; wall times apart."""
    optimizer = state.optimizer.state_dict()
    companions = {}
    for name, companion in state.companions.items():
        companions[name] = companion.module.state_dict()
        if companion.optimizer is not None:
            companions[f"{name}_optimizer"] = companion.optimizer.state_dict()
    return {
        "network": state.network.state_dict(),
        "ema": state.ema.state_dict(),
        "moments": optimizer["state"],
        "groups": optimizer["param_groups"],
        "generator": state.generator.get_state(),
        "step": state.step,
        "history": [{k: v for k, v in entry.items() if k != "seconds"} for entry in state.history],
        "config": state.config,
        "companions": companions,
        "kept": state.kept,
    }


def assert_equal(first, second):
    torch.testing.assert_close(everything(first), everything(second), rtol=0, atol=0)


def vouch(folder):
    """A pointer that vouches for a description that a test has rewritten."""
    pointer = folder / "latest.json"
    told = json.loads(pointer.read_text())
    data = (folder / told["checkpoint"]).read_bytes()
    told |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    pointer.write_text(json.dumps(told | {"check": checksum(told)}))
