"""Every method makes its tensors on the device of the run; see ``tests.adapters.devices``."""

import pytest

from onestep_adapters.methods import METHODS
from onestep_adapters.runs import start_run
from tests.adapters.devices import ExplicitDevices
from tests.adapters.tiny import drawn, tiny

pytestmark = pytest.mark.usefixtures("teachers")


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_of_a_training_has_an_explicit_device(method, data):
    run = start_run(method, data, tiny(method, data, steps=2))
    for _ in run.teaching():
        pass
    with ExplicitDevices() as mode:
        run.prepared()
        list(run.updates())
        drawn(run)
    assert not mode.found
