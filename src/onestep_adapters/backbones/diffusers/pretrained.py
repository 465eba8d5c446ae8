"""A pretrained model of diffusers and its scheduler as a velocity network on the linear path: teacher and student."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onestep_adapters.backbones.diffusers.calls import FLUX_TIMES
from onestep_adapters.backbones.diffusers.network import DiffusersNetwork
from onestep_adapters.backbones.diffusers.saved_model import SavedModel
from onestep_adapters.backbones.diffusers.schedulers import Meaning, meaning_of
from onestep_adapters.files import is_pipeline
from onestep_adapters.networks import as_one_step
from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.flow.paths import Linear
from onestep_core.flow.ratios import time_at
from onestep_core.precision import full
from onestep_core.shapes import expand_like

try:
    import diffusers

    # `from_pretrained` of a pipeline looks for ModelMixin in the modules of its components.
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin  # noqa: F401
    from diffusers.utils import logging
except ImportError as error:
    raise MissingExtraError("pipelines of diffusers need it: pip install 'onestep[diffusers]'") from error


LARGEST_RATIO = 5.0
"""Largest noise ratio ``sigma / alpha`` at which a model that predicts noise is evaluated, by default."""


class PretrainedVelocity(SavedModel):
    """``network(z, t[, s], label=labels) -> velocity`` on the linear path, from a pretrained model and its scheduler.

    With the scheduler's time ``r`` of the noise ratio ``t / (1 - t)`` and ``y = z |(alpha, sigma)(r)| / |(1 - t, t)|``,
    the model's answer at ``(y, r)`` gives the expected data and noise, and the velocity is ``noise - data``. All
    predictions and schedulers of :func:`path_of` are understood. Beyond the scheduler's last noise level, and beyond
    ``largest_ratio``, the model is evaluated at that level.

    *Models that predict noise.* Their data are ``(y - sigma noise) / alpha``. Near pure noise that multiplies every
    error of the prediction by ``sigma / alpha``, 157 with DDPM's linear schedule, and one step starts just there. A
    state of ratio 5 has a twenty-sixth of its variance from the data, so that the model sees hardly a difference.

    With two times a student starts as the constant average velocity, ``network(z, t, s) = velocity(z, t)``; the model's
    weights are shared with what was given.

    Args:
        model: of diffusers, or the ``config["model"]`` of such a network.
        scheduler: the model's, or its config with ``_class_name``.
        times: 1, or 2: a second time, as in :class:`DiffusersNetwork`.
        largest_ratio: largest noise ratio ``sigma / alpha`` at which the model is evaluated, above 0. By default 5 for
            a model that predicts noise, and that of the scheduler for others.

    Raises:
        ConfigError: for a scheduler that has no path, or another number of times.

    Example:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
        >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), **blocks)
        >>> network = PretrainedVelocity(unet, DDPMScheduler(), times=2)
        >>> network(torch.randn(2, 1, 8, 8), torch.ones(2), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        scheduler: SchedulerMixin | Mapping[str, Any],
        *,
        times: int = 1,
        largest_ratio: float | None = None,
    ) -> None:
        super().__init__()
        if times not in (1, 2):
            raise ConfigError(f"times = {times!r}: expected 1 (a velocity) or 2 (an average velocity)")
        self.register_to_config(model=None, scheduler=None, times=times, largest_ratio=largest_ratio)
        if isinstance(scheduler, Mapping):
            scheduler = _scheduler(scheduler)
        self.meaning: Meaning = meaning_of(scheduler)
        self.network = DiffusersNetwork(model, times=times)
        described = {"_class_name": type(scheduler).__name__, **_plain(scheduler.config)}
        self.register_to_config(model=self.network.config["model"], scheduler=described)
        self.unit = float(FLUX_TIMES) if self.network.call.packed else 1.0
        self.first, self.last = (_linear_time(self.meaning, end) for end in ("data_time", "noise_time"))
        if largest_ratio is None and self.meaning.predicts_noise:
            largest_ratio = LARGEST_RATIO
        elif largest_ratio is not None and not 0 < largest_ratio < math.inf:
            raise ConfigError(f"largest_ratio = {largest_ratio}: expected a number above 0")
        if largest_ratio is not None:
            self.last = min(self.last, largest_ratio / (1 + largest_ratio))

    def forward(self, z: Tensor, *times: Tensor, label: Tensor | None = None, **keywords: Any) -> Tensor:
        """The velocity ``noise - data``, ``[batch, *shape]``.

        Args:
            z: states on the linear path, ``[batch, *shape]``.
            times: ``t``, or ``t`` and ``s``, each ``[batch]`` from 0 (data) to 1 (noise).
            label: classes, ``[batch]``, for a model with classes: its ``class_labels``.
            keywords: the model's own.

        Raises:
            ConfigError: for another number of times.
        """
        if label is not None:
            keywords = {"class_labels": label, **keywords}
        z, times = full(z), tuple(full(time.expand(z.shape[0]) if time.dim() == 0 else time) for time in times)
        own = [self._own_time(time) for time in times]
        r, t = own[0], times[0]
        alpha, sigma = self.meaning.path.coefficients(r)
        # Not `hypot`, which ONNX does not have.
        scale = self.meaning.scale(r) * ((alpha.square() + sigma.square()) / ((1 - t).square() + t.square())).sqrt()
        states = z * expand_like(scale, z)
        kind = next(self.network.parameters()).dtype
        answer = self.network(states.to(kind), *(self.meaning.model_time(time) / self.unit for time in own), **keywords)
        data, noise = self.meaning.estimates(states, full(answer), r)
        return noise - data

    def _own_time(self, t: Tensor) -> Tensor:
        """The scheduler's time of the same noise ratio."""
        path = self.meaning.path
        if isinstance(path, Linear):
            return t
        low, high = sorted((path.data_time, path.noise_time))
        t = t.clamp(self.first, self.last)
        return time_at(t / (1 - t), path=path).clamp(low, high)

    @property
    def sample_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of a state; ``None`` if the model's config does not name them."""
        return self.network.sample_shape

    @property
    def classes(self) -> int | None:
        """Number of classes of the model; ``None`` for a model without."""
        config = getattr(self.network.model, "config", {})
        return config.get("num_class_embeds") or config.get("num_embeds_ada_norm")

    @property
    def output(self) -> nn.Module:
        """The model's last layer, whose gradients methods with several losses balance."""
        model = self.network.model
        return next(getattr(model, name) for name in ("conv_out", "proj_out_2", "proj_out") if hasattr(model, name))

    @property
    def head_place(self) -> tuple[str, int]:
        """Layer and width of the features for a discriminator head: the bottleneck of a UNet, else the last tokens.

        Raises:
            ConfigError: for a model without such a layer.
        """
        model: Any = self.network.model
        for name in ("mid_block", "proj_out_2", "proj_out"):
            layer = getattr(model, name, None)
            if layer is not None:
                width = model.config.block_out_channels[-1] if name == "mid_block" else layer.in_features
                return f"network.model.{name}", width
        raise ConfigError(
            f"{type(model).__name__} has none of the layers mid_block, proj_out_2, proj_out for a discriminator head: "
            "use the method without one (dmd2: --adversarial-weight 0)"
        )

    def pretrained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the pretrained model by the names that they have without a second time."""
        found = self.network.named_parameters()
        return {name.replace(".first.", "."): value for name, value in found if ".added." not in name}


class OneStepGenerator(SavedModel):
    """``generator(noise[, class_labels=]) -> samples``: one evaluation of a velocity network on the linear path.

    ``start noise - start network(start noise, start[, 0])``, with a velocity or an average velocity. For
    ``start = 1`` that is one Euler step from pure noise; DMD2 and its kin start nearer to the data.

    Args:
        velocity: a :class:`PretrainedVelocity`, or its config.
        start: time of the evaluation, above 0, at most 1.
    """

    def __init__(self, velocity: PretrainedVelocity | Mapping[str, Any], *, start: float = 1.0) -> None:
        super().__init__()
        self.register_to_config(velocity=None, start=start)
        if isinstance(velocity, Mapping):
            velocity = PretrainedVelocity(
                velocity["model"],
                velocity["scheduler"],
                times=velocity["times"],
                largest_ratio=velocity["largest_ratio"],
            )
        self.register_to_config(velocity=_plain(velocity.config))
        self.velocity, self.start, self.times = velocity, start, 0

    def forward(self, noise: Tensor, *, class_labels: Tensor | None = None, **keywords: Any) -> Tensor:
        """Samples from standard normal noise, ``[batch, *shape]``."""
        count = self.velocity.network.times

        def average_velocity(z: Tensor, t: Tensor, s: Tensor, /) -> Tensor:
            return self.velocity(z, *(t, s)[:count], label=class_labels, **keywords)

        return as_one_step(average_velocity, path=Linear(), start=self.start)(noise)

    @property
    def sample_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of a sample."""
        return self.velocity.sample_shape


