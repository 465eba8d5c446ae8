"""A head that reads a score network."""

import pytest
import torch
from torch import nn

from onestep_adapters.backbones import MLP, ConvNet, Critic, DiT
from onestep_adapters.networks import frozen, with_condition
from onestep_core.errors import ConfigError


class Idle(nn.Module):
    """A network with a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def forward(self, z, t, label=None):
        return z


@pytest.mark.parametrize(
    "make",
    [
        lambda: Critic(nn.Linear(2, 2), width=2, layer="nowhere"),
        lambda: Critic(nn.Sequential(nn.Linear(2, 2)), width=0, layer="0"),
        lambda: Critic(Idle(), width=2, layer="unused")(torch.zeros(3, 2), torch.ones(3)),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(make):
    with pytest.raises(ConfigError, match=r".{20}"):
        make()


BACKBONES = {
    "mlp": (lambda: MLP((2,), width=16, depth=1), (2,), 1),
    "conv": (lambda: ConvNet((1, 8, 8), width=16, depth=1), (1, 8, 8), 64),
    "dit": (lambda: DiT((1, 8, 8), width=16, depth=1, heads=2), (1, 8, 8), 16),
}


@pytest.mark.parametrize(("make", "shape", "locations"), BACKBONES.values(), ids=BACKBONES)
def test_a_head_reads_the_score_network_in_the_same_pass(make, shape, locations):
    """Every backbone: the prediction is the network's own, the logits follow its features and its parameters."""
    critic = Critic(make(), width=16)
    nn.init.normal_(critic.outer.weight)
    z, t = torch.randn(3, *shape), torch.rand(3)
    judged = critic(z, t)
    torch.testing.assert_close(judged.prediction, critic.score(z, t))
    assert judged.logits.shape == (3, locations)
    judged.logits.sum().backward()
    assert critic.score.input.weight.grad.abs().max() > 0
    assert not critic.score.output._forward_pre_hooks


def test_a_frozen_critic_passes_the_gradient_to_its_input_alone():
    critic, z = Critic(MLP((2,), width=16, depth=1), width=16), torch.randn(3, 2, requires_grad=True)
    nn.init.normal_(critic.outer.weight)
    with_condition(frozen(critic), label=None)(z, torch.rand(3)).logits.sum().backward()
    assert z.grad.abs().max() > 0
    assert all(p.grad is None for p in critic.parameters())
