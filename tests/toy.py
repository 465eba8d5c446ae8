"""A small network and a batch, shared by tests."""

import torch

import onestep_core as one

F64 = torch.float64


class Net(torch.nn.Module):
    """``(z, *times)`` with smooth activations and a buffer."""

    def __init__(self, times, channels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Linear(channels + times, 8, dtype=F64)
        self.last = torch.nn.Linear(8, channels, dtype=F64)
        self.register_buffer("shift", torch.randn(channels, generator=generator, dtype=F64))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) / 2)

    def forward(self, z, *times):
        columns = [z + self.shift, *(t[:, None] for t in times)]
        return self.last(torch.nn.functional.silu(self.first(torch.cat(columns, 1))))


def batch(count=5):
    generator = torch.Generator().manual_seed(1)
    data, noise = torch.randn(2, count, 3, generator=generator, dtype=F64)
    t, s = one.ordered(*torch.rand(2, count, generator=generator, dtype=F64))
    z, v = one.Linear()(data, noise, t)
    return data, z, v, t, s
