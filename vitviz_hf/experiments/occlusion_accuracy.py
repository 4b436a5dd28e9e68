"""Accuracy while tiles are blacked out, anywhere, on the object or off it, and while they are shuffled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitviz_hf.config import OcclusionConfig
from vitviz_hf.experiments.accuracy import (
    Example,
    Flags,
    Progress,
    accuracy,
    check_classifiers,
    count_right,
    how_scored,
    right_pictures,
)
from vitviz_hf.experiments.background import Box, box_mask
from vitviz_hf.experiments.pixels import model_bytes
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.experiments.views import parse_numbers
from vitviz_hf.figures import curves
from vitviz_hf.model import ModelView
from vitviz_hf.occlusion import MODES, Changed, Mask, Pixels, mask_to_model, occlude, shuffle
from vitviz_hf.stream import Source
from vitviz_hf.tables import Cell, Table

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
_Change = Callable[[Pixels, Mask, int], Changed]


def run(
    views: Sequence[ModelView], source: Source, config: OcclusionConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Top-1 accuracy under each change.

    Tiles on and off the object need boxes, which are the dataset's own; without them these rows are empty.

    Raises:
        NoClassifierError: a model has no trained classifier.
        ConfigError: shufflings that are no numbers.
    """
    check_classifiers(views)
    sides = parse_numbers(config.shuffles, "shuffles")
    manifest = describe_run("occlusion", views, source, config)
    changes: dict[tuple[str, float], _Change] = {
        (mode, ratio): _occluding(mode, ratio, config.grid) for mode in MODES for ratio in RATIOS
    }
    changes |= {("shuffle", side): _shuffling(side) for side in sides}

    def prepare(example: Example) -> list[list[Tensor | None]]:
        seed = (example.row.key ^ config.seed) % 2**63
        boxes = [Box((x0, y0, x1, y1)) for x0, y0, x1, y1 in example.row.boxes]
        prepared = []
        for view in views:
            natural = model_bytes(view, example.image)
            pixels, mask = natural.permute(1, 2, 0).numpy(), np.zeros(view.input_size, np.int64)
            if boxes:
                mask = mask_to_model(view, box_mask(example.image.size, boxes).astype(np.int64))
            forms: list[Tensor | None] = [natural]
            for (mode, _), change in changes.items():
                possible = mode in ("random", "shuffle") or bool(mask.any())
                changed = change(pixels, mask, seed).pixels if possible else None
                forms.append(None if changed is None else torch.from_numpy(changed).permute(2, 0, 1))
            prepared.append(forms)
        return prepared

    def score(examples: list[Example], prepared: list[list[list[Tensor | None]]]) -> Flags:
        return right_pictures(views, examples, prepared, config.batch)

    ways = [("natural", 0.0), *changes]
    names = [f"{m} {way} {amount:g}" for m in range(len(views)) for way, amount in ways]
    few = max(1, config.batch // 4)  # each picture waits as many
    tally = count_right(views, source, names, prepare, score, few, config.limit, work, progress)
    rows: list[tuple[Cell, ...]] = []
    panels: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {}
    for m, view in enumerate(views):
        natural = tally.flags(f"{m} natural 0")
        for way, amount in ways:
            flags = tally.flags(f"{m} {way} {amount:g}")
            absolute, relative = accuracy(flags, config.seed), accuracy(flags, config.seed, natural)
            rows.append((view.model_id, way, f"{amount:g}" if amount else None, absolute, relative))
        for mode in MODES:
            found = [accuracy(tally.flags(f"{m} {mode} {r:g}"), config.seed) for r in RATIOS]
            if all(found):
                value, low, high = (np.array([getattr(x, end) for x in found]) for end in ("value", "low", "high"))
                panels.setdefault(mode, {})[view.model_id] = (np.array(RATIOS), value, low, high)
    notes = (
        *how_scored(tally, source, views),
        f"Tiles: {config.grid} in a row of the model's input; salient ones have the box on more than 15 % of them. "
        "Relative: in % of the accuracy on the natural images; each image has its own draw.",
    )
    header = ("model", "change", "ratio, or tiles in a row", "top-1, %", "relative, %")
    figures = {"figure": curves(panels, "share of these tiles blacked out", "top-1 accuracy, %")}
    return Result("occlusion", {"table": Table(header, tuple(rows), notes)}, figures, manifest)


def _occluding(mode: str, ratio: float, grid: int) -> _Change:
    return lambda pixels, mask, seed: occlude(pixels, mask, mode, ratio, grid, seed)


def _shuffling(side: int) -> _Change:
    return lambda pixels, mask, seed: shuffle(pixels, mask, side, seed)
