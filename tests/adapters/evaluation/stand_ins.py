"""A data set of each kind and a run, as small as the evaluation needs them: any object with these members works."""

from types import SimpleNamespace

import attrs
import torch

from onestep_adapters.data.dataset import Batch, Modes
from onestep_adapters.methods import FlowMatching


@attrs.frozen
class TwoModes:
    """Two round Gaussians of equal mass."""

    name: str = "two modes"
    title: str = "two Gaussians"
    kind: str = "points"
    shape: tuple[int, ...] = (2,)
    classes: None = None
    modes = Modes(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.5, 0.5]), 0.3)

    def sample(self, count, generator):
        which = torch.randint(2, (count,), generator=generator)
        return self.modes.means[which] + self.modes.std * torch.randn(count, 2, generator=generator)

    def batch(self, count, generator, *, alike=1):
        return Batch(self.sample(count, generator), None)

    def split(self, name):
        return None

    def labels(self, count, generator):
        return None

    def finish(self, samples):
        return samples


@attrs.frozen
class Stripes:
    """Images of two classes: a bright column left or right, with noise."""

    name: str = "stripes"
    title: str = "stripes, 4 x 4"
    kind: str = "images"
    shape: tuple[int, ...] = (1, 4, 4)
    classes: int = 2
    modes = None

    def draw(self, count, generator):
        labels = torch.arange(count) % 2
        images = 0.2 * torch.randn(count, 1, 4, 4, generator=generator)
        images[torch.arange(count), 0, :, 3 * labels] += 0.7
        return Batch(images, labels)

    def split(self, name):
        sizes = {"train": (90, 0), "validation": (30, 1), "test": (30, 2)}
        count, seed = sizes[name]
        return self.draw(count, torch.Generator().manual_seed(seed))

    def sample(self, count, generator):
        train = self.split("train").data
        return train[torch.randint(len(train), (count,), generator=generator)]

    def batch(self, count, generator, *, alike=1):
        return self.draw(count, generator)

    def labels(self, count, generator):
        return torch.randint(2, (count,), generator=generator)

    def finish(self, samples):
        return samples


@attrs.frozen
class Steps:
    """What is read of the options of a training."""

    steps: int = 20
    seed: int = 0


@attrs.frozen
class OneCall:
    """Options of a one-step method."""

    training: Steps = Steps()
    evaluations: int = 1
    calls: int = 3
    teacher: FlowMatching | None = None


@attrs.define(eq=False)
class TrainedRun:
    """A run whose samples are those of its data, scaled."""

    name: str
    data: object
    options: object = attrs.field(factory=OneCall)
    scale: float = 1.0
    seconds: float = 2.0
    teacher_run: object = None
    state: SimpleNamespace = attrs.field(
        factory=lambda: SimpleNamespace(step=20, generator=torch.Generator(), history=[])
    )

    @property
    def finished(self):
        return True

    def samples(self, count, *, generator, labels=None, chunk=250):
        if self.data.kind == "points":
            return self.scale * self.data.sample(count, generator), None
        batch = self.data.draw(count, generator)
        return self.scale * batch.data, batch.labels
