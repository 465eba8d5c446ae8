"""The README and the pages of the methods: every Python snippet runs, in order, page by page; every option exists.

Options are collected from inline code and from the commands in sh blocks. They are compared with the classes from which
the command line is made; for two methods, these are compared with the real ``--help``.
"""

import argparse
import re
import types
from pathlib import Path
from typing import Union, get_args, get_origin, get_type_hints

import attrs
import pytest
import torch

from onestep_adapters.cli import compare, data, demo, evaluate, export, main, sample
from onestep_adapters.cli.images import add_image_options
from onestep_adapters.methods import ENCODERS, METHODS, Drifting

KNOWN = {**METHODS, **ENCODERS}
"""Everything that ``onestep train`` trains."""

ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT / "docs", ROOT / "docs" / "guides", ROOT / "docs" / "methods"]
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted(folder.glob("*.md")))]


def snippets(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "own-images"], ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page):
    blocks = snippets(page)
    assert blocks
    torch.manual_seed(0)
    names = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    if "loss" in names:
        assert bool(names["loss"].isfinite().all())


@pytest.mark.parametrize("page, least", [("troubleshooting", 11), ("systems", 7)])
def test_what_snippets_print_is_real(page, least, capsys):
    """A text block under a snippet is what it prints; ``...`` stands for anything, line breaks for spaces."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    names, told = {"__name__": page}, 0
    for code, after in re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, flags=re.DOTALL):
        exec(compile(code, page, "exec"), names)
        printed = " ".join(capsys.readouterr().out.split())
        expected = " ".join(after.split())
        assert re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), printed), (expected, printed)
        told += bool(after)
    assert told >= least


def test_the_tests_that_a_page_names_exist():
    known = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "systems.md").read_text()))
    assert len(named) > 10
    assert not [name for name in named if f"def {name}(" not in known]


def test_every_relative_link_leads_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# The options.


def image_options():
    parser = argparse.ArgumentParser(add_help=False)
    add_image_options(parser)
    return set(parser._option_string_actions)


IMAGES = image_options()
"""Options of images, which every ``onestep train`` has."""

COMMANDS = {
    "compare": compare.Compare,
    "sample": sample.Sample,
    "evaluate": evaluate.Evaluate,
    "export": export.Export,
    "data": data.Data,
    "demo": demo.Options,
}
PLACE = {"--data", "--folder", "--resume", "--device", "--help", *IMAGES}
"""Options of every ``onestep train``, beside those of the method."""

DISTILL = {"--method", "--samples"}
"""Options of ``onestep distill``, beside those of the method."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*")


def spans(text):
    """Inline code and the commands of sh blocks, each on one line; calls of other programs are left out."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    found = [" ".join(span.split()) for span in (*inline, *lines)]
    return [span for span in found if span.startswith(("onestep ", "--"))]


def class_of(kind):
    """The attrs class of a nested option, or None; ``X | None`` is X."""
    if get_origin(kind) in (Union, types.UnionType):
        return next((found for found in map(class_of, get_args(kind)) if found), None)
    return kind if attrs.has(kind) else None


def options_of(kind, prefix=""):
    """Options that the command line makes of an attrs class: only those of a teacher keep a prefix."""
    hints = get_type_hints(kind)
    for field in attrs.fields(kind):
        name, nested = field.name.replace("_", "-"), class_of(hints[field.name])
        if nested is not None:
            yield from options_of(nested, f"{prefix}{name}." if prefix or name == "teacher" else "")
        else:
            yield f"--{prefix}{name}"
            if hints[field.name] is bool:
                yield f"--{prefix}no-{name}"


def options_of_methods(names):
    kinds = {type(method) for name in names for method in (KNOWN[name].images, KNOWN[name].points)}
    return PLACE | {option for kind in kinds for option in options_of(kind)}


def methods_of(text):
    """The methods that a page is about: those that it trains."""
    return {name for span in spans(text) for name in re.findall(r"^onestep train ([a-z0-9-]+)", span)}


def known_options(span, methods):
    """Those of the command of a line; an option that stands alone belongs to a method, or to sampling."""
    words = span.split()
    if words[0] != "onestep":
        return options_of_methods(methods) | DISTILL | {"--with"}
    if "--with" in words:
        # A method of another file has the options of its base; it is tried with the methods' tests.
        return {"--with"} | known_options(span.replace("--with", ""), methods)
    if words[1] == "train":
        return options_of_methods([words[2]] if words[2] in KNOWN else methods)
    if words[1] == "distill":
        return options_of_methods(methods) | DISTILL
    return {"--help", *options_of(COMMANDS[words[1]])} if words[1] in COMMANDS else {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_of_a_page_exists(page):
    text = page.read_text()
    methods = methods_of(text) if page.parent.name == "methods" else set(KNOWN)
    assert methods <= {*KNOWN, "METHOD"}
    unknown = {
        option
        for span in spans(text)
        for option in OPTION.findall(span)
        if option not in known_options(span, methods & KNOWN.keys())
    }
    assert not unknown


def test_an_unknown_option_is_found():
    text = "Train by `onestep train meanflow\n--kappa 0.5 --nonsense`, `--moving`; `python -m other --large`."
    assert methods_of(text) == {"meanflow"}
    assert spans(text) == ["onestep train meanflow --kappa 0.5 --nonsense", "--moving"]
    found = {o for span in spans(text) for o in OPTION.findall(span)} - options_of_methods({"meanflow"})
    assert found == {"--nonsense", "--moving"}


@pytest.mark.parametrize("name", ["drifting", "dmd2", "moco", "mae"])
def test_the_classes_have_the_options_of_the_help(name, capsys):
    """Without the options of the place, which the help only mentions."""
    with pytest.raises(SystemExit):
        main(["train", name, "--data", "digits", "--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = {option for line in lines for option in OPTION.findall(line) if line[2:3] == "-"}
    assert shown - {"--help"} == set(options_of(type(KNOWN[name].images)))


def test_every_monitor_of_an_encoder_is_on_its_page():
    page = (ROOT / "docs" / "methods" / "encoders.md").read_text()
    for preset in ENCODERS.values():
        for name in preset.images.monitors:
            assert name == "loss" or f"`{name}`" in page


def test_every_monitor_of_drifting_is_on_its_page():
    page = (ROOT / "docs" / "methods" / "drifting.md").read_text()
    for name in Drifting(temperatures=(1.0,)).monitors:
        assert f"`{name.replace('drift norm 1', 'drift norm T')}`" in page
