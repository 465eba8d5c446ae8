"""A trained generator as a pipeline of diffusers: saved, loaded, shared, and called as every other."""

import functools
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onestep_adapters.backbones.diffusers.calls import MEANINGS, unwrapped
from onestep_adapters.backbones.diffusers.saved_model import SavedModel
from onestep_adapters.backbones.diffusers.saved_path import SavedPath
from onestep_adapters.backbones.diffusers.schedulers import path_of
from onestep_adapters.networks import as_average_velocity, as_flow_map, as_velocity, with_condition
from onestep_core.errors import ConfigError, MissingExtraError
from onestep_core.flow.grids import karras_grid, uniform_grid
from onestep_core.flow.maps import flow_map_from_average_velocity
from onestep_core.flow.paths import VarianceExploding, prior_state
from onestep_core.flow.solvers import euler, integrate, renoise
from onestep_core.protocols import FlowMap, Path
from onestep_core.validators import require_count

try:
    from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise MissingExtraError("pipelines of diffusers need it: pip install 'onestep[diffusers]'") from error

Noise = Callable[[], Tensor]
"""Fresh standard normal noise of the shape of the samples."""


class Sampling(NamedTuple):
    """What a sampler takes: the path, the times from noise to data, and a source of noise."""

    path: Path
    times: Tensor
    noise: Noise


def _generated(network: nn.Module, condition: dict[str, Any], noise: Noise) -> Tensor:
    z = noise()
    kind = next((p.dtype for p in network.parameters() if p.is_floating_point()), z.dtype)
    return with_condition(network, **condition)(z.to(kind)).to(z.dtype)


def _jumps(flow_map: FlowMap, given: Sampling) -> Tensor:
    return integrate(flow_map, prior_state(given.path, given.noise()), given.times)


def _average_velocity(network: nn.Module, condition: dict[str, Any], given: Sampling) -> Tensor:
    return _jumps(flow_map_from_average_velocity(as_average_velocity(network, **condition)), given)


def _flow_map(network: nn.Module, condition: dict[str, Any], given: Sampling) -> Tensor:
    return _jumps(as_flow_map(network, **condition), given)


def _velocity(network: nn.Module, condition: dict[str, Any], given: Sampling) -> Tensor:
    return _jumps(partial(euler, as_velocity(network, **condition)), given)


def _consistency(network: nn.Module, condition: dict[str, Any], given: Sampling) -> Tensor:
    """To the data end, then noise up to the next time: ``samplers.consistency_multistep``."""
    function = as_velocity(network, **condition)
    z = prior_state(given.path, given.noise())
    batch, (*starts, last) = z.shape[0], given.times.unbind()
    for t, then in zip(starts, [*starts[1:], last], strict=True):
        z = function(z, t.expand(batch))
        if then is not last:
            z = renoise(z, given.noise(), last.expand(batch), then.expand(batch), path=given.path)
    return z


_SAMPLERS = {
    "average_velocity": _average_velocity,
    "flow_map": _flow_map,
    "consistency": _consistency,
    "velocity": _velocity,
}
_GENERATOR = "generator"
_OUTPUTS = ("pil", "np", "pt", "latent")


