"""Pairs of a teacher: what it makes of the noise, made once, shared by methods, made again where damaged."""

import attrs
import pytest
import torch
from safetensors.torch import load_file, save

from onestep_adapters.data import open_dataset
from onestep_adapters.methods import Context, Reflow, Teacher
from onestep_adapters.methods.teacher_pairs import teacher_pairs
from onestep_adapters.runs import start_run
from onestep_adapters.runs.teachers import cache_folder, cache_key
from tests.adapters.methods.matching.games import NETWORK, tiny


def context_of(data, velocity, cache=None):
    """What a method trains with, with a teacher that is a function."""
    data = open_dataset(data)
    state = start_run("meanflow", data).state
    return Context(data, state, Teacher(lambda labels: velocity, lambda labels: velocity), cache)


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_pairs_are_what_a_teacher_makes_of_the_noise(data):
    """A constant velocity shifts the noise, for any number of solver steps; the same seed gives the same noise."""

    def ends(velocity):
        return teacher_pairs(context_of(data, velocity), count=30, solver_steps=3, seed=4)

    noise, (made, labels) = ends(lambda z, t: torch.full_like(z, 0.5))
    assert noise.shape == made.shape == (30, *open_dataset(data).shape)
    assert (labels is None) == (open_dataset(data).classes is None)
    torch.testing.assert_close(made, noise - 0.5, atol=1e-5, rtol=0)
    again, _ = ends(lambda z, t: 0 * z)
    assert torch.equal(noise, again)


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_pairs_are_made_once_for_every_teacher_and_choice_of_numbers(data, tmp_path):
    calls = []

    def velocity(z, t):
        calls.append(len(z))
        return torch.full_like(z, 0.5)

    context, numbers = context_of(data, velocity, tmp_path), {"count": 12, "solver_steps": 2, "seed": 0}
    noise, made = teacher_pairs(context, **numbers)
    torch.testing.assert_close(made.data, noise - 0.5, atol=1e-5, rtol=0)
    asked = len(calls)
    again, kept = teacher_pairs(context, **numbers)
    assert len(calls) == asked > 0
    assert torch.equal(again, noise)
    assert torch.equal(kept.data, made.data)
    assert (kept.labels is None) == (made.labels is None) == (context.data.classes is None)
    (file,) = tmp_path.glob("pairs-*")
    whole, tensors = file.read_bytes(), load_file(file)
    damage = {
        "half": whole[: len(whole) // 2],
        "a flipped bit": whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:],
        "zeros": bytes(len(whole)),
        "fewer rows": save({name: tensor[:10] for name, tensor in tensors.items()}),
        "another type": save({name: tensor.double() for name, tensor in tensors.items()}),
        "no hash": save(tensors),
    }
    for content in damage.values():
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged .* made again"):
            assert torch.equal(teacher_pairs(context, **numbers)[1].data, made.data)
        assert file.read_bytes() == whole
    for name, value in (("count", 5), ("solver_steps", 3), ("seed", 1)):
        before = len(calls)
        teacher_pairs(context, **{**numbers, name: value})
        assert len(calls) > before, name


def test_methods_share_the_pairs_of_a_teacher_and_another_teacher_has_its_own(new_teachers):
    first = tiny("dmd")
    other = first.teacher.with_seed(5)
    reflow = Reflow(first.training, NETWORK, first.teacher, pairs=30, solver_steps=2)
    for method, options in (("dmd", first), ("reflow", reflow)):
        list(start_run(method, "8gaussians", options).updates())
    made = new_teachers / "made"
    assert len(list(made.glob("*/pairs-*"))) == 1
    run = start_run("dmd", "8gaussians", attrs.evolve(first, teacher=other))
    list(run.updates())
    assert len(list(made.iterdir())) == 2
    assert cache_folder(cache_key(run.teacher_run.state.config)).is_dir()


def test_progress_is_shown():
    shown = []

    def track(items, title, total):
        shown.append((title, total))
        return iter(items)

    context = context_of("8gaussians", lambda z, t: z)
    context.track = track
    teacher_pairs(context, count=600, solver_steps=1, seed=0)
    assert shown == [("pairs of the teacher", 3)]
