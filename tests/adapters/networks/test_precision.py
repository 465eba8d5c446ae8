"""Modules in another precision than their states."""

from functools import partial

import pytest
import torch

from onestep_adapters.backbones import MLP, ConvNet, DiT
from onestep_adapters.networks import as_average_velocity, as_flow_map, as_velocity
from onestep_adapters.samplers import one_step, sample_ode
from onestep_core import Linear, meanflow_regression, squared_l2

NETWORKS = {
    "mlp": partial(MLP, (1, 4, 4), width=16, depth=1, fourier=4),
    "conv": partial(ConvNet, (1, 4, 4), width=8, depth=1),
    "dit": partial(DiT, (1, 4, 4), patch=2, width=24, depth=1),
}


def drawn(build, times):
    network = build(times=times, classes=3, generator=torch.Generator().manual_seed(0))
    for parameter in network.parameters():  # output layers start at zero
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(
    ("module", "states", "tolerance"),
    [(torch.bfloat16, torch.float32, 0.1), (torch.float32, torch.float64, 1e-4), (torch.bfloat16, torch.float64, 0.1)],
)
def test_states_of_another_precision_are_cast_and_cast_back(build, module, states, tolerance):
    label = torch.tensor([0, 1, 2, 1])
    z = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=states)
    t, s = torch.full((4,), 0.7, dtype=states), torch.full((4,), 0.2, dtype=states)
    exact = drawn(build, 2).to(states)
    network = drawn(build, 2).to(module)
    for wrap in (as_average_velocity, as_flow_map):
        found, expected = (wrap(each, label=label)(z, t, s) for each in (network, exact))
        assert found.dtype == states
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_half_precision_networks_sample_and_train(build):
    noise = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    network = drawn(build, 2).bfloat16()
    average = as_average_velocity(network, label=torch.zeros(4, dtype=torch.long))
    assert one_step(average, noise, path=Linear()).isfinite().all()
    velocity = as_velocity(drawn(build, 1).bfloat16())
    assert sample_ode(velocity, noise, path=Linear(), steps=2).dtype == torch.float32
    t, s = torch.full((4,), 0.7), torch.full((4,), 0.2)
    z, v = Linear()(0 * noise, noise, t)
    squared_l2(*meanflow_regression(average, z, v, t, s)).mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_times_stay_exact_beside_half_precision():
    seen = []

    class Recorder(torch.nn.Linear):
        def forward(self, z, t):
            seen.append(t)
            return super().forward(z)

    as_velocity(Recorder(2, 2).bfloat16(), time_scale=1000.0)(torch.zeros(1, 2), torch.tensor([0.999]))
    assert seen[0].item() == pytest.approx(999.0)
