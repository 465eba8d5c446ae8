"""A data set of your own works from Python wherever a name does."""

import attrs
import pytest
import torch

from onestep_adapters.data import ArrayDataset, Batch, Dataset
from onestep_adapters.evaluation import evaluate_runs
from onestep_adapters.methods import METHODS, MeanFlow, Training, exact_teacher
from onestep_adapters.runs import open_run, resume_or_start, start_run
from onestep_core.errors import ConfigError
from tests.adapters.datasets import OWN, Line, images, points
from tests.adapters.evaluation.stand_ins import OneCall
from tests.adapters.tiny import assert_same_weights, drawn, seeded, small, tiny, trained_to

pytestmark = pytest.mark.usefixtures("new_teachers")

METHODS_OF_ALL_KINDS = [
    "flow-matching",
    "meanflow",
    "shortcut",
    "consistency-training",
    "moment-matching",
    "drifting",
    "reflow",
    "progressive",
    "dmd2",
]


@pytest.mark.parametrize("kind", OWN)
def test_it_has_the_members_of_a_data_set(kind):
    assert isinstance(OWN[kind](), Dataset)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("method", METHODS_OF_ALL_KINDS)
def test_a_run_on_it_trains_is_saved_resumed_and_sampled(method, kind, tmp_path):
    data = OWN[kind]()
    options = tiny(method, data, steps=4)
    whole = start_run(method, data, options)
    list(whole.updates())
    trained_to(resume_or_start(tmp_path, method, data, options, resume=False), 3, tmp_path)
    opened = open_run(tmp_path, data=data)
    assert opened.state.step == 2
    assert opened.data is data
    resumed = resume_or_start(tmp_path, method, data, options, resume=True)
    list(resumed.updates(tmp_path))
    assert_same_weights(resumed.state, whole.state)
    samples, labels = drawn(open_run(tmp_path, data=data))
    assert torch.equal(samples, drawn(whole)[0])
    assert samples.shape == (7, *data.shape)
    assert torch.equal(samples, data.finish(samples))
    assert (labels is None) == (data.classes is None)


def test_the_preset_is_that_of_its_kind():
    assert start_run("meanflow", points()).options == METHODS["meanflow"].points
    assert start_run("meanflow", images()).options == METHODS["meanflow"].images


@pytest.mark.parametrize("kind", ["labelled points", "labelled images", "a plain class"])
def test_a_class_is_asked_for(kind):
    data = OWN[kind]()
    run = start_run("meanflow", data, tiny("meanflow", data))
    list(run.updates())
    wanted = torch.tensor([1, 0, 1])
    _, labels = run.samples(3, generator=seeded(), labels=wanted)
    assert torch.equal(labels, wanted)
    with pytest.raises(ConfigError, match=f"0 to {data.classes - 1}"):
        run.samples(1, generator=seeded(), labels=torch.tensor([data.classes]))


def test_a_run_on_it_is_not_opened_without_it(tmp_path):
    data = points()
    list(start_run("meanflow", data, tiny("meanflow", data)).updates(tmp_path))
    with pytest.raises(ConfigError, match=r"'mine', an object of your own: give it, open_run\(folder, data=\.\.\.\)"):
        open_run(tmp_path)
    with pytest.raises(ConfigError, match="is a run on 'mine', the data set given is 'yours'"):
        open_run(tmp_path, data=points("yours"))


def test_its_teacher_is_a_run_folder_too(tmp_path):
    data = points()
    taught = small(METHODS["flow-matching"].points)
    list(start_run("flow-matching", data, taught).updates(tmp_path / "teacher"))
    options = tiny("dmd2", data, teacher_from=str(tmp_path / "teacher"))
    run = start_run("dmd2", data, options)
    list(run.updates())
    assert run.finished
    other = points("yours")
    with pytest.raises(ConfigError, match=r"'mine', an object of your own|learned mine"):
        start_run("dmd2", other, options)


def test_an_exact_score_is_of_modes_without_classes():
    data = Line()
    data.modes = (torch.zeros(1, 2), torch.ones(1), 0.5)
    with pytest.raises(ConfigError, match="without classes"):
        exact_teacher(data)


def test_precomputed_pairs_of_an_object_that_cannot_be_a_key():
    @attrs.define
    class Mutable(Line):
        note: str = ""

    data = Mutable()
    with pytest.raises(TypeError):
        hash(data)
    options = tiny("meanflow", data)
    assert options.coupling == "precomputed"
    run = start_run("meanflow", data, options)
    list(run.updates())
    assert run.finished


def test_a_method_of_ones_own_is_trained_evaluated_and_opened(tmp_path):
    """Under a name that no preset has."""
    options = OneCall(Training(steps=4, batch=20, checkpoint_every=2))
    run = start_run("mine", "8gaussians", options)
    list(run.updates(tmp_path))
    opened = open_run(tmp_path, method=OneCall)
    assert opened.options == options
    assert opened.finished
    assert [row.label for row in evaluate_runs([opened], repeats=2).rows] == ["mine"]
    with pytest.raises(ConfigError, match="no method is called 'mine'"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: start_run("drifting", torch.zeros(3, 2)), "a Tensor as data"),
        (lambda: start_run("drifting", ArrayDataset("../a/b", Batch(torch.randn(9, 2), None))), "is called '../a/b'"),
        (lambda: start_run("drifting", "8gaussians", MeanFlow()), "options of MeanFlow for the method 'drifting'"),
        (lambda: start_run("reflow", "8gaussians", teacher="exact"), "a str as teacher"),
        (lambda: start_run("meanflow", "8gaussians", device="nope"), "device 'nope' cannot be used"),
        (lambda: ArrayDataset("x", torch.zeros(9, 2)), "a tensor as a split of x"),
        (lambda: ArrayDataset("x", Batch(torch.randn(9, 2), None), level=-1.0), "level = -1.0"),
        (lambda: ArrayDataset("x", Batch(torch.randn(9, 2), None), kind="sound"), "kind = 'sound'"),
        (
            lambda: start_run("reflow", "8gaussians", teacher=start_run("flow-matching", "checkerboard")),
            "the teacher's run is on checkerboard",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_once(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_double_precision_data_are_trained_in_the_default_type():
    data = ArrayDataset("x", Batch(torch.randn(50, 2).double(), None))
    run = start_run("flow-matching", data, tiny("flow-matching"))
    assert len(list(run.updates())) == run.options.training.steps
