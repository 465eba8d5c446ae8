"""DMD with a kernel score: the score of the samples is that of a kernel density of the batch, not of a second network.

onestep train dmd-kernel --with examples/compose_dmd_kernel.py --data 8gaussians
onestep compare --with examples/compose_dmd_kernel.py --methods dmd-kernel dmd
"""

import attrs

from onestep_adapters.methods import Preset, find_preset

_BASE = find_preset("dmd")

PRESETS = (
    Preset(
        "dmd-kernel",
        "DMD with the score of a kernel density of the batch",
        attrs.evolve(_BASE.images, kernel_score=True),
        attrs.evolve(_BASE.points, kernel_score=True),
        "The options of dmd; not tuned.",
    ),
)
