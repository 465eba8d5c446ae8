"""Every sampler on one grid, with its number of network evaluations."""

from onestep_adapters.samplers import (
    consistency_multistep,
    gamma_multistep,
    multistep,
    sample_ancestral,
    sample_denoiser,
    sample_dpmpp_2m,
)
from onestep_core import flow

LINE = flow.Linear()
TIMES = [0.9, 0.6, 0.4, 0.2, 0.0]
NOISY = {"consistency", "gamma", "churn", "ancestral"}
SAMPLERS = {
    "multistep": (4, lambda f, z, ts, n: multistep(f, z, ts, path=LINE)),
    "consistency": (4, lambda f, z, ts, n: consistency_multistep(lambda z, t: f(z, t, t), z, ts, path=LINE, noise=n)),
    "gamma": (4, lambda f, z, ts, n: gamma_multistep(f, z, ts, path=LINE, noise=n, gamma=0.5)),
    "ddim": (4, lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE, step=flow.ddim)),
    "heun": (7, lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE)),
    "heun, not to the end": (
        6,
        lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts[:-1], path=LINE),
    ),
    "churn": (
        7,
        lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE, noise=n, churn=2.0, high=10.0),
    ),
    "dpm_2": (
        7,
        lambda f, z, ts, n: sample_denoiser(lambda z, t: f(z, t, t), z, ts, path=LINE, step=flow.dpm_2),
    ),
    "ancestral": (4, lambda f, z, ts, n: sample_ancestral(lambda z, t: f(z, t, t), z, ts, path=LINE, noise=n)),
    "dpmpp_2m": (4, lambda f, z, ts, n: sample_dpmpp_2m(lambda z, t: f(z, t, t), z, ts, path=LINE)),
}
