"""A run at step 0."""

import pytest
import torch
from torch import nn

from onestep_adapters.training import new_state
from onestep_core.errors import ConfigError
from tests.adapters.training.runs import fresh


def test_a_fresh_state():
    network = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1))
    network[0].weight.requires_grad_(False)
    config = {"shape": (2, 3), "name": None}
    state = new_state("demo", network, learning_rate=0.5, betas=(0.1, 0.2), weight_decay=0.3, seed=7, config=config)
    (group,) = state.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters() if p.requires_grad]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.3)
    assert (state.step, state.history, state.companions) == (0, [], {})
    assert state.config == {"shape": [2, 3], "name": None}
    expected = torch.rand(3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.rand(3, generator=state.generator), expected)
    assert network.training
    assert not any(module.training for module in state.ema.modules())
    assert not any(p.requires_grad for p in state.ema.parameters())
    torch.testing.assert_close(state.ema.state_dict(), network.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fresh(learning_rate=0.0), "learning_rate"),
        (lambda: fresh(betas=(0.9, 1.0)), "betas"),
        (lambda: fresh(weight_decay=-1.0), "weight_decay"),
        (lambda: new_state("x", nn.SiLU()), "no parameter"),
        (lambda: new_state("x", nn.Linear(1, 1), config={"a": torch.ones(1)}), "JSON"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
