"""Clouds: the points, weights and keys of a field as one value, checked and stacked once for every field.

``negatives=None`` means that the samples repel one another, self pairs masked; ``negatives=y`` means exactly ``y``.
Extra negatives join either. All points are taken without gradient and relative to a common centre, on which no
field depends.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from onestep_core.errors import ConfigError
from onestep_core.precision import without_gradient
from onestep_core.typing import typed


class Clouds(NamedTuple):
    """The clouds that every field takes, with the names of its arguments: see
    :func:`~onestep_core.fields.drift_field`."""

    samples: Tensor
    positives: Tensor
    negatives: Tensor | None = None
    extra_negatives: Tensor | None = None
    positive_weights: Tensor | None = None
    negative_weights: Tensor | None = None
    extra_weights: Tensor | None = None
    keys: Callable[[Tensor], Tensor] | None = None


@typed
def checked_clouds(
    samples: Float[Tensor, "*groups n channel"],
    positives: Float[Tensor, "*groups p channel"],
    negatives: Float[Tensor, "*groups q channel"] | None = None,
    *,
    extra_negatives: Float[Tensor, "*groups u channel"] | None = None,
    positive_weights: Float[Tensor, "*groups p"] | None = None,
    negative_weights: Float[Tensor, "*groups q_or_n"] | None = None,
    extra_weights: Float[Tensor, "*groups u"] | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
) -> Clouds:
    """:class:`Clouds` of arguments whose shapes no field has checked yet.

    Raises:
        ArgumentError: if channels or leading axes differ.
    """
    return Clouds(
        samples, positives, negatives, extra_negatives, positive_weights, negative_weights, extra_weights, keys
    )


class Stacked(NamedTuple):
    """Samples ``[.., n, channel]`` and targets ``[.., m, channel]``, the negatives first."""

    samples: Tensor
    targets: Tensor
    sample_keys: Tensor
    target_keys: Tensor
    weights: Tensor | None
    negative: slice
    positive: slice
    repel_one_another: bool


def stack(given: Clouds, *, lone_sample: bool = False) -> Stacked:
    """Targets ``[negatives | extra negatives | positives]`` with their weights and keys.

    Args:
        given: the clouds of one call.
        lone_sample: permit a single sample whose self pair is masked, and which nothing repels.

    Raises:
        ConfigError: if there is no sample, no positive or no negative; if a lone sample with its self pair masked has
            no negative, unless it is permitted; if weights are given for a set that is absent, or not one a point.
    """
    samples, positives, negatives, extra_negatives = given[:4]
    positive_weights, negative_weights, extra_weights, keys = given[4:]
    if samples.shape[-1] < 1:
        raise ConfigError(f"samples of shape {tuple(samples.shape)}: expected at least one channel, the last axis")
    if samples.shape[-2] < 1 or positives.shape[-2] < 1:
        raise ConfigError(
            f"{samples.shape[-2]} samples and {positives.shape[-2]} positives: expected at least one of each in every "
            "group; draw real samples of the group's class, or leave the group out"
        )
    themselves = negatives is None
    repelling = samples if negatives is None else negatives
    count = repelling.shape[-2] + (0 if extra_negatives is None else extra_negatives.shape[-2])
    if count < 1 or (themselves and count < 2 and not lone_sample):
        raise ConfigError(
            f"nothing repels a group's samples ({count} given{', and no sample itself' if themselves else ''}): a "
            "sample needs at least one other; generate two or more a group, or give extra_negatives"
        )
    if extra_weights is not None and extra_negatives is None:
        raise ConfigError("extra_weights were given without extra_negatives: give both or neither")
    sets = [repelling, positives] if extra_negatives is None else [repelling, extra_negatives, positives]
    masses = [negative_weights, extra_weights, positive_weights]
    if extra_negatives is None:
        masses.pop(1)
    for points, mass in zip(sets, masses, strict=True):
        if mass is not None and mass.shape != points.shape[:-1]:
            raise ConfigError(
                f"weights of shape {tuple(mass.shape)} for points of shape {tuple(points.shape)}: expected "
                f"{tuple(points.shape[:-1])}, one weight a point"
            )
    own, raw = without_gradient(samples), [without_gradient(s) for s in sets]
    sample_keys, target_keys = None, None
    if keys is not None:
        sample_keys, *known = _widest([_key(keys, points) for points in (own, *raw)])
        target_keys = torch.cat(known, -2)
    x, *raw = _widest([own, *raw])
    weights = None
    if any(w is not None for w in masses):
        weights = torch.cat(
            [
                r.new_ones(r.shape[:-1]) if w is None else without_gradient(w).to(r.dtype)
                for r, w in zip(raw, masses, strict=True)
            ],
            -1,
        )
    centre = raw[-1].mean(-2, keepdim=True)
    targets = torch.cat(raw, -2).sub_(centre)
    moved = targets[..., : x.shape[-2], :] if themselves else x - centre
    return Stacked(
        moved,
        targets,
        moved if sample_keys is None else sample_keys,
        targets if target_keys is None else target_keys,
        weights,
        slice(0, count),
        slice(count, count + positives.shape[-2]),
        themselves,
    )


def _widest(sets: list[Tensor]) -> list[Tensor]:
    """All in the precision of the finest."""
    dtype = reduce(torch.promote_types, (points.dtype for points in sets))
    return [points.to(dtype) for points in sets]


def _key(keys: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    found = without_gradient(keys(points))
    if found.shape[:-1] != points.shape[:-1]:
        raise ConfigError(
            f"keys made {tuple(found.shape)} of points of shape {tuple(points.shape)}: expected a vector a point, "
            f"[{', '.join(map(str, points.shape[:-1]))}, key]"
        )
    return found
