"""Who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
CORE = SOURCE / "onestep_core"
BASE = {"typing", "errors", "precision", "protocols", "shapes"}
WINGS = {"regression", "flow", "fields"}
EXTRAS = {
    "tyro", "rich", "sklearn", "matplotlib", "hypothesis", "geomloss", "ot", "pykeops", "diffusers", "transformers",
    "pytest",
}  # fmt: skip


def modules(root):
    return sorted(root.rglob("*.py"))


def imports(file, *, nested=False):
    """Dotted names that a file imports; with ``nested``, those inside functions only."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if nested and id(node) not in inside:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.append(node.module)
    return found


def part(file):
    """First component below the package: a wing, or a base file's name."""
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def core_parts(file):
    return {name.split(".")[1] for name in imports(file) if name.startswith("onestep_core.")}


@pytest.mark.parametrize("file", modules(CORE), ids=lambda f: str(f.relative_to(CORE)))
def test_core_imports_downwards(file):
    here, there = part(file), core_parts(file)
    assert not any(name.startswith("onestep_adapters") for name in imports(file))
    if here in BASE:
        assert there <= BASE
    elif here in WINGS:
        assert there <= BASE | {here}
    elif here == "objectives":
        assert there <= BASE | WINGS | ({here} if file.name == "__init__.py" else set())
    elif here == "evidence":
        assert there <= BASE | WINGS | {here}
    if here not in {"evidence", "__init__"}:
        assert "evidence" not in there


@pytest.mark.parametrize("file", modules(CORE), ids=lambda f: str(f.relative_to(CORE)))
def test_core_imports_at_the_top(file):
    assert not imports(file, nested=True)


def test_no_cycle():
    edges = {}
    for file in modules(CORE):
        name = "onestep_core." + ".".join(file.relative_to(CORE).with_suffix("").parts)
        edges[name] = {other for other in imports(file) if other.startswith("onestep_core.")}
    wings = {f"onestep_core.{wing}": f"onestep_core.{wing}.__init__" for wing in WINGS | {"objectives", "evidence"}}
    edges = {name: {wings.get(other, other) for other in others} for name, others in edges.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"import cycle: {' -> '.join([*path, name])}"
        if name in done or name not in edges:
            return
        path.append(name)
        for other in edges[name]:
            visit(other)
        path.pop()
        done.add(name)

    for name in edges:
        visit(name)


ADAPTERS = SOURCE / "onestep_adapters"


@pytest.mark.parametrize("file", modules(ADAPTERS), ids=lambda f: str(f.relative_to(ADAPTERS)))
def test_only_recipes_and_cli_cross_adapter_packages(file):
    here = file.relative_to(ADAPTERS).parts[0].removesuffix(".py")
    there = {name.split(".")[1] for name in imports(file) if name.startswith("onestep_adapters.")}
    if here not in {"recipes", "cli"}:
        assert there <= {here}, f"{here} imports {there - {here}}"
    if here != "cli":
        assert "cli" not in there


@pytest.mark.parametrize("file", modules(SOURCE), ids=lambda f: str(f.relative_to(SOURCE)))
def test_optional_libraries_stay_in_leaves(file):
    """An extra is imported at the top of its own leaf, never in a package's ``__init__`` of the core or adapters."""
    optional = {name.split(".")[0] for name in imports(file)} & EXTRAS
    if file.is_relative_to(CORE):
        assert not optional
    assert not {name.split(".")[0] for name in imports(file, nested=True)} & EXTRAS
