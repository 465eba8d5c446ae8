"""The decoder: images from a vector of noise and a class."""

import attrs
import pytest
import torch

from onestep_adapters.backbones import Decoder
from onestep_adapters.backbones.decoder import _sizes
from onestep_adapters.data import open_dataset
from onestep_adapters.methods import Drifting, Network, Training, find_preset
from onestep_adapters.methods.drifting.extras import Guidance
from onestep_adapters.runs import open_run, start_run
from onestep_core.errors import ConfigError
from onestep_core.shapes import per_sample
from tests.adapters.tiny import drawn, seeded

F64 = torch.float64
SMALL = Network("decoder", width=4, depth=1, noise_width=5)


def decoder(shape=(2, 9, 12), **options):
    return Decoder(shape, **{"noise": 5, "width": 6, "depth": 1, "generator": seeded(), **options})


@pytest.mark.parametrize("times", [0, 1])
@pytest.mark.parametrize("classes", [None, 3])
def test_samples_differ_from_the_start_and_gradients_reach_every_parameter(times, classes):
    network = decoder(times=times, classes=classes)
    noise, label = torch.randn(4, 5), None if classes is None else torch.tensor([0, 1, 2, 3])
    given = (torch.rand(4),) * times
    out = network(noise, *given, label=label)
    assert out.shape == (4, 2, 9, 12)
    assert torch.pdist(out.flatten(1)).min() > 1e-2
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=seeded(7)))
    network(noise, *given, label=label).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert not list(network.buffers())


def test_class_time_and_noise_matter_after_one_update():
    network = decoder(times=1, classes=3)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    noise, t, label = torch.randn(4, 5), torch.rand(4), torch.tensor([0, 1, 2, 2])
    network(noise, t, label=label).square().mean().backward()
    optimiser.step()
    out = network(noise, t, label=label)
    assert not torch.allclose(out, network(noise, t, label=label.flip(0)))
    assert not torch.allclose(out, network(noise, 1 - t, label=label))
    assert torch.equal(network(noise, t), network(noise, t, label=torch.full((4,), 3)))


def test_derivatives_and_samples_alone():
    network = decoder(classes=None).double()
    noise, direction = torch.randn(2, 3, 5, dtype=F64, generator=seeded(1))
    _, tangent = torch.func.jvp(network, (noise,), (direction,))
    slope = (network(noise + 1e-6 * direction) - network(noise - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(per_sample(network)(noise)[:, 0], network(noise))


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((28, 28), [(7, 7), (14, 14), (28, 28)]),
        ((32, 32), [(4, 4), (8, 8), (16, 16), (32, 32)]),
        ((8, 8), [(4, 4), (8, 8)]),
        ((5, 9), [(5, 9)]),
        ((25, 40), [(7, 10), (13, 20), (25, 40)]),
    ],
)
def test_sizes(size, sizes):
    assert _sizes(*size) == sizes
    assert decoder((1, *size))(torch.randn(2, 5)).shape == (2, 1, *size)


def test_a_new_network_already_tells_classes_apart_unless_it_is_told_not_to():
    noise, label = torch.randn(1, 5).expand(4, 5), torch.tensor([0, 1, 2, 3])
    starting, alike = decoder(classes=3)(noise, label=label), decoder(classes=3, class_start=False)(noise, label=label)
    assert torch.pdist(starting.flatten(1)).min() > 1e-2
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))
    torch.testing.assert_close(decoder(classes=3)(noise[:1]), starting[3:])  # no label is the last row


def test_a_bound_is_a_tanh_of_the_same_image():
    plain, bounded = decoder(), decoder(bounded=True)
    with torch.no_grad():
        for network in (plain, bounded):
            network.output.weight.mul_(5)
    noise = torch.randn(4, 5)
    assert plain(noise).abs().max() > 1.05
    torch.testing.assert_close(bounded(noise), 1.05 * plain(noise).tanh())


def test_blocks_at_full_size_are_counted_apart():
    assert [len(blocks) for blocks in decoder().levels] == [1, 1]
    assert [len(blocks) for blocks in decoder(depth=2, full_depth=0).levels] == [2, 0]
    assert decoder(depth=2, full_depth=0)(torch.randn(2, 5)).shape == (2, 2, 9, 12)
    network = attrs.evolve(SMALL, full_depth=0, bounded=True).build(
        open_dataset("digits"), 0, seeded(), from_vector=True
    )
    assert [len(blocks) for blocks in network.levels] == [1, 0]
    assert network.bounded


def test_the_order_of_the_memory_changes_no_sample():
    noise, data = torch.randn(3, 5), open_dataset("digits")
    plain, other = (
        attrs.evolve(SMALL, channels_last=given).build(data, 0, seeded(), from_vector=True) for given in (False, True)
    )
    assert other.output.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain(noise), other(noise))


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(max_alpha=2.0, unconditional_samples=3)])
def test_drifting_trains_samples_and_is_opened_with_it(tmp_path, guidance):
    options = Drifting(Training(steps=2, batch=20), SMALL, positives=5, guidance=guidance)
    run = start_run("drifting", "digits", options)
    assert options.noise_shape(run.data) == (5,)
    assert all(record.loss > 0 for record in run.updates(tmp_path))
    samples, labels = drawn(open_run(tmp_path))
    assert samples.shape == (7, 1, 8, 8)
    assert labels.shape == (7,)
    torch.testing.assert_close(samples, drawn(run)[0])


@pytest.mark.parametrize("method", ["flow-matching", "meanflow", "consistency-training", "dmd"])
def test_methods_that_noise_images_refuse_it(method):
    data = open_dataset("digits")
    options = type(find_preset(method).options(data))(network=SMALL)
    with pytest.raises(ConfigError, match="adds noise to images"):
        options.build(data, seeded())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decoder((8, 8)), "channels, height, width"),
        (lambda: Decoder((1, 8, 8), noise=0), "noise = 0"),
        (lambda: Decoder((1, 8, 8), depth=0), "depth = 0"),
        (lambda: decoder()(torch.ones(2, 4)), r"expected \[batch, 5\]"),
        (lambda: decoder(times=1)(torch.ones(2, 5)), "0 times, expected 1"),
        (lambda: decoder()(torch.ones(2, 5), label=torch.zeros(2).long()), "without classes"),
        (lambda: Network("conv", noise_width=3).build(open_dataset("digits"), 0, seeded()), "only decoder has it"),
        (lambda: Decoder((1, 8, 8), full_depth=-1), "full_depth = -1"),
        (lambda: Network("conv", bounded=True).build(open_dataset("digits"), 0, seeded()), "only decoder has them"),
        (lambda: Network("conv", full_depth=0).build(open_dataset("digits"), 0, seeded()), "only decoder has them"),
        (lambda: SMALL.build(open_dataset("8gaussians"), 0, seeded(), from_vector=True), "needs images"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
