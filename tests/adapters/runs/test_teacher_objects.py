"""Teachers as values: a network of your own, the exact score; where they do not fit, nothing is trained before."""

import attrs
import pytest
import torch
from torch import nn

from onestep_adapters.data import open_dataset
from onestep_adapters.methods import METHODS, exact_teacher, network_teacher
from onestep_adapters.runs import open_run, resume_or_start, start_run
from onestep_adapters.training import CheckpointError
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, assert_same_weights, counted, drawn, flat, seeded, tiny, trained_to

pytestmark = pytest.mark.usefixtures("new_teachers")

STUDENTS = [name for name in METHODS if METHODS[name].points.teacher is not None and not name.endswith("-paper")]
FROM_DATA_OR_TEACHER = ["meanflow", "continuous-consistency"]


def network(seed=0, **changes):
    """A velocity network with weights that are not zero, of the small size."""
    made = attrs.evolve(NETWORK, **changes).build(open_dataset("8gaussians"), 1, seeded(seed))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2, generator=seeded(seed))
    return made


@pytest.mark.parametrize("method", STUDENTS)
def test_every_student_learns_from_a_network_of_your_own(method, new_teachers):
    module = network()
    before = flat(module)
    run = start_run(method, "8gaussians", tiny(method), teacher=network_teacher(module))
    assert run.teacher_run is None
    with counted() as found:
        list(run.updates())
    assert found["passes"] > 0
    assert run.finished
    assert torch.equal(flat(module), before), "a teacher is never trained"
    assert drawn(run)[0].isfinite().all()
    # Nothing was trained here, and pairs without a key are not kept.
    assert not new_teachers.exists()


@pytest.mark.parametrize("method", ["consistency-distillation", "easy-consistency", "dmd2", "progressive"])
def test_a_student_starts_from_the_network_of_your_own(method):
    module = network()
    run = start_run(method, "8gaussians", tiny(method), teacher=network_teacher(module))
    run.prepared()
    assert torch.equal(flat(run.state.network), flat(module))
    assert torch.equal(flat(run.state.ema), flat(module))


def test_a_network_of_another_kind_is_a_teacher_where_its_weights_are_not_taken():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, z, t, label=None):
            return self.layer(torch.cat([z, t[:, None]], 1))

    options = tiny("reflow", solver_steps=2)
    run = start_run("reflow", "8gaussians", options, teacher=network_teacher(Mine()))
    list(run.updates())
    assert run.finished
    with pytest.raises(ConfigError, match="give both the same network"):
        list(
            start_run(
                "consistency-distillation",
                "8gaussians",
                tiny("consistency-distillation"),
                teacher=network_teacher(Mine()),
            ).updates()
        )


@pytest.mark.parametrize("method", ["reflow", "dmd2", "rectified-meanflow"])
def test_pairs_with_a_key_are_kept(method, new_teachers):
    options = tiny(method) if method != "dmd2" else tiny(method, pairs_weight=1.0)
    teacher = network_teacher(network(), key="mine")
    list(start_run(method, "8gaussians", options, teacher=teacher).updates())
    assert len(list((new_teachers / "made" / "mine").glob("pairs-*"))) == 1


def exact_options(method):
    """Options with which a method learns from the exact score: the weights of a network are not needed."""
    if method == "reflow":
        return tiny(method, "unequal", teacher_from="exact")
    return tiny(method, "unequal", teacher_from="exact", pairs_only_share=0.0, pairs_weight=0.0)


@pytest.mark.parametrize("method", ["reflow", "dmd", "dmd2", "sid"])
def test_the_exact_score_is_a_teacher_by_its_word_and_as_an_object(method, new_teachers):
    options = exact_options(method)
    by_word = start_run(method, "unequal", options)
    list(by_word.updates())
    given = exact_teacher(open_dataset("unequal"))
    by_object = start_run(method, "unequal", options, teacher=given)
    list(by_object.updates())
    assert_same_weights(by_word.state, by_object.state)
    assert not new_teachers.exists()


@pytest.mark.parametrize(
    "method", ["consistency-distillation", "progressive", "rectified-meanflow", "meanflow-distillation"]
)
def test_a_student_cannot_start_from_the_exact_score(method, new_teachers):
    """It has no network. The error comes before anything is trained."""
    with pytest.raises(ConfigError, match="this teacher has none: give a teacher with a network"):
        start_run(method, "unequal", tiny(method, "unequal", teacher_from="exact"))
    with pytest.raises(ConfigError, match="this teacher has none"):
        start_run(method, "unequal", tiny(method, "unequal"), teacher=exact_teacher(open_dataset("unequal")))
    assert not new_teachers.exists()


