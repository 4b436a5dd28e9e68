"""Pictures of narrow sites, of the wide one, and of directions in it: how high-frequency they are (Fig. 4, 5, 12)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from vitviz_hf.errors import SiteError
from vitviz_hf.experiments.bootstrap import bootstrap
from vitviz_hf.experiments.config import NarrowSitesConfig
from vitviz_hf.experiments.figures import picture_grid
from vitviz_hf.experiments.pictures.choosing import Picture, one_model, optimized, picture_config, without_images
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Interval, Table
from vitviz_hf.images import cover, image_to_bytes
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.objectives import Direction
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import Source, builtin_photographs

WIDE = "mlp_act"
SHOWN_KINDS = ("attn_in", "attn_q", "attn_k", "attn_v", "attn_mix", "mlp_in", "resid", WIDE)
DIRECTIONS = ("random", "rotated")
"""Directions of the wide site: each drawn by itself, or axes of one random rotation of it."""
_HEADER = (
    "layer",
    "kind",
    "",
    "width",
    "features",
    "dead, %",
    "high-frequency, %",
    "least",
    "most",
    "minus wide",
    "score kept, %",
)
_DRAWN = 8


class Group(NamedTuple):
    """What is compared: features of a site, or directions in it."""

    site: Site
    way: str | None = None
    """One of `DIRECTIONS`."""

    @property
    def name(self) -> str:
        """Its kind in the table."""
        return f"{self.site.kind}, {self.way}" if self.way else self.site.kind

    @property
    def what(self) -> str:
        """`wide`, `narrow` or `control`."""
        return "control" if self.way else "wide" if self.site.kind == WIDE else "narrow"


def run(
    views: Sequence[ModelView],
    source: Source | None,
    config: NarrowSitesConfig,
    work: Path,
    progress: Progress | None = None,
) -> Result:
    """Pictures of the same feature numbers at each kind of site, early and deep, with their high-frequency share.

    Raises:
        ConfigError: several models, or a preset that needs real images.
        SiteError: a layer that the model lacks.
    """
    view = one_model("narrow-sites", views)
    plan = without_images("narrow-sites", picture_config(config.preset, config.steps, config.seed))
    how = replace(plan, smoothness=config.smoothness)
    layers = _layers(view, config.layers)
    sites = [Site(layer, kind) for layer in layers for kind in SHOWN_KINDS if kind in view.layers[layer].taps]
    width = min(find_tap(view, site).size for site in sites)
    wanted = config.columns or (8 if view.device.type == "cpu" else 32)
    numbers = sorted(np.random.default_rng(config.seed).choice(width, min(wanted, width), replace=False).tolist())
    groups: dict[Group, list[Feature | Direction]] = {}
    for site in sites:
        groups[Group(site)] = [Feature(site, i) for i in numbers]
        for way in DIRECTIONS if site.kind == WIDE else ():
            groups[Group(site, way)] = [*directions(view, site, way, len(numbers), config.seed)]
    made = optimized(view, [t for targets in groups.values() for t in targets], how, work, progress)
    pictures = {group: [made[t] for t in targets] for group, targets in groups.items()}
    wide = {group.site.layer: own for group, own in pictures.items() if group.what == "wide"}
    rows = tuple(_row(view, group, own, wide[group.site.layer], config.seed) for group, own in pictures.items())
    notes = _notes(view, config, how, numbers)
    if len(sites) < len(SHOWN_KINDS) * len(layers):
        notes = (*notes, "Kinds that the model does not have are left out.")
    grid = [(f"{group.site.layer}.{group.name}", _captioned(groups[group], own)) for group, own in pictures.items()]
    return Result("narrow-sites", {"table": Table(_HEADER, rows, notes)}, {"figure": picture_grid(grid)})


def _notes(view: ModelView, config: NarrowSitesConfig, how: VisualizeConfig, numbers: Sequence[int]) -> tuple[str, ...]:
    photographs = [high_frequency_share(cover(e.image, view.input_size)) for e in builtin_photographs()]
    smoothness = "matched to the gradient of each site" if how.smoothness == "auto" else f"{how.smoothness:g}"
    return (
        "Dead: the feature does not fire on its final picture (score not above 0). All that follows is of the others.",
        "High-frequency share: of the spectral energy of a picture (each color without its mean), what lies above half "
        "the highest frequency, in %. White noise has 80 %"
        + (f", the built-in photographs {100 * np.mean(photographs):.1f} % in the mean." if photographs else "."),
        f"Minus wide: mean difference to {WIDE} of the same layer, in points, with its 95 % interval (bootstrap over "
        "pairs). The n-th features drawn at two sites are a pair, and count if both are alive; the same number means "
        "nothing else at another site.",
        f"Controls: unit vectors in {WIDE}, as wide but no neurons. Random: each Gaussian, by itself. Rotated: axes of "
        "one random rotation, so at right angles to each other. One axis alone is distributed as a random direction, "
        "and so is one of a random projection to fewer dimensions: a picture depends on its direction only.",
        "Score kept: median of the score when the picture is turned, zoomed and blurred, in % of its score; "
        "below 0 if it changes sign.",
        f"Feature numbers drawn at random (seed {config.seed}): {', '.join(map(str, numbers))}. "
        f"Preset {config.preset}, {how.steps} steps, {how.copies} copies, smoothness {smoothness}.",
    )


def directions(view: ModelView, site: Site, way: str, n: int, seed: int) -> list[Direction]:
    """Unit vectors of a site: `random`, or `rotated`, which are at right angles to each other."""
    rng = np.random.default_rng((seed, site.layer, DIRECTIONS.index(way)))
    vectors = rng.standard_normal((n, find_tap(view, site).size))
    if way == "rotated":  # the first axes of a random rotation, without the others
        axes, scale = np.linalg.qr(vectors.T)
        vectors = (axes * np.sign(np.diag(scale))).T
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [Direction(site, tuple(v), f"{way}{i}") for i, v in enumerate(vectors.astype(np.float32).tolist())]


def high_frequency_share(image: Image.Image) -> float:
    """Share of a picture's spectral energy beyond half the highest frequency, its mean color left out."""
    pixels = image_to_bytes(image).double()
    energy = torch.fft.fft2(pixels - pixels.mean((1, 2), keepdim=True)).abs().square().sum(0)
    fy, fx = (torch.fft.fftfreq(n) * 2 for n in energy.shape)
    high = torch.hypot(fy[:, None], fx[None]) > 0.5
    total = float(energy.sum())
    return float(energy[high].sum()) / total if total > 0 else 0.0


