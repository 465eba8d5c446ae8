"""Drifting: a one-step generator that follows a field of data and its own samples."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from onestep_adapters.data import Dataset, SampleQueue
from onestep_adapters.encoders import Encoder, Multiscale, RandomConvolutions, features_of, joined, pixels
from onestep_adapters.methods.drifting.extras import Guidance, Queue
from onestep_adapters.methods.drifting.fields import RELEASED, named_field
from onestep_adapters.methods.drifting.monitors import EVERY, DriftMonitors, monitor_names
from onestep_adapters.methods.drifting.positives import (
    CachedPositives,
    Encoded,
    Real,
    cache_place,
    cached_positives,
    encoded,
)
from onestep_adapters.methods.method import Context, Loss, Method
from onestep_adapters.methods.options import Network, Training
from onestep_adapters.methods.presets import IMAGE_NETWORK, POINT_NETWORK, SMALL, Preset
from onestep_adapters.methods.work import Work, seen, trained
from onestep_adapters.training import Companion, not_trained
from onestep_core import (
    drift_negative_weight,
    drifting_regressions,
    geometric_temperature,
    mse,
    sample_guidance_scales,
)
from onestep_core.errors import ConfigError
from onestep_core.protocols import Features, Field
from onestep_core.validators import not_negative, positive, positive_count, share

_UNCONDITIONAL = 1000
"""Number of unconditional samples in a queue, as in the released code."""

QUEUE = "queue"
"""Name of the companion that keeps samples."""


PIXELS, RANDOM = "pixels", "random"
"""Encoders that are part of the method; every other name is that of a pretrained network or of a run."""


class _Prepared(NamedTuple):
    """The encoder, the monitors, and the cached features of real images, or ``None``."""

    encode: Features
    monitors: DriftMonitors
    cached: CachedPositives | None


@attrs.frozen
class Drifting(Method):
    """Move samples along a drift field; sample by one evaluation of the generator."""

    objective: ClassVar[str] = "regression (drift)"
    ode: ClassVar[str] = "no"

    guidance: Guidance = Guidance()
    queue: Queue = Queue()
    field: Literal["mean-shift", "attraction-repulsion", "sinkhorn", "released"] = "mean-shift"
    """Normalisation of the kernel. mean-shift: over real and over generated samples separately. attraction-repulsion:
    over both together, by rows and columns. sinkhorn: the same with three iterations. released: the ImageNet code; it
    implies --relative-temperatures."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures tau of the kernel exp(-|x - y| / tau), with the Euclidean distance of whole samples, in units of the
    data (with --relative-temperatures: of the mean distance). Smaller: only close samples act. Their drifts are
    averaged. Code: 0.02 0.05 0.2, with --field released."""
    final_temperatures: tuple[float, ...] | None = None
    """Temperatures at the end of training, one for each of --temperatures; they change geometrically in between. None:
    constant."""
    cooling_share: float = attrs.field(default=1.0, validator=[share, positive])
    """Fraction of the training in which the temperatures change; then they stay. Only with --final-temperatures."""
    relative_temperatures: bool = False
    """Divide distances by their mean, for each feature map of --encoder; the drift is then in units of this mean.
    Always so for an encoder other than pixels, whose features differ in size."""
    encoder: str = PIXELS
    """Features in which the drift is computed. pixels: the sample itself. random: pixels and features of a random,
    frozen convolutional network. A pretrained network (efficientnet-lite0), or the folder of a run of simclr, moco or
    mae: statistics of its layers. All but pixels: one drift for each feature, images only, relative temperatures."""
    layers: tuple[str, ...] = ()
    """Layers of the encoder whose outputs are the features, by their names in the network. Empty: those that the
    encoder suggests. Paper: every second block of a ResNet."""
    pixel_weight: float = attrs.field(default=0.0, validator=not_negative)
    """Weight of a drift in raw pixels, beside one of weight 1 for each feature of the encoder. 0: none. Features that
    depend little on brightness and position leave these open. Only for an encoder from a run or a pretrained one.
    Paper: 0."""
    cache_features: float = attrs.field(default=4.0, validator=not_negative)
    """Limit in gigabytes. If the features of all real images, together with these images, need at most that, they are
    computed once, before training, and kept on the disk (without dequantisation noise); otherwise the real images of
    every update are encoded. 0: never kept. Only for an encoder from a run or a pretrained one, without a queue, and
    for data that are not mirrored."""
    positives: int = attrs.field(default=64, validator=positive_count)
    """Real samples of each class in one update."""
    drift_scale: float = attrs.field(default=1.0, validator=not_negative)
    """Factor of the drift in the target x + scale * drift. Paper: 1."""
    attraction: float = attrs.field(default=1.0, validator=not_negative)
    """Factor of the attraction by real samples, 0 or more. Other than --repulsion: samples that have the distribution
    of the data still move, so it is for ablations (examples/ablation_antisymmetry.py). Paper: 1."""
    repulsion: float = attrs.field(default=1.0, validator=not_negative)
    """Factor of the repulsion among generated samples, 0 or more. 0: attraction alone. Paper: 1."""

    def __attrs_post_init__(self) -> None:
        for name, numbers in (("temperatures", self.temperatures), ("final_temperatures", self.final_temperatures)):
            if not isinstance(numbers, tuple | list | None):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(f"{name} = {numbers!r}: expected a tuple of numbers")
        ends = self.final_temperatures or self.temperatures
        if not self.temperatures or len(ends) != len(self.temperatures) or min(*self.temperatures, *ends) <= 0:
            raise ConfigError(
                f"temperatures = {self.temperatures}, final_temperatures = {self.final_temperatures}: "
                "expected at least one positive number, and as many at the end as at the start"
            )
        if self.field == RELEASED and self.final_temperatures is not None:
            raise ConfigError("the released field has fixed temperatures: leave final_temperatures out")
        if not self.encoder or (self.layers and not self.encoder_from):
            raise ConfigError(
                f"encoder = {self.encoder!r}, layers = {self.layers}: expected the name of an encoder, and layers only "
                "for a pretrained encoder or the run of one"
            )
        if self.pixel_weight and not self.encoder_from:
            raise ConfigError(
                f"pixel_weight = {self.pixel_weight} with encoder = {self.encoder!r}, which has the pixels already: "
                "give the encoder of a run or a pretrained one, or leave the weight at 0"
            )
        if 0 < self.queue.queue_size < self.positives:
            raise ConfigError(
                f"a queue of {self.queue.queue_size} samples cannot give {self.positives} positives of a class: "
                "a larger queue_size, or fewer positives"
            )

    @property
    def _relative(self) -> bool:
        return self.relative_temperatures or self.field == RELEASED or self.encoder != PIXELS

    @property
    def encoder_from(self) -> str:  # type: ignore[override]
        """The encoder that the run finds: the name of a pretrained one, or a folder."""
        return "" if self.encoder in (PIXELS, RANDOM) else self.encoder

    @property
    def calls(self) -> int:
        """Network evaluations in one update. Those of the encoder are not counted, nor the monitors' own, which are one
        in twenty updates."""
        return 1

    def work(self, step: int, data: Dataset) -> Work:
        """The generator's samples; the monitors make them again once in twenty updates."""
        rows = (data.classes or 1) * self._each(data)
        return trained(rows) + seen((step % EVERY == 1) * rows)

    @property
    def monitors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the numbers that the training display shows."""
        return monitor_names(self.temperatures)

    def build(self, data: Dataset, generator: torch.Generator) -> nn.Module:
        """The generator: noise, a guidance scale if it learns any, and a class if there are any, to a sample.

        Raises:
            ConfigError: for guidance without classes.
        """
        if self._each(data) < 2:
            raise ConfigError(
                f"batch = {self.training.batch} for the {data.classes or 1} classes of {data.name}: drifting needs at "
                f"least two samples of each class in an update, so a batch of at least {2 * (data.classes or 1)}"
            )
        if self.guidance.learned and data.classes is None:
            raise ConfigError(f"guidance needs classes, {data.name} has none: leave max_alpha at 1")
        return self.network.build(data, int(self.guidance.learned), generator, from_vector=True)

    def companions(self, data: Dataset, network: nn.Module, generator: torch.Generator) -> Mapping[str, Companion]:
        """The queue, if there is one."""
        if not self.queue.queue_size:
            return {}
        queue = SampleQueue(
            data.shape,
            classes=data.classes or 1,
            capacity=self.queue.queue_size,
            unconditional=_UNCONDITIONAL if self.guidance.learned else 0,
        )
        return {QUEUE: not_trained(queue)}

    def features(self, data: Dataset, device: torch.device | str = "cpu", encoder: Encoder | None = None) -> Features:
        """From samples to the features in which the field is computed.

        Args:
            data: the data set.
            device: of the encoder.
            encoder: the one that :attr:`encoder_from` names.

        Raises:
            ConfigError: for an encoder of images on other data, or of another number of channels; if it is missing.
        """
        if self.encoder == PIXELS:
            return pixels
        if len(data.shape) != 3:
            raise ConfigError(f"encoder {self.encoder!r} needs images, {data.name} has samples of {data.shape}")
        if self.encoder == RANDOM:
            weights = torch.Generator().manual_seed(self.training.seed)
            return joined(pixels, RandomConvolutions(data.shape[0], generator=weights).to(device))
        if encoder is None:
            raise ConfigError(f"encoder {self.encoder!r} is found by a run: train this method with a Run")
        return features_of(encoder, self.layers).to(device)

    def field_at(self, progress: float) -> Field:
        """The field at a share of the training, 0 to 1."""
        return named_field(
            self.field,
            self._temperatures_at(progress),
            relative=self._relative,
            scale=self.drift_scale,
            attraction=self.attraction,
            repulsion=self.repulsion,
        )

    def _temperatures_at(self, progress: float) -> tuple[float, ...]:
        ends = self.final_temperatures or self.temperatures
        done = progress / self.cooling_share
        return tuple(
            geometric_temperature(done, start=start, end=end)
            for start, end in zip(self.temperatures, ends, strict=True)
        )

    def prepare(self, context: Context) -> _Prepared:
        """The encoder, the monitors, and the cached features of the real images."""
        seed, device, encoder = self.training.seed, context.device, context.encoder
        monitors = DriftMonitors(context.data, self.temperatures, seed=seed, relative=self._relative, device=device)
        features = self.features(context.data, device, encoder)
        cached = None
        if encoder is not None and isinstance(features, Multiscale) and not self.queue.queue_size:
            cached = cached_positives(
                context.cache,
                encoder,
                features,
                context.data,
                limit=self.cache_features,
                device=device,
                track=context.track,
                with_pixels=self.pixel_weight > 0,
            )
        return _Prepared(joined(features, pixels) if self.pixel_weight else features, monitors, cached)

    def preparations(self, context: Context) -> tuple[str, ...]:
        """The features of the real images, if they are kept and not there yet."""
        device, encoder = context.device, context.encoder
        if encoder is None or self.queue.queue_size:
            return ()
        features = self.features(context.data, device, encoder)
        if not isinstance(features, Multiscale):
            return ()
        found = cache_place(context.cache, encoder, features, context.data, limit=self.cache_features, device=device)
        if found is None or found[1].is_dir():
            return ()
        return (f"the features of {len(found[0].data):,} real images: one evaluation of the encoder each, kept",)

    def loss(self, context: Context, network: nn.Module, generator: torch.Generator) -> Loss:
        """The drifting loss, summed over features, and the monitors. The loss itself does not show progress."""
        data, (encode, monitors, _) = context.data, context.prepared
        groups, device = data.classes or 1, generator.device
        each = self._each(data)
        labels = None if data.classes is None else torch.arange(groups, device=device).repeat_interleave(each)
        step, progress = context.state.step, context.state.step / self.training.steps
        real = self._real(context, groups, generator)
        noise = torch.randn(groups * each, *self.noise_shape(data), generator=generator, device=device)
        alpha = self._scales(groups, generator)
        samples = self._generated(network, noise, labels, alpha)
        field, generated = self.field_at(progress), encode(samples)
        weights = None
        if alpha is not None:
            unconditional = self.guidance.unconditional_samples
            weights = drift_negative_weight(alpha, generated=each, unconditional=unconditional)
        pairs = drifting_regressions(
            generated,
            real.features,
            field={name: monitors.watched(name, field) for name in generated},
            groups=groups,
            extra_negatives=real.extra,
            extra_weights=weights,
        )
        numbers = monitors.logs(
            step,
            samples,
            real.positives,
            temperature=min(self._temperatures_at(progress)),
            alpha=alpha,
            noise=noise,
            again=lambda noise, alpha: encode(self._generated(network, noise, labels, alpha)),
            kept=context.state.kept,
        )
        weight = {PIXELS: self.pixel_weight} if self.pixel_weight else {}
        return torch.stack([weight.get(name, 1.0) * mse(*pair).mean() for name, pair in pairs.items()]).sum(), numbers

    def _real(self, context: Context, groups: int, generator: torch.Generator) -> Encoded:
        unconditional = self.guidance.unconditional_samples if self.guidance.learned else 0
        if context.prepared.cached is not None:
            return context.prepared.cached.draw(self.positives, groups * unconditional, generator)
        return encoded(self._drawn(context, groups, unconditional, generator), context.prepared.encode)

    def _drawn(self, context: Context, groups: int, unconditional: int, generator: torch.Generator) -> Real:
        data = context.data
        if not self.queue.queue_size:
            positives = data.groups(self.positives, generator)
            return Real(positives, data.batch(groups * unconditional, generator).data if unconditional else None)
        queue: SampleQueue = context.companion(QUEUE)
        queue.push(*data.batch(self.queue.queue_pushes, generator))
        while int(queue.counts.min()) < self.positives or queue.total < unconditional:
            queue.push(*data.batch(self.queue.queue_pushes, generator))
        positives = queue.positives(self.positives, generator=generator)
        return Real(
            positives,
            queue.unconditional(unconditional, groups=groups, generator=generator) if unconditional else None,
        )

    def _each(self, data: Dataset) -> int:
        """Generated samples of each class in an update."""
        return self.training.batch // (data.classes or 1)

    def _scales(self, groups: int, generator: torch.Generator) -> Tensor | None:
        if not self.guidance.learned:
            return None
        return sample_guidance_scales(
            groups,
            high=self.guidance.max_alpha,
            power=self.guidance.alpha_power,
            plain=self.guidance.unguided_share,
            generator=generator,
            device=generator.device,
        )

    def _generated(self, network: nn.Module, noise: Tensor, labels: Tensor | None, alpha: Tensor | None) -> Tensor:
        """Samples of all classes, with one guidance scale for each class."""
        if alpha is None:
            return network(noise, label=labels)
        time = self.guidance.as_time(alpha).repeat_interleave(len(noise) // len(alpha))
        return network(noise, time, label=labels)

    def noise_shape(self, data: Dataset) -> tuple[int, ...]:
        """Shape of the noise of one sample: a vector for the backbone "decoder", else that of the data."""
        return self.network.noise_shape(data)

    def advice(self, data: Dataset) -> str:
        """In raw pixels distances of larger images say little."""
        if self.encoder != PIXELS or data.kind != "images" or max(data.shape[1:]) <= SMALL:
            return ""
        return (
            "drifting in raw pixels collapses at this size: give --encoder, the folder of a run of simclr, moco or "
            "mae, or efficientnet-lite0 (docs/own-images.md)"
        )

    def with_alpha(self, alpha: float) -> "Drifting":
        """The same method, sampling at guidance scale ``alpha``.

        Raises:
            ConfigError: if the generator was not trained at such a scale.
        """
        return attrs.evolve(self, guidance=attrs.evolve(self.guidance, alpha=alpha))

    def sample(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Samples by one evaluation."""
        if not self.guidance.learned:
            return network(noise, label=labels)
        # noise.shape[0], not len(noise): torch.export takes the latter for a constant.
        alpha = noise.new_full((noise.shape[0],), self.guidance.alpha)
        return network(noise, self.guidance.as_time(alpha), label=labels)


