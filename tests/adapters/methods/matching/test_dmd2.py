"""DMD, DMD2, SiD and f-distill as recipes: the two mistakes that others made, teachers that do not fit, pairs."""

import shutil
from itertools import pairwise

import attrs
import pytest
import torch
from onestep_adapters.recipes.distribution_matching import DIVERGENCES
from onestep_adapters.recipes.options import Network, Training
from onestep_adapters.recipes.pairs import teacher_pairs
from onestep_adapters.recipes.runs import open_run, resume_or_start, start_run
from onestep_adapters.recipes.straight import PATH
from onestep_adapters.recipes.teachers import made_folder, oracle_denoiser
from torch import nn

from onestep_adapters.backbones import Critic
from onestep_adapters.recipes import (
    METHODS,
    DistributionMatching,
    FlowMatching,
    Reflow,
    Setting,
    distribution_matching,
    open_problem,
)
from onestep_adapters.samplers import backward_simulation, consistency_multistep
from onestep_adapters.training import CheckpointError, save_checkpoint
from onestep_core import denoiser_from_velocity, f_divergence_scale
from onestep_core.diagnostics import calibration
from onestep_core.errors import ConfigError
from onestep_core.flow import renoise_clean

TINY = Network("mlp", width=8, depth=1)
MATCHING = ["dmd", "dmd2", "sid", "f-distill"]


@pytest.fixture(autouse=True)
def teachers(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))


def tiny(method="dmd2", data="8gaussians", steps=4, **changes):
    recipe = METHODS[method].options(data)
    training = Training(steps=steps, batch=16, checkpoint_every=2)
    teacher = attrs.evolve(recipe.teacher, training=attrs.evolve(training, steps=3), network=TINY)
    numbers = {"pairs": 30, "solver_steps": 2, "entry": 1.0, "preparation": 0.0}
    changes = {"training": training, "teacher": teacher, "network": TINY} | numbers | changes
    return attrs.evolve(recipe, **changes)


def begun(recipe, data="8gaussians"):
    """A run whose teacher is trained, its setting, and its two losses."""
    run = start_run("dmd2", data, recipe)
    for _ in run.teaching():
        pass
    setting = Setting(run.problem, run.state, None if run.teacher is None else run.teacher.state.ema)
    return run, setting, recipe.loss_step(setting), recipe.opponent_step(setting)


def parameters_of(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).clone()


# Two mistakes that users found in re-implementations.


def test_the_head_reads_the_fake_score_and_not_the_teacher():
    """Its logits change with the fake score, not with the teacher; its loss trains the features that it reads."""
    run, setting, generator_loss, opponent_loss = begun(tiny(adversarial=0.5))
    critic = run.state.opponent.network
    assert isinstance(critic, Critic)
    assert all(mine is not theirs for mine in critic.parameters() for theirs in setting.teacher.parameters())
    nn.init.normal_(critic.outer.weight, generator=torch.Generator().manual_seed(0))

    def adversarial():
        return generator_loss(run.state.network, torch.Generator().manual_seed(1))[1]["adversarial"].item()

    def discriminator():
        return opponent_loss(critic, torch.Generator().manual_seed(2))[1]["discriminator"]

    before = adversarial(), discriminator().item()
    with torch.no_grad():
        for p in setting.teacher.parameters():
            p.add_(0.5)
    assert (adversarial(), discriminator().item()) == before
    discriminator().backward()
    assert critic.score.input.weight.grad.abs().max() > 0
    with torch.no_grad():
        critic.score.input.weight.add_(0.5)
    after = adversarial(), discriminator().item()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_generators_update_leaves_nothing_in_the_fake_score():
    run, _, generator_loss, _ = begun(tiny(adversarial=0.5))
    nn.init.normal_(run.state.opponent.network.outer.weight, generator=torch.Generator().manual_seed(0))
    generator_loss(run.state.network, torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is None for p in run.state.opponent.network.parameters())
    assert run.state.network.output.weight.grad.abs().max() > 0


