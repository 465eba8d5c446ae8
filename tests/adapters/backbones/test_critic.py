"""A head that reads a score network."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from onestep_adapters.backbones import MLP, ConvNet, Critic, DiT, UNet
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
    "unet": (lambda: UNet((1, 8, 8), width=16, depth=1, multipliers=(1, 2)), (1, 8, 8), 64),
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


def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4, num_class_embeds=3,
        )  # fmt: skip


@pytest.mark.parametrize(("layer", "locations"), [("mid_block", 16), ("conv_norm_out", 64)])
def test_a_foreign_score_network_with_its_own_conditions(layer, locations):
    critic = Critic(unet(), width=16, layer=layer, output=lambda result: result.sample)
    nn.init.normal_(critic.outer.weight)
    z, t, labels = torch.randn(3, 1, 8, 8), 999 * torch.rand(3), torch.tensor([0, 1, 2])
    judged = critic(z, t, class_labels=labels)
    torch.testing.assert_close(judged.prediction, critic.score(z, t, class_labels=labels).sample)
    assert judged.logits.shape == (3, locations)
    assert not torch.equal(judged.logits, critic(z, t, class_labels=labels.flip(0)).logits)
    bound = with_condition(critic, class_labels=labels)
    torch.testing.assert_close(bound(z, t).logits, judged.logits)
    judged.logits.sum().backward()
    assert critic.score.conv_in.weight.grad.abs().max() > 0


def test_the_head_of_a_foreign_network_gives_the_logits():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    critic, z = Critic(network, width=None, layer=""), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(critic(z).logits, network(z))
    assert [name for name, _ in critic.named_parameters()] == ["score.1.weight", "score.1.bias"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Critic(unet(), width=16, layer="mid_block"), "returned a UNet2DOutput.*output="),
        (lambda: Critic(unet(), width=8, layer="mid_block", output=lambda r: r.sample), "expected 8 channels"),
        (lambda: Critic(unet(), width=None, layer="mid_block", output=lambda r: r.sample), "expected 1 channels"),
    ],
)
def test_a_foreign_network_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()(torch.randn(2, 1, 8, 8), torch.ones(2), class_labels=torch.zeros(2).long())
