"""A model of diffusers as a network of this library, with a second time where a flow map needs one."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from onestep_adapters.backbones.diffusers.calls import call_of, evaluate, require_conditions, unwrapped
from onestep_adapters.backbones.diffusers.free_batch import free_batch
from onestep_adapters.backbones.diffusers.saved_model import SavedModel
from onestep_adapters.backbones.diffusers.times import give, with_numbers
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from diffusers import ConfigMixin, ModelMixin
except ImportError as error:
    raise MissingExtraError("models of diffusers need it: pip install 'onestep[diffusers]'") from error


class DiffusersNetwork(SavedModel):
    """``network(z, *times, **keywords) -> tensor`` of the shape of ``z``, from a model of diffusers.

    The keywords are the model's own: ``class_labels=``, ``encoder_hidden_states=``, ``pooled_projections=``, ...
    ``as_average_velocity(network, class_labels=y)`` binds them. Any module is a model here that is called
    ``(sample, timestep, **keywords)`` and returns a tensor, a tuple or an object with ``.sample``. A variance that it
    predicts besides is left out. Flux's latents are packed into tokens, and its positions made.

    **Two times.** ``network(z, t, s)`` embeds ``t`` as the model does, and adds an embedding of ``t - s`` of its own.
    At the start that is exactly zero: ``network(z, t, s)`` is the model at ``t`` for every ``s``, so that a pretrained
    velocity is a valid start for MeanFlow. It is in ``state_dict()``. No hook is used: ``copy.deepcopy``, EMA,
    ``torch.compile`` and ``fully_shard`` see plain submodules. The model given is not changed and shares its weights.

    **Units of time.** The model gets ``time_scale`` times the times. A pretrained model expects the times that it was
    trained on, nearly always 0 to 1000: on a path from 0 to 1 give ``time_scale=1000``. ``FluxTransformer2DModel``
    multiplies by 1000 itself: leave it at 1. A model that is trained from random weights by MeanFlow or another
    objective with a derivative in time learns better with a small scale: the derivative is multiplied by it.

    **Labels.** ``DiTTransformer2DModel`` replaces a tenth of the labels by the null class by itself in training mode,
    in each block anew. ``single_pass`` uses one draw for value and derivative; ``two_pass`` does not. To drop labels
    yourself (``onestep_core.drop_labels``; the null is ``num_embeds_ada_norm``), set ``dropout_prob = 0`` in the
    ``class_embedder`` of each block.

    Args:
        model: a model of diffusers, any such module, or the ``config["model"]`` of a network, from which a new model
            is made.
        times: 1, or 2: a second time. 0: a generator ``network(noise)``; the model gets the time zero.
        time_scale: see above.
        guidance: the network takes a keyword ``guidance``, a guidance scale for each sample, ``[batch]``; embedded as
            the second time is, without effect at the start.

    Raises:
        ConfigError: for another number of times, or if the model has no place for a second time.

    Example:
        >>> import torch
        >>> from diffusers import UNet2DModel
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
        >>> unet = UNet2DModel(in_channels=1, out_channels=1, block_out_channels=(8,), **blocks)
        >>> network = DiffusersNetwork(unet, times=2, time_scale=1000.0)
        >>> z, t, s = torch.randn(2, 1, 8, 8), torch.ones(2), torch.zeros(2)
        >>> bool((network(z, t, s) == unet(z, 1000 * t).sample).all())
        True
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        *,
        times: int = 1,
        time_scale: float = 1.0,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        if times not in (0, 1, 2):
            raise ConfigError(f"times = {times!r}: expected 0 (a generator), 1, or 2 (source and target of a jump)")
        self.register_to_config(model=None, times=times, time_scale=time_scale, guidance=guidance)
        if isinstance(model, Mapping):
            model = _made(model)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"a {type(model).__name__} as model: expected a module, or the config of one")
        self.register_to_config(model=_described(model))
        self.times, self.time_scale, self.guidance = times, time_scale, guidance
        self.call = call_of(model)
        if guidance and self.call.guided:
            raise ConfigError(f"{type(model).__name__} takes guidance= itself: leave out guidance=True")
        self.numbers = int(times == 2) + int(guidance)
        self.model = with_numbers(model, self.numbers) if self.numbers else model

    def forward(self, z: Tensor, *times: Tensor, **keywords: Any) -> Tensor:
        """The model's prediction, ``[batch, *shape]``.

        Args:
            z: states, ``[batch, *shape]``.
            times: as many as the network has, each ``[batch]``.
            keywords: the model's own, and ``guidance`` where the network has it.

        Raises:
            ConfigError: for another number of times, a missing condition or guidance scale, times, labels or scales of
                another number of samples, or an output of another shape.
        """
        if len(times) != self.times:
            raise ConfigError(
                f"called with {len(times)} times: this network has times={self.times}, so it is called as "
                f"network({', '.join(['z', 't', 's'][: self.times + 1])}, ...)"
            )
        require_conditions(self.call, self.model, keywords)
        if isinstance(labels := keywords.get("class_labels"), Tensor) and labels.shape[:1] != z.shape[:1]:
            raise ConfigError(f"class_labels {list(labels.shape)} for {len(z)} samples: expected one label for each")
        scaled = [_time("a time", time, z, self.time_scale) for time in times]
        t = scaled[0] if scaled else z.new_zeros(z.shape[0])
        extra = [t - scaled[1]] if self.times == 2 else []
        if self.guidance:
            if not isinstance(keywords.get("guidance"), Tensor):
                raise ConfigError("a network with guidance=True: expected guidance=, a scale for each sample, [batch]")
            extra.append(_time("guidance", keywords.pop("guidance"), z, 1.0))
        if extra:
            t, keywords = give(self.model, t, extra, keywords)
        return evaluate(self.call, self.model, z, t, keywords)

    def free_batch(self) -> None:
        """Replace layers whose code asks for the batch size, in place and with the same values: for ``torch.export``.

        The model given shares these layers; :class:`~onestep_adapters.exporting.Generator` calls this on its copy.
        """
        free_batch(self.model)

    @property
    def sample_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of a state, as the model's config names them; ``None`` if it does not."""
        config = getattr(unwrapped(self.model), "config", {})
        channels, size = config.get("in_channels"), config.get("sample_size")
        if self.call.packed or channels is None or size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width


