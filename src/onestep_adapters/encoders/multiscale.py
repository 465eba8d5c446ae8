"""Features of any network for drifting: outputs of its layers, at every location and as statistics.

    images in [-1, 1] -> repeat grey channels -> resize -> (images - mean) / std -> network -> outputs of layers
    output of a layer -> map -> location, mean, std, patch2-mean, patch2-std, patch4-mean, patch4-std

The names of the features say layer and statistic: ``layer2/location``, ``layer2/patch4-std``. Tokens give also
``layer/class``, the class token; register tokens are left out. ``input/square`` is the mean square of every channel of
the images as given. The network itself (``""``) is called ``output``, or ``.output`` if a submodule has that name; no
name of a submodule begins with a dot.

- The network is copied once. The copy is in evaluation mode at every call and no parameter gets a gradient: whatever
  happens to the network afterwards (training, ``.train()``, gradients), the features stay the same. The network that
  was given is not touched.
- Gradients reach the images. Every image is treated alone: features do not depend on the batch.
- Outputs are copied when the layer returns them, because many networks add to them in place afterwards.

Source: Deng et al., Generative Modeling via Drifting, appendix A.5, https://arxiv.org/abs/2602.04770. There the network
is a ResNet and the layers are every second residual block; ``patches=()`` gives the sets (a) and (b) of the paper's
ablation, ``(2,)`` the sets (a) to (c), ``(2, 4)`` all. The class token is not in the paper.
"""

import copy
import difflib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from onestep_adapters.encoders.encoder import Encoder
from onestep_adapters.encoders.maps.outputs import as_map, first_tensor, prefix_of
from onestep_adapters.encoders.maps.statistics import map_statistics, mean_square
from onestep_core.errors import ConfigError
from onestep_core.precision import full, no_autocast

Call: TypeAlias = Callable[[nn.Module, Tensor], Any]
"""``(module, images) -> anything``: how the network is called; what it returns is not used."""


def multiscale(
    module: nn.Module,
    layers: Sequence[str],
    *,
    patches: Sequence[int] = (2, 4),
    locations: bool = True,
    size: int | tuple[int, int] | None = None,
    least: int = 1,
    channels: int | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
    prefix: int | None = None,
    channels_last: bool = False,
    call: Call | None = None,
    output: Callable[[Any], Any] = first_tensor,
) -> "Multiscale":
    """The features of a network that drifting uses: ``images -> {name: [batch, location, channel]}``.

    Args:
        module: the network. It is copied; move the features to another device with ``.to(device)``.
        layers: names of submodules, as in ``module.named_modules()``; ``""`` is the network itself.
        patches: sides of the patches, in locations of the map; ``()`` for none.
        locations: whether the vectors of all locations are among the features. They are most of the numbers.
        size: height and width that the images get; ``None``: they keep theirs. Shrinking averages (antialiasing).
        least: smallest height and width; smaller images are enlarged. Only without ``size``.
        channels: channels of the network's input. Grey images are repeated to that number. ``None``: 3 if the network's
            first convolution has three, else any.
        mean: subtracted from images in [-1, 1], one number or one for each channel.
        std: they are divided by it after that, likewise.
        dtype: precision of the network under autocast, for example ``torch.bfloat16``; ``None``: that of its weights.
            Statistics are computed in at least float32.
        chunk: number of images in one evaluation of the network. With a gradient, every chunk is evaluated again in
            the backward pass, so that memory is that of one chunk. ``None``: all at once.
        prefix: number of class and register tokens before the patches; ``None``: what the network says, or found from
            the shape of the images (:mod:`~onestep_adapters.encoders.maps.outputs`).
        channels_last: maps are ``[batch, height, width, channel]``.
        call: how the network is called; ``None``: ``module(images)``.
        output: picks the tensor from what a layer returns; by default the first one in a tuple or mapping.

    Raises:
        ConfigError: if a layer does not exist (with the nearest names) or a number is out of range; for a network that
            masks a part of its input (``ViTMAEModel``) without ``call``. At a call: if images do not fit, if a layer
            was not evaluated or more than once, or if its output is no map and no grid of tokens.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 2, stride=2))
        >>> features = multiscale(network, ["0", "2"])(torch.zeros(5, 1, 4, 4))
        >>> [name for name in features if name.startswith("0")]
        ['0/location', '0/mean', '0/std', '0/patch2-mean', '0/patch2-std']
        >>> {name: tuple(feature.shape) for name, feature in features.items() if "location" in name}
        {'0/location': (5, 16, 4), '2/location': (5, 4, 8)}
    """
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a {type(module).__name__} as network: expected an nn.Module")
    _check_layers(module, layers)
    if not all(_whole(side, 2) for side in patches):
        raise ConfigError(f"patches = {tuple(patches)}: expected whole sides of at least 2 locations, or none")
    size = (size, size) if isinstance(size, int) else size
    if size is not None and not _two_sides(size):
        raise ConfigError(f"size = {size}: expected a height and a width of at least 1 pixel, whole numbers")
    _check_whole("least", least, 1)
    _check_whole("chunk", chunk, 1)
    _check_whole("channels", channels, 1)
    _check_whole("prefix", prefix, 0)
    if channels is None and _first_convolution(module) == 3:
        channels = 3
    if not _one_or_each(mean, std, channels) or min(std) <= 0:
        raise ConfigError(
            f"mean = {tuple(mean)}, std = {tuple(std)}, channels = {channels}: expected one number or one for each "
            "channel, and positive deviations"
        )
    if call is None and getattr(getattr(module, "config", None), "mask_ratio", None) is not None:
        raise ConfigError(
            f"{type(module).__name__} hides a part of the patches and shuffles the others at every call: give "
            "call=onestep_adapters.encoders.unmasked"
        )
    kept = copy.deepcopy(module).requires_grad_(False).eval()
    return Multiscale(
        kept,
        tuple(layers),
        patches=tuple(patches),
        locations=locations,
        size=None if size is None else (size[0], size[1]),
        least=least,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
        dtype=dtype,
        chunk=chunk,
        prefix=prefix,
        channels_last=channels_last,
        call=_plainly if call is None else call,
        output=output,
    )


