"""Pictures with tiles blacked out or shuffled, together with their masks, and the geometry between picture and model.

Source: "Vision Transformer Visualization: What Neurons Tell and How Neurons Behave?", arXiv:2210.07646.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import MODES
from vitviz_hf.images import image_to_pixels, pixels_to_image
from vitviz_hf.models.loading import sized_pixels
from vitviz_hf.models.view import ModelView, to_pixels

Photo = NDArray[np.uint8]
"""A picture as its colors, [H, W, 3]."""
Mask = NDArray[np.int64]
_OBJECT_SHARE = 0.15
_VOID = 200


@dataclass(frozen=True, slots=True)
class Changed:
    """A changed picture with its mask."""

    photo: Photo
    """[H, W, 3]"""
    mask: Mask
    """[H, W]"""
    tiles: NDArray[np.int64]
    """Blacked out tiles, row by row from 0; or for each tile the one that came there."""
    hidden: NDArray[np.bool_]
    """[H, W], true where something was blacked out."""


def to_photo(view: ModelView, image: Image.Image) -> Photo:
    """What a model sees of a picture."""
    return np.array(pixels_to_image(to_pixels(view, image)[0]))


def from_photo(view: ModelView, photo: Photo) -> Tensor:
    """The model's `pixels` [1, 3, H, W] of what it sees."""
    return image_to_pixels(photo)[None].to(view.device)


def occlude(
    photo: Photo,
    mask: Mask | None,
    mode: str,
    ratio: float = 0.2,
    grid: int = 14,
    seed: int = 0,
    tiles: Sequence[int] | None = None,
) -> Changed:
    """Black out tiles of a picture, and set its mask to 0 there.

    Args:
        photo: [H, W, 3].
        mask: [H, W] instance numbers, 0 is background; needed for salient and non-salient.
        mode: `random` takes all tiles, `salient` those with an object on over 15 % of them, `non-salient` the others.
        ratio: share of these tiles.
        grid: tiles in a row and in a column; pixels that they do not cover stay.
        tiles: these instead.

    Raises:
        ConfigError: an unknown mode, a ratio or tile that does not exist, or no mask where one is needed.
    """
    if not 1 <= grid <= min(photo.shape[:2]):
        raise ConfigError(f"grid must be from 1 to {min(photo.shape[:2])}; got {grid}.")
    height, width = photo.shape[0] // grid, photo.shape[1] // grid
    mask = np.zeros(photo.shape[:2], np.int64) if mask is None else mask
    if tiles is not None:
        chosen = np.array(sorted(set(tiles)), dtype=np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < grid * grid):
            raise ConfigError(f"tiles are numbered 0 to {grid * grid - 1}; got {chosen.min()} to {chosen.max()}.")
    else:
        if mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        if not 0 <= ratio <= 1:
            raise ConfigError(f"ratio must be a number from 0 to 1; got {ratio!r}.")
        salient = salient_tiles(mask, grid)
        if mode != "random" and not salient.any():
            raise ConfigError(f"mode {mode} needs a mask with an object on it.")
        pool = np.flatnonzero({"random": np.ones_like(salient), "salient": salient, "non-salient": ~salient}[mode])
        chosen = np.random.default_rng(seed).permutation(pool)[: int(ratio * len(pool))]
    photo, mask, hidden = photo.copy(), mask.copy(), np.zeros(photo.shape[:2], dtype=bool)
    for row, col in zip(*np.divmod(chosen, grid), strict=True):
        where = slice(row * height, (row + 1) * height), slice(col * width, (col + 1) * width)
        photo[where], mask[where], hidden[where] = 0, 0, True
    return Changed(photo, mask, np.sort(chosen), hidden)


def salient_tiles(mask: Mask, grid: int) -> NDArray[np.bool_]:
    """Tiles with an object on more than 15 % of them, [grid * grid]."""
    height, width = mask.shape[0] // grid, mask.shape[1] // grid
    inside = (mask[: height * grid, : width * grid] > 0).reshape(grid, height, grid, width)
    return np.asarray(inside.mean((1, 3)).ravel() > _OBJECT_SHARE)


