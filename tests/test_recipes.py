"""Recipes and runs: what they claim about cost, what they make, and that a run comes back as it was."""

import json
from collections import Counter
from contextlib import contextmanager
from functools import partial

import attrs
import numpy as np
import pytest
import torch
from onestep_adapters.recipes import (
    METHODS,
    AlphaFlow,
    DistributionMatching,
    FlowMatching,
    MeanFlow,
    RectifiedMeanFlow,
    Reflow,
    Setting,
    Shortcut,
    SolutionFlow,
    TerminalVelocity,
    TwoPlayers,
    draws,
    evaluation,
    find_method,
    open_problem,
)
from onestep_adapters.recipes.draws import draw
from onestep_adapters.recipes.drifting import Drifting
from onestep_adapters.recipes.evaluation import evaluate_runs, label_of
from onestep_adapters.recipes.moment_matching import MomentMatching
from onestep_adapters.recipes.options import Network, Training, from_dict
from onestep_adapters.recipes.pairs import teacher_pairs
from onestep_adapters.recipes.problems import PROBLEMS
from onestep_adapters.recipes.recipe import with_seed
from onestep_adapters.recipes.runs import Run, open_run, resume_or_start, start_run
from onestep_adapters.recipes.samples import write_samples
from onestep_adapters.recipes.straight import PATH
from torch.nn.modules.module import register_module_forward_pre_hook

from onestep_adapters.backbones import MLP
from onestep_adapters.networks import as_average_velocity
from onestep_adapters.samplers import one_step
from onestep_adapters.training import CheckpointError
from onestep_core.errors import ConfigError

TINY = Network("mlp", width=8, depth=1)


