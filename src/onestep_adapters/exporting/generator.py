"""A one-step generator as a module: ``noise[, labels] -> samples``, in one evaluation of its network."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from onestep_adapters.networks import as_average_velocity, as_flow_map, as_one_step, as_velocity
from onestep_core.errors import ConfigError
from onestep_core.flow.paths import prior_state
from onestep_core.precision import full
from onestep_core.protocols import Path

Draw: TypeAlias = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""``(network, noise, labels) -> samples``; ``labels`` is ``None`` for a generator without classes."""


class Generator(nn.Module):
    """``(noise[, labels]) -> samples``: standard normal noise ``[batch, *shape]``, classes ``[batch]``.

    The network is copied to the CPU, in evaluation mode, without gradient. A guidance scale is a constant: bind it in
    ``draw``. A module in it with a method ``free_batch()``, as :class:`DiffusersNetwork`, is asked to replace code that
    depends on the batch size.

    Args:
        network: the generator's network, for example the average of a training state (``state.ema``).
        draw: ``(network, noise, labels) -> samples``, without a draw of its own and without decisions that depend on
            values of a tensor.
        shape: of the noise of one sample.
        classes: number of classes; ``None``: ``labels`` is no input.
        finish: applied to the samples, for example ``data.finish`` (rounding to grey levels); ``None`` for nothing.

    Raises:
        ConfigError: for a shape or a number of classes out of range; at a call, for labels that are missing or not
            expected.

    Example:
        >>> import torch
        >>> generator = Generator(nn.Linear(2, 2), lambda network, noise, labels: network(noise), shape=(2,))
        >>> generator(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        draw: Draw,
        *,
        shape: Sequence[int],
        classes: int | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        for name, size in (*(("shape", size) for size in self.shape), ("classes", 1 if classes is None else classes)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"{name} = {size!r}: expected whole numbers of at least 1")
        self.network = copy.deepcopy(network).cpu().requires_grad_(False).eval()
        for module in self.network.modules():
            if callable(free_batch := getattr(module, "free_batch", None)):
                free_batch()
        self._draw, self._finish = draw, finish

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The samples, in the order of the noise.

        Raises:
            ConfigError: for labels that are missing or not expected, or for noise of another shape.
        """
        if (labels is None) != (self.classes is None):
            raise ConfigError(
                f"the generator has {self.classes or 'no'} classes: call it with noise "
                f"{'and labels' if self.classes else 'alone'}"
            )
        if noise.shape[1:] != self.shape:
            raise ConfigError(f"noise of shape {tuple(noise.shape)}: expected [batch, {str(self.shape)[1:-1]}]")
        samples = self._draw(self.network, noise, labels)
        return samples if self._finish is None else self._finish(samples)


def jump_generator(network: nn.Module, *, path: Path, shape: Sequence[int], **options: Any) -> Generator:
    """``z + (data_time - noise_time) a(z, noise_time, data_time)`` with an average velocity ``a``: MeanFlow and others.

    Args:
        network: ``(z, t, s[, label=]) -> average velocity``.
        path: gives the ends and the state at the noise end.
        shape: of the noise of one sample.
        options: ``classes`` and ``finish`` of :class:`Generator`; ``time_scale``, ``output`` and conditions as in
            :func:`~onestep_adapters.networks.as_average_velocity`.

    Example:
        >>> import torch
        >>> from onestep_adapters.backbones import MLP
        >>> from onestep_core import Linear
        >>> jump_generator(MLP((2,), times=2), path=Linear(), shape=(2,))(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    own, call = _split(options)

    def draw(network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        return as_one_step(as_average_velocity(network, **_labelled(labels), **call), path=path)(noise)

    return Generator(network, draw, shape=shape, **own)


def flow_map_generator(
    network: nn.Module,
    *,
    path: Path,
    shape: Sequence[int],
    form: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None,
    **options: Any,
) -> Generator:
    """``X(z, noise_time, data_time)`` with a flow map ``X``: consistency trajectories, moment matching.

    Args:
        network: ``(z, t, s[, label=]) -> state at s``, or what ``form`` makes a flow map of.
        path: gives the ends and the state at the noise end.
        shape: of the noise of one sample.
        form: from the network's callable to the flow map, for example a partial ``preconditioned_flow_map``.
        options: as for :func:`jump_generator`.

    Example:
        >>> import torch
        >>> from onestep_adapters.backbones import MLP
        >>> from onestep_core import Linear
        >>> flow_map_generator(MLP((2,), times=2), path=Linear(), shape=(2,))(torch.ones(1, 2))
        tensor([[0., 0.]])
    """
    own, call = _split(options)

    def draw(network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        function: Callable[..., Tensor] = as_flow_map(network, **_labelled(labels), **call)
        z = full(prior_state(path, noise))
        t, s = (z.new_full((z.shape[0],), end) for end in (path.noise_time, path.data_time))
        return full((function if form is None else form(function))(z, t, s))

    return Generator(network, draw, shape=shape, **own)


def consistency_generator(
    network: nn.Module,
    *,
    path: Path,
    shape: Sequence[int],
    form: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None,
    **options: Any,
) -> Generator:
    """``f(z, noise_time)`` with a consistency function ``f``.

    Args:
        network: ``(z, t[, label=]) -> state at the data end``, or what ``form`` makes a consistency function of.
        path: gives the noise end and the state there.
        shape: of the noise of one sample.
        form: from the network's callable to the consistency function, for example
            ``partial(denoiser_from_velocity, path=path)`` for a velocity.
        options: as for :func:`jump_generator`.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from onestep_adapters.backbones import MLP
        >>> from onestep_core import Linear, denoiser_from_velocity
        >>> form = partial(denoiser_from_velocity, path=Linear())
        >>> consistency_generator(MLP((2,)), path=Linear(), shape=(2,), form=form)(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    own, call = _split(options)

    def draw(network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        function: Callable[..., Tensor] = as_velocity(network, **_labelled(labels), **call)
        z = full(prior_state(path, noise))
        t = z.new_full((z.shape[0],), path.noise_time)
        return full((function if form is None else form(function))(z, t))

    return Generator(network, draw, shape=shape, **own)


def direct_generator(network: nn.Module, *, shape: Sequence[int], **options: Any) -> Generator:
    """``network(noise[, label=labels])``: a drifting or distilled generator.

    Args:
        network: ``(noise[, label=]) -> samples``.
        shape: of the noise of one sample.
        options: ``classes`` and ``finish`` of :class:`Generator`, and conditions for the network.

    Example:
        >>> import torch
        >>> from onestep_adapters.backbones import MLP
        >>> direct_generator(MLP((2,), times=0, classes=3), shape=(2,), classes=3)(
        ...     torch.ones(1, 2), torch.tensor([2])
        ... )
        tensor([[0., 0.]])
    """
    own, call = _split(options)

    def draw(network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        return network(noise, **_labelled(labels), **call)

    return Generator(network, draw, shape=shape, **own)


def _labelled(labels: Tensor | None) -> dict[str, Tensor]:
    return {} if labels is None else {"label": labels}


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the generator, and those of the call."""
    own = {name: value for name, value in options.items() if name in ("classes", "finish")}
    return own, {name: value for name, value in options.items() if name not in own}
