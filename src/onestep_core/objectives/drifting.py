"""Drifting: samples move along a field that is made of the data and of the samples themselves.

The generator is trained to produce its samples after a small displacement,

    loss = distance(f(noise), sg[f(noise) + V(f(noise))]),

with the field recomputed from the current samples at every step. There is no path, no teacher and no second network;
sampling takes one evaluation. The value of the loss is ``|V|^2``. Where the field is normalised the loss shows nothing
of the progress, and a field that vanishes does not prove that the distributions are equal. Watch
:mod:`onestep_core.diagnostics` instead.

Samples interact: the field is computed for whole groups, and per-sample transforms apply to
:func:`~onestep_core.regression.field_regression` alone.

For images the field is computed in features: ``features -> field of each feature -> regression -> distance -> sum``.
Two normalisations make one set of temperatures and one learning rate fit every feature. Of the *feature*: coordinates
are divided so that the mean distance is ``sqrt(channel)`` (:func:`feature_normalized`). Of the *drift*: the
displacement at each temperature is brought to unit root mean square (:func:`onestep_core.fields.multi_temperature` with
``normalize=True``). The released loss uses both, around :func:`onestep_core.fields.drift_field` with ``softmax_both``
and an affinity floor; :func:`onestep_core.fields.released_drift` is the whole of it as one function.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.fields import distances
from onestep_core.precision import without_gradient
from onestep_core.protocols import Drift, Field, checked_drift
from onestep_core.regression import Regression, field_regression
from onestep_core.shapes import clouds, uncloud
from onestep_core.typing import Sample, typed


def _located(name: str, points: Tensor) -> Tensor:
    if points.ndim == 2:
        return points.unsqueeze(1)
    if points.ndim == 3:
        return points
    raise ConfigError(
        f"{name} of shape {tuple(points.shape)}: expected [batch, channel] or [batch, location, channel]; "
        "flatten a whole image to one point with .flatten(1), or move its locations to the middle axis"
    )


def _group_weights(weights: Tensor, extra: Tensor, groups: int, locations: int) -> Tensor:
    """``[groups]`` or one an extra negative, as ``[groups * location, n]``."""
    count = extra.shape[0]
    if weights.shape[0] == groups:
        weights = weights.repeat_interleave(count // groups)
    elif weights.shape[0] != count:
        raise ConfigError(
            f"{weights.shape[0]} extra_weights for {count} extra negatives in {groups} groups: "
            "expected one a group or one an extra negative"
        )
    return clouds(weights.reshape(count, 1, 1).expand(count, locations, 1), groups).squeeze(-1)


@typed
def drifting_regression(
    samples: Sample,
    positives: Float[Tensor, "positive ..."],
    negatives: Float[Tensor, "negative ..."] | None = None,
    *,
    field: Field,
    groups: int = 1,
    extra_negatives: Float[Tensor, "extra ..."] | None = None,
    extra_weights: Float[Tensor, " weight"] | None = None,
) -> Regression:
    """``x`` against ``sg[x + V]``, in the units of the field and the layout of the samples.

    Args:
        samples: the generator's output, ``[batch, channel]`` or ``[batch, location, channel]``.
        positives: real points of the same groups, ``[positive, ...]``.
        negatives: exactly these repel; ``None``: the samples of a group repel one another.
        field: any :class:`~onestep_core.protocols.Field`, its numbers bound.
        groups: classes, which lie contiguously and with equal counts in every set. Groups are independent; every
            location of a group is one cloud.
        extra_negatives: real unconditional points of each group, for guidance, ``[extra, ...]``.
        extra_weights: one a group, ``[groups]``, or one an extra negative, ``[extra]``; see
            :func:`onestep_core.flow.drift_negative_weight`.

    Returns:
        Prediction and target in the layout of ``samples``, at least float32.

    Raises:
        ConfigError: if a set has another rank, does not divide into the groups, or is empty; if weights fit neither
            groups nor extra negatives; and what the field raises.
        ArgumentError: if channels or locations differ.

    Source: Deng et al., Generative Modeling via Drifting, section 3, https://arxiv.org/abs/2602.04770.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from onestep_core.fields import laplace, mean_shift_field
        >>> from onestep_core.regression import mse
        >>> field = partial(mean_shift_field, kernel=partial(laplace, temperature=0.5))
        >>> generator = torch.nn.Linear(2, 2)
        >>> loss = mse(*drifting_regression(generator(torch.randn(8, 2)), torch.randn(12, 2), field=field)).mean()
        >>> loss.backward()
    """
    located = _located("samples", samples)
    locations = located.shape[1]

    def cloud(name: str, points: Tensor) -> Tensor:
        if points.shape[0] == 0:
            raise ConfigError(f"{name} are empty: expected at least one in every group")
        return clouds(_located(name, points), groups)

    keywords: dict[str, Tensor] = {}
    if extra_negatives is not None:
        keywords["extra_negatives"] = cloud("extra_negatives", extra_negatives)
        if extra_weights is not None:
            keywords["extra_weights"] = _group_weights(extra_weights, extra_negatives, groups, locations)
    elif extra_weights is not None:
        raise ConfigError("extra_weights were given without extra_negatives: give both or neither")
    drift = checked_drift(
        field(
            clouds(located, groups),
            cloud("positives", positives),
            None if negatives is None else cloud("negatives", negatives),
            **keywords,
        )
    )
    return field_regression(
        uncloud(drift.samples, groups).reshape(samples.shape), uncloud(drift.field, groups).reshape(samples.shape)
    )


_DISTANCE_FLOOR = 1e-4
_UNIT_FLOOR = 1e-3
_ROWS = 1024


@typed
def feature_normalized(field: Callable[[float], Field]) -> Field:
    """A field in coordinates in which the mean distance of a sample to its targets is ``sqrt(channel)``.

    ``s = mean(d w) / mean(w)`` over all pairs of samples and targets of the call, each ``d`` at least 1e-4; samples and
    targets are divided by ``u = max(s / sqrt(channel), 1e-3)``. Features of any size and dimension then have
    temperatures and displacements of one size.

    Args:
        field: from ``sqrt(channel)``, the mean distance after the division, to a field: temperatures relative to the
            mean distance are multiplied by it.

    Returns:
        A field with the same arguments. Its drift has ``samples = x / u``, the displacement in the same units, and
        ``scale = s``. One scale for the whole call: the locations of a feature share it, and groups influence one
        another.

    Source: Deng et al., Generative Modeling via Drifting, appendix A.6, https://arxiv.org/abs/2602.04770.

    Example:
        The released algorithm, of its parts:

        >>> import torch
        >>> from functools import partial
        >>> from onestep_core.fields import drift_field, laplace, multi_temperature, released_drift, softmax_both
        >>> def at(temperature):
        ...     kernel = partial(laplace, temperature=temperature)
        ...     return partial(drift_field, kernel=kernel, coupling=softmax_both, affinity_floor=1e-3)
        >>> composed = feature_normalized(
        ...     lambda length: multi_temperature(at, [length * r for r in (0.02, 0.05, 0.2)], normalize=True)
        ... )
        >>> x, y = torch.randn(6, 3), torch.randn(8, 3)
        >>> torch.allclose(composed(x, y).field, released_drift(x, y).field, atol=1e-4)
        True
    """

    def normalized(
        samples: Tensor, positives: Tensor, negatives: Tensor | None = None, /, *rest: Any, **keywords: Any
    ) -> Drift:
        if samples.ndim < 2:
            raise ConfigError(f"samples of shape {tuple(samples.shape)}: expected points, [.., n, channel]")
        extra = keywords.get("extra_negatives")
        sets = [
            (samples if negatives is None else negatives, keywords.get("negative_weights")),
            (extra, keywords.get("extra_weights")),
            (positives, keywords.get("positive_weights")),
        ]
        scale = _mean_distance(without_gradient(samples), [(without_gradient(y), w) for y, w in sets if y is not None])
        channels = samples.shape[-1]
        unit = (scale / channels**0.5).clamp(min=_UNIT_FLOOR)
        if extra is not None:
            keywords = {**keywords, "extra_negatives": extra / unit}
        drift = checked_drift(
            field(channels**0.5)(
                samples / unit, positives / unit, None if negatives is None else negatives / unit, *rest, **keywords
            )
        )
        return drift._replace(scale=scale)

    return normalized


def _mean_distance(x: Tensor, sets: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """``mean(d w) / mean(w)`` of every pair, 0-d, in blocks of rows."""
    total, mass = x.new_zeros(()), x.new_zeros(())
    for y, weights in sets:
        w = y.new_ones(y.shape[:-1]) if weights is None else without_gradient(weights).to(y)
        for start in range(0, x.shape[-2], _ROWS):
            total = (
                total
                + (distances(x[..., start : start + _ROWS, :], y).clamp(min=_DISTANCE_FLOOR) * w.unsqueeze(-2)).sum()
            )
        mass = mass + w.sum()
    return total / (x.shape[-2] * mass)


def drifting_regressions(
    generated: Mapping[str, Tensor],
    positives: Mapping[str, Tensor],
    negatives: Mapping[str, Tensor] | None = None,
    *,
    field: Field | Mapping[str, Field],
    groups: int = 1,
    extra_negatives: Mapping[str, Tensor] | None = None,
    extra_weights: Tensor | None = None,
) -> dict[str, Regression]:
    """:func:`drifting_regression` for every feature: ``sum(mse(*r) for r in ....values())`` is the released loss.

    Args:
        generated: features of the samples by name, each ``[batch, location, channel]``, with their graph.
        positives: the same features of real samples.
        negatives: of explicit negatives, or ``None``.
        field: used for every feature, or one for each by name; it gets the channels of that feature.
        groups: classes, contiguous in every batch.
        extra_negatives: of real unconditional samples.
        extra_weights: as in :func:`drifting_regression`, shared by all features.

    Returns:
        One regression a feature; each has its own shape, so distances are summed after they are per sample.

    Raises:
        ConfigError: if the mappings do not have the same names, or are empty; and what one feature raises.

    Source: Deng et al., section 4 and appendix A.5, https://arxiv.org/abs/2602.04770; lambertae/drifting, ``train.py``.

    Example:
        >>> import torch
        >>> from onestep_core.fields import released_drift
        >>> features = lambda n: {"pixels": torch.randn(n, 1, 4), "patches": torch.randn(n, 9, 2)}
        >>> pairs = drifting_regressions(features(4), features(6), field=released_drift, groups=2)
        >>> sorted(pairs), pairs["patches"].prediction.shape
        (['patches', 'pixels'], torch.Size([4, 9, 2]))
    """
    for name, features in (("generated", generated), ("positives", positives)):
        if not isinstance(features, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"{name} is a {type(features).__name__}: expected a mapping from names to [batch, location, channel], "
                "such as {'pixels': samples.flatten(1)[:, None]}; drifting_regression takes tensors"
            )
    if not generated:
        raise ConfigError("no features: expected a mapping from names to [batch, location, channel]")
    fields = field if isinstance(field, Mapping) else dict.fromkeys(generated, field)
    for name, others in (
        ("positives", positives),
        ("negatives", negatives),
        ("extra_negatives", extra_negatives),
        ("fields", fields),
    ):
        if others is not None and set(others) != set(generated):
            raise ConfigError(
                f"{name} lack the features {sorted(set(generated) - set(others))} and have the unexpected "
                f"{sorted(set(others) - set(generated))}: apply the same feature function to every set, and "
                "name a field for each feature or give one for all"
            )
    return {
        key: drifting_regression(
            samples,
            positives[key],
            None if negatives is None else negatives[key],
            field=fields[key],
            groups=groups,
            extra_negatives=None if extra_negatives is None else extra_negatives[key],
            extra_weights=extra_weights,
        )
        for key, samples in generated.items()
    }
