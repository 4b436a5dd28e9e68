"""The page of a feature: its optimized picture, the real images that it ranks with their maps, and its scores.

One HTML fragment for the app and for a file of its own, and the papers' figure "picture, image, map" as a PNG.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.atlas.store import QUANTILES, Atlas, Hit
from vitviz_hf.errors import AtlasError
from vitviz_hf.images import contact_sheet, encode, map_range, open_image, overlay
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.reading.maps import activation_map
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature

_CSS = """
.vitviz-page { font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
.vitviz-page .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; }
.vitviz-page figure { margin: 0; display: grid; grid-template-columns: 1fr; gap: 3px; }
.vitviz-page .tiles figure { grid-template-columns: 1fr 1fr; }
.vitviz-page img { width: 100%; display: block; border-radius: 4px; margin: 0; }
.vitviz-page figcaption { grid-column: 1 / -1; }
.vitviz-page figcaption { font-size: 12px; opacity: 0.8; overflow-wrap: anywhere; }
.vitviz-page .main { display: flex; flex-wrap: wrap; gap: 20px; }
.vitviz-page .main > * { flex: 1 1 260px; max-width: 420px; }
.vitviz-page code { font-size: 0.95em; }
"""
_DOCUMENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>:root {{ color-scheme: light dark; }}
body {{ margin: 20px auto; max-width: 1100px; padding: 0 14px; }}</style></head><body>{body}</body></html>
"""


@dataclass(frozen=True, slots=True)
class MappedHit:
    """A ranked image with its activation map."""

    hit: Hit
    name: str
    label: str
    crop: Image.Image
    values: NDArray[np.floating[Any]]
    """[R, C], computed from the stored crop."""


def map_hits(view: ModelView, atlas: Atlas, feature: Feature, n: int = 8, bottom: bool = False) -> list[MappedHit]:
    """The first n ranked images of a feature with their maps.

    Raises:
        AtlasError: the atlas is of another model, revision or input size.
        SiteError: the atlas does not cover the site.
        FeatureError: no such feature.
    """
    check_model(view, atlas)
    hits = atlas.hits(feature, bottom)[:n]
    if not hits:
        return []
    stored = [atlas.image(hit.row) for hit in hits]
    crops = [open_image(s.jpeg) for s in stored]
    pixels = torch.stack([torch.from_numpy(np.array(c)).permute(2, 0, 1).float() / 255 for c in crops])
    acts = activations(view, pixels.to(view.device), [feature.site])[feature.site]
    maps = activation_map(acts, feature).float().cpu().numpy()
    return [
        MappedHit(hit, s.name, s.label, crop, values)
        for hit, s, crop, values in zip(hits, stored, crops, maps, strict=True)
    ]


def check_model(view: ModelView, atlas: Atlas) -> None:
    """Raise unless the atlas was made with this model.

    Raises:
        AtlasError: the atlas is of another model, revision, weights, input size or dtype.
    """
    if difference := view.identity.difference(atlas.manifest):
        raise AtlasError(
            f"the atlas {atlas.name!r} is not of {view.model_id!r} as it was loaded: it was made with {difference}."
        )


def feature_page(view: ModelView, atlas: Atlas, feature: Feature, n: int = 8) -> str:
    """The page as an HTML fragment with its pictures inside.

    Args:
        n: images at either end.

    Raises:
        AtlasError: the atlas is of another model.
        SiteError: the atlas does not cover the site.
        FeatureError: no such feature.
    """
    top, bottom = map_hits(view, atlas, feature, n), map_hits(view, atlas, feature, n, bottom=True)
    scale = map_range(*(h.values for h in (*top, *bottom)))
    table, i = atlas.table(feature.site), feature.index
    picture = atlas.visualization(feature)
    score = float(read_recipe(picture)["score"]) if picture else None
    quantiles = ", ".join(f"{q:.0%}: {v:.3g}" for q, v in zip(QUANTILES, table.quantiles[i], strict=True))
    neighbours = ", ".join(f"<code>{f}</code> ({shared})" for f, shared in atlas.neighbours(feature)) or "none"
    facts = atlas.manifest
    shown = (
        _figure(
            {"The picture optimized for this feature": open_image(picture)}, f"optimized picture, score {score:.3g}"
        )
        if picture and score is not None
        else "<p>No optimized picture yet.</p>"
    )
    return f"""<div class="vitviz-page"><style>{_CSS}</style>
<h2><code>{feature}</code> of {html.escape(facts["model_id"])}</h2>
<p>{facts["n_images"]:,} images of {html.escape(facts["dataset"])}; score: {facts["reduce"]} over patches;
mean {table.mean[i]:.3g}, standard deviation {table.std[i]:.3g}, {table.sparsity[i]:.0%} of patches not active.</p>
{_words(atlas, feature)}<div class="main"><div>{shown}</div><div>{_histogram(*atlas.histogram(feature), score)}
<p>Quantiles: {quantiles}.</p><p>Features with the same images among their top {facts["k"]} (shared): {neighbours}.</p>
</div></div>
<h3>Most activating images, and where</h3><div class="tiles">{_tiles(top, scale)}</div>
<h3>Least activating images</h3><div class="tiles">{_tiles(bottom, scale)}</div>
<p>Maps share one color scale, {scale[0]:.3g} to {scale[1]:.3g}, and are computed from the stored crops.
Model revision {facts["revision"] or "-"}, dataset revision {facts["dataset_revision"] or "-"},
split {html.escape(facts["split"] or "-")}.</p></div>"""


