"""Options that every method has: the network and the training. Numbers and strings, saved as JSON in the run."""

from functools import partial
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import attrs
import torch
from torch import nn

from onestep_adapters.backbones import MLP, ConvNet, Decoder, DiT, UNet
from onestep_adapters.data import Dataset
from onestep_adapters.names import choose
from onestep_adapters.training import Schedule, cosine_decay
from onestep_core import l2, mse
from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.validators import at_least_and_below, count, positive, positive_count

try:
    import cattrs
except ImportError as error:
    raise MissingExtraError("options are read with cattrs: pip install 'onestep[training]'") from error

Distance = Literal["squared", "l2"]
"""Distance of a prediction and its target. squared: the mean square, minimised by the mean. l2: the Euclidean norm,
which gives large errors less weight."""

DISTANCES = {"squared": mse, "l2": l2}
"""The distances by name."""

T = TypeVar("T")

PAPER_SIGMA_DATA = 0.5
"""Standard deviation of the data for which the consistency papers give their noise levels."""


_NOISE_WIDTH = 64


@attrs.frozen
class Network:
    """Which backbone, and how large."""

    backbone: Literal["mlp", "conv", "dit", "unet", "decoder", "pretrained"] = "mlp"
    """Architecture. mlp: samples of any shape. conv, dit, unet: images only. decoder: images from a vector of noise,
    for drifting only. pretrained: the model of --pretrained, with its weights."""
    width: int = attrs.field(default=256, validator=positive_count)
    """Hidden width: units (mlp), channels (conv; unet, decoder: at full size; unet: a multiple of 4), size of a token
    (dit; a multiple of 12)."""
    depth: int = attrs.field(default=3, validator=positive_count)
    """Number of residual blocks (unet, decoder: at every size)."""
    max_frequency: float = attrs.field(default=16.0, validator=positive)
    """Highest frequency of the time embedding, in radians per unit of the network's time: t from 0 to 1
    (continuous-consistency without a teacher: an angle). Lower: more stable derivatives in time. Higher: finer
    resolution of time."""
    fourier: int = attrs.field(default=0, validator=count)
    """Number of random Fourier features of the sample, concatenated to the input (mlp only). More: finer detail. 0:
    none."""
    condition: int = attrs.field(default=1, validator=positive_count)
    """Width of the time and class embedding, as a multiple of this network's width (conv only)."""

    patch: int = attrs.field(default=2, validator=positive_count)
    """Side of the square patches that are the tokens, in pixels; it divides height and width (dit only)."""
    noise_width: int = attrs.field(default=_NOISE_WIDTH, validator=positive_count)
    """Numbers in the noise of one sample (decoder only)."""
    full_depth: int | None = attrs.field(default=None, validator=attrs.validators.optional(count))
    """Number of residual blocks at full size, where they take most of the time (decoder only). None: --depth."""
    class_start: bool = True
    """The first map depends on the class (decoder only). Without it short trainings mix the classes."""
    bounded: bool = False
    """Pixels stay in [-1.05, 1.05], by a tanh (decoder only). For a drift in features that depend little on brightness.
    """
    channels_last: bool = False
    """Keep the channels of a pixel together in memory (conv, unet, decoder). Often faster; results differ by rounding.
    """
    pretrained: str = ""
    """Folder of a pipeline of diffusers, whose model is the network, as a velocity on the linear path (pretrained only;
    width, depth and max-frequency are then without effect). onestep distill sets it."""

    def noise_shape(self, data: Dataset) -> tuple[int, ...]:
        """Shape of the noise of one sample, for a method that takes a vector of noise."""
        return (self.noise_width,) if self.backbone == "decoder" else tuple(data.shape)

    def build(self, data: Dataset, times: int, generator: torch.Generator, *, from_vector: bool = False) -> nn.Module:
        """A network for ``data`` with 0, 1 or 2 times; initial weights from ``generator``, on the CPU.

        Args:
            data: the data set.
            times: number of times that the network takes.
            generator: draws the weights.
            from_vector: whether the method can take a vector of noise (``noise_shape``) instead of a noised sample.

        Raises:
            ConfigError: if a backbone for images gets other data, or an option gets another backbone than its own; for
                a decoder in a method that takes no vector of noise.
        """
        if self.backbone != "mlp" and len(data.shape) != 3:
            raise ConfigError(
                f"backbone {self.backbone!r} needs images, {data.name} has samples of {data.shape}: choose mlp"
            )
        if self.fourier and self.backbone != "mlp":
            raise ConfigError(
                f"fourier = {self.fourier} with the backbone {self.backbone!r}: only mlp has it; leave it at 0"
            )
        if self.condition != 1 and self.backbone != "conv":
            raise ConfigError(
                f"condition = {self.condition} with the backbone {self.backbone!r}: only conv has it; leave it at 1"
            )
        if self.noise_width != _NOISE_WIDTH and self.backbone != "decoder":
            raise ConfigError(
                f"noise_width = {self.noise_width} with the backbone {self.backbone!r}: only decoder has it; leave it "
                f"at {_NOISE_WIDTH}"
            )
        if (self.full_depth is not None or self.bounded or not self.class_start) and self.backbone != "decoder":
            raise ConfigError(
                f"full_depth = {self.full_depth}, bounded = {self.bounded}, class_start = {self.class_start} with the "
                f"backbone {self.backbone!r}: only decoder has them; leave them out"
            )
        if self.backbone == "decoder" and not from_vector:
            raise ConfigError(
                "backbone 'decoder' makes an image from a vector of noise, and this method adds noise to images: "
                "choose conv, dit, unet or mlp, or the method drifting"
            )
        if self.patch != 2 and self.backbone != "dit":
            raise ConfigError(
                f"patch = {self.patch} with the backbone {self.backbone!r}: only dit has it; leave it at 2"
            )
        if bool(self.pretrained) != (self.backbone == "pretrained"):
            raise ConfigError(
                f"pretrained = {self.pretrained!r} with the backbone {self.backbone!r}: give both --backbone "
                "pretrained and --pretrained FOLDER, or neither"
            )
        if self.backbone == "pretrained":
            return pretrained_network(self.pretrained, data, times, generator)
        make = {
            "mlp": partial(MLP, fourier=self.fourier),
            "conv": partial(ConvNet, condition=self.condition),
            "dit": partial(DiT, patch=self.patch),
            "unet": UNet,
            "decoder": partial(
                Decoder,
                noise=self.noise_width,
                full_depth=self.full_depth,
                class_start=self.class_start,
                bounded=self.bounded,
            ),
        }[self.backbone]
        network: nn.Module = make(
            data.shape,
            width=self.width,
            depth=self.depth,
            times=times,
            classes=data.classes,
            max_frequency=self.max_frequency,
            generator=generator,
        )
        return network.to(memory_format=torch.channels_last) if self.channels_last else network


