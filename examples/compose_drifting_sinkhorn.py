"""Drifting with a Sinkhorn coupling of your own: ten alternating iterations in place of the softmax.

onestep train drifting-transport --with examples/compose_drifting_sinkhorn.py --data 8gaussians
onestep compare --with examples/compose_drifting_sinkhorn.py --methods drifting-transport drifting
"""

from functools import partial

import attrs

from onestep_adapters.methods import Drifting, Preset, find_preset
from onestep_core import drift_field, laplace, sinkhorn
from onestep_core.protocols import Field
from onestep_core.validators import positive_count


@attrs.frozen
class DriftingTransport(Drifting):
    """Drifting, with affinities that are a transport plan."""

    iterations: int = attrs.field(default=10, validator=positive_count)
    """Sinkhorn iterations."""

    def field_at(self, progress: float) -> Field:
        """The drift with a Sinkhorn coupling, at its temperature."""
        (temperature,) = self.temperatures
        kernel = partial(laplace, temperature=temperature)
        return partial(
            drift_field, kernel=kernel, coupling=partial(sinkhorn, iterations=self.iterations, symmetric=False)
        )


def _with_transport(options: Drifting) -> DriftingTransport:
    one = {"temperatures": options.temperatures[:1], "final_temperatures": None}
    return DriftingTransport(**{**attrs.asdict(options, recurse=False), **one})


_BASE = find_preset("drifting")

PRESETS = (
    Preset(
        "drifting-transport",
        "drifting with a Sinkhorn coupling",
        _with_transport(_BASE.images),
        _with_transport(_BASE.points),
        "The options of drifting at its first temperature; not tuned.",
    ),
)
