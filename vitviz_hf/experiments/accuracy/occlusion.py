"""Accuracy while tiles are blacked out, anywhere, on the object or off it, and while they are shuffled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitviz_hf.experiments.accuracy.boxes import Boxes, box_mask, check_used, load_boxes
from vitviz_hf.experiments.accuracy.classifiers import check_classifiers
from vitviz_hf.experiments.accuracy.crops import to_crop
from vitviz_hf.experiments.accuracy.study import (
    Column,
    Flags,
    Labelled,
    Tally,
    accuracy,
    count_right,
    how_scored,
    right_pictures,
    what_scored,
)
from vitviz_hf.experiments.config import MODES, OcclusionConfig
from vitviz_hf.experiments.figures import Figure, curves
from vitviz_hf.experiments.perturb import Changed, Mask, Photo, mask_to_model, occlude, salient_tiles, shuffle
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import bytes_to_image, image_to_bytes
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
NO_TILES = "Pictures whose boxes are too small for a tile, left out of salient and non-salient"
ALL_TILES = "Pictures whose boxes are on all tiles, left out of non-salient"
_Change = Callable[[Photo, Mask, int], Changed]
_Way = tuple[str, float | None]
"""Name and ratio, or tiles in a row."""
_NATURAL: _Way = ("natural", None)


def run(
    views: Sequence[ModelView], source: Source, config: OcclusionConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Top-1 accuracy under each change.

    Tiles on and off the object need boxes; without them these rows are empty.

    Raises:
        NoClassifierError: a model has no trained classifier.
        DatasetError: no boxes where the options say, or none that starts before it ends.
    """
    check_classifiers(views)
    boxes_of = load_boxes(source, config) if config.boxes is not None else Boxes(None, config.box_format)
    changes = _changes(config)

    def prepare(example: Labelled) -> list[list[Tensor | None]]:
        boxes = boxes_of.find(example.row, example.image.size, example.remarks)
        inside = box_mask(example.image.size, boxes).astype(np.int64)
        seed = (example.row.key ^ config.seed) % 2**63
        forms, without = [], set[str]()
        for view in views:
            natural = to_crop(view, example.image)
            photo, mask = np.array(bytes_to_image(natural)), mask_to_model(view, inside)
            lacking = _lacking(mask, config.grid)
            without |= lacking if boxes else set()
            changed = [None if way in lacking else change(photo, mask, seed).photo for (way, _), change in changes]
            forms.append([natural, *(None if c is None else image_to_bytes(c) for c in changed)])
        example.remarks.extend([NO_TILES] if "salient" in without else [ALL_TILES] if without else [])
        return forms

    def score(examples: list[Labelled], prepared: list[list[list[Tensor | None]]]) -> Flags:
        return right_pictures(views, examples, prepared, config.batch)

    ways = [_NATURAL, *(way for way, _ in changes)]
    columns = [Column(*way, model=m) for m in range(len(views)) for way in ways]
    few = max(1, config.batch // 4)  # each picture waits as many
    tally = count_right(views, source, columns, prepare, score, few, config.limit, work, progress)
    check_used(source, tally.remarks)
    rows = tuple(_row(tally, view.model_id, m, way, config.seed) for m, view in enumerate(views) for way in ways)
    notes = (
        *how_scored(tally, source, views),
        *boxes_of.notes,
        f"Tiles: {config.grid} in a row of the model's input; salient ones have the box on more than 15 % of them. "
        "Relative: in % of the accuracy on the same images as they are; each image has its own draw.",
    )
    header = ("model", "change", "ratio, or tiles in a row", "images", "top-1, %", "relative, %")
    figures = {"figure": _figure(tally, views, config.seed)}
    return Result("occlusion", {"table": Table(header, rows, notes)}, figures, what_scored(views, tally.n_images))


def _changes(config: OcclusionConfig) -> list[tuple[_Way, _Change]]:
    occluded = [((mode, ratio), _occluding(mode, ratio, config.grid)) for mode in MODES for ratio in RATIOS]
    return [*occluded, *((("shuffle", side), _shuffling(side)) for side in dict.fromkeys(config.shuffles))]


def _lacking(mask: Mask, grid: int) -> set[str]:
    """The modes for which this mask has no tiles."""
    salient = salient_tiles(mask, grid)
    return {"salient", "non-salient"} if not salient.any() else {"non-salient"} if salient.all() else set()


def _row(tally: Tally, model_id: str, m: int, way: _Way, seed: int) -> tuple[Cell, ...]:
    flags, natural = tally.flags(*way, model=m), tally.flags(*_NATURAL, model=m)
    name, amount = way
    scored = int((flags <= 1).sum())
    shown = None if amount is None else f"{amount:g}"
    return (model_id, name, shown, scored, accuracy(flags, seed), accuracy(flags, seed, natural))


def _figure(tally: Tally, views: Sequence[ModelView], seed: int) -> Figure:
    panels: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {}
    for m, view in enumerate(views):
        for mode in MODES:
            found = [accuracy(tally.flags(mode, ratio, model=m), seed) for ratio in RATIOS]
            if all(found):
                value, low, high = (np.array([getattr(x, end) for x in found]) for end in ("value", "low", "high"))
                panels.setdefault(mode, {})[view.model_id] = (np.array(RATIOS), value, low, high)
    return curves(panels, "share of these tiles blacked out", "top-1 accuracy, %")


def _occluding(mode: str, ratio: float, grid: int) -> _Change:
    return lambda photo, mask, seed: occlude(photo, mask, mode, ratio, grid, seed)


def _shuffling(side: int) -> _Change:
    return lambda photo, mask, seed: shuffle(photo, mask, side, seed)
