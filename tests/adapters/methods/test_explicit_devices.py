"""Every method makes its tensors on the device of the run; see ``tests.adapters.devices``."""

import attrs
import pytest

from onestep_adapters.data import couplings
from onestep_adapters.methods import METHODS, Network, network_teacher
from onestep_adapters.methods.drifting.extras import Guidance, Queue
from onestep_adapters.methods.drifting.fields import FIELDS
from onestep_adapters.methods.matching.dmd2 import DIVERGENCES
from onestep_adapters.runs import start_run
from tests.adapters.datasets import images
from tests.adapters.devices import ExplicitDevices
from tests.adapters.tiny import drawn, seeded, tiny

pytestmark = pytest.mark.usefixtures("teachers")

NO_PAIRS = {"pairs_only_share": 0.0, "pairs_weight": 0.0}
OTHER_OPTIONS = [
    ("flow-matching", "digits", {"coupling": "optimal"}),
    ("flow-matching", "digits", {"network": Network("conv", width=8, depth=1)}),
    ("flow-matching", "digits", {"network": Network("dit", width=24, depth=1)}),
    ("meanflow", "digits", {"omega": 2.0, "kappa": 0.5, "label_dropout": 0.2}),
    ("meanflow", "digits", {"coupling": "independent", "stable_targets": 10}),
    ("meanflow", "unequal", {"full_jump_share": 0.2, "data_end_share": 0.2}),
    ("shortcut", "two-moons", {"favour_long_jumps": False}),
    ("terminal-velocity", "swiss-roll", {"derivative_gradient": False}),
    ("consistency-training", "checkerboard", {"target": "online", "distance": "squared"}),
    ("easy-consistency", "8gaussians", {"distance": "pseudo-huber", "coupling": "independent", "stable_targets": 5}),
    ("truncated-consistency", "8gaussians", {"first_stage_share": 0.0}),
    ("continuous-consistency", "8gaussians", {"distilled": False, "normalize_tangent": False}),
    ("progressive", "8gaussians", {"first_student_steps": 2}),
    ("moment-matching", "digits", {"coupling": "independent", "stable_targets": 5}),
    ("dmd", "digits", {"kernel_score": True}),
    ("dmd2", "8gaussians", NO_PAIRS),
    ("dmd2", "digits", {**NO_PAIRS, "sampling_steps": 3}),
    ("dmd2", "unequal", {**NO_PAIRS, "teacher_from": "exact"}),
    ("reflow", "unequal", {"teacher_from": "exact"}),
    *(("f-distill", "8gaussians", {**NO_PAIRS, "divergence": name}) for name in DIVERGENCES),
    *(("drifting", "8gaussians", {"field": name}) for name in FIELDS),
    ("drifting", "digits", {"encoder": "random", "relative_temperatures": True}),
    ("drifting", "digits", {"queue": Queue(10, 30), "guidance": Guidance(max_alpha=2.0, unconditional_samples=4)}),
    ("drifting", "digits", {"guidance": Guidance(max_alpha=2.0, unconditional_samples=4)}),
    ("drifting", "unequal", {"final_temperatures": None}),
]


def watched(run):
    """What was found while a run is prepared, trained and sampled. Its precomputed pairs are made again."""
    for _ in run.teaching():
        pass
    couplings._MADE.clear()
    with ExplicitDevices() as mode:
        run.prepared()
        list(run.updates())
        drawn(run)
    assert mode.calls
    return mode.found


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_of_a_training_has_an_explicit_device(method, data, monkeypatch):
    monkeypatch.setattr(couplings, "_IMAGES", (100, 20))
    monkeypatch.setattr(couplings, "_POINTS", (100, 50))
    options = tiny(method, data, steps=2)
    if "pairs" in attrs.fields_dict(type(options)):
        # Another number of pairs than in other tests: they are made here.
        options = attrs.evolve(options, pairs=21)
    assert watched(start_run(method, data, options)) == {}


@pytest.mark.parametrize(("method", "data", "changes"), OTHER_OPTIONS)
def test_and_so_it_is_with_other_options(method, data, changes):
    assert watched(start_run(method, data, tiny(method, data, steps=2, **changes))) == {}


def test_and_so_it_is_with_data_and_a_teacher_of_your_own():
    data = images()
    options = tiny("rectified-meanflow", data, steps=2)
    teacher = network_teacher(options.teacher.network.build(data, 1, seeded()))
    assert watched(start_run("rectified-meanflow", data, options, teacher=teacher)) == {}