class LoadedPipeline(NamedTuple):
    """A pipeline's model and scheduler, and its autoencoder, if it works on latents."""

    model: nn.Module
    scheduler: SchedulerMixin
    vae: nn.Module | None


def load_pipeline(folder: str) -> LoadedPipeline:
    """Read a pipeline that ``save_pretrained`` wrote.

    Args:
        folder: of the pipeline; it needs a model called ``unet`` or ``transformer`` and a scheduler.

    Raises:
        ConfigError: if the folder is no pipeline, if it cannot be read, or if it is conditioned on text.
    """
    if not is_pipeline(folder):
        raise ConfigError(
            f"{folder} is no pipeline of diffusers: expected a folder that pipeline.save_pretrained wrote, with "
            "model_index.json in it"
        )
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(str(Path(folder).expanduser()), local_files_only=True)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
        told = " ".join(str(error).split())[:200]
        raise ConfigError(f"the pipeline in {folder} cannot be read ({type(error).__name__}): {told}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    parts = pipeline.components
    if text := sorted(name for name in parts if name.startswith("text_encoder") and parts[name] is not None):
        raise ConfigError(
            f"the pipeline in {folder} is conditioned on text ({', '.join(text)}): this command distils models without "
            "condition or with classes; docs/guides/own-network.md shows the losses with text embeddings"
        )
    model = next((parts[name] for name in ("unet", "transformer") if parts.get(name) is not None), None)
    if model is None or parts.get("scheduler") is None:
        raise ConfigError(
            f"the pipeline in {folder} has the components {sorted(parts)}: expected a model called unet or "
            "transformer, and a scheduler"
        )
    return LoadedPipeline(model, parts["scheduler"], parts.get("vae"))


def load_velocity(folder: str, *, times: int = 1) -> PretrainedVelocity:
    """The model of a pipeline as a velocity network on the linear path, in evaluation mode.

    Args:
        folder: of the pipeline.
        times: 1, or 2 for an average velocity.

    Raises:
        ConfigError: as for :func:`load_pipeline`.
    """
    found = load_pipeline(folder)
    return PretrainedVelocity(found.model, found.scheduler, times=times).eval()


def _linear_time(meaning: Meaning, end: str) -> float:
    """The time on the linear path with the noise ratio of one end of the scheduler's path."""
    alpha, sigma = meaning.path.coefficients(torch.tensor([getattr(meaning.path, end)], dtype=torch.float64))
    return float(sigma / (alpha + sigma))


def _scheduler(config: Mapping[str, Any]) -> SchedulerMixin:
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ConfigError(f"the config names the scheduler {config.get('_class_name')}: expected one of diffusers")
    return kind.from_config(dict(config))  # type: ignore[attr-defined]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
