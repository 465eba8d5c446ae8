"""DMD2: the head reads the fake score, several steps learn from their own samples, divergences scale the gap."""

from itertools import pairwise

import attrs
import pytest
import torch
from torch import nn

from onestep_adapters.backbones import Critic
from onestep_adapters.data import open_dataset
from onestep_adapters.methods import DMD2, METHODS
from onestep_adapters.methods.few_steps import noise_of
from onestep_adapters.methods.linear_path import PATH
from onestep_adapters.methods.matching.dmd2 import DIVERGENCES
from onestep_adapters.methods.matching.score_distillation import FakeScore
from onestep_adapters.runs import start_run
from onestep_adapters.samplers import backward_simulation, consistency_multistep
from onestep_core import f_divergence_scale
from onestep_core.errors import ConfigError
from onestep_core.flow import renoise_clean
from tests.adapters.methods.matching.games import fake_score, game, seeded, tiny

pytestmark = pytest.mark.usefixtures("teachers")


# Two mistakes that users found in re-implementations.


def test_the_head_reads_the_fake_score_and_not_the_teacher():
    """Its logits change with the fake score, not with the teacher; its loss trains the features that it reads."""
    run, context, options = game(tiny(adversarial_weight=0.5))
    critic, teacher = fake_score(run), run.teacher.module
    assert isinstance(critic, Critic)
    assert all(mine is not theirs for mine in critic.parameters() for theirs in teacher.parameters())
    nn.init.normal_(critic.outer.weight, generator=seeded())

    def adversarial():
        return options.loss(context, run.state.network, seeded(1))[1]["adversarial"].item()

    def discriminator():
        return options.fake_score_loss(context, critic, seeded(2))[1]["discriminator"]

    before = adversarial(), discriminator().item()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.5)
    assert (adversarial(), discriminator().item()) == before
    discriminator().backward()
    assert critic.score.input.weight.grad.abs().max() > 0
    with torch.no_grad():
        critic.score.input.weight.add_(0.5)
    after = adversarial(), discriminator().item()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_an_update_of_the_generator_leaves_no_gradient_in_the_fake_score():
    run, context, options = game(tiny(adversarial_weight=0.5))
    nn.init.normal_(fake_score(run).outer.weight, generator=seeded())
    options.loss(context, run.state.network, seeded())[0].backward()
    assert all(p.grad is None for p in fake_score(run).parameters())
    assert run.state.network.output.weight.grad.abs().max() > 0


def test_a_student_of_several_steps_is_trained_on_its_own_samples(monkeypatch):
    """Its later steps start from the results of its earlier steps, not from noised data: it never draws data."""
    run, context, options = game(tiny(adversarial_weight=0.0, sampling_steps=3))
    seen = []
    monkeypatch.setattr(type(run.data), "batch", lambda *_: pytest.fail("data came into the generator's update"))
    with torch.no_grad():
        for p in run.state.network.parameters():
            p.zero_()
        run.state.network.output.bias.fill_(7.0)  # Velocity 7: a sample is its state less 7 times its time.
    handle = run.state.network.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[1][0])))
    grid = [1.0, 2 / 3, 1 / 3]
    for seed in range(12):
        seen.clear()
        options.loss(context, run.state.network, seeded(seed))
        times = [float(t) for _, t in seen]
        assert times == pytest.approx(grid[: len(times)])
        for (before, t), (after, s) in pairwise(seen):
            noise = (after - (1 - s) * (before - 7 * t)) / s
            assert float(noise.mean().abs()) < 1.2, "a state that its own sampler does not make"
            assert float((after.mean() - before.mean()).abs()) > 0.5
        assert all(not state.requires_grad for state, _ in seen)
    handle.remove()


def test_backward_simulation_is_the_beginning_of_the_sampler():
    """The input of the third step of a three-step sampler, without a graph."""
    student = nn.Linear(2, 2)
    z, noise, times = torch.randn(5, 2), torch.randn(3, 5, 2), [1.0, 0.7, 0.3]
    asked = []

    def consistency(z, t):
        asked.append((z, t))
        return student(z)

    consistency_multistep(consistency, z, [*times, 0.0], path=PATH, noise=noise, renoise=renoise_clean)
    simulated = backward_simulation(consistency, z, times, path=PATH, noise=noise, renoise=renoise_clean)
    torch.testing.assert_close(simulated, asked[2][0])
    assert not simulated.requires_grad
    assert torch.equal(backward_simulation(consistency, z, [1.0], path=PATH, noise=None), z)


# Several steps.


def test_a_sampler_of_several_steps_calls_its_network_as_often():
    options = tiny(adversarial_weight=0.0, sampling_steps=3)
    run = start_run("dmd2", "8gaussians", options)
    calls = []
    handle = run.state.network.register_forward_pre_hook(lambda *_: calls.append(1))
    noise = torch.randn(6, 2)
    first = options.sample(run.state.network, noise, None)
    assert len(calls) == options.evaluations == 3
    assert torch.equal(options.sample(run.state.network, noise, None), first)
    handle.remove()


def test_noise_between_steps_is_a_samples_own():
    options = tiny(sampling_steps=3, adversarial_weight=0.0)
    network = options.build(open_dataset("8gaussians"), seeded())
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=seeded(1))
    noise = torch.randn(6, 2, generator=seeded(2))
    whole = options.sample(network, noise, None)
    parts = torch.cat([options.sample(network, part, None) for part in (noise[:2], noise[2:])])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(options.sample(network, noise.flip(0), None), whole.flip(0))
    draws = noise_of(torch.stack([noise[0], noise[0].flip(0)]))(0, noise[:2])
    assert not torch.equal(draws[0], draws[1])
    assert options.sample(network, noise[:0], None).shape == (0, 2)


def test_the_error_for_several_steps_does_not_ask_for_pairs():
    """Pairs teach one step; the error for several steps says how else they are trained."""
    options = attrs.evolve(METHODS["dmd2"].points, sampling_steps=2, pairs_only_share=0.0)
    with pytest.raises(ConfigError, match=r"give both the same \(--fourier 0, or [^;]*$"):
        start_run("dmd2", "8gaussians", options)


# Divergences.


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_scales_the_gap_by_what_the_head_says(divergence):
    options = tiny("f-distill", divergence=divergence)
    logits, t = torch.tensor([[-2.0], [0.5], [2.0]]), torch.full((3,), 0.5)
    scale = options.gap_scale(FakeScore(torch.zeros(3, 2), logits), t)
    if divergence == "reverse-kl":
        assert scale is None
        return
    plain = f_divergence_scale(logits, t, divergence=DIVERGENCES[divergence])
    assert torch.equal(scale.argsort(), plain.argsort())
    torch.testing.assert_close(scale.mean(), torch.ones(()), atol=1e-4, rtol=0)
    rising = {"forward-kl", "jensen-shannon", "squared-hellinger", "jeffreys"}
    assert (scale[2] > scale[0]) == (divergence in rising)


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "forward-kl", "adversarial_weight": 0.0},
        {"adversarial_weight": float("inf")},
        {"pairs_weight": 0.1, "sampling_steps": 2},
        {"pairs_only_share": 0.1, "sampling_steps": 2},
        {"sampling_steps": 0},
    ],
)
def test_bad_options_are_refused_with_a_reason(options):
    with pytest.raises(ConfigError, match=r".{20}"):
        DMD2(**options)
