"""Pictures to look at: from Hub datasets, parquet files, folders, and the photographs that installed packages bring."""

import importlib.util
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import httpx2
from PIL import Image

from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import DatasetAccessError, DatasetError, first_line
from vitviz_hf.hub import DATASET, Token, find_commit, find_path, gated_error
from vitviz_hf.images import MAX_BYTES, open_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_NAMES = ("key", "image_id", "file_name", "filename", "id", "__key__")
_LABELS = ("label", "labels", "name", "class", "wnid")
_BOXES = ("bbox", "bboxes", "boxes")
_MASKS = ("instance_mask", "mask", "masks", "annotation", "segmentation")
_MASK_NAMES = ("names", "classes", "labels", "categories")
_RETRIES = (1, 4, 15)
# What datasets raises on files that are not what they should be, or of kinds that need other packages.
_UNREADABLE = (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, AttributeError, BadZipFile)

# Photographs, not drawings or diagrams, of scikit-image and gradio.
_BUILTIN = {
    "skimage": (
        "data",
        (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "page.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    "gradio": ("media_assets/images", ("cheetah.jpg", "groot.jpeg", "lion.jpg", "tower.jpg")),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a dataset; `key` names it stably."""

    key: str
    image: Image.Image
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One item as it is stored: nothing is decoded yet."""

    name: str
    """File name, or the dataset's own id of the item; empty if it has none."""
    label: str
    data: bytes
    class_id: int | None = None
    """Place of the label in the source's `class_names`."""
    wnid: str = ""
    """WordNet id of the label, such as n01440764, if the dataset tells it."""
    boxes: tuple[tuple[float, ...], ...] = ()
    """Four numbers each, as the dataset has them."""
    mask: bytes = b""
    """A picture of instance numbers, if the dataset has one."""
    mask_names: tuple[str, ...] = ()
    """Class of each instance."""

    @property
    def key(self) -> int:
        """From the stored bytes, so that it is the same in every order, shard and copy of a dataset."""
        return int.from_bytes(sha256(self.data).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset that can be read from any position, by one of several readers."""

    dataset: str
    """As given."""
    revision: str | None
    """Commit sha on the Hub; for local files a digest of their names and sizes."""
    split: str | None
    n_rows: int | None
    """If it is known before reading."""
    class_names: tuple[str, ...] = ()
    """Of the column of labels, if the dataset names its classes; for files the folders that they are in."""
    n_files: int | None = None
    """If a reader can leave files of other ranks alone only where the number of ranks divides this one."""
    read: Callable[[int, int, Any], Iterator[tuple[Row, Callable[[], Any]]]]
    """(rank, n_ranks, position or None) -> rows, each with a function that gives the position after it."""


def builtin_paths() -> dict[str, Path]:
    """Photographs of the installed packages by key; those of a package that is absent are left out."""
    paths: dict[str, Path] = {}
    for package, (folder, names) in _BUILTIN.items():
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations or () if spec else ():
            paths |= {Path(n).stem: Path(root, folder, n) for n in names if Path(root, folder, n).is_file()}
    return paths


def builtin_photographs() -> Iterator[Example]:
    """The photographs themselves."""
    for key, path in builtin_paths().items():
        yield Example(key, open_image(path))


def open_source(dataset: str, split: str | None = None, token: Token = None) -> Source:
    """A dataset to stream.

    Args:
        dataset: Hub id, `builtin`, a folder of images or of parquet files, or one parquet file.
        split: of a Hub dataset or a folder in its layout; `validation` if it has one, else its only one.
        token: Hub token.

    Raises:
        DatasetAccessError: gated, private or missing.
        DatasetError: no such split, or nothing in it that is a picture.
    """
    path = find_path(dataset)
    if dataset == BUILTIN:
        return _files(dataset, {k: p for k, p in builtin_paths().items()})
    if path and path.is_dir() and not any(path.rglob("*.parquet")):
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise DatasetError(
                f"the folder {dataset!r} holds no images ({', '.join(sorted(SUFFIXES))}) and no parquet."
            )
        return _files(dataset, {str(p.relative_to(path)): p for p in found})
    if path is None and (dataset.startswith((".", "/", "~")) or dataset.endswith(".parquet")):
        raise DatasetAccessError(f"there is no folder or file {dataset[:200]!r}.")
    return _streamed(dataset, path, split, token)


def _files(dataset: str, paths: dict[str, Path]) -> Source:
    labels = {name: path.parent.name if len(Path(name).parts) > 1 else "" for name, path in paths.items()}
    classes = tuple(sorted({label for label in labels.values() if label}))

    def read(rank: int, n_ranks: int, position: Any) -> Iterator[tuple[Row, Callable[[], Any]]]:
        items = list(paths.items())
        for i in range(position or 0, len(items)):
            if i % n_ranks == rank:
                name, path = items[i]
                label = labels[name]
                class_id = classes.index(label) if label else None
                row = Row(name, label, _contents(path), class_id, label if is_wnid(label) else "")
                yield row, lambda i=i: i + 1  # type: ignore[misc]

    listing = "\n".join(f"{name} {path.stat().st_size}" for name, path in paths.items())
    return Source(
        dataset=dataset,
        revision=sha256(listing.encode()).hexdigest()[:40],
        split=None,
        n_rows=len(paths),
        class_names=classes,
        read=read,
    )


def _contents(path: Path) -> bytes:
    """A file, or as much of it as shows that it is too large; nothing of one that cannot be read any more."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError:
        return b""


def _streamed(dataset: str, path: Path | None, split: str | None, token: Token) -> Source:
    local = path is not None
    revision = _local_digest(path) if path else find_commit(DATASET, dataset, token)
    splits = _load_splits(dataset, {} if local else {"token": token, "revision": revision})
    split = split or ("validation" if "validation" in splits else next(iter(splits)))
    if split not in splits:
        raise DatasetError(f"{dataset!r} has no split {split!r}; it has {', '.join(splits)}.")
    stream = splits[split]
    first = _first_item(dataset, split, stream)
    n_rows = getattr(stream.info.splits.get(split), "num_examples", None) if stream.info.splits else None
    if local:
        files = [dataset] if dataset.endswith(".parquet") else _files_of(dataset, split)
        n_rows = _count_rows(files) if files else None
    names = _class_names(stream)
    to_row = partial(_to_row, _image_column(dataset, stream, first), names, local, token)
    return Source(
        dataset=dataset,
        revision=revision,
        split=split,
        n_rows=n_rows,
        class_names=next((tuple(names[c]) for c in _LABELS if c in names), ()),
        n_files=stream.num_shards,
        read=partial(_read_streamed, dataset, stream, to_row),
    )


def _load_splits(dataset: str, options: dict[str, Any]) -> Any:
    """The streams of a dataset by split; of one file the split train."""
    import datasets
    from datasets import exceptions
    from yaml import YAMLError

    try:
        if dataset.endswith(".parquet"):
            return {"train": datasets.load_dataset("parquet", data_files=dataset, split="train", streaming=True)}
        return datasets.load_dataset(dataset, streaming=True, **options)
    except exceptions.DatasetNotFoundError as error:
        if "gated dataset" in str(error):
            raise gated_error(DATASET, dataset, repr(dataset)) from error
        raise DatasetAccessError(f"{dataset!r} cannot be read: {first_line(error)}") from error
    except (*_UNREADABLE, YAMLError, exceptions.DatasetsError) as error:
        raise DatasetError(f"{dataset!r} cannot be streamed: {first_line(error)}") from error


def _first_item(dataset: str, split: str, stream: Any) -> dict[str, Any]:
    """The first item of a stream, where much of what is wrong with a dataset shows."""
    from pyarrow import ArrowInvalid

    try:
        first = next(iter(stream.decode(False)), None)
    except ArrowInvalid:  # of a parquet file without rows
        first = None
    except (*_UNREADABLE, httpx2.HTTPError) as error:
        raise DatasetError(f"{dataset!r} cannot be streamed: {first_line(error)}") from error
    if first is None:
        raise DatasetError(f"split {split!r} of {dataset!r} is empty, or its files cannot be read.")
    return dict(first)


def _to_row(image: str, names: dict[str, list[str]], local: bool, token: Token, item: dict[str, Any]) -> Row:
    value = item[image]
    data = value.get("bytes") if isinstance(value, dict) else value
    path = (value.get("path") if isinstance(value, dict) else None) or ""
    if data is None and path:
        data = _read_named(path, local, token)
    name = next((str(item[c]) for c in _NAMES if isinstance(item.get(c), str | int)), "") or Path(path).name
    label, class_id = _label(item, names)
    wnid = next((str(x) for x in (item.get("wnid"), label) if isinstance(x, str) and is_wnid(x)), "")
    return Row(name, label, data or b"", class_id, wnid, _boxes(item), *_mask(item))


def _read_streamed(
    dataset: str, stream: Any, to_row: Callable[[dict[str, Any]], Row], rank: int, n_ranks: int, position: Any
) -> Iterator[tuple[Row, Callable[[], Any]]]:
    """Rows of a stream as `Source.read` gives them; where the connection is lost, it is taken up again."""
    from datasets.distributed import split_dataset_by_node

    part = stream.decode(False)
    if n_ranks > 1:
        part = split_dataset_by_node(part, rank, n_ranks)
    known, since = position or part.state_dict(), 0  # a position that was asked for, and rows read after it

    def mark() -> Any:
        nonlocal known, since
        known, since = part.state_dict(), 0
        return known

    failures = 0
    while True:
        part.load_state_dict(known)
        again = since
        try:
            for item in part:
                if again:
                    again -= 1
                    continue
                row = to_row(item)  # before it counts as read: it may have to be fetched
                since += 1
                failures = 0
                yield row, mark
            return
        except (OSError, RuntimeError, httpx2.HTTPError) as error:
            if failures == len(_RETRIES):
                raise DatasetError(
                    f"the connection to {dataset!r} was lost ({first_line(error)}). What was read is kept; "
                    "run the same command with --resume."
                ) from error
            time.sleep(_RETRIES[failures])
            failures += 1


def _read_named(path: str, local: bool, token: Token) -> bytes:
    """A picture that a dataset names instead of holding it; a dataset of the Hub can only name what is on the Hub."""
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    if not local and not path.split("::")[-1].startswith("hf://"):  # zip://a.png::hf://...
        return b""
    with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
        return bytes(file.read())


def _files_of(folder: str, split: str) -> list[str]:
    """The parquet files of a split; none if it has others."""
    import datasets

    files = (datasets.load_dataset_builder(folder).config.data_files or {}).get(split, [])
    return list(map(str, files)) if all(str(f).endswith(".parquet") for f in files) else []


def _count_rows(files: list[str]) -> int:
    from pyarrow import parquet

    return sum(parquet.read_metadata(f).num_rows for f in files)


def _local_digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return sha256("\n".join(f"{p.name} {p.stat().st_size}" for p in files).encode()).hexdigest()[:40]


def _image_column(dataset: str, stream: Any, first: dict[str, Any]) -> str:
    features = stream.features or {}
    typed = [c for c, f in features.items() if type(f).__name__ == "Image"]
    loose = [c for c, v in first.items() if isinstance(v, dict) and {"bytes", "path"} <= set(v)]
    if columns := [*(["image"] if "image" in typed else []), *typed, *loose]:
        return str(columns[0])
    raise DatasetError(f"{dataset!r} has no column of images; it has {', '.join(first)}.")


def _class_names(stream: Any) -> dict[str, list[str]]:
    return {c: f.names for c, f in (stream.features or {}).items() if type(f).__name__ == "ClassLabel"}


def _label(item: dict[str, Any], names: dict[str, list[str]]) -> tuple[str, int | None]:
    for column in _LABELS:
        value = item.get(column)
        if isinstance(value, int) and column in names:  # -1 where the class is unknown
            return (str(names[column][value]), value) if 0 <= value < len(names[column]) else ("", None)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value), None
    return "", None


def is_wnid(text: str) -> bool:
    """Whether this is a WordNet id."""
    return re.fullmatch(r"n\d{8}", text) is not None


def _mask(item: dict[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    for column in _MASKS:
        value = item.get(column)
        if isinstance(value, dict) and value.get("bytes"):
            names: list[Any] = next((item[c] for c in _MASK_NAMES if isinstance(item.get(c), list)), [])
            return value["bytes"], tuple(map(str, names))
    return b"", ()


def _boxes(item: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    objects = item.get("objects")
    found = next((item[c] for c in _BOXES if item.get(c) is not None), None)
    if found is None and isinstance(objects, dict):
        found = next((objects[c] for c in _BOXES if objects.get(c) is not None), None)
    if found is None or not len(found):
        return ()
    boxes = found if isinstance(found[0], list | tuple) else [found]
    return tuple(_four(box) for box in boxes)


def _four(box: Any) -> tuple[float, ...]:
    """A box; of one that is not four numbers NaN, so that it is counted where boxes are used."""
    numbers = [math.nan if x is None else float(x) for x in box]
    return tuple(numbers) if len(numbers) == 4 else (math.nan,) * 4
