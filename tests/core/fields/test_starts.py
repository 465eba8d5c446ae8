"""Three starts, two mixtures: which fields bring particles home, and which do not.

Home is a total variation of the mode masses of at most 0.05 and, within each mode, a score of at most 0.05. The
ordinary run moves 300 particles of one seed; the thorough one 500, of three seeds, along every field.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[3] / "examples" / "drifting_starts.py"
_SPEC = importlib.util.spec_from_file_location("drifting_starts", SOURCE)
example = importlib.util.module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(example)  # type: ignore[union-attr]

HOME = ("mean-shift, falling", "attraction-repulsion, falling", "sinkhorn, falling")
LOST = ("mean-shift, fine", "attraction-repulsion, fine", "released")


def outcomes(name, law, *, particles, updates, seed=0):
    law = example.LAWS[law]
    trails = example.run(
        example.MOTIONS[name], law, particles=particles, updates=updates, positives=particles, seed=seed
    )
    return {start: example.outcome(trail[-1], law) for start, trail in trails.items()}


def test_every_motion_is_said_to_be_home_or_lost():
    assert set(HOME) | set(LOST) == set(example.MOTIONS)
    assert not set(HOME) & set(LOST)


@pytest.mark.parametrize(("name", "law"), [(HOME[0], "unequal"), (HOME[1], "bimodal"), (HOME[1], "unequal")])
def test_a_falling_temperature_brings_every_start_home(name, law):
    found = outcomes(name, law, particles=300, updates=100)
    assert all(outcome.home for outcome in found.values()), found


def test_a_fine_temperature_leaves_the_masses_of_its_start():
    """Collapsed inside one mode all stay there, however good the mode looks."""
    law, g = example.LAWS["unequal"], torch.Generator().manual_seed(0)
    x = example.starts(300, g)["collapsed"]
    trail = example.evolve(x, law, example.MOTIONS["mean-shift, fine"], updates=100, positives=300, generator=g)
    assert example.outcome(trail[-1], law).masses > 0.5


def test_the_released_temperatures_collapse():
    """What is left of each mode is no mode: the other bar fails."""
    found = outcomes("released", "bimodal", particles=150, updates=100)
    assert all(outcome.masses > 0.05 and outcome.score > 1 for outcome in found.values()), found


def test_pictures_are_drawn(tmp_path):
    law = example.LAWS["unequal"]
    trails = example.run(example.MOTIONS["mean-shift, fine"], law, particles=20, updates=4, positives=20, seed=0)
    assert all(len(trail) == 5 for trail in trails.values())
    example.draw_picture(trails, law, str(tmp_path / "starts.png"))
    example.draw_animation(trails, law, str(tmp_path / "starts.gif"), frames=3)
    assert (tmp_path / "starts.png").stat().st_size > 10_000
    assert (tmp_path / "starts.gif").read_bytes()[:3] == b"GIF"


@pytest.mark.thorough
@pytest.mark.parametrize("law", ["bimodal", "unequal"])
@pytest.mark.parametrize("name", HOME + LOST)
def test_home_or_lost_as_documented(name, law):
    found = [
        outcome for seed in range(3) for outcome in outcomes(name, law, particles=500, updates=150, seed=seed).values()
    ]
    if name in HOME:
        assert all(outcome.home for outcome in found), found
    else:
        assert not all(outcome.home for outcome in found), found
