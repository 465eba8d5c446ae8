"""Small comparisons: tiny networks, few updates, all in this process."""

import attrs
import pytest

from onestep_adapters.comparison import Plan
from onestep_adapters.comparison.grid import keep_plan, lane_of
from onestep_adapters.methods import METHODS
from tests.adapters.tiny import small

BUDGET = 12_000


def tiny_presets(patch):
    """The presets of some methods with tiny networks, under the names of the presets."""
    for name in ("flow-matching", "meanflow", "reflow", "drifting", "consistency-distillation"):
        preset = METHODS[name]
        patch.setitem(METHODS, name, preset._replace(points=untrained(small(preset.points))))
    from onestep_adapters.comparison import distances

    patch.setattr(distances, "POINTS", 200)


def untrained(options):
    """The options without coupled pairs, whose making takes longer than these trainings."""
    changes = {"coupling": "independent"} if hasattr(options, "coupling") else {}
    if options.teacher is not None:
        changes["teacher"] = untrained(options.teacher)
    try:
        return attrs.evolve(options, **changes)
    except TypeError:
        return options


def plan_of(*methods, seeds=1, budget=BUDGET, data=("8gaussians",)):
    """A plan of these methods beside the baseline."""
    return Plan(data, ("flow-matching", *methods), seeds, dict.fromkeys(data, budget), repeats=1, points=200)


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
