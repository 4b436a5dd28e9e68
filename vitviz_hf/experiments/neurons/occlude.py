"""What becomes of views and embeddings when parts of a picture are blacked out or shuffled (arXiv:2210.07646)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.nn import functional

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import MODES, OccludeConfig
from vitviz_hf.experiments.figures import Figure, curves, picture_grid
from vitviz_hf.experiments.neurons.filters import (
    Filters,
    brightness,
    check_filter,
    global_view,
    mosaic,
    patch_filters,
    readable_filters,
    view_caption,
)
from vitviz_hf.experiments.neurons.views import (
    SOURCE,
    check_patches,
    display_notes,
    scale_bar,
    shown_levels,
    telling_patches,
)
from vitviz_hf.experiments.perturb import (
    Changed,
    Mask,
    Photo,
    from_photo,
    mask_to_model,
    occlude,
    owned_patches,
    patch_sources,
    salient_tiles,
    shuffle,
    to_photo,
)
from vitviz_hf.experiments.result import Progress, Result, describe_run
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import pixels_to_image
from vitviz_hf.models.view import ModelView, normalize
from vitviz_hf.reading.attention import JointAttention, attention_weights, joint_attention
from vitviz_hf.reading.recording import activations, record_with_logits
from vitviz_hf.sites import Site

RATIOS = tuple(x / 10 for x in range(1, 10))
QUANTITIES = ("kept tokens, cosine", "class token, cosine", "attention, rank correlation", "views, relative difference")
_IN_FIGURE = (0.2, 0.5, 0.8)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model makes of one picture."""

    tokens: Tensor
    """[L, T, D], outputs of the blocks."""
    joint: JointAttention
    values: Tensor
    """[3, H, W], normalized."""
    probabilities: Tensor | None
    """[N]; None without a trained classifier."""


@dataclass(frozen=True, slots=True)
class _Variant:
    name: str
    ratio: float
    """Of the tiles; for shuffling, tiles in a row."""
    changed: Changed
    sources: NDArray[np.int64] | None
    """For shuffled patches, where each came from."""
    kept: NDArray[np.bool_]
    """[P], patches that can be compared."""


def look(view: ModelView, photo: Photo, residual: float) -> Seen:
    """One picture through the model: once for tokens and logits, once for the attention."""
    pixels = from_photo(view, photo)
    sites = [Site(i, "resid") for i in range(len(view.layers))]
    probabilities = None
    if view.labels:
        with torch.no_grad():
            acts, logits = record_with_logits(view, pixels, sites)
        probabilities = logits[0].float().softmax(-1).cpu()
    else:
        acts = activations(view, pixels, sites)
    tokens = torch.stack([acts[site].values[0].float().cpu() for site in sites])
    joint = joint_attention(attention_weights(view, pixels)[0], view.layers[0].n_prefix, residual)
    return Seen(tokens, joint, normalize(view, pixels)[0].float().cpu(), probabilities)


