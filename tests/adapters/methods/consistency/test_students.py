"""Recipes of the consistency family: students start from teachers, stages follow each other, options are checked."""

import attrs
import pytest
import torch
from onestep_adapters.recipes.consistency_distillation import ConsistencyDistillation
from onestep_adapters.recipes.consistency_training import ConsistencyTraining
from onestep_adapters.recipes.continuous_consistency import ContinuousConsistency
from onestep_adapters.recipes.draws import Draw, draw, states_at, velocity_at
from onestep_adapters.recipes.moment_matching import MomentMatching
from onestep_adapters.recipes.options import Network, Training
from onestep_adapters.recipes.problems import Batch
from onestep_adapters.recipes.progressive import Progressive
from onestep_adapters.recipes.runs import start_run
from onestep_adapters.recipes.straight import PATH

from onestep_adapters.networks import as_average_velocity
from onestep_adapters.recipes import (
    METHODS,
    FlowMatching,
    Setting,
    continuous_consistency,
    moment_matching,
    open_problem,
)
from onestep_adapters.samplers import sample_ode
from onestep_core import continuous_consistency_regression, euler, trigflow
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError

TINY = Network("mlp", width=8, depth=1)
STUDENTS = [
    "progressive",
    "consistency-distillation",
    "easy-consistency",
    "consistency-trajectory",
    "consistency-trajectory-adversarial",
]


@pytest.fixture(autouse=True, scope="module")
def teachers(tmp_path_factory):
    """Tiny teachers, trained once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_TEACHERS", str(tmp_path_factory.mktemp("teachers")))
        yield


def tiny(recipe, steps):
    teacher = FlowMatching(Training(steps=20, batch=20), TINY)
    training = attrs.evolve(recipe.training, steps=steps, batch=20)
    return attrs.evolve(recipe, training=training, network=TINY, teacher=teacher)


@pytest.fixture
def started(request):
    """A run with its loss made and no update yet."""
    run = start_run(request.param, "8gaussians", tiny(METHODS[request.param].toys, 10))
    for _ in run.teaching():
        pass
    run.recipe.loss_step(Setting(run.problem, run.state, run.teacher.state.ema))
    return run


@pytest.mark.parametrize("started", STUDENTS, indirect=True)
def test_a_student_starts_as_one_euler_step_of_its_teacher(started):
    """Its first samples, of the network and of its average, are those of the teacher's velocity at pure noise."""
    run, noise = started, torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    velocity = run.teacher.state.ema
    expected = sample_ode(velocity, noise, path=PATH, steps=1, method=euler)
    assert (expected - noise).abs().min() > 1e-4
    for network in (run.state.network, run.state.ema):
        torch.testing.assert_close(run.recipe.generate(network, noise, None), expected)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_student_on_the_trigonometric_path_starts_as_its_teacher(distilled):
    """Where it expects the data, and the velocity there, are the teacher's at the same signal and noise."""
    recipe = tiny(ContinuousConsistency(sigma_data=0.7, distilled=distilled, teacher=FlowMatching()), 10)
    run = start_run("continuous-consistency", "8gaussians", recipe)
    for _ in run.teaching():
        pass
    run.recipe.loss_step(Setting(run.problem, run.state, run.teacher.state.ema))
    data, noise = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1e-3, 0.2, 0.5, 1.0, 1.5, torch.pi / 2])
    z = recipe.path(data, noise, t).z
    sigma = 0.7 * t.sin() / (t.cos() + 0.7 * t.sin())
    velocity = run.teacher.state.ema
    flat = PATH(data, noise, sigma).z
    expected = flat - sigma[:, None] * velocity(flat, sigma)
    assert recipe.field(run.state.network, None)(data, torch.zeros(6)).isfinite().all()
    for network in (run.state.network, run.state.ema):
        field = recipe.field(network, None)
        torch.testing.assert_close(trigflow(field, sigma_data=0.7)(z, t), expected, atol=1e-5, rtol=1e-4)
        assert recipe.generate(network, noise, None).isfinite().all()
    assert recipe.calls == 2 + distilled


