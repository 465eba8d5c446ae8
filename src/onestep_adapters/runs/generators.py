"""The generator of a run as a module of its own."""

from torch import Tensor, nn

from onestep_adapters.exporting import Generator
from onestep_adapters.runs.run import Run
from onestep_core.errors import ConfigError


def generator_of(run: Run, *, finish: bool = True) -> Generator:
    """The one-step generator of a run, with the averaged weights: ``noise[, labels] -> samples``.

    From the same noise and labels it gives the samples of ``run.samples``. A guidance scale is that of the run
    (``run.guided``).

    Args:
        run: of a method that samples in one evaluation.
        finish: whether the last step of the data set is applied (images: rounding to grey levels; latents: decoding).

    Raises:
        ConfigError: if the run trains an encoder, or its samples take several evaluations.

    Example:
        >>> import torch
        >>> from onestep_adapters.runs import start_run
        >>> generator_of(start_run("drifting", "8gaussians"))(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """
    options = run.options
    if not options.generates:
        raise ConfigError(f"a run of {run.name} trains an encoder: only generators can be exported")
    if options.evaluations != 1:
        raise ConfigError(
            f"a sample of {run.name} takes {options.evaluations} network evaluations: only generators of one "
            "evaluation can be exported; train a one-step method, such as meanflow"
        )

    def draw(network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        return options.sample(network, noise, labels)

    return Generator(
        run.state.ema,
        draw,
        shape=options.noise_shape(run.data),
        classes=run.data.classes,
        finish=run.data.finish if finish else None,
    )