def run_occlude(
    view: ModelView,
    image: Image.Image,
    config: OccludeConfig,
    mask: Mask | None = None,
    progress: Progress | None = None,
) -> Result:
    """Pictures, views, and their likeness to the clean ones over layers.

    Args:
        mask: [h, w] of the picture, not 0 on objects; without one only random tiles are blacked out.

    Raises:
        ConfigError: patches that overlap or an attention of another form, with the reason; or a bad option.
        ModelError: the attention cannot be read.
    """
    filters, layer = patch_filters(view), view.layers[0]
    photo = to_photo(view, image)
    on_objects = None if mask is None else mask_to_model(view, (mask != 0).astype(np.int64))
    fits = config.grid <= min(photo.shape[:2])
    if on_objects is not None and fits and not salient_tiles(on_objects, config.grid).any():
        raise ConfigError("the mask has no object on more than 15 % of a tile that the model sees.")
    clean = look(view, photo, config.residual)
    index = readable_filters(filters, 1)[0] if config.filter is None else config.filter
    check_filter(filters, index)
    patch = config.patch or telling_patches(clean.joint, view)[-1]
    check_patches([patch], layer.patch_grid)
    token = layer.n_prefix + patch[0] * layer.patch_grid[1] + patch[1]
    figures = {"views": _view_rows(view, filters, photo, on_objects, config, token, index)}
    rows: list[tuple[Cell, ...]] = []
    lines: dict[str, list[NDArray[np.float64]]] = {}
    variants = list(_variants(photo, on_objects, config, layer.patch_grid))
    for done, variant in enumerate(variants, 1):
        other = look(view, variant.changed.photo, config.residual)
        found = compare(view, filters, clean, other, variant.kept, variant.sources, token, index)
        rows.append((variant.name, variant.ratio, *_label(clean, other), *map(float, found[:, -1])))
        if variant.name == "shuffle" or variant.ratio in _IN_FIGURE:
            lines.setdefault(f"{variant.name} {variant.ratio:g}", []).append(found)
        if progress:
            progress(done, len(variants))
    notes = (
        f"Against the clean picture, last layer, means over {config.seeds} draws; the figure has all layers, with "
        "the least and the most of the draws. Kept tokens: patches of which nothing was blacked out; shuffled ones are "
        "compared with those of the place they came from, if tiles are whole patches.",
        f"Views through filter {index} from patch {patch[0]},{patch[1]}; the rank correlation is that of its joint "
        "attention. '-': does not exist.",
        *display_notes(config, index, "the largest of all rows"),
    )
    if config.attention_from:
        notes = (*notes, f"All views of the picture have the attention of the row '{config.attention_from}'.")
    header = ("variant", "ratio, or tiles in a row", "label kept, %", "probability of the clean label, %", *QUANTITIES)
    if panels := _panels(lines, len(view.layers)):
        figures["figure"] = curves(panels, "layers passed", "likeness")
    table = Table(header, _means(rows), notes)
    return Result("occlude", {"table": table}, figures, describe_run("occlude", [view], None, config, SOURCE))


def compare(
    view: ModelView,
    filters: Filters,
    clean: Seen,
    other: Seen,
    kept: NDArray[np.bool_],
    sources: NDArray[np.int64] | None,
    token: int,
    index: int,
) -> NDArray[np.float64]:
    """The four quantities by layer, [4, L]; nan where one does not exist.

    Args:
        kept: [P], patches that are compared.
        sources: [P], for shuffled patches where each came from.
        token: the token whose attention and views are compared.
        index: filter of the views.
    """
    n_prefix, grid = view.layers[0].n_prefix, view.layers[0].patch_grid
    found = np.full((len(QUANTITIES), len(clean.tokens)), np.nan)
    before, after = clean.tokens[:, n_prefix:], other.tokens[:, n_prefix:]
    if sources is not None:
        before = before[:, sources]
    if kept.any():
        found[0] = functional.cosine_similarity(before[:, kept], after[:, kept], dim=-1).mean(1).numpy()
    if n_prefix:
        found[1] = functional.cosine_similarity(clean.tokens[:, 0], other.tokens[:, 0], dim=-1).numpy()
    mosaics = [mosaic(filters, seen.values, index) for seen in (clean, other)]
    for layer in range(len(clean.tokens)):
        weights = [seen.joint.views[layer + 1, token] for seen in (clean, other)]
        found[2, layer] = stats.spearmanr(*(w.numpy() for w in weights)).statistic
        first, second = (
            m * functional.interpolate(w.reshape(1, 1, *grid), m.shape[1:], mode="nearest")[0]
            for m, w in zip(mosaics, weights, strict=True)
        )
        found[3, layer] = float((second - first).norm() / first.norm().clamp_min(1e-12))
    return found


def _variants(photo: Photo, mask: Mask | None, config: OccludeConfig, grid: tuple[int, int]) -> Iterator[_Variant]:
    """Every mode at every ratio, and every shuffling, each with several seeds."""
    modes = _modes(mask)
    for seed in range(config.seed, config.seed + config.seeds):
        for mode in modes:
            for ratio in RATIOS:
                changed = occlude(photo, mask, mode, ratio, config.grid, seed)
                yield _Variant(mode, ratio, changed, None, ~owned_patches(changed.hidden, grid, 1e-6))
        for side in config.shuffles:
            changed = shuffle(photo, mask, side, seed)
            sources = patch_sources(changed, side, grid)
            kept = np.full(grid[0] * grid[1], sources is not None)
            yield _Variant("shuffle", side, changed, sources, kept)


