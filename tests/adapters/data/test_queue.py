"""Queues of real samples against a list per class; their place in a checkpoint."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onestep_adapters.data import SampleQueue
from onestep_adapters.data.queue import Rings
from onestep_adapters.training import (
    CheckpointError,
    constant_decay,
    cosine_decay,
    load_checkpoint,
    new_state,
    not_trained,
    save_checkpoint,
    train,
)
from onestep_core.errors import ConfigError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(queue, count=60, seed=0):
    """Every sample is its own number, so that it can be recognised."""
    labels = torch.randint(len(queue.counts), (count,), generator=generator(seed))
    queue.push(torch.arange(count, dtype=torch.float32)[:, None], labels)
    return labels


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.lists(st.integers(0, 3), max_size=14), max_size=5),
)
def test_rings_hold_the_newest_of_every_row(rows, capacity, pushes):
    rings, model, number = Rings(rows, capacity, (2,)), [deque(maxlen=capacity) for _ in range(rows)], 0
    for push in pushes:
        push = [row % rows for row in push]
        values = torch.arange(number, number + len(push), dtype=torch.float32)
        rings.push(torch.stack([values, -values], 1), torch.tensor(push, dtype=torch.int64))
        for row, value in zip(push, values.tolist(), strict=True):
            model[row].append(value)
        number += len(push)
    assert rings.counts.tolist() == [len(kept) for kept in model]
    for row, kept in enumerate(model):
        held = rings.samples[row, : len(kept)]
        assert sorted(held[:, 0].tolist()) == sorted(kept)
        assert torch.equal(held[:, 1], -held[:, 0])


def test_draws_are_of_the_class_asked_for_and_never_twice_the_same():
    queue = SampleQueue((1,), classes=3, capacity=15, unconditional=40)
    labels = filled(queue)
    drawn = queue.positives(12, generator=generator()).long().flatten()
    assert torch.equal(labels[drawn], torch.arange(3).repeat_interleave(12))
    assert all(len(set(part.tolist())) == 12 for part in drawn.split(12))
    chosen = queue.positives(4, classes=torch.tensor([2, 0, 2]), generator=generator()).long().flatten()
    assert torch.equal(labels[chosen], torch.tensor([2, 0, 2]).repeat_interleave(4))
    everything = queue.unconditional(40, groups=2, generator=generator()).long().flatten()
    assert all(torch.equal(part.sort().values, torch.arange(20, 60)) for part in everything.split(40))


def test_every_sample_that_is_held_is_equally_likely():
    queue = SampleQueue((1,), classes=1, capacity=10, unconditional=0)
    queue.push(torch.arange(7.0)[:, None])
    g = generator()
    counts = torch.bincount(torch.cat([queue.positives(3, generator=g) for _ in range(4000)]).long().flatten())
    assert len(counts) == 7
    # 12,000 draws in cells of 1714: five standard deviations are 190.
    assert (counts - 12_000 / 7).abs().max() < 190


def test_draws_follow_their_generator_and_leave_the_global_one_alone():
    queue = SampleQueue((1,), classes=2)
    filled(queue)
    before = torch.get_rng_state()
    first, again, other = (queue.positives(5, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_short_and_empty_classes_are_errors_unless_repetition_is_chosen():
    queue = SampleQueue((1,), classes=3, capacity=8, unconditional=5)
    with pytest.raises(ConfigError, match=r"by class: \{0: 0, 1: 0, 2: 0\}"):
        queue.positives(1)
    queue.push(torch.arange(9.0)[:, None], torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 2]))
    with pytest.raises(ConfigError, match=r"fewer than 4 samples .* by class: \{1: 0, 2: 3\}"):
        queue.positives(4)
    with pytest.raises(ConfigError, match=r"\{1: 0\}\): push more"):
        queue.positives(4, repeat=True)
    drawn = queue.positives(5, classes=torch.tensor([0, 2]), repeat=True, generator=generator()).flatten()
    assert len(set(drawn[:5].tolist())) == 5, "a class that holds enough is drawn without replacement"
    assert set(drawn[5:].tolist()) <= {6.0, 7.0, 8.0}
    longer = queue.positives(20, classes=torch.tensor([0, 2]), repeat=True, generator=generator()).flatten()
    assert set(longer[:20].tolist()) <= set(map(float, range(6)))
    with pytest.raises(ConfigError, match=r"fewer than 6 samples .* by queue: \{0: 5\}"):
        queue.unconditional(6)
    with pytest.raises(ConfigError, match="cannot draw 0 samples"):
        queue.positives(0, classes=torch.tensor([0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SampleQueue((1,), capacity=0), "1 queues of 0 samples"),
        (lambda: SampleQueue((1,), unconditional=-1), "unconditional = -1"),
        (lambda: SampleQueue((2,), classes=2).push(torch.zeros(3, 2)), "without labels"),
        (lambda: SampleQueue((2,), classes=2).push(torch.zeros(3, 1), torch.zeros(3)), r"expected \[n, 2\]"),
        (lambda: SampleQueue((2,), classes=2).push(torch.zeros(1, 2), torch.tensor([2])), "expected 0 to 1"),
        (lambda: SampleQueue((2,), classes=2).push(torch.zeros(1, 2), torch.tensor([-1])), "labels from -1"),
        (lambda: SampleQueue((2,), classes=2).push(torch.zeros(1, 2), torch.zeros(1)), "expected integers"),
        (lambda: SampleQueue((2,), classes=2).positives(1, classes=torch.tensor([-1])), "labels from -1"),
        (lambda: SampleQueue((2,), unconditional=0).unconditional(1), "keeps no unconditional"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# In a run.


def fresh(*, capacity=9, queue=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Linear(2, 2)
    companions = {"queue": not_trained(SampleQueue((2,), classes=2, capacity=capacity))} if queue else {}
    return new_state("demo", network, seed=5, companions=companions)


def loss_step(state):
    queue = state.companions["queue"].module

    def loss(network, g):
        labels = torch.randint(2, (6,), generator=g)
        queue.push(labels[:, None] + torch.randn(6, 2, generator=g), labels)
        positives = queue.positives(4, repeat=True, generator=g)
        return (network(torch.randn(8, 2, generator=g)) - positives).square().mean(), {}

    return loss


def updates(state, steps, **options):
    return train(
        state, loss_step(state), steps=steps, learning_rate=cosine_decay(1e-2, 20), ema=constant_decay(0.9), **options
    )


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(tmp_path, cut):
    whole = fresh()
    list(updates(whole, 9))
    interrupted = fresh()
    for record in updates(interrupted, 9, checkpoint_every=cut, folder=tmp_path):
        if record.step == cut:
            break
    resumed = load_checkpoint(tmp_path, fresh())
    list(updates(resumed, 9))
    for mine, theirs in (
        (resumed.network, whole.network),
        (resumed.ema, whole.ema),
        (resumed.companions["queue"].module, whole.companions["queue"].module),
    ):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]


def test_a_checkpoint_fits_a_state_with_the_same_queue_only(tmp_path):
    state = fresh()
    list(updates(state, 2))
    save_checkpoint(tmp_path / "with", state)
    save_checkpoint(tmp_path / "without", fresh(queue=False))
    for folder, target, message in (
        ("with", fresh(queue=False), r"companions \{.queue.: .never.\}, the state has \{\}"),
        ("with", fresh(capacity=8), r"queue.by_class.samples of \(2, 9, 2\).* expected \(2, 8, 2\)"),
        ("without", fresh(), r"companions \{\}, the state has \{.queue."),
    ):
        before = target.network.weight.clone()
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / folder, target)
        assert torch.equal(target.network.weight, before)


def test_fractions_and_lists_are_refused():
    queue = SampleQueue((2,), classes=2, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="rounded"):
        queue.push(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64))
    queue.push(torch.ones(3, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]))
    with pytest.raises(ConfigError, match="expected a tensor"):
        queue.positives(1, classes=[0, 1])