def page_document(fragment: str, title: str) -> str:
    """The fragment as a file of its own; it needs nothing from the network."""
    return _DOCUMENT.format(title=html.escape(title), body=fragment)


def triplet(view: ModelView, atlas: Atlas, feature: Feature) -> Image.Image:
    """The papers' figure: optimized picture, most activating image, its activation map (Ghiasi et al., Fig. 3).

    Raises:
        AtlasError: there is no optimized picture, or the atlas is of another model.
    """
    picture = atlas.visualization(feature)
    if picture is None:
        raise AtlasError(f"'{feature}' has no optimized picture; make it with 'vitviz atlas build ATLAS {feature}'.")
    best = map_hits(view, atlas, feature, 1)[0]
    tiles = [
        open_image(picture).resize(best.crop.size),
        best.crop,
        overlay(best.crop, best.values, map_range(best.values)),
    ]
    return contact_sheet(tiles, [str(feature), best.label or best.name, f"score {best.hit.score:.3g}"], 3)


def _words(atlas: Atlas, feature: Feature) -> str:
    how = atlas.words
    if how is None:
        return ""
    found = ", ".join(f"<b>{html.escape(w)}</b> {x:.1f}" for w, x in atlas.feature_words(feature))
    return (
        f"<p>{'Words: ' + found if found else 'No word stands out'} (standard deviations of the similarity that "
        f"{html.escape(how.namer)} sees in the top images, above all stored images; of {how.n_words:,} words the best "
        f"for random images reaches {how.chance:.1f}).</p>"
    )


def _tiles(hits: Sequence[MappedHit], scale: tuple[float, float]) -> str:
    def tile(h: MappedHit) -> str:
        name = h.label or h.name or "image"
        pictures = {name: h.crop, f"Activation map on {name}": overlay(h.crop, h.values, scale)}
        return _figure(pictures, f"{name}: {h.hit.score:.3g}")

    return "".join(map(tile, hits))


def _figure(pictures: dict[str, Image.Image], caption: str) -> str:
    tags = ""
    for alt, image in pictures.items():
        data = base64.b64encode(encode(image, "JPEG", quality=88)).decode()
        tags += f'<img alt="{html.escape(alt, quote=True)}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{tags}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _histogram(values: NDArray[np.float64], counts: NDArray[np.int64], score: float | None, n: int = 32) -> str:
    """Scores of the images as bars, and the picture's own score as a line, at the edge if it lies far outside."""
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    if score is not None and abs(score - (low + high) / 2) < 2 * span:
        low, high = min(low, score), max(high, score)
        span = high - low
    heights = np.bincount(((values - low) / span * (n - 1)).round().astype(int), counts, n)
    bars = "".join(
        f'<rect x="{i * 12}" y="{100 - 95 * h / heights.max():.1f}" width="11" height="{95 * h / heights.max():.1f}"/>'
        for i, h in enumerate(heights)
        if h
    )
    line, own = "", ""
    if score is not None:
        x = min(max((score - low) / span, 0), 1) * (n - 1) * 12 + 5
        line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="100" stroke="#c13639" stroke-width="2"/>'
        where = "" if low <= score <= high else ", beyond the edge"
        own = f"; red, the optimized picture's: {score:.3g}{where}"
    return (
        f'<svg viewBox="0 0 {12 * n} 118" role="img" aria-label="Histogram of the scores of all images{own}">'
        f'<g fill="#2f79b5">{bars}</g>{line}<g font-size="11" fill="currentColor"><text x="0" y="114">{low:.3g}</text>'
        f'<text x="{12 * n}" y="114" text-anchor="end">{high:.3g}</text></g></svg>'
        f"<p>Scores of all images{own}.</p>"
    )
