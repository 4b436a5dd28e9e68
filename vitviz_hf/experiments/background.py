"""Accuracy on the foreground and on the background alone, by bounding boxes (section 5, Tables 2 and 3, Fig. 9b)."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.config import BackgroundConfig
from vitviz_hf.errors import DatasetError, ImageError, first_line
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
from vitviz_hf.experiments.pixels import model_bytes
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.figures import Figure, bars, picture_grid
from vitviz_hf.images import open_image
from vitviz_hf.model import ModelView
from vitviz_hf.stream import Row, Source, open_source
from vitviz_hf.tables import Cell, Interval, Table, paper_and_ours

_WAYS = ("full", "foreground", "background")
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
PAPER_NAMES = {
    "google/vit-base-patch32-384": "ViT-B/32",
    "google/vit-large-patch16-384": "ViT-L/16",
    "google/vit-large-patch32-384": "ViT-L/32",
    "google/vit-base-patch16-384": "ViT-B/16",
    "microsoft/resnet-50": "ResNet-50",
    "microsoft/resnet-152": "ResNet-152",
    "google/mobilenet_v2_1.0_224": "MobileNetV2",
    "timm/densenet121.ra_in1k": "DenseNet-121",
}
PERMUTED = (
    "In the paper's Table 3 (top-1) the rows of the last three CNNs are permuted: its log has, not normalized, "
    "MobileNetV2 82.92 / 68.03 / 6.83, DenseNet-121 83.77 / 71.70 / 7.34 and ResNet-152 90.58 / 78.39 / 8.81."
)


@dataclass(frozen=True, slots=True)
class Box:
    """Inclusive corners in pixels of the original picture, and a WordNet id or nothing."""

    corners: tuple[float, float, float, float]
    wnid: str = ""


Boxes = Callable[[Row], list[Box]]


def run(
    views: Sequence[ModelView], source: Source, config: BackgroundConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Accuracy on full, foreground and background images, plain and relative to the full ones.

    Raises:
        NoClassifierError: a model has no trained classifier.
        DatasetError: there are no boxes.
    """
    check_classifiers(views)
    boxes_of = load_boxes(source, config)
    manifest = describe_run("background", views, source, config)

    def prepare(example: Example) -> list[list[Tensor]] | str:
        boxes = boxes_of(example.row)
        if not boxes:
            return "it has no bounding box of its class"
        parts = split_picture(example.image, boxes)
        if isinstance(parts, str):
            return parts
        return [[model_bytes(view, part) for part in (example.image, *parts)] for view in views]

    def score(examples: list[Example], prepared: list[list[list[Tensor]]]) -> Flags:
        return right_pictures(views, examples, prepared, config.batch, _TOP)

    names = [f"{m} {way} {k}" for m in range(len(views)) for way in _WAYS for k in _TOP]
    tally = count_right(views, source, names, prepare, score, config.batch, config.limit, work, progress)
    pairs: list[tuple[list[Cell], list[Cell]]] = []
    plain: list[tuple[Cell, ...]] = []
    groups = {}
    for m, view in enumerate(views):
        ours: list[Cell] = []
        absolute: list[Cell] = []
        for k in _TOP:
            flags = [tally.flags(f"{m} {way} {k}") for way in _WAYS]
            ours += [accuracy(flags[0], config.seed), *(accuracy(f, config.seed, flags[0]) for f in flags[1:])]
            absolute += [accuracy(f, config.seed) for f in flags]
        known = PAPER.get(PAPER_NAMES.get(view.model_id, ""))
        pairs.append(([x for three in known for x in three] if known else [None] * 6, ours))
        plain.append((view.model_id, *absolute))
        groups[view.model_id] = {
            f"{way}, top-1": (x.value, x.low, x.high)
            for way, x in zip(_WAYS[1:], ours[-2:], strict=True) if isinstance(x, Interval)
        }  # fmt: skip
    quantities = [f"top-{k} {way}" for k in _TOP for way in _WAYS]
    header, cells = paper_and_ours(quantities, pairs)
    relative = tuple((view.model_id, *row) for view, row in zip(views, cells, strict=True))
    notes = (
        *how_scored(tally, source, views),
        "Boxes are blacked out (background), or all but the boxes (foreground), in the original picture, before resize "
        "and crop; only boxes of the true class.",
    )
    first = "Full: accuracy in %. Foreground and background: in % of it, on the same images."
    permuted = (PERMUTED,) if any(v.model_id in PAPER_NAMES for v in views) else ()
    tables = {
        "table": Table(("model", *header), relative, (first, *notes, *permuted)),
        "table-plain": Table(("model", *quantities), tuple(plain), ("Accuracy in %, not normalized.", *notes)),
    }
    figures = {"figure": bars(groups, "% of the accuracy on full images"), "masked-images": _examples(source, boxes_of)}
    return Result("background", tables, figures, manifest)


