"""Why a consistency model needs its boundary condition: a picture.

    python examples/trivial_solution.py trivial_solution.png

Two equal networks are trained by consistency training on two modes in one dimension, for some seconds on one core. The
loss compares a network with its own moving average at a neighbouring time. Therefore a constant function has zero loss.
The first network may become constant, and it nearly does: it maps all noise to one place, and its loss is far smaller
than the loss of the second network. This place depends on the seed and not on the data, and it drifts during training.
The second network is the identity at the data end for all weights (``flow.consistency``). A constant function is not,
so the network learns the two modes.
"""

import argparse
import copy
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from onestep_core import VarianceExploding, consistency, consistency_regression, inverse_duration, pseudo_huber
from onestep_core.flow import discretized_log_normal, edm_scalings, karras_grid, log_noise
from onestep_core.protocols import ConsistencyFunction

PATH = VarianceExploding(sigma_min=0.02, sigma_max=4.0)
MODES, SPREAD = torch.tensor([-1.0, 1.0]), 0.15


def draw(count: int, generator: torch.Generator) -> Tensor:
    centre = MODES[torch.randint(2, (count, 1), generator=generator)]
    return centre + SPREAD * torch.randn(count, 1, generator=generator)


class Result(NamedTuple):
    """Results of a training: losses, the network's function at several times, one-step samples."""

    losses: list[float]
    curves: dict[float, Tensor]
    samples: Tensor


GRID = torch.linspace(-4, 4, 200)[:, None]


def train(*, boundary: bool, steps: int = 1200, seed: int = 0) -> Result:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    average = copy.deepcopy(module).requires_grad_(False)

    def network(module: nn.Module) -> ConsistencyFunction:
        def raw(x: Tensor, sigma: Tensor) -> Tensor:
            return module(torch.cat([x, log_noise(sigma)[:, None]], dim=1))

        if boundary:
            return consistency(raw, sigma_data=1.0, sigma_min=PATH.sigma_min)
        return lambda z, sigma: raw(edm_scalings(sigma, sigma_data=1.0).c_in[:, None] * z, sigma)

    online, target = network(module), network(average)
    levels = karras_grid(20, sigma_min=PATH.sigma_min, sigma_max=PATH.sigma_max)[:-1]
    optimiser = torch.optim.Adam(module.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(steps):
        data, noise = draw(128, generator), torch.randn(128, 1, generator=generator)
        index = discretized_log_normal(torch.rand(128, generator=generator), levels, mean=-0.5, std=1.5)
        t, m = levels[index], levels[index + 1]
        pair = consistency_regression(online, target, PATH(data, noise, t).z, PATH(data, noise, m).z, t, m)
        loss = (pseudo_huber(*pair, c=0.03) * inverse_duration(t, m)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        losses.append(loss.item())
    with torch.no_grad():
        curves = {sigma: online(GRID, torch.full((len(GRID),), sigma)) for sigma in (0.02, 0.3, 1.0, 4.0)}
        start = PATH.prior(torch.randn(4000, 1, generator=generator))
        samples = online(start, torch.full((4000,), PATH.noise_time))
    return Result(losses, curves, samples)


def draw_picture(results: dict[str, Result], file: str) -> None:
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3)
    data = draw(4000, torch.Generator().manual_seed(1)).flatten()
    for row, (name, result) in zip(axes, results.items(), strict=True):
        row[0].semilogy(result.losses, linewidth=0.5)
        row[0].set(title=f"{name}: loss", xlabel="step")
        for sigma, curve in result.curves.items():
            row[1].plot(GRID.flatten(), curve.flatten(), label=f"noise {sigma:g}")
        row[1].set(title="f(z, noise)", xlabel="z", ylim=(-4, 4))
        row[1].legend(loc="lower right", fontsize="small")
        bins = torch.linspace(-2, 2, 81).tolist()
        row[2].hist(data, bins=bins, density=True, alpha=0.4, label="data")
        row[2].hist(result.samples.flatten(), bins=bins, density=True, alpha=0.6, label="one step")
        row[2].set(title="samples", xlabel="x", ylim=(0, 4))
        row[2].legend(loc="upper right", fontsize="small")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="file of the picture, for example trivial_solution.png")
    parser.add_argument("--steps", type=int, default=1200, help="number of training updates of each network")
    arguments = parser.parse_args()
    results = {
        "free network": train(boundary=False, steps=arguments.steps),
        "with boundary condition": train(boundary=True, steps=arguments.steps),
    }
    for name, result in results.items():
        print(f"{name}: final loss {result.losses[-1]:.3g}, std of samples {float(result.samples.std()):.3g}")
    draw_picture(results, arguments.file)


if __name__ == "__main__":
    main()
