"""Modes lost and found again under each f-divergence: a picture.

    python examples/f_divergences.py f_divergences.png

The data are two modes of masses 0.3 and 0.7. A generator that starts with only the right mode is trained by
distribution matching, once for every divergence. Each training takes two or three seconds on one core. No other network
is trained: the real score is the exact score of the mixture, and the distribution of the noised samples is computed
from the batch itself. It gives the fake score and the density ratio. So only the divergence differs. Scores are
compared at small noise only, up to ``LATEST``: at larger noise the noised modes merge, and every divergence finds the
other mode.
"""

import argparse
import math
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import onestep_core as one
from onestep_core.diagnostics import GaussianMixture
from onestep_core.fields import FDivergence

PATH = one.Linear()
LATEST = 0.55
DATA = GaussianMixture.isotropic([0.3, 0.7], [[-1.5, 0.0], [1.5, 0.0]], 0.3)
DIVERGENCES: dict[str, FDivergence] = {
    "Neyman": one.neyman,
    "softened reverse KL": one.softened_reverse_kl,
    "reverse KL": one.reverse_kl,
    "Jensen-Shannon": one.jensen_shannon,
    "squared Hellinger": one.squared_hellinger,
    "Jeffreys": one.jeffreys,
    "forward KL": one.forward_kl,
}
"""Ordered from mode-seeking to mode-covering."""


class Result(NamedTuple):
    """The mass of the left mode after every tenth update, and samples at the end."""

    masses: list[float]
    samples: Tensor


def samples_log_density(z: Tensor, samples: Tensor, t: Tensor) -> Tensor:
    """The log-density of the noised samples in 2-D: one Gaussian per sample, as wide as the noise."""
    alpha, sigma = (c[:, None] for c in PATH.coefficients(t))
    squares = (z[:, None] - alpha[:, :, None] * samples).square().sum(2)
    return (
        (-squares / (2 * sigma**2)).logsumexp(1)
        - (math.log(2 * math.pi) + 2 * sigma[:, 0].log())
        - math.log(len(samples))
    )


def train(divergence: FDivergence, *, steps: int, seed: int = 0, batch: int = 128) -> Result:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    right = DATA.means[1].float()

    def generate(noise: Tensor) -> Tensor:
        """Before the first update: samples of the right mode only."""
        return right + 0.3 * noise + network(noise)

    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    real, masses = partial(DATA.denoiser, path=PATH), []
    for step in range(steps):
        samples = generate(torch.randn(batch, 2, generator=generator))
        t = one.sample_uniform(batch, low=0.02, high=LATEST, generator=generator)
        others = samples.detach()
        z, _ = PATH(others, torch.randn(batch, 2, generator=generator), t)
        logits = DATA.log_density(z, t, path=PATH) - samples_log_density(z, others, t)
        scale = one.f_divergence_scale(logits[:, None], t, divergence=divergence)

        def fake(z: Tensor, t: Tensor, others: Tensor = others) -> Tensor:
            return one.empirical_denoiser(z, others, t, path=PATH)

        pair = one.distribution_matching_regression(real, fake, samples, z, t, path=PATH, scale=scale)
        optimiser.zero_grad()
        one.mse(*pair).mean().backward()
        optimiser.step()
        if step % 10 == 9:
            masses.append(float((others[:, 0] < 0).float().mean()))
    with torch.no_grad():
        return Result(masses, generate(torch.randn(4000, 2, generator=generator)))


def draw_picture(results: dict[str, Result], file: str) -> None:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 4).flatten()
    x = torch.linspace(-3, 3, 241)
    grid, clean = torch.stack([x, 0 * x], 1), torch.zeros(len(x))
    # The coordinates are independent: the marginal is this density divided by the second coordinate's density at 0.
    density = DATA.log_density(grid, clean, path=PATH).exp() * 0.3 * math.sqrt(2 * math.pi)
    for axis, (name, result) in zip(axes, results.items(), strict=False):
        axis.hist(
            result.samples[:, 0], bins=torch.linspace(-3, 3, 81).tolist(), density=True, alpha=0.6, label="samples"
        )
        axis.plot(x, density, color="black", linewidth=1, label="data")
        left = float((result.samples[:, 0] < 0).float().mean())
        axis.set(
            title=f"{name}\nmass of the left mode: {left:.2f}", xlabel="first coordinate", ylim=(0, 1.6), yticks=[]
        )
    axes[0].legend(loc="upper left")
    for name, result in results.items():
        axes[-1].plot([10 * (k + 1) for k in range(len(result.masses))], result.masses, label=name, linewidth=1)
    axes[-1].axhline(0.3, color="black", linewidth=1, label="data: 0.3")
    axes[-1].set(title="mass of the left mode\nduring the training", xlabel="update", ylim=(-0.02, 0.8))
    axes[-1].legend(fontsize="x-small", ncols=2, loc="upper center")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="file of the picture, for example f_divergences.png")
    parser.add_argument("--steps", type=int, default=400, help="number of training updates of each generator")
    arguments = parser.parse_args()
    results = {name: train(divergence, steps=arguments.steps) for name, divergence in DIVERGENCES.items()}
    for name, result in results.items():
        print(f"{name}: mass of the left mode {float((result.samples[:, 0] < 0).float().mean()):.3f}")
    draw_picture(results, arguments.file)


if __name__ == "__main__":
    main()