@pytest.mark.parametrize("distilled", [False, True])
def test_what_a_distilled_student_learns_from_is_the_teacher_s_velocity(distilled, monkeypatch):
    """Of a normal law, whose velocities are known on both paths; otherwise it is the pair's."""
    mean, std = 0.4, 0.6
    mixture = GaussianMixture.isotropic([1.0], [[mean, mean]], std)

    class Exact(torch.nn.Module):
        def forward(self, z, t, label=None):
            return mixture.velocity(z.double(), t.double(), path=PATH).float()

    seen = []

    def record(field, z, v, t, **numbers):
        seen.append((z, v, t))
        return continuous_consistency_regression(field, z, v, t, **numbers)

    monkeypatch.setattr(continuous_consistency, "continuous_consistency_regression", record)
    recipe = ContinuousConsistency(
        Training(batch=50), TINY, FlowMatching(network=TINY), distilled=distilled, sigma_data=0.7
    )
    run = start_run("continuous-consistency", "8gaussians", recipe)
    monkeypatch.setattr(continuous_consistency, "start_from_teacher", lambda setting: None)
    loss = recipe.loss_step(Setting(run.problem, run.state, Exact()))
    loss(run.state.network, torch.Generator().manual_seed(0))
    ((z, v, t),) = seen
    expected = mixture.velocity(z.double(), t.double(), path=recipe.path).float()
    assert torch.allclose(v, expected, atol=1e-4, rtol=1e-4) == distilled


def test_a_group_of_particles_has_one_class(monkeypatch):
    drawn = []

    def record(*arguments, **keywords):
        drawn.append(draw(*arguments, **keywords))
        return drawn[-1]

    monkeypatch.setattr(moment_matching, "draw", record)
    recipe = MomentMatching(Training(batch=64), Network("conv", width=4, depth=1), particles=8)
    run = start_run("moment-matching", "digits", recipe)
    recipe.loss_step(Setting(run.problem, run.state))(run.state.network, torch.Generator().manual_seed(0))
    labels = drawn[0].labels.reshape(-1, 8)
    assert (labels == labels[:, :1]).all()
    assert len(labels.unique()) > 3


def test_a_student_with_a_second_time_starts_as_the_constant_average_velocity():
    run = start_run("consistency-trajectory", "8gaussians", tiny(METHODS["consistency-trajectory"].toys, 10))
    for _ in run.teaching():
        pass
    run.recipe.loss_step(Setting(run.problem, run.state, run.teacher.state.ema))
    z, (t, s, other) = torch.randn(6, 2), torch.rand(3, 6)
    average_velocity = as_average_velocity(run.state.network)
    torch.testing.assert_close(average_velocity(z, t, s), run.teacher.state.ema(z, t))
    torch.testing.assert_close(average_velocity(z, t, s), average_velocity(z, t, other))


def test_a_run_that_goes_on_does_not_start_from_its_teacher_again():
    run = start_run("consistency-distillation", "8gaussians", tiny(ConsistencyDistillation(), 10))
    for record in run.updates():
        if record.step == 3:
            break
    before = [p.clone() for p in run.state.network.parameters()]
    run.recipe.loss_step(Setting(run.problem, run.state, run.teacher.state.ema))
    assert all(torch.equal(a, b) for a, b in zip(before, run.state.network.parameters(), strict=True))


def test_the_stages_halve_the_steps_and_leave_their_losses_and_scores():
    """Steps fall by powers of two to one; each stage's teacher is the average at the end of the one before."""
    run = start_run("progressive", "8gaussians", tiny(Progressive(first_steps=8), 24))
    seen, teacher = {}, None
    for record in run.updates():
        steps = int(record.logs["steps"])
        now = [p.clone() for p in run.state.network.teacher.parameters()]
        if steps not in seen and teacher is not None:
            assert all(torch.equal(a, b) for a, b in zip(now, teacher, strict=True))
        seen.setdefault(steps, []).append(record)
        teacher = [p.clone() for p in run.state.ema.student.parameters()]
    assert list(seen) == [8, 4, 2, 1]
    assert [len(records) for records in seen.values()] == [4, 4, 8, 8]
    for records in seen.values():
        *before, last = records
        assert not any("stage_score" in record.logs for record in before)
        mean = sum(record.loss for record in records) / len(records)
        assert last.logs["stage_loss"] == pytest.approx(mean, rel=1e-5)
        assert last.logs["stage_score"] > -0.01
    kept = [entry["logs"] for entry in run.state.history if "stage_score" in entry["logs"]]
    assert [int(logs["steps"]) for logs in kept] == [8, 4, 2, 1]


