"""The declared cost of every method is what its networks do, counted by rows: forward, backward, tangents."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from onestep_adapters.backbones import MLP
from onestep_adapters.backbones.mlp import _Block
from onestep_adapters.methods import METHODS, Progressive
from onestep_adapters.methods.work import Work, total_work
from onestep_adapters.networks import count_calls
from onestep_adapters.runs import start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import begun, seeded, tiny

pytestmark = pytest.mark.usefixtures("teachers")


def transform():
    """The transform of torch.func under way: "Jvp", "Grad", or nothing."""
    found = torch._C._functorch.peek_interpreter_stack()
    return "" if found is None else found.key().name


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
        elif transform() == "Jvp":
            found["tangent"] += len(inputs[0])

    def leave(module, inputs, output):
        if isinstance(module, _Block) and torch.is_tensor(output):
            while True:
                value = getattr(output, "value", output)
                if value.requires_grad:
                    value.register_hook(lambda gradient: back(len(gradient)))
                if not torch._C._functorch.is_functorch_wrapped_tensor(output):
                    break
                output = torch._C._functorch.get_unwrapped(output)

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


@pytest.mark.parametrize("method", ["reflow", "rectified-meanflow", "dmd", "dmd2", "meanflow"])
def test_pairs_cost_what_the_method_declares(method):
    options = tiny(method)
    run = start_run(method, "8gaussians", options)
    for _ in run.teaching():
        pass
    run.cache = None
    with metered() as found:
        run.prepared()
    assert found["forward"] == options.pairs_work.forward
    assert (found["forward"] > 0) == options.uses_pairs


@pytest.mark.parametrize("method", ["drifting", "truncated-consistency", "dmd", "progressive", "meanflow"])
def test_a_whole_training_costs_the_sum(method):
    options = tiny(method, steps=24)
    run = start_run(method, "8gaussians", options)
    for _ in run.teaching():
        pass
    run.cache = None
    with metered() as found:
        for _ in run.updates():
            pass
    assert Work(**found) == total_work(options, run.data)


@pytest.mark.parametrize("evaluations", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_takes_as_many_evaluations_as_asked(method, evaluations):
    run = start_run(method, "8gaussians", tiny(method))
    network, noise = count_calls(run.state.network), torch.randn(6, 2, generator=seeded())
    if not run.options.few_steps and evaluations != run.options.evaluations:
        with pytest.raises(ConfigError, match="evaluations only, not in"):
            run.options.sample_in(network, noise, None, evaluations)
        return
    samples = run.options.sample_in(network, noise, None, evaluations)
    assert network.calls == evaluations
    assert samples.shape == noise.shape
    if evaluations == run.options.evaluations:
        torch.testing.assert_close(samples, run.options.sample(run.state.network, noise, None), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is(method):
    options = METHODS[method].points
    assert options.objective
    assert options.ode in ("to sample", "to train", "to make pairs", "no")
    assert ("teacher" in options.needs) == (options.teacher is not None)
    assert options.self_contained.startswith(("yes", "partly: ", "no: teacher"))
