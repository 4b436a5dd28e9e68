"""The page of a feature: its optimized picture, the real images that it ranks with their maps, and its scores.

One HTML fragment for the app and for a file of its own, and the papers' figure "picture, image, map" as a PNG.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.atlas.parquet import QUANTILES
from vitviz_hf.atlas.store import Atlas, Hit
from vitviz_hf.errors import AtlasError, ImageError
from vitviz_hf.images import contact_sheet, image_to_pixels, map_range, open_image, overlay
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.maps import activation_map
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature
from vitviz_hf.templates import load_template, to_data_uri

_BARS = 32
_OPTIMIZED = "The picture optimized for this feature"


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
    pixels = torch.stack([image_to_pixels(crop) for crop in crops])
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


def feature_page(view: ModelView, atlas: Atlas, feature: Feature, n: int = 8, neighbours: bool = True) -> str:
    """The page as an HTML fragment with its pictures inside.

    Args:
        n: images at either end.
        neighbours: name the features whose scores go with this one's.

    Raises:
        AtlasError: the atlas is of another model.
        SiteError: the atlas does not cover the site.
        FeatureError: no such feature.
    """
    top, bottom = map_hits(view, atlas, feature, n), map_hits(view, atlas, feature, n, bottom=True)
    scale = map_range(*(h.values for h in (*top, *bottom)))
    table, i, made = atlas.table(feature.site), feature.index, optimized_picture(atlas, feature)
    score = float(made[1]["score"]) if made else None
    return load_template(__package__, "page.html").render(
        feature=str(feature),
        called=atlas.called(feature),
        facts=atlas.manifest,
        mean=table.mean[i],
        std=table.std[i],
        sparsity=table.sparsity[i],
        quantiles=list(zip(QUANTILES, table.quantiles[i].tolist(), strict=True)),
        neighbours=atlas.neighbours(feature) if neighbours else None,
        how=atlas.words,
        words=atlas.feature_words(feature),
        agreement=atlas.agreement(feature),
        picture=made and _figure({_OPTIMIZED: made[0]}, with_images(f"optimized picture, score {score:.3g}", made[1])),
        histogram=_histogram(*atlas.histogram(feature), score),
        top=[_tile(h, scale) for h in top],
        bottom=[_tile(h, scale) for h in bottom],
        scale=scale,
    )


def optimized_picture(atlas: Atlas, feature: Feature) -> tuple[Image.Image, dict[str, Any]] | None:
    """A feature's optimized picture and its recipe; None too where its file is damaged."""
    if recipe := atlas.recipe(feature):
        with suppress(ImageError):
            return open_image(atlas.picture_path(feature)), recipe
    return None


def tell_images(recipe: Mapping[str, Any]) -> str:
    """`made from 9 real images`; empty for a picture into which none went."""
    n = recipe.get("guide", {}).get("images", 0)
    return f"made from {n} real image{'s' * (n != 1)}" if n else ""


def with_images(told: str, recipe: Mapping[str, Any]) -> str:
    """What is told of a picture, and what real images went in."""
    return ", ".join(filter(None, (told, tell_images(recipe))))


def page_document(fragment: str, title: str) -> str:
    """The fragment as a file of its own; it needs nothing from the network."""
    return load_template(__package__, "document.html").render(title=title, body=Markup(fragment))


def triplet(view: ModelView, atlas: Atlas, feature: Feature) -> Image.Image:
    """The papers' figure: optimized picture, most activating image, its activation map (Ghiasi et al., Fig. 3).

    Raises:
        AtlasError: there is no optimized picture, or the atlas is of another model.
    """
    made = optimized_picture(atlas, feature)
    if made is None:
        raise AtlasError(f"'{feature}' has no optimized picture; make it with 'vitviz atlas build ATLAS {feature}'.")
    best = map_hits(view, atlas, feature, 1)[0]
    tiles = [
        made[0].resize(best.crop.size),
        best.crop,
        overlay(best.crop, best.values, map_range(best.values)),
    ]
    return contact_sheet(
        tiles, [with_images(str(feature), made[1]), best.label or best.name, f"score {best.hit.score:.3g}"], 3
    )


def _tile(h: MappedHit, scale: tuple[float, float]) -> dict[str, Any]:
    name = h.label or h.name or "image"
    pictures = {name: h.crop, f"Activation map on {name}": overlay(h.crop, h.values, scale)}
    return _figure(pictures, f"{name}: {h.hit.score:.3g}")


def _figure(pictures: dict[str, Image.Image], caption: str) -> dict[str, Any]:
    files = {alt: to_data_uri(image, 88) for alt, image in pictures.items()}
    return {"pictures": [{"alt": alt, "jpeg": jpeg} for alt, jpeg in files.items()], "caption": caption}


def _histogram(values: NDArray[np.float64], counts: NDArray[np.int64], score: float | None) -> dict[str, Any]:
    """Scores of the images as bars, and the picture's own score as a line, at the edge if it lies far outside."""
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    if score is not None and abs(score - (low + high) / 2) < 2 * span:
        low, high = min(low, score), max(high, score)
        span = (high - low) or 1.0
    heights = np.bincount(((values - low) / span * (_BARS - 1)).round().astype(int), counts, _BARS)
    line = None if score is None else min(max((score - low) / span, 0), 1) * (_BARS - 1) * 12 + 5
    return {
        "width": 12 * _BARS,
        "bars": [(12 * i, 95 * h / heights.max()) for i, h in enumerate(heights) if h],
        "low": low,
        "high": high,
        "own": score,
        "line": line,
        "beyond": score is not None and not low <= score <= high,
    }
