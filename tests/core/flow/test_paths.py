"""Paths beyond the laws: tables, schedules, noise of another spread."""

import torch
from torch import Tensor

from onestep_core import flow

F64 = torch.float64


def test_a_table_is_a_path():
    table = torch.linspace(0.999, 0.01, 1000, dtype=F64)
    path = flow.VariancePreserving.from_table(table)
    alpha, sigma = path.coefficients(torch.tensor([0.0, 437.0, 999.0], dtype=F64))
    torch.testing.assert_close(alpha**2, table[[0, 437, 999]])
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, dtype=F64))
    assert path.coefficients(torch.tensor([3.0]))[0].dtype == torch.float32


def test_cosine_schedule_between_its_ends():
    path = flow.VariancePreserving.cosine(log_snr_min=-12.0, log_snr_max=9.0)
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    torch.testing.assert_close(path.log_snr(ends), torch.tensor([9.0, -12.0], dtype=F64))
    t = torch.linspace(0, 1, 9, dtype=F64)
    angle = torch.atan2(*path.coefficients(t)[::-1])
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(8))
    assert path == flow.VariancePreserving.cosine(log_snr_min=-12.0, log_snr_max=9.0)


def test_noise_of_the_spread_of_the_data():
    circle, t = flow.Trigonometric(1.0), torch.linspace(0, 1.5, 5, dtype=F64)
    scaled, expected = flow.NoiseScaled(circle, 0.3), flow.Trigonometric(0.3)
    torch.testing.assert_close(scaled.coefficients(t), expected.coefficients(t))
    torch.testing.assert_close(scaled.rates(t), expected.rates(t))


def ends(path, batch: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.full((batch,), time, dtype=F64) for time in (path.noise_time, path.data_time))