def test_a_student_of_several_steps_is_trained_on_its_own_samples(monkeypatch):
    """Its later steps get what its earlier ones left, and no data with noise: the data are never asked for."""
    run, _, generator_loss, _ = begun(tiny(adversarial=0.0, generator_steps=3))
    seen = []
    monkeypatch.setattr(type(run.problem), "batch", lambda *_: pytest.fail("data came into the generator's update"))
    with torch.no_grad():
        for p in run.state.network.parameters():
            p.zero_()
        run.state.network.output.bias.fill_(7.0)  # Velocity 7: a sample is its state less 7 times its time.
    handle = run.state.network.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[1][0])))
    grid = [1.0, 2 / 3, 1 / 3]
    for seed in range(12):
        seen.clear()
        generator_loss(run.state.network, torch.Generator().manual_seed(seed))
        times = [float(t) for _, t in seen]
        assert times == pytest.approx(grid[: len(times)])
        for (before, t), (after, s) in pairwise(seen):
            noise = (after - (1 - s) * (before - 7 * t)) / s
            assert float(noise.mean().abs()) < 1.2, "a state that its own sampler does not make"
            assert float((after.mean() - before.mean()).abs()) > 0.5
        assert all(not state.requires_grad for state, _ in seen)
    handle.remove()


def test_backward_simulation_is_the_samplers_own_beginning():
    """The state where a sampler of three steps is asked for the third time, and no graph."""
    student = nn.Linear(2, 2)
    z, noise, times = torch.randn(5, 2), torch.randn(3, 5, 2), [1.0, 0.7, 0.3]
    asked = []

    def consistency(z, t):
        asked.append((z, t))
        return student(z)

    consistency_multistep(consistency, z, [*times, 0.0], path=PATH, noise=noise, renoise=renoise_clean)
    simulated = backward_simulation(consistency, z, times, path=PATH, noise=noise, renoise=renoise_clean)
    torch.testing.assert_close(simulated, asked[2][0])
    assert not simulated.requires_grad
    assert torch.equal(backward_simulation(consistency, z, [1.0], path=PATH, noise=None), z)


def test_a_sampler_of_several_steps_calls_its_network_as_often():
    recipe = tiny(adversarial=0.0, generator_steps=3)
    run = start_run("dmd2", "8gaussians", recipe)
    calls = []
    handle = run.state.network.register_forward_pre_hook(lambda *_: calls.append(1))
    noise = torch.randn(6, 2)
    first = recipe.generate(run.state.network, noise, None)
    assert len(calls) == recipe.evaluations == 3
    assert torch.equal(recipe.generate(run.state.network, noise, None), first)
    handle.remove()


# The parts.


def test_generator_and_fake_score_start_as_the_teacher():
    run, setting, *_ = begun(tiny())
    teacher = parameters_of(setting.teacher)
    assert torch.equal(parameters_of(run.state.network), teacher)
    assert torch.equal(parameters_of(run.state.ema), teacher)
    assert torch.equal(parameters_of(run.state.opponent.network.score), teacher)


def test_the_gap_of_equal_scores_is_zero():
    """Before an update generator, fake score and teacher are one network: the score gap is zero and its gradient is."""
    run, _, generator_loss, _ = begun(tiny(adversarial=0.0))
    loss, logs = generator_loss(run.state.network, torch.Generator().manual_seed(0))
    assert logs["gap"].item() < 1e-10
    loss.backward()
    assert float(torch.nn.utils.parameters_to_vector([p.grad for p in run.state.network.parameters()]).norm()) < 1e-5


@pytest.mark.parametrize("method", MATCHING)
@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_a_run_goes_on_to_the_bit(method, data, tmp_path):
    recipe = tiny(method, data)
    whole = start_run(method, data, recipe)
    list(whole.updates())
    for record in resume_or_start(tmp_path / "run", method, data, recipe, resume=False).updates(tmp_path / "run"):
        if record.step == 3:
            break
    second = resume_or_start(tmp_path / "run", method, data, recipe, resume=True)
    assert second.state.step == 2
    list(second.updates(tmp_path / "run"))
    for mine, theirs in ((second.state, whole.state), (second.state.opponent, whole.state.opponent)):
        assert torch.equal(parameters_of(mine.network), parameters_of(theirs.network))
    assert open_run(tmp_path / "run").finished


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_scales_the_gap_by_what_the_head_says(divergence):
    recipe = tiny("f-distill", divergence=divergence)
    logits, t = torch.tensor([[-2.0], [0.5], [2.0]]), torch.full((3,), 0.5)
    scale = recipe._scale(logits, t)
    if divergence == "reverse-kl":
        assert scale is None
        return
    plain = f_divergence_scale(logits, t, divergence=DIVERGENCES[divergence])
    assert torch.equal(scale.argsort(), plain.argsort())
    torch.testing.assert_close(scale.mean(), torch.ones(()), atol=1e-4, rtol=0)
    rising = {"forward-kl", "jensen-shannon", "squared-hellinger", "jeffreys"}
    assert (scale[2] > scale[0]) == (divergence in rising)


