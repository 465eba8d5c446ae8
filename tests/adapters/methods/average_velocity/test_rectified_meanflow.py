"""Rectified MeanFlow: the teacher makes its pairs, and whole jumps are known from them."""

import pytest
import torch

from onestep_adapters.methods import FlowMatching, RectifiedMeanFlow, Training
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.teacher_pairs import teacher_pairs
from onestep_adapters.networks import as_average_velocity
from onestep_adapters.samplers import one_step
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, begun, seeded

pytestmark = pytest.mark.usefixtures("teachers")


def test_the_coupling_is_the_teacher_s():
    for option in ({"stable_targets": 5}, {"coupling": "optimal"}):
        with pytest.raises(ConfigError, match="teacher makes the pairs"):
            RectifiedMeanFlow(**option)


def test_whole_jumps_are_read_off_the_pairs():
    """With no other jumps the loss is the distance of a whole jump from what the teacher made of the noise."""
    training = Training(steps=2, batch=16)
    options = RectifiedMeanFlow(
        training,
        NETWORK,
        interval_share=0.0,
        exact_jump_share=1.0,
        teacher=FlowMatching(training, NETWORK),
        pairs=32,
        solver_steps=4,
    )
    run, context = begun("rectified-meanflow", options)
    noise, (data, _) = teacher_pairs(context, count=32, solver_steps=4, seed=training.seed)
    assert torch.equal(context.prepared.data, data)
    network = run.state.network
    with torch.no_grad():
        network.output.bias += 0.3
    seen = [options.loss(context, network, seeded(seed))[0].item() for seed in range(40)]
    made = one_step(as_average_velocity(network), noise, path=PATH).detach()
    expected = (made - data).square().mean(1)
    assert sum(seen) / len(seen) == pytest.approx(float(expected.mean()), abs=4 * float(expected.std()) / 640**0.5)
    assert float(expected.mean()) > 10 * float(expected.std()) / 640**0.5
