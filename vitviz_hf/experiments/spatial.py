"""Whether a feature's activation stays where its cause is: active patches are blacked out (appendix F, Fig. 63, 64)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitviz_hf.config import SpatialConfig
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.accuracy import Progress
from vitviz_hf.experiments.pictures import atlas_for, one_model
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.figures import curves
from vitviz_hf.images import open_image
from vitviz_hf.maps import activation_map
from vitviz_hf.model import ModelView, find_tap
from vitviz_hf.recording import activations
from vitviz_hf.sites import Feature
from vitviz_hf.stream import Source
from vitviz_hf.tables import Cell, Table

DROPPED = tuple(x / 10 for x in range(10))


def run(
    views: Sequence[ModelView], source: Source | None, config: SpatialConfig, work: Path,
    progress: Progress | None = None,
) -> Result:  # fmt: skip
    """Active patches and sum of activation against the share of active patches that is blacked out.

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
    summary: list[tuple[Cell, ...]] = []
    long: list[tuple[Cell, ...]] = []
    lines: dict[str, dict[str, Any]] = {"active patches": {}, "sum of activation": {}}
    for done, site in enumerate(sites):
        n = find_tap(view, site).size
        chosen = np.sort(rng.choice(n, min(config.per_layer, n), replace=False)) if config.per_layer else np.arange(n)
        found = []
        for i in chosen.tolist():
            feature = Feature(site, i)
            crop = open_image(atlas.image(atlas.hits(feature)[0].row).jpeg)
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + site.layer * 100_003 + i)
            found.append(measure(view, feature, pixels, config.threshold, generator, config.batch))
        kept = [f for f in found if f is not None]
        if kept:
            both = np.stack(kept)  # [features, 2, dropped]
            for q, quantity in enumerate(lines):
                middle = both[:, q].mean(0)
                low, high = np.quantile(both[:, q], (0.25, 0.75), axis=0)
                lines[quantity][f"layer {site.layer}"] = (np.array(DROPPED), middle, low, high)
                long += [
                    (site.layer, quantity, x, len(kept), *map(float, values))
                    for x, *values in zip(DROPPED, middle, low, high, strict=True)
                ]
            mean = both.mean(0)
            away = np.abs(mean - (1 - np.array(DROPPED))).mean(1)
            summary.append((site.layer, len(kept), len(found) - len(kept), *mean[:, 5].tolist(), *away.tolist()))
        else:
            summary.append((site.layer, 0, len(found), None, None, None, None))
        if progress:
            progress(done + 1, len(sites))
    how = (
        f"Each feature on its most activating of {atlas.manifest['n_images']:,} images of {atlas.manifest['dataset']}. "
        f"A patch is active above {config.threshold:g}; inactive ones are blacked out, then a random share of the "
        "active ones. Both are relative to nothing more blacked out; the sum is that of positive activations.",
        "Left out: features without an active patch, before or after the inactive ones are blacked out."
        + (
            f" {config.per_layer} features of each layer, drawn at random (seed {config.seed})."
            if config.per_layer
            else ""
        ),
    )
    columns = (
        "layer",
        "features",
        "left out",
        "active at 50 %",
        "sum at 50 %",
        "active: off the line",
        "sum: off the line",
    )
    line = "Off the line: mean distance from 1 - x over the curve; 0 if the information is local."
    tables = {"table": Table(columns, tuple(summary), (line, *how))}
    data = {
        "curves": Table(
            ("layer", "quantity", "dropped", "features", "mean", "lower quartile", "upper quartile"), tuple(long), how
        ),
    }
    figures = {}
    if lines["active patches"]:
        figures["figure"] = curves(lines, "share of active patches blacked out", "share left", by_order=True)
    return Result("spatial", tables, figures, describe_run("spatial", views, source, config), data)


def measure(
    view: ModelView, feature: Feature, pixels: Tensor, threshold: float, generator: torch.Generator, batch: int = 32
) -> NDArray[np.float64] | None:
    """Active patches and sum of positive activation for each share of `DROPPED`, relative to the first.

    Args:
        pixels: [3, H, W] in [0, 1].

    Returns:
        [2, 10], or None if no patch is active.
    """

    def maps(stack: Tensor) -> Tensor:
        parts = [
            activation_map(view, activations(view, some.to(view.device), [feature.site])[feature.site], feature)
            for some in stack.split(batch)
        ]
        return torch.cat(parts).float().cpu()

    active = (maps(pixels[None])[0] > threshold).flatten()
    places = active.nonzero().squeeze(1)
    if not len(places):
        return None
    order = places[torch.randperm(len(places), generator=generator)]
    grid = find_tap(view, feature.site).patch_grid
    pictures = []
    for share in DROPPED:
        left = torch.zeros(active.shape)
        left[order[round(share * len(order)) :]] = 1
        pictures.append(pixels * black_out(left.reshape(grid), (pixels.shape[1], pixels.shape[2])))
    values = maps(torch.stack(pictures)).flatten(1)
    counts, sums = (values > threshold).sum(1).double(), values.clamp_min(0).sum(1).double()
    if not counts[0]:
        return None
    return torch.stack([counts / counts[0], sums / sums[0]]).numpy()


def black_out(left: Tensor, size: tuple[int, int]) -> Tensor:
    """[R, C] of ones and zeros as a mask [H, W]."""
    return torch.nn.functional.interpolate(left[None, None], size, mode="nearest")[0, 0]
