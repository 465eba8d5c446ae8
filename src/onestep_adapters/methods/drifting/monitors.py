"""Numbers that show the progress of a drifting generator. Its loss does not: it is constant by construction.

Every update: the drift norm of every temperature, and the spread of the samples relative to the data, by class. Every
``EVERY`` updates: the effective number of positives that attract a sample, the share of samples attracted by one alone,
the held-out energy distance, the error of the mode masses where the modes are known, and the guidance deficit
(negative mass in the target of guidance). One update later: the displacement that the update caused for the same
noise, compared with the field.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onestep_adapters.data import Dataset
from onestep_adapters.devices import generator_on
from onestep_core import laplace
from onestep_core.diagnostics import (
    affinity_saturation,
    drift_norm,
    effective_sample_size,
    guidance_deficit,
    held_out_energy,
    mode_mass_error,
    realised_drift,
    spread,
)
from onestep_core.precision import without_gradient
from onestep_core.protocols import Drift, Field

EVERY = 20
"""Updates between two values of the expensive monitors."""

HELD_OUT = 512
"""Largest number of held-out samples."""

ENERGY = "energy distance"
"""Held-out energy distance; 0 if the distributions are equal."""
MODES = "mode mass error"
"""Total variation of the mode masses, 0 to 1, where the modes are known."""
SPREAD = "relative spread"
"""Spread of the samples within a class, divided by that of the data; 1 is right."""
EFFECTIVE = "effective positives"
"""Effective number of positives that attract a sample, at the smallest temperature."""
SINGLE = "single-positive share"
"""Share of the samples for which one positive has more than 99 % of the weight."""
COSINE = "update cosine"
"""Cosine between the change of the samples by an update and the field; 1 is the same direction."""
LENGTH = "update length"
"""Length of that change, divided by the length of the field."""
DEFICIT = "guidance deficit"
"""Guidance deficit: negative mass in the target of guidance, which no distribution can have."""

Encoded = Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]
"""``(noise, alpha)`` to the features of the network's current samples from them."""

_ASKED = "asked"
"""Begins the names of the tensors that are kept for the next update: noise, guidance scales, and by feature samples,
field and unit."""


def norm_names(temperatures: Sequence[float]) -> tuple[str, ...]:
    """Names of the drift norms, one for each temperature.

    Example:
        >>> norm_names((0.05, 0.2))
        ('drift norm 0.05', 'drift norm 0.2')
    """
    return tuple(f"drift norm {temperature:g}" for temperature in temperatures)


def monitor_names(temperatures: Sequence[float]) -> tuple[str, ...]:
    """Names of all numbers that may be logged, in the order of display."""
    return (ENERGY, MODES, SPREAD, *norm_names(temperatures), EFFECTIVE, SINGLE, COSINE, LENGTH, DEFICIT)


class _Seen(NamedTuple):
    """The sample sets of one feature and its field, as used in the objective."""

    samples: Tensor
    positives: Tensor
    extra: Tensor | None
    drift: Drift