def _modes(mask: Mask | None) -> tuple[str, ...]:
    """The modes that are possible with this mask."""
    return ("random",) if mask is None else MODES


def _view_rows(
    view: ModelView, filters: Filters, photo: Photo, mask: Mask | None, config: OccludeConfig, token: int, index: int
) -> Figure:
    """One row for each variant at the chosen ratio: the picture, then the view of one token at four levels."""
    blank = np.zeros(photo.shape[:2], np.int64)
    shown = {"clean": Changed(photo, blank, blank[0, :0], blank.astype(bool))}
    for mode in _modes(mask):
        shown[f"{mode} {config.ratio:g}"] = occlude(photo, mask, mode, config.ratio, config.grid, config.seed)
    if config.tiles is not None:
        shown["chosen tiles"] = occlude(photo, mask, "random", 0, config.grid, tiles=config.tiles)
    for side in dict.fromkeys(config.shuffles):
        shown[f"shuffle {side}"] = shuffle(photo, mask, side, config.seed)
    seen = {name: look(view, changed.photo, config.residual) for name, changed in shown.items()}
    mosaics = {name: mosaic(filters, s.values, index) for name, s in seen.items()}
    brightest = max(brightness(m, config.white) for m in mosaics.values())
    chosen, patches = config.attention_from, view.layers[0].patch_grid
    if chosen and chosen not in seen:
        raise ConfigError(f"attention_from must be one of the rows {', '.join(seen)}; got {chosen!r}.")
    grid = []
    for name, changed in shown.items():
        row = [(_caption(view, seen[name]), Image.fromarray(changed.photo))]
        for level in shown_levels(len(view.layers)):
            weights = seen[chosen or name].joint.views[level, token]
            values = global_view(mosaics[name], weights, patches, brightest, config.white, config.scale)
            caption = view_caption(level, weights, patches, config.white, config.scale)
            row.append((caption, pixels_to_image(values.numpy())))
        grid.append((name, row))
    return picture_grid(grid, 1.7, scale_bar(config.scale))


def _label(clean: Seen, other: Seen) -> tuple[float | None, float | None]:
    """Whether the label is that of the clean picture, and the probability of that, in percent."""
    if clean.probabilities is None or other.probabilities is None:
        return None, None
    best = int(clean.probabilities.argmax())
    return 100.0 * (int(other.probabilities.argmax()) == best), 100 * float(other.probabilities[best])


def _caption(view: ModelView, seen: Seen) -> str:
    if seen.probabilities is None or not view.labels:
        return ""
    best = int(seen.probabilities.argmax())
    return f"{view.labels[best].split(',')[0][:18]} {seen.probabilities[best]:.0%}"


def _means(rows: list[tuple[Cell, ...]]) -> tuple[tuple[Cell, ...], ...]:
    """The draws of one setting as one row."""
    settings: dict[tuple[Cell, ...], list[tuple[Cell, ...]]] = {}
    for row in rows:
        settings.setdefault(row[:2], []).append(row[2:])
    means = []
    for setting, draws in settings.items():
        values = np.array([[np.nan if x is None else x for x in draw] for draw in draws], dtype=float).mean(0)
        means.append((*setting, *(None if np.isnan(x) else float(x) for x in values)))
    return tuple(means)


def _panels(lines: dict[str, list[NDArray[np.float64]]], n_layers: int) -> dict[str, dict[str, tuple[Any, ...]]]:
    steps = np.arange(1, n_layers + 1)
    panels: dict[str, dict[str, tuple[Any, ...]]] = {}
    for q, quantity in enumerate(QUANTITIES):
        for name, draws in lines.items():
            values = np.stack(draws)[:, q]
            if not np.isnan(values).any():
                panels.setdefault(quantity, {})[name] = steps, values.mean(0), values.min(0), values.max(0)
    return panels