@pytest.fixture(autouse=True, scope="module")
def teachers(tmp_path_factory):
    """Tiny teachers, trained once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_TEACHERS", str(tmp_path_factory.mktemp("teachers")))
        yield


def tiny(method, data="8gaussians", steps=3, **changes):
    recipe = METHODS[method].options(data)
    training = attrs.evolve(recipe.training, steps=steps, batch=20, checkpoint_every=2)
    if isinstance(recipe, Drifting):
        changes = {"positives": 8, **changes}
    if isinstance(recipe, MomentMatching):
        changes = {"particles": 4, **changes}
    if recipe.teacher is not None:
        taught = attrs.evolve(recipe.teacher.training, steps=2, batch=20)
        changes = {"teacher": attrs.evolve(recipe.teacher, training=taught, network=TINY), **changes}
    if isinstance(recipe, Reflow | RectifiedMeanFlow | DistributionMatching):
        changes = {"pairs": 40, "solver_steps": 1, **changes}
    return attrs.evolve(recipe, training=training, network=TINY, **changes)


def drawn(run, count=7, seed=1):
    return run.samples(count, generator=torch.Generator().manual_seed(seed))


@contextmanager
def counted():
    """Forward passes of every backbone: the network, its average, a teacher, a discriminator, inside jvp and out."""
    found = Counter()

    def count(module, *_):
        found["passes"] += isinstance(module, MLP)

    handle = register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()


def setting_of(run):
    for _ in run.teaching():
        pass
    return Setting(run.problem, run.state, None if run.teacher is None else run.teacher.state.ema)


@pytest.mark.parametrize("data", ["digits", "8gaussians"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_samples(method, data):
    run = start_run(method, data, tiny(method, data))
    before = torch.nn.utils.parameters_to_vector(run.state.network.parameters()).clone()
    records = list(run.updates())
    assert [record.step for record in records] == [1, 2, 3]
    assert run.finished
    assert run.seconds == pytest.approx(sum(record.seconds for record in records))
    assert not torch.equal(before, torch.nn.utils.parameters_to_vector(run.state.network.parameters()))
    samples, labels = drawn(run)
    assert samples.shape == (7, *run.problem.shape)
    assert samples.isfinite().all()
    assert (labels is None) == (run.problem.classes is None)


@pytest.mark.parametrize("method", METHODS)
def test_a_sampler_and_an_update_call_the_network_as_often_as_they_say(method):
    """The claim of one-step generation is a number of calls, so it is counted: one for every one-step method."""
    recipe = tiny(method, steps=100)
    if isinstance(recipe, DistributionMatching):
        # The number is a mean over the training; here one update of the game is counted.
        recipe = attrs.evolve(recipe, preparation=0.0)
    run = start_run(method, "8gaussians", recipe)
    recipe, network = run.recipe, run.state.network
    with counted() as found:
        recipe.generate(network, torch.randn(5, 2), None)
    assert found["passes"] == recipe.evaluations
    assert recipe.evaluations == 1 or method == "flow-matching"
    loss_step = recipe.loss_step(setting_of(run))
    with counted() as found:
        loss_step(network, torch.Generator().manual_seed(0))
        if isinstance(recipe, TwoPlayers):
            for _ in range(recipe.ratio):
                recipe.opponent_step(setting_of(run))(run.state.opponent.network, torch.Generator().manual_seed(0))
    assert found["passes"] == recipe.calls


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_survives_json(method):
    for recipe in (METHODS[method].digits, METHODS[method].toys):
        assert from_dict(type(recipe), json.loads(json.dumps(attrs.asdict(recipe)))) == recipe


def test_a_run_comes_back_as_it_was(tmp_path):
    run = start_run("meanflow", "8gaussians", tiny("meanflow"))
    list(run.updates(tmp_path))
    again = open_run(tmp_path)
    assert again.recipe == run.recipe
    assert again.finished
    torch.testing.assert_close(drawn(again), drawn(run), rtol=0, atol=0)


@pytest.mark.parametrize(
    "method",
    [
        "meanflow",
        "drifting",
        "alpha-flow",
        "shortcut",
        "solution-flow",
        "reflow",
        "progressive",
        "consistency-distillation",
        "truncated-consistency",
        "rectified-meanflow",
        "meanflow-distillation",
    ],
)
def test_an_interrupted_run_goes_on_to_the_bit(method, tmp_path):
    recipe = tiny(method, steps=5)
    whole = start_run(method, "8gaussians", recipe)
    list(whole.updates())
    first = resume_or_start(tmp_path, method, "8gaussians", recipe, resume=False)
    for record in first.updates(tmp_path):
        if record.step == 3:  # The checkpoint in the folder is that of step 2.
            break
    second = resume_or_start(tmp_path, method, "8gaussians", recipe, resume=True)
    assert second.state.step == 2
    list(second.updates(tmp_path))
    for name, value in whole.state.network.state_dict().items():
        assert torch.equal(value, second.state.network.state_dict()[name]), name
    torch.testing.assert_close(drawn(second), drawn(whole), rtol=0, atol=0)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    recipe = tiny("meanflow")
    list(resume_or_start(tmp_path, "meanflow", "8gaussians", recipe, resume=False).updates(tmp_path))
    with pytest.raises(CheckpointError, match="--resume"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", recipe, resume=False)
    with pytest.raises(CheckpointError, match=r"training\.steps is 3 there, 9 here"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", tiny("meanflow", steps=9), resume=True)


def test_a_run_from_before_an_option_goes_on_with_its_default(tmp_path):
    recipe = tiny("meanflow")
    run = start_run("meanflow", "8gaussians", recipe)
    del run.state.config["options"]["network"]["fourier"]
    list(run.updates(tmp_path))
    assert resume_or_start(tmp_path, "meanflow", "8gaussians", recipe, resume=True).finished
    other = attrs.evolve(recipe, network=attrs.evolve(TINY, fourier=8))
    with pytest.raises(CheckpointError, match=r"asked for; network\.fourier is 0 there, 8 here:"):
        resume_or_start(tmp_path, "meanflow", "8gaussians", other, resume=True)


@pytest.mark.parametrize("damage", [None, {"network": "mlp"}, {"network": None}, {"network": {"fourier": None}}])
def test_options_that_are_none_are_refused(damage):
    with pytest.raises(ConfigError, match=r".{20}"):
        from_dict(Drifting, damage)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"coupling": "optimum"}, "no coupling is called 'optimum': did you mean 'optimal'"),
        ({"network": Network("mpl")}, "no backbone is called 'mpl': did you mean 'mlp'"),
    ],
)
def test_words_that_an_option_does_not_know_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        start_run("meanflow", "8gaussians", attrs.evolve(tiny("meanflow"), **change))


def test_runs_of_one_method_are_told_apart():
    def run(seed):
        return start_run("meanflow", "8gaussians", with_seed(tiny("meanflow"), seed))

    first, second, third = run(0), run(1), run(1)
    assert label_of(first, [first]) == "meanflow"
    assert [label_of(each, [first, second]) for each in (first, second)] == ["meanflow, seed 0", "meanflow, seed 1"]
    assert [label_of(each, [first, second, third]) for each in (second, third)] == ["meanflow 2", "meanflow 3"]


def test_a_run_of_an_unknown_version_is_refused(tmp_path):
    run = start_run("meanflow", "8gaussians", tiny("meanflow"))
    run.state.config["options"]["momentum"] = 3
    list(run.updates(tmp_path))
    with pytest.raises(ConfigError, match="momentum"):
        open_run(tmp_path)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'meanflow'"):
        find_method("meanflwo")
    with pytest.raises(ConfigError, match="did you mean 'checkerboard'"):
        open_problem("chekerboard")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Training(steps=0),
        lambda: Training(ema=1.5),
        lambda: Drifting(temperatures=()),
        lambda: Drifting(temperatures=(0.1, -1.0)),
        lambda: Drifting(temperatures=(0.1,), final_temperatures=(0.1, 0.2)),
        lambda: AlphaFlow(end=1.5),
        lambda: SolutionFlow(last=0.0),
        lambda: Shortcut(finest=0),
        lambda: TerminalVelocity(anchored=0.7, whole=0.4),
        lambda: Reflow(pairs=0),
        lambda: Reflow().loss_step(Setting(open_problem("8gaussians"), None)),  # No teacher came.
        lambda: Network("conv").build(open_problem("8gaussians"), 1, torch.Generator()),
        lambda: Network("mlp", condition=4).build(open_problem("8gaussians"), 1, torch.Generator()),
        lambda: Network("conv", fourier=8).build(open_problem("digits"), 1, torch.Generator()),
        lambda: drawn(start_run("drifting", "8gaussians", tiny("drifting")), count=0),
        lambda: open_problem("digits").groups(10_000, torch.Generator()),
    ],
)
def test_bad_options_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


@pytest.mark.parametrize("data", PROBLEMS)
def test_problems_draw_everything_from_their_generator(data):
    problem = open_problem(data)

    def draws(seed):
        g = torch.Generator().manual_seed(seed)
        found = [*problem.batch(6, g), problem.groups(3, g), problem.held_out(4, g), problem.labels(5, g)]
        return [tensor for tensor in found if tensor is not None]

    torch.manual_seed(0)
    first = draws(1)
    torch.manual_seed(1)
    for a, b in zip(first, draws(1), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], draws(2)[0])


def test_digits_come_in_contiguous_classes_and_whole_grey_levels():
    problem = open_problem("digits")
    g = torch.Generator().manual_seed(0)
    groups = problem.finish(problem.groups(4, g))
    assert groups.shape == (40, 1, 8, 8)
    levels = (groups + 1) * 8
    assert torch.equal(levels, levels.round())
    images, labels = problem._images, problem._labels  # type: ignore[attr-defined]
    for k, image in enumerate(groups):
        same = (images == image).flatten(1).all(1)
        assert labels[same].tolist().count(k // 4) > 0


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_references_take_variance_from_the_velocity_and_leave_its_mean(data):
    """The points are the same; only the velocity is averaged, over data of the state's class, and not next to data."""
    problem, training = open_problem(data), Training(batch=2000)
    own, mean = (
        MeanFlow(training, moving=0.5, references=n).points(problem, torch.Generator().manual_seed(0)) for n in (0, 500)
    )
    assert torch.equal(own.z, mean.z)
    assert torch.equal(own.t, mean.t)
    assert torch.equal(own.s, mean.s)
    near = own.t < 1e-3
    assert torch.equal(own.v[near], mean.v[near])
    removed = (own.v - mean.v).flatten(1)
    error = removed.std(0) / len(removed) ** 0.5
    assert (removed.mean(0).abs() <= 4.5 * error + 1e-6).all()
    assert mean.v.flatten(1).var(0).sum() < 0.98 * own.v.flatten(1).var(0).sum()


