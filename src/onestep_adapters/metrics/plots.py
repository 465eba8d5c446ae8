"""Pictures: real images beside generated ones, curves of training, clouds of points.

Each function returns a ``matplotlib.figure.Figure`` with an Agg canvas, made without pyplot: no global state,
no window, no change of anyone's style. ``figure.savefig("samples.png")`` writes it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onestep_core.errors import ConfigError, MissingExtraError

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("pictures need matplotlib: pip install 'onestep[plots]'") from error

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b3a8c", "#7a6a53")
"""Okabe and Ito's colours, which colour-blind readers tell apart, and two more."""

_INK = "#22262b"
_QUIET = "#8a9199"
_LINE = "#d9dde1"
_DPI = 160
_WIDE = 13.0
"""Inches that pictures of many methods are wide at most; then come further lines."""
_LETTERS = 26
"""Of a heading that fits its panel."""


def image_grid(
    real: Tensor,
    sets: Mapping[str, Tensor],
    *,
    real_labels: Tensor | None = None,
    labels: Mapping[str, Tensor] | None = None,
    across: int = 4,
    rows: int = 10,
    real_name: str = "real",
    title: str = "",
) -> Figure:
    """Real images beside one block per method, in several lines where there are many; one class per row with labels.

    Args:
        real: images in [-1, 1], ``[n, channel, height, width]`` with one or three channels.
        sets: samples by method, the same layout; the first ones are shown, not the best.
        real_labels: classes of ``real``, ``[n]``.
        labels: classes of the samples by method; where there are none, rows mean nothing and none is named.
        across: images in a row of a block.
        rows: rows of images; with labels, the number of classes shown.
        real_name: the first column's heading.
        title: above everything.

    Raises:
        ConfigError: for images of another layout or size, or labels of another length.

    Example:
        >>> images = torch.zeros(8, 1, 8, 8)
        >>> image_grid(images, {"MeanFlow": images}, across=2, rows=4).get_axes()[1].get_title()
        'MeanFlow'
    """
    labels = dict(labels or {})
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
    cell, gap, left, above = 0.3, 0.18, 0.32, 0.22 if title else 0.0
    side, tall = across * cell, rows * cell
    headings = {name: _wrapped(name, letters=int(14 * (side + gap))) for name in blocks}
    head = 0.18 + 0.15 * max(heading.count("\n") + 1 for heading in headings.values())
    columns = min(len(blocks), max(1, int(_WIDE / (side + gap))))
    lines = -(-len(blocks) // columns)
    width, height = columns * (side + gap) + left + 0.1, lines * (tall + head + 0.1) + above
    figure = _figure(width, height)
    for i, (name, images) in enumerate(blocks.items()):
        line, column = divmod(i, columns)
        place = (left + column * (side + gap), height - above - (line + 1) * (tall + head + 0.1) + 0.1)
        axes = figure.add_axes((place[0] / width, place[1] / height, side / width, tall / height))
        mosaic = _mosaic(images, labels.get(name), across, rows)
        axes.imshow(mosaic.numpy(), interpolation="nearest", vmin=0, vmax=1, cmap="gray", aspect="equal")
        axes.set_axis_off()
        axes.set_title(headings[name], fontsize=8.5, color=_INK, fontweight="bold" if i == 0 else "normal", pad=5)
        if column == 0 and name in labels:
            pixels = real.shape[2] + 1
            for row in range(rows):
                y = row * pixels + pixels / 2
                axes.text(-1.6, y, str(row), ha="right", va="center", fontsize=7.5, color=_QUIET)
    if title:
        figure.text(left / width, 1 - 0.08 / height, title, fontsize=10, color=_INK, fontweight="bold", va="top")
    return figure


def curves(
    histories: Mapping[str, Sequence[tuple[float, float]]],
    *,
    floor: float | None = None,
    xlabel: str = "training step",
    ylabel: str = "validation distance",
    title: str = "",
    logarithmic: bool = True,
) -> Figure:
    """A validation distance over training, one line per method, with the floor of real data as a dashed line.

    More methods than there are colours get a panel each, on the same axes, before the others in grey.

    Args:
        histories: by method, pairs of (step, distance).
        floor: the distance between two real sets.
        xlabel: below.
        ylabel: above the axis.
        title: above everything.
        logarithmic: distances on a logarithmic axis; where some are not positive it is linear below a hundredth of the
            largest.

    Raises:
        ConfigError: without a history, or with an empty one.

    Example:
        >>> curves({"MeanFlow": [(0, 1.0), (100, 0.1)]}, floor=0.01).get_axes()[0].get_yscale()
        'log'
    """
    if not histories or not all(len(history) for history in histories.values()):
        raise ConfigError("expected at least one (step, distance) pair for each method")
    everything = [value for history in histories.values() for _, value in history]
    scale: dict[str, Any] = {"value": "linear"}
    if logarithmic and min([*everything, *([] if floor is None else [floor])]) > 0:
        scale = {"value": "log"}
    elif logarithmic and max(everything) > 0:
        scale = {"value": "symlog", "linthresh": max(everything) / 100}
    if len(histories) > len(PALETTE):
        return _panels(histories, floor=floor, xlabel=xlabel, ylabel=ylabel, title=title, scale=scale)
    figure = _figure(6.6, 3.8)
    axes = figure.add_axes((0.1, 0.14, 0.66, 0.68))
    ends = []
    for colour, (name, history) in zip(_colours(len(histories)), histories.items(), strict=True):
        steps, values = zip(*history, strict=True)
        axes.plot(steps, values, color=colour, linewidth=1.7, solid_capstyle="round")
        axes.plot(steps[-1:], values[-1:], "o", color=colour, markersize=4)
        ends.append((float(values[-1]), name, colour))
    axes.set_yscale(**scale)
    if floor is not None:
        axes.axhline(floor, color=_QUIET, linewidth=1.1, linestyle=(0, (4, 3)))
        ends.append((floor, "floor (real data)", _QUIET))
    _open(axes)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=8.5, color=_INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.02)
    figure.text(0.1, 0.855, ylabel, fontsize=8.5, color=_QUIET)
    if title:
        figure.text(0.1, 0.925, title, fontsize=10.5, color=_INK, fontweight="bold")
    _name_ends(axes, ends)
    return figure


