"""One golden file, read completely: inputs as tensors in one precision, outputs by assertion.

The folder is ``tests/golden/data`` or the one that ``ONESTEP_GOLDEN_DIR`` names. Files say their group in
``meta_json``; a group's test is a function that takes a :class:`Case` and is listed in ``groups/__init__.py``.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("ONESTEP_GOLDEN_DIR", HERE / "data"))
PRECISION = {"f64": torch.float64, "f32": torch.float32}

FLOAT32_TOLERANCE: dict[str, float] = json.loads((HERE / "tolerances.json").read_text())
"""The manifest's float32 tolerance of each file it lists; anything else gets ``DEFAULT_FLOAT32``."""

DEFAULT_FLOAT32 = 3e-4
"""For files the manifest does not list: the largest it gives the groups here."""


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.npz"))


def group_of(file: Path) -> str:
    with np.load(file) as arrays:
        return json.loads(str(arrays["meta_json"]))["group"]


class Case:
    """One file in one precision; every array must be read."""

    def __init__(self, file: Path, precision: str) -> None:
        with np.load(file) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files if name != "meta_json"}
        self.dtype = PRECISION[precision]
        self._suffix = f"_{precision}"
        self._read: set[str] = set()
        listed = FLOAT32_TOLERANCE.get(file.stem, DEFAULT_FLOAT32)
        self.tolerance = 1e-10 if precision == "f64" else listed

    def has(self, name: str) -> bool:
        return name in self._arrays or name + self._suffix in self._arrays

    def names(self, pattern: str) -> list[re.Match[str]]:
        """Matches of ``pattern`` against whole array names."""
        return [m for name in self._arrays if (m := re.fullmatch(pattern, name))]

    def __getitem__(self, name: str) -> Tensor:
        """An input array: floats in the precision under test, integers as they are."""
        self._read.add(name)
        tensor = torch.from_numpy(np.array(self._arrays[name]))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def python(self, name: str, default: object = None) -> object:
        """A configuration value as a python number or string; ``default`` where the file has none."""
        if name not in self._arrays:
            return default
        self._read.add(name)
        return self._arrays[name].item()

    def expected(self, name: str) -> np.ndarray:
        key = name + self._suffix if name + self._suffix in self._arrays else name
        self._read.add(key)
        return self._arrays[key]

    def check(self, name: str, value: Tensor, *, atol: float = 0.0) -> None:
        """``max |value - expected| <= tolerance * max |expected| + atol``, shapes equal."""
        expected = torch.from_numpy(np.array(self.expected(name))).double()
        assert value.shape == expected.shape, f"{name}: shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
        if expected.is_floating_point() and value.is_floating_point():
            assert value.dtype == self.dtype, f"{name}: computed in {value.dtype}, under test is {self.dtype}"
        error = float((value.detach().double() - expected).abs().max()) if expected.numel() else 0.0
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        limit = self.tolerance * scale + (atol or (1e-12 if scale == 0 else 0.0))
        assert error <= limit, f"{name}: differs by {error:.3e}, allowed {limit:.3e} (largest value {scale:.3e})"

    def note_read(self, *names: str) -> None:
        """Mark arrays that the caller has asserted on by itself."""
        for name in names:
            self.expected(name)

    def unread(self) -> list[str]:
        """Arrays of this precision, or of none, that nothing looked at."""
        other = "_f32" if self._suffix == "_f64" else "_f64"
        return sorted(n for n in self._arrays if n not in self._read and not n.endswith(other))


def parameters(case: Case, prefix: str = "", names: tuple[str, ...] = ("W1", "b1", "W2", "b2")) -> dict[str, Tensor]:
    """The toy network's parameters, with gradient."""
    return {name: case[prefix + name].clone().requires_grad_() for name in names if case.has(prefix + name)}


def mlp(weights: dict[str, Tensor], like: Tensor, *columns: Tensor) -> Tensor:
    """``W2 tanh(W1 q + b1) + b2`` of the concatenated columns, in the shape of ``like``."""
    q = torch.cat([c.flatten(1) if c.ndim > 1 else c[:, None] for c in columns], dim=1)
    hidden = torch.tanh(q @ weights["W1"].T + weights["b1"])
    return (hidden @ weights["W2"].T + weights["b2"]).reshape(like.shape)


def check_gradients(case: Case, weights: dict[str, Tensor], scalar: Tensor, retain: bool = False) -> None:
    """``grad_W1`` and so on against the gradient of ``scalar``."""
    gradients = torch.autograd.grad(scalar, list(weights.values()), retain_graph=retain)
    for name, gradient in zip(weights, gradients, strict=True):
        case.check(f"grad_{name}", gradient)


Group = Callable[[Case], None]
