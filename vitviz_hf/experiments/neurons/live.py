"""Views and groups of one picture, for a page that a visitor clicks through."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vitviz_hf.experiments.neurons.clusters import embed_tokens, group_tokens, instances_to_patches
from vitviz_hf.experiments.neurons.filters import FAINTEST, Filters, brightness, global_view, mosaic, view_caption
from vitviz_hf.experiments.neurons.group import block_outputs, majority
from vitviz_hf.experiments.neurons.occlude import Seen
from vitviz_hf.experiments.perturb import Mask, Photo
from vitviz_hf.images import pixels_to_image
from vitviz_hf.models.view import ModelView
from vitviz_hf.templates import load_template

_COLORS = ("#9a9a9a", "#e4572e", "#2f79b5", "#3a9d5d", "#8e5bb5", "#d99a00")


def views_by_level(
    view: ModelView,
    filters: Filters,
    photos: Mapping[str, Photo],
    seen: Mapping[str, Seen],
    index: int,
    token: int,
    scale: str,
) -> list[tuple[str, Image.Image]]:
    """For each named picture itself and the views of one token at every level, with captions.

    The mosaics are relative to the largest of all; for `scale` see `global_view`.

    Args:
        seen: what `look` gives for each.
    """
    mosaics = {name: mosaic(filters, seen[name].values, index) for name in photos}
    brightest, grid = max(brightness(m) for m in mosaics.values()), view.layers[0].patch_grid
    levels = range(len(view.layers) + 1) if len(photos) == 1 else _some_levels(len(view.layers))
    pictures = []
    for name, photo in photos.items():
        pictures.append((name, Image.fromarray(photo)))
        for level in levels:
            weights = seen[name].joint.views[level, token]
            drawn = global_view(mosaics[name], weights, grid, brightest, scale=scale)
            caption = view_caption(level, weights, grid, scale=scale)
            pictures.append((caption if len(photos) == 1 else f"{name}, {caption}", pixels_to_image(drawn.numpy())))
    if scale == "log":
        ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, None].repeat(3, 0).repeat(32, 1)
        pictures.append((f"weight of a patch, from {FAINTEST:g} to 1", pixels_to_image(ramp)))
    return pictures


def _some_levels(n_layers: int) -> list[int]:
    return sorted({round(n_layers * share) for share in (1 / 3, 2 / 3, 11 / 12)})


def split_objects(painted: NDArray[np.bool_], size: tuple[int, int]) -> Mask:
    """What was painted as instance numbers [H, W] at another size; areas that do not touch are different objects."""
    scaled = Image.fromarray(painted.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(ndimage.label(np.asarray(scaled))[0]).astype(np.int64)


def group_plot(view: ModelView, photo: Photo, mask: Mask, layer: int) -> str:
    """t-SNE of the patches of a picture as HTML; pointing at one shows the patch and its place.

    Args:
        photo: as the model sees it.
        mask: [H, W] instance numbers; their colors in the plot.
        layer: from 0; the outputs of this block.
    """
    grid, n = view.layers[0].patch_grid, view.layers[0].n_prefix
    tokens = block_outputs(view, photo)[layer]
    owners = majority(mask, grid)
    places = embed_tokens(tokens)[n:]
    places = (places - places.min(0)) / np.maximum(np.ptp(places, axis=0), 1e-9)
    points = [
        _point(photo, grid, k, (20 + 420 * x, 20 + 420 * y), int(owners[k])) for k, (x, y) in enumerate(places.tolist())
    ]
    text = f"Patches after layer {layer + 1} of {len(view.layers)}, colored by what you painted; gray: nothing."
    objects = instances_to_patches(mask, grid)
    if objects:
        names = [f"object {number}" for number in objects]
        found = group_tokens(tokens[n:], list(objects.values()), names).measures
        shown = ("purity", "silhouette", "in-object cosine", "between-object cosine")
        text += " " + ", ".join(f"{name} {found[name]:.2f}" for name in shown) + "."
    return load_template(__package__, "groups.html").render(text=text, points=points)


def _point(photo: Photo, grid: tuple[int, int], k: int, place: Sequence[float], owner: int) -> dict[str, Any]:
    row, col = divmod(k, grid[1])
    height, width = photo.shape[0] // grid[0], photo.shape[1] // grid[1]
    patch = Image.fromarray(photo[row * height : (row + 1) * height, col * width : (col + 1) * width])
    color = _COLORS[0] if owner == 0 else _COLORS[1 + (owner - 1) % (len(_COLORS) - 1)]
    return {"x": place[0], "y": place[1], "color": color, "patch": patch, "row": row, "col": col}
