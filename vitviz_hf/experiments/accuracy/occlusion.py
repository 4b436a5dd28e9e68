"""Accuracy while tiles are blacked out, anywhere, on the object or off it, and while they are shuffled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitviz_hf.config import parse_numbers
from vitviz_hf.experiments.accuracy.boxes import Boxes, box_mask, check_used, load_boxes
from vitviz_hf.experiments.accuracy.classifiers import check_classifiers
from vitviz_hf.experiments.accuracy.pixels import model_bytes
from vitviz_hf.experiments.accuracy.study import (
    Example,
    Flags,
    Progress,
    accuracy,
    count_right,
    how_scored,
    right_pictures,
)
from vitviz_hf.experiments.config import OcclusionConfig
from vitviz_hf.experiments.figures import curves
from vitviz_hf.experiments.perturb import MODES, Changed, Mask, Pixels, mask_to_model, occlude, salient_tiles, shuffle
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import bytes_to_image, image_to_bytes
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
NO_TILES = "Pictures whose boxes are too small for a tile, left out of salient and non-salient"
ALL_TILES = "Pictures whose boxes are on all tiles, left out of non-salient"
_Change = Callable[[Pixels, Mask, int], Changed]


def run(
    views: Sequence[ModelView], source: Source, config: OcclusionConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Top-1 accuracy under each change.

    Tiles on and off the object need boxes; without them these rows are empty.

    Raises:
        NoClassifierError: a model has no trained classifier.
        ConfigError: shufflings that are no numbers.
        DatasetError: no boxes where the options say, or none that starts before it ends.
    """
    check_classifiers(views)
    sides = parse_numbers(config.shuffles, "shuffles")
    boxes_of = load_boxes(source, config) if config.boxes else Boxes(None, config.box_format)
    manifest = describe_run("occlusion", views, source, config)
    changes: dict[tuple[str, float], _Change] = {
        (mode, ratio): _occluding(mode, ratio, config.grid) for mode in MODES for ratio in RATIOS
    }
    changes |= {("shuffle", side): _shuffling(side) for side in sides}

    def prepare(example: Example) -> list[list[Tensor | None]]:
        seed = (example.row.key ^ config.seed) % 2**63
        boxes = boxes_of.find(example.row, example.image.size, example.remarks)
        inside = box_mask(example.image.size, boxes).astype(np.int64)
        prepared, without = [], set[str]()
        for view in views:
            natural = model_bytes(view, example.image)
            pixels, mask = np.array(bytes_to_image(natural)), mask_to_model(view, inside)
            salient = salient_tiles(mask, config.grid)
            exist = {"salient": salient.any(), "non-salient": salient.any() and not salient.all()}
            without |= {mode for mode in exist if boxes and not exist[mode]}
            forms: list[Tensor | None] = [natural]
            for (mode, _), change in changes.items():
                changed = change(pixels, mask, seed).pixels if exist.get(mode, True) else None
                forms.append(None if changed is None else image_to_bytes(changed))
            prepared.append(forms)
        example.remarks.extend([NO_TILES] if "salient" in without else [ALL_TILES] if without else [])
        return prepared

    def score(examples: list[Example], prepared: list[list[list[Tensor | None]]]) -> Flags:
        return right_pictures(views, examples, prepared, config.batch)

    ways = [("natural", 0.0), *changes]
    names = [f"{m} {way} {amount:g}" for m in range(len(views)) for way, amount in ways]
    few = max(1, config.batch // 4)  # each picture waits as many
    tally = count_right(views, source, names, prepare, score, few, config.limit, work, progress)
    check_used(source, tally.remarks)
    rows: list[tuple[Cell, ...]] = []
    panels: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {}
    for m, view in enumerate(views):
        natural = tally.flags(f"{m} natural 0")
        for way, amount in ways:
            flags = tally.flags(f"{m} {way} {amount:g}")
            absolute, relative = accuracy(flags, config.seed), accuracy(flags, config.seed, natural)
            scored = int((flags <= 1).sum())
            rows.append((view.model_id, way, f"{amount:g}" if amount else None, scored, absolute, relative))
        for mode in MODES:
            found = [accuracy(tally.flags(f"{m} {mode} {r:g}"), config.seed) for r in RATIOS]
            if all(found):
                value, low, high = (np.array([getattr(x, end) for x in found]) for end in ("value", "low", "high"))
                panels.setdefault(mode, {})[view.model_id] = (np.array(RATIOS), value, low, high)
    notes = (
        *how_scored(tally, source, views),
        *boxes_of.notes,
        f"Tiles: {config.grid} in a row of the model's input; salient ones have the box on more than 15 % of them. "
        "Relative: in % of the accuracy on the same images as they are; each image has its own draw.",
    )
    header = ("model", "change", "ratio, or tiles in a row", "images", "top-1, %", "relative, %")
    figures = {"figure": curves(panels, "share of these tiles blacked out", "top-1 accuracy, %")}
    return Result("occlusion", {"table": Table(header, tuple(rows), notes)}, figures, manifest)


def _occluding(mode: str, ratio: float, grid: int) -> _Change:
    return lambda pixels, mask, seed: occlude(pixels, mask, mode, ratio, grid, seed)


def _shuffling(side: int) -> _Change:
    return lambda pixels, mask, seed: shuffle(pixels, mask, side, seed)
