"""What DMD, DMD2 and SiD share: the fake score, the parts of an update, pairs, the exact score."""

import attrs
import pytest
import torch
from torch import nn

from onestep_adapters.backbones import Critic
from onestep_adapters.data import open_dataset
from onestep_adapters.methods import DMD, DMD2, FlowMatching, Network, SiD, exact_teacher
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.teacher_pairs import teacher_pairs
from onestep_adapters.runs import start_run
from onestep_core import denoiser_from_velocity
from onestep_core.diagnostics import calibration
from onestep_core.errors import ConfigError
from tests.adapters.methods.matching.games import fake_score, game, seeded, tiny
from tests.adapters.tiny import flat

pytestmark = pytest.mark.usefixtures("teachers")

CLASSES = [DMD, DMD2, SiD]


def test_generator_and_fake_score_start_as_the_teacher():
    run, _, _ = game(tiny())
    teacher = flat(run.teacher.module)
    assert torch.equal(flat(run.state.network), teacher)
    assert torch.equal(flat(run.state.ema), teacher)
    assert torch.equal(flat(fake_score(run).score), teacher)


def test_the_gap_of_equal_scores_is_zero():
    """Before an update generator, fake score and teacher are one network: the score gap and its gradient are zero."""
    run, context, options = game(tiny(adversarial_weight=0.0))
    loss, logs = options.loss(context, run.state.network, seeded())
    assert logs["gap"].item() < 1e-10
    loss.backward()
    assert float(torch.nn.utils.parameters_to_vector([p.grad for p in run.state.network.parameters()]).norm()) < 1e-5


def test_calibration_is_one_for_an_exact_denoiser_and_shows_which_way_another_is_wrong():
    data, generator = open_dataset("unequal"), seeded()
    samples, _ = data.batch(40_000, generator)
    t = torch.rand(len(samples), generator=generator)
    z, _ = PATH(samples, torch.randn(samples.shape, generator=generator), t)
    exact = exact_teacher(data).denoiser(None)(z, t)
    assert float(calibration(exact, samples)) == pytest.approx(1, abs=0.01)
    mean = samples.mean(0)
    assert float(calibration(mean + 2 * (exact - mean), samples)) == pytest.approx(0.5, abs=0.01)
    assert float(calibration(mean.expand_as(samples), samples)) == 1


def test_a_fake_score_is_trained_on_the_generator_s_samples_alone(monkeypatch):
    """Its loss draws no data, and leaves no gradient in the generator."""
    run, context, options = game(tiny(adversarial_weight=0.0))
    monkeypatch.setattr(type(run.data), "batch", lambda *_: pytest.fail("data came into the fake score's update"))
    loss, logs = options.fake_score_loss(context, fake_score(run), seeded())
    loss.backward()
    assert set(logs) == {"matching", "calibration"}
    assert all(p.grad is None for p in run.state.network.parameters())


def test_one_update_has_the_turns_of_the_fake_score_and_logs_them():
    options = tiny(fake_score_updates=3)
    run, context, _ = game(options)
    (turn,) = options.turns(context)
    assert (turn.companion, turn.updates) == ("fake_score", 3)
    (record, *_) = run.updates()
    assert {"fake_score_loss", "fake_score_calibration", "gap"} <= record.logs.keys()


def test_a_kernel_takes_the_place_of_the_fake_network():
    run = start_run("dmd", "8gaussians", tiny("dmd", kernel_score=True))
    assert run.state.companions == {}
    assert [record.step for record in run.updates()] == [1, 2, 3, 4]
    assert not any("fake_score_loss" in entry["logs"] for entry in run.state.history)


@pytest.mark.parametrize(
    ("method", "changes", "passes"),
    [
        ("dmd2", {"pairs_only_share": 0.5}, 11),
        ("dmd2", {"pairs_only_share": 1.0}, 10),
        ("dmd2", {"pairs_only_share": 0.5, "pairs_weight": 0.5}, 12),
        ("dmd", {"pairs_only_share": 0.5, "kernel_score": True, "pairs_weight": 1.0}, 2),
        ("sid", {"pairs_only_share": 0.5, "pairs_weight": 0.0}, 8),
    ],
)
def test_calls_count_the_part_with_pairs_alone(method, changes, passes):
    options = tiny(method, steps=4, fake_score_updates=3, **changes)
    run, _, _ = game(options, method)
    counted = []
    networks = [run.state.network, run.teacher.module]
    if "fake_score" in run.state.companions:
        module = fake_score(run)
        networks.append(module.score if isinstance(module, Critic) else module)
    for network in networks:
        network.register_forward_pre_hook(lambda *_: counted.append(1))
    list(run.updates())
    # The pairs were made before: they are read.
    assert options.calls == passes
    assert abs(len(counted) / 4 - passes) <= 0.5