def _panels(
    histories: Mapping[str, Sequence[tuple[float, float]]],
    *,
    floor: float | None,
    xlabel: str,
    ylabel: str,
    title: str,
    scale: dict[str, Any],
    columns: int = 5,
) -> Figure:
    side, tall, gap, head, left = 1.9, 1.15, 0.16, 0.3, 0.5
    above, below = 0.72 if title else 0.4, 0.5
    lines = -(-len(histories) // columns)
    width, height = left + columns * (side + gap), above + lines * (tall + head) + below
    figure = _figure(width, height)
    first: Axes | None = None
    for i, name in enumerate(histories):
        row, column = divmod(i, columns)
        place = (left + column * (side + gap), height - above - (row + 1) * (tall + head))
        box = (place[0] / width, place[1] / height, side / width, tall / height)
        axes = figure.add_axes(box, sharex=first, sharey=first)
        first = first or axes
        for other, history in histories.items():
            steps, values = zip(*history, strict=True)
            axes.plot(steps, values, color="#e4e7ea", linewidth=0.8, zorder=1 + (other == name))
        steps, values = zip(*histories[name], strict=True)
        axes.plot(steps, values, color=PALETTE[0], linewidth=1.7, zorder=3)
        axes.plot(steps[-1:], values[-1:], "o", color=PALETTE[0], markersize=3.5, zorder=3)
        if floor is not None:
            axes.axhline(floor, color=_QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
        _open(axes)
        axes.set_yscale(**scale)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=3)
        axes.tick_params(labelleft=column == 0, labelbottom=i + columns >= len(histories), labelsize=6.5)
        axes.text(
            0,
            1.06,
            name,
            transform=axes.transAxes,
            fontsize=min(8.0, 8.0 * (_LETTERS + 2) / len(name)),
            color=_INK,
            fontweight="bold",
        )
    dashed = "" if floor is None else "; dashed: real data"
    figure.text(left / width, 1 - (above - 0.2) / height, f"{ylabel}{dashed}", fontsize=8, color=_QUIET)
    figure.text(left / width, 0.12 / height, xlabel, fontsize=8, color=_INK)
    if title:
        figure.text(left / width, 1 - 0.1 / height, title, fontsize=10.5, color=_INK, fontweight="bold", va="top")
    return figure


def toy_scatter(
    real: Tensor,
    sets: Mapping[str, Tensor],
    *,
    captions: Mapping[str, str] | None = None,
    points: int = 3000,
    columns: int = 4,
    title: str = "",
) -> Figure:
    """The law's draws in grey behind every method's samples, one panel a method, on equal axes.

    Args:
        real: draws of the law, ``[n, 2]``.
        sets: samples by method, ``[m, 2]``; what falls outside the panel is counted in its corner.
        captions: a line under a method's name, such as its score.
        points: at most so many of each are drawn.
        columns: panels in a row.
        title: above everything.

    Raises:
        ConfigError: for points that are not two-dimensional, or without a method.

    Example:
        >>> len(toy_scatter(torch.randn(9, 2), {"MeanFlow": torch.randn(9, 2)}).get_axes())
        1
    """
    for name, x in {"real": real, **sets}.items():
        if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
            raise ConfigError(f"expected points [n, 2], got {list(x.shape)} for {name!r}")
    if not sets:
        raise ConfigError("expected samples of at least one method")
    columns = min(columns, len(sets))
    lines = -(-len(sets) // columns)
    side, gap, head = 1.95, 0.16, 0.5 if captions else 0.34
    above = 0.42 if title else 0.06
    width, height = columns * (side + gap) + gap, lines * (side + head) + above + gap
    figure = _figure(width, height)
    low, high = real.amin(0), real.amax(0)
    middle, half = (low + high) / 2, 0.56 * float((high - low).max())
    for i, (name, x) in enumerate(sets.items()):
        row, column = divmod(i, columns)
        bottom = height - above - (row + 1) * (side + head)
        axes = figure.add_axes(((gap + column * (side + gap)) / width, bottom / height, side / width, side / height))
        _dots(axes, real[:points], "#c3c9cf", 1.6)
        _dots(axes, x[:points], _colours(len(sets))[i], 1.6)
        axes.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
        axes.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(_LINE)
        axes.text(
            0,
            1.11 if captions else 1.035,
            name,
            transform=axes.transAxes,
            fontsize=min(9.0, 9.0 * _LETTERS / len(name)),
            color=_INK,
            va="bottom",
            fontweight="bold",
        )
        axes.text(0, 1.03, (captions or {}).get(name, ""), transform=axes.transAxes, fontsize=7.5, color=_QUIET)
        outside = int(((x[:points] - middle).abs() > half).any(1).sum())
        if outside:
            patch = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
            where = {"transform": axes.transAxes, "ha": "right", "bbox": patch}
            axes.text(0.97, 0.03, f"{outside} outside", fontsize=6.5, color=_INK, **where)
    if title:
        figure.text(gap / width, 1 - 0.1 / height, title, fontsize=10.5, color=_INK, fontweight="bold", va="top")
    return figure


def _wrapped(text: str, *, letters: int) -> str:
    """Lines of so many letters, broken after hyphens; those of ``text`` stay apart."""
    return "\n".join("\n".join(textwrap.wrap(line, letters, break_long_words=False)) for line in text.split("\n"))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _colours(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


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


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of the lines, moved apart where they would overlap."""
    axes.figure.canvas.draw()
    to_axes = axes.transAxes.inverted()
    placed = sorted((to_axes.transform(axes.transData.transform((0, y)))[1], name, colour) for y, name, colour in ends)
    heights = [height for height, _, _ in placed]
    apart = 0.062
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    if heights[-1] > 1.02:
        heights[-1] = 1.02
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - apart)
    for height, (_, name, colour) in zip(heights, placed, strict=True):
        axes.text(1.025, height, name, transform=axes.transAxes, color=colour, fontsize=8.5, va="center")


def _dots(axes: Axes, x: Tensor, colour: str, size: float) -> None:
    x = x.detach().cpu()
    axes.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=size, color=colour, linewidths=0, alpha=0.6, rasterized=True)