class OneStepPipeline(DiffusionPipeline):
    """Images from a network of this library, in one evaluation: ``pipe(batch_size=4).images``.

    ``from_pretrained``, ``push_to_hub``, ``to`` are those of diffusers. Loading needs ``onestep_adapters`` installed:
    ``OneStepPipeline.from_pretrained(folder)``. The network runs in the mode it is in, as with other pipelines: call
    ``eval()`` on it. Conditions have the network's precision.

    Args:
        network: a :class:`DiffusersNetwork`, or a ``ModelMixin`` of your own that is called
            ``(z, *times, **condition)`` and returns a tensor.
        path: of the states: ``Linear``, ``Trigonometric``, ``VarianceExploding``, or the scheduler of diffusers where
            it came from one. A generator needs none.
        vae: an ``AutoencoderKL``, if the samples are its latents (times its ``scaling_factor``).
        predicts: ``"average_velocity"`` (the default for two times), ``"generator"`` (for none), ``"flow_map"``,
            ``"consistency"``, or ``"velocity"`` (Euler's method: many steps).
        sample_shape: channels, height and width of a sample; by default those of the network's config.

    Raises:
        ConfigError: if a component is missing or of another kind, or a path cannot be written to a file.

    Example:
        >>> from diffusers import UNet2DModel
        >>> from onestep_adapters.backbones.diffusers import DiffusersNetwork
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
        >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), **blocks)
        >>> pipe = OneStepPipeline(DiffusersNetwork(unet, times=0))
        >>> pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="np").images.shape
        (2, 8, 8, 1)
    """

    _optional_components = ["path", "vae"]  # noqa: RUF012
    model_cpu_offload_seq = "network->vae"

    def __init__(
        self,
        network: Any,
        path: Any = None,
        vae: Any = None,
        predicts: str | None = None,
        sample_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if hasattr(network, "merge_and_unload"):
            raise ConfigError(
                f"a {type(network).__name__} of peft as network: merge the adapter of a copy, "
                "copy.deepcopy(network).merge_and_unload()"
            )
        # A frozen module is a function, which could not be saved.
        if not isinstance(network, nn.Module) or not isinstance(unwrapped(network), ModelMixin):
            raise ConfigError(
                f"a {type(network).__name__} as network: expected a DiffusersNetwork, or a ModelMixin of your own, "
                "which can be saved"
            )
        predicts = _default(unwrapped(network)) if predicts is None else predicts
        if predicts not in (*_SAMPLERS, _GENERATOR):
            raise ConfigError(f"predicts = {predicts!r}: expected one of {', '.join((*_SAMPLERS, _GENERATOR))}")
        if path is None and predicts != _GENERATOR:
            raise ConfigError(
                f"a network of {predicts} without a path: expected path=, for example onestep_core.Linear()"
            )
        if path is not None and not isinstance(path, SchedulerMixin):
            path = SavedPath(path)
        self.register_modules(network=network, path=path, vae=vae)
        self.register_to_config(predicts=predicts, sample_shape=None if sample_shape is None else list(sample_shape))
        self.image_processor = VaeImageProcessor()

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        timesteps: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        **condition: Any,
    ) -> Any:
        """Samples, with values of [-1, 1] shown as black to white.

        Args:
            batch_size: how many.
            generator: of the noise; one, or one for each sample.
            num_inference_steps: evaluations of the network; a generator has one.
            output_type: ``"pil"``, ``"np"`` ``[batch, height, width, channel]``, ``"pt"``
                ``[batch, channel, height, width]``, both in [0, 1], or ``"latent"``: the states as they are.
            return_dict: whether the images are the attribute ``images`` of the result, or in a tuple.
            timesteps: times of the path, in its own unit, from its noise end to its data end, one more than
                evaluations, in place of ``num_inference_steps``; by default equal steps, on EDM's path Karras' steps.
            height: of the states, where the network's config has none or another.
            width: likewise.
            condition: the network's own keywords, for the whole batch, such as ``class_labels``.

        Raises:
            ConfigError: if the shape of the samples is not known; if the number of steps cannot be, or the times do not
                run from the path's noise end to its data end.
        """
        device = self._execution_device
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size!r}: expected a whole number of at least 1")
        if output_type not in _OUTPUTS:
            raise ConfigError(f"output_type = {output_type!r}: expected one of {', '.join(_OUTPUTS)}")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ConfigError(f"{len(generator)} generators for {batch_size} samples: expected one, or one for each")
        _check_rows(condition, batch_size)
        shape = (batch_size, *self._shape(height, width))
        condition = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in condition.items()}

        def noise() -> Tensor:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

        predicts = self.config["predicts"]
        if predicts == _GENERATOR:
            if num_inference_steps != 1 or timesteps is not None:
                raise ConfigError(f"num_inference_steps = {num_inference_steps}: a generator has one evaluation")
            samples = _generated(self.network, condition, noise)
        else:
            path = self.path.original if isinstance(self.path, SavedPath) else path_of(self.path)
            times = _times(path, num_inference_steps, timesteps)
            samples = _SAMPLERS[predicts](self.network, condition, Sampling(path, times.to(device), noise))
        if self.vae is not None and output_type != "latent":
            scaled = samples / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
            samples = self.vae.decode(scaled.to(self.vae.dtype)).sample.float()
        images = self.image_processor.postprocess(samples, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @functools.wraps(DiffusionPipeline.save_pretrained, assigned=())
    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **keywords: Any) -> None:
        """As that of diffusers, over an older pipeline too.

        The folder's ``model_index.json`` is removed first and written last: a save that was interrupted leaves no
        pipeline, and no mixture of two that could be loaded.

        Raises:
            ConfigError: for a network that a file could not describe; then nothing was removed.
        """
        if isinstance(self.network, SavedModel):
            self.network.require_saveable()
        (FilePath(save_directory) / self.config_name).unlink(missing_ok=True)
        super().save_pretrained(save_directory, *arguments, **keywords)

    def _shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        shape = self.config["sample_shape"] or getattr(unwrapped(self.network), "sample_shape", None)
        if shape is None:
            raise ConfigError(
                "the network's config has no shape of a sample: give OneStepPipeline(sample_shape=(channels, height, "
                "width))"
            )
        return shape[0], height or shape[1], width or shape[2]