def test_calibration_is_one_for_an_exact_denoiser_and_shows_which_way_another_is_wrong():
    problem, generator = open_problem("unequal"), torch.Generator().manual_seed(0)
    data, _ = problem.batch(40_000, generator)
    t = torch.rand(len(data), generator=generator)
    z, _ = PATH(data, torch.randn(data.shape, generator=generator), t)
    exact = oracle_denoiser(problem)(z, t)
    assert float(calibration(exact, data)) == pytest.approx(1, abs=0.01)
    mean = data.mean(0)
    assert float(calibration(mean + 2 * (exact - mean), data)) == pytest.approx(0.5, abs=0.01)
    assert float(calibration(mean.expand_as(data), data)) == 1


def test_a_fake_score_is_trained_on_the_generators_samples_alone():
    """Its loss asks for no data, and leaves no gradient in the generator."""
    run, _, _, opponent_loss = begun(tiny(adversarial=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.problem), "batch", lambda *_: pytest.fail("data came into the fake score's update"))
        loss, logs = opponent_loss(run.state.opponent.network, torch.Generator().manual_seed(0))
    loss.backward()
    assert set(logs) == {"matching", "calibration"}
    assert all(p.grad is None for p in run.state.network.parameters())


def test_a_kernel_takes_the_place_of_the_fake_network():
    run = start_run("dmd2", "8gaussians", tiny(adversarial=0.0, fake="kernel"))
    assert run.state.opponent is None
    assert [record.step for record in run.updates()] == [1, 2, 3, 4]
    assert not any("opponent_loss" in entry["logs"] for entry in run.state.history)


# Teachers.


def test_the_oracle_is_a_teacher_and_nothing_is_trained_before(tmp_path):
    run = start_run("dmd2", "unequal", tiny(data="unequal", adversarial=0.0, teacher_from="oracle"))
    assert run.teacher is None
    list(run.updates())
    assert run.finished
    assert not (tmp_path / "teachers").exists()


def trained(folder, method="flow-matching", data="8gaussians", steps=2, **changes):
    recipe = METHODS[method].options(data)
    changes = changes if method != "drifting" else {"positives": 8}
    recipe = attrs.evolve(recipe, training=Training(steps=2, batch=16, checkpoint_every=1), network=TINY, **changes)
    run = resume_or_start(folder, method, data, recipe, resume=False)
    for record in run.updates(folder):
        if record.step == steps:
            break
    return str(folder)


