"""Where tensors live: the choice of a device, and modules and generators on it."""

import torch

from onestep_core.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: ``"auto"``: the first CUDA GPU where there is one, else the CPU. Otherwise what ``torch.device`` takes:
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises:
        ConfigError: for a name that torch does not know, or a device that this machine does not have.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.Generator(device=device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason}): give --device cpu, or a device that torch finds here"
        ) from error
    return device


def generator_on(device: torch.device | str, seed: int) -> torch.Generator:
    """A random generator on ``device`` with the given seed.

    Example:
        >>> generator_on("cpu", 3).initial_seed()
        3
    """
    return torch.Generator(device=device).manual_seed(seed)