_IMAGES = Training(steps=1200, batch=160, learning_rate=3e-3)
_POINTS = Training(steps=6000, batch=512, learning_rate=2e-3)
_PAPER_TEMPERATURES = (0.02, 0.05, 0.2)

PRESETS = (
    Preset(
        "drifting",
        "drifting model: a generator follows a kernel drift towards data, away from its own samples",
        Drifting(_IMAGES, IMAGE_NETWORK, temperatures=(1.0,)),
        Drifting(_POINTS, POINT_NETWORK, positives=512, temperatures=(0.4, 1.5), final_temperatures=(0.12, 0.5)),
        "Images: mean shift with one temperature, the best on the validation split. Points: two temperatures that "
        "decrease. The smaller one determines the shape of the modes, the larger one moves mass between them; "
        "without it a few percent of the unequal mixture ended in the wrong mode. Images of more than 16 pixels: the "
        "released field and a generator from a vector of noise, meant for the features of an encoder (--encoder); in "
        "raw pixels samples collapse there.",
        larger_images=Drifting(
            Training(steps=800, batch=160, learning_rate=1e-3),
            Network("decoder", width=16, depth=1),
            field="released",
            temperatures=_PAPER_TEMPERATURES,
        ),
    ),
    Preset(
        "drifting-paper",
        "drifting with the field and the three temperatures of the released code",
        Drifting(_IMAGES, IMAGE_NETWORK, field="released", temperatures=_PAPER_TEMPERATURES),
        Drifting(_POINTS, POINT_NETWORK, positives=512, field="released", temperatures=_PAPER_TEMPERATURES),
        "Paper settings, with the number of updates of drifting. Reported even when worse. On raw pixels samples "
        "collapse to the mean of a class, while the loss hardly changes.",
    ),
)