@pytest.mark.parametrize("method", ["dmd", "dmd2", "sid"])
def test_a_network_that_learned_coupled_pairs_gives_no_score(method):
    given = network_teacher(network(), coupling="optimal")
    assert not given.knows_score
    with pytest.raises(ConfigError, match="independent pairs only"):
        start_run(method, "8gaussians", tiny(method), teacher=given)
    assert start_run("reflow", "8gaussians", tiny("reflow"), teacher=given).teacher is given


@pytest.mark.parametrize("method", ["consistency-distillation", "progressive", "dmd2"])
def test_a_network_of_another_size_is_refused_before_the_first_update(method):
    options = tiny(method) if method != "dmd2" else tiny(method, pairs_only_share=0.0)
    run = start_run(method, "8gaussians", options, teacher=network_teacher(network(width=12)))
    with pytest.raises(ConfigError, match="give both the same network"):
        run.updates()
    assert run.state.step == 0


@pytest.mark.parametrize("method", ["drifting", "flow-matching", "shortcut", "consistency-training", "moment-matching"])
def test_a_method_that_learns_from_data_alone_refuses_a_teacher(method):
    with pytest.raises(ConfigError, match="learns from data alone"):
        start_run(method, "8gaussians", tiny(method), teacher=network_teacher(network()))


@pytest.mark.parametrize("method", FROM_DATA_OR_TEACHER)
def test_a_method_that_may_have_a_teacher_uses_the_one_given(method):
    changes = {"distilled": False} if method == "continuous-consistency" else {}
    options = attrs.evolve(tiny(method), teacher=None, **changes)
    module = network()
    run = start_run(method, "8gaussians", options, teacher=network_teacher(module))
    run.prepared()
    assert run.options.teacher is not None
    samples = [run.options.sample(x, torch.ones(2, 2), None) for x in (run.state.network, run.state.ema)]
    assert torch.equal(*samples)
    assert samples[0].abs().max() > 0
    assert run.state.network.output.weight.abs().max() > 0, "it started from the teacher's weights"


def test_no_module_is_no_teacher():
    with pytest.raises(ConfigError, match=r"expected an nn\.Module"):
        network_teacher(lambda z, t, label: z)


def test_a_run_with_a_teacher_object_resumes_with_it_and_with_no_other(tmp_path):
    options, module = tiny("dmd2", steps=5), network()
    whole = start_run("dmd2", "8gaussians", options, teacher=network_teacher(module))
    list(whole.updates())
    trained_to(
        resume_or_start(tmp_path, "dmd2", "8gaussians", options, resume=False, teacher=network_teacher(module)),
        3,
        tmp_path,
    )
    unfinished = open_run(tmp_path)
    assert drawn(unfinished)[0].isfinite().all()
    with pytest.raises(ConfigError, match="give the same one"):
        unfinished.updates(tmp_path)
    with pytest.raises(ConfigError, match="another teacher"):
        open_run(tmp_path, teacher=network_teacher(network(1))).updates(tmp_path)
    with pytest.raises(CheckpointError, match="another teacher"):
        resume_or_start(tmp_path, "dmd2", "8gaussians", options, resume=True, teacher=network_teacher(network(1)))
    with pytest.raises(CheckpointError, match="give the same one"):
        resume_or_start(tmp_path, "dmd2", "8gaussians", options, resume=True)
    resumed = open_run(tmp_path, teacher=network_teacher(module))
    assert resumed.state.step == 2
    list(resumed.updates(tmp_path))
    assert_same_weights(resumed.state, whole.state)
    assert open_run(tmp_path).finished


def test_the_velocity_of_the_exact_score_is_finite_from_end_to_end():
    """A velocity that is made from the denoiser divides by zero at the data end, where a solver evaluates it."""
    teacher = exact_teacher(open_dataset("unequal"))
    z = torch.randn(5, 2, generator=seeded())
    for time in (0.0, 1e-3, 0.5, 1.0):
        t = torch.full((5,), time)
        velocity = teacher.velocity(None)(z, t)
        assert velocity.isfinite().all()
        if time:
            expected = (z - teacher.denoiser(None)(z, t)) / time
            torch.testing.assert_close(velocity, expected, atol=1e-3, rtol=1e-3)
