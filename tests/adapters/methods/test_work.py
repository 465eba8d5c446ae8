"""The declared cost of every method is what its networks do, counted by rows: forward, backward, tangents."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from onestep_adapters.backbones import MLP
from onestep_adapters.backbones.mlp import _Block
from onestep_adapters.methods import METHODS, Progressive
from onestep_adapters.methods.work import Work
from tests.adapters.tiny import begun, seeded, tiny

pytestmark = pytest.mark.usefixtures("teachers")


@contextmanager
def metered():
    """Rows through every MLP. A gradient counts when it reaches the first block: it ran through the whole network."""
    found = {"forward": 0, "backward": 0, "tangent": 0}

    def enter(module, inputs):
        if not isinstance(module, MLP):
            return
        found["forward"] += len(inputs[0])
        duals = [x for x in inputs if type(x).__name__ == "Dual"]
        if duals:
            found["tangent"] += max(len(dual.cell.tangent) for dual in duals)
        elif any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in inputs):
            found["tangent"] += len(inputs[0])

    def leave(module, inputs, output):
        if isinstance(module, _Block) and torch.is_tensor(output):
            plain = output
            while torch._C._functorch.is_functorch_wrapped_tensor(plain):
                plain = torch._C._functorch.get_unwrapped(plain)
            plain = getattr(plain, "value", plain)
            if plain.requires_grad:
                plain.register_hook(lambda gradient: back(len(gradient)))

    def back(rows):
        found["backward"] += rows

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def measured(run, context):
    """What one update does, its turns included."""
    with metered() as found:
        for turn in run.options.turns(context):
            for _ in range(turn.updates):
                loss, _ = turn.loss_step(run.state.companions[turn.companion].module, seeded())
                loss.backward()
        loss, _ = run.options.loss(context, run.state.network, seeded())
        loss.backward()
    return Work(**found)


@pytest.mark.parametrize("progress", [0, 1, 21, 99])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_costs_what_the_method_declares(method, progress):
    options = tiny(method, steps=100)
    run, context = begun(method, options)
    run.state.step = progress
    if isinstance(options, Progressive):
        run.state.history = []
    if method.startswith("drifting") and progress:
        run.state.step = progress - 1
        options.loss(context, run.state.network, seeded())
        run.state.step = progress
    assert measured(run, context) == options.work(progress, run.data)