def test_a_run_folder_is_a_teacher(tmp_path):
    folder = trained(tmp_path / "run")
    run = start_run("dmd2", "8gaussians", tiny(teacher_from=folder))
    list(run.updates())
    assert torch.equal(parameters_of(run.teacher.state.ema), parameters_of(open_run(folder).state.ema))
    assert not list((tmp_path / "teachers").glob("8gaussians-*"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: str(path / "nothing"), CheckpointError, "does not exist|is not a run|no folder"),
        (lambda path: trained(path / "run", "drifting"), ConfigError, "predicts the velocity"),
        (lambda path: trained(path / "run", data="digits"), ConfigError, "teacher of the same data"),
        (lambda path: trained(path / "run", data="unequal"), ConfigError, "learnt unequal"),
        (lambda path: trained(path / "run", steps=1), ConfigError, "finish the teacher"),
        (lambda path: trained(path / "run", coupling="optimal"), ConfigError, "independent pairs only"),
    ],
    ids=["missing", "another prediction", "another shape", "other data", "unfinished", "another coupling"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_training(make, error, words, tmp_path):
    folder = make(tmp_path)
    with pytest.raises(error, match=words):
        start_run("dmd2", "8gaussians", tiny(teacher_from=folder))


def test_a_teacher_of_another_network_is_refused_before_an_update(tmp_path):
    recipe = attrs.evolve(tiny(teacher_from=trained(tmp_path / "run")), network=Network("mlp", width=12, depth=1))
    with pytest.raises(ConfigError, match="give both the same"):
        start_run("dmd2", "8gaussians", recipe)
    teacher = attrs.evolve(recipe.teacher, network=recipe.network)
    with pytest.raises(ConfigError, match=r"width=12.*teacher's.*width=8"):  # the run's, whatever the options say
        start_run("dmd2", "8gaussians", attrs.evolve(recipe, teacher=teacher))


def test_the_scores_have_the_network_of_a_given_teacher(tmp_path):
    """Whatever the options say of it; the run says all of that teacher, and goes on."""
    recipe, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    other = attrs.evolve(recipe, teacher=attrs.evolve(recipe.teacher, network=Network("mlp", width=20, depth=1)))
    run = resume_or_start(folder, "dmd2", "8gaussians", other, resume=False)
    assert run.recipe.teacher == open_run(tmp_path / "run").recipe
    for record in run.updates(folder):
        if record.step == 2:
            break
    again = resume_or_start(folder, "dmd2", "8gaussians", other, resume=True)
    assert again.state.step == 2
    shown = again.samples(5, generator=torch.Generator().manual_seed(0))[0]
    (tmp_path / "run").rename(tmp_path / "away")
    unfinished = open_run(folder)  # looked at while its teacher is elsewhere, but not trained on
    assert torch.equal(unfinished.samples(5, generator=torch.Generator().manual_seed(0))[0], shown)
    with pytest.raises(ConfigError, match="put it back"):
        unfinished.updates(folder)
    (tmp_path / "away").rename(tmp_path / "run")
    assert list(again.updates(folder))
    (tmp_path / "run").rename(tmp_path / "moved")
    finished = open_run(folder)  # samples need no teacher
    expected = again.samples(5, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(finished.samples(5, generator=torch.Generator().manual_seed(0))[0], expected)
    assert not list(finished.updates())


def test_a_run_does_not_go_on_from_a_replaced_teacher(tmp_path):
    """The options of both are the same; their weights are not."""
    recipe, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    run = resume_or_start(folder, "dmd2", "8gaussians", recipe, resume=False)
    for record in run.updates(folder):
        if record.step == 2:
            break
    teacher = open_run(tmp_path / "run")
    with torch.no_grad():
        next(teacher.state.ema.parameters()).add_(0.1)
    save_checkpoint(tmp_path / "run", teacher.state)
    with pytest.raises(CheckpointError, match="another teacher"):
        resume_or_start(folder, "dmd2", "8gaussians", recipe, resume=True)
    with pytest.raises(ConfigError, match="put it back"):
        open_run(folder).updates(folder)
    # A fresh run learns from the new one, pairs included.
    paired, places = attrs.evolve(recipe, regression=1.0), []
    for scale in (1.0, 1.5):
        with torch.no_grad():
            next(teacher.state.ema.parameters()).mul_(scale)
        save_checkpoint(tmp_path / "run", teacher.state)
        places.append(start_run("dmd2", "8gaussians", paired)._setting().kept)
    assert len(set(places)) == 2


@pytest.mark.parametrize("damage", ["empty", "another method"])
def test_a_run_is_sampled_whatever_has_become_of_its_teacher(damage, tmp_path):
    recipe, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    run = resume_or_start(folder, "dmd2", "8gaussians", recipe, resume=False)
    for record in run.updates(folder):
        if record.step == 2:
            break
    shutil.rmtree(tmp_path / "run")
    if damage == "empty":
        (tmp_path / "run").mkdir()
    else:
        trained(tmp_path / "run", "drifting")
    unfinished = open_run(folder)
    assert unfinished.samples(3, generator=torch.Generator().manual_seed(0))[0].shape == (3, 2)
    with pytest.raises(ConfigError, match="put it back"):
        unfinished.updates(folder)


def test_a_complete_run_is_resumed_without_its_teacher(tmp_path):
    recipe, folder = tiny(teacher_from=trained(tmp_path / "run")), tmp_path / "student"
    run = resume_or_start(folder, "dmd2", "8gaussians", recipe, resume=False)
    list(run.updates(folder))
    (tmp_path / "run").rename(tmp_path / "away")
    assert resume_or_start(folder, "dmd2", "8gaussians", run.recipe, resume=True).finished


def test_several_steps_are_told_how_to_be_trained():
    """Pairs teach one step; the error for several does not send one back to them."""
    recipe = attrs.evolve(METHODS["dmd2"].toys, generator_steps=2, preparation=0.0)
    with pytest.raises(ConfigError, match=r"give both the same \(--fourier 0, or [^;]*$"):
        start_run("dmd2", "8gaussians", recipe)


@pytest.mark.parametrize("labels", [[0, 10], [-1, 0]])
def test_labels_of_no_class_are_named(labels):
    run = start_run("flow-matching", "digits")
    with pytest.raises(ConfigError, match="0 to 9"):
        run.samples(2, generator=torch.Generator(), labels=torch.tensor(labels))


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"preparation": 0.5}, 11),
        ({"preparation": 1.0}, 10),
        ({"preparation": 0.5, "regression": 0.5}, 12),
        ({"preparation": 0.5, "fake": "kernel", "adversarial": 0.0, "regression": 1.0}, 2),
    ],
)
def test_calls_count_the_preparation(changes, passes):
    recipe = tiny(steps=4, ratio=3, **changes)
    run, _, _, _ = begun(recipe)
    counted = []
    networks = [run.state.network, run.teacher.state.ema]
    if run.state.opponent is not None:
        networks.append(run.state.opponent.network.score)
    for network in networks:
        network.register_forward_pre_hook(lambda *_: counted.append(1))
    list(run.updates())
    made = 2 * recipe.solver_steps  # the pairs
    assert recipe.calls == passes
    assert abs((len(counted) - made) / 4 - passes) <= 0.5


