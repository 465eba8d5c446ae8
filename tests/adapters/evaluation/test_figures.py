"""Figures are drawn without pyplot, and a missing matplotlib says so."""

import subprocess
import sys

import pytest
import torch

from onestep_core.errors import ConfigError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def test_pictures_are_drawn_without_pyplot(tmp_path):
    pytest.importorskip("matplotlib")
    from onestep_adapters.evaluation import figures

    images, labels = torch.rand(30, 1, 8, 8, generator=generator()) * 2 - 1, torch.arange(30) % 10
    sets = {"one": images, "two": images[:7]}
    grid = figures.image_grid(images, sets, real_labels=labels, labels={"one": labels}, title="t")
    lines = figures.curves({"a": [(0, 1.0), (10, 0.1)], "b": [(0, 1.0), (10, 0.11)]}, floor=0.01, title="t")
    many = {f"method {i}": [(0, 1.0), (10, 0.1 + i)] for i in range(len(figures.PALETTE) + 1)}
    panels = figures.curves(many, floor=0.01, title="t")
    assert [axes.texts[0].get_text() for axes in panels.get_axes()] == list(many)
    dots = figures.toy_scatter(normal(99, 2), {"a": normal(99, 2) * 3, "b": normal(9, 2)}, captions={"a": "score 1"})
    assert {text.get_text() for text in dots.get_axes()[0].texts} >= {"a", "score 1"}
    for i, figure in enumerate((grid, lines, panels, dots)):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 3000
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(ConfigError, match="like the real ones"):
        figures.image_grid(images, {"a": images[:, :, :4]})
    with pytest.raises(ConfigError, match="one label per image"):
        figures.image_grid(images, {"a": images}, labels={"a": labels[:3]})
    with pytest.raises(ConfigError, match="at least one"):
        figures.curves({})
    with pytest.raises(ConfigError, match="2"):
        figures.toy_scatter(normal(9, 3), {"a": normal(9, 2)})


def test_a_figure_is_written_whole_or_not_at_all_and_through_no_link(tmp_path):
    pytest.importorskip("matplotlib")
    from onestep_adapters.evaluation.figures import toy_scatter, write_figure

    figure, outside = toy_scatter(normal(99, 2), {"a": normal(9, 2)}), tmp_path / "outside"
    outside.write_text("kept")
    (tmp_path / "a.png").symlink_to(outside)
    assert write_figure(figure, tmp_path / "a.png") == tmp_path / "a.png"
    assert outside.read_text() == "kept"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert write_figure(figure, tmp_path / "a.SVG").read_text().startswith("<?xml")
    with pytest.raises(ConfigError, match=r"a\.foo as a picture: expected a name that ends with .*\.png"):
        write_figure(figure, tmp_path / "a.foo")
    old, resource = (tmp_path / "a.png").read_bytes(), pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_figure(figure, tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a.png").read_bytes() == old


def test_metrics_and_evaluation_import_no_extra():
    extras = ("matplotlib", "sklearn", "scipy")
    imports = "import sys, onestep_adapters.metrics, onestep_adapters.evaluation"
    code = f"{imports}; print([m for m in {extras} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_matplotlib_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from onestep_core.errors import MissingExtraError\n"
        "try: import onestep_adapters.evaluation.figures\n"
        "except MissingExtraError as e: print(e)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'onestep[plots]'" in found.stdout
