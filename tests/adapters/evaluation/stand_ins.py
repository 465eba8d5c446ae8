"""A data set of each kind, a method and a run whose samples are known: all three are a user's own."""

import attrs
import torch

from onestep_adapters.data.dataset import Batch, Modes
from onestep_adapters.methods import FlowMatching, Method, Network, Training
from onestep_adapters.runs import Run
from onestep_adapters.tracking import untracked
from onestep_adapters.training import new_state


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
class OneCall(Method):
    """A method of three evaluations in an update, whose sampler is one call."""

    training: Training = Training(steps=20)
    network: Network = Network(width=4, depth=1)
    teacher: FlowMatching | None = None

    @property
    def calls(self):
        return 3

    def build(self, data, generator):
        return self.network.build(data, 0, generator)

    def loss(self, context, network, generator):
        data, labels = context.data.batch(self.training.batch, generator)
        return network(data, label=labels).square().mean(), {}

    def sample(self, network, noise, labels):
        return network(noise, label=labels)


@attrs.define(eq=False)
class ScaledRun(Run):
    """A run whose samples are those of its data, scaled."""

    scale: float = 1.0

    def samples(self, count, *, generator, labels=None, chunk=250, track=untracked):
        for _ in track(range(0, count, chunk), "samples", -(-count // chunk)):
            pass
        if self.data.kind == "points":
            return self.scale * self.data.sample(count, generator), None
        batch = self.data.draw(count, generator)
        return self.scale * batch.data, batch.labels


def trained_run(name, data, options=None, *, scale=1.0, teacher_run=None):
    """A run of twenty updates that took two seconds."""
    options = OneCall() if options is None else options
    state = new_state(name, options.build(data, torch.Generator()))
    state.step, state.history = 20, [{"step": 1, "seconds": 2.0}]
    return ScaledRun(name, options, data, state, teacher_run=teacher_run, scale=scale)