def _row(view: ModelView, group: Group, own: Sequence[Picture], wide: Sequence[Picture], seed: int) -> tuple[Cell, ...]:
    alive = [p for p in own if p.alive]
    shares = [100 * high_frequency_share(p.image) for p in alive]
    kept = [100 * p.transfer_score / p.score for p in alive]
    found = (float(np.mean(shares)), min(shares), max(shares)) if alive else (None,) * 3
    return (
        group.site.layer,
        group.name,
        group.what,
        find_tap(view, group.site).size,
        len(own),
        100 * (1 - len(alive) / len(own)),
        *found,
        None if group.what == "wide" else _minus(own, wide, seed),
        float(np.median(kept)) if kept else None,
    )


def _minus(own: Sequence[Picture], wide: Sequence[Picture], seed: int) -> Interval | None:
    pairs = [(a.image, b.image) for a, b in zip(own, wide, strict=True) if a.alive and b.alive]
    apart = np.array([100 * (high_frequency_share(a) - high_frequency_share(b)) for a, b in pairs])
    return bootstrap(lambda some: float(apart[some].mean()), len(pairs), seed)


def _captioned(targets: Sequence[Feature | Direction], own: Sequence[Picture]) -> list[tuple[str, Image.Image]]:
    names = [str(t.index) if isinstance(t, Feature) else t.name for t in targets]
    return [(n if p.alive else f"{n}, dead", p.image) for n, p in zip(names, own, strict=True)][:_DRAWN]


def _layers(view: ModelView, wanted: Sequence[int] | None) -> list[int]:
    depth = len(view.layers)
    layers = wanted or [round((depth - 1) * share) for share in (1 / 6, 1 / 2, 5 / 6)]
    for layer in layers:
        if layer >= depth:
            raise SiteError(f"{view.model_id!r} has layers 0-{depth - 1}; got {layer}.")
    return list(dict.fromkeys(layers))
