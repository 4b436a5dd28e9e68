"""Filters, views of patches, mosaics and global views of one picture (arXiv:2210.07646, neurons)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import OccludeConfig, ViewsConfig
from vitviz_hf.experiments.figures import Figure, PictureRow, heat_map, picture_grid
from vitviz_hf.experiments.neurons.filters import (
    DARK,
    FAINTEST,
    OBJECT_SHARES,
    Filters,
    brightened,
    brightness,
    check_filter,
    filter_scores,
    global_view,
    mosaic,
    patch_filters,
    patch_views,
    readable_filters,
    responses,
    to_display,
    view_caption,
    view_numbers,
)
from vitviz_hf.experiments.perturb import Mask, mask_to_model, owned_patches
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import overlay, pixels_to_image
from vitviz_hf.models.view import ModelView, normalize, to_pixels
from vitviz_hf.reading.attention import JointAttention, attention_weights, joint_attention

SOURCE = "What Neurons Tell and How Neurons Behave, arXiv:2210.07646"
_RANKED = 8


def run_views(view: ModelView, image: Image.Image, config: ViewsConfig, mask: Mask | None = None) -> Result:
    """Pictures and numbers of level 0 and of global views.

    Args:
        mask: [h, w] of the picture, not 0 on the object; for the ranking of filters and the object's share.

    Raises:
        ConfigError: patches that overlap or an attention of another form, with the reason; or a bad option.
        ModelError: the attention cannot be read.
    """
    filters, grid, n_prefix = patch_filters(view), view.layers[0].patch_grid, view.layers[0].n_prefix
    pixels = to_pixels(view, image)
    joint = joint_attention(attention_weights(view, pixels)[0], n_prefix, config.residual)
    values, crop = normalize(view, pixels)[0].float().cpu(), _picture(pixels[0].float().cpu())
    on_object = None
    if mask is not None:
        on_object = torch.from_numpy(owned_patches(mask_to_model(view, (mask != 0).astype(np.int64)) > 0, grid))
        if on_object.all() or not on_object.any():
            n = "all" if on_object.all() else "none"
            raise ConfigError(f"the mask owns {n} of the patches that the model sees; mark a part of the picture.")
    neurons = responses(filters, values)
    scores = filter_scores(neurons, on_object)
    chosen = config.filters or readable_filters(filters, 4)
    for index in chosen:
        check_filter(filters, index)
    check_patches(config.patches or (), grid)
    patches = list(config.patches or telling_patches(joint, view))
    levels = shown_levels(len(view.layers), config.levels)
    mosaics = {j: mosaic(filters, values, j) for j in chosen}
    maps = {f"filter {j}": neurons[:, j].reshape(grid).numpy() for j in chosen}
    shown = _Shown(crop, values, neurons, mosaics, patches)
    figures = {
        "filters": _filter_row(filters, shown, grid),
        "mosaics": _mosaic_rows(shown, config.white),
        "responses": heat_map(maps, "sum of the view"),
        "global-views": picture_grid(_global_rows(joint, shown, levels, view, config), 1.8, scale_bar(config.scale)),
    }
    if n_prefix:
        attention = joint.joint[-1][0, n_prefix:]
        relative = (attention / brightness(attention, config.white)).clamp(0, 1).reshape(grid).numpy()
        drawn = overlay(crop, relative, (0.0, 1.0))
        figures["class-attention"] = picture_grid(
            [("", [("picture", crop), (f"joint attention of the class token{brightened(config.white)}", drawn)])], 2.5
        )
    numbers = _numbers(joint.views, n_prefix, patches, grid, on_object)
    notes = (*numbers.notes, *display_notes(config, next(iter(mosaics)), "that mosaic's own largest value"))
    tables = {
        "table": Table(numbers.columns, numbers.rows, notes),
        "table-filters": _ranking(scores, on_object is not None),
    }
    return Result("views", tables, figures, describe_run("views", [view], None, config, SOURCE))


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the figures are drawn from."""

    crop: Image.Image
    values: Tensor
    neurons: Tensor
    mosaics: dict[int, Tensor]
    patches: list[tuple[int, int]]


