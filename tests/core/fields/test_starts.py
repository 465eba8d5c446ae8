"""Three initialisations, two mixtures: along which fields particles converge, and along which they do not.

Converged means: a total variation of the mode masses of at most 0.05 and, within each mode, a score of at most 0.05.
The ordinary run moves 300 particles of one seed; the thorough one 500, of three seeds, along every field.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[3] / "examples" / "drifting_starts.py"
_SPEC = importlib.util.spec_from_file_location("drifting_starts", SOURCE)
example = importlib.util.module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(example)  # type: ignore[union-attr]

CONVERGING = ("mean-shift, falling", "attraction-repulsion, falling", "sinkhorn, falling")
OTHERS = ("mean-shift, fine", "attraction-repulsion, fine", "released")


def outcomes(name, mixture, *, particles, updates, seed=0):
    mixture = example.MIXTURES[mixture]
    trails = example.run(
        example.MOTIONS[name], mixture, particles=particles, updates=updates, positives=particles, seed=seed
    )
    return {start: example.outcome(trail[-1], mixture) for start, trail in trails.items()}


def test_every_motion_is_in_one_of_the_lists():
    assert set(CONVERGING) | set(OTHERS) == set(example.MOTIONS)
    assert not set(CONVERGING) & set(OTHERS)


@pytest.mark.parametrize(
    ("name", "mixture"), [(CONVERGING[0], "unequal"), (CONVERGING[1], "bimodal"), (CONVERGING[1], "unequal")]
)
def test_a_falling_temperature_converges_from_every_initialisation(name, mixture):
    found = outcomes(name, mixture, particles=300, updates=100)
    assert all(outcome.converged for outcome in found.values()), found


def test_a_fine_temperature_leaves_the_masses_of_its_start():
    """Particles that are collapsed inside one mode all stay there, also where the mode's shape is right."""
    mixture, g = example.MIXTURES["unequal"], torch.Generator().manual_seed(0)
    x = example.starts(300, g)["collapsed"]
    trail = example.evolve(x, mixture, example.MOTIONS["mean-shift, fine"], updates=100, positives=300, generator=g)
    assert example.outcome(trail[-1], mixture).masses > 0.5


def test_the_released_temperatures_collapse():
    """The shape of each mode is wrong too: both thresholds fail."""
    found = outcomes("released", "bimodal", particles=150, updates=100)
    assert all(outcome.masses > 0.05 and outcome.score > 1 for outcome in found.values()), found


def test_pictures_are_drawn(tmp_path):
    mixture = example.MIXTURES["unequal"]
    trails = example.run(example.MOTIONS["mean-shift, fine"], mixture, particles=20, updates=4, positives=20, seed=0)
    assert all(len(trail) == 5 for trail in trails.values())
    example.draw_picture(trails, mixture, str(tmp_path / "starts.png"))
    example.draw_animation(trails, mixture, str(tmp_path / "starts.gif"), frames=3)
    assert (tmp_path / "starts.png").stat().st_size > 10_000
    assert (tmp_path / "starts.gif").read_bytes()[:3] == b"GIF"


@pytest.mark.thorough
@pytest.mark.parametrize("mixture", ["bimodal", "unequal"])
@pytest.mark.parametrize("name", CONVERGING + OTHERS)
def test_fields_converge_as_documented(name, mixture):
    found = [
        outcome
        for seed in range(3)
        for outcome in outcomes(name, mixture, particles=500, updates=150, seed=seed).values()
    ]
    if name in CONVERGING:
        assert all(outcome.converged for outcome in found), found
    else:
        assert not all(outcome.converged for outcome in found), found
