"""All methods by their command-line names. Each method's file holds its presets; this file only collects them."""

from collections.abc import Mapping

from onestep_adapters.methods import flow_matching
from onestep_adapters.methods.average_velocity import (
    alpha_flow,
    improved_meanflow,
    meanflow,
    rectified_meanflow,
    shortcut,
    solution_flow,
    split_meanflow,
    terminal_velocity,
)
from onestep_adapters.methods.consistency import (
    consistency_training,
    consistency_trajectory,
    continuous_consistency,
    easy_consistency,
    truncated_consistency,
)
from onestep_adapters.methods.distillation import consistency_distillation, progressive, rectified_flow
from onestep_adapters.methods.drifting import drifting
from onestep_adapters.methods.matching import dmd, dmd2, moment_matching, sid
from onestep_adapters.methods.presets import Preset
from onestep_adapters.names import choose

_FILES = (
    flow_matching,
    meanflow,
    rectified_meanflow,
    improved_meanflow,
    alpha_flow,
    split_meanflow,
    shortcut,
    terminal_velocity,
    solution_flow,
    rectified_flow,
    progressive,
    consistency_distillation,
    consistency_training,
    easy_consistency,
    truncated_consistency,
    continuous_consistency,
    consistency_trajectory,
    dmd,
    dmd2,
    sid,
    moment_matching,
    drifting,
)

METHODS: Mapping[str, Preset] = {preset.name: preset for file in _FILES for preset in file.PRESETS}
"""The presets of all methods by command-line name."""


def find_preset(name: str) -> Preset:
    """The presets of a method by its command-line name.

    Raises:
        ConfigError: if the name is unknown; the message lists the most similar names.

    Example:
        >>> find_preset("meanflow").summary
        'MeanFlow: average velocity, one step'
    """
    return METHODS[choose(name, METHODS, "method")]
