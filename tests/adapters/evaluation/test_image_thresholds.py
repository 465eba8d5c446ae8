"""Thresholds of images, on the real digits."""

import pytest
import torch

from onestep_adapters.evaluation import Row, image_verdicts
from onestep_adapters.evaluation.image_criteria import METRICS
from onestep_adapters.evaluation.judges import image_comparison, image_references, image_row
from onestep_adapters.metrics import Estimate, ImageSplits, measure, measure_references, train_classifier
from onestep_core.errors import ConfigError

NEAREST = METRICS["nearest_training"].heading


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from onestep_adapters.data.digits import load_digits

    train, validation, test = load_digits()
    classifier = train_classifier(*train, validation_images=validation.data, validation_labels=validation.labels)
    splits = ImageSplits(train.data, validation.data, train.labels)
    measured = measure_references(splits=splits, classifier=classifier, generator=generator(), repeats=3)
    comparison = image_comparison(splits, classifier, measured["floor"])
    return splits, classifier, image_references(measured), test.data, comparison


def measured(digits, samples, repeats=2, **settings):
    splits, classifier = digits[:2]
    return measure(samples, splits=splits, classifier=classifier, generator=generator(), repeats=repeats, **settings)


def verdicts(digits, row, baseline=None):
    return image_verdicts(row, baseline, digits[2], digits[4])


def missed(digits, samples, baseline=None):
    row = image_row("method", measured(digits, samples))
    return {verdict.name for verdict in verdicts(digits, row, baseline) if not verdict.passed}


def test_floor_is_near_perfect_and_moments_fail(digits):
    floor, moments, classes, again = (row.metrics for row in digits[2].rows)
    assert floor["neighbour_accuracy"].mean == pytest.approx(0.5, abs=0.05)
    assert floor["density"].mean == pytest.approx(1, abs=0.1)
    assert floor["coverage"].mean > 0.93
    assert moments["neighbour_accuracy"].mean > 0.75
    assert classes["label_agreement"].mean > 0.95
    assert floor["nearest_training"].mean > 1  # its own copy in the training split is left out
    assert again["nearest_training"].mean == 0  # and here it is not
    assert again["neighbour_accuracy"].mean > floor["neighbour_accuracy"].mean + 0.02
    assert again["label_agreement"].mean > 0.99
    found = {v.name: v for v in verdicts(digits, digits[2].moments)}
    assert {name for name, v in found.items() if v.passed} == {NEAREST}
    assert not all(v.passed for v in verdicts(digits, digits[2].class_moments))


def test_held_out_images_of_another_split_pass_everything_but_luck(digits):
    found = measured(digits, digits[3], repeats=1)
    names = {v.name for v in verdicts(digits, image_row("real", found)) if not v.passed}
    assert names <= {NEAREST}
    assert found.metrics["nearest_training"].mean == pytest.approx(found.held_out_nearest, rel=0.1)
    assert found.metrics["nearest_training"].se is None


def test_copies_of_the_training_set_miss_the_last_threshold_only(digits):
    samples = digits[0].train[:700]
    found = measured(digits, samples)
    assert found.metrics["nearest_training"].mean == 0
    assert missed(digits, samples) == {NEAREST}


def test_a_constant_generator_misses_all_but_the_last(digits):
    constant = digits[0].train.mean(0, keepdim=True).expand(700, -1, -1, -1)
    names = missed(digits, constant)
    assert {"1-NN accuracy", "coverage", "E² in features", "Fréchet in features"} <= names


def test_noise_misses_density(digits):
    assert "density" in missed(digits, torch.randn(700, 1, 8, 8, generator=generator()))


def test_each_threshold_is_at_its_limit(digits):
    references, comparison = digits[2], digits[4]
    floor = references.floor
    values = {name: e.mean for name, e in floor.metrics.items()}

    def row(name, changes, se=0.0):
        metrics = {k: Estimate(v, se) for k, v in {**values, "nearest_training": 9.0, **changes}.items()}
        return Row(name, metrics)

    baseline = row("baseline", {})
    halfway = {
        name: (values[name] + references.class_moments.metrics[name].mean) / 2
        for name in ("energy_features", "frechet_features")
    }
    limits = {
        "neighbour_accuracy": values["neighbour_accuracy"] + 0.05,
        "density": 0.8 * values["density"],
        "coverage": 0.8 * values["coverage"],
        "energy_features": max(halfway["energy_features"], values["energy_features"] + 0.002),
        "frechet_features": max(halfway["frechet_features"], values["frechet_features"] + 0.002),
        "nearest_training": comparison.facts["held_out_nearest"],
    }
    for name, limit in limits.items():
        sign = 1 if name in ("density", "coverage", "nearest_training") else -1
        for step, expected in ((1e-6, True), (-1e-6, False)):
            found = verdicts(digits, row("method", {name: limit + sign * step}, se=0.001), baseline)
            assert {v.name: v.passed for v in found}[METRICS[name].heading] is expected, name
            assert sum(not v.passed for v in found) == (not expected)
    # Above the moments row, also where the baseline is worse.
    poor = row("baseline", {"density": 0.01, "coverage": 0.01})
    found = {v.name: v for v in verdicts(digits, row("method", {"density": 0.02, "coverage": 0.02}), poor)}
    assert not found["density"].passed
    assert not found["coverage"].passed
    assert comparison.split == "validation"


def test_a_row_without_metrics_misses_every_threshold(digits):
    assert all(v.value is None and not v.passed for v in verdicts(digits, Row("diverged", None)))
    with pytest.raises(ConfigError, match="no metrics"):
        verdicts(digits, digits[2].floor, Row("broken", None))
