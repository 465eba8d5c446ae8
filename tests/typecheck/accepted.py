"""Calls that must type-check; see tests/core/test_typecheck.py."""

from functools import partial

import torch
from torch import Tensor

import onestep_core as one
from onestep_adapters import samplers


def velocity(z: Tensor, t: Tensor) -> Tensor:
    return z


def average_velocity(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return z


x, t, s = torch.ones(2, 3), torch.ones(2), torch.zeros(2)
z, v = one.Linear()(x, x, t)
raw: Tensor = one.squared_l2(*one.meanflow_regression(average_velocity, z, v, t, s))
loss: Tensor = (raw * one.adaptive(raw, power=1.0, epsilon=0.01)).mean()
one.flow_matching_regression(velocity, z, v, t)
one.meanflow_regression(average_velocity, z, v, t, s, derivative=partial(one.central_difference, step=1e-3))
one.consistency_regression(velocity, velocity, z, z, t, s, end=0.0)
one.integrate(partial(one.heun, velocity), z, torch.linspace(1, 0, 3))
one.drifting_regression(x, x, field=partial(one.mean_shift_field, kernel=partial(one.laplace, temperature=0.2)))
path: one.protocols.Path = one.reverse(one.VarianceExploding(0.1, 1.0))
samplers.sample_denoiser(velocity, z, [1.0, 0.0], path=path, step=one.dpm_2, noise=samplers.standard_normal())
samplers.consistency_multistep(velocity, z, [1.0, 0.0], path=path, noise=None, renoise=one.renoise_clean)
samplers.multistep(partial(one.ddim, velocity, path=path), z, t, path=path)
