"""Times and their noise ratios."""

import pytest
import torch

from onestep_adapters.testing import strategies
from onestep_core import flow, objectives

F64 = torch.float64


PATHS = {
    "linear": flow.Linear(),
    "floor": flow.Linear(0.01),
    "reversed": flow.reverse(flow.Linear()),
    "trigonometric": flow.Trigonometric(0.7),
    "scaled": flow.NoiseScaled(flow.Linear(), 0.5),
    "cosine": flow.VariancePreserving.cosine(log_snr_min=-10.0, log_snr_max=10.0),
    "exploding": flow.VarianceExploding(0.002, 80.0),
}


each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


@each_path
def test_the_time_of_a_noise_ratio_inverts_every_path(path):
    t = torch.cat([strategies.spread_times(path, 9, 3), torch.tensor([path.data_time, path.noise_time], dtype=F64)])
    alpha, sigma = path.coefficients(t)
    found = flow.time_of_noise_ratio(sigma / alpha, path=path)
    torch.testing.assert_close(found, t, rtol=1e-9, atol=1e-9)
    beyond = flow.time_of_noise_ratio(torch.tensor([0.0, 1e30], dtype=F64), path=path)
    assert beyond.tolist() == pytest.approx([path.data_time, path.noise_time])
    assert flow.time_of_noise_ratio((sigma / alpha).float().reshape(11, 1), path=path).shape == (11, 1)


def test_one_time_for_a_whole_batch_may_be_an_expanded_tensor():
    """As ``integrate`` hands it out: forward mode needs storage of its own for every tangent."""
    path, whole, one = PATHS["cosine"], torch.full((4,), 0.3, dtype=F64), torch.full((1,), 0.3, dtype=F64).expand(4)
    torch.testing.assert_close(path.rates(one), path.rates(whole))
    z = strategies.normal(0, 4, 2)
    network = lambda z, t, s: z * (t * s)[:, None]  # noqa: E731
    pairs = [objectives.meanflow_regression(network, z, z, t, t) for t in (one, whole)]
    torch.testing.assert_close(*pairs)
