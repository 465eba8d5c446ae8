"""What the presets are worth. Options were chosen on the validation split; the thorough tests read the test split."""

import statistics

import attrs
import pytest
import torch

from onestep_adapters.data import open_dataset
from onestep_adapters.evaluation.encoders import encoder_rows, layer_features, probed, shifted_accuracy
from onestep_adapters.methods import ENCODERS
from onestep_adapters.runs import start_run
from onestep_core.errors import OneStepError


def flat(encoder):
    return lambda images: layer_features(encoder, images, encoder.layers[-1:])[encoder.layers[-1]].flatten(1)


def shifted(encode, data):
    train, held_out = data.split("train"), data.split("validation")
    return shifted_accuracy(encode, held_out.data, held_out.labels, encode(train.data), train.labels)


def test_a_short_simclr_beats_pixels_and_its_own_start_on_shifted_digits():
    data, preset = open_dataset("digits"), ENCODERS["simclr"].images
    training = attrs.evolve(preset.training, steps=200, batch=64, ema=0.95)
    options = attrs.evolve(preset, training=training, monitor_every=0)
    run = start_run("simclr", data, options)
    pixels = shifted(lambda images: images.flatten(1), data)
    random = shifted(flat(options.encoder_of(run.state.ema, data)), data)
    records = list(run.updates())
    trained = shifted(flat(options.encoder_of(run.state.ema, data)), data)
    assert trained > max(pixels, random) + 0.1
    assert records[-1].loss < records[0].loss - 1


def test_the_loss_of_a_short_mae_falls():
    data, preset = open_dataset("digits"), ENCODERS["mae"].images
    training = attrs.evolve(preset.training, steps=150, batch=64)
    network = attrs.evolve(preset.network, width=32, depth=2)
    run = start_run("mae", data, attrs.evolve(preset, training=training, network=network, monitor_every=0))
    losses = [record.loss for record in run.updates()]
    assert statistics.mean(losses[-20:]) < 0.85 * statistics.mean(losses[:20])


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_contrastive_features_of_digits(method):
    """The mean of three seeds: pixels + 0.04 in 2-shot accuracy, at least 0.85 on images moved by a pixel, a linear
    probe of at least 0.975.
    """
    torch.set_num_threads(1)
    found = []
    for seed in range(3):
        run = start_run(method, "digits", attrs.evolve(ENCODERS[method].images.with_seed(seed), monitor_every=0))
        list(run.updates())
        pixels, *_, trained = encoder_rows([run], probed(run.data, split="test", images=5000), last_only=True)
        found.append({name: number.mean for name, number in trained.metrics.items()})
    mean = {name: statistics.mean(numbers[name] for numbers in found) for name in found[0]}
    assert mean["few_shot"] >= pixels.metrics["few_shot"].mean + 0.04
    assert mean["shifted"] >= 0.85
    assert mean["linear"] >= 0.975


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "metric", "above"), [("simclr", "linear", 0.01), ("mae", "pooled", 0.08)])
def test_features_of_fashion_mnist_are_above_those_of_a_random_network(method, metric, above):
    """SimCLR: the probe of all locations, at least 0.845 too. MAE: the pooled probe, and the loss falls."""
    torch.set_num_threads(1)
    try:
        data = open_dataset("fashion-mnist")
    except OneStepError as error:
        pytest.skip(str(error))
    run = start_run(method, data, attrs.evolve(ENCODERS[method].options(data), monitor_every=0))
    losses = [record.loss for record in run.updates()]
    _, random, trained = encoder_rows([run], probed(data, split="test", images=5000), last_only=True)
    assert trained.metrics[metric].mean >= random.metrics[metric].mean + above
    assert trained.metrics[metric].mean >= 0.845 or method == "mae"
    assert statistics.mean(losses[-100:]) < 0.9 * statistics.mean(losses[:100])
