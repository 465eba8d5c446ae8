"""Small runs of every method, shared by the tests of methods and runs."""

from collections import Counter
from contextlib import contextmanager

import attrs
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from onestep_adapters.backbones import MLP
from onestep_adapters.data import open_dataset
from onestep_adapters.methods import METHODS, Drifting, MomentMatching, Network, Progressive
from onestep_adapters.runs import start_run

NETWORK = Network("mlp", width=8, depth=1)


def seeded(seed=0):
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def tiny(method, data="8gaussians", steps=3, **changes):
    """Options of a preset with a small network, few updates and, where it has one, a small teacher."""
    data = open_dataset(data) if isinstance(data, str) else data
    options = METHODS[method].options(data)
    return small(options, steps=steps, **changes)


def small(options, steps=3, batch=20, **changes):
    """``options`` with a small network, few updates and, where they have one, a small teacher."""
    names = {field.name for field in attrs.fields(type(options))}
    training = attrs.evolve(options.training, steps=steps, batch=batch, checkpoint_every=2)
    numbers = {"training": training, "network": NETWORK}
    if isinstance(options, Drifting):
        numbers["positives"] = 8
    if isinstance(options, MomentMatching):
        numbers["group_size"] = 4
    if isinstance(options, Progressive):
        numbers["first_student_steps"] = 2
    if options.teacher is not None:
        taught = attrs.evolve(options.teacher.training, steps=2, batch=20)
        numbers["teacher"] = attrs.evolve(options.teacher, training=taught, network=NETWORK)
    if {"pairs", "solver_steps"} <= names:
        numbers |= {"pairs": 40, "solver_steps": 1}
    return attrs.evolve(options, **numbers | changes)


def drawn(run, count=7, seed=1):
    """Samples and classes of a run."""
    return run.samples(count, generator=seeded(seed))


def trained_to(run, step, folder=None):
    """The run, stopped after ``step`` updates."""
    for record in run.updates(folder):
        if record.step == step:
            break
    return run


def prepared(run):
    """What the method trains with: the teacher is finished, ``prepare`` has run."""
    for _ in run.teaching():
        pass
    return run.prepared()


def begun(method, options, data="8gaussians", **keywords):
    """A run before its first update, and what its method trains with."""
    run = start_run(method, data, options, **keywords)
    return run, prepared(run)


def flat(module):
    """A copy of all parameters, in one row."""
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def assert_same_weights(one, other):
    """Network, average and companions of two states are equal bit for bit."""
    assert one.companions.keys() == other.companions.keys()
    pairs = [(one.network, other.network), (one.ema, other.ema)]
    pairs += [(companion.module, other.companions[name].module) for name, companion in one.companions.items()]
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def logged(state):
    """What a training has logged, without its times."""
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in state.history]


@contextmanager
def counted():
    """Evaluations of every backbone: the network, its average, a teacher, a discriminator; a tangent counts as one."""
    found = Counter()

    def count(module, inputs):
        tangent = any(type(x).__name__ == "Dual" for x in inputs)
        found["passes"] += (1 + tangent) * isinstance(module, MLP)

    handle = register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()