def _time(name: str, time: Tensor, z: Tensor, scale: float) -> Tensor:
    if time.dim() and time.shape != z.shape[:1]:
        raise ConfigError(f"{name} {list(time.shape)} for states {list(z.shape)}: expected [batch], or one number")
    time = time if scale == 1 else time * scale
    return time.expand(z.shape[0]) if time.dim() == 0 else time


def _described(model: nn.Module) -> dict[str, Any] | None:
    """The class of a model and the arguments that make one like it."""
    plain = unwrapped(model)
    if not isinstance(plain, ModelMixin) or not isinstance(plain, ConfigMixin):
        return None
    kind = type(plain)
    arguments = {name: value for name, value in plain.config.items() if not name.startswith("_")}
    return {"_class_name": kind.__name__, "_module": kind.__module__, **arguments}


def _made(config: Mapping[str, Any]) -> nn.Module:
    """A new model of a description.

    Raises:
        ConfigError: if it names no class of models that this process knows.
    """
    name, home = config.get("_class_name"), str(config.get("_module", "diffusers"))
    # Only diffusers is imported for a file; a class of the user's has to be there, as for pipelines of diffusers.
    module = importlib.import_module("diffusers") if home.split(".")[0] == "diffusers" else _loaded(home)
    kind = getattr(module, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin) and issubclass(kind, ConfigMixin)):
        raise ConfigError(f"the config names the model {home}.{name}: expected one of diffusers, or of this process")
    return kind.from_config({key: value for key, value in config.items() if not key.startswith("_")})


def _loaded(home: str) -> Any:
    if home not in sys.modules:
        raise ConfigError(f"the config names a model of {home}: import {home} before the network is loaded")
    return sys.modules[home]
