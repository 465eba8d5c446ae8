"""Rows of a report, and the bars that a row has to clear.

A number is a bar only where a Gaussian with the training mean and covariance fails it. The energy distance
and the Fréchet distance in pixels are therefore shown and never barred. The bars compare a method with a
*yardstick*, a many-step sampler with the same network and at least the method's training steps; the
yardstick itself is compared with the *floor*, real images against real images.
"""

import math
from typing import NamedTuple

import attrs

from onestep_adapters.metrics.measurement import Estimate, Measurement
from onestep_core.errors import ConfigError

COLUMNS: dict[str, tuple[str, str]] = {
    "neighbour_accuracy": (
        "1-NN accuracy",
        "how often the nearest other image, in pixels, tells whether an image is real or generated. 0.5 cannot "
        "be told apart, 1 always can. **Barred.**",
    ),
    "density": (
        "density",
        "how many neighbourhoods of real images hold a generated one, in pixels, over the number expected; about "
        "1 for real images, and above 1 for samples that keep to the crowded places. **Barred.**",
    ),
    "coverage": (
        "coverage",
        "share of real images with a generated one in their neighbourhood, in pixels: what is missing lowers it. "
        "**Barred.**",
    ),
    "energy_features": (
        "E² in features",
        "squared energy distance between the classifier's features of the two sets, unbiased: 0 for one law, "
        "below 0 by chance, and below 0 where the classes of the held-out split were shared out evenly: the floor "
        "shows by how much. **Barred.**",
    ),
    "frechet_features": (
        "Fréchet in features",
        "squared Fréchet distance in those features; biased upwards by the finite count, as the floor shows. "
        "**Barred.**",
    ),
    "nearest_training": (
        "nearest training image, 5 %",
        "distance in pixels from which 95 % of the images keep away from every training image. Far below the "
        "held-out split's own, the samples are copies. **Barred.**",
    ),
    "class_variation": (
        "class variation",
        "total variation between the predicted classes of the two sets: 0 equal, 1 disjoint. Shown.",
    ),
    "label_agreement": (
        "label agreement",
        "share of samples that the classifier puts in the class that was asked for. Shown.",
    ),
    "precision": ("precision", "share of generated images in a real neighbourhood, in pixels. Shown."),
    "recall": ("recall", "share of real images in a generated neighbourhood, in pixels. Shown."),
    "sliced_pixels": ("sliced W in pixels", "sliced Wasserstein distance in pixels. Shown."),
    "energy_pixels": (
        "E² in pixels",
        "squared energy distance in pixels. Shown, never barred: a fitted Gaussian passes it.",
    ),
    "frechet_pixels": (
        "Fréchet in pixels",
        "squared Fréchet distance in pixels. Shown, never barred: a fitted Gaussian passes it.",
    ),
}
"""Heading and meaning of every metric, in the order of the table."""


@attrs.frozen
class Row:
    """One method, with its cost and its measurement.

    Attributes:
        method: its name.
        variant: what sets this row apart from others of the method, such as "without the adversary".
        measurement: ``None`` where there was nothing to measure, such as samples that are not finite.
        network_evaluations: network calls per generated sample.
        training_seconds: wall-clock time of the training.
        steps: gradient steps.
        network_calls: forward passes of a batch in all updates, of a teacher too; what it took to train one, and to
            make pairs with it, is not in it, nor in the seconds.
        milliseconds_per_1000: time to generate 1,000 samples.
        notes: what was chosen and why; what went wrong.
    """

    method: str
    measurement: Measurement | None
    variant: str = ""
    network_evaluations: int | None = None
    training_seconds: float | None = None
    steps: int | None = None
    network_calls: int | None = None
    milliseconds_per_1000: float | None = None
    notes: str = ""

    @property
    def label(self) -> str:
        """``method (variant)``: unique in a report."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


class Verdict(NamedTuple):
    """One bar: ``value relation limit`` is what passing means; ``value`` is ``None`` where nothing was measured."""

    name: str
    value: float | None
    limit: float
    passed: bool
    explanation: str
    relation: str


class References(NamedTuple):
    """The reference rows; ``class_moments`` only for labelled data, ``resampled`` not in older reports."""

    floor: Row
    moments: Row
    class_moments: Row | None = None
    resampled: Row | None = None


def bars(row: Row, yardstick: Row | None, references: References) -> list[Verdict]:
    """The verdict on every bar.

    ::

        1-NN accuracy                    <=  yardstick + 0.05
        density, coverage                >=  0.8 yardstick,  and  >  moments
        E², Fréchet in features          <=  yardstick + 2 se   or   <=  (floor + class moments) / 2
        nearest training image, 5 %      >=  the held-out split's own

    with ``se`` the standard error of the difference from the yardstick. The last bar allows no error: a quantile
    of a few hundred real images falls below another's half of the time, so a method passes it by keeping a
    little more distance from the training images than real ones do, and not by luck.

    Args:
        row: the method.
        yardstick: what it has to match; ``None``, or ``row`` itself, compares with the floor.
        references: the floor, the moments and, where there are labels, those per class.

    Raises:
        ConfigError: if a row to compare with has no measurement.

    Example:
        See :func:`make_report`.
    """
    floor, moments = references.floor, references.moments
    peer, name = (
        (floor, "the floor") if yardstick is None or yardstick.label == row.label else (yardstick, "the yardstick")
    )
    compared = [peer, floor, moments, references.class_moments or moments]
    for other in compared:
        if other.measurement is None:
            raise ConfigError(f"row {other.label!r} has no measurement to compare {row.label!r} with: measure it")
    against, low, high, classes = (other.measurement for other in compared if other.measurement is not None)
    mine = row.measurement
    verdicts = []

    def judge(metric: str, limit: float, relation: str, why: str) -> None:
        value = None if mine is None else mine.metrics[metric].mean
        passed = value is not None and {"<=": value <= limit, ">=": value >= limit, ">": value > limit}[relation]
        verdicts.append(Verdict(COLUMNS[metric][0], value, limit, passed, why, relation))

    accuracy = against.metrics["neighbour_accuracy"].mean
    judge("neighbour_accuracy", accuracy + 0.05, "<=", f"{number(accuracy)} of {name} plus 0.05")
    for metric in ("density", "coverage"):
        share, gaussian = 0.8 * against.metrics[metric].mean, high.metrics[metric].mean
        if share > gaussian:
            judge(metric, share, ">=", f"0.8 times {number(share / 0.8)} of {name}")
        else:
            judge(metric, gaussian, ">", "what the moments row has")
    for metric in ("energy_features", "frechet_features"):
        rival, own = against.metrics[metric], mine.metrics[metric] if mine is not None else Estimate(0.0)
        near = rival.mean + 2 * math.hypot(rival.se or 0.0, own.se or 0.0)
        halfway = (low.metrics[metric].mean + classes.metrics[metric].mean) / 2
        if near >= halfway:
            judge(metric, near, "<=", f"{number(rival.mean)} of {name} plus two standard errors")
        else:
            judge(metric, halfway, "<=", "halfway from the floor to the moments, per class where there are labels")
    judge("nearest_training", low.held_out_nearest, ">=", "the held-out images' own")
    return verdicts


def number(value: float | None) -> str:
    """A number as tables print it: three digits, and a dash where there is none.

    Example:
        >>> number(0.51234), number(12.345), number(20000), number(None)
        ('0.512', '12.3', '20,000', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