def test_optimal_pairs_are_nearer_and_leave_the_data_as_they_were():
    apart, near = (
        draw(open_problem("8gaussians"), 200, torch.Generator().manual_seed(0), coupling=coupling)
        for coupling in ("independent", "optimal")
    )
    assert torch.equal(apart.data, near.data)
    assert (near.data - near.noise).square().mean() < 0.8 * (apart.data - apart.noise).square().mean()
    with pytest.raises(ConfigError, match="independent"):
        draw(open_problem("8gaussians"), 5, torch.Generator(), coupling="optimal", references=5)


@pytest.mark.parametrize("coupling", ["independent", "optimal", "precomputed"])
def test_pairs_in_a_row_have_one_class(coupling):
    """Of the training images, in their frequencies, each with its own class."""
    problem = open_problem("digits")
    found = draw(problem, 4000, torch.Generator().manual_seed(0), coupling=coupling, alike=8)
    images, labels = problem._images, problem._labels  # type: ignore[attr-defined]
    assert (found.labels.reshape(-1, 8) == found.labels[::8, None]).all()
    assert (found.labels.bincount(minlength=10) / 4000 - labels.bincount() / len(labels)).abs().max() < 0.06
    nearest = torch.cdist(found.data[:200].flatten(1), images.flatten(1)).argmin(1)
    assert torch.equal(labels[nearest], found.labels[:200])
    odd = draw(problem, 11, torch.Generator().manual_seed(0), alike=4)
    assert len(odd.data) == len(odd.labels) == 11


