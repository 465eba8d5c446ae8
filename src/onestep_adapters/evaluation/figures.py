"""Figures: real images beside generated ones, curves of training, clouds of points.

Each function returns a ``matplotlib.figure.Figure`` with an Agg canvas, made without pyplot: no global state, no
window, no change of the caller's style. :func:`write_figure` writes it. Needs matplotlib, an extra.
"""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep_adapters.files import require_path, write_whole
from onestep_core.errors import ConfigError, MissingExtraError

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise MissingExtraError("pictures need matplotlib: pip install 'onestep[plots]'") from error

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b3a8c", "#7a6a53")
"""Okabe and Ito's colours, which colour-blind readers can distinguish, and two more."""

_INK = "#22262b"
_QUIET = "#6b727a"
_GREY = "#c3c9cf"
_LINE = "#d9dde1"
_DPI = 160
_LARGEST_WIDTH = 13.0
"""Of a figure of many blocks, in inches."""


def write_figure(figure: Figure, file: str | os.PathLike[str]) -> Path:
    """Write a figure, whole or not at all, and return its path; a link at ``file`` is replaced, not followed.

    Args:
        figure: not changed.
        file: its suffix gives the format, one that matplotlib writes; without a suffix ``.png``.

    Raises:
        ConfigError: for another suffix.
    """
    file, content = require_path("file", file), io.BytesIO()
    kind, known = file.suffix.removeprefix(".").lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"{file} as a picture: expected a name that ends with .{', .'.join(sorted(known))}")
    figure.savefig(content, format=kind)
    write_whole(file, content.getvalue())
    return file


def image_grid(
    real: Tensor,
    sets: Mapping[str, Tensor],
    *,
    real_labels: Tensor | None = None,
    labels: Mapping[str, Tensor] | None = None,
    captions: Mapping[str, str] | None = None,
    across: int = 4,
    rows: int = 10,
    real_name: str = "real",
    title: str = "",
) -> Figure:
    """Real images beside one block of samples for each method; with labels, one class in each row of a block.

    Args:
        real: images in [-1, 1], ``[n, channel, height, width]`` with one or three channels.
        sets: samples by method, in the same layout; the first ones are shown, not the best.
        real_labels: classes of ``real``, ``[n]``.
        labels: classes of the samples by method.
        captions: text under a method's name, such as its budget.
        across: images in a row of a block.
        rows: rows of images; with labels, the number of classes shown.
        real_name: heading of the first block.
        title: above everything.

    Raises:
        ConfigError: for images of another layout or size, or labels of another length.

    Example:
        >>> images = torch.zeros(8, 1, 8, 8)
        >>> figure = image_grid(images, {"MeanFlow": images}, across=2, rows=4)
        >>> [axes.get_label() for axes in figure.get_axes()]
        ['real', 'MeanFlow']
    """
    labels, captions = dict(labels or {}), dict(captions or {})
    blocks = {real_name: real, **sets}
    if len(blocks) != len(sets) + 1:
        raise ConfigError(f"a method is called {real_name!r} like the real images: pass another real_name")
    if real_labels is not None:
        labels[real_name] = real_labels
    for name, images in blocks.items():
        if images.ndim != 4 or images.shape[1:] != real.shape[1:] or images.shape[1] not in (1, 3):
            raise ConfigError(
                f"expected images [n, 1 or 3, height, width] like the real ones, {list(real.shape)}; got "
                f"{list(images.shape)} for {name!r}"
            )
        if name in labels and labels[name].shape != images.shape[:1]:
            raise ConfigError(
                f"expected one label per image of {name!r}, [{len(images)}], got {list(labels[name].shape)}"
            )
    side, tall = max(1.8, 0.32 * across), 0.36 * rows
    columns = min(len(blocks), max(1, int(_LARGEST_WIDTH / side)))
    lines = -(-len(blocks) // columns)
    headings = {name: (_wrapped(name, side, 8.5), _wrapped(captions.get(name, ""), side, 6)) for name in blocks}
    head = max(0.17 * _height(name) + 0.12 * _height(caption) for name, caption in headings.values()) + 0.2
    figure = _figure(columns * side + 0.4, lines * (tall + head) + (0.35 if title else 0.05))
    grid = figure.subplots(lines, columns, squeeze=False)
    for i, (name, images) in enumerate(blocks.items()):
        line, column = divmod(i, columns)
        axes = grid[line, column]
        axes.set_label(name)
        mosaic = _mosaic(images, labels.get(name), across, rows)
        axes.imshow(mosaic.numpy(), interpolation="nearest", vmin=0, vmax=1, aspect="equal", origin="upper")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, labelsize=7.5, labelcolor=_QUIET, pad=1)
        axes.set_xticks([])
        pixels = real.shape[2] + 1
        named = column == 0 and name in labels
        axes.set_yticks([row * pixels + (pixels - 2) / 2 for row in range(rows)] if named else [])
        if named:
            axes.set_yticklabels([str(row) for row in range(rows)])
        _heading(axes, *headings[name])
    _hide(grid, len(blocks))
    _title(figure, title)
    return figure


