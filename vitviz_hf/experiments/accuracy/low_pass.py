"""Accuracy while high frequencies are taken out of the picture (appendix D, Fig. 16), or low ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import ImageError
from vitviz_hf.experiments.accuracy.classifiers import check_classifiers
from vitviz_hf.experiments.accuracy.crops import crop_logits, to_crop
from vitviz_hf.experiments.accuracy.study import (
    Column,
    Flags,
    Labelled,
    Tally,
    accuracy,
    count_right,
    how_scored,
    is_right,
    what_scored,
)
from vitviz_hf.experiments.config import LowPassConfig
from vitviz_hf.experiments.figures import Figure, curves, picture_grid
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Interval, Table
from vitviz_hf.images import bytes_to_image, image_to_bytes, open_image
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

SHAPES = ("square", "circle", "gaussian")
KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
_Way = tuple[str, float]
_WAYS: tuple[_Way, ...] = tuple((shape, r) for shape in SHAPES for r in KEPT)
_NATURAL = ("natural", None)
_ENERGY_IMAGES = 1000
_BANDS = {
    "low": ("frequencies up to r", "lowest share r of frequencies"),
    "high": ("frequencies above r, and the mean color", "frequencies above r"),
    "band": ("frequencies from r/2 to r, and the mean color", "frequencies from r/2 to r"),
}


def run(
    views: Sequence[ModelView], source: Source, config: LowPassConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Top-1 accuracy against the kept share of frequencies, for three shapes of mask.

    Raises:
        NoClassifierError: a model has no trained classifier.
    """
    check_classifiers(views)
    at_input = config.filter_at == "input"

    def prepare(example: Labelled) -> list[Tensor]:
        """For each model [1, 3, H, W], or the picture itself and under every mask, as the model sees them."""
        originals = [example.image] if at_input else [example.image, *filtered_files(example.image, config.keep)]
        return [torch.stack([to_crop(view, p) for p in originals]) for view in views]

    def score(examples: list[Labelled], prepared: list[list[Tensor]]) -> Flags:
        flags = []
        for m, view in enumerate(views):
            targets = [e.targets[m] for e in examples]
            crops = torch.stack([p[m] for p in prepared])
            forms: Iterator[Tensor] = iter(crops.unbind(1))
            if at_input:
                forms = _each_filtered(crops[:, 0].to(view.device).float(), masks(*view.input_size, config.keep))
            flags += [is_right(crop_logits(view, some, config.batch), targets, 1) for some in forms]
        return np.stack(flags, 1)

    columns = [Column(*way, model=m) for m in range(len(views)) for way in (_NATURAL, *_WAYS)]
    few = config.batch if at_input else max(1, config.batch // 8)  # each picture waits as 34 of them
    tally = count_right(views, source, columns, prepare, score, few, config.limit, work, progress)
    found = [_Found.of(tally, view, m, source, config) for m, view in enumerate(views)]
    notes = (*how_scored(tally, source, views), *_notes(views, config))
    wide = tuple(row for one in found for row in one.wide())
    header = ("model", "mask", "r", "cycles per image", "removed energy, %", "top-1, %", "relative, %")
    long = tuple(row for one in found for row in one.long(at_input))
    figures = {"examples": _examples(views[0], source, config)}
    if panels := _panels(found):
        heights = {view.input_size[0] for view in views}
        top = ("cycles per image", heights.pop() / 2) if at_input and len(heights) == 1 else None
        figures["figure"] = curves(panels, _BANDS[config.keep][1], "top-1 accuracy, % of the unfiltered", top=top)
    return Result(
        "low-pass",
        {"table": Table(("model", "mask", "%", *(f"r = {r:g}" for r in KEPT)), wide, notes)},
        figures,
        {"kept": KEPT, "shapes": SHAPES, **what_scored(views, tally.n_images)},
        {"intervals": Table(header, long, notes)},
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found of a model; by shape and kept share."""

    view: ModelView
    natural: Interval | None
    absolute: Mapping[_Way, Interval | None]
    relative: Mapping[_Way, Interval | None]
    lost: Mapping[_Way, float]
    """Share of the energy, in %."""

    @classmethod
    def of(cls, tally: Tally, view: ModelView, m: int, source: Source, config: LowPassConfig) -> "_Found":
        """From the flags of a model."""
        natural = tally.flags(*_NATURAL, model=m)
        flags = {way: tally.flags(*way, model=m) for way in _WAYS}
        return cls(
            view,
            accuracy(natural, config.seed),
            {way: accuracy(own, config.seed) for way, own in flags.items()},
            {way: accuracy(own, config.seed, natural) for way, own in flags.items()},
            dict(zip(_WAYS, _mean_removed(view, source, config).tolist(), strict=True)),
        )

    def wide(self) -> Iterator[tuple[Cell, ...]]:
        """Three rows for each shape, a column for each kept share."""
        for shape in SHAPES:
            absolute, relative = ([x[shape, r] for r in KEPT] for x in (self.absolute, self.relative))
            yield (self.view.model_id, shape, "top-1", *(x and x.value for x in absolute))
            yield (self.view.model_id, shape, "relative", *(x and x.value for x in relative))
            yield (self.view.model_id, shape, "removed energy", *(self.lost[shape, r] for r in KEPT))

    def long(self, at_input: bool) -> Iterator[tuple[Cell, ...]]:
        """A row for each shape and kept share, with intervals."""
        yield (self.view.model_id, "none", None, None, 0.0, self.natural, None)
        for way in _WAYS:
            cycles = way[1] * self.view.input_size[0] / 2 if at_input else None
            yield (self.view.model_id, *way, cycles, self.lost[way], self.absolute[way], self.relative[way])


def _panels(found: Sequence[_Found]) -> dict[str, dict[str, tuple[Any, Any, Any, Any]]]:
    panels: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {}
    for one in found:
        for shape in SHAPES:
            drawn = [(r, x) for r in KEPT if (x := one.relative[shape, r]) is not None]
            if drawn:
                value, low, high = (np.array([getattr(x, end) for _, x in drawn]) for end in ("value", "low", "high"))
                panels.setdefault(shape, {})[one.view.model_id] = (np.array([r for r, _ in drawn]), value, low, high)
    return panels


def _notes(views: Sequence[ModelView], config: LowPassConfig) -> tuple[str, ...]:
    sizes = ", ".join(f"{view.input_size[0] / 2:g} for {view.model_id}" for view in views)
    where = (
        "The model's input is filtered, each color for itself, after resize and crop; values are not clipped after it. "
        f"r = 1 is the highest frequency: in cycles per image height, {sizes}."
        if config.filter_at == "input"
        else "The original picture is filtered, each color for itself, before resize and crop, and rounded to 8 bits. "
        "r = 1 is the highest frequency of the file, so that what is left depends on its size."
    )
    return (
        f"Kept: {_BANDS[config.keep][0]}. {where} Square masks measure a frequency by the larger of |fx| and |fy|, "
        "circles by their root sum of squares; gaussian passes half at r. The paper's released mask keeps a square of "
        "r'H/2 x r'W/2 in the spectrum, which is r = r'/2 here.",
        "Relative: in % of the accuracy on the unfiltered images. Removed energy: share of the spectrum's energy "
        f"without the mean color, mean over up to {_ENERGY_IMAGES:,} images.",
    )


def masks(height: int, width: int, keep: str = "low") -> Tensor:
    """What each frequency is multiplied by, [shapes x kept shares, H, W], in the order of `torch.fft.fft2`.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        keep: `low`: up to r; `high`: what low takes away; `band`: low of r without low of r/2. The mean color stays.
    """
    # Whole cycles before shares, so that a frequency of exactly r is kept.
    fy, fx = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).round().abs() * 2 / n for n in (height, width))
    square, distance = torch.maximum(fy[:, None], fx[None]), torch.hypot(fy[:, None], fx[None])

    def low(kept: Tensor) -> Tensor:
        ideal = [(d <= kept + 1e-9).double() for d in (square, distance)]
        return torch.cat([*ideal, torch.exp2(-((distance / kept) ** 2))])

    kept = torch.tensor(KEPT, dtype=torch.float64)[:, None, None]
    found = low(kept)
    if keep != "low":
        found = 1 - found if keep == "high" else found - low(kept / 2)
        found[:, 0, 0] = 1
    return found.float()


def _each_filtered(crops: Tensor, several: Tensor) -> Iterator[Tensor]:
    """Pictures [B, 3, H, W] as they are, and under each mask."""
    yield crops
    spectrum = torch.fft.fft2(crops)
    for mask in several.to(crops.device):
        yield torch.fft.ifft2(spectrum * mask).real


def filtered_files(image: Image.Image, keep: str = "low") -> list[Image.Image]:
    """The picture under every mask, at its own resolution, in 8 bits."""
    colors = image_to_bytes(image).float()
    pictures = islice(_each_filtered(colors[None], masks(colors.shape[1], colors.shape[2], keep)), 1, None)
    return [_to_image(p[0]) for p in pictures]


def _to_image(colors: Tensor) -> Image.Image:
    """[3, H, W] in 0 to 255, clipped and rounded."""
    return bytes_to_image(colors.round().clamp(0, 255).to(torch.uint8))


def removed_energy(colors: Tensor, several: Tensor) -> Tensor:
    """Share of the energy of a picture's spectrum that each mask takes away, without the mean color, [masks] in %.

    Args:
        colors: [3, H, W]; 0 where all are alike.
        several: [masks, H, W].
    """
    power = torch.fft.fft2(colors.float()).abs().square().sum(0)
    power[0, 0] = 0
    total = power.sum()
    kept = (several.square() * power).sum((1, 2))
    return 100 * (1 - kept / total) if total > 0 else torch.zeros(len(several))


def _mean_removed(view: ModelView, source: Source, config: LowPassConfig) -> NDArray[np.float64]:
    limit = min(config.limit or _ENERGY_IMAGES, _ENERGY_IMAGES)
    found = []
    for image in _pictures(source, limit):
        colors = _filtered_at(view, config)(image)
        found.append(removed_energy(colors, masks(colors.shape[1], colors.shape[2], config.keep)).double().numpy())
    mean: NDArray[np.float64] = np.stack(found).mean(0)
    return mean


def _filtered_at(view: ModelView, config: LowPassConfig) -> Callable[[Image.Image], Tensor]:
    if config.filter_at == "input":
        return lambda image: to_crop(view, image)
    return image_to_bytes


def _pictures(source: Source, limit: int) -> Iterator[Image.Image]:
    for row, _ in islice(source.read(0, 1, None), limit):
        try:
            yield open_image(row.data)
        except ImageError:
            continue


def _examples(view: ModelView, source: Source, config: LowPassConfig) -> Figure:
    shown = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
    rows = []
    for image in islice(_pictures(source, 100), 3):
        colors = _filtered_at(view, config)(image).float()
        pictures = list(_each_filtered(colors[None], masks(colors.shape[1], colors.shape[2], config.keep)))[1:]
        for s, shape in enumerate(SHAPES):
            found = [pictures[s * len(KEPT) + KEPT.index(r)][0] for r in shown]
            rows.append((shape, [(f"r = {r:g}", _to_image(p)) for r, p in zip(shown, found, strict=True)]))
    return picture_grid(rows)