def test_precomputed_pairs_are_nearer_than_those_of_a_batch():
    problem, generator = open_problem("digits"), torch.Generator().manual_seed(0)

    def apart(coupling):
        batches = [draw(problem, 64, generator, coupling=coupling) for _ in range(20)]
        return torch.cat([(found.data - found.noise).square().flatten(1).sum(1) for found in batches])

    independent, batch, many = (apart(coupling) for coupling in ("independent", "optimal", "precomputed"))
    error = many.std() / len(many) ** 0.5
    assert many.mean() < batch.mean() - 3 * error
    assert batch.mean() < independent.mean() - 3 * error
    with pytest.raises(ConfigError, match="independent"):
        draw(open_problem("digits"), 5, torch.Generator(), coupling="precomputed", references=5)


def test_precomputed_pairs_are_those_of_the_seed(monkeypatch):
    """A generator that was set back, as in a run that goes on, draws from the same pairs; another seed does not."""

    monkeypatch.setattr(draws, "_PLANE", (200, 50))

    def drawn(generator):
        return draw(open_problem("8gaussians"), 50, generator, coupling="precomputed")

    first = torch.Generator().manual_seed(3)
    drawn(first)
    state = first.get_state()
    expected = drawn(first)
    again, other = torch.Generator(), torch.Generator().manual_seed(4)
    again.set_state(state)
    found = drawn(again)
    assert torch.equal(found.data, expected.data)
    assert torch.equal(found.noise, expected.noise)
    assert not torch.isin(drawn(other).noise, expected.noise).any()


def test_the_first_of_a_batch_jump_and_the_rest_stays():
    recipe = TerminalVelocity(Training(batch=40), moving=0.25)
    moving, still = recipe.parts(open_problem("8gaussians"), torch.Generator().manual_seed(0))
    assert (len(moving.z), len(still.z)) == (10, 30)
    assert (moving.s < moving.t).all()
    assert torch.equal(still.s, still.t)


def test_anchored_jumps_share_the_end_that_one_step_sampling_has():
    problem, halves = open_problem("8gaussians"), {"training": Training(batch=40), "moving": 0.5, "anchored": 0.5}
    to_data, from_noise = (
        kind(**halves).points(problem, torch.Generator().manual_seed(0)) for kind in (MeanFlow, TerminalVelocity)
    )
    assert (to_data.s[:10] == 0).all()
    assert (from_noise.t[:10] == 1).all()
    for points in (to_data, from_noise):
        assert (points.s[:20] < points.t[:20]).all()
        assert ((points.s[10:20] > 0) & (points.t[10:20] < 1)).all()
        assert torch.equal(points.s[20:], points.t[20:])


def test_shortcuts_are_dyadic_and_run_from_noise_to_data():
    recipe = Shortcut(Training(batch=64), moving=0.5, finest=3)
    moving, still = recipe.parts(open_problem("8gaussians"), torch.Generator().manual_seed(0))
    lengths = moving.s - moving.t
    assert set(lengths.tolist()) == {1.0, 0.5, 0.25}
    assert torch.equal((moving.t / lengths).round(), moving.t / lengths)
    torch.testing.assert_close(still.s - still.t, torch.full((32,), 1 / 8))
    noise = torch.randn(3, 2)
    assert torch.equal(recipe.generate(lambda z, t, s, label: (s - t)[:, None] * 0 - z, noise, None), 0 * noise)


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_pairs_are_what_a_teacher_makes_of_the_noise(data):
    """A constant velocity shifts the noise, whatever the solver; the noise is the same when it is asked for again."""
    problem = open_problem(data)

    def ends(teacher):
        return teacher_pairs(teacher, problem, count=30, solver_steps=3, seed=4)

    noise, (made, labels) = ends(lambda z, t, label: torch.full_like(z, 0.5))
    assert noise.shape == made.shape == (30, *problem.shape)
    assert (labels is None) == (problem.classes is None)
    torch.testing.assert_close(made, noise - 0.5, atol=1e-5, rtol=0)
    again, _ = ends(lambda z, t, label: 0 * z)
    assert torch.equal(noise, again)


