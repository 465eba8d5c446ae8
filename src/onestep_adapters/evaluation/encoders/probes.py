"""Probes: how well simple classifiers do in the features of an encoder. They judge features without tuning them.

    linear probe     multinomial logistic regression; its penalty is chosen on the validation split
    few-shot         1-nearest neighbour with two training images of every class, over many draws
    kNN, shifted     nearest neighbours of images that are moved by one pixel; pixels fail here

Images in [-1, 1]; features ``[n, channel]``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onestep_adapters.encoders import Encoder, locations
from onestep_adapters.metrics import knn_accuracy, nearest_neighbours
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
"""The penalties that are tried, from the strongest."""

MOVES = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)
"""The eight directions, in pixels down and to the right."""

_ITERATIONS = 100


class LinearProbe(NamedTuple):
    """A trained linear classifier: ``(features - mean) / scale @ weight + bias``, and its penalty."""

    mean: Tensor
    scale: float
    weight: Tensor
    bias: Tensor
    penalty: float

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the features ``[n, channel]`` that are classified right."""
        return float((self._logits(features).argmax(1) == labels).float().mean())

    def _logits(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale @ self.weight + self.bias


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    validation: Tensor,
    validation_labels: Tensor,
    penalties: Sequence[float] = PENALTIES,
    track: Track = untracked,
) -> LinearProbe:
    """Logistic regression, by torch's L-BFGS: ``mean cross entropy + penalty / 2 |weight|^2``, for each penalty.

    The features are centred and divided by the root mean square of their length. Of the penalties the one with the best
    validation accuracy is kept, the strongest of equal ones.

    Args:
        features: of the training images, ``[n, channel]``.
        labels: their classes, ``[n]``.
        validation: features of the validation images, ``[m, channel]``.
        validation_labels: their classes, ``[m]``.
        penalties: at least one, positive.
        track: shows how many penalties are done.

    Raises:
        ConfigError: for shapes that do not fit, or no penalty.

    Example:
        >>> x, y = torch.eye(2).repeat(5, 1), torch.arange(2).repeat(5)
        >>> linear_probe(x, y, validation=x, validation_labels=y).accuracy(x, y)
        1.0
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not penalties or min(penalties) <= 0:
        raise ConfigError(
            f"features of shape {tuple(features.shape)}, labels of {tuple(labels.shape)}, penalties {list(penalties)}: "
            "expected [n, channel], [n] and at least one positive penalty"
        )
    mean = features.mean(0)
    scale = float((features - mean).square().sum(1).mean().sqrt().clamp(min=1e-12))
    rows, classes = (features - mean) / scale, int(labels.max()) + 1
    weight = torch.zeros(features.shape[1], classes, dtype=rows.dtype, device=rows.device)
    bias = torch.zeros(classes, dtype=rows.dtype, device=rows.device)
    best, best_accuracy = None, -1.0
    for penalty in track(sorted(penalties, reverse=True), "linear probe", len(penalties)):
        # Each starts from the solution of the stronger penalty.
        weight, bias = _fitted(rows, labels, weight, bias, penalty)
        probe = LinearProbe(mean, scale, weight, bias, penalty)
        accuracy = probe.accuracy(validation, validation_labels)
        if accuracy > best_accuracy:
            best, best_accuracy = probe, accuracy
    assert best is not None
    return best


def _fitted(rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    weight, bias = (part.clone().requires_grad_() for part in (weight, bias))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(rows @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def few_shot_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    shots: int = 2,
    draws: int = 100,
) -> float:
    """Accuracy of the nearest of ``shots`` random references of every class, by the angle; the mean over the draws.

    Args:
        queries: ``[m, channel]``.
        query_labels: ``[m]``.
        references: ``[n, channel]``.
        labels: of the references, ``[n]``.
        generator: draws the references; on the CPU.
        shots: references of every class.
        draws: independent draws of the references.

    Raises:
        ConfigError: if a class has fewer references.

    Example:
        >>> x, y = torch.eye(2).repeat(2, 1), torch.arange(2).repeat(2)
        >>> few_shot_accuracy(x, y, x, y, generator=torch.Generator().manual_seed(0))
        1.0
    """
    members = [(labels == kind).nonzero()[:, 0] for kind in range(int(labels.max()) + 1)]
    if min(map(len, members)) < shots:
        few = [index for index, rows in enumerate(members) if len(rows) < shots]
        raise ConfigError(
            f"the classes {few} have fewer than {shots} training images: probes need at least {shots} of each, so give "
            "more images or join classes"
        )
    right = 0.0
    for _ in range(draws):
        picks = [m[torch.randperm(len(m), generator=generator)[:shots].to(m.device)] for m in members]
        chosen = torch.cat(picks)
        nearest = nearest_neighbours(queries, references[chosen])[:, 0]
        right += float((labels[chosen][nearest] == query_labels).float().mean())
    return right / draws


def shifted_accuracy(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    image_labels: Tensor,
    references: Tensor,
    labels: Tensor,
    *,
    neighbours: int = 5,
    track: Track = untracked,
) -> float:
    """Nearest-neighbour accuracy of images moved by one pixel, the mean over the eight directions.

    Args:
        encode: images ``[m, channel, height, width]`` to features ``[m, channel]``.
        images: held-out images, not moved yet.
        image_labels: ``[m]``.
        references: features of the training images, not moved, ``[n, channel]``.
        labels: ``[n]``.
        neighbours: that vote.
        track: shows how many directions are done.
    """
    found = [
        knn_accuracy(encode(moved(images, *move)), image_labels, references, labels, neighbours=neighbours)
        for move in track(MOVES, "shifted images", len(MOVES))
    ]
    return sum(found) / len(found)


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """The images moved by whole pixels; the edge is repeated.

    Example:
        >>> moved(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 0, 1)
        tensor([[[[1., 1., 2.]]]])
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images[:, :, rows][:, :, :, columns]


@torch.no_grad()
def layer_features(
    encoder: Encoder, images: Tensor, layers: Sequence[str] | None = None, *, chunk: int = 500
) -> Mapping[str, Tensor]:
    """The outputs of an encoder's layers at all locations, ``{layer: [n, location, channel]}``, in evaluation mode.

    Args:
        encoder: the encoder; its mode is restored.
        images: ``[n, channel, height, width]`` in [-1, 1], on the encoder's device.
        layers: names of submodules; by default the encoder's own.
        chunk: images in one forward pass.

    Raises:
        ConfigError: if the network has no layer of a name.
    """
    module, names = encoder.module, encoder.layers if layers is None else layers
    known = dict(module.named_modules())
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"the encoder has no layers {unknown}: expected some of {sorted(known)[:20]}")
    mean, std = (
        torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
        for values in (encoder.mean, encoder.std)
    )
    parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def keeps(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: parts[name].append(locations(output).float())

    handles = [known[name].register_forward_hook(keeps(name)) for name in names]
    mode = module.training
    module.eval()
    try:
        for part in images.split(chunk):
            module((part - mean) / std)
    finally:
        module.train(mode)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(found) for name, found in parts.items()}
