"""Drifting on a teacher's features: what a flow-matching teacher makes of a sample at three noise levels.

onestep train drifting-teacher --with examples/compose_drifting_teacher.py --data 8gaussians
onestep compare --with examples/compose_drifting_teacher.py --methods drifting-teacher drifting
"""

import attrs
from torch import Tensor

from onestep_adapters.encoders import joined, pixels
from onestep_adapters.methods import Context, Drifting, FlowMatching, Preset, Teacher, find_preset
from onestep_adapters.methods.work import Work, seen, trained
from onestep_core.protocols import Features

LEVELS = (0.1, 0.3, 0.6)


def features_of_teacher(teacher: Teacher) -> Features:
    """``{"0.1": [batch, 1, size], ...}``: the expected data, as if the sample were a noisy state at these times."""
    denoiser = teacher.denoiser(None)

    def encode(x: Tensor, /) -> dict[str, Tensor]:
        times = {str(level): x.new_full((len(x),), level) for level in LEVELS}
        return {name: denoiser(x, t).flatten(1)[:, None] for name, t in times.items()}

    return encode


@attrs.frozen
class DriftingTeacher(Drifting):
    """Drifting in the sample itself and in a teacher's features."""

    teacher: FlowMatching = attrs.field(factory=FlowMatching)
    """Options of the flow-matching teacher."""
    teacher_from: str = ""
    """Folder of a finished flow-matching run on the same data. Empty: train or reuse the teacher of --teacher.*."""

    @property
    def starts_from_teacher(self) -> bool:
        """The generator's network is its own."""
        return False

    @property
    def calls(self) -> int:
        """The generator, and the teacher at three levels, of samples and of data."""
        return 1 + 2 * len(LEVELS)

    def work(self, step, data) -> Work:
        """Drifting's network evaluations; the teacher at three levels of samples and of data."""
        own, classes = super().work(step, data), data.classes or 1
        samples, real = own.backward, self.positives * classes
        again = own.forward - samples  # by the monitors, without a gradient
        return own + len(LEVELS) * (trained(samples) + seen(again + real))

    def prepare(self, context: Context):
        """As drifting prepares, with the teacher's features added."""
        teacher = features_of_teacher(context.required_teacher())
        return super().prepare(context)._replace(encode=joined(pixels, teacher))


def _with_teacher(options: Drifting, teacher: FlowMatching) -> DriftingTeacher:
    given = {**attrs.asdict(options, recurse=False), "relative_temperatures": True}
    return DriftingTeacher(**given, teacher=teacher)


_BASE, _TEACHER = find_preset("drifting"), find_preset("flow-matching")

PRESETS = (
    Preset(
        "drifting-teacher",
        "drifting in a flow-matching teacher's features",
        _with_teacher(_BASE.images, _TEACHER.images),
        _with_teacher(_BASE.points, _TEACHER.points),
        "The options of drifting; levels are not tuned.",
    ),
)
