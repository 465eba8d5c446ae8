"""How reports on images judge: metrics, thresholds and what they mean.

A metric has a threshold only where a Gaussian with the training mean and covariance fails it. The energy distance and
the Fréchet distance in pixels are therefore shown without a threshold. The thresholds compare a method with a
*baseline*, a many-step sampler with the same network and at least the method's training updates. The baseline itself is
compared with the *floor*, real images against real images.
"""

import math

from onestep_adapters.evaluation.rows import Comparison, Metric, References, Row, Verdict, allowance, number, verdict
from onestep_adapters.metrics import Estimate
from onestep_core.errors import ConfigError

METRICS: dict[str, Metric] = {
    "neighbour_accuracy": Metric(
        "1-NN accuracy",
        "how often the nearest other image, in pixels, predicts whether an image is real or generated. 0.5: the two "
        "cannot be distinguished; 1: always. **Threshold.**",
    ),
    "density": Metric(
        "density",
        "number of neighbourhoods of real images that hold a generated one, in pixels, over the number expected. About "
        "1 for real images; above 1 for samples that stay where real images are dense. **Threshold.**",
    ),
    "coverage": Metric(
        "coverage",
        "share of real images with a generated one in their neighbourhood, in pixels. Missing modes lower it. "
        "**Threshold.**",
    ),
    "energy_features": Metric(
        "E² in features",
        "squared energy distance between the classifier's features of the two sets, unbiased: 0 in expectation if the "
        "distributions are equal, so below 0 by chance, and below 0 where the splits are stratified by class: the "
        "floor shows by how much. **Threshold.**",
    ),
    "frechet_features": Metric(
        "Fréchet in features",
        "squared Fréchet distance in those features; biased upwards by the finite count, as the floor shows. "
        "**Threshold.**",
    ),
    "nearest_training": Metric(
        "nearest training image, 5 %",
        "5 % quantile of the distance, in pixels, to the nearest training image. Far below that of the held-out "
        "images, the samples are copies. **Threshold.**",
    ),
    "class_variation": Metric(
        "class variation",
        "total variation between the predicted classes of the two sets: 0 equal, 1 disjoint. No threshold.",
    ),
    "label_agreement": Metric(
        "label agreement",
        "share of samples that the classifier puts in the class that the sampler was given. No threshold.",
    ),
    "precision": Metric("precision", "share of generated images in a real neighbourhood, in pixels. No threshold."),
    "recall": Metric("recall", "share of real images in a generated neighbourhood, in pixels. No threshold."),
    "sliced_pixels": Metric("sliced W in pixels", "sliced Wasserstein distance in pixels. No threshold."),
    "energy_pixels": Metric(
        "E² in pixels",
        "squared energy distance in pixels. No threshold: a fitted Gaussian would pass it.",
    ),
    "frechet_pixels": Metric(
        "Fréchet in pixels",
        "squared Fréchet distance in pixels. No threshold: a fitted Gaussian would pass it.",
    ),
}
"""Heading and meaning of every metric, in the order of the table."""


def encoder_columns(encoder: str) -> dict[str, Metric]:
    """Heading and meaning of the metrics in the features of an encoder, in the order of the table.

    Args:
        encoder: its name.

    Example:
        >>> encoder_columns("efficientnet-lite0")["encoder_frechet"].heading
        'FD in efficientnet-lite0'
    """
    where = f"in the pooled features of {encoder}"
    return {
        "encoder_frechet": Metric(
            f"FD in {encoder}",
            f"squared Fréchet distance {where}; biased upwards by the finite count, as the floor shows. No threshold.",
        ),
        "encoder_kernel": Metric(
            f"KD in {encoder}",
            f"kernel distance {where}: unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, over "
            "all samples of a draw; 0 in expectation if the distributions are equal, so below 0 by chance. No "
            "threshold.",
        ),
        "encoder_precision": Metric(
            f"precision in {encoder}", f"share of generated images in a real neighbourhood, {where}. No threshold."
        ),
        "encoder_recall": Metric(
            f"recall in {encoder}", f"share of real images in a generated neighbourhood, {where}. No threshold."
        ),
        "encoder_density": Metric(
            f"density in {encoder}",
            f"number of neighbourhoods of real images that hold a generated one, over the number expected, {where}. "
            "No threshold.",
        ),
        "encoder_coverage": Metric(
            f"coverage in {encoder}",
            f"share of real images with a generated one in their neighbourhood, {where}. No threshold.",
        ),
    }


