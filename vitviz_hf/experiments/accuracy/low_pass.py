"""Accuracy while high frequencies are taken out of the picture (appendix D, Fig. 16), or low ones."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import ImageError
from vitviz_hf.experiments.accuracy.classifiers import check_classifiers
from vitviz_hf.experiments.accuracy.pixels import logits_of, model_bytes
from vitviz_hf.experiments.accuracy.study import Example, Flags, Progress, accuracy, count_right, how_scored, is_right
from vitviz_hf.experiments.config import LowPassConfig
from vitviz_hf.experiments.figures import Figure, curves, picture_grid
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import bytes_to_image, image_to_bytes, open_image
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

SHAPES = ("square", "circle", "gaussian")
KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
_WAYS = tuple((shape, r) for shape in SHAPES for r in KEPT)
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
    manifest = describe_run("low-pass", views, source, config) | {"kept": KEPT, "shapes": SHAPES}
    at_input = config.filter_at == "input"

    def prepare(example: Example) -> list[Tensor]:
        """For each model [1, 3, H, W], or the picture itself and under every mask, as the model sees them."""
        originals = [example.image] if at_input else [example.image, *filtered_files(example.image, config.keep)]
        return [torch.stack([model_bytes(view, p) for p in originals]) for view in views]

    def score(examples: list[Example], prepared: list[list[Tensor]]) -> Flags:
        columns = []
        for m, view in enumerate(views):
            targets = [e.targets[m] for e in examples]
            forms = torch.stack([p[m] for p in prepared])
            pictures: Iterator[Tensor] = iter(forms.unbind(1))
            if at_input:
                pictures = _each_filtered(forms[:, 0].to(view.device).float(), masks(*view.input_size, config.keep))
            columns += [is_right(logits_of(view, some, config.batch), targets, 1) for some in pictures]
        return np.stack(columns, 1)

    names = [f"{m} {way}" for m in range(len(views)) for way in ("natural", *(f"{s} {r:g}" for s, r in _WAYS))]
    few = config.batch if at_input else max(1, config.batch // 8)  # each picture waits as 34 of them
    tally = count_right(views, source, names, prepare, score, few, config.limit, work, progress)
    rows: list[tuple[Cell, ...]] = []
    wide: list[tuple[Cell, ...]] = []
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = {}
    for m, view in enumerate(views):
        natural = tally.flags(f"{m} natural")
        rows.append((view.model_id, "none", None, None, 0.0, accuracy(natural, config.seed), None))
        removed = _mean_removed(view, source, config)
        for s, shape in enumerate(SHAPES):
            flags = [tally.flags(f"{m} {shape} {kept:g}") for kept in KEPT]
            absolute = [accuracy(f, config.seed) for f in flags]
            relative = [accuracy(f, config.seed, natural) for f in flags]
            lost = [float(x) for x in removed[s * len(KEPT) : (s + 1) * len(KEPT)]]
            cycles = [r * view.input_size[0] / 2 if at_input else None for r in KEPT]
            both = zip(KEPT, cycles, lost, absolute, relative, strict=True)
            rows += [(view.model_id, shape, *row) for row in both]
            wide.append((view.model_id, shape, "top-1", *(x and x.value for x in absolute)))
            wide.append((view.model_id, shape, "relative", *(x and x.value for x in relative)))
            wide.append((view.model_id, shape, "removed energy", *lost))
            drawn = [(r, x) for r, x in zip(KEPT, relative, strict=True) if x is not None]
            if drawn:
                value, low, high = (np.array([getattr(x, end) for _, x in drawn]) for end in ("value", "low", "high"))
                panels.setdefault(shape, {})[view.model_id] = (np.array([r for r, _ in drawn]), value, low, high)
    notes = (*how_scored(tally, source, views), *_notes(views, config))
    tables = {"table": Table(("model", "mask", "%", *(f"r = {r:g}" for r in KEPT)), tuple(wide), notes)}
    header = ("model", "mask", "r", "cycles per image", "removed energy, %", "top-1, %", "relative, %")
    figures = {"examples": _examples(views[0], source, config)}
    if panels:
        heights = {view.input_size[0] for view in views}
        top = ("cycles per image", heights.pop() / 2) if at_input and len(heights) == 1 else None
        figures["figure"] = curves(panels, _BANDS[config.keep][1], "top-1 accuracy, % of the unfiltered", top=top)
    return Result("low-pass", tables, figures, manifest, {"intervals": Table(header, tuple(rows), notes)})


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


def _each_filtered(pixels: Tensor, several: Tensor) -> Iterator[Tensor]:
    """Pictures [B, 3, H, W] as they are, and under each mask."""
    yield pixels
    spectrum = torch.fft.fft2(pixels)
    for mask in several.to(pixels.device):
        yield torch.fft.ifft2(spectrum * mask).real


def filtered_files(image: Image.Image, keep: str = "low") -> list[Image.Image]:
    """The picture under every mask, at its own resolution, in 8 bits."""
    pixels = image_to_bytes(image).float()
    pictures = islice(_each_filtered(pixels[None], masks(pixels.shape[1], pixels.shape[2], keep)), 1, None)
    return [to_image(p[0]) for p in pictures]


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in 0 to 255, clipped and rounded."""
    return bytes_to_image(pixels.round().clamp(0, 255).to(torch.uint8))


def removed_energy(pixels: Tensor, several: Tensor) -> Tensor:
    """Share of the energy of a picture's spectrum that each mask takes away, without the mean color, [masks] in %.

    Args:
        pixels: [3, H, W]; 0 where all are alike.
        several: [masks, H, W].
    """
    power = torch.fft.fft2(pixels.float()).abs().square().sum(0)
    power[0, 0] = 0
    total = power.sum()
    kept = (several.square() * power).sum((1, 2))
    return 100 * (1 - kept / total) if total > 0 else torch.zeros(len(several))


def _mean_removed(view: ModelView, source: Source, config: LowPassConfig) -> NDArray[np.float64]:
    limit = min(config.limit or _ENERGY_IMAGES, _ENERGY_IMAGES)
    found = []
    for image in _pictures(source, limit):
        pixels = _filtered_at(view, config)(image)
        found.append(removed_energy(pixels, masks(pixels.shape[1], pixels.shape[2], config.keep)).double().numpy())
    mean: NDArray[np.float64] = np.stack(found).mean(0)
    return mean


def _filtered_at(view: ModelView, config: LowPassConfig) -> Callable[[Image.Image], Tensor]:
    if config.filter_at == "input":
        return lambda image: model_bytes(view, image)
    return image_to_bytes


def _pictures(source: Source, limit: int) -> Iterator[Image.Image]:
    for row, _ in islice(source.read(0, 1, None), limit):
        try:
            yield open_image(row.data)
        except ImageError:
            continue


def _examples(view: ModelView, source: Source, config: LowPassConfig, n: int = 3) -> Figure:
    shown = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
    rows = []
    for image in islice(_pictures(source, 100), n):
        pixels = _filtered_at(view, config)(image).float()
        pictures = list(_each_filtered(pixels[None], masks(pixels.shape[1], pixels.shape[2], config.keep)))[1:]
        for s, shape in enumerate(SHAPES):
            found = [pictures[s * len(KEPT) + KEPT.index(r)][0] for r in shown]
            rows.append((shape, [(f"r = {r:g}", to_image(p)) for r, p in zip(shown, found, strict=True)]))
    return picture_grid(rows)
