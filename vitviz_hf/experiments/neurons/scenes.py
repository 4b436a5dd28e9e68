"""Pictures with instance masks: Pascal VOC's folders, datasets with a column of masks, and scenes made of pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitviz_hf.errors import DatasetError, ImageError, first_line
from vitviz_hf.experiments.masks import read_mask
from vitviz_hf.images import cover, open_image
from vitviz_hf.stream import Source, open_source

_SIDE = 448


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and which of its pixels belong to which object."""

    name: str
    image: Image.Image
    mask: NDArray[np.int64]
    """[h, w]; 0 is background, n the n-th of `names`."""
    names: tuple[str, ...]
    """Class of each object."""


def open_scenes(dataset: str, split: str | None = None, compose: str = "paste", seed: int = 0) -> Iterator[Scene]:
    """Scenes of a dataset.

    Args:
        dataset: folder of Pascal VOC, dataset with a column of instance masks, or any labelled dataset or folder of
            pictures, of which scenes are made.
        compose: how they are made: `paste` puts ellipses of two to four pictures on another one, `tiles` four pictures
            beside each other; with `none` a dataset without masks is refused.
        seed: of the order of Pascal VOC's pictures, or of what is put where.

    Raises:
        DatasetError: there are no masks, or nothing to make scenes of.
    """
    path = Path(dataset).expanduser()
    if (path / "SegmentationObject").is_dir():
        return _voc(path, seed)
    source = open_source(dataset, split)
    first = next((row for row, _ in source.read(0, 1, None)), None)
    if first is not None and first.mask:
        return _masked(source)
    if compose == "none":
        raise DatasetError(
            f"{dataset!r} has no instance masks: no folder SegmentationObject as in Pascal VOC, and no column such as "
            "instance_mask or mask. Let scenes be made of its pictures with compose."
        )
    return _composed(source, compose, seed)


def _voc(folder: Path, seed: int) -> Iterator[Scene]:
    paths = sorted((folder / "SegmentationObject").glob("*.png"))
    for path in (paths[i] for i in np.random.default_rng(seed).permutation(len(paths))):
        picture, notes = folder / "JPEGImages" / f"{path.stem}.jpg", folder / "Annotations" / f"{path.stem}.xml"
        if not picture.is_file() or not notes.is_file():
            continue
        try:
            names = tuple(o.findtext("name", "") for o in ElementTree.parse(notes).getroot().iter("object"))
            yield Scene(path.stem, open_image(picture), read_mask(path.read_bytes()), names)
        except (ElementTree.ParseError, ImageError) as error:
            raise DatasetError(f"'{path.stem}' of '{folder}' cannot be read: {first_line(error)}") from error


def _masked(source: Source) -> Iterator[Scene]:
    for i, (row, _) in enumerate(source.read(0, 1, None)):
        try:
            image, mask = open_image(row.data), read_mask(row.mask)
        except ImageError:
            continue
        if mask.shape == image.size[::-1]:
            n = int(mask[mask <= 200].max(initial=0))
            names = (*row.mask_names, *(f"object {k + 1}" for k in range(len(row.mask_names), n)))
            yield Scene(row.name or str(i), image, mask, names)


def _composed(source: Source, compose: str, seed: int) -> Iterator[Scene]:
    rng = np.random.default_rng(seed)
    waiting: list[tuple[str, Image.Image]] = []
    n_scene = 0
    for row, _ in source.read(0, 1, None):
        try:
            waiting.append((row.label or row.name, open_image(row.data)))
        except ImageError:
            continue
        if len(waiting) == (4 if compose == "tiles" else 5):
            yield (tile_scene if compose == "tiles" else paste_scene)(f"scene {n_scene}", waiting, rng)
            n_scene += 1
            waiting = []
    if not n_scene:
        raise DatasetError(f"{source.dataset!r} has too few pictures to make scenes of.")


def tile_scene(name: str, pictures: list[tuple[str, Image.Image]], rng: np.random.Generator) -> Scene:
    """Four pictures beside each other in a random order; each is an object, so there is no background."""
    half = _SIDE // 2
    image, mask = Image.new("RGB", (_SIDE, _SIDE)), np.zeros((_SIDE, _SIDE), np.int64)
    order = rng.permutation(len(pictures))
    for place, k in enumerate(order):
        row, col = divmod(place, 2)
        image.paste(pictures[k][1].resize((half, half), Image.Resampling.BICUBIC), (col * half, row * half))
        mask[row * half : (row + 1) * half, col * half : (col + 1) * half] = place + 1
    return Scene(name, image, mask, tuple(pictures[k][0] for k in order))


def paste_scene(name: str, pictures: list[tuple[str, Image.Image]], rng: np.random.Generator) -> Scene:
    """Ellipses of all but the first picture, two to four of them, on the first; they do not overlap."""
    quarter = _SIDE // 2
    image, mask = cover(pictures[0][1], (_SIDE, _SIDE)), np.zeros((_SIDE, _SIDE), np.int64)
    places = rng.permutation(4)[: rng.integers(2, 5)]
    names = []
    for n, (place, (label, picture)) in enumerate(zip(places.tolist(), pictures[1:], strict=False), 1):
        width, height = rng.integers(int(0.6 * quarter), int(0.95 * quarter), 2).tolist()
        left = place % 2 * quarter + int(rng.integers(0, quarter - width))
        top = place // 2 * quarter + int(rng.integers(0, quarter - height))
        shape = Image.new("L", (width, height))
        ImageDraw.Draw(shape).ellipse((0, 0, width - 1, height - 1), 255)
        image.paste(cover(picture, (height, width)), (left, top), shape)
        mask[top : top + height, left : left + width][np.asarray(shape) > 0] = n
        names.append(label)
    return Scene(name, image, mask, tuple(names))
