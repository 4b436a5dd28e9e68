"""Accuracy while high frequencies are taken out of the picture (appendix D, Fig. 16)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitviz_hf.config import LowPassConfig
from vitviz_hf.errors import ImageError
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
from vitviz_hf.figures import Figure, curves, picture_grid
from vitviz_hf.images import open_image
from vitviz_hf.model import ModelView
from vitviz_hf.stream import Source
from vitviz_hf.tables import Cell, Table

SHAPES = ("square", "circle", "gaussian")
KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


def run(
    views: Sequence[ModelView], source: Source, config: LowPassConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Top-1 accuracy against the kept share of frequencies, for three shapes of mask.

    Raises:
        NoClassifierError: a model has no trained classifier.
    """
    check_classifiers(views)
    manifest = describe_run("low-pass", views, source, config) | {"kept": KEPT, "shapes": SHAPES}

    def prepare(example: Example) -> list[list[Tensor]]:
        pictures = [example.image, *filtered(example.image)]
        return [[model_bytes(view, p) for p in pictures] for view in views]

    def score(examples: list[Example], prepared: list[list[list[Tensor]]]) -> Flags:
        return right_pictures(views, examples, prepared, config.batch)

    ways = [(shape, kept) for shape in SHAPES for kept in KEPT]
    names = [f"{m} {way}" for m in range(len(views)) for way in ("natural", *(f"{s} {r:g}" for s, r in ways))]
    few = max(1, config.batch // 8)  # each picture waits as 34 of them
    tally = count_right(views, source, names, prepare, score, few, config.limit, work, progress)
    rows: list[tuple[Cell, ...]] = []
    wide: list[tuple[Cell, ...]] = []
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = {}
    for m, view in enumerate(views):
        natural = tally.flags(f"{m} natural")
        whole = accuracy(natural, config.seed)
        rows.append((view.model_id, "none", None, whole, None))
        for shape in SHAPES:
            flags = [tally.flags(f"{m} {shape} {kept:g}") for kept in KEPT]
            absolute = [accuracy(f, config.seed) for f in flags]
            relative = [accuracy(f, config.seed, natural) for f in flags]
            rows += [(view.model_id, shape, *row) for row in zip(KEPT, absolute, relative, strict=True)]
            for quantity, values in (("top-1", absolute), ("relative", relative)):
                wide.append((view.model_id, shape, quantity, *(x and x.value for x in values)))
            drawn = [(r, x) for r, x in zip(KEPT, relative, strict=True) if x is not None]
            if drawn:
                value, low, high = (np.array([getattr(x, end) for _, x in drawn]) for end in ("value", "low", "high"))
                panels.setdefault(shape, {})[view.model_id] = (np.array([r for r, _ in drawn]), value, low, high)
    notes = (
        *how_scored(tally, source, views),
        "The original picture is filtered for each color, before resize and crop. Kept share r: square keeps "
        "|fx| and |fy| up to r times the highest frequency, circle all within r times it, gaussian halves r times it. "
        "Relative: in % of the accuracy on the unfiltered images.",
    )
    tables = {"table": Table(("model", "mask", "%", *(f"r = {r:g}" for r in KEPT)), tuple(wide), notes)}
    data = {
        "intervals": Table(("model", "mask", "kept share", "top-1, %", "relative, %"), tuple(rows), notes),
    }
    figures = {"examples": _examples(source)}
    if panels:
        figures["figure"] = curves(panels, "kept share of frequencies", "top-1 accuracy, % of the unfiltered")
    return Result("low-pass", tables, figures, manifest, data)


def masks(height: int, width: int) -> Tensor:
    """What each frequency is multiplied by, [shapes x kept shares, H, W], in the order of `torch.fft.fft2`."""
    fy, fx = (torch.fft.fftfreq(n).abs() * 2 for n in (height, width))  # 1 is the highest frequency
    square, distance = torch.maximum(fy[:, None], fx[None]), torch.hypot(fy[:, None], fx[None])
    kept = torch.tensor(KEPT)[:, None, None]
    return torch.cat([(square <= kept).float(), (distance <= kept).float(), torch.exp2(-((distance / kept) ** 2))])


def filtered(image: Image.Image) -> list[Image.Image]:
    """The picture under every mask, at its own resolution."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    spectrum = torch.fft.fft2(pixels)
    pictures = torch.fft.ifft2(spectrum * masks(*pixels.shape[1:])[:, None]).real.clamp(0, 1)
    return [Image.fromarray(p) for p in (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()]


def _examples(source: Source, n: int = 3) -> Figure:
    shown = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
    rows = []
    for row, _ in source.read(0, 1, None):
        try:
            pictures = filtered(open_image(row.data))
        except ImageError:
            continue
        for s, shape in enumerate(SHAPES):
            rows.append((shape, [(f"r = {r:g}", pictures[s * len(KEPT) + KEPT.index(r)]) for r in shown]))
        if len(rows) >= n * len(SHAPES):
            break
    return picture_grid(rows)
