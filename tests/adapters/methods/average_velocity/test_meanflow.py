"""MeanFlow with guidance in its target, and from a teacher."""

import pytest
import torch

from onestep_adapters.data import Draws
from onestep_adapters.methods import FlowMatching, MeanFlow, Training
from onestep_adapters.methods.average_velocity import meanflow
from onestep_adapters.runs import start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, begun, seeded

pytestmark = pytest.mark.usefixtures("teachers")


@pytest.fixture
def velocities(monkeypatch):
    """The velocities that the regression was given."""
    seen, real = [], meanflow.meanflow_regression

    def record(average_velocity, z, v, t, s, **keywords):
        seen.append((z, v, t))
        return real(average_velocity, z, v, t, s, **keywords)

    monkeypatch.setattr(meanflow, "meanflow_regression", record)
    return seen


def test_meanflow_learns_the_guided_velocity(velocities):
    """By hand: dropped labels and times outside of the interval keep the pair's own."""
    options = MeanFlow(
        Training(steps=1, batch=64),
        NETWORK,
        omega=2.0,
        kappa=0.5,
        label_dropout=0.25,
        guidance_from=0.2,
        guidance_to=0.8,
    )
    run, context = begun("meanflow", options, "digits")
    network = run.state.network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=seeded(1))
    loss, _ = options.loss(context, network, seeded(3))
    loss.backward()
    ((_, seen, _),) = velocities

    generator = seeded(3)
    z, v, t, _, labels = options.drawn(Draws(run.data), generator)
    lost = torch.rand(64, generator=generator) < 0.25
    null = torch.full_like(labels, 10)
    with torch.no_grad():
        of_class, of_none = (network(z, t, t, label=given) for given in (torch.where(lost, null, labels), null))
    guided = (~lost & (t >= 0.2) & (t <= 0.8))[:, None, None, None]
    torch.testing.assert_close(seen, torch.where(guided, 2 * v + 0.5 * of_class - 1.5 * of_none, v))
    assert 0 < guided.sum() < 64
    assert not torch.equal(of_class, of_none)
    assert options.calls == 4


def test_meanflow_distillation_learns_the_teacher_s_velocity(velocities):
    options = MeanFlow(Training(steps=1, batch=16), NETWORK, teacher=FlowMatching(Training(steps=2, batch=16), NETWORK))
    run, context = begun("meanflow-distillation", options)
    options.loss(context, run.state.network, seeded())
    ((z, v, t),) = velocities
    torch.testing.assert_close(v, run.teacher.velocity(None)(z, t))
    assert not v.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"omega": 2.0},
        {"kappa": 0.5},
        {"kappa": 1.0, "label_dropout": 0.1},
        {"omega": 2.0, "label_dropout": 0.1, "teacher": FlowMatching()},
        {"omega": 2.0, "label_dropout": 0.1, "guidance_from": 0.5, "guidance_to": 0.5},
    ],
)
def test_guidance_needs_its_parts(options):
    with pytest.raises(ConfigError, match="guidance needs dropped labels"):
        MeanFlow(**options)


@pytest.mark.parametrize("guided", [{}, {"omega": 2.0, "label_dropout": 0.1}])
def test_times_of_guidance_that_end_before_they_begin_are_refused(guided):
    with pytest.raises(ConfigError, match="expected guidance_from <= guidance_to"):
        MeanFlow(guidance_from=0.7, guidance_to=0.2, **guided)


def test_labels_are_dropped_where_there_are_some():
    with pytest.raises(ConfigError, match="has no classes"):
        start_run("meanflow", "8gaussians", MeanFlow(label_dropout=0.1))
