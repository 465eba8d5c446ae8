"""Thresholds of points: scores with known answers, and their verdicts."""

import math
from types import SimpleNamespace

import pytest
import torch

from onestep_adapters.evaluation import Comparison, Row, make_report
from onestep_adapters.evaluation.point_criteria import point_metrics, point_references
from onestep_adapters.metrics import ToyScore, average_score, toy_reference, toy_score


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Ring:
    def __init__(self, modes=4, std=0.1):
        angle = torch.arange(modes) * (2 * math.pi / modes)
        self.means, self.std = torch.stack([angle.cos(), angle.sin()], 1), std
        self.modes = SimpleNamespace(means=self.means)

    def sample(self, count, *, generator=None):
        mode = torch.randint(len(self.means), (count,), generator=generator)
        return self.means[mode] + self.std * torch.randn(count, 2, generator=generator)


@pytest.fixture(scope="module")
def ring():
    distribution = Ring()
    return distribution, toy_reference(distribution, generator=generator(), count=1500, draws=3)


def scored(ring, sampler):
    distribution, reference = ring
    return toy_score(sampler, distribution, generator=generator(7), reference=reference)


def row(name, score):
    if score is None:
        return Row(name, None)
    return Row(name, point_metrics(score), draws=3, breakdown=score.spreads or ())


def report(score, baseline):
    """Of a method and a baseline that was measured to have these scores; ``None``: whose samples were not finite."""
    return make_report(
        [row("method", score), row("baseline", baseline)],
        kind="points",
        data="ring",
        comparison=Comparison("fresh draws", 1500),
        references=point_references(0.0, 1.0),
        baseline="baseline",
    )


def judged(score, baseline):
    return report(score, baseline).verdicts["method"]


def overall(score, baseline):
    return report(score, baseline).overall("method")


def test_score_of_the_distribution_is_zero_and_of_its_moments_one(ring):
    distribution, _ = ring
    real = scored(ring, lambda n, g: distribution.sample(n, generator=g))
    assert abs(real.score) < 4 * real.se + 0.01
    assert real.mass_error < 0.05
    assert overall(real, real) == overall(average_score([real, real, real]), average_score([real])) == "pass"
    fitted = scored(ring, lambda n, g: math.sqrt(0.51) * torch.randn(n, 2, generator=g))
    assert fitted.score == pytest.approx(1, abs=0.1)
    assert overall(fitted, real) == "miss"


def test_thresholds_miss_a_lost_mode_a_wrong_width_and_an_untrained_baseline(ring):
    distribution, _ = ring
    real = scored(ring, lambda n, g: distribution.sample(n, generator=g))
    uneven = scored(ring, lambda n, g: Ring().means[torch.randint(3, (n,), generator=g)] + 0.1 * torch.randn(n, 2))
    assert uneven.mass_error == pytest.approx(0.25, abs=0.03)
    assert uneven.spreads[3] == 0
    narrow = scored(ring, lambda n, g: Ring(std=0.07).sample(n, generator=g))
    assert all(ratio == pytest.approx(0.7, abs=0.05) for ratio in narrow.spreads)
    verdicts = judged(narrow._replace(score=0.0), real)
    assert [v.name for v in verdicts if not v.passed] == ["mode widths"]
    assert verdicts[2].value == pytest.approx(0.3, abs=0.05)
    verdicts = judged(real._replace(score=0.0, mass_error=0.06), real)
    assert [v.name for v in verdicts if not v.passed] == ["mode masses"]
    assert overall(real, real._replace(score=0.031)) == "baseline not trained"
    assert overall(real, real._replace(score=0.5)) == "baseline not trained"
    assert overall(real, None) == "baseline not trained"


def test_toy_score_limit_and_average():
    low, high = ToyScore(0.02, 0.003, 0, 0, 1), ToyScore(0.04, 0.004, 0, 0, 1)
    assert judged(low, low)[0].limit == pytest.approx(0.046)
    assert overall(low._replace(score=0.047), low) == "miss"
    assert average_score([low, high]).score == pytest.approx(0.03)
    assert average_score([low, high]).se == pytest.approx(0.0025)