def curves(
    histories: Mapping[str, Sequence[tuple[float, float]]],
    *,
    floor: float | None = None,
    xlabel: str = "training update",
    ylabel: str = "validation distance",
    title: str = "",
    logarithmic: bool = True,
) -> Figure:
    """A validation distance during training, one line per method, with the floor of real data as a dashed line.

    More methods than there are colours get a panel each, in front of the others in grey.

    Args:
        histories: by method, pairs of (update, distance).
        floor: the distance between two real sets.
        xlabel: below.
        ylabel: beside the vertical axis.
        title: above everything.
        logarithmic: distances on a logarithmic axis where they span more than a factor of four. Those that are not
            positive, or below a ten-thousandth of the largest, are open circles at its lower edge: an unbiased distance
            is below zero by chance where it is about zero.

    Raises:
        ConfigError: without a history, or with an empty one.

    Example:
        >>> curves({"MeanFlow": [(0, 1.0), (100, 0.1)]}, floor=0.01).get_axes()[0].get_yscale()
        'log'
    """
    if not histories or not all(len(history) for history in histories.values()):
        raise ConfigError("expected at least one (update, distance) pair for each method")
    everything = [value for history in histories.values() for _, value in history]
    lowest = _lowest([*everything, *([] if floor is None else [floor])]) if logarithmic else None
    if len(histories) > len(PALETTE):
        return _panels(histories, floor=floor, xlabel=xlabel, ylabel=ylabel, title=title, lowest=lowest)
    figure = _figure(7.2, 3.8)
    axes = figure.subplots()
    lines = {}
    for colour, (name, history) in zip(PALETTE, histories.items(), strict=False):
        lines[name] = _line(axes, history, lowest, colour, label=name)
    ends = {name: history[-1][1] for name, history in histories.items()}
    handles = [lines[name] for name in sorted(ends, key=lambda name: -ends[name])]
    if floor is not None:
        handles.append(_floor(axes, floor, lowest))
    if lowest is not None and min(everything) < lowest:
        handles.append(_marker("white", _QUIET, "about 0: below the axis"))
    _open(axes)
    axes.set_xlabel(xlabel, fontsize=8.5, color=_INK)
    axes.set_ylabel(_wrapped(ylabel, 3.0, 8.5), fontsize=8.5, color=_INK)
    axes.margins(x=0.02)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5, labelcolor=_INK)
    _title(figure, title)
    return figure