def split_picture(image: Image.Image, boxes: Sequence[Box]) -> tuple[Image.Image, Image.Image] | str:
    """Foreground and background: all but the boxes black, and the boxes black; or why that makes no sense."""
    inside = box_mask(image.size, boxes)
    if inside.all():
        return "its boxes cover all of it"
    if not inside.any():
        return "its boxes lie outside of it"
    pixels = np.asarray(image)
    return Image.fromarray(pixels * inside[..., None]), Image.fromarray(pixels * ~inside[..., None])


def box_mask(size: tuple[int, int], boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """[H, W], true inside any of the boxes; their last row and column belong to them."""
    inside = np.zeros((size[1], size[0]), dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = (max(0, round(v)) for v in box.corners)
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside


def load_boxes(source: Source, config: BackgroundConfig) -> Boxes:
    """Where a row's boxes come from: the dataset itself, annotations of ILSVRC joined by file name, another dataset.

    Raises:
        DatasetError: there are none.
    """
    where = config.boxes
    if not where:
        first = next((row for row, _ in source.read(0, 1, None)), None)
        if first is None or not first.boxes:
            raise DatasetError(
                f"{source.dataset!r} has no boxes (bbox, bboxes or boxes, or these in objects). Give --boxes: a CSV "
                "as LOC_train_solution.csv, a folder of XML as ILSVRC's Annotations, or a dataset with boxes."
            )
        return lambda row: _corners(row, config.box_format)
    path = Path(where).expanduser()
    if path.suffix == ".csv":
        table = read_csv(path)
    elif path.is_dir() and any(path.rglob("*.xml")):
        table = read_xml(path)
    else:
        table = {}
        for row, _ in open_source(where).read(0, 1, None):
            table[_stem(row.name)] = _corners(row, config.box_format)
    if not any(table.values()):
        raise DatasetError(f"there are no boxes in '{where}'.")

    def find(row: Row) -> list[Box]:
        boxes = table.get(_stem(row.name), [])
        wnid = row.wnid or _wnid_in(row.name)
        return [b for b in boxes if not b.wnid or b.wnid == wnid]

    return find


def read_csv(path: Path) -> Mapping[str, list[Box]]:
    """Boxes by image of ILSVRC's LOC_train_solution.csv: ImageId, then class and corners, over and over.

    Raises:
        DatasetError: another layout.
    """
    table: dict[str, list[Box]] = defaultdict(list)
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                words = row["PredictionString"].split()
                for i in range(0, len(words), 5):
                    x0, y0, x1, y1 = map(float, words[i + 1 : i + 5])
                    table[_stem(row["ImageId"])].append(Box((x0, y0, x1, y1), words[i]))
    except (OSError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"'{path}' is no CSV of boxes with the columns ImageId,PredictionString: {first_line(error)}"
        ) from error
    return table


def read_xml(folder: Path) -> Mapping[str, list[Box]]:
    """Boxes by image of ILSVRC's and VOC's XML files, named as the images are.

    Raises:
        DatasetError: a file of another layout.
    """
    table: dict[str, list[Box]] = {}
    for path in sorted(folder.rglob("*.xml")):
        try:
            found = []
            for item in ElementTree.parse(path).getroot().iter("object"):
                x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{n}", "")) for n in ("xmin", "ymin", "xmax", "ymax"))
                name = item.findtext("name", "")
                found.append(Box((x0, y0, x1, y1), name if re.fullmatch(r"n\d{8}", name) else ""))
            table[_stem(path.name)] = found
        except (ElementTree.ParseError, ValueError, OSError) as error:
            raise DatasetError(f"'{path}' is no XML of boxes: {first_line(error)}") from error
    return table


def _corners(row: Row, box_format: str) -> list[Box]:
    boxes = []
    for a, b, c, d in row.boxes:
        if box_format == "xywh":
            c, d = a + c - 1, b + d - 1
        if c < a or d < b:
            raise DatasetError(
                f"the box {[a, b, c, d]} of {row.name!r} ends before it starts; is --box-format the other one?"
            )
        boxes.append(Box((a, b, c, d)))
    return boxes


def _stem(name: str) -> str:
    """File name without ending and without the class that the Hub's ImageNet appends."""
    stem = Path(name).name.removesuffix(".JPEG").removesuffix(".xml").removesuffix(".jpg").removesuffix(".png")
    return re.sub(r"_n\d{8}$", "", stem)


def _wnid_in(name: str) -> str:
    found = re.search(r"(?:^|_)(n\d{8})(?=[_.]|$)", Path(name).name)
    return found[1] if found else ""


def _examples(source: Source, boxes_of: Boxes, n: int = 6) -> Figure:
    rows = []
    for row, _ in source.read(0, 1, None):
        try:
            image = open_image(row.data)
        except ImageError:
            continue
        parts = split_picture(image, boxes) if (boxes := boxes_of(row)) else ""
        if not isinstance(parts, str):
            rows.append([(way, picture) for way, picture in zip(_WAYS, (image, *parts), strict=True)])
        if len(rows) == n:
            break
    turned = [("", [row[i] for row in rows]) for i in range(len(_WAYS))]
    return picture_grid(turned)
