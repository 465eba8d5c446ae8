"""Wrong arguments of the adapters: what came, what was expected. Nothing is accepted in silence."""

import math

import pytest
import torch
from torch import nn

from onestep_adapters import encoders as enc
from onestep_adapters import metrics
from onestep_adapters.backbones import MLP, ConvNet, Decoder, DiT
from onestep_adapters.data import ArrayDataset, Batch, Draws, EightGaussians, open_dataset
from onestep_adapters.data.transport import optimal_noise
from onestep_adapters.devices import choose_device
from onestep_adapters.evaluation import evaluate_runs
from onestep_adapters.methods import Drifting, MeanFlow, Network, Training, exact_teacher
from onestep_adapters.networks import as_average_velocity, as_flow_map, as_one_step, as_velocity
from onestep_adapters.runs import open_run, resume_or_start, start_run
from onestep_adapters.samplers import consistency_multistep, standard_normal
from onestep_adapters.training import (
    Turn,
    latest_checkpoint,
    load_checkpoint,
    new_state,
    not_trained,
    read_run,
    save_checkpoint,
    side_by_side,
    train,
    trained_jointly,
    update_ema,
)
from onestep_core import Linear
from onestep_core.errors import ConfigError

NAN = math.nan
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
IMAGES = torch.zeros(6, 1, 8, 8)
LABELS = torch.arange(6) % 3
T = torch.linspace(0.2, 0.9, 6)
DATA = open_dataset("8gaussians")


def seeded():
    return torch.Generator().manual_seed(0)


def loss_step(network, generator):
    return network(torch.randn(4, 2, generator=generator)).square().mean(), {}


def trained(loss=loss_step, **options):
    options = {"steps": 1, "learning_rate": lambda i: 1e-3, "ema": lambda i: 0.9, **options}
    return list(train(new_state("demo", nn.Linear(2, 2)), loss, **options))


def returns(value):
    return lambda network, generator: value(network(torch.randn(4, 2, generator=generator)).square().mean())