def test_a_generator_of_another_network_learns_from_pairs_first():
    other = Network("mlp", width=12, depth=1, fourier=4)
    run, context, options = game(tiny(network=other, pairs_only_share=0.5, adversarial_weight=0.01))
    # The fake score starts from the teacher's weights.
    assert torch.equal(flat(fake_score(run).score), flat(run.teacher.module))
    _, logs = options.loss(context, run.state.network, seeded())
    assert set(logs) == {"pairs"}
    records = list(run.updates())
    assert [set(record.logs) >= {"gap", "adversarial"} for record in records] == [False, False, True, True]


def test_the_pairs_term_is_on_the_pairs_of_the_teacher():
    """A generator that makes what the teacher makes of each noise has none."""
    run, context, options = game(tiny("dmd"), "dmd")
    noise, made = teacher_pairs(context, count=30, solver_steps=2, seed=0)
    lookup = nn.Linear(1, 1)

    class Perfect(nn.Module):
        def forward(self, z, t, label=None):
            nearest = torch.cdist(z, noise).argmin(1)
            return (z - made.data[nearest]) / t[:, None] + 0 * lookup.weight.sum()

    _, logs = options.loss(context, Perfect(), seeded())
    assert logs["pairs"].item() < 1e-10
    with torch.no_grad():
        run.state.network.output.bias += 1
    _, logs = options.loss(context, run.state.network, seeded())
    assert logs["pairs"].item() > 0.5


def test_the_teacher_s_score_is_that_of_its_velocity():
    run, _, _ = game(tiny())
    z, t = torch.randn(5, 2), torch.rand(5)
    expected = denoiser_from_velocity(run.teacher.module, path=PATH)(z, t)
    torch.testing.assert_close(run.teacher.denoiser(None)(z, t), expected)
    torch.testing.assert_close(run.teacher.velocity(None)(z, t), run.teacher.module(z, t))


@pytest.mark.parametrize("data", ["checkerboard", "digits"])
def test_an_exact_score_that_is_not_known_is_refused_before_any_training(data, new_teachers):
    with pytest.raises(ConfigError, match="not known"):
        start_run("dmd2", data, tiny(adversarial_weight=0.0, teacher_from="exact"))
    assert not new_teachers.exists()


@pytest.mark.parametrize("method", CLASSES)
@pytest.mark.parametrize(
    "options",
    [
        {"teacher": FlowMatching(coupling="optimal")},
        {"pairs_weight": 0.1, "teacher_from": "exact"},
        {"pairs_only_share": 0.1, "teacher_from": "exact"},
        {"pairs_only_share": 1.1},
        {"min_time": 0.5, "max_time": 0.4},
        {"generator_time": 0.0},
        {"fake_score_updates": 1.5},
        {"fake_score_updates": True},
    ],
)
def test_bad_options_are_refused_with_a_reason(method, options):
    with pytest.raises(ConfigError, match=r".{20}"):
        method(**options)


@pytest.mark.parametrize("method", [DMD, DMD2])
def test_a_number_of_the_normaliser_needs_the_normaliser(method):
    with pytest.raises(ConfigError, match="without normalize_gap"):
        method(normalize_gap=False, gap_epsilon=0.1)


def test_the_identity_s_weight_is_finite():
    with pytest.raises(ConfigError, match="alpha"):
        SiD(alpha=float("nan"))


@pytest.mark.parametrize(
    ("method", "foreign"),
    [
        (SiD, {"normalize_gap", "gap_epsilon", "adversarial_weight", "divergence", "kernel_score", "sampling_steps"}),
        (DMD, {"alpha", "adversarial_weight", "divergence", "sampling_steps"}),
        (DMD2, {"alpha", "kernel_score"}),
    ],
)
def test_a_method_has_no_options_of_another(method, foreign):
    """What had no use in one class of all options does not exist."""
    assert not foreign & {field.name for field in attrs.fields(method)}