def _check_rows(condition: dict[str, Any], batch_size: int) -> None:
    """Refuse conditions of another number of samples, which fail deep in the model or are broadcast."""
    for name, meaning in MEANINGS.items():
        given, labels = condition.get(name), name == "class_labels"
        if isinstance(given, Tensor):
            fits, came = given.shape[:1] == (batch_size,), f"a tensor of shape {tuple(given.shape)}"
            fits = fits and (given.dim() == 1 or not labels)
        else:
            # A model of the user's may take texts in another form.
            fits, came = given is None or not labels, f"a {type(given).__name__}"
        if not fits:
            raise ConfigError(f"{name} is {came} for {batch_size} samples: expected a tensor, {meaning}")


def _default(network: Any) -> str:
    times = getattr(network, "times", None)
    if times == 2:
        return "average_velocity"
    if times == 0:
        return _GENERATOR
    raise ConfigError(
        f"what the network predicts is not known: give predicts=, one of {', '.join((*_SAMPLERS, _GENERATOR))}"
    )


def _grid(path: Path, steps: int) -> Tensor:
    require_count("num_inference_steps", steps, least=1)
    if isinstance(path, VarianceExploding) and steps > 1:
        # The core's grid goes on to zero noise, beyond the path's data end.
        return karras_grid(steps + 1, sigma_min=path.sigma_min, sigma_max=path.sigma_max).float()[:-1]
    return uniform_grid(steps, path=path, dtype=torch.float32)


def _times(path: Path, steps: int, given: Sequence[float] | None) -> Tensor:
    """The grid of so many steps, or the times given, after a check that they run from noise to data."""
    if given is None:
        return _grid(path, steps)
    times = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
    ends = torch.tensor([path.noise_time, path.data_time])
    whole = times.dim() == 1 and len(times) >= 2 and torch.allclose(times[[0, -1]], ends, rtol=1e-4, atol=1e-6)
    if not whole or not bool((times.diff() * (ends[1] - ends[0]) > 0).all()):
        raise ConfigError(
            f"timesteps = {times.tolist()}: expected times of the path in order, from its noise end "
            f"{path.noise_time:g} to its data end {path.data_time:g}"
        )
    if steps not in (1, len(times) - 1):
        raise ConfigError(
            f"num_inference_steps = {steps} beside {len(times)} timesteps, which are {len(times) - 1} evaluations: "
            "give one of the two"
        )
    return times