def test_a_generator_of_another_network_learns_from_pairs_first():
    other = Network("mlp", width=12, depth=1, fourier=4)
    recipe = tiny(network=other, preparation=0.5, adversarial=0.01)
    run, _, loss, _ = begun(recipe)
    assert torch.equal(
        parameters_of(run.state.opponent.network.score), parameters_of(run.teacher.state.ema)
    )  # the fake score starts from the teacher's weights
    _, logs = loss(run.state.network, torch.Generator().manual_seed(0))
    assert set(logs) == {"regression"}
    records = list(run.updates())
    assert [set(record.logs) >= {"gap", "adversarial"} for record in records] == [False, False, True, True]


@pytest.mark.parametrize("data", ["checkerboard", "digits"])
def test_an_oracle_that_is_not_known_is_refused_before_any_training(data):
    recipe = attrs.evolve(tiny(adversarial=0.0, teacher_from="oracle"))
    with pytest.raises(ConfigError, match="not known"):
        start_run("dmd2", data, recipe)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DistributionMatching(divergence="forward-kl"),
        lambda: DistributionMatching(teacher=FlowMatching(coupling="optimal")),
        lambda: DistributionMatching(fake="kernel", adversarial=0.1),
        lambda: DistributionMatching(fake="kernel", loss="identity"),
        lambda: DistributionMatching(regression=0.1, teacher_from="oracle"),
        lambda: DistributionMatching(regression=0.1, generator_steps=2),
        lambda: DistributionMatching(preparation=0.1, teacher_from="oracle"),
        lambda: DistributionMatching(preparation=1.1),
        lambda: DistributionMatching(alpha=float("nan")),
        lambda: DistributionMatching(adversarial=float("inf")),
        lambda: DistributionMatching(earliest=0.5, latest=0.4),
        lambda: DistributionMatching(entry=0.0),
        lambda: DistributionMatching(generator_steps=0),
    ],
)
def test_bad_options_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


