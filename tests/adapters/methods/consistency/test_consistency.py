"""The consistency methods: the trigonometric path, the second stage, the discriminator, refusals."""

import attrs
import pytest
import torch

from onestep_adapters.methods import (
    METHODS,
    ConsistencyTraining,
    ContinuousConsistency,
    FlowMatching,
    Training,
    network_teacher,
)
from onestep_adapters.methods.consistency import continuous_consistency
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.runs import start_run
from onestep_core import continuous_consistency_regression, trigflow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, begun, flat, seeded, small, tiny

pytestmark = pytest.mark.usefixtures("teachers")


def taught(options, steps):
    return small(options, steps=steps, teacher=FlowMatching(Training(steps=20, batch=20), NETWORK))


@pytest.mark.parametrize("distilled", [False, True])
def test_a_student_on_the_trigonometric_path_starts_as_its_teacher(distilled):
    """Where it expects the data, and the velocity there, are the teacher's at the same signal and noise."""
    options = taught(ContinuousConsistency(sigma_data=0.7, distilled=distilled, teacher=FlowMatching()), 10)
    run, _ = begun("continuous-consistency", options)
    data, noise = torch.randn(2, 6, 2, generator=seeded())
    t = torch.tensor([1e-3, 0.2, 0.5, 1.0, 1.5, torch.pi / 2])
    z = options.path(data, noise, t).z
    sigma = 0.7 * t.sin() / (t.cos() + 0.7 * t.sin())
    velocity = run.teacher.module
    linear = PATH(data, noise, sigma).z
    expected = linear - sigma[:, None] * velocity(linear, sigma)
    assert options.scaled_velocity(run.state.network, None)(data, torch.zeros(6)).isfinite().all()
    for network in (run.state.network, run.state.ema):
        field = options.scaled_velocity(network, None)
        torch.testing.assert_close(trigflow(field, sigma_data=0.7)(z, t), expected, atol=1e-5, rtol=1e-4)
        assert options.sample(network, noise, None).isfinite().all()
    assert options.calls == 2 + distilled


@pytest.mark.parametrize("distilled", [False, True])
def test_a_distilled_student_learns_from_the_teacher_s_velocity(distilled, monkeypatch):
    """Of a normal distribution, whose velocities are known on both paths; otherwise it is the pair's."""
    mean, std = 0.4, 0.6
    mixture = GaussianMixture.isotropic([1.0], [[mean, mean]], std)

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z, t, label=None):
            return mixture.velocity(z.double(), t.double(), path=PATH).float()

    seen = []

    def record(field, z, v, t, **numbers):
        seen.append((z, v, t))
        return continuous_consistency_regression(field, z, v, t, **numbers)

    monkeypatch.setattr(continuous_consistency, "continuous_consistency_regression", record)
    monkeypatch.setattr(continuous_consistency, "start_from_teacher", lambda context: None)
    options = ContinuousConsistency(
        Training(batch=50), NETWORK, FlowMatching(network=NETWORK), distilled=distilled, sigma_data=0.7
    )
    run = start_run("continuous-consistency", "8gaussians", options, teacher=network_teacher(Exact()))
    options.loss(run.prepared(), run.state.network, seeded())
    ((z, v, t),) = seen
    expected = mixture.velocity(z.double(), t.double(), path=options.path).float()
    assert torch.allclose(v, expected, atol=1e-4, rtol=1e-4) == distilled


def test_the_second_stage_of_tcm_leaves_the_first_as_it_was():
    run = start_run("truncated-consistency", "8gaussians", tiny("truncated-consistency", steps=6))
    kept = []
    for record in run.updates():
        if record.step == 3:
            average = flat(run.state.ema)
        if record.step > 3:
            kept.append(flat(run.state.companions["stage_teacher"].module))
            assert not torch.equal(flat(run.state.network), kept[-1])
    assert len(kept) == 3
    for early in kept:
        assert torch.equal(early, average)


def test_a_discriminator_trains_on_its_own_loss_only():
    """Before the adversarial term reaches the generator, both learn, and the generator as if there were none."""
    plain, judged = (
        taught(
            attrs.evolve(METHODS["consistency-trajectory"].points, adversarial_weight=weight, adversarial_start=1.0), 4
        )
        for weight in (0.0, 1.0)
    )
    gradients = []
    for options in (plain, judged):
        run, context = begun("consistency-trajectory", options)
        options.loss(context, run.state.network, seeded(1))[0].backward()
        gradients.append([p.grad for p in run.state.network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    discriminator = run.state.companions["discriminator"].module
    assert any(p.grad.abs().max() > 0 for p in discriminator.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConsistencyTraining(initial_intervals=20, final_intervals=10),
        lambda: ConsistencyTraining(sigma_min=1.0, sigma_max=0.5),
        lambda: ContinuousConsistency(distilled=True),
        lambda: ContinuousConsistency(distilled=True, stable_targets=4, teacher=FlowMatching()),
    ],
)
def test_bad_options_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()