def _filter_row(filters: Filters, shown: _Shown, grid: tuple[int, int]) -> Figure:
    """Filters, and below them the views of the first patch through them."""
    row, col = shown.patches[0]
    number, chosen = row * grid[1] + col, list(shown.mosaics)
    side = filters.patch
    patch = shown.crop.crop((col * side, row * side, (col + 1) * side, (row + 1) * side))
    tiles = [(f"filter {j}", _tile(filters.weight[j])) for j in chosen]
    views = patch_views(filters, shown.values, number, chosen)
    seen = [(f"sum {float(shown.neurons[number, j]):.2f}", _tile(v)) for j, v in zip(chosen, views, strict=True)]
    large = patch.resize((128, 128), Image.Resampling.NEAREST)
    return picture_grid([("filter", [("", None), *tiles]), ("view", [(f"patch {row},{col}", large), *seen])])


def _mosaic_rows(shown: _Shown, white: float) -> Figure:
    how, mosaics = brightened(white), shown.mosaics
    bright = [(f"filter {j}{how}", _picture(to_display(m, brightness(m, white)))) for j, m in mosaics.items()]
    dark = [(f"filter {j}{how}", _picture(to_display(-m, brightness(-m, white)))) for j, m in mosaics.items()]
    return picture_grid([("positive", [("picture", shown.crop), *bright]), ("negative", [("", None), *dark])], 2)


def scale_bar(scale: str) -> tuple[float, str] | None:
    """The bar that a figure of views on this scale needs."""
    return (FAINTEST, "weight of a patch") if scale == "log" else None


def display_notes(config: ViewsConfig | OccludeConfig, index: int, largest: str) -> tuple[str, ...]:
    """How views are drawn, for the notes.

    Args:
        index: filter of the views.
        largest: what the mosaics are relative to.
    """
    mosaics = f"Views are drawn through filter {index}, its mosaic relative to {largest}, one constant for all"
    if config.scale == "log":
        how = f"the weights of patches on a logarithmic scale from {FAINTEST:g} (black) to 1, the same for all rows."
    else:
        how = (
            "the weights of patches relative to the largest of each row of weights, so each view has its own gain (the "
            f"paper's rule). Where more than half of a view is below {DARK:.0%} of full brightness, its caption names "
            "the patch that outshines the others and its share of the row; --scale log shows these."
        )
    notes = [f"{mosaics}; {how}"]
    if config.white != 100:
        what = "mosaics" if config.scale == "log" else "mosaics and rows of weights"
        notes.append(f"Brightened: percentile {config.white:g} of {what} is drawn white, not the largest.")
    return tuple(notes)


def _ranking(scores: Tensor, by_object: bool) -> Table:
    how = (
        "2 |AUROC - 0.5| between the object's patches and the others"
        if by_object
        else "Otsu's criterion, without a mask"
    )
    order = scores.argsort(descending=True).tolist()
    ends = [r for r in range(len(order)) if r < _RANKED or r >= len(order) - _RANKED]
    rows = tuple((r + 1, order[r], float(scores[order[r]])) for r in ends)
    note = f"The best and the worst of {len(order)} filters, by {how}. Filters are counted from 0."
    return Table(("rank", "filter", "score"), rows, (note,))


def check_patches(patches: Sequence[tuple[int, int]], grid: tuple[int, int]) -> None:
    """Raise unless all (row, column) are on the grid.

    Raises:
        ConfigError: one is outside.
    """
    for row, col in patches:
        if row >= grid[0] or col >= grid[1]:
            raise ConfigError(f"patch {row},{col} is outside the grid of {grid[0]} rows and {grid[1]} columns.")


def shown_levels(n_layers: int, wanted: Sequence[int] | None = None) -> list[int]:
    """The wanted levels, or four that stand as 0, 4, 8 and 11 do in twelve layers.

    Raises:
        ConfigError: more than there are.
    """
    levels = list(wanted or sorted({round(x * n_layers / 12) for x in (0, 4, 8, 11)}))
    if max(levels) > n_layers:
        raise ConfigError(f"levels go from 0, before any attention, to {n_layers}; got {max(levels)}.")
    return levels


