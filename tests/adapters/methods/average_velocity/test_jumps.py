"""Training pairs of an average velocity: stable targets, the two parts of a batch, jumps at a boundary."""

import pytest
import torch

from onestep_adapters.data import Draws, open_dataset
from onestep_adapters.methods import MeanFlow, Shortcut, TerminalVelocity, Training
from onestep_adapters.methods.average_velocity.jumps import part_losses
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded


def drawn(options, data="8gaussians", seed=0):
    """The pairs of one update."""
    return options.drawn(Draws(open_dataset(data), options.coupling, further=options.stable_targets), seeded(seed))


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_stable_targets_take_variance_from_the_velocity_and_leave_its_mean(data):
    """The states are the same; the velocity is averaged over data of the state's class, and not next to data."""
    own, mean = (
        drawn(MeanFlow(Training(batch=2000), interval_share=0.5, stable_targets=count), data) for count in (0, 500)
    )
    assert torch.equal(own.z, mean.z)
    assert torch.equal(own.t, mean.t)
    assert torch.equal(own.s, mean.s)
    near = own.t < 1e-3
    assert torch.equal(own.v[near], mean.v[near])
    removed = (own.v - mean.v).flatten(1)
    error = removed.std(0) / len(removed) ** 0.5
    assert (removed.mean(0).abs() <= 4.5 * error + 1e-6).all()
    assert mean.v.flatten(1).var(0).sum() < 0.98 * own.v.flatten(1).var(0).sum()


def test_the_first_pairs_of_a_batch_jump_and_the_rest_have_one_time():
    options = TerminalVelocity(Training(batch=40), interval_share=0.25)
    jumps, rest = options.parts(Draws(open_dataset("8gaussians")), seeded())
    assert (len(jumps.z), len(rest.z)) == (10, 30)
    assert (jumps.s < jumps.t).all()
    assert torch.equal(rest.s, rest.t)


def test_jumps_at_a_boundary_share_the_end_that_one_step_sampling_has():
    halves = {"training": Training(batch=40), "interval_share": 0.5}
    to_data = drawn(MeanFlow(**halves, data_end_share=0.5))
    from_noise = drawn(TerminalVelocity(**halves, noise_start_share=0.5))
    assert (to_data.s[:10] == 0).all()
    assert (from_noise.t[:10] == 1).all()
    for pairs in (to_data, from_noise):
        assert (pairs.s[:20] < pairs.t[:20]).all()
        assert ((pairs.s[10:20] > 0) & (pairs.t[10:20] < 1)).all()
        assert torch.equal(pairs.s[20:], pairs.t[20:])


def test_full_jumps_go_from_noise_to_data():
    pairs = drawn(MeanFlow(Training(batch=40), interval_share=0.5, data_end_share=0.5, full_jump_share=0.25))
    assert (pairs.t[10:15] == 1).all()
    assert (pairs.s[:15] == 0).all()
    assert (pairs.t[:10] < 1).all()
    with pytest.raises(ConfigError, match="sum of at most 1"):
        MeanFlow(data_end_share=0.8, full_jump_share=0.3)


def test_shortcuts_are_dyadic_and_run_from_noise_to_data():
    options = Shortcut(Training(batch=64), interval_share=0.5, halvings=3)
    jumps, rest = options.parts(Draws(open_dataset("8gaussians")), seeded())
    lengths = jumps.s - jumps.t
    assert set(lengths.tolist()) == {1.0, 0.5, 0.25}
    assert torch.equal((jumps.t / lengths).round(), jumps.t / lengths)
    torch.testing.assert_close(rest.s - rest.t, torch.full((32,), 1 / 8))
    noise = torch.randn(3, 2)
    assert torch.equal(options.sample(lambda z, t, s, label: (s - t)[:, None] * 0 - z, noise, None), 0 * noise)


def test_a_part_without_pairs_has_no_loss_in_the_log():
    assert part_losses(torch.ones(3), 3).keys() == {"loss s<t"}
    assert part_losses(torch.ones(3), 0).keys() == {"loss s=t"}
