"""Accuracy on the foreground and on the background alone, by bounding boxes (section 5, Tables 2 and 3, Fig. 9b)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from vitviz_hf.errors import ImageError
from vitviz_hf.experiments.accuracy.boxes import Box, Boxes, box_mask, check_used, clipped, load_boxes
from vitviz_hf.experiments.accuracy.classifiers import check_classifiers
from vitviz_hf.experiments.accuracy.crops import to_crop
from vitviz_hf.experiments.accuracy.paper import WITH_BOXES
from vitviz_hf.experiments.accuracy.study import (
    Column,
    Flags,
    Labelled,
    Tally,
    accuracy,
    count_right,
    how_scored,
    paired_difference,
    right_pictures,
    what_scored,
)
from vitviz_hf.experiments.config import BackgroundConfig
from vitviz_hf.experiments.figures import Figure, bars, picture_grid
from vitviz_hf.experiments.masks import read_mask
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Interval, Table, paper_and_ours
from vitviz_hf.images import open_image
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Row, Source

_WAYS = ("full", "foreground", "background")
_FULL, _AREA, _BLACK = ("full", None), Column("area", model=None), "black boxes"
# Name -> what is hidden, and what is put there; the first is the paper's.
FILLS = {
    _BLACK: ("boxes", "black"),
    "mean-colored boxes": ("boxes", "mean color"),
    "blurred boxes": ("boxes", "blurred"),
    "black random boxes": ("random boxes", "black"),
    "black masks": ("masks", "black"),
}
_BINS = (25, 50, 75, 100)
_VOID = 200
_SHOWN = 6
_TOP = (5, 1)
# Plain accuracy on full images, and foreground and background relative to it; Tables 2 and 3, top-5 then top-1.
PAPER = {
    "ViT-B/32": ((98.44, 93.91, 28.10), (89.25, 91.53, 15.04)),
    "ViT-L/16": ((99.57, 96.18, 33.69), (95.00, 93.88, 19.08)),
    "ViT-L/32": ((99.32, 93.89, 31.07), (94.64, 90.63, 17.67)),
    "ViT-B/16": ((99.22, 95.64, 31.59), (92.37, 93.70, 16.98)),
    "ResNet-50": ((98.00, 89.69, 18.69), (87.67, 85.59, 9.25)),
    "ResNet-152": ((98.85, 90.74, 19.68), (82.92, 82.03, 8.24)),
    "MobileNetV2": ((96.09, 86.84, 15.94), (83.77, 85.58, 8.75)),
    "DenseNet-121": ((96.55, 89.58, 17.53), (90.58, 86.53, 9.72)),
}
PERMUTED = (
    "In the paper's Table 3 (top-1) the rows of the last three CNNs are permuted: its log has, not normalized, "
    "MobileNetV2 82.92 / 68.03 / 6.83, DenseNet-121 83.77 / 71.70 / 7.34 and ResNet-152 90.58 / 78.39 / 8.81."
)


def run(
    views: Sequence[ModelView], source: Source, config: BackgroundConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Accuracy on full, foreground and background images, plain and relative to the full ones; with controls.

    Raises:
        NoClassifierError: a model has no trained classifier.
        DatasetError: there are no boxes.
    """
    check_classifiers(views)
    boxes_of = load_boxes(source, config)
    controls = list(FILLS) if config.controls else [_BLACK]
    forms = [_FULL, *((way, name) for name in controls for way in _WAYS[1:])]

    def prepare(example: Labelled) -> tuple[list[list[Tensor | None]], int] | str:
        boxes = boxes_of.find(example.row, example.image.size, example.remarks)
        if not boxes:
            return "it has no usable box of its class"
        pictures = [example.image, *_pictures(example, boxes, controls, config.seed)]
        inside = box_mask(example.image.size, boxes)
        area = 100 if inside.all() else min(99, int(100 * inside.mean()))
        return [[None if p is None else to_crop(view, p) for p in pictures] for view in views], area

    def score(examples: list[Labelled], prepared: list[tuple[list[list[Tensor | None]], int]]) -> Flags:
        areas = np.array([[area] for _, area in prepared], np.uint8)
        flags = right_pictures(views, examples, [pictures for pictures, _ in prepared], config.batch, _TOP)
        return np.concatenate([flags, areas], 1)

    columns = [Column(*form, k, m) for m in range(len(views)) for form in forms for k in _TOP]
    few = max(1, config.batch // len(forms))
    tally = count_right(views, source, [*columns, _AREA], prepare, score, few, config.limit, work, progress)
    check_used(source, tally.remarks)
    notes = (
        *how_scored(tally, source, views),
        *boxes_of.notes,
        "Boxes are blacked out (background), or all but the boxes (foreground), in the original picture, before resize "
        "and crop; only boxes of the true class, with their last row and column, which the paper's code leaves out.",
    )
    tables, groups = _main_tables(tally, views, source, config.seed, notes)
    tables["table-area"] = _by_area(tally, views, config.seed, notes)
    if config.controls:
        tables["table-controls"] = _controls(tally, views, config.seed, notes)
    if len(views) > 1:
        tables["table-differences"] = _differences(tally, views, config.seed, notes)
    figures = {"figure": bars(groups, "% of the accuracy on full images"), "masked-images": _examples(source, boxes_of)}
    return Result("background", tables, figures, what_scored(views, tally.n_images))


def _flags(tally: Tally, m: int, way: str, k: int, control: str = _BLACK) -> Flags:
    return tally.flags(way, None if way == "full" else control, k, m)


def _main_tables(
    tally: Tally, views: Sequence[ModelView], source: Source, seed: int, notes: tuple[str, ...]
) -> tuple[dict[str, Table], dict[str, dict[str, tuple[float, float, float]]]]:
    pairs: list[tuple[list[Cell], list[Cell]]] = []
    plain: list[tuple[Cell, ...]] = []
    groups = {}
    some = tally.flags(*_AREA) < 100
    for m, view in enumerate(views):
        ours: list[Cell] = []
        absolute: list[Cell] = []
        visible: list[Cell] = []
        for k in _TOP:
            flags = [_flags(tally, m, way, k) for way in _WAYS]
            ours += [accuracy(flags[0], seed), *(accuracy(f, seed, flags[0]) for f in flags[1:])]
            absolute += [accuracy(f, seed) for f in flags]
            visible.append(accuracy(flags[2][some], seed, flags[0][some]))
        known = PAPER.get(WITH_BOXES.model(view, source, tally.n_images))
        printed = [x for three in known for x in three] if known else [None] * 6
        pairs.append(([*printed, None, None], [*ours, *visible]))
        plain.append((view.model_id, *absolute))
        groups[view.model_id] = {
            f"{way}, top-1": (x.value, x.low, x.high)
            for way, x in zip(_WAYS[1:], ours[-2:], strict=True)
            if isinstance(x, Interval)
        }
    quantities = [f"top-{k} {way}" for k in _TOP for way in _WAYS]
    shown = [f"top-{k} background, only images with some" for k in _TOP]
    header, cells = paper_and_ours([*quantities, *shown], pairs)
    relative = tuple((view.model_id, *row) for view, row in zip(views, cells, strict=True))
    first = (
        "Full: accuracy in %. Foreground and background: in % of it, on the same images. As in the paper, images whose "
        f"boxes cover all of them count, with a black background; {int(some.sum()):,} have some background."
    )
    permuted = (PERMUTED,) if any(paper[0] is not None for paper, _ in pairs) else ()
    told = WITH_BOXES.notes(views, source, tally.n_images)
    return {
        "table": Table(("model", *header), relative, (first, *notes, *permuted, *told)),
        "table-plain": Table(("model", *quantities), tuple(plain), ("Accuracy in %, not normalized.", *notes)),
    }, groups


def _controls(tally: Tally, views: Sequence[ModelView], seed: int, notes: tuple[str, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for m, view in enumerate(views):
        for control in FILLS:
            found = [
                (_flags(tally, m, way, k, control), _flags(tally, m, "full", k)) for k in _TOP for way in _WAYS[1:]
            ]
            n = int((found[-1][0] <= 1).sum())
            if n:
                rows.append((view.model_id, control, n, *(accuracy(part, seed, full) for part, full in found)))
    header = ("model", "what is hidden", "images", *(f"top-{k} {way}" for k in _TOP for way in _WAYS[1:]))
    first = (
        "In % of the accuracy on the full images, on the same images. Mean color: of what is left to see. Blurred: the "
        "picture itself, Gaussian of a tenth of its shorter side. Random boxes: of the same sizes, at random places of "
        "the same image. Masks: of the objects of the true class, where the dataset has masks."
    )
    return Table(header, tuple(rows), (first, *notes))


def _by_area(tally: Tally, views: Sequence[ModelView], seed: int, notes: tuple[str, ...]) -> Table:
    areas = tally.flags(*_AREA)
    rows: list[tuple[Cell, ...]] = []
    for m, view in enumerate(views):
        full, *parts = (_flags(tally, m, way, 1) for way in _WAYS)
        for low, high in zip((0, *_BINS), _BINS, strict=False):
            own = (areas >= low) & ((areas < high) | (high == 100))
            cells = [accuracy(full[own], seed), *(accuracy(part[own], seed, full[own]) for part in parts)]
            rows.append((view.model_id, f"{low} to {high} %", int((full[own] <= 1).sum()), *cells))
    header = ("model", "share of the boxes", "images", *(f"top-1 {way}" for way in _WAYS))
    first = "By the share of the picture that the boxes cover. Full: accuracy in %; the others: in % of it."
    return Table(header, tuple(rows), (first, *notes))


def _differences(tally: Tally, views: Sequence[ModelView], seed: int, notes: tuple[str, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for m, view in enumerate(views[1:], 1):
        cells, n = [], 0
        for k in _TOP:
            for way in _WAYS:
                pair = [
                    (_flags(tally, i, way, k), None if way == "full" else _flags(tally, i, "full", k)) for i in (0, m)
                ]
                gap, n = paired_difference(pair[0], pair[1], seed)
                cells.append(gap)
        rows.append((view.model_id, views[0].model_id, n, *cells))
    header = ("model", "less model", "images", *(f"top-{k} {way}" for k in _TOP for way in _WAYS))
    first = (
        "Differences of the numbers of the main table between models, in percentage points, on the images that both "
        "know; each bootstrap draws the same images for both."
    )
    return Table(header, tuple(rows), (first, *notes))


def _pictures(
    example: Labelled, boxes: Sequence[Box], controls: Sequence[str], seed: int
) -> Iterator[Image.Image | None]:
    """Foreground and background under each control."""
    size = example.image.size
    rng = np.random.default_rng(example.row.key ^ seed)
    for control in controls:
        region, fill = FILLS[control]
        inside = (
            box_mask(size, boxes)
            if region == "boxes"
            else box_mask(size, random_boxes(boxes, size, rng))
            if region == "random boxes"
            else class_mask(example.row, size)
        )
        for hidden in (None, None) if inside is None else (~inside, inside):
            yield None if hidden is None else hide(example.image, hidden, fill)


def hide(image: Image.Image, hidden: NDArray[np.bool_], fill: str = "black") -> Image.Image:
    """The picture with something else where `hidden` [H, W] is true.

    Args:
        fill: `black`, `mean color` of what is not hidden (black if all is), or `blurred`: the picture itself, under a
            Gaussian of a tenth of its shorter side.
    """
    photo = np.array(image)
    if fill == "blurred":
        other = np.asarray(image.filter(ImageFilter.GaussianBlur(min(image.size) / 10)))[hidden]
    elif fill == "mean color" and not hidden.all():
        other = photo[~hidden].mean(0).round().astype(np.uint8)
    else:
        other = np.zeros(3, np.uint8)
    photo[hidden] = other
    return Image.fromarray(photo)


def random_boxes(boxes: Sequence[Box], size: tuple[int, int], rng: np.random.Generator) -> list[Box]:
    """The visible parts of these, all moved by one random shift within a picture of (width, height).

    So that they cover as much, however they overlap.
    """
    corners = np.array([clipped(box, size) for box in boxes])
    first, last = corners[:, :2].min(0), corners[:, 2:].max(0)
    left, top = int(rng.integers(0, size[0] - (last - first)[0])), int(rng.integers(0, size[1] - (last - first)[1]))
    moved = corners + np.tile(np.array([left, top]) - first, 2)
    return [Box((float(a), float(b), float(c), float(d))) for a, b, c, d in moved.tolist()]


def class_mask(row: Row, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """[H, W], true on the objects of a row's class, or on all if their names do not tell; None without a mask."""
    try:
        mask = read_mask(row.mask) if row.mask else None
    except ImageError:
        return None
    if mask is None or mask.shape != size[::-1]:
        return None
    objects = (mask > 0) & (mask <= _VOID)
    own = [i for i, name in enumerate(row.mask_names, 1) if name.casefold() == row.label.casefold()]
    inside = np.isin(mask, own) if own else objects
    return np.asarray(inside) if inside.any() else None


def _examples(source: Source, boxes_of: Boxes) -> Figure:
    rows = []
    for row, _ in source.read(0, 1, None):
        try:
            image = open_image(row.data)
        except ImageError:
            continue
        if boxes := boxes_of.find(row, image.size, []):
            inside = box_mask(image.size, boxes)
            pictures = (image, hide(image, ~inside), hide(image, inside))
            rows.append(list(zip(_WAYS, pictures, strict=True)))
        if len(rows) == _SHOWN:
            break
    turned = [("", [row[i] for row in rows]) for i in range(len(_WAYS))]
    return picture_grid(turned)