CALLS = {
    # training
    "no network": (lambda: new_state("demo", None), "the network is a NoneType"),
    "no name": (lambda: new_state(3, nn.Linear(2, 2)), "method = 3"),
    "one beta": (lambda: new_state("demo", nn.Linear(2, 2), betas=0.9), "betas = 0.9"),
    "a config that is a list": (lambda: new_state("demo", nn.Linear(2, 2), config=[1]), "config is a list"),
    **{
        f"seed {seed}": (lambda seed=seed: new_state("demo", nn.Linear(2, 2), seed=seed), f"seed = {seed}")
        for seed in (-1, 0.5, None, 2**64)
    },
    "a loss without logs": (lambda: trained(returns(lambda loss: loss)), "loss_step returned a Tensor, expected"),
    "logs that are none": (lambda: trained(returns(lambda loss: (loss, None))), "a tuple of Tensor, NoneType"),
    "a log that is a word": (lambda: trained(returns(lambda loss: (loss, {"a": "b"}))), "the log a is a str"),
    "no loss": (lambda: trained(None), "loss_step is a NoneType: expected a function of .network, generator."),
    "a loss of one argument": (lambda: trained(lambda network: None), r"loss_step takes \(network\)"),
    "half an update": (lambda: trained(steps=1.5), "steps = 1.5"),
    "no number of updates": (lambda: trained(steps=None), "steps = None"),
    "history after a half": (lambda: trained(history_every=1.5), "history_every = 1.5"),
    "checkpoints after a half": (lambda: trained(checkpoint_every=1.5), "checkpoint_every = 1.5"),
    "a number as rate": (lambda: trained(learning_rate=1e-3), "learning_rate = 0.001: expected a function"),
    "a rate that is none": (lambda: trained(learning_rate=lambda i: None), "learning rate of update 0 is no number"),
    "a number as decay": (lambda: trained(ema=0.9), "ema = 0.9: expected a function"),
    "a word as clip": (lambda: trained(clip="1"), "clip = '1'"),
    "a number as turn": (lambda: trained(turns=[3]), "a int as a turn"),
    "no state": (lambda: train(3, loss_step, steps=1, learning_rate=lambda i: 1, ema=lambda i: 0), "a int as state"),
    "a turn of true updates": (lambda: Turn("a", loss_step, updates=True, learning_rate=lambda i: 1), "= True"),
    "a turn with a number as rate": (
        lambda: Turn("a", loss_step, updates=1, learning_rate=1.0),
        "learning_rate of the",
    ),
    "an EMA of another shape": (lambda: update_ema(nn.Linear(2, 2), nn.Linear(3, 3), decay=0.9), "weight has shape"),
    "no EMA": (lambda: update_ema(None, nn.Linear(2, 2), decay=0.9), "the EMA is a NoneType"),
    "no companion": (lambda: not_trained(None), "a companion is a NoneType"),
    "no joint companion": (lambda: trained_jointly(None), "is a NoneType"),
    "a job that is a number": (lambda: list(side_by_side([3])), "a job is a int"),
    # backbones and networks
    **{
        f"one number as the shape of a {make.__name__}": (lambda make=make: make(3), "shape = 3")
        for make in (MLP, ConvNet, DiT, Decoder)
    },
    **{
        f"time scale {scale} of {wrap.__name__}": (
            lambda wrap=wrap, scale=scale: wrap(MLP((3,), width=8, depth=1), time_scale=scale),
            f"time_scale = {scale}",
        )
        for wrap in (as_velocity, as_average_velocity, as_flow_map)
        for scale in (0, NAN, math.inf)
    },
    "a module without a time": (lambda: as_velocity(nn.Linear(3, 3))(X, T), r"the Linear takes .*called with \(z, t\)"),
    "a keyword that the module lacks": (
        lambda: as_velocity(MLP((3,), width=8, depth=1), nonsense=1)(X, T),
        r"the MLP takes .*called with \(z, t, nonsense=\)",
    ),
    # samplers
    "noise of one argument": (
        lambda: consistency_multistep(
            lambda z, t: z, X, torch.tensor([1.0, 0.5, 0.0]), path=Linear(), noise=lambda like: like
        ),
        r"noise takes \(like\), and it is called with \(step, like\)",
    ),
    "a number as generator": (lambda: standard_normal(3), "a int as generator"),
    # data
    "no name of data": (lambda: open_dataset(None), "a NoneType as data"),
    **{f"{count} samples": (lambda count=count: DATA.batch(count, seeded()), f"count = {count}") for count in (0, 2.5)},
    "a number as a toy's generator": (lambda: DATA.batch(4, 0), "a int as generator"),
    "a split that is none": (lambda: DATA.split("nope"), "no split is called 'nope'"),
    "data with NaN": (lambda: ArrayDataset("a", Batch(X * NAN, None)), "6 of 6 samples of .* hold NaN"),
    "no samples of an array": (lambda: ArrayDataset("a", Batch(X, None)).batch(0, seeded()), "count = 0"),
    "an unknown coupling": (lambda: Draws(DATA, "nearest"), "no coupling is called 'nearest'"),
    "no data to draw from": (lambda: Draws(None), "a NoneType as data"),
    "further samples below none": (lambda: Draws(DATA, further=-1), "further = -1"),
    "a log that is called by a number": (
        lambda: trained(lambda n, g: (loss_step(n, g)[0], {1: 2.0})),
        r"logs are called \[1\]: expected names",
    ),
    "a network without numbers": (lambda: new_state("demo", nn.Linear(2, 2, device="meta")), "device meta"),
    "data without a name": (lambda: ArrayDataset(" ", Batch(X, None)), "name = ' ': expected the name"),
    "a sample without batch axis": (lambda: MLP((6, 3), width=8)(X, T), r"z\[None\] is a batch of one"),
    "samples of another shape": (
        lambda: MLP((3,), width=8)(X[:, :2], T),
        r"reshape the samples to \(3,\), or construct",
    ),
    "labels that are no integers": (lambda: optimal_noise(X, X, T), "float32 for 6 samples: expected one integer"),
    "noise that is not finite": (lambda: optimal_noise(X, X * NAN), "noise hold NaN"),
    # metrics
    "a block of no rows": (lambda: metrics.manifold_metrics(X, X, k=3, block_size=0), "block_size = 0"),
    "classes of other images": (lambda: metrics.class_gaussians_like(X, LABELS[:2], 6), r"labels of shape \(2,\)"),
    "classes that are no integers": (lambda: metrics.class_gaussians_like(X, LABELS.float(), 6), "float32"),
    "a mean of nothing": (lambda: metrics.estimate([]), "no value"),
    "a rank of nothing": (lambda: metrics.effective_rank(X[:0]), "no row"),
    "a spread of nothing": (lambda: metrics.spread(X[:0]), "no row"),
    "views of nothing": (lambda: metrics.alignment(X[:0], X[:0]), "no row"),
    "a sampler that returns nothing": (
        lambda: metrics.toy_score(lambda count, generator: None, EightGaussians(), count=50, draws=2),
        "the sampler returned a NoneType",
    ),
    "a sampler of one argument": (
        lambda: metrics.toy_score(lambda count: None, EightGaussians(), count=50, draws=2),
        r"sampler takes \(count\)",
    ),
    "no distribution": (lambda: metrics.toy_reference(None), "the distribution's sample is a NoneType"),
    "no splits": (lambda: metrics.measure(IMAGES, splits=None, classifier=None), "a NoneType as splits"),
    # encoders
    "pixels of integers": (lambda: enc.pixels(X.long()), "samples of torch.int64"),
    "nothing to join": (lambda: enc.joined(), "no encoder"),
    "a number to join": (lambda: enc.joined(3), "an encoder is a int"),
    "no encoder": (lambda: enc.features_of(None), "a NoneType as encoder"),
    "a shift below none": (lambda: enc.shift(IMAGES, pixels=-1, generator=seeded()), "pixels = -1"),
    "a square larger than the image": (lambda: enc.cutout(IMAGES, side=2.0, generator=seeded()), "side = 2.0"),
    "a probability above one": (
        lambda: enc.horizontal_flip(IMAGES, probability=1.5, generator=seeded()),
        "probability = 1.5",
    ),
    "a strength above one": (lambda: enc.brightness(IMAGES, strength=2.0, generator=seeded()), "strength = 2.0"),
    "a blur of negative width": (lambda: enc.blur(IMAGES, largest=-1.0, generator=seeded()), "blur of"),
    "channels that a network does not take": (
        lambda: enc.multiscale(nn.Sequential(nn.Conv2d(1, 4, 3)), ["0"])(torch.zeros(2, 3, 8, 8)),
        "the network refuses images of 3 channels",
    ),
    # methods, runs, evaluation
    "no method": (lambda: start_run(None, DATA), "no method is called None"),
    "training that is none": (lambda: start_run("meanflow", DATA, MeanFlow(training=None)), "training = None"),
    "half a unit": (lambda: Network("mlp", width=2.5), "width = 2.5"),
    "a word as number": (lambda: Training(learning_rate="fast"), "learning_rate = 'fast'"),
    "an average that never moves": (lambda: Training(ema=1.0), "ema = 1.0"),
    "a number as temperatures": (lambda: Drifting(temperatures=0.5), "temperatures = 0.5"),
    "samples without a generator": (
        lambda: start_run("drifting", DATA).samples(2, generator=None),
        "a NoneType as generator",
    ),
    "the exact teacher of nothing": (lambda: exact_teacher(None), "a NoneType as data"),
    "a number as run": (lambda: evaluate_runs([3]), "a int as run"),
    "a split of a report": (lambda: evaluate_runs([start_run("drifting", DATA)], split="nope"), "no split is called"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_a_bad_call_says_what_came(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


FOLDERS = {
    "open_run": open_run,
    "resume_or_start": lambda folder: resume_or_start(folder, "drifting", DATA, Drifting(), resume=False),
    "read_run": read_run,
    "latest_checkpoint": latest_checkpoint,
    "save_checkpoint": lambda folder: save_checkpoint(folder, new_state("demo", nn.Linear(2, 2))),
    "load_checkpoint": lambda folder: load_checkpoint(folder, new_state("demo", nn.Linear(2, 2))),
}


@pytest.mark.parametrize("folder", ["", 3, b"run", "a\0b", ["run"]], ids=repr)
@pytest.mark.parametrize("call", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_a_path(call, folder):
    with pytest.raises(ConfigError, match=r"folder = .*: expected a path, a str or a pathlib\.Path"):
        call(folder)


@pytest.mark.parametrize("path", [None, "linear"])
def test_a_path_is_a_path(path):
    with pytest.raises(TypeError, match="path"):
        as_one_step(lambda z, t, s: z, path=path)


def test_data_with_a_graph_can_be_coupled():
    data = X.clone().requires_grad_()
    assert torch.equal(optimal_noise(data, X.flip(0)), X)


def test_a_missing_device_is_told_in_a_short_line():
    with pytest.raises(ConfigError) as caught:
        choose_device("cuda:7" if not torch.cuda.is_available() else "cuda:99")
    assert len(str(caught.value)) < 250
