"""The same features at narrow sites and at the wide one, and how high-frequency their pictures are (Fig. 4, 5, 12)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitviz_hf.config import NarrowSitesConfig
from vitviz_hf.errors import ConfigError, SiteError
from vitviz_hf.experiments.accuracy import Progress
from vitviz_hf.experiments.pictures import one_model, optimized, picture_config
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.figures import picture_grid
from vitviz_hf.images import cover
from vitviz_hf.model import ModelView, find_tap
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import Source, builtin_photographs
from vitviz_hf.tables import Cell, Table

KINDS = ("attn_q", "attn_k", "attn_v", "mlp_in", "resid", "mlp_act")


def run(
    views: Sequence[ModelView], source: Source | None, config: NarrowSitesConfig, work: Path,
    progress: Progress | None = None,
) -> Result:  # fmt: skip
    """Pictures of the same feature numbers at each kind of site, early and deep, with their high-frequency share.

    Raises:
        ConfigError: several models, or layers that are no numbers.
        SiteError: a layer that the model lacks.
    """
    view = one_model("narrow-sites", views)
    layers = _layers(view, config.layers)
    sites = [Site(layer, kind) for layer in layers for kind in KINDS if kind in view.layers[layer].taps]
    width = min(find_tap(view, site).size for site in sites)
    numbers = np.random.default_rng(config.seed).choice(width, min(config.columns, width), replace=False)
    how = picture_config(config.preset, config.steps, config.seed)
    features = [Feature(site, int(i)) for site in sites for i in sorted(numbers)]
    pictures = optimized(view, features, how, work, progress)
    rows: list[tuple[Cell, ...]] = []
    for site in sites:
        own = [pictures[f] for f in features if f.site == site]
        shares = np.array([high_frequency_share(p.image) for p in own])
        kept = float(np.median([p.transfer_score / p.score if p.score > 0 else 0.0 for p in own]))
        wide = "wide" if site.kind == "mlp_act" else "narrow"
        rows.append((
            site.layer, site.kind, wide, find_tap(view, site).size, 100 * shares.mean(), 100 * shares.min(),
            100 * shares.max(), 100 * kept,
        ))  # fmt: skip
    photographs = [high_frequency_share(cover(e.image, view.input_size)) for e in builtin_photographs()]
    notes = [
        "High-frequency share: of the spectral energy of a picture (each color without its mean), what lies above half "
        "the highest frequency, in %. White noise has 80 %"
        + (f", the built-in photographs {100 * np.mean(photographs):.1f} % in the mean." if photographs else "."),
        "Score kept: median of the score when the picture is turned, zoomed and blurred, in % of its score; "
        "below 0 if it changes sign.",
        f"Feature numbers drawn at random (seed {config.seed}): {', '.join(map(str, sorted(numbers.tolist())))}. "
        f"Preset {config.preset}, {how.steps} steps, {how.copies} copies.",
    ]  # fmt: skip
    if len(sites) < len(KINDS) * len(layers):
        notes.append("Kinds that the model does not have are left out.")
    grid = [(f"{site}", [(str(f.index), pictures[f].image) for f in features if f.site == site]) for site in sites]
    header = ("layer", "kind", "", "width", "high-frequency, %", "least", "most", "score kept, %")
    manifest = describe_run("narrow-sites", views, source, config)
    table = Table(header, tuple(rows), tuple(notes))
    return Result("narrow-sites", {"table": table}, {"figure": picture_grid(grid)}, manifest)


def high_frequency_share(image: Image.Image) -> float:
    """Share of a picture's spectral energy beyond half the highest frequency, its mean color left out."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255
    energy = torch.fft.fft2(pixels - pixels.mean((1, 2), keepdim=True)).abs().square().sum(0)
    fy, fx = (torch.fft.fftfreq(n) * 2 for n in energy.shape)
    high = torch.hypot(fy[:, None], fx[None]) > 0.5
    total = float(energy.sum())
    return float(energy[high].sum()) / total if total > 0 else 0.0


def _layers(view: ModelView, text: str) -> list[int]:
    depth = len(view.layers)
    if not text:
        return sorted({round((depth - 1) * share) for share in (1 / 6, 1 / 2, 5 / 6)})
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"layers must be numbers with commas between, such as 2,9; got {text!r}.") from error
    for layer in layers:
        if not 0 <= layer < depth:
            raise SiteError(f"{view.model_id!r} has layers 0-{depth - 1}; got {layer}.")
    return layers
