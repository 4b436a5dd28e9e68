"""Whether a feature's activation stays where its cause is: active patches are blacked out (appendix F, Fig. 63, 64)."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitviz_hf.errors import ConfigError, NonFiniteError
from vitviz_hf.experiments.bootstrap import bootstrap
from vitviz_hf.experiments.config import SpatialConfig
from vitviz_hf.experiments.figures import curves
from vitviz_hf.experiments.pictures.choosing import atlas_for, one_model
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Interval, Table
from vitviz_hf.images import image_to_pixels, open_image
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.maps import activation_map, name_precision
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature
from vitviz_hf.stream import Source

SHARES = tuple(x / 10 for x in range(11))
"""Of the active patches, blacked out. Lines are fitted up to 0.9, as in the paper: at 1 the picture is black."""
QUANTITIES = ("active patches", "sum of activation")
_CONTROL = "active patches when others are blacked out"
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curves:
    """What is left of a feature, each relative to the picture as it is. All [2, 11]: of patches, of the sum."""

    lost: Points
    """Share of the quantity that lay in the patches blacked out: 0 to 1."""
    left: Points
    """Share that is found, all inactive patches being black. `1 - lost` if the feature is local."""
    control: Points
    """Share that is found when equally many other patches are blacked out instead, and no more. 1 if it is local."""


def run(
    views: Sequence[ModelView],
    source: Source | None,
    config: SpatialConfig,
    work: Path,
    progress: Progress | None = None,
) -> Result:
    """Active patches and sum of their activation against the share of active patches that is blacked out.

    Raises:
        ConfigError: several models.
        AtlasError: the atlas is of another model.
    """
    view = one_model("spatial", views)
    atlas = atlas_for(view, source, config.atlas, config.limit, config.batch, 1, work, progress)
    rng = np.random.default_rng(config.seed)
    sites = [s for s in atlas.sites if s.kind == "mlp_act"]
    if not sites:
        raise ConfigError(f"the atlas {atlas.name!r} has no site of kind mlp_act.")
    rows: list[tuple[Cell, ...]] = []
    long: list[tuple[Cell, ...]] = []
    lines: dict[str, dict[str, Any]] = {name: {} for name in (*QUANTITIES, _CONTROL)}
    non_finite: list[str] = []
    for done, site in enumerate(sites):
        n = find_tap(view, site).size
        chosen = np.sort(rng.choice(n, min(config.per_layer, n), replace=False)) if config.per_layer else np.arange(n)
        found: list[Curves] = []
        left_out: Counter[int] = Counter()
        for i in chosen.tolist():
            feature = Feature(site, i)
            crop = open_image(atlas.image(atlas.hits(feature)[0].row).jpeg)
            pixels = image_to_pixels(crop)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + site.layer * 100_003 + i)
            try:
                one = measure(view, feature, pixels, config.threshold, config.min_active, generator, config.batch)
            except NonFiniteError as error:
                non_finite.append(str(error))
                continue
            if isinstance(one, Curves):
                found.append(one)
            else:
                left_out[min(one, 1)] += 1
        rows.append((site.layer, len(found), left_out[0], left_out[1], *_cells(found, config.seed)))
        for name, values in _curves(found).items():
            middle = values.mean(0)
            low, high = np.quantile(values, (0.25, 0.75), axis=0)
            lines[name][f"layer {site.layer}"] = (np.array(SHARES), middle, low, high)
            long += [
                (site.layer, name, x, len(found), *map(float, cells))
                for x, *cells in zip(SHARES, middle, low, high, strict=True)
            ]
        if progress:
            progress(done + 1, len(sites))
    if non_finite:
        warnings.warn(f"{non_finite[0]} Left out: {len(non_finite)} features.", RuntimeWarning, stacklevel=2)
    how = (
        f"Each feature on its most activating of {atlas.manifest['n_images']:,} images of {atlas.manifest['dataset']}. "
        f"A patch is active above {config.threshold:g}. Inactive ones are blacked out, then a random share of the "
        "active ones. What is left is divided by what the picture as it is has; the sum is that of active patches.",
        *([f"Left out: {len(non_finite)} features; first: {non_finite[0]}"] if non_finite else []),
        "Other patches: equally many of the inactive ones are blacked out instead, on the picture as it is, or all of "
        "them where there are fewer.",
        f"Left out: features without an active patch on that image, and with fewer than {config.min_active}."
        + (
            f" {config.per_layer} features of each layer, drawn at random (seed {config.seed})."
            if config.per_layer
            else ""
        ),
    )
    columns = (
        "layer",
        "features",
        "none active",
        "too few active",
        *(f"{q}{what}" for q in ("active", "sum") for what in (" at 0 %", ", slope", ", R2", ", off the line")),
        "active, 50 % of others",
        "sum, 50 % of others",
    )
    meaning = (
        "At 0 %: only the inactive patches are black. Slope and R2: least squares through the points of all features "
        "of a layer, share left against share blacked out, up to 90 %; -1 and 1 if the information is local. Intervals "
        "are 95 %, bootstrap over features.",
        "Off the line: mean distance between the share that is left and the share that lay in the patches still there; "
        "0 if the information is local, whatever the number of patches.",
    )
    tables = {"table": Table(columns, tuple(rows), (*meaning, *how))}
    data = {
        "curves": Table(
            ("layer", "quantity", "dropped", "features", "mean", "lower quartile", "upper quartile"), tuple(long), how
        ),
    }
    figures = {}
    if long:
        figures["figure"] = curves(lines, "share blacked out", "share left", by_order=True)
    return Result("spatial", tables, figures, data=data)


def measure(
    view: ModelView,
    feature: Feature,
    pixels: Tensor,
    threshold: float,
    min_active: int,
    generator: torch.Generator,
    batch: int = 32,
) -> Curves | int:
    """What is left of a feature while more and more of its active patches are blacked out.

    Args:
        pixels: [3, H, W] in [0, 1].

    Returns:
        The number of active patches where it is below `min_active`.

    Raises:
        NonFiniteError: the feature is NaN or infinite on one of the pictures.
    """

    def maps(stack: Tensor) -> Tensor:
        parts = [
            activation_map(activations(view, some.to(view.device), [feature.site])[feature.site], feature)
            for some in stack.split(batch)
        ]
        return torch.cat(parts).float().cpu().double()

    def quantities(values: Tensor) -> Tensor:
        if not values.isfinite().all():
            raise NonFiniteError(f"{feature} in {name_precision(view)} is NaN or infinite on a picture.")
        active = values > threshold
        return torch.stack([active.sum(-1).double(), (values * active).sum(-1)])

    (natural_map,) = maps(pixels[None])
    grid, natural = natural_map.shape, natural_map.flatten()
    quantities(natural)
    active = natural > threshold
    n = int(active.sum())
    if n < max(min_active, 1):
        return n
    inside, outside = (
        places[torch.randperm(len(places), generator=generator)]
        for places in (active.nonzero().squeeze(1), (~active).nonzero().squeeze(1))
    )
    counts = [round(share * n) for share in SHARES]
    kept = torch.zeros(2, len(SHARES), len(natural))
    for step, count in enumerate(counts):
        kept[0, step, inside[count:]] = 1
        kept[1, step] = 1
        kept[1, step, outside[:count]] = 0
    masks = [black_out(k.reshape(grid), (pixels.shape[1], pixels.shape[2])) for k in kept.flatten(0, 1)]
    values = maps(torch.stack([pixels * mask for mask in masks])).flatten(1).unflatten(0, (2, -1))
    whole = quantities(natural)
    lost = 1 - quantities(natural * kept[0]) / whole[:, None]
    left, control = (quantities(v) / whole[:, None] for v in values)
    return Curves(lost.numpy(), left.numpy(), control.numpy())


def black_out(left: Tensor, size: tuple[int, int]) -> Tensor:
    """[R, C] of ones and zeros as a mask [H, W]."""
    return torch.nn.functional.interpolate(left[None, None], size, mode="nearest")[0, 0]


def _curves(found: Sequence[Curves]) -> dict[str, Points]:
    """Share left of each quantity at the same shares blacked out for all features, [features, 11]."""
    if not found:
        return {}
    named = {q: np.stack([np.interp(SHARES, c.lost[i], c.left[i]) for c in found]) for i, q in enumerate(QUANTITIES)}
    return named | {_CONTROL: np.stack([np.interp(SHARES, c.lost[0], c.control[0]) for c in found])}


def _cells(found: Sequence[Curves], seed: int) -> list[Cell]:
    """Cells of the table: means over features, and the line through them."""
    if not found:
        return [None] * 10
    cells: list[Cell] = []
    for q in range(2):
        away = np.mean([np.abs(c.left[q] - (1 - c.lost[q]))[:-1].mean() for c in found])
        cells += [float(np.mean([c.left[q, 0] for c in found])), *_line(found, q, seed), float(away)]
    return [*cells, *(float(np.mean([np.interp(0.5, c.lost[0], c.control[q]) for c in found])) for q in range(2))]


def _line(found: Sequence[Curves], q: int, seed: int) -> tuple[Interval | None, Interval | None]:
    """Slope and R2 of the line through the points of all features, with intervals."""
    points = [(c.lost[q, :-1], c.left[q, :-1]) for c in found]
    moments = np.array([[x.size, x.sum(), y.sum(), x @ x, x @ y, y @ y] for x, y in points])

    def spread(some: NDArray[Any]) -> tuple[float, float, float]:
        n, x, y, xx, xy, yy = moments[some].sum(0)
        return xx - x * x / n, xy - x * y / n, yy - y * y / n

    def slope(some: NDArray[Any]) -> float:
        xx, xy, _ = spread(some)
        return float(xy / xx)

    def r2(some: NDArray[Any]) -> float:
        xx, xy, yy = spread(some)
        return float(xy**2 / (xx * yy)) if yy > 1e-12 else 0.0

    return bootstrap(slope, len(found), seed), bootstrap(r2, len(found), seed)