def pretrained_network(folder: str, data: Dataset, times: int, generator: torch.Generator | None = None) -> nn.Module:
    """The model of a pipeline of diffusers as a velocity network, checked against the data.

    Args:
        folder: of the pipeline.
        data: gives shape and classes.
        times: 1 or 2.
        generator: draws the weights of the embedding of a second time.

    Raises:
        ConfigError: if the folder is no such pipeline, or its model has other samples or classes than the data.
    """
    # diffusers is an optional dependency.
    from onestep_adapters.backbones.diffusers import load_velocity

    if times == 0:
        raise ConfigError(
            f"the pipeline in {folder} has a model with a time, and this method's generator takes none: choose a "
            "method that learns from a teacher"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if generator is None else int(torch.randint(2**31, (), generator=generator)))
        network = load_velocity(folder, times=times)
    if network.sample_shape != tuple(data.shape) or network.classes != data.classes:
        raise ConfigError(
            f"the pipeline in {folder} makes samples of {network.sample_shape} with {network.classes or 'no'} classes; "
            f"{data.name} has samples of {tuple(data.shape)} and {data.classes or 'no'} classes: give the data that it "
            "was trained on (images of a folder are read with --size, --channels and --no-classes)"
        )
    return network


@attrs.frozen
class Training:
    """How long and how fast."""

    steps: int = attrs.field(default=2000, validator=positive_count)
    """Number of updates of the network that generates the samples, in total (progressive: of all students together).
    Updates of a fake score are extra."""
    batch: int = attrs.field(default=256, validator=positive_count)
    """Samples in one update. drifting: generated samples, divided equally among the classes, rounded down."""
    learning_rate: float = attrs.field(default=2e-3, validator=positive)
    """Highest learning rate of AdamW. After the warm-up it falls to zero along a cosine (progressive: for each
    student)."""
    warmup: int = attrs.field(default=50, validator=count)
    """Updates in which the learning rate rises linearly from zero."""
    ema: float = attrs.field(default=0.995, validator=at_least_and_below(0.0, 1.0))
    """Decay of the moving average of the weights: 0 (no average) to below 1. About 1 / (1 - ema) updates count. The
    averaged network generates the samples."""
    clip: float = attrs.field(default=1.0, validator=positive)
    """Largest global norm of the gradient, above 0; a larger gradient is scaled down to it."""
    seed: int = attrs.field(default=0, validator=count)
    """Seed of initial weights, data, noise and times."""
    checkpoint_every: int = attrs.field(default=500, validator=positive_count)
    """Updates between two checkpoints."""

    @property
    def rate(self) -> Schedule:
        """The learning rate of every update."""
        return cosine_decay(self.learning_rate, self.steps, min(self.warmup, self.steps - 1))


def check_names(options: Any) -> None:
    """Refuse a word that is no choice of its option, and a value of another type, nested options included. The command
    line checks this; Python does not.

    Raises:
        ConfigError: with the nearest words, or the type.

    Example:
        >>> check_names(Network("mpl"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onestep_core.errors.ConfigError: no backbone is called 'mpl': did you mean 'mlp'? known are conv, decoder, ...
    """
    hints = get_type_hints(type(options))
    for field in attrs.fields(type(options)):
        value, hint = getattr(options, field.name), hints[field.name]
        if attrs.has(type(value)):
            check_names(value)
        elif get_origin(hint) is Literal:
            choose(str(value), get_args(hint), field.name)
        elif hint in (bool, int, float, str) or attrs.has(hint):
            try:
                _plain(value, hint)
            except TypeError as error:
                raise ConfigError(f"{field.name} = {value!r}: {error}") from error


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """An attrs object from the dictionary of ``attrs.asdict``, after JSON.

    Raises:
        ConfigError: for an option that the class does not have, or a value of another type or out of range.

    Example:
        >>> from_dict(Training, {"steps": 3}).steps
        3
    """
    if not isinstance(values, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"the options of {kind.__name__} are {values!r}, expected a mapping; train the run anew")
    try:
        return _CONVERTER.structure(values, kind)
    except (cattrs.BaseValidationError, cattrs.StructureHandlerNotFoundError, TypeError, ValueError) as error:
        reasons = "; ".join(cattrs.transform_error(error, path=kind.__name__))
        raise ConfigError(f"options that this version of onestep cannot read: {reasons}; train the run anew") from error


def _plain(value: Any, kind: Any) -> Any:
    """A number, word or truth value, unchanged; JSON keeps a whole float as it is."""
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
for _kind in (bool, int, float, str):
    _CONVERTER.register_structure_hook(_kind, _plain)