def test_labels_reach_the_network():
    """A conditional run asked for one class and for another, from the same noise, gives different samples."""
    run = start_run("drifting", "digits", tiny("drifting", "digits", steps=5))
    list(run.updates())
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    zero, one = (run.recipe.generate(run.state.ema, noise, torch.full((4,), k)) for k in (0, 1))
    assert not torch.allclose(zero, one)


def test_runs_of_different_data_are_not_compared():
    runs = [start_run("meanflow", data, tiny("meanflow", data)) for data in ("8gaussians", "checkerboard")]
    with pytest.raises(ConfigError, match="different data"):
        evaluate_runs(runs, None, split="test", repeats=2, seed=0)


@pytest.fixture
def few_draws(monkeypatch):
    """Of a law in the plane: a tenth of a report's."""
    monkeypatch.setattr(evaluation, "toy_reference", partial(evaluation.toy_reference, count=1000))


def test_a_toy_report_never_says_pass_beside_an_untrained_yardstick(tmp_path, few_draws):
    runs = [
        start_run(method, "unequal", tiny(method, "unequal", **changes))
        for method, changes in (("flow-matching", {"sampling_steps": 2}), ("meanflow", {}))
    ]
    for run in runs:
        list(run.updates())
    text = evaluate_runs(runs, None, split="test", repeats=2, seed=0).write(tmp_path)
    assert text.count("yardstick not trained") == 2
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["verdicts"]["meanflow"]["passed"] is False
    assert set(content["scores"]) == {"flow-matching", "meanflow"}


def test_two_runs_of_one_method_are_told_apart(tmp_path, few_draws):
    runs = [start_run("drifting", "unequal", tiny("drifting", "unequal", steps=n)) for n in (1, 2)]
    for run in runs:
        list(run.updates())
    text = evaluate_runs(runs, None, split="test", repeats=2, seed=0).write(tmp_path)
    assert "| drifting 1 |" in text
    assert "| drifting 2 |" in text
    assert text.count("- **drifting 1; drifting 2**: ") == 1  # they share their note
    assert "no yardstick given" in text


def test_an_image_report_has_every_row_and_its_cost(tmp_path):
    runs: list[Run] = []
    for method in ("flow-matching", "drifting"):
        changes = {"sampling_steps": 2} if method == "flow-matching" else {}
        runs.append(start_run(method, "digits", tiny(method, "digits", **changes)))
        list(runs[-1].updates())
    evaluate_runs(runs, None, split="validation", repeats=2, seed=0).write(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    rows = {row["method"]: row for row in content["rows"]}
    assert content["yardstick"] == "flow-matching"
    assert rows["flow-matching"]["network_evaluations"] == 4
    assert rows["drifting"]["network_evaluations"] == 1
    assert rows["drifting"]["steps"] == rows["drifting"]["network_calls"] == 3
    assert all(row["training_seconds"] > 0 and row["milliseconds_per_1000"] > 0 for row in rows.values())


def test_samples_are_written_as_numbers(tmp_path):
    run = start_run("drifting", "digits", tiny("drifting", "digits"))
    found = write_samples(run, tmp_path / "deep" / "v1.5", count=6, seed=0)
    assert found.file.name == "v1.5.npz"
    with np.load(found.file) as arrays:
        assert arrays["samples"].shape == (6, 1, 8, 8)
        assert arrays["labels"].shape == (6,)
        assert np.array_equal(arrays["samples"], found.samples.numpy())


def test_the_second_stage_of_tcm_leaves_the_first_as_it_was():
    run = start_run("truncated-consistency", "8gaussians", tiny("truncated-consistency", steps=6))
    flat = torch.nn.utils.parameters_to_vector
    kept = []
    for record in run.updates():
        if record.step == 3:
            average = flat(run.state.ema.student.parameters()).clone()
        if record.step > 3:
            kept.append(flat(run.state.network.teacher.parameters()).clone())
            assert not torch.equal(flat(run.state.network.student.parameters()), kept[-1])
    assert len(kept) == 3
    for early in kept:
        assert torch.equal(early, average)


def test_rectified_meanflow_leaves_the_coupling_to_its_teacher():
    for option in ({"references": 5}, {"coupling": "optimal"}):
        with pytest.raises(ConfigError, match="teacher couples"):
            RectifiedMeanFlow(**option)


def test_rectified_meanflow_reads_whole_jumps_off_the_pairs(tmp_path, monkeypatch):
    """With no other jumps the loss is the distance of a whole jump from what the teacher made of the noise."""
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path))
    training = Training(steps=2, batch=16)
    recipe = RectifiedMeanFlow(
        training, TINY, moving=0.0, known=1.0, teacher=FlowMatching(training, TINY), pairs=32, solver_steps=4
    )
    run = start_run("rectified-meanflow", "8gaussians", recipe)
    list(run.teaching())
    setting = run._setting()
    step = recipe.loss_step(setting)
    noise, (data, _) = teacher_pairs(
        setting.teacher, run.problem, count=32, solver_steps=4, seed=training.seed, kept=setting.kept
    )
    with torch.no_grad():
        run.state.network.output.bias += 0.3
    seen = [step(run.state.network, torch.Generator().manual_seed(seed))[0].item() for seed in range(40)]
    made = one_step(as_average_velocity(run.state.network), noise, path=PATH).detach()
    expected = (made - data).square().mean(1)
    assert sum(seen) / len(seen) == pytest.approx(float(expected.mean()), abs=4 * float(expected.std()) / 640**0.5)
    assert float(expected.mean()) > 10 * float(expected.std()) / 640**0.5


