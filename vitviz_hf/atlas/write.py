"""From a search to the files of an atlas."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitviz_hf.atlas.card import dataset_card
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import NO_KEY, SKETCH_ERROR, SiteFold, sketch_centers
from vitviz_hf.atlas.parquet import IMAGES_TOGETHER, N_NEIGHBOURS, QUANTILES
from vitviz_hf.atlas.search import search, search_recipe
from vitviz_hf.atlas.state import STATE, SearchState, kept_precision, open_crops, ranked_keys
from vitviz_hf.atlas.store import SCHEMA, Atlas, open_atlas
from vitviz_hf.manifest import check_absent, finished, versions, write_dir
from vitviz_hf.models.view import ModelView
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import Source


def make_atlas(
    view: ModelView,
    source: Source,
    config: SearchConfig,
    out: Path,
    resume: bool = False,
    progress: Callable[[SearchState], None] | None = None,
) -> Atlas:
    """Search a dataset and store the result as an atlas.

    The unfinished search lies in `OUT.search` and is deleted when the atlas is complete.

    Raises:
        OutputExistsError: `out` exists, or an unfinished search that `resume` was not asked for.
        DatasetError: the stream failed; go on with `resume`.
    """
    work = search_folder(out)
    if resume and finished(out, work):
        return open_atlas(str(out))
    check_absent(out)
    if resume:
        config = replace(config, precision=kept_precision(work / "rank-0" / STATE, config.precision))
    state = search(view, source, config, work / "rank-0", resume, progress=progress)
    recipe = search_recipe(view, source, config)
    write_atlas(out, recipe, state, work / "rank-0")
    shutil.rmtree(work)
    return open_atlas(str(out))


def search_folder(out: Path) -> Path:
    """Where the unfinished search for an atlas lies."""
    return out.with_name(f"{out.name}.search")


def write_atlas(out: Path, recipe: dict[str, Any], state: SearchState, crops: Path) -> None:
    """Write a complete atlas or none.

    Args:
        crops: folder of the search.

    Raises:
        OutputExistsError: `out` exists.
    """
    keys = sorted(ranked_keys(state))
    rows = {key: row for row, key in enumerate(keys)}
    manifest = {
        **recipe,
        "schema": SCHEMA,
        "n_images": state.n_images,
        "n_skipped": state.n_skipped,
        "n_non_finite": state.n_non_finite,
        "non_finite": {str(s): state.n_images - f.n for s, f in state.folds.items() if f.n < state.n_images},
        "skipped": state.skipped,
        "n_stored_images": len(keys),
        "sketch_relative_error": SKETCH_ERROR,
        "versions": versions(),
        "sites": {str(s): len(f.mean) for s, f in state.folds.items()},
    }
    with write_dir(out) as folder:
        for name in ("features", "images", "visualizations"):
            (folder / name).mkdir()
        _write_images(folder / "images" / "images.parquet", keys, crops)
        schema = _feature_schema()
        with pq.ParquetWriter(folder / "features" / "features.parquet", schema) as writer:
            for site, fold in state.folds.items():
                writer.write_table(_feature_rows(schema, site, fold, rows))
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
        (folder / "README.md").write_text(dataset_card(manifest), "utf-8")


def _feature_schema() -> Any:
    import datasets

    number, row = datasets.Value("float64"), datasets.Value("int32")
    lists = {
        "top_scores": "float32",
        "top_rows": "int32",
        "top_peaks": "float32",
        "top_places": "int32",
        "bottom_scores": "float32",
        "bottom_rows": "int32",
        "sketch_bins": "int16",
        "sketch_counts": "int32",
        "neighbours": "int32",
        "correlations": "float32",
    }
    columns = {"feature": datasets.Value("string"), "layer": row, "kind": datasets.Value("string"), "index": row}
    numbers = ("mean", "std", "peak_mean", "peak_std", "sparsity", *(f"q{round(100 * q):02}" for q in QUANTILES))
    columns |= {name: number for name in numbers}
    columns |= {name: datasets.List(datasets.Value(kind)) for name, kind in lists.items()}
    return datasets.Features(columns).arrow_schema


def _feature_rows(schema: Any, site: Site, fold: SiteFold, rows: dict[int, int]) -> Any:
    n_features = len(fold.mean)
    counts = fold.counts.cpu().numpy()
    columns: dict[str, Any] = {
        "feature": [str(Feature(site, i)) for i in range(n_features)],
        "layer": [site.layer] * n_features,
        "kind": [site.kind] * n_features,
        "index": list(range(n_features)),
        "mean": fold.mean,
        "std": np.sqrt(np.maximum(fold.squares / fold.n, 0)),
        "peak_mean": fold.peak_mean,
        "peak_std": np.sqrt(np.maximum(fold.peak_squares / fold.n, 0)),
        "sparsity": 1 - fold.active / fold.n,
    }
    top, bottom = fold.top.values.cpu().numpy(), -fold.bottom.values.cpu().numpy()
    quantiles = _quantiles(counts, bottom[:, 0], top[:, 0])
    columns |= {f"q{round(100 * q):02}": quantiles[:, i] for i, q in enumerate(QUANTILES)}
    place = np.vectorize(lambda key: rows.get(key, -1), otypes=[np.int32])
    for name, ranking, scores in (("top", fold.top, top), ("bottom", fold.bottom, bottom)):
        ranked = ranking.keys.cpu().numpy()
        kept = ranked != NO_KEY
        columns[f"{name}_scores"] = _lists(scores.astype(np.float32), kept)
        columns[f"{name}_rows"] = _lists(place(ranked), kept)
        if name == "top":
            peaks, places = np.moveaxis(fold.top.facts.cpu().numpy(), 2, 0)
            columns["top_peaks"], columns["top_places"] = _lists(peaks, kept), _lists(places.astype(np.int32), kept)
    filled = counts > 0
    columns["sketch_bins"] = _lists(np.broadcast_to(np.arange(counts.shape[1], dtype=np.int16), counts.shape), filled)
    columns["sketch_counts"] = _lists(counts, filled)
    others, correlations = fold.neighbours(N_NEIGHBOURS)
    known = correlations > 0
    columns["neighbours"] = _lists(others.astype(np.int32), known)
    columns["correlations"] = _lists(correlations.astype(np.float32), known)
    return pa.table(
        [
            pa.array(columns[f.name], f.type)
            if not isinstance(columns[f.name], pa.Array)
            else columns[f.name].cast(f.type)
            for f in schema
        ],
        schema=schema,
    )


def _lists(values: NDArray[Any], kept: NDArray[np.bool_]) -> Any:
    offsets = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[kept]))


def _quantiles(counts: NDArray[np.int32], low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float64]:
    reached = counts.cumsum(1)
    ranks = np.ceil(np.asarray(QUANTILES) * reached[:, -1:]).clip(1)
    bins = (reached[:, None, :] < ranks[:, :, None]).sum(2)
    return np.asarray(sketch_centers()[bins].clip(low[:, None], high[:, None]))


def _write_images(path: Path, keys: Sequence[int], crops: Path) -> None:
    import datasets

    text = datasets.Value("string")
    schema = datasets.Features({"key": text, "name": text, "label": text, "image": datasets.Image()}).arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(keys), IMAGES_TOGETHER):
            some = keys[start : start + IMAGES_TOGETHER]
            found = {key: rest for key, *rest in _read_crops(crops, some)}
            ordered = [found[key] for key in some]
            columns = [
                [f"{key:016x}" for key in some],
                [name for name, _, _ in ordered],
                [label for _, label, _ in ordered],
                [{"bytes": jpeg, "path": f"{key:016x}.jpg"} for key, (_, _, jpeg) in zip(some, ordered, strict=True)],
            ]
            writer.write_table(
                pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
            )


def _read_crops(folder: Path, keys: Sequence[int]) -> Iterator[Any]:
    with open_crops(folder) as crops:
        marks = ",".join("?" * len(keys))
        yield from crops.execute(f"SELECT key, name, label, jpeg FROM crops WHERE key IN ({marks})", list(keys))