def image_verdicts(
    row: Row, baseline: Row | None, references: References, comparison: Comparison
) -> tuple[Verdict, ...]:
    """The verdicts on all thresholds.

    ::

        1-NN accuracy                    <=  baseline + 0.05
        density, coverage                >=  0.8 baseline,  and  >  moments
        E², Fréchet in features          <=  baseline + 2 se   or   <=  (floor + class moments) / 2
        nearest training image, 5 %      >=  that of the held-out images

    without the third line for images without classes, with ``se`` the standard error of the difference from the
    baseline. The last threshold has no margin for error: the quantile of a few hundred real images is below that of
    others half of the time, so a method passes by being a little further from the training images than real images are.

    Args:
        row: the method.
        baseline: what it has to match; ``None``, or ``row`` itself, compares with the floor.
        references: the floor, the moments and, where there are labels, those per class.
        comparison: with the fact ``held_out_nearest``.

    Raises:
        ConfigError: if a row to compare with has no metrics.

    Example:
        See :func:`~onestep_adapters.evaluation.report.make_report`.
    """
    peer, name = (
        (references.floor, "the floor")
        if baseline is None or baseline.label == row.label
        else (baseline, "the baseline")
    )
    against, low, high, classes = (
        _measured(other, row)
        for other in (peer, references.floor, references.moments, references.class_moments or references.moments)
    )
    mine = row.metrics
    found = []

    # Images without classes have no features.
    featured = [metric for metric in ("energy_features", "frechet_features") if metric in against]

    def judge(metric: str, limit: float, relation: str, why: str) -> None:
        value = None if mine is None else mine[metric].mean
        found.append(verdict(METRICS[metric].heading, value, relation, limit, why))

    accuracy = against["neighbour_accuracy"].mean
    judge("neighbour_accuracy", accuracy + 0.05, "<=", f"{number(accuracy)} of {name} plus 0.05")
    for metric in ("density", "coverage"):
        share, gaussian = 0.8 * against[metric].mean, high[metric].mean
        if share > gaussian:
            judge(metric, share, ">=", f"0.8 times {number(share / 0.8)} of {name}")
        else:
            judge(metric, gaussian, ">", "that of the moments row")
    for metric in featured:
        rival, own = against[metric], mine[metric] if mine is not None else Estimate(0.0, 0.0)
        near = rival.mean + 2 * math.hypot(rival.se or 0.0, own.se or 0.0)
        halfway = (low[metric].mean + classes[metric].mean) / 2
        if near >= halfway:
            judge(metric, near, "<=", f"{number(rival.mean)} of {name} {allowance(rival, own)}")
        else:
            judge(metric, halfway, "<=", "halfway from the floor to the moments, per class where there are labels")
    judge("nearest_training", comparison.facts["held_out_nearest"], ">=", "that of the held-out images")
    return tuple(found)


def image_opening(comparison: Comparison, draws: int) -> str:
    """The first sentence of a report."""
    total = comparison.facts.get("split_size")
    real = f"the {comparison.count}" if total is None else f"{comparison.count} of the {total:,.0f}"
    means = "one draw, which gives no standard error" if draws == 1 else "mean ± standard error over independent draws"
    return (
        f"Every number compares {comparison.count} generated images with {real} images of the "
        f"**{comparison.split}** split: {means}."
    )


def image_meanings(comparison: Comparison, references: References) -> str:
    """What the reference rows are, and which images are compared."""
    per_class = ", and one per class" if references.class_moments else ""
    resampled = (
        " *resampled* draws training images with replacement, as a generator that memorises the training set: it "
        "passes every threshold but those that detect copies. Images that are drawn twice are each other's neighbours, "
        "so its 1-NN accuracy is above that of the floor; a generator has a lower one through the images that are not "
        "in the training set."
    )
    accuracy = comparison.facts.get("classifier_accuracy")
    classifier = (
        "The images have no classes, so there is no classifier, and nothing is compared in its features. "
        if accuracy is None
        else "The classifier was trained on the training split and is "
        f"right on {100 * accuracy:.1f} % of the validation split; its features are "
        "measured in units of their own standard deviation. "
    )
    return (
        f"Samples are compared with the {comparison.split} split, on which nothing was trained; only the distance to "
        f"the nearest training image uses the training split. {classifier}"
        "*floor* compares real training images with held-out ones: no generator is expected to do better. *moments* is "
        "a Gaussian with the training mean and "
        f"covariance{per_class}: a metric that it passes does not test a generator."
        f"{resampled if references.resampled else ''} The {comparison.split} images' own 5 % quantile of the distance "
        f"to the nearest training image is {number(comparison.facts['held_out_nearest'])}."
    )


def _measured(other: Row, row: Row) -> dict[str, Estimate]:
    if other.metrics is None:
        raise ConfigError(f"row {other.label!r} has no metrics to compare {row.label!r} with: measure it")
    return dict(other.metrics)
