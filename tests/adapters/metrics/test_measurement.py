"""Metrics of real digits."""

import copy
import math

import attrs
import pytest
import torch

from onestep_adapters.metrics import (
    Estimate,
    ImageSplits,
    class_gaussians_like,
    estimate,
    gaussian_like,
    measure,
    measure_references,
    train_classifier,
)
from onestep_core.errors import ConfigError

METRICS = {
    "neighbour_accuracy", "density", "coverage", "energy_features", "frechet_features", "nearest_training",
    "class_variation", "label_agreement", "precision", "recall", "sliced_pixels", "energy_pixels", "frechet_pixels",
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from onestep_adapters.data.digits import load_digits

    train, validation, test = load_digits()
    classifier = train_classifier(*train, validation_images=validation.data, validation_labels=validation.labels)
    splits = ImageSplits(train.data, validation.data, train.labels)
    return splits, classifier, test.data


def measured(digits, samples, repeats=2, **settings):
    splits, classifier = digits[:2]
    return measure(samples, splits=splits, classifier=classifier, generator=generator(), repeats=repeats, **settings)


def test_classifier_is_deterministic_cached_and_good(digits):
    splits, classifier, spare = digits
    assert classifier.validation_accuracy > 0.96
    assert classifier.features(spare).shape == (350, 32)
    settings = {"validation_images": splits.held_out, "validation_labels": torch.zeros(350, dtype=torch.long)}
    global_state = torch.get_rng_state()
    first = train_classifier(splits.train, splits.train_labels, **settings, steps=20)
    again = train_classifier(splits.train, splits.train_labels, **settings, steps=20)
    other = train_classifier(splits.train, splits.train_labels, **settings, steps=20, seed=1)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert first is again
    assert not torch.equal(first.features(spare), other.features(spare))


def test_measure_does_not_depend_on_the_order_of_the_metrics_or_on_the_global_generator(digits):
    samples = digits[0].train[:700]
    first = measured(digits, samples)
    torch.rand(3)
    assert measured(digits, samples) == first
    assert set(first.metrics) == set(METRICS) - {"label_agreement"}
    assert sum(first.histogram) == pytest.approx(1)
    assert sum(first.held_out_histogram) == pytest.approx(1)


def test_measure_says_what_is_wrong(digits):
    samples = digits[0].train[:700].clone()
    with pytest.raises(ConfigError, match=r"3 draws .* need 1050 samples, got 700"):
        measured(digits, samples, repeats=3)
    with pytest.raises(ConfigError, match=r"expected samples of shape \[N, 1, 8, 8\]"):
        measured(digits, samples.flatten(1))
    with pytest.raises(ConfigError, match="one label per sample"):
        measured(digits, samples, labels=torch.zeros(3, dtype=torch.long))
    samples[5, 0, 0, 0], samples[9] = math.nan, math.inf
    with pytest.raises(ConfigError, match="2 of 700 samples hold NaN or infinity"):
        measured(digits, samples)
    with pytest.raises(ConfigError, match="finite mean"):
        Estimate(math.nan)
    with pytest.raises(ConfigError, match="of one size"):
        ImageSplits(torch.zeros(9, 1, 8, 8), torch.zeros(3, 1, 4, 4))


def test_gaussians_have_the_moments_of_their_data():
    data = normal(30, 4) @ normal(4, 4, 1) + 3
    drawn = gaussian_like(data, 40_000, generator=generator())
    assert torch.allclose(drawn.mean(0), data.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(data.T), rtol=0.1, atol=0.2)
    labels = torch.arange(30) % 3
    drawn, classes = class_gaussians_like(data, labels, 30_000, generator=generator())
    for c in range(3):
        assert torch.allclose(drawn[classes == c].mean(0), data[labels == c].mean(0), atol=0.15)
    assert estimate([2.0]) == Estimate(2.0, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_metrics_on_a_gpu_are_those_on_the_cpu(digits):
    """For the same images; the draws of a generator on a GPU are others, so one draw of all images is compared."""
    splits, classifier, spare = digits
    on_gpu = ImageSplits(splits.train.cuda(), splits.held_out.cuda(), splits.train_labels.cuda())
    moved = attrs.evolve(
        classifier, body=copy.deepcopy(classifier.body).cuda(), head=copy.deepcopy(classifier.head).cuda()
    )
    random = torch.Generator("cuda").manual_seed(0)
    found = measure(spare.cuda(), splits=on_gpu, classifier=moved, generator=random, repeats=1).metrics
    for name, expected in measured(digits, spare, repeats=1).metrics.items():
        tolerance = 0.1 if name == "sliced_pixels" else 1e-3
        assert found[name].mean == pytest.approx(expected.mean, rel=tolerance, abs=1e-3), name
    drawn = measure_references(splits=on_gpu, classifier=moved, generator=random, repeats=1)
    assert drawn["floor"].metrics["coverage"].mean > 0.9
    other = train_classifier(
        on_gpu.train, on_gpu.train_labels, validation_images=spare.cuda(), validation_labels=moved.predict(spare.cuda())
    )
    assert other.features(spare.cuda()).is_cuda
    assert other.validation_accuracy > 0.9
