"""The state of any optimiser between updates, as named tensors and JSON.

    optimizer.network.first.weight.exp_avg    a tensor; its name contains the name of its parameter
    {"class": "AdamW", "groups": [...],       JSON; "params" are names; a tensor is replaced by
     "state": {...}, "other": {...}}          {"tensor": its name, "shape": [...]}; "other" belongs to no parameter

Everything comes unchanged from the optimiser's own ``state_dict``. ``torch.distributed.checkpoint.state_dict`` does the
same after the first update, but before it, it makes one update with zero gradients. Adam would then count a step that
was never made, and a saved run would give other results than a run that was not saved.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from onestep_adapters.training.folder import CheckpointError

_REMEDY = "build the optimiser as the saved one was"


class Saved(NamedTuple):
    """The state of an optimiser: JSON, and the tensors that it names."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]


def optimizer_state(optimizer: Optimizer, part: str, modules: Mapping[str, nn.Module]) -> Saved:
    """The state that ``optimizer`` keeps between updates.

    Args:
        optimizer: not changed.
        part: prefix of the names of the tensors.
        modules: the modules whose parameters the optimiser updates, by the prefix of the parameters' names.

    Raises:
        CheckpointError: if the optimiser keeps something that is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}
    content, names = optimizer.state_dict(), _parameter_names(optimizer, modules)
    state = {
        names[index]: {key: _encode(value, f"{part}.{names[index]}.{key}", tensors) for key, value in values.items()}
        for index, values in content["state"].items()
        if isinstance(index, int)
    }
    other = {
        key: _encode(value, f"{part}.{key}", tensors) for key, value in content["state"].items() if isinstance(key, str)
    }
    groups = [
        {
            key: [names[index] for index in value]
            if key == "params"
            else _encode(value, f"{part}.group-{number}.{key}", tensors)
            for key, value in group.items()
        }
        for number, group in enumerate(content["param_groups"])
    ]
    return Saved({"class": type(optimizer).__name__, "groups": groups, "state": state, "other": other}, tensors)


def decoded(
    file: Path,
    part: str,
    description: Any,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer,
    modules: Mapping[str, nn.Module],
) -> dict[str, Any]:
    """The argument for the optimiser's ``load_state_dict``.

    Args:
        file: name of the file, for error messages.
        part: as given to :func:`optimizer_state`.
        description: the description that :func:`optimizer_state` made, read from JSON.
        tensors: tensors of the optimiser, by their full names.
        optimizer: not changed.
        modules: as given to :func:`optimizer_state`.

    Raises:
        CheckpointError: if the description is damaged, was made of another optimiser or of other parameters, or does
            not fit the tensors.
    """
    if not (isinstance(description, dict) and description.keys() == {"class", "groups", "state", "other"}):
        raise CheckpointError(f"{file} has no description of the {part}: restore it from a copy or start the run anew")
    if (own := type(optimizer).__name__) != (saved := description["class"]):
        raise CheckpointError(f"{file} has a {part} of the class {saved}, the state one of {own}: {_REMEDY}")
    names, read = _parameter_names(optimizer, modules), set[str]()
    indices = {name: index for index, name in enumerate(names)}
    try:
        found = [group["params"] for group in description["groups"]]
        expected = [[names[index] for index in group["params"]] for group in optimizer.state_dict()["param_groups"]]
        if found != expected:
            raise CheckpointError(f"{file} has an {part} of other parameters: {_different(found, expected)}; {_REMEDY}")
        if unknown := sorted(description["state"].keys() - indices.keys()):
            raise CheckpointError(f"{file} has an {part} of other parameters: {unknown} unknown; {_REMEDY}")
        lookup = _lookup(file, tensors, read)
        groups = [
            {
                key: [indices[name] for name in value] if key == "params" else _decode(value, lookup)
                for key, value in group.items()
            }
            for group in description["groups"]
        ]
        state: dict[int | str, Any] = {
            indices[name]: {key: _decode(value, lookup) for key, value in values.items()}
            for name, values in description["state"].items()
        }
        state |= {key: _decode(value, lookup) for key, value in description["other"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} has a damaged description of the {part} ({error!r}): restore it from a copy or start the run anew"
        ) from error
    if extra := sorted(tensors.keys() - read):
        raise CheckpointError(f"{file} has tensors that the {part} does not know: {extra}; {_REMEDY}")
    return {"state": state, "param_groups": groups}


def load_into(optimizer: Optimizer, content: dict[str, Any]) -> None:
    """``optimizer.load_state_dict(content)`` without rounding.

    That function converts the state of a parameter to the parameter's dtype. With bfloat16 weights, a float32 number of
    NAdam or ASGD would lose digits.
    """
    optimizer.load_state_dict(content)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in content["state"].items():
        if not isinstance(index, int):
            continue
        kept = optimizer.state[parameters[index]]
        for key, value in values.items():
            if isinstance(value, Tensor) and value.dtype != kept[key].dtype:
                kept[key] = value.to(kept[key].device)


def _parameter_names(optimizer: Optimizer, modules: Mapping[str, nn.Module]) -> list[str]:
    """The names of the optimiser's parameters, in its order."""
    known = {
        id(parameter): f"{part}.{name}" if part else name
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [known.get(id(parameter), f"parameter-{index}") for index, parameter in enumerate(parameters)]


def _different(found: list[list[str]], expected: list[list[str]]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} groups saved, {len(expected)} given"
    for number, (saved, own) in enumerate(zip(found, expected, strict=True)):
        if missing := [name for name in own if name not in saved]:
            return f"group {number} was saved without {missing}"
        if extra := [name for name in saved if name not in own]:
            return f"group {number} was saved with {extra}"
        if saved != own:
            return f"those of group {number} were saved in the order {saved}, given is {own}"
    raise AssertionError("the groups are equal")  # pragma: no cover


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of ``value``; its tensors go to ``tensors``. JSON has neither tuples nor keys that are numbers."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name, "shape": list(value.shape)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        items = [_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {"items": [[key, _encode(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    raise CheckpointError(
        f"{name} is a {type(value).__name__}: a checkpoint holds tensors, numbers, strings, lists, tuples and "
        "dictionaries; train with an optimiser that keeps only those, or save this one yourself"
    )


def _decode(value: Any, lookup: Callable[[str, list[int]], Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, lookup) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tensor", "shape"}:
        return lookup(value["tensor"], value["shape"])
    if value.keys() == {"tuple"}:
        return tuple(_decode(item, lookup) for item in value["tuple"])
    return {key: _decode(item, lookup) for key, item in value["items"]}


def _lookup(file: Path, tensors: Mapping[str, Tensor], read: set[str]) -> Callable[[str, list[int]], Tensor]:
    def lookup(name: str, shape: list[int]) -> Tensor:
        if name not in tensors:
            raise CheckpointError(f"{file} lacks the tensor {name}: restore it from a copy or start the run anew")
        if list((found := tensors[name]).shape) != shape:
            raise CheckpointError(
                f"{file} has {name} of shape {tuple(found.shape)}, expected {tuple(shape)}: restore it from a copy or "
                "start the run anew"
            )
        read.add(name)
        return found

    return lookup
