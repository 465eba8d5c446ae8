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
    assert {axes.get_yscale() for axes in panels.get_axes()} == {"log"}
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
    assert write_figure(figure, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert write_figure(figure, tmp_path / "plain").read_bytes().startswith(b"\x89PNG")
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


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_a_picture_of_points_says_what_is_what_and_what_it_leaves_out(tmp_path):
    pytest.importorskip("matplotlib")
    from onestep_adapters.evaluation import figures

    real = normal(200, 2)
    far = torch.cat([real[:7], real[7:40] + 100])
    figure = figures.toy_scatter(real, {"a": far, "b": real})
    one, other = ([text.get_text() for text in axes.texts] for axes in figure.get_axes())
    assert "33 of 40 samples\noutside of the frame" in one
    assert not any("outside" in text for text in other)
    assert legend_of(figure) == ["real data", "in colour: samples"]
    assert legend_of(figures.toy_scatter(real, {"a": real})) == ["real data", "samples"]
    alone = figures.toy_scatter(real, {})
    assert legend_of(alone) == ["real data"]
    assert len(alone.get_axes()[0].collections) == 1


def test_curves_are_drawn_on_a_scale_on_which_something_is_seen():
    """Distances that span decades are logarithmic; those that are not positive are open circles at the edge."""
    pytest.importorskip("matplotlib")
    from onestep_adapters.evaluation import figures

    steps = range(0, 800, 100)
    falling = [(step, 5.0 * 10 ** (-step / 200)) for step in steps]
    noisy = [(step, value - 0.02) for step, value in falling]
    axes = figures.curves({"a": falling}).get_axes()[0]
    assert axes.get_yscale() == "log"
    heights = axes.transData.transform([(step, value) for step, value in falling])[:, 1]
    apart = heights[:-1] - heights[1:]
    assert apart.min() > 0.9 * apart.max(), "equal factors are equally far apart"
    figure = figures.curves({"a": noisy})
    axes = figure.get_axes()[0]
    whole, below = axes.get_lines()
    assert list(below.get_xdata()) == [step for step, value in noisy if value <= 0]
    lowest = min(value for _, value in noisy if value > 0)
    assert set(below.get_ydata()) == {lowest} == {min(whole.get_ydata())}
    assert legend_of(figure) == ["a", "about 0: below the axis"]
    flat = figures.curves({"a": [(step, 1 + step / 1000) for step in steps]}).get_axes()[0]
    assert flat.get_yscale() == "linear"
    many = figures.curves({f"method {i}": noisy for i in range(len(figures.PALETTE) + 1)})
    assert "open circles: about 0" in many.get_supylabel()
    assert all(len(axes.get_lines()[-1].get_xdata()) == len(below.get_xdata()) for axes in many.get_axes())


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
