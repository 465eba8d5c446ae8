"""Students start from teachers, and a resumed run does not start again."""

import attrs
import pytest
import torch

from onestep_adapters.methods import METHODS, ConsistencyDistillation, FlowMatching, Network, Training
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.networks import as_average_velocity
from onestep_adapters.runs import start_run
from onestep_adapters.samplers import sample_ode
from onestep_core import euler
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, begun, seeded, small, trained_to

pytestmark = pytest.mark.usefixtures("teachers")

STUDENTS = [
    "progressive",
    "consistency-distillation",
    "easy-consistency",
    "truncated-consistency",
    "consistency-trajectory",
    "consistency-trajectory-adversarial",
    "meanflow-distillation",
    "rectified-meanflow",
]
TEACHER = FlowMatching(Training(steps=20, batch=20), NETWORK)


def taught(options, steps=10):
    """``options`` with a teacher that has learned a little."""
    return small(options, steps=steps, teacher=TEACHER)


@pytest.mark.parametrize("method", STUDENTS)
def test_a_student_starts_as_one_euler_step_of_its_teacher(method):
    """Its first samples, of the network and of its average, are those of the teacher's velocity at pure noise."""
    run, _ = begun(method, taught(METHODS[method].points))
    noise, velocity = torch.randn(6, 2, generator=seeded()), run.teacher.module
    expected = sample_ode(velocity, noise, path=PATH, steps=1, method=euler)
    assert (expected - noise).abs().min() > 1e-4
    for network in (run.state.network, run.state.ema):
        torch.testing.assert_close(run.options.sample(network, noise, None), expected)


def test_a_student_with_a_second_time_starts_as_the_constant_average_velocity():
    run, _ = begun("consistency-trajectory", taught(METHODS["consistency-trajectory"].points))
    z, (t, s, other) = torch.randn(6, 2), torch.rand(3, 6)
    average_velocity = as_average_velocity(run.state.network)
    torch.testing.assert_close(average_velocity(z, t, s), run.teacher.module(z, t))
    torch.testing.assert_close(average_velocity(z, t, s), average_velocity(z, t, other))


@pytest.mark.parametrize("method", [*STUDENTS, "dmd2", "continuous-consistency"])
def test_a_resumed_run_does_not_start_from_its_teacher_again(method):
    run = start_run(method, "8gaussians", taught(METHODS[method].points))
    trained_to(run, 3)
    modules = [run.state.network, run.state.ema, *(companion.module for companion in run.state.companions.values())]
    before = [p.clone() for module in modules for p in module.parameters()]
    run.prepared()
    after = [p for module in modules for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_teacher_of_another_network_is_refused_before_it_is_trained(new_teachers):
    options = taught(ConsistencyDistillation())
    other = attrs.evolve(options, network=Network("mlp", width=NETWORK.width + 8, depth=1))
    with pytest.raises(ConfigError, match=r"give both the same \(--width 8, or --teacher\.network\.width 16"):
        start_run("consistency-distillation", "8gaussians", other)
    assert not new_teachers.exists()