def shuffle(photo: Photo, mask: Mask | None, side: int, seed: int = 0) -> Changed:
    """Cut a picture into side x side tiles and put them in a random order, its mask with it.

    A strip that the tiles do not cover becomes black.

    Raises:
        ConfigError: more tiles than pixels, or less than one.
    """
    if not 1 <= side <= min(photo.shape[:2]):
        raise ConfigError(f"the side must be from 1 to {min(photo.shape[:2])} tiles; got {side}.")
    order = np.random.default_rng(seed).permutation(side * side)
    mask = np.zeros(photo.shape[:2], np.int64) if mask is None else mask
    moved = _reorder(np.ones(mask.shape, dtype=bool), side, order)
    return Changed(_reorder(photo, side, order), _reorder(mask, side, order), order, ~moved)


def patch_sources(changed: Changed, side: int, grid: tuple[int, int]) -> NDArray[np.int64] | None:
    """For each patch of a shuffled picture where it came from, [P]; None if the tiles are no whole patches."""
    height, width = changed.mask.shape
    if height % side or width % side or grid[0] % side or grid[1] % side:
        return None
    return _reorder(np.arange(grid[0] * grid[1]).reshape(grid), side, changed.tiles).ravel()


def owned_patches(inside: NDArray[np.bool_], grid: tuple[int, int], cover: float = 0.4) -> NDArray[np.bool_]:
    """Patches that something covers at least `cover` of, [P].

    Args:
        inside: [H, W]
    """
    rows, cols = inside.shape[0] // grid[0], inside.shape[1] // grid[1]
    blocks = inside[: rows * grid[0], : cols * grid[1]].reshape(grid[0], rows, grid[1], cols)
    return np.asarray(blocks.mean((1, 3)).ravel() >= cover - 1e-9)


def _reorder(values: NDArray[Any], side: int, order: NDArray[np.int64]) -> NDArray[Any]:
    height, width = values.shape[0] // side, values.shape[1] // side
    moved = np.zeros_like(values)
    for target, source in enumerate(order):
        (row, col), (old_row, old_col) = divmod(target, side), divmod(int(source), side)
        moved[row * height : (row + 1) * height, col * width : (col + 1) * width] = values[
            old_row * height : (old_row + 1) * height, old_col * width : (old_col + 1) * width
        ]
    return moved


def mask_to_model(view: ModelView, mask: Mask) -> Mask:
    """A mask of a picture [h, w], resized and cropped as the model's preprocessing does with the picture, [H, W].

    The geometry is measured: two ramps go through the preprocessing, and tell where each row and column came from.
    Values above 200 (void) become 0.
    """
    height, width = mask.shape
    rows, cols = origins(view, width, height)
    picked = mask[rows.clip(0, height - 1)[:, None], cols.clip(0, width - 1)[None]]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))[None]
    return np.where(inside & (picked <= _VOID), picked, 0)


def origins(view: ModelView, width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row and column of the model's input the one of the picture that it came from."""
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0] = np.linspace(0, 255, height).round()[:, None]
    ramps[..., 1] = np.linspace(0, 255, width).round()[None]
    ramps[..., 2] = 255  # 0 where the preprocessing adds a border
    down, across, there = sized_pixels(view.preprocess, Image.fromarray(ramps), view.input_size).numpy()
    rows, cols = (np.maximum(there.sum(axis), 1e-6) for axis in (1, 0))
    return _line(down.sum(1) / rows, height), _line(across.sum(0) / cols, width)


def _line(ramp: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Positions along the original side of n pixels, as nearest-neighbor scaling takes them.

    They are on a straight line through the ramp, its flat ends left out. The ramp has 256 steps only; that a side is
    scaled to a whole number of pixels, and cut at a whole one, makes the line exact.
    """
    places = np.arange(len(ramp))
    if n == 1:
        return np.zeros_like(places)
    inner = (ramp > 0.02) & (ramp < 0.98)
    use = inner if inner.sum() >= 2 else np.ones_like(inner)
    slope = np.polyfit(places[use], ramp[use] * (n - 1), 1)[0]
    side = max(round(n / slope), 1)
    offset = (ramp[use].mean() * (n - 1) + 0.5) * side / n - 0.5 - places[use].mean()
    if abs(offset - round(offset)) < 0.2:
        offset = round(offset)
    return np.asarray(np.floor((places + offset + 0.5) * n / side + 1e-9).astype(np.int64))
