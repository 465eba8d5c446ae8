"""Small runs of DMD, DMD2 and SiD, shared by their tests."""

import attrs

from onestep_adapters.data import open_dataset
from onestep_adapters.methods import METHODS, Training
from onestep_adapters.runs import start_run
from tests.adapters.tiny import NETWORK, prepared, seeded

__all__ = ["NETWORK", "fake_score", "game", "seeded", "tiny"]


def tiny(method="dmd2", data="8gaussians", steps=4, **changes):
    """Options with small networks, without a first part of pairs alone, evaluated at pure noise."""
    options = METHODS[method].options(open_dataset(data))
    training = Training(steps=steps, batch=16, checkpoint_every=2)
    teacher = attrs.evolve(options.teacher, training=attrs.evolve(training, steps=3), network=NETWORK)
    numbers = {"pairs": 30, "solver_steps": 2, "generator_time": 1.0, "pairs_only_share": 0.0}
    changes = {"training": training, "teacher": teacher, "network": NETWORK} | numbers | changes
    return attrs.evolve(options, **changes)


def game(options, method="dmd2", data="8gaussians", **keywords):
    """A run whose teacher is trained, what its method trains with, and its options."""
    run = start_run(method, data, options, **keywords)
    return run, prepared(run), run.options


def fake_score(run):
    """The companion's module."""
    return run.state.companions["fake_score"].module