def telling_patches(joint: JointAttention, view: ModelView) -> list[tuple[int, int]]:
    """The corner, and the two patches of which the class token holds most, or all patches do without one; best last."""
    weights = joint.views[-1][0] if view.layers[0].n_prefix else joint.views[-1].mean(0)
    best = [k for k in weights.argsort(descending=True).tolist() if k][:2]
    return [(0, 0), *(divmod(k, view.layers[0].patch_grid[1]) for k in reversed(best))]


def readable_patch(joint: JointAttention) -> tuple[int, int, int]:
    """The patch whose views are lit most widely, not the one that outshines the others in most of the last views.

    Returns:
        Its number, from 0, the number of that other one, and how many of the last views it outshines.
    """
    n_patches = joint.views.shape[-1]
    views = joint.views[1:, -n_patches:]
    lit = (views >= DARK * views.max(-1, keepdim=True).values).float().mean((0, 2))
    counts = views[-1].argmax(-1).bincount(minlength=n_patches)
    sink = int(counts.argmax())
    lit[sink] = -1
    return int(lit.argmax()), sink, int(counts[sink])


def _global_rows(
    joint: JointAttention, shown: _Shown, levels: list[int], view: ModelView, config: ViewsConfig
) -> list[PictureRow]:
    """A row for the class token and each patch, a column for each level, through the first filter."""
    n_prefix, grid = view.layers[0].n_prefix, view.layers[0].patch_grid
    values = next(iter(shown.mosaics.values()))
    brightest = brightness(values, config.white)

    def row(token: int) -> list[tuple[str, Image.Image | None]]:
        rows = [(level, joint.views[level, token]) for level in levels]
        views = [global_view(values, weights, grid, brightest, config.white, config.scale) for _, weights in rows]
        captions = [view_caption(*row, grid, config.white, config.scale) for row in rows]
        return [(caption, _picture(v)) for caption, v in zip(captions, views, strict=True)]

    rows: list[PictureRow] = []
    if n_prefix:
        own = row(0)
        if levels[0] == 0:  # the class token has no view yet: the picture stands there, as in the paper's figure
            own[0] = ("picture", shown.crop)
        rows.append(("class token", own))
    for r, c in shown.patches:
        rows.append((f"patch {r},{c}", row(n_prefix + r * grid[1] + c)))
    return rows


def _numbers(
    views: Tensor, n_prefix: int, patches: list[tuple[int, int]], grid: tuple[int, int], on_object: Tensor | None
) -> Table:
    numbers = view_numbers(views, n_prefix, on_object)
    tokens = [row * grid[1] + col for row, col in patches]
    columns = ["level", *(f"own weight, patch {_name(p)}" for p in patches), "entropy, mean", "convergence"]
    shares = [name for name in OBJECT_SHARES if name in numbers]
    rows: list[tuple[Cell, ...]] = []
    for level in range(len(views)):
        cells: list[Cell] = [level, *(float(numbers["own weight"][level, t]) for t in tokens)]
        cells += [float(numbers["entropy"][level, n_prefix:].mean()), float(numbers["convergence"][level])]
        rows.append((*cells, *(float(numbers[name][level]) for name in shares)))
    notes = [
        "Level 0 is the patch embedding, level l has passed l layers. Own weight: what a patch's token holds of its "
        "own patch. Entropy in nats, over patches. Convergence: mean cosine of what two patches hold; 1: all the same."
    ]
    if on_object is not None and shares:
        notes.append(f"The object covers {float(on_object.float().mean()):.0%} of the patches.")
    return Table((*columns, *shares), tuple(rows), tuple(notes))


def _name(patch: tuple[int, int]) -> str:
    return f"{patch[0]},{patch[1]}"


def _picture(values: Tensor) -> Image.Image:
    return pixels_to_image(values.numpy())


def _tile(values: Tensor) -> Image.Image:
    return _picture(to_display(values)).resize((128, 128), Image.Resampling.NEAREST)