class DriftMonitors:
    """Records fields while an objective calls them; ``logs`` returns the numbers.

    Args:
        data: gives held-out data, and the modes where they are known.
        temperatures: of the fields, in their order; they name the drift norms.
        seed: of the held-out draws.
        relative: whether temperatures are relative to the mean distance.
        device: of the training.
    """

    def __init__(
        self,
        data: Dataset,
        temperatures: tuple[float, ...],
        *,
        seed: int,
        relative: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        self._held_out = data.held_out(HELD_OUT, generator_on(device, seed))
        self._modes = data.modes
        self._norms = norm_names(temperatures)
        self._relative, self._groups = relative, data.classes or 1
        self._seen: dict[str, _Seen] = {}

    def watched(self, name: str, field: Field) -> Field:
        """``field`` for the feature ``name``, recorded at every call."""

        def seen(samples: Tensor, positives: Tensor, negatives: Tensor | None = None, /, **keywords: Tensor) -> Drift:
            drift = field(samples, positives, negatives, **keywords)
            self._seen[name] = _Seen(samples, positives, keywords.get("extra_negatives"), drift)
            return drift

        return seen

    @torch.no_grad()
    def logs(
        self,
        step: int,
        samples: Tensor,
        positives: Tensor,
        *,
        temperature: float,
        alpha: Tensor | None,
        noise: Tensor,
        again: Encoded,
        kept: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The numbers of update ``step``.

        Args:
            step: updates made so far.
            samples: generated samples, ``[batch, *shape]``.
            positives: real samples, ``[positive, *shape]``.
            temperature: the smallest one, now.
            alpha: guidance scales of the groups, ``[group]``, or ``None``.
            noise: of the samples.
            again: what :data:`Encoded` says; called once in the update after a multiple of :data:`EVERY`.
            kept: tensors for the next update, saved with the run; changed here.
        """
        norms = torch.stack([drift_norm(seen.drift) for seen in self._seen.values()]).mean(0)
        numbers = dict(zip(self._norms, norms, strict=True)) | {SPREAD: self._spread(samples, positives)}
        if f"{_ASKED}.noise" in kept:
            numbers |= self._realised(kept, again)
        for name in [name for name in kept if name.startswith(f"{_ASKED}.")]:
            del kept[name]
        if step % EVERY == 0:
            kept |= self._asked(noise, alpha)
            numbers |= self._affinities(temperature, alpha) | {ENERGY: held_out_energy(samples, self._held_out)}
            if self._modes is not None:
                means, weights = self._modes.means.to(samples), self._modes.weights.to(samples)
                numbers[MODES] = mode_mass_error(torch.cdist(samples.flatten(1), means).argmin(1), weights)
        return numbers

    def _spread(self, samples: Tensor, positives: Tensor) -> Tensor:
        """Computed within each class, so that differences between classes do not hide the collapse of one class."""
        pairs = zip(samples.chunk(self._groups), positives.chunk(self._groups), strict=True)
        return torch.stack([spread(mine, theirs) for mine, theirs in pairs]).mean()

    def _affinities(self, temperature: float, alpha: Tensor | None) -> dict[str, Tensor]:
        effective, single, deficits = [], [], []
        for seen in self._seen.values():
            length = seen.drift.scale if self._relative else torch.ones((), device=seen.samples.device)

            def log_kernel(x: Tensor, y: Tensor, length: Tensor = length) -> Tensor:
                return laplace(without_gradient(x) / length, without_gradient(y) / length, temperature=temperature)

            log_k = log_kernel(seen.samples, seen.positives)
            effective.append(effective_sample_size(log_k).mean())
            single.append(affinity_saturation(log_k))
            if alpha is not None and seen.extra is not None and seen.extra.shape[-2] > 1:
                deficits.append(_deficit(log_kernel, seen.positives, seen.extra, alpha))
        numbers = {EFFECTIVE: torch.stack(effective).mean(), SINGLE: torch.stack(single).mean()}
        return numbers | ({DEFICIT: torch.stack(deficits).mean()} if deficits else {})

    def _asked(self, noise: Tensor, alpha: Tensor | None) -> dict[str, Tensor]:
        """What the next update needs to compare its effect with the field of this one."""
        asked = {"noise": noise} | ({} if alpha is None else {"alpha": alpha})
        for name, seen in self._seen.items():
            parts = {"samples": seen.drift.samples, "field": seen.drift.field, "scale": seen.drift.scale}
            asked |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        return {f"{_ASKED}.{name}": tensor.detach() for name, tensor in asked.items()}

    def _realised(self, kept: Mapping[str, Tensor], again: Encoded) -> dict[str, Tensor]:
        after = again(kept[f"{_ASKED}.noise"], kept.get(f"{_ASKED}.alpha"))
        found = []
        for name in self._seen:
            samples, field, scale = (kept[f"{_ASKED}.{name}.{part}"] for part in ("samples", "field", "scale"))
            channels = field.shape[-1]
            unit, shape = scale / channels**0.5 if self._relative else 1.0, (-1, channels)
            moved = _as_clouds(after[name], samples)
            found.append(realised_drift(samples.reshape(shape), (moved / unit).reshape(shape), field.reshape(shape)))
        cosine, length = (torch.stack(numbers).mean() for numbers in zip(*found, strict=True))
        return {COSINE: cosine, LENGTH: length}


def _as_clouds(features: Tensor, like: Tensor) -> Tensor:
    """``[group * n, location, channel]`` in the layout ``[group * location, n, channel]`` of ``like``."""
    locations = features.shape[1]
    return features.unflatten(0, (like.shape[0] // locations, -1)).transpose(1, 2).reshape(like.shape)


def _deficit(log_kernel: Callable[[Tensor, Tensor], Tensor], positives: Tensor, extra: Tensor, alpha: Tensor) -> Tensor:
    """The guidance deficit by kernel densities at the unconditional samples, each left out of its own."""
    count, clouds = extra.shape[-2], extra.shape[0]
    itself = torch.eye(count, dtype=torch.bool, device=extra.device)
    own = log_kernel(extra, extra).masked_fill(itself, -torch.inf).logsumexp(-1)
    theirs = log_kernel(extra, positives).logsumexp(-1)
    sizes = torch.tensor([positives.shape[-2], count - 1.0], device=extra.device).log()
    log_ratio = (theirs - sizes[0]) - (own - sizes[1])
    each = alpha.repeat_interleave(clouds // len(alpha))[:, None].expand(log_ratio.shape)
    return guidance_deficit(log_ratio.flatten(), alpha=each.flatten())
