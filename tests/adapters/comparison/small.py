"""Small comparisons: tiny networks, few updates, all in this process."""

import sys
from pathlib import Path

import attrs
import pytest
import torch

from onestep_adapters.comparison import Plan, cells, distances
from onestep_adapters.comparison.grid import keep_plan, lane_of
from onestep_adapters.methods import METHODS
from tests.adapters.tiny import small

BUDGET = 4_000


def tiny_presets(patch):
    """The presets of some methods with tiny networks, under the names of the presets."""
    for name in ("flow-matching", "meanflow", "reflow", "drifting", "consistency-distillation"):
        preset = METHODS[name]
        patch.setitem(METHODS, name, preset._replace(points=cheap(small(preset.points))))
    patch.setattr(distances, "POINTS", 100)
    patch.setattr(cells, "DRAWS", 2)


def cheap(options):
    """The options without what takes longer than these trainings: coupled pairs, many steps."""
    small = {"coupling": "independent", "sampling_steps": 5}
    changes = {name: value for name, value in small.items() if hasattr(options, name)}
    if options.teacher is not None:
        changes["teacher"] = cheap(options.teacher)
    training = attrs.evolve(options.training, checkpoint_every=20)
    return attrs.evolve(options, training=training, **changes)


def plan_of(*methods, seeds=1, budget=BUDGET, data=("8gaussians",)):
    """A plan of these methods beside the baseline."""
    return Plan(data, ("flow-matching", *methods), seeds, dict.fromkeys(data, budget), repeats=1, points=100)


def worked(plan, home, *, until=None):
    """Work on the plan in this process; ``until`` stops after so many messages, as a kill does."""
    keep_plan(plan, home)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_TEACHERS", str(home / "teachers"))
        for progress in lane_of(plan, home, 0, lambda told: None):
            found.append(progress)
            if until is not None and len(found) == until:
                break
    return found


PLAN = plan_of("meanflow", "reflow", "drifting", "consistency-distillation")


def killed():
    """Work on the plan in the folder that the command line names, in a process that a test may kill."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        tiny_presets(patch)
        print("ready", flush=True)
        worked(PLAN, Path(sys.argv[1]))
