"""2-D toys against their closed forms."""

import math

import pytest
import torch

from onestep_adapters.data import TOYS, Checkerboard, EightGaussians, SwissRoll, TwoMoons, UnequalMixture
from onestep_core.errors import ConfigError

COUNT = 40_000


def draw(toy, seed=0, count=COUNT):
    return toy.sample(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TOYS)
def test_draws_are_reproducible_and_leave_the_global_generator_alone(name):
    before = torch.get_rng_state()
    first, again, other = draw(TOYS[name], 0, 50), draw(TOYS[name], 0, 50), draw(TOYS[name], 1, 50)
    assert first.shape == (50, 2)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("toy", [EightGaussians(), UnequalMixture(), UnequalMixture(0.1, 4.0, 0.2)], ids=str)
def test_mixtures_have_the_modes_they_name(toy):
    x = draw(toy)
    mode = torch.cdist(x, toy.means).argmin(1)
    masses = torch.bincount(mode, minlength=len(toy.means)) / COUNT
    # Five standard errors of a share.
    assert ((masses - toy.weights).abs() < 5 * (toy.weights * (1 - toy.weights) / COUNT).sqrt()).all()
    for k, mean in enumerate(toy.means):
        members = x[mode == k]
        error = toy.std / math.sqrt(len(members))
        assert (members.mean(0) - mean).abs().max() < 5 * error
        assert (members.std(0) - toy.std).abs().max() < 5 * error
    assert toy.weights.sum() == pytest.approx(1.0)


def test_checkerboard_is_uniform_on_its_dark_squares():
    x = draw(Checkerboard())
    square = (x + 2).floor().long()
    assert ((square >= 0) & (square < 4)).all()
    counts = torch.bincount(square[:, 0] * 4 + square[:, 1], minlength=16).reshape(4, 4)
    dark = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert (counts[~dark] == 0).all()
    assert (counts[dark] / COUNT - 1 / 8).abs().max() < 5 * math.sqrt(7 / 64 / COUNT)
    inside = x + 2 - square
    assert (inside.mean(0) - 0.5).abs().max() < 0.01
    assert (inside.var(0) - 1 / 12).abs().max() < 0.002


def test_curves_without_noise_lie_on_their_curves():
    x = draw(SwissRoll(std=0.0), count=1000)
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    turns = (4.5 * math.pi * radius / 2 - angle) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-4, rtol=0)
    x = draw(TwoMoons(scale=1.0, std=0.0))
    upper = (x - torch.tensor([-0.5, -0.25])).norm(dim=1)
    lower = (x - torch.tensor([0.5, 0.25])).norm(dim=1)
    on_upper = (upper - 1).abs() < 1e-5
    assert (on_upper | ((lower - 1).abs() < 1e-5)).all()
    assert on_upper.float().mean() == pytest.approx(0.5, abs=0.02)
    assert x.mean(0).abs().max() < 0.2


@pytest.mark.parametrize(
    "make",
    [
        lambda: EightGaussians(std=0.0),
        lambda: EightGaussians(radius=-1.0),
        lambda: UnequalMixture(1.0),
        lambda: Checkerboard(math.inf),
        lambda: SwissRoll(std=-0.1),
        lambda: TwoMoons(scale=math.nan),
    ],
)
def test_constants_out_of_range(make):
    with pytest.raises(ConfigError, match="expected"):
        make()
