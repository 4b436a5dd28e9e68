"""Bounding boxes of a dataset: its own, ILSVRC's annotations joined by file name, or those of another dataset."""

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vitviz_hf.errors import DatasetError, first_line
from vitviz_hf.experiments.config import Boxed
from vitviz_hf.stream import SUFFIXES, Row, Source, is_wnid, open_source

USED = "Boxes used"
ENDS_FIRST = "Boxes that end before they start, left out (--box-format may be the other one)"
OUTSIDE = "Boxes outside of their picture, left out"
NO_NUMBERS = "Boxes that are not four finite numbers, left out"
SEVERAL = "Pictures without boxes because several files of boxes have their name"


@dataclass(frozen=True, slots=True)
class Box:
    """Inclusive corners (x0, y0, x1, y1) in pixels of the original picture."""

    corners: tuple[float, float, float, float]
    name: str = ""
    """Of its class, or a WordNet id; nothing if it is not told."""


@dataclass(slots=True)
class _Entry:
    boxes: list[Box]
    unique: bool = True


class BoxTable:
    """Boxes by file name: without folder and ending, case of the ending ignored.

    Where files in several folders have one name, the folder decides: the picture's own, or the one named as its class.
    """

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, _Entry]] = defaultdict(dict)
        self._classes: set[str] = set()
        self.malformed: Counter[str] = Counter()
        """What could not be read, with its number."""

    def add(self, name: str, boxes: Iterable[Box], merge: bool = False) -> None:
        """Boxes of one picture; of those that come twice only one can be meant, unless they are to be merged."""
        boxes = list(boxes)
        self._classes.update(box.name.casefold() for box in boxes)
        folders, folder = self._entries[_stem(name)], Path(name).parent.name
        if folder not in folders:
            folders[folder] = _Entry(boxes)
        elif merge:
            folders[folder].boxes.extend(boxes)
        else:
            folders[folder].unique = False

    def find(self, row: Row) -> list[Box] | None:
        """Boxes of a picture's own class; None if it is not clear which file is its.

        Boxes without a class count as its own, and those named in other words than the pictures' labels.
        """
        folders = self._entries.get(_stem(row.name), {})
        wnid = row.wnid or _wnid_in(row.name)
        named = [folders[f] for f in (Path(row.name).parent.name, wnid, row.label) if f and f in folders]
        found = named[:1] if named else list(folders.values())
        if len(found) > 1 or not all(entry.unique for entry in found):
            return None
        label = row.label.casefold()

        def own(box: Box) -> bool:
            if is_wnid(box.name):
                return box.name == wnid
            return label not in self._classes or box.name.casefold() in ("", label)

        return [box for entry in found for box in entry.boxes if own(box)]

    def __bool__(self) -> bool:
        return any(entry.boxes for folders in self._entries.values() for entry in folders.values())


@dataclass(frozen=True, slots=True)
class Boxes:
    """Where a row's boxes come from."""

    table: BoxTable | None
    """None: the dataset's own."""
    box_format: str
    notes: tuple[str, ...] = ()
    """What of the table could not be read."""

    def find(self, row: Row, size: tuple[int, int], remarks: list[str]) -> list[Box]:
        """Boxes of a row that hold at least one pixel.

        Args:
            size: (width, height) of the picture.
            remarks: for each box that it can be used, or why it cannot.
        """
        found = to_boxes(row, self.box_format) if self.table is None else self.table.find(row)
        if found is None:
            remarks.append(SEVERAL)
            return []
        judged = [(box, _judge(box, size)) for box in found]
        remarks += [verdict for _, verdict in judged]
        return [box for box, verdict in judged if verdict == USED]


def load_boxes(source: Source, config: Boxed) -> Boxes:
    """The boxes that options name.

    Raises:
        DatasetError: there are none.
    """
    where = config.boxes
    if where is None:
        if not any(row.boxes for row, _ in islice(source.read(0, 1, None), 100)):
            raise DatasetError(
                f"{source.dataset!r} has no boxes (bbox, bboxes or boxes, or these in objects).",
                "Give --boxes: a CSV as LOC_train_solution.csv, a folder of XML as ILSVRC's Annotations, or a dataset "
                "with boxes.",
                "Choose a dataset with boxes.",
            )
        return Boxes(None, config.box_format)
    path = Path(where).expanduser()
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
    elif path.is_dir() and any(p.suffix.lower() == ".xml" for p in path.rglob("*")):
        table = read_xml(path)
    else:
        table = BoxTable()
        for row, _ in open_source(where).read(0, 1, None):
            if row.name:
                table.add(row.name, to_boxes(row, config.box_format))
    if not table:
        raise DatasetError(f"there are no boxes in '{where}'.")
    notes = tuple(f"{n:,} {what} of '{where}' could not be read." for what, n in table.malformed.items())
    return Boxes(table, config.box_format, notes)


