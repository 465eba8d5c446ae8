"""What no function of the flow wing can use is refused with a reason."""

import math
from functools import partial

import pytest
import torch

from onestep_core import flow
from onestep_core.errors import ArgumentError, ConfigError
from onestep_core.shapes import clouds


def cosine_log_snr(t):
    return -2 * torch.log(torch.tan(0.5 * torch.pi * (0.02 + 0.96 * t)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: flow.Linear(noise_floor=-0.1),
        lambda: flow.Linear(noise_floor=1.0),
        lambda: flow.Trigonometric(sigma_data=0.0),
        lambda: flow.VarianceExploding(2.0, 1.0),
        lambda: flow.VarianceExploding(-1.0, 1.0),
        lambda: flow.VariancePreserving(torch.linspace(0.9, 0.1, 10)),
        lambda: flow.VariancePreserving(cosine_log_snr, data_time=1.0),
        lambda: flow.VariancePreserving.from_table(torch.tensor([0.1, 0.9])),
        lambda: flow.VariancePreserving.from_table(torch.tensor([0.9])),
        lambda: flow.reverse(flow.VarianceExploding(0.1, math.inf)),
        lambda: flow.uniform_grid(0, path=flow.Linear()),
        lambda: flow.uniform_grid(3, path=flow.Linear(), start=1.5),
        lambda: flow.karras_grid(1),
        lambda: flow.karras_levels(torch.zeros(1), sigma_min=0.0),
        lambda: flow.few_step_grid(0),
        lambda: flow.sample_uniform(3, low=-0.5, path=flow.Linear()),
        lambda: flow.sample_uniform(3, low=0.5, high=0.4),
        lambda: flow.sample_logit_normal(3, high=1.1, path=flow.Linear()),
        lambda: flow.sample_log_normal(3, high=100.0, path=flow.VarianceExploding()),
        lambda: flow.truncated_log_normal_times(torch.zeros(1), mean=0.0, std=1.0, low=0.0, high=1.0),
        lambda: flow.power_law(torch.zeros(1), low=0.0, high=1.0, power=2.0),
        lambda: flow.limit_duration(torch.zeros(1), torch.zeros(1), longest=-1.0),
        lambda: flow.integrate(partial(flow.euler, lambda z, t: z), torch.ones(1, 1), torch.ones(1)),
        lambda: flow.central_difference(lambda x: x, (torch.ones(1),), (torch.ones(1),), step=0.0),
        lambda: flow.from_log_step(lambda z, t, k: z, finest=-1),
        lambda: flow.guided_velocity(torch.ones(1, 1), None, torch.ones(1, 1), omega=1.0, kappa=0.5),
        lambda: flow.classifier_free(lambda z: z, lambda z: z[:1], scale=2.0)(torch.ones(3, 1)),
        lambda: flow.eulerian_derivative(lambda z, t, s: z[:, :1], *(torch.ones(3, 2),) * 2, *(torch.ones(3),) * 2),
        lambda: flow.drift_negative_weight(torch.ones(1), generated=0, unconditional=2),
        lambda: clouds(torch.ones(5, 1, 2), groups=2),
    ],
)
def test_what_cannot_work_is_refused(make):
    with pytest.raises(ConfigError, match=r"\d|expected|must"):
        make()


def test_wrong_shapes_name_their_axes():
    path, x = flow.Linear(), torch.ones(4, 3)
    with pytest.raises(ArgumentError, match="batch"):
        path(x, x, torch.ones(3))
    with pytest.raises(ArgumentError, match="t"):
        path(x, x, torch.tensor(0.5))
    with pytest.raises(ArgumentError):
        path(x, torch.ones(4, 2), torch.ones(4))
    with pytest.raises(ArgumentError):
        path(x.long(), x.long(), torch.ones(4))
