"""Every method: it trains and samples, calls networks as often as it says, survives JSON, refuses bad options."""

import json

import attrs
import pytest
import torch

from onestep_adapters.data import open_dataset
from onestep_adapters.methods import (
    METHODS,
    AlphaFlow,
    Context,
    Drifting,
    FlowMatching,
    Network,
    Reflow,
    Shortcut,
    SolutionFlow,
    TerminalVelocity,
    Training,
    find_preset,
)
from onestep_adapters.methods.matching.score_distillation import ScoreDistillation
from onestep_adapters.methods.options import from_dict
from onestep_adapters.runs import start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, begun, counted, drawn, flat, seeded, tiny

pytestmark = pytest.mark.usefixtures("teachers")


@pytest.mark.parametrize("data", ["digits", "8gaussians"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_samples(method, data):
    run = start_run(method, data, tiny(method, data))
    before = flat(run.state.network)
    records = list(run.updates())
    assert [record.step for record in records] == [1, 2, 3]
    assert run.finished
    assert run.seconds == pytest.approx(sum(record.seconds for record in records))
    assert not torch.equal(before, flat(run.state.network))
    samples, labels = drawn(run)
    assert samples.shape == (7, *run.data.shape)
    assert samples.isfinite().all()
    assert (labels is None) == (run.data.classes is None)


@pytest.mark.parametrize("method", METHODS)
def test_a_sampler_and_an_update_call_the_network_as_often_as_they_say(method):
    """The claim of one-step generation is a number of calls, so it is counted: one for every one-step method."""
    options = tiny(method, steps=100)
    if isinstance(options, ScoreDistillation):
        # The number is a mean over the training; one update after the first part is counted here.
        options = attrs.evolve(options, pairs_only_share=0.0)
    run, context = begun(method, options)
    network = run.state.network
    with counted() as found:
        run.options.sample(network, torch.randn(5, 2), None)
    assert found["passes"] == options.evaluations
    assert options.evaluations == 1 or method == "flow-matching"
    turns = options.turns(context)
    with counted() as found:
        for turn in turns:
            for _ in range(turn.updates):
                turn.loss_step(run.state.companions[turn.companion].module, seeded())
        options.loss(context, network, seeded())
    assert found["passes"] == options.calls
    assert bool(turns) == isinstance(options, ScoreDistillation)


@pytest.mark.parametrize("method", METHODS)
def test_options_survive_json(method):
    for options in (METHODS[method].images, METHODS[method].points):
        assert from_dict(type(options), json.loads(json.dumps(attrs.asdict(options)))) == options


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_is_chosen_by_the_kind_of_data(method):
    preset = METHODS[method]
    assert preset.name == method
    assert preset.options(open_dataset("digits")) is preset.images
    assert all(preset.options(open_dataset(name)) is preset.points for name in ("8gaussians", "two-moons"))


@pytest.mark.parametrize("data", ["digits", "8gaussians"])
@pytest.mark.parametrize("method", METHODS)
def test_notes_are_about_the_kind_of_data(method, data):
    """One kind has no part of its own in some notes; then what is common is all."""
    preset, others = METHODS[method], {"digits": "Points: ", "8gaussians": "Images: "}
    told = preset.notes_for(open_dataset(data))
    assert told
    assert told[0].isupper() or told[0].isdigit()
    assert not any(part in told for part in ("Images: ", "Points: ", "Images of more than"))
    if others[data] in preset.notes:
        elsewhere = preset.notes.split(others[data])[1].split(". ")[0]
        assert elsewhere[1:] not in told


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_changes_the_seed_alone_and_not_the_teacher(method):
    options = METHODS[method].points
    other = options.with_seed(7)
    assert other.training.seed == 7
    assert other.teacher == options.teacher
    assert other.with_seed(options.training.seed) == options


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


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'meanflow'"):
        find_preset("meanflwo")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Training(steps=0),
        lambda: Training(ema=1.5),
        lambda: Drifting(temperatures=()),
        lambda: Drifting(temperatures=(0.1, -1.0)),
        lambda: Drifting(temperatures=(0.1,), final_temperatures=(0.1, 0.2)),
        lambda: AlphaFlow(alpha_schedule_end=1.5),
        lambda: SolutionFlow(final_gap=0.0),
        lambda: Shortcut(halvings=0),
        lambda: TerminalVelocity(noise_start_share=0.7, full_jump_share=0.4),
        lambda: Reflow(pairs=0),
        lambda: Network("conv").build(open_dataset("8gaussians"), 1, torch.Generator()),
        lambda: Network("mlp", condition=4).build(open_dataset("8gaussians"), 1, torch.Generator()),
        lambda: Network("conv", fourier=8).build(open_dataset("digits"), 1, torch.Generator()),
        lambda: drawn(start_run("drifting", "8gaussians", tiny("drifting")), count=0),
    ],
)
def test_bad_options_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


@pytest.mark.parametrize("method", ["reflow", "consistency-distillation", "dmd2", "progressive", "rectified-meanflow"])
def test_a_method_that_learns_from_a_teacher_says_so_where_there_is_none(method):
    options = tiny(method)
    run = start_run(method, "8gaussians", options)
    with pytest.raises(ConfigError, match="learns from a teacher and got none"):
        options.prepare(Context(run.data, run.state))


def test_labels_reach_the_network():
    """A conditional run generates different samples of two classes from the same noise."""
    run = start_run("drifting", "digits", tiny("drifting", "digits", steps=5))
    list(run.updates())
    noise = torch.randn(4, 1, 8, 8, generator=seeded())
    zero, one = (run.options.sample(run.state.ema, noise, torch.full((4,), k)) for k in (0, 1))
    assert not torch.allclose(zero, one)


@pytest.mark.parametrize("labels", [[0, 10], [-1, 0]])
def test_labels_of_no_class_are_named(labels):
    run = start_run("flow-matching", "digits")
    with pytest.raises(ConfigError, match="0 to 9"):
        run.samples(2, generator=torch.Generator(), labels=torch.tensor(labels))


def test_the_preview_of_the_baseline_is_cheaper_and_that_of_a_one_step_method_is_itself():
    many = FlowMatching(network=NETWORK)
    assert many.previewed().evaluations < many.evaluations
    assert tiny("meanflow").previewed() == tiny("meanflow")
