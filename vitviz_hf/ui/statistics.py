"""Statistics of the features of a site as rows of plain values: of an atlas, or of the built-in photographs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.sites import Feature, Site

Rows = dict[str, Any]


def atlas_rows(atlas: Atlas, site: Site, sort: str, offset: int, n: int) -> Rows:
    """Some features of a site of an atlas.

    Raises:
        SiteError: the atlas does not cover it.
        ConfigError: unknown sort, or nothing at this offset.
    """
    columns = atlas_columns(atlas, site)
    rows = []
    for i in _ordered(columns, sort, offset, n):
        feature = Feature(site, i)
        image = atlas.image(atlas.hits(feature)[0].row).name
        rows.append(_row(feature, columns) | {"image": image, "word": atlas.best_word(feature)})
    return _told(site, columns, offset, int(atlas.manifest["n_images"]), rows)


def atlas_columns(atlas: Atlas, site: Site) -> dict[str, NDArray[Any]]:
    """What the features of a site are told and sorted by, each [F].

    Raises:
        SiteError: the atlas does not cover it.
    """
    table = atlas.table(site)
    return _columns(table.mean, table.std, table.top_scores[:, 0]) | {"sparse": table.sparsity}


def model_rows(view: ModelView, site: Site, sort: str, offset: int, n: int) -> Rows:
    """Some features of a site of a model, on the built-in photographs with finite scores.

    Raises:
        SiteError: the model has no such site.
        ConfigError: unknown sort, or nothing at this offset.
    """
    grid, reference = find_tap(view, site).patch_grid, load_reference(view)
    finite = reference.scores[site].isfinite().all(1).numpy()
    scores, peaks, places = (
        part[site].numpy()[finite] for part in (reference.scores, reference.peaks, reference.places)
    )
    names = np.array(reference.names)[finite]
    columns = _columns(scores.mean(0), scores.std(0), scores.max(0))
    best, strongest = scores.argmax(0), peaks.argmax(0)
    rows = []
    for i in _ordered(columns, sort, offset, n):
        at = strongest[i]
        peak = {
            "image": str(names[at]),
            "value": float(peaks[at, i]),
            "place": list(divmod(int(places[at, i]), grid[1])),
        }
        rows.append(_row(Feature(site, i), columns) | {"image": str(names[best[i]]), "peak": peak})
    return _told(site, columns, offset, len(names), rows)


def _columns(mean: NDArray[Any], std: NDArray[Any], maximum: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"mean": mean, "std": std, "maximum": maximum, "unusual": (maximum - mean) / np.maximum(std, 1e-12)}


def _ordered(columns: dict[str, NDArray[Any]], sort: str, offset: int, n: int) -> list[int]:
    known = ["index", *(c for c in columns if c not in ("mean", "std"))]
    if sort not in known:
        raise ConfigError(f"sort must be one of {', '.join(known)}; got {sort!r}.")
    size = len(columns["mean"])
    if offset >= size:
        raise ConfigError(f"there are {size} features, so offset goes from 0 to {size - 1}; got {offset}.")
    order = np.arange(size) if sort == "index" else np.argsort(-columns[sort], kind="stable")
    return [int(i) for i in order[offset : offset + n]]


def _row(feature: Feature, columns: dict[str, NDArray[Any]]) -> Rows:
    return {"feature": str(feature)} | {name: float(values[feature.index]) for name, values in columns.items()}


def _told(site: Site, columns: dict[str, NDArray[Any]], offset: int, n_images: int, rows: list[Rows]) -> Rows:
    size = len(columns["mean"])
    return {"site": str(site), "total": size, "offset": offset, "images": n_images, "features": rows}