def check_used(source: Source, remarks: Mapping[str, int]) -> None:
    """Raise if there are boxes, and all of them end before they start.

    Raises:
        DatasetError: so it is, with what to do.
    """
    if remarks.get(ENDS_FIRST) and not any(remarks.get(other) for other in (USED, OUTSIDE, NO_NUMBERS)):
        raise DatasetError(
            f"all boxes of {source.dataset!r} end before they start.", "Is --box-format the other one, xyxy or xywh?"
        )


def read_csv(path: Path) -> BoxTable:
    """Boxes of ILSVRC's LOC_train_solution.csv: ImageId, then class and corners, over and over.

    Raises:
        DatasetError: another layout, or no row can be read.
    """
    table, n = BoxTable(), 0
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if missing := {"ImageId", "PredictionString"} - set(reader.fieldnames or ()):
                raise KeyError(f"no column {min(missing)}")
            for row in reader:
                words = (row["PredictionString"] or "").split()
                try:
                    boxes = [_box(words[i + 1 : i + 5], words[i]) for i in range(0, len(words), 5)]
                except ValueError:
                    table.malformed["rows"] += 1
                    continue
                table.add(row["ImageId"], boxes, merge=True)
                n += 1
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"'{path}' is no CSV of boxes with the columns ImageId,PredictionString: {first_line(error)}"
        ) from error
    if not n:
        raise DatasetError(f"'{path}' is no CSV of boxes: none of its {table.malformed['rows']} rows can be read.")
    return table


def read_xml(folder: Path) -> BoxTable:
    """Boxes of ILSVRC's and VOC's XML files, named as the images are.

    Raises:
        DatasetError: no file can be read.
    """
    table, problem = BoxTable(), ""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() == ".xml"]
    for path in paths:
        try:
            found = []
            for item in ElementTree.parse(path).getroot().iter("object"):
                name = item.findtext("name", "")
                words = [item.findtext(f"bndbox/{n}", "") for n in ("xmin", "ymin", "xmax", "ymax")]
                found.append(_box(words, name))
            table.add(str(path.relative_to(folder)), found)
        except (ElementTree.ParseError, ValueError, OSError) as error:
            table.malformed["XML files"] += 1
            problem = problem or f"'{path}': {first_line(error)}"
    if table.malformed["XML files"] == len(paths):
        raise DatasetError(f"there is no XML of boxes in '{folder}': {problem}")
    return table


def to_boxes(row: Row, box_format: str) -> list[Box]:
    """The boxes that a row has: corners, or with `xywh` a corner and a size."""
    return [Box((a, b, a + c - 1, b + d - 1) if box_format == "xywh" else (a, b, c, d)) for a, b, c, d in row.boxes]


def box_mask(size: tuple[int, int], boxes: Iterable[Box]) -> NDArray[np.bool_]:
    """[H, W], true inside any of the boxes; their last row and column belong to them."""
    inside = np.zeros((size[1], size[0]), dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = clipped(box, size)
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside


def clipped(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Its corners in whole pixels of a picture of (width, height); the last ones before the first if it is outside."""
    x0, y0, x1, y1 = map(round, box.corners)
    return max(0, x0), max(0, y0), max(-1, min(x1, size[0] - 1)), max(-1, min(y1, size[1] - 1))


def _box(words: list[str], name: str) -> Box:
    x0, y0, x1, y1 = map(float, words)
    return Box((x0, y0, x1, y1), name)


def _judge(box: Box, size: tuple[int, int]) -> str:
    if not all(map(math.isfinite, box.corners)):
        return NO_NUMBERS
    if box.corners[2] < box.corners[0] or box.corners[3] < box.corners[1]:
        return ENDS_FIRST
    x0, y0, x1, y1 = clipped(box, size)
    return OUTSIDE if x1 < x0 or y1 < y0 else USED


def _stem(name: str) -> str:
    """File name without folder, ending and the class that the Hub's ImageNet appends."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in SUFFIXES | {".xml"} else path.name
    return re.sub(r"_n\d{8}$", "", stem)


def _wnid_in(name: str) -> str:
    found = re.search(r"(?:^|_)(n\d{8})(?=[_.]|$)", Path(name).name)
    return found[1] if found else ""
