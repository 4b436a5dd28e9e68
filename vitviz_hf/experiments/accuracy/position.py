"""Accuracy without position embeddings, and with the tiles of the picture shuffled (released notes)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.accuracy.classifiers import check_classifiers
from vitviz_hf.experiments.accuracy.crops import crop_logits, to_crop
from vitviz_hf.experiments.accuracy.paper import VALIDATION
from vitviz_hf.experiments.accuracy.study import (
    UNKNOWN,
    Column,
    Flags,
    Labelled,
    accuracy,
    count_right,
    how_scored,
    is_right,
    what_scored,
)
from vitviz_hf.experiments.config import PositionConfig
from vitviz_hf.experiments.figures import bars
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Interval, Table, paper_and_ours
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.tokens import without_positions
from vitviz_hf.stream import Source

_WAYS = ("natural", "positions zeroed", "tiles shuffled")
_PAPER_TILE = 32
# Top-1 in %: natural, positions zeroed, tiles of 32 px shuffled; from the released notes.
PAPER = {"ViT-B/16": (84.0, 22.0, 33.0), "ViT-B/32": (81.0, 58.0, 54.0)}


def run(
    views: Sequence[ModelView], source: Source, config: PositionConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Top-1 accuracy as it is, with position embeddings set to zero, and with shuffled tiles.

    Raises:
        NoClassifierError: a model has no trained classifier.
        ConfigError: tiles that do not divide the input.
    """
    check_classifiers(views)
    tiles = [tile_size(view, config.tile) for view in views]
    blind = [_without(view) for view in views]

    def prepare(example: Labelled) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for view, tile in zip(views, tiles, strict=True):
            natural = to_crop(view, example.image)
            pairs.append((natural, shuffle_tiles(natural, tile, example.row.key ^ config.seed)))
        return pairs

    def score(examples: list[Labelled], prepared: list[list[tuple[Tensor, Tensor]]]) -> Flags:
        flags = []
        for m, (view, zeroed) in enumerate(zip(views, blind, strict=True)):
            targets = [e.targets[m] for e in examples]
            natural, shuffled = (torch.stack([p[m][i] for p in prepared]) for i in (0, 1))
            flags.append(is_right(crop_logits(view, natural, config.batch), targets, 1))
            if zeroed is None:
                flags.append(np.full(len(targets), UNKNOWN, np.uint8))
            else:
                flags.append(is_right(crop_logits(zeroed, natural, config.batch), targets, 1))
            flags.append(is_right(crop_logits(view, shuffled, config.batch), targets, 1))
        return np.stack(flags, 1)

    columns = [Column(way, model=m) for m in range(len(views)) for way in _WAYS]
    tally = count_right(views, source, columns, prepare, score, config.batch, config.limit, work, progress)
    pairs, groups = [], {}
    for m, (view, tile) in enumerate(zip(views, tiles, strict=True)):
        ours = [accuracy(tally.flags(way, model=m), config.seed) for way in _WAYS]
        natural, zeroed, shuffled = PAPER.get(VALIDATION.model(view, source, tally.n_images), (None,) * 3)
        pairs.append(((natural, zeroed, shuffled if tile == _PAPER_TILE else None), ours))
        groups[view.model_id] = {
            way: (x.value, x.low, x.high) for way, x in zip(_WAYS, ours, strict=True) if isinstance(x, Interval)
        }
    header, cells = paper_and_ours(_WAYS, pairs)
    rows = [(v.model_id, f"{tile} px", *row) for v, tile, row in zip(views, tiles, cells, strict=True)]
    notes = [
        *how_scored(tally, source, views),
        "Top-1 accuracy in %. Tiles are shuffled after resize and crop, each image "
        "in its own order. '-' under zeroed: the model has no learned position embeddings.",
        *VALIDATION.notes(views, source, tally.n_images),
    ]
    table = Table(("model", "tile", *header), tuple(rows), tuple(notes))
    told = {"tiles": tiles, **what_scored(views, tally.n_images)}
    return Result("position", {"table": table}, {"figure": bars(groups, "top-1 accuracy, %")}, told)


def tile_size(view: ModelView, wanted: int | None = None) -> int:
    """Side of the tiles: as wanted, or the divisor of the input nearest to 32, of whole patches if possible.

    Raises:
        ConfigError: the wanted one does not divide the input.
    """
    height, width = view.input_size
    fitting = [t for t in range(2, min(height, width)) if height % t == 0 and width % t == 0]
    if wanted is not None:
        if wanted not in fitting:
            raise ConfigError(
                f"tiles of {wanted} px do not divide the input of {view.model_id!r}, {height}x{width}; "
                f"possible are {', '.join(map(str, fitting))}."
            )
        return wanted
    patch = height // view.layers[0].patch_grid[0] if view.layers else 1
    whole = [t for t in fitting if t % patch == 0] or fitting
    if not whole:
        raise ConfigError(f"the input of {view.model_id!r}, {height}x{width}, cannot be cut into tiles.")
    return min(whole, key=lambda t: (abs(t - 32), t))


def shuffle_tiles(crop: Tensor, tile: int, seed: int) -> Tensor:
    """[3, H, W] with its square tiles in a random order."""
    channels, height, width = crop.shape
    rows, cols = height // tile, width // tile
    tiles = crop.reshape(channels, rows, tile, cols, tile).permute(1, 3, 0, 2, 4).reshape(rows * cols, -1)
    tiles = tiles[torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))]
    return tiles.reshape(rows, cols, channels, tile, tile).permute(2, 0, 3, 1, 4).reshape(channels, height, width)


def _without(view: ModelView) -> ModelView | None:
    try:
        return without_positions(view)
    except ConfigError:
        return None