def _panels(
    histories: Mapping[str, Sequence[tuple[float, float]]],
    *,
    floor: float | None,
    xlabel: str,
    ylabel: str,
    title: str,
    lowest: float | None,
    columns: int = 5,
) -> Figure:
    lines = -(-len(histories) // columns)
    figure = _figure(2.1 * columns, 1.5 * lines + 0.7)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, histories, strict=False):
        for other, history in histories.items():
            if other != name:
                steps, values = zip(*history, strict=True)
                shown = [value if lowest is None else max(value, lowest) for value in values]
                axes.plot(steps, shown, color="#e4e7ea", linewidth=0.8, zorder=1)
        _line(axes, histories[name], lowest, PALETTE[0], markersize=2.5, zorder=3)
        if floor is not None:
            _floor(axes, floor, lowest)
        _open(axes)
        axes.locator_params(axis="x", nbins=3)
        axes.tick_params(labelsize=6.5)
        _heading(axes, _wrapped(name, 1.9, 8.5), "")
    _hide(grid, len(histories))
    for i, axes in enumerate(grid.flat[: len(histories)]):
        axes.tick_params(labelbottom=i + columns >= len(histories))
    marks = [] if floor is None else ["dashed: floor, real data"]
    if lowest is not None and any(value < lowest for history in histories.values() for _, value in history):
        marks.append("open circles: about 0, below the axis")
    figure.supylabel(ylabel + (f"\n({'; '.join(marks)})" if marks else ""), fontsize=8.5, color=_INK)
    figure.supxlabel(xlabel, fontsize=8.5, color=_INK)
    _title(figure, title)
    return figure


def _lowest(values: Sequence[float]) -> float | None:
    """The lower edge of a logarithmic axis; ``None`` for a linear one, where values span a factor of four at most."""
    largest, positive = max(values), [value for value in values if value > 0]
    if not positive or (len(positive) == len(values) and largest <= 4 * min(positive)):
        return None
    return max(min(positive), largest * 1e-4)


def _line(
    axes: Axes, history: Sequence[tuple[float, float]], lowest: float | None, colour: str, markersize: float = 3.5,
    **keywords: Any,
) -> Any:  # fmt: skip
    """A curve with a circle at each value; the circles of values below the axis are open and at its edge."""
    steps, values = zip(*history, strict=True)
    if lowest is not None:
        axes.set_yscale("log")
    shown = [value if lowest is None else max(value, lowest) for value in values]
    (line,) = axes.plot(steps, shown, "o-", color=colour, linewidth=1.7, markersize=markersize, **keywords)
    below = [step for step, value in zip(steps, values, strict=True) if lowest is not None and value < lowest]
    if below:
        edge = [lowest] * len(below)
        axes.plot(below, edge, "o", color=colour, markerfacecolor="white", markersize=markersize + 1, zorder=4)
    return line


def toy_scatter(
    real: Tensor,
    sets: Mapping[str, Tensor],
    *,
    captions: Mapping[str, str] | None = None,
    points: int = 3000,
    columns: int = 4,
    title: str = "",
) -> Figure:
    """Real draws in grey behind every method's samples, one panel a method, on equal axes; a legend below.

    Args:
        real: draws of the distribution, ``[n, 2]``.
        sets: samples by method, ``[m, 2]``; how many fall outside the frame is written in its corner. Empty: one panel
            with the real draws alone.
        captions: text under a method's name, such as its budget.
        points: at most so many of each are drawn.
        columns: panels in a row.
        title: above everything.

    Raises:
        ConfigError: for points that are not two-dimensional.

    Example:
        >>> len(toy_scatter(torch.randn(9, 2), {"MeanFlow": torch.randn(9, 2)}).get_axes())
        1
    """
    for name, x in {"real": real, **sets}.items():
        if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
            raise ConfigError(f"expected points [n, 2], got {list(x.shape)} for {name!r}")
    drawn: dict[str, Tensor | None] = {**sets} if sets else {"": None}
    columns = min(columns, len(drawn))
    lines = -(-len(drawn) // columns)
    side = 2.1
    headings = {name: (_wrapped(name, side, 9), _wrapped((captions or {}).get(name, ""), side, 6)) for name in drawn}
    head = max(0.17 * _height(name) + 0.12 * _height(caption) for name, caption in headings.values()) + 0.12
    figure = _figure(columns * side, lines * (side + head) + (0.35 if title else 0.05) + 0.25)
    grid = figure.subplots(lines, columns, squeeze=False)
    real = real.detach().cpu()
    low, high = real.amin(0), real.amax(0)
    middle, half = (low + high) / 2, 0.56 * float((high - low).max())
    legend = [_marker(_GREY, _GREY, "real data")]
    if sets:
        legend.append(_marker(PALETTE[0], PALETTE[0], "samples" if len(sets) == 1 else "in colour: samples"))
    for i, (axes, (name, samples)) in enumerate(zip(grid.flat, drawn.items(), strict=False)):
        _dots(axes, real[:points], _GREY, 1.6)
        axes.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
        axes.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(_LINE)
        _heading(axes, *headings[name])
        if samples is None:
            continue
        x = samples.detach().cpu()[:points]
        _dots(axes, x, PALETTE[i % len(PALETTE)], 1.6)
        outside = int(((x - middle).abs() > half).any(1).sum())
        if outside:
            patch = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
            where = {"transform": axes.transAxes, "ha": "right", "bbox": patch}
            told = f"{outside:,} of {len(x):,} samples\noutside of the frame"
            axes.text(0.97, 0.03, told, fontsize=5.5, color=_INK, multialignment="right", **where)
    figure.legend(
        handles=legend, loc="outside lower left", ncols=2, frameon=False, fontsize=7.5, labelcolor=_INK,
        handletextpad=0.1, columnspacing=1.0, borderpad=0,
    )  # fmt: skip
    _hide(grid, len(drawn))
    _title(figure, title)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.06)
    return figure