# Pairs.


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_pairs_are_made_once_for_every_teacher_and_choice_of_numbers(data, tmp_path):
    problem, calls = open_problem(data), []

    def teacher(z, t, label):
        calls.append(len(z))
        return torch.full_like(z, 0.5)

    numbers = {"count": 12, "solver_steps": 2, "seed": 0, "kept": tmp_path}
    noise, made = teacher_pairs(teacher, problem, **numbers)
    torch.testing.assert_close(made.data, noise - 0.5, atol=1e-5, rtol=0)
    asked = len(calls)
    again, kept = teacher_pairs(teacher, problem, **numbers)
    assert len(calls) == asked > 0
    assert torch.equal(again, noise)
    assert torch.equal(kept.data, made.data)
    assert (kept.labels is None) == (made.labels is None) == (problem.classes is None)
    (file,) = tmp_path.glob("pairs-*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # damaged: made again
    assert torch.equal(teacher_pairs(teacher, problem, **numbers)[1].data, made.data)
    assert file.read_bytes() == whole
    for name, value in (("count", 5), ("solver_steps", 3), ("seed", 1)):
        before = len(calls)
        teacher_pairs(teacher, problem, **{**numbers, name: value})
        assert len(calls) > before, name


def test_recipes_share_the_pairs_of_a_teacher_and_another_teacher_has_its_own(tmp_path):
    first = tiny("dmd")
    taught = attrs.evolve(first.teacher, training=attrs.evolve(first.teacher.training, seed=5))
    reflow = Reflow(first.teacher, first.training, TINY, pairs=30, solver_steps=2)
    for method, recipe in (("dmd", first), ("reflow", reflow)):
        list(start_run(method, "8gaussians", recipe).updates())
    made = tmp_path / "teachers" / "made"
    assert len(list(made.glob("*/pairs-*"))) == 1
    run = start_run("dmd", "8gaussians", attrs.evolve(first, teacher=taught))
    list(run.updates())
    assert len(list(made.iterdir())) == 2
    assert made_folder(run.teacher.state.config).is_dir()


def test_the_regression_term_is_on_the_pairs_of_the_teacher():
    """A generator that makes what the teacher makes of each noise has none."""
    run, setting, generator_loss, _ = begun(tiny("dmd"))
    noise, made = teacher_pairs(setting.teacher, run.problem, count=30, solver_steps=2, seed=0)
    lookup = nn.Linear(1, 1)

    class Perfect(nn.Module):
        def forward(self, z, t, label=None):
            nearest = torch.cdist(z, noise).argmin(1)
            return (z - made.data[nearest]) / t[:, None] + 0 * lookup.weight.sum()

    _, logs = generator_loss(Perfect(), torch.Generator().manual_seed(0))
    assert logs["regression"].item() < 1e-10
    with torch.no_grad():
        run.state.network.output.bias += 1
    _, logs = generator_loss(run.state.network, torch.Generator().manual_seed(0))
    assert logs["regression"].item() > 0.5


def test_the_teachers_score_is_that_of_its_velocity():
    run, setting, *_ = begun(tiny())
    z, t = torch.randn(5, 2), torch.rand(5)
    expected = denoiser_from_velocity(setting.teacher, path=PATH)(z, t)
    torch.testing.assert_close(run.recipe._real(setting, None)(z, t), expected)


def test_noise_between_steps_is_a_samples_own():
    recipe = tiny(generator_steps=3, adversarial=0.0)
    network = recipe.build(open_problem("8gaussians"), torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    whole = recipe.generate(network, noise, None)
    parts = torch.cat([recipe.generate(network, part, None) for part in (noise[:2], noise[2:])])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(recipe.generate(network, noise.flip(0), None), whole.flip(0))
    draws = distribution_matching._following(torch.stack([noise[0], noise[0].flip(0)]))(0, noise[:2])
    assert not torch.equal(draws[0], draws[1])
    assert recipe.generate(network, noise[:0], None).shape == (0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "identity", "normalized": False},
        {"loss": "identity", "epsilon": 0.1},
        {"loss": "identity", "adversarial": 0.1, "divergence": "forward-kl"},
        {"loss": "gap", "alpha": 1.0},
        {"loss": "gap", "normalized": False, "epsilon": 0.1},
        {"ratio": 1.5},
        {"ratio": True},
    ],
)
def test_options_without_use_are_refused(options):
    with pytest.raises(ConfigError, match=r"has no use for it|without a normaliser|expected a whole number"):
        DistributionMatching(**options)