def features_of(encoder: Encoder, layers: Sequence[str] = (), **options: Any) -> "Multiscale":
    """The features of an :class:`~onestep_adapters.encoders.encoder.Encoder`.

    Args:
        encoder: network, normalisation and size.
        layers: names of its layers; empty: the encoder's own.
        options: further arguments of :func:`multiscale`.

    Raises:
        ConfigError: as :func:`multiscale`.

    Example:
        >>> encoder = Encoder(nn.Sequential(nn.Conv2d(1, 4, 2, stride=2)), ("0",), channels=1)
        >>> features_of(encoder, patches=())(torch.zeros(2, 1, 4, 4))["0/location"].shape
        torch.Size([2, 4, 4])
    """
    if not isinstance(encoder, Encoder):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"a {type(encoder).__name__} as encoder: expected an Encoder; for a module there is multiscale(module, ...)"
        )
    return multiscale(
        encoder.module,
        layers or encoder.layers,
        size=encoder.size,
        least=encoder.least,
        channels=encoder.channels,
        mean=encoder.mean,
        std=encoder.std,
        **options,
    )


def unmasked(module: nn.Module, images: Tensor) -> Any:
    """``call`` for transformers' ``ViTMAEModel``: all patches are visible, in their order; images of any size.

    By default that network hides 75 % of the patches and shuffles the others, also at ``mask_ratio = 0``. Noise that
    increases from patch to patch keeps their order.

    Args:
        module: a ``ViTMAEModel``; its configuration is changed to ``mask_ratio = 0`` (:func:`multiscale` gives a copy).
        images: ``[batch, channel, height, width]``.

    Example:
        >>> unmasked.__name__
        'unmasked'
    """
    config: Any = module.config
    config.mask_ratio = 0.0
    side = config.patch_size
    patches = (images.shape[2] // side) * (images.shape[3] // side)
    order = torch.arange(patches, device=images.device).expand(len(images), -1)
    return module(images, noise=order, interpolate_pos_encoding=True)


@attrs.frozen(eq=False)
class Multiscale:
    """What :func:`multiscale` returns: ``images [batch, channel, height, width] -> {name: feature}``."""

    module: nn.Module
    """The frozen copy of the network."""
    layers: tuple[str, ...]
    patches: tuple[int, ...]
    locations: bool
    size: tuple[int, int] | None
    least: int
    channels: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype | None
    chunk: int | None
    prefix: int | None
    channels_last: bool
    call: Call
    output: Callable[[Any], Any]

    def to(self, *place: Any) -> "Multiscale":
        """The same features with the copied network on another device or in another dtype, as ``module.to``."""
        self.module.to(*place)
        return self

    def __call__(self, x: Tensor, /) -> dict[str, Tensor]:
        """The features of ``x``, as a dictionary by name.

        Raises:
            ConfigError: as said at :func:`multiscale`.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():  # pyright: ignore
            said = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__  # pyright: ignore
            raise ConfigError(f"images {said}: expected floating point, [batch, channel, height, width], in [-1, 1]")
        if 0 in x.shape:
            raise ConfigError(f"images of shape {list(x.shape)}: expected at least one image of at least one pixel")
        if self.chunk is None or len(x) <= self.chunk:
            return self._features(x)
        parts = [self._again(part) if _checkpointed(x) else self._features(part) for part in x.split(self.chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _again(self, x: Tensor) -> dict[str, Tensor]:
        """The features, computed again in the backward pass."""
        found: Any = checkpoint(self._features, x, use_reentrant=False, preserve_rng_state=False)
        return found

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        images = self._prepared(x)
        found: dict[str, dict[str, Tensor]] = {}
        autocast = nullcontext() if self.dtype is None else torch.autocast(x.device.type, dtype=self.dtype)
        self.module.eval()
        with self._captured(images, found), autocast:
            try:
                self.call(self.module, images)
            except RuntimeError as error:
                if "channels" not in str(error):
                    raise
                raise ConfigError(
                    f"the network refuses images of {x.shape[1]} channels: {error}; channels= says how many it takes, "
                    "and repeats a grey channel"
                ) from error
        if missing := [name for name in self.layers if name not in found]:
            raise ConfigError(
                f"the layers {missing} were not evaluated: choose layers that the network uses, or call a part of it "
                "that uses them with call="
            )
        whole = ".output" if "output" in dict(self.module.named_children()) else "output"
        ordered = {f"{name or whole}/{key}": value for name in self.layers for key, value in found[name].items()}
        return ordered | {"input/square": mean_square(full(x))}

    def _prepared(self, x: Tensor) -> Tensor:
        """Images as the network wants them."""
        wanted = self.channels
        if wanted is not None and x.shape[1] == 1:
            x = x.expand(-1, wanted, -1, -1)
        elif wanted is not None and x.shape[1] != wanted:
            raise ConfigError(
                f"images of {x.shape[1]} channels: the network takes {wanted} (a grey channel would be repeated)"
            )
        size = self.size
        if size is None and min(x.shape[2:]) < self.least:
            factor = self.least / min(x.shape[2:])
            size = (round(x.shape[2] * factor), round(x.shape[3] * factor))
        if size is not None and size != tuple(x.shape[2:]):
            smaller = size[0] < x.shape[2] or size[1] < x.shape[3]
            x = interpolate(full(x), size, mode="bilinear", align_corners=False, antialias=smaller)
        if not _one_or_each(self.mean, self.std, x.shape[1]):
            raise ConfigError(
                f"images of {x.shape[1]} channels for mean = {self.mean} and std = {self.std}: expected one number, or "
                "one for each channel (channels= repeats a grey channel)"
            )
        mean, std = (torch.tensor(numbers, dtype=x.dtype, device=x.device) for numbers in (self.mean, self.std))
        x = (x - mean[:, None, None]) / std[:, None, None]
        kept = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), x.dtype)
        return x.to(kept)

    @contextmanager
    def _captured(self, images: Tensor, found: dict[str, dict[str, Tensor]]) -> Iterator[None]:
        """Features of the layers that are evaluated inside, in ``found`` by layer."""
        here, handles = threading.get_ident(), []

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def record(layer: nn.Module, _: Any, output: Any) -> None:
                if threading.get_ident() != here:  # another thread uses the same features
                    return
                if name in found:
                    raise ConfigError(f"layer {name!r} is evaluated several times: choose the layer around it")
                found[name] = self._read(name, layer, output, images)

            return record

        try:
            for name in self.layers:
                handles.append(self.module.get_submodule(name).register_forward_hook(hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, name: str, layer: nn.Module, output: Any, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[2:]
        tensor = self.output(output)
        with no_autocast(images):
            read = as_map(
                tensor,
                name,
                layer,
                batch=len(images),
                size=(height, width),
                prefix=self.prefix,
                said=prefix_of(self.module),
                channels_last=self.channels_last,
            )
            values = _own(read.map)
            found = map_statistics(values, patches=self.patches, locations=self.locations)
            if read.token is not None:
                found["class"] = _own(read.token)
        return found


def _own(x: Tensor) -> Tensor:
    """A copy in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.clone(memory_format=torch.contiguous_format)


def _plainly(module: nn.Module, images: Tensor) -> Any:
    return module(images)


def _checkpointed(x: Tensor) -> bool:
    """Whether there will be a backward pass; inside ``torch.func`` torch has no checkpoints."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
    return x.requires_grad and torch.is_grad_enabled() and not transformed


def _first_convolution(module: nn.Module) -> int | None:
    return next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), None)


def _whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _two_sides(size: object) -> bool:
    return isinstance(size, tuple | list) and len(size) == 2 and all(_whole(side, 1) for side in size)


def _check_whole(name: str, number: object, least: int) -> None:
    if number is not None and not _whole(number, least):
        raise ConfigError(f"{name} = {number!r}: expected a whole number of at least {least}")


def _one_or_each(mean: Sequence[float], std: Sequence[float], channels: int | None) -> bool:
    """Whether there is one number, or one for each channel where their number is known."""
    lengths = {len(mean), len(std)} - {1}
    return lengths <= {channels} if channels is not None else len(lengths) < 2 and 0 not in lengths


def _check_layers(module: nn.Module, layers: Sequence[str]) -> None:
    if isinstance(layers, str) or not layers or len(set(layers)) != len(layers):
        raise ConfigError(f"layers = {layers!r}: expected a list of different names of submodules, at least one")
    known = [name for name, _ in module.named_modules()]
    for name in layers:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
            top = ", ".join(name for name, _ in module.named_children())
            meant = f"the nearest are {', '.join(near)}" if near else f"at the top it has {top}"
            raise ConfigError(f"{type(module).__name__} has no layer {name!r}: {meant} ({len(known)} in all)")