def _title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=_INK, fontweight="bold")


def _heading(axes: Axes, name: str, caption: str) -> None:
    """A name above the axes, and smaller text between the two; constrained layout makes room for both."""
    below: Any = "axes fraction"
    if caption:
        below = axes.annotate(
            caption, (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points",
            va="bottom", ha="left", fontsize=6, color=_QUIET,
        )  # fmt: skip
    axes.annotate(
        name, (0, 1), xycoords=below, xytext=(0, 3), textcoords="offset points", va="bottom", ha="left", fontsize=8.5,
        color=_INK, fontweight="bold",
    )  # fmt: skip


def _wrapped(text: str, inches: float, size: float) -> str:
    """Lines that fit a width in a font size; the lines of ``text`` stay apart."""
    letters = int(inches * 125 / size)
    return "\n".join(
        "\n".join(textwrap.wrap(line, letters, break_long_words=False)) if line else line for line in text.split("\n")
    )


def _height(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _hide(grid: Any, used: int) -> None:
    """Remove the axes that no method needs."""
    for axes in grid.flat[used:]:
        axes.remove()


def _mosaic(images: Tensor, labels: Tensor | None, across: int, rows: int) -> Tensor:
    """``[rows (h + 1) - 1, across (w + 1) - 1, 3]`` in [0, 1]; white where there is no image."""
    height, width = images.shape[2:]
    canvas = torch.ones(3, rows * (height + 1) - 1, across * (width + 1) - 1)
    every = torch.arange(len(images))
    chosen = [
        every[row * across : (row + 1) * across] if labels is None else every[labels.cpu() == row][:across]
        for row in range(rows)
    ]
    for row, indices in enumerate(chosen):
        for column, index in enumerate(indices.tolist()):
            y, x = row * (height + 1), column * (width + 1)
            image = images[index].detach().float().cpu().clamp(-1, 1)
            canvas[:, y : y + height, x : x + width] = (image.expand(3, -1, -1) + 1) / 2
    return canvas.permute(1, 2, 0)


def _open(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(which="both", length=0, labelsize=7.5, labelcolor=_QUIET)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _floor(axes: Axes, floor: float, lowest: float | None) -> Any:
    shown = floor if lowest is None else max(floor, lowest)
    return axes.axhline(shown, color=_QUIET, linewidth=1.1, linestyle=(0, (4, 3)), label="floor (real data)")


def _marker(face: str, edge: str, label: str) -> Line2D:
    """A circle for a legend."""
    return Line2D(
        [], [], marker="o", linestyle="", markersize=4, markerfacecolor=face, markeredgecolor=edge, label=label
    )


def _dots(axes: Axes, x: Tensor, colour: str, size: float) -> None:
    axes.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=size, color=colour, linewidths=0, alpha=0.6, rasterized=True)
