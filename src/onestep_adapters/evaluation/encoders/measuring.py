"""Measuring encoders: the probes in the features of trained encoders, of pixels, and of random networks.

Flat features of a random network beat pixels in a linear probe, so a trained encoder is compared with a random network
of the same shape, never with pixels alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Batch, Dataset
from onestep_adapters.encoders import Encoder
from onestep_adapters.evaluation.encoders.probes import (
    MOVES,
    PENALTIES,
    few_shot_accuracy,
    layer_features,
    linear_probe,
    shifted_accuracy,
)
from onestep_adapters.evaluation.measuring import cost_of, label_of, notes_on
from onestep_adapters.evaluation.rows import Cost, Metric, Row
from onestep_adapters.methods.pretraining.base import Pretraining
from onestep_adapters.metrics import Estimate, knn_accuracy
from onestep_adapters.runs import Run
from onestep_adapters.runs.configs import dotted
from onestep_adapters.tracking import Track, counting, untracked
from onestep_core.errors import ConfigError

METRICS: Mapping[str, Metric] = {
    "linear": Metric(
        "linear probe",
        "accuracy of a linear classifier of the features at all locations; its penalty is chosen on the validation "
        "split",
    ),
    "pooled": Metric("linear probe, pooled", "the same for the mean of the features over the locations"),
    "few_shot": Metric(
        "2-shot 1-NN",
        "accuracy of the nearest of two random training images of every class, in the features at all locations; mean "
        "over 100 draws",
    ),
    "knn": Metric("kNN", "accuracy of the five nearest training images, in the features at all locations"),
    "shifted": Metric(
        "kNN, shifted",
        "the same for images that are moved by one pixel, mean over the eight directions; training images are not "
        "moved",
    ),
}
"""The columns of the table, by name."""

MOST_LAYERS = 4
_TEST_SHARE = 0.4


@attrs.frozen
class Probed:
    """Images of all probes; chosen once, so that every row is measured on the same ones.

    Attributes:
        train: training images and classes.
        validation: images for choices.
        tested: the images that the numbers are of.
        split: name of the split of ``tested``.
    """

    train: Batch
    validation: Batch
    tested: Batch
    split: str


def probed(data: Dataset, *, split: str, images: int, device: torch.device | str = "cpu") -> Probed:
    """Evenly spaced images of the splits: at most ``images`` of training, two fifths of that of each other split.

    Raises:
        ConfigError: for data without images, splits or classes, or another split.
    """
    if split not in ("validation", "test"):
        raise ConfigError(f"no split is called {split!r}: expected 'validation' for choices or 'test' for reports")
    if images < 1:
        raise ConfigError(f"images = {images}: expected at least one training image for the probes")
    if data.kind != "images" or data.classes is None:
        raise ConfigError(
            f"{data.name} has no classes: probes need images with classes (sub-folders, or a table with --labels); an "
            "encoder of such images is used by its run folder, onestep train drifting --encoder RUN"
        )
    most = {"train": images, "validation": max(1, int(_TEST_SHARE * images)), "test": max(1, int(_TEST_SHARE * images))}
    found: dict[str, Batch] = {}
    for name in ("train", "validation", split):
        there = data.split(name)
        if there is None or there.labels is None:
            raise ConfigError(
                f"{data.name} has no images with labels in its {name} split: probes need some in every split, so give "
                "more images"
            )
        count = min(most[name], len(there.data))
        places = torch.arange(count) * len(there.data) // count
        found[name] = Batch(there.data[places].to(device), there.labels[places].to(device))
    return Probed(found["train"], found["validation"], found[split], split)


def probe(
    encode: Callable[[Tensor], Tensor], on: Probed, *, seed: int = 0, track: Track = untracked, title: str = "probes"
) -> dict[str, Estimate]:
    """All probes in the features of ``encode``, images to ``[n, location, channel]``.

    Standard errors are those of a share of the tested images: ``sqrt(p (1 - p) / n)``.
    """
    labels, tested_labels = on.train.labels, on.tested.labels
    assert labels is not None
    assert tested_labels is not None
    with counting(track, title, _PARTS) as each:
        train, validation, tested = (encode(part.data) for part in each((on.train, on.validation, on.tested), "", 3))
        flat, flat_tested = train.flatten(1), tested.flatten(1)
        found: dict[str, float] = {}
        forms = {"linear": lambda features: features.flatten(1)}
        if train.shape[1] > 1:
            forms["pooled"] = lambda features: features.mean(1)
        for name, form in forms.items():
            fitted = linear_probe(
                form(train), labels, validation=form(validation), validation_labels=on.validation.labels,  # type: ignore[arg-type]
                track=each,
            )  # fmt: skip
            found[name] = fitted.accuracy(form(tested), tested_labels)
        generator = torch.Generator().manual_seed(seed)
        found["few_shot"] = few_shot_accuracy(flat_tested, tested_labels, flat, labels, generator=generator)
        found["knn"] = knn_accuracy(flat_tested, tested_labels, flat, labels)
        found["shifted"] = shifted_accuracy(
            lambda images: encode(images).flatten(1), on.tested.data, tested_labels, flat, labels, track=each
        )
    count = len(tested_labels)
    return {name: Estimate(value, (value * (1 - value) / count) ** 0.5) for name, value in found.items()}


_PARTS = 3 + 2 * len(PENALTIES) + len(MOVES)
"""Parts of all probes: splits to encode, penalties of both linear probes, directions. Features at one location have one
linear probe."""


def encoder_rows(
    runs: Sequence[Run], on: Probed, *, seed: int = 0, last_only: bool = False, track: Track = untracked
) -> list[Row]:
    """A row of pixels; then for every run and layer a row of a random network of the same shape and one of the run.

    The random network has the initial weights of the run. Of an encoder with many layers four are measured, evenly
    spaced, the last one included; with ``last_only`` that one alone. ``track`` shows the progress of every row.
    """
    measured = partial(probe, on=on, seed=seed, track=track)
    rows = [Row("pixels", measured(lambda images: images.flatten(1)[:, None], title="pixels"), draws=1)]
    for run in runs:
        options = run.options
        assert isinstance(options, Pretraining)
        label = label_of(run, runs)
        trained = options.encoder_of(run.state.ema, run.data)
        initial = options.build(run.data, torch.Generator().manual_seed(options.training.seed)).to(run.device)
        random = options.encoder_of(initial, run.data)
        budget = attrs.evolve(cost_of(run), evaluations_per_sample=None)
        about = {"cost": budget, "notes": notes_on(run), "options": dotted(options)}
        for layer in trained.layers[-1:] if last_only else _some(trained.layers):
            shown = layer or "output"
            for name, encoder, facts in (
                (control(label), random, {"cost": Cost(updates=0, training_evaluations=0)}),
                (label, trained, about),
            ):
                found = measured(partial(_layer, encoder, layer), title=f"{name}: {shown}")
                rows.append(Row(name, found, shown, draws=1, **facts))
    return rows


def control(label: str) -> str:
    """Name of the row of a random network beside the run ``label``.

    Example:
        >>> control("simclr")
        'random, shape of simclr'
    """
    return f"random, shape of {label}"


def parameters(encoder: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in encoder.parameters())


def _layer(encoder: Encoder, layer: str, images: Tensor) -> Tensor:
    return layer_features(encoder, images, [layer])[layer]


def _some(layers: Sequence[str]) -> list[str]:
    count = min(MOST_LAYERS, len(layers))
    return [layers[(index + 1) * len(layers) // count - 1] for index in range(count)]
