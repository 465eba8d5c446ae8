"""Data sets of a user's own: tensors, and a plain class with the protocol's members."""

import torch

from onestep_adapters.data import ArrayDataset, Batch
from tests.adapters.tiny import seeded


def points(name="mine", *, classes=3, count=60, seed=0):
    """Random points in three dimensions; without classes for ``None``."""
    data = torch.randn(count, 3, generator=seeded(seed))
    return ArrayDataset(name, Batch(data, None if classes is None else torch.arange(count) % classes))


def images(name="mine", *, classes=3, count=60, seed=0):
    """Random images of four by four pixels with two channels; without classes for ``None``."""
    data = torch.randn(count, 2, 4, 4, generator=seeded(seed))
    return ArrayDataset(name, Batch(data, None if classes is None else torch.arange(count) % classes))


class Line:
    """A class that inherits nothing: points uniform on a segment, two classes, one for each half."""

    name = "line"
    title = "points on a line"
    kind = "points"
    shape = (2,)
    classes = 2
    modes = None

    def _of(self, labels, generator):
        place = (labels + torch.rand(len(labels), generator=generator, device=generator.device)) / 2
        return torch.stack([place, 1 - place], 1)

    def batch(self, count, generator, *, alike=1):
        groups = -(-count // alike)
        labels = self.labels(groups, generator).repeat_interleave(alike)[:count]
        return Batch(self._of(labels, generator), labels)

    def groups(self, each, generator):
        return self._of(torch.arange(2, device=generator.device).repeat_interleave(each), generator)

    def held_out(self, count, generator):
        return self.batch(count, generator).data

    def labels(self, count, generator):
        return torch.randint(2, (count,), generator=generator, device=generator.device)

    def sample(self, count, generator=None):
        return self.batch(count, generator or torch.Generator()).data

    def split(self, name):
        return None

    def finish(self, samples):
        return samples.clamp(0, 1)


OWN = {
    "points": lambda: points(classes=None),
    "labelled points": points,
    "images": lambda: images(classes=None),
    "labelled images": images,
    "a plain class": Line,
}
"""Data sets of every kind, by what they are."""
