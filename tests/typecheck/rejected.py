"""Calls that must not type-check: every line marked ``# no`` has an error; see tests/core/test_typecheck.py."""

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
one.meanflow_regression(velocity, z, v, t, s)  # no
one.flow_matching_regression(average_velocity, z, v, t)  # no
one.meanflow_regression(average_velocity, z, v, t)  # no
one.adaptive(t)  # no
one.adaptive(t, 1.0, 0.01)  # no
one.pseudo_huber(x, x)  # no
one.Linear(noise_floor="much")  # no
one.integrate(velocity, z, t)  # no
samplers.multistep(velocity, z, [1.0, 0.0], path=one.Linear())  # no
samplers.sample_denoiser(velocity, z, [1.0, 0.0], path=one.Linear(), step=one.ancestral)  # no
