"""A small classifier trained on the training split: its features are compared, and it predicts the class of a sample.

Distances in pixels do not distinguish digits from a Gaussian with their mean and covariance. Distances between the
activations of a classifier do, if it is trained on the training split only and is the same for every row of a
report. It is small, trains in seconds, has its own generator, and is kept in memory only.

It has seen the training images, so their features differ a little from those of held-out ones. The floor row of a
report, real training images against held-out ones, contains that difference. Noise on the training images keeps the
difference small.
"""

import hashlib
from collections.abc import Callable

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onestep_adapters.devices import generator_on
from onestep_adapters.tracking import Track, untracked
from onestep_core.errors import ConfigError
from onestep_core.typing import typed

Images = Float[Tensor, "n channel height width"]
Labels = Int[Tensor, "n"]

_BATCH = 64
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 1e-2
_NOISE = 0.4
_trained: dict[str, "Classifier"] = {}


@attrs.frozen(eq=False)
class Classifier:
    """A trained network in two parts, and how often it is right on the validation split.

    Attributes:
        body: images to penultimate activations.
        head: penultimate activations to logits.
        scale: root mean square of the centred training activations; features are measured in it.
        classes: number of classes.
        validation_accuracy: share of the validation images classified right.
        training_accuracy: share of the training images classified right.
    """

    body: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    scale: float
    classes: int
    validation_accuracy: float
    training_accuracy: float

    @typed
    @torch.no_grad()
    def features(self, images: Images) -> Float[Tensor, "n d"]:
        """Penultimate activations, ``[n, d]``, in units of their root mean square on the training split."""
        return torch.cat([self.body(block.float()) for block in images.split(1024)]) / self.scale

    @typed
    @torch.no_grad()
    def predict(self, images: Images) -> Labels:
        """The most likely class of each image, ``[n]``."""
        return self.head(self.features(images) * self.scale).argmax(1)


@typed
def train_classifier(
    images: Images,
    labels: Labels,
    *,
    validation_images: Float[Tensor, "m channel height width"],
    validation_labels: Int[Tensor, "m"],
    seed: int = 0,
    steps: int = 400,
    width: int = 32,
    track: Track = untracked,
) -> Classifier:
    """Train a three-layer convolutional classifier; the same arguments again return the same object.

    ``conv - conv, stride 2 - linear - ReLU (the features) - linear``, with AdamW and a cosine schedule, on
    images under Gaussian noise. Deterministic for one machine, thread count
    and version of torch: every draw comes from one generator.

    Args:
        images: the training split in [-1, 1], ``[n, channel, height, width]``.
        labels: classes ``0 .. classes - 1``, ``[n]``.
        validation_images: for the stated accuracy only; nothing is chosen on them here.
        validation_labels: their classes.
        seed: of the generator.
        steps: gradient steps of 64 images; 400 take one or two seconds on two CPU cores for 8x8 images.
        width: number of features.
        track: shows the progress.

    Raises:
        ConfigError: for fewer than two classes, or settings below one.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(64) % 2
        >>> images = torch.randn(64, 1, 4, 4, generator=g) * 0.1 + labels[:, None, None, None]
        >>> c = train_classifier(images, labels, validation_images=images, validation_labels=labels, steps=20)
        >>> c.features(images).shape, c.validation_accuracy
        (torch.Size([64, 32]), 1.0)
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    if classes < 2 or min(steps, width) < 1:
        raise ConfigError(
            f"expected at least two classes, steps and width from 1; got {classes} classes, {steps} steps and "
            f"width {width}: pass the labelled training split"
        )
    tensors = (images, labels, validation_images, validation_labels)
    key = hashlib.sha256(repr((seed, steps, width, [t.shape for t in tensors])).encode())
    for tensor in tensors:
        key.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    if key.hexdigest() not in _trained:
        _trained[key.hexdigest()] = _train(*tensors, classes, seed, steps, width, track)
    return _trained[key.hexdigest()]


def _train(
    images: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    classes: int,
    seed: int,
    steps: int,
    width: int,
    track: Track,
) -> Classifier:
    device, (channels, height, columns) = images.device, images.shape[1:]
    generator = generator_on(device, seed)
    flat = 64 * ((height + 1) // 2) * ((columns + 1) // 2)
    body = nn.Sequential(
        nn.utils.skip_init(nn.Conv2d, channels, 32, 3, padding=1, device=device),
        nn.ReLU(),
        nn.utils.skip_init(nn.Conv2d, 32, 64, 3, padding=1, stride=2, device=device),
        nn.ReLU(),
        nn.Flatten(),
        nn.utils.skip_init(nn.Linear, flat, width, device=device),
        nn.ReLU(),
    )
    head = nn.utils.skip_init(nn.Linear, width, classes, device=device)
    network = nn.Sequential(body, head)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in track(range(steps), "classifier", steps):
            rows = torch.randint(len(images), (_BATCH,), generator=generator, device=device)
            batch = images[rows].detach().float()
            batch = batch + _NOISE * torch.randn(batch.shape, generator=generator, device=device)
            optimizer.zero_grad()
            cross_entropy(network(batch), labels[rows].long()).backward()
            optimizer.step()
            schedule.step()
    network.requires_grad_(False).eval()
    activations = torch.cat([body(part.float()) for part in images.split(_chunk(images))])
    return Classifier(
        body=body,
        head=head,
        scale=(activations - activations.mean(0)).square().mean().sqrt().item(),
        classes=classes,
        validation_accuracy=_accuracy(network, others, other_labels),
        training_accuracy=_accuracy(network, images, labels),
    )


def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([network(part.float()).argmax(1) for part in images.split(_chunk(images))])
    return (predicted == labels).double().mean().item()


def _chunk(images: Tensor) -> int:
    """Images evaluated at once: at most 2^21 pixels of each channel."""
    return max(1, 2**21 // images[0, 0].numel())
