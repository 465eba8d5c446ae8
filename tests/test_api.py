"""The public names and their arguments, compared with ``docs/api.txt``.

After a deliberate change write the file anew: ``python -m tests.test_api > docs/api.txt``, and say so in the
changelog.
"""

import importlib
import inspect
from pathlib import Path

import attrs

API = Path(__file__).parent.parent / "docs" / "api.txt"
MODULES = [
    "onestep_core",
    "onestep_core.diagnostics",
    "onestep_core.validators",
    "onestep_adapters.names",
    "onestep_adapters.devices",
    "onestep_adapters.files",
    "onestep_adapters.networks",
    "onestep_adapters.backbones",
    "onestep_adapters.backbones.transformers",
    "onestep_adapters.backbones.diffusers",
    "onestep_adapters.encoders",
    "onestep_adapters.data",
    "onestep_adapters.data.digits",
    "onestep_adapters.data.transport",
    "onestep_adapters.samplers",
    "onestep_adapters.training",
    "onestep_adapters.exporting",
    "onestep_adapters.metrics",
    "onestep_adapters.testing",
    "onestep_adapters.testing.laws",
    "onestep_adapters.testing.strategies",
    "onestep_adapters.methods",
    "onestep_adapters.runs",
    "onestep_adapters.evaluation",
    "onestep_adapters.evaluation.figures",
    "onestep_adapters.evaluation.pictures",
    "onestep_adapters.evaluation.pages",
    "onestep_adapters.evaluation.pages.html",
    "onestep_adapters.comparison",
]


def plain(signature):
    """Names, kinds and defaults; annotations are the type checker's matter."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    text = str(
        inspect.Signature([p.replace(default=Shown(p.default)) if p.default is not p.empty else p for p in parameters])
    )
    return text


class Shown:
    def __init__(self, value):
        self.text = getattr(value, "__name__", None) or repr(value)
        if attrs.has(type(value)) and value == type(value)():
            self.text = f"{type(value).__name__}()"
        if " at 0x" in self.text:
            self.text = type(value).__name__

    def __repr__(self):
        return self.text


def public(module):
    """Functions and classes that a module owns or its package re-exports."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(value) or not callable(value):
            continue
        home = getattr(value, "__module__", "")
        owned = home == module.__name__ if "__path__" not in vars(module) else home.startswith(module.__name__)
        # The laws are re-exported by a module that defines none.
        owned |= module.__name__.endswith(".laws") and home.startswith(module.__name__.removesuffix("laws"))
        if owned or (module.__name__ == "onestep_core" and home.startswith("onestep_core")):
            yield name, value


def lines():
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield f"# {module_name}"
        for name, value in public(module):
            try:
                yield f"{name}{plain(inspect.signature(value))}"
            except ValueError:
                yield name
        yield ""


def test_public_names_and_arguments():
    assert "\n".join(lines()) == API.read_text().rstrip("\n") + "\n", "public API changed; see the top of this file"


def test_every_public_name_has_a_docstring():
    missing = [
        f"{module_name}.{name}"
        for module_name in MODULES
        for name, value in public(importlib.import_module(module_name))
        if not (inspect.getdoc(value) or "").strip()
    ]
    assert not missing


if __name__ == "__main__":
    print("\n".join(lines()).rstrip("\n"))