def test_the_stages_of_a_student_differ_from_its_teacher():
    run = start_run("progressive", "8gaussians", tiny(Progressive(first_steps=2), 12))
    list(run.updates())
    pairs = zip(run.state.network.student.parameters(), run.state.network.teacher.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    for a, b in zip(run.state.network.teacher.parameters(), run.state.ema.teacher.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_discriminator_trains_on_its_own_loss_only():
    """Before the adversarial term reaches the generator, both learn, and the generator as if there were none."""
    plain, judged = (
        tiny(attrs.evolve(METHODS["consistency-trajectory"].toys, adversarial=factor, adversarial_start=1.0), 4)
        for factor in (0.0, 1.0)
    )
    gradients = []
    for recipe in (plain, judged):
        run = start_run("consistency-trajectory", "8gaussians", recipe)
        for _ in run.teaching():
            pass
        loss = recipe.loss_step(Setting(run.problem, run.state, run.teacher.state.ema))
        loss(run.state.network, torch.Generator().manual_seed(1))[0].backward()
        network = getattr(run.state.network, "generator", run.state.network)
        gradients.append([p.grad for p in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert any(p.grad.abs().max() > 0 for p in run.state.network.discriminator.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Progressive(first_steps=6),
        lambda: Progressive(first_steps=1),
        lambda: ConsistencyTraining(first=20, last=10),
        lambda: ConsistencyTraining(sigma_min=1.0, sigma_max=0.5),
        lambda: MomentMatching(Training(batch=30), particles=4),
        lambda: MomentMatching(earliest=0.5),
        lambda: ContinuousConsistency(distilled=True),
        lambda: ContinuousConsistency(distilled=True, references=4, teacher=FlowMatching()),
        lambda: ConsistencyDistillation().loss_step(
            Setting(open_problem("8gaussians"), start_run("meanflow", "8gaussians").state)
        ),
        lambda: list(start_run("consistency-distillation", "8gaussians", tiny_of_two_sizes()).updates()),
    ],
)
def test_bad_options_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


def tiny_of_two_sizes():
    return attrs.evolve(tiny(ConsistencyDistillation(), 3), network=Network("mlp", width=16, depth=1))


def test_stable_targets_are_the_expected_ones_among_all_data():
    """Of two data on the line with noise in between, closed form: the posterior mean is ``tanh(alpha z / sigma^2)``."""
    own, further = Batch(torch.tensor([[1.0]]), None), Batch(torch.tensor([[-1.0]]), None)
    t, m, noise = torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([[-0.4]])
    drawn = Draw(own.data, noise, None, further)
    z, v = velocity_at(drawn, t, path=PATH)
    mean = torch.tanh(0.5 * z / 0.25)
    torch.testing.assert_close(v, (z - mean) / 0.5)
    first, second = states_at(drawn, t, m, path=PATH)
    torch.testing.assert_close(first, z)
    torch.testing.assert_close(second, z - 0.25 * v)


def test_stable_targets_stay_in_their_class():
    """A class of one: its own data is what is expected, whatever lies near."""
    drawn = Draw(torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0, 1]), Batch(torch.zeros(1, 1), torch.tensor([1])))
    plain = drawn._replace(further=None)
    t = torch.full((2,), 0.9)
    (_, v), (_, pairs) = (velocity_at(x, t, path=PATH) for x in (drawn, plain))
    torch.testing.assert_close(v[0], pairs[0])
    assert (v[1] - pairs[1]).abs() > 0.1