def test_a_teacher_of_another_network_is_refused_before_it_is_trained():
    recipe = tiny("consistency-distillation")
    other = attrs.evolve(recipe, network=attrs.evolve(recipe.network, width=recipe.network.width + 8))
    with pytest.raises(ConfigError, match=r"give both the same \(--width 8, or --teacher\.network\.width 16"):
        start_run("consistency-distillation", "8gaussians", other)


def test_meanflow_learns_the_guided_velocity(monkeypatch):
    """By hand: dropped labels and times outside of the interval keep the pair's own."""
    from onestep_adapters.recipes import meanflow

    recipe = MeanFlow(
        Training(steps=1, batch=64),
        Network("mlp", width=8, depth=1),
        omega=2.0,
        kappa=0.5,
        dropped=0.25,
        guided_from=0.2,
        guided_to=0.8,
    )
    run = start_run("meanflow", "digits", recipe)
    network = run.state.network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    seen = []
    real = meanflow.meanflow_regression
    monkeypatch.setattr(
        meanflow, "meanflow_regression", lambda a, z, v, *rest, **k: seen.append(v) or real(a, z, v, *rest, **k)
    )
    loss, _ = recipe.loss_step(setting_of(run))(network, torch.Generator().manual_seed(3))
    loss.backward()

    generator = torch.Generator().manual_seed(3)
    z, v, t, _, labels = recipe.points(run.problem, generator)
    lost = torch.rand(64, generator=generator) < 0.25
    null = torch.full_like(labels, 10)
    with torch.no_grad():
        of_class, of_none = (network(z, t, t, label=given) for given in (torch.where(lost, null, labels), null))
    guided = (~lost & (t >= 0.2) & (t <= 0.8))[:, None, None, None]
    torch.testing.assert_close(seen[0], torch.where(guided, 2 * v + 0.5 * of_class - 1.5 * of_none, v))
    assert 0 < guided.sum() < 64
    assert not torch.equal(of_class, of_none)
    assert recipe.calls == 4


@pytest.mark.parametrize(
    "options",
    [
        {"omega": 2.0},
        {"kappa": 0.5},
        {"kappa": 1.0, "dropped": 0.1},
        {"omega": 2.0, "dropped": 0.1, "teacher": FlowMatching()},
        {"omega": 2.0, "dropped": 0.1, "guided_from": 0.5, "guided_to": 0.5},
    ],
)
def test_guidance_needs_its_parts(options):
    with pytest.raises(ConfigError, match="guidance needs dropped labels"):
        MeanFlow(**options)


def test_labels_are_dropped_where_there_are_some():
    with pytest.raises(ConfigError, match="has no classes"):
        start_run("meanflow", "8gaussians", MeanFlow(dropped=0.1))
