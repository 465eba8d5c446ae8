"""Laws in the plane against their closed forms; the digits' splits."""

import hashlib
import itertools
import math
import subprocess
import sys

import pytest
import torch

from onestep_adapters.data import TOYS, Checkerboard, EightGaussians, SwissRoll, TwoMoons, UnequalMixture
from onestep_adapters.data.transport import optimal_noise
from onestep_core.errors import ConfigError, MissingExtraError, OneStepError

COUNT = 40_000


def draw(law, seed=0, count=COUNT):
    return law.sample(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TOYS)
def test_draws_are_reproducible_and_leave_the_global_generator_alone(name):
    before = torch.get_rng_state()
    first, again, other = draw(TOYS[name], 0, 50), draw(TOYS[name], 0, 50), draw(TOYS[name], 1, 50)
    assert first.shape == (50, 2)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("law", [EightGaussians(), UnequalMixture(), UnequalMixture(0.1, 4.0, 0.2)], ids=str)
def test_mixtures_have_the_modes_they_name(law):
    x = draw(law)
    mode = torch.cdist(x, law.means).argmin(1)
    masses = torch.bincount(mode, minlength=len(law.means)) / COUNT
    # Five standard errors of a share.
    assert ((masses - law.weights).abs() < 5 * (law.weights * (1 - law.weights) / COUNT).sqrt()).all()
    for k, mean in enumerate(law.means):
        members = x[mode == k]
        error = law.std / math.sqrt(len(members))
        assert (members.mean(0) - mean).abs().max() < 5 * error
        assert (members.std(0) - law.std).abs().max() < 5 * error
    assert law.weights.sum() == pytest.approx(1.0)


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


def test_digits():
    digits = pytest.importorskip("onestep_adapters.data.digits", exc_type=MissingExtraError)
    splits = digits.load_digits()
    assert tuple(len(part.labels) for part in splits) == digits.SIZES
    images = torch.cat([part.images for part in splits])
    assert images.dtype == torch.float32
    assert images.shape == (1797, 1, 8, 8)
    assert images.min() == -1
    assert images.max() == 1
    # Disjoint: all images of the set are different, and so are those of the splits together.
    assert len({hashlib.sha256(image.numpy().tobytes()).digest() for image in images}) == 1797
    whole = torch.bincount(torch.cat([part.labels for part in splits]))
    for part, size, bound in zip(splits, digits.SIZES, (2, 1, 1), strict=True):
        # The training split takes both remainders.
        assert (torch.bincount(part.labels) - whole * size / 1797).abs().max() < bound
    assert torch.equal(digits.load_digits().train.images, splits.train.images)


def test_quantizing_keeps_real_images_and_lands_on_their_levels():
    digits = pytest.importorskip("onestep_adapters.data.digits", exc_type=MissingExtraError)
    images = digits.load_digits().train.images
    assert torch.equal(digits.quantize(images), images)
    noisy = images + 0.06 * (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1)
    assert torch.equal(digits.quantize(noisy), images)
    assert set(digits.quantize(3 * torch.randn(9, 1, 8, 8)).unique().tolist()) <= {k / 8 - 1 for k in range(17)}


def test_other_digits_are_refused(monkeypatch):
    digits = pytest.importorskip("onestep_adapters.data.digits", exc_type=MissingExtraError)
    changed = digits.datasets.load_digits()
    changed.images[5, 3, 3] = 15 - changed.images[5, 3, 3]
    monkeypatch.setattr(digits.datasets, "load_digits", lambda: changed)
    with pytest.raises(OneStepError, match="would not compare"):
        digits.load_digits()


def test_without_scikit_learn_the_extra_is_named():
    script = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import onestep_adapters.data\n"
        "try:\n    import onestep_adapters.data.digits\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "MissingExtraError" in shown
    assert "pip install 'onestep[digits]'" in shown


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_optimal_noise_is_the_best_order_and_an_order(shape):
    g = torch.Generator().manual_seed(3)
    data, noise = (torch.randn(6, *shape, generator=g) for _ in "ab")
    found = optimal_noise(data, noise)
    costs = [((data - noise[list(order)]) ** 2).sum() for order in itertools.permutations(range(6))]
    torch.testing.assert_close(((data - found) ** 2).sum(), torch.stack(costs).min())
    assert sorted(found.flatten(1).tolist()) == sorted(noise.flatten(1).tolist())


def test_optimal_noise_stays_within_its_class():
    g = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (40,), generator=g)
    data, noise = torch.randn(40, 2, generator=g), torch.randn(40, 2, generator=g)
    found = optimal_noise(data, noise, labels)
    for k in range(3):
        own = labels == k
        assert sorted(found[own].tolist()) == sorted(noise[own].tolist())
        torch.testing.assert_close(found[own], optimal_noise(data[own], noise[own]))


def test_optimal_noise_refuses_two_shapes():
    with pytest.raises(ConfigError, match="one shape"):
        optimal_noise(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="size = 0"):
        optimal_noise(torch.zeros(3, 2), torch.zeros(3, 2), size=0)


def test_optimal_noise_in_parts():
    g = torch.Generator().manual_seed(5)
    data, noise = torch.randn(10, 2, generator=g), torch.randn(10, 2, generator=g)
    found = optimal_noise(data, noise, size=4)
    for start in (0, 4, 8):
        part = slice(start, start + 4)
        torch.testing.assert_close(found[part], optimal_noise(data[part], noise[part]))
