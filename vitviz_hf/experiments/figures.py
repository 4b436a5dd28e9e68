"""Figures of results. The only place that imports matplotlib; no global state of it is used."""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from operator import mul
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Figure
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.images import Floats

Scatter = tuple[Floats, NDArray[np.integer], Floats]
"""Points [n, 2], group of each, and size of each around 1."""
PictureRow = tuple[str, Sequence[tuple[str, Image.Image | None]]]


def heat_map(values: Mapping[str, Floats], label: str) -> Figure:
    """Maps [R, C] side by side on one color scale, each with its title."""
    figure = Figure(figsize=(4.2 * len(values), 3.6), layout="constrained")
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    for i, (title, grid) in enumerate(values.items()):
        axes = figure.add_subplot(1, len(values), i + 1)
        drawn = axes.imshow(grid, vmin=low, vmax=high, cmap="viridis")
        axes.set_title(_short(title), fontsize=9)
        axes.set(xlabel="column", ylabel="row")
    figure.colorbar(drawn, ax=figure.axes, label=label)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, tuple[Any, Any, Any, Any]]],
    x: str,
    y: str,
    by_order: bool = False,
    top: tuple[str, float] | None = None,
) -> Figure:
    """Lines in panels side by side.

    Args:
        panels: title -> name of the line -> x, y, and the lower and upper end of its band, or None.
        x: label of the axis.
        y: label of the axis.
        by_order: color the lines by their order, as for layers, instead of telling them apart.
        top: label of a second axis above, and how many of its units are one of x.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for i, (name, (xs, ys, low, high)) in enumerate(lines.items()):
            color = _ordered_color(i, len(lines)) if by_order else f"C{i % 10}"
            ax.plot(xs, ys, marker="o", markersize=3, label=_short(name), color=color)
            if low is not None and high is not None:
                ax.fill_between(xs, low, high, color=color, alpha=0.12, linewidth=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(x)
        ax.grid(alpha=0.3)
        if top is not None:
            label, factor = top
            above = ax.secondary_xaxis("top", functions=(partial(mul, factor), partial(mul, 1 / factor)))
            above.set_xlabel(label, fontsize=8)
    axes[0].set_ylabel(y)
    axes[-1].legend(fontsize=8, ncols=1 + len(axes[-1].lines) // 9)
    return figure


def bars(groups: Mapping[str, Mapping[str, tuple[float, float, float]]], y: str) -> Figure:
    """Groups of bars, each a value with the ends of its confidence interval; empty where there is no value at all."""
    figure = Figure(figsize=(2.2 + 1.6 * len(groups), 3.8), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        at = [g + i * width for g, group in enumerate(groups.values()) if name in group]
        cells = np.array([group[name] for group in groups.values() if name in group])
        ends = np.maximum(np.stack([cells[:, 0] - cells[:, 1], cells[:, 2] - cells[:, 0]]), 0)
        axes.bar(at, cells[:, 0], width * 0.92, yerr=ends, label=name, capsize=2)
    axes.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, [_wrapped(g) for g in groups], fontsize=8)
    axes.set_ylabel(y)
    if names:
        axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    return figure


def picture_grid(rows: Sequence[PictureRow], size: float = 1.5, bar: tuple[float, str] | None = None) -> Figure:
    """Rows of pictures with a label at the left and a caption below each; None leaves a place empty.

    Args:
        size: width of a picture in inches.
        bar: what is black, to 1, which is white, and a label: a logarithmic bar of brightness at the right.
    """
    n = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(size * n + 0.8, (size + 0.22) * len(rows) + 0.1), layout="constrained")
    grid = figure.subplots(len(rows), n, squeeze=False)
    for (label, pictures), axes in zip(rows, grid, strict=True):
        for i, ax in enumerate(axes):
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if i == 0:
                ax.set_ylabel(label, fontsize=8)
            if i < len(pictures) and pictures[i][1] is not None:
                ax.imshow(np.asarray(pictures[i][1]), interpolation="antialiased")
                ax.set_xlabel(pictures[i][0], fontsize=7, labelpad=2)
    if bar:
        drawn = ScalarMappable(LogNorm(bar[0], 1), "gray")
        figure.colorbar(drawn, ax=figure.axes, label=bar[1], fraction=0.02)
    return figure


def scatter_panels(picture: NDArray[np.uint8], panels: Mapping[str, Scatter], names: Mapping[int, str]) -> Figure:
    """The picture [H, W, 3], then points of the plane, colored by group; group 0 is gray."""
    figure = Figure(figsize=(3.4 * (len(panels) + 1), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1)
    axes[0].imshow(picture)
    for ax, (title, (points, groups, sizes)) in zip(axes[1:], panels.items(), strict=True):
        for group in np.unique(groups).tolist():
            own = groups == group
            color, marker = ("0.7", "+") if group == 0 else (f"C{(group - 1) % 10}", "os^Dv"[(group - 1) % 5])
            ax.scatter(
                *points[own].T,
                s=22 * sizes[own],
                c=color,
                marker=marker,
                linewidths=0.8,
                alpha=0.85,
                label=names.get(group, str(group)),
            )
        ax.set_title(title, fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, [x[:24] for x in labels], loc="outside lower center", ncols=6, fontsize=8)
    return figure


def encode_figure(figure: Figure, kind: str) -> bytes:
    """The figure as `png` or `svg`; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "vitviz"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _ordered_color(i: int, n: int) -> tuple[float, float, float]:
    import matplotlib

    red, green, blue, _ = matplotlib.colormaps["viridis"](0.92 * i / max(n - 1, 1))
    return red, green, blue


def _wrapped(name: str) -> str:
    return _short(name).replace("-", "-\n", 2)


def _short(name: str) -> str:
    """A model without its owner."""
    return name.rsplit("/", 1)[-1]
