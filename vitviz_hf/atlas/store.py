"""What is stored of the features of one model: statistics, ranked images and optimized pictures.

A folder, or a dataset repository on the Hub, for one model and one dataset:

    README.md  manifest.json
    features/features.parquet    a row for each feature, a row group for each site
    images/images.parquet        the crops of ranked images, each once, as the model saw them
    visualizations/*.png         optimized pictures, each with its recipe
    words/words.parquet          if it was named: words for each feature, a row group for each site

Maps are not stored: they are computed from the crop when they are shown.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitviz_hf import __version__
from vitviz_hf.atlas.search import (
    LISTED,
    NO_KEY,
    SKETCH_ERROR,
    SearchState,
    SiteFold,
    check_result,
    is_done,
    load_state,
    open_crops,
    ranked_keys,
    search,
    search_recipe,
    sketch_centers,
)
from vitviz_hf.config import SearchConfig
from vitviz_hf.errors import AtlasError, FeatureError, SiteError, first_line
from vitviz_hf.hub import ATLAS, Token, download, is_hub_id, list_files, size_limit, upload_folder
from vitviz_hf.manifest import check_absent, versions, write_dir
from vitviz_hf.models.view import ModelView
from vitviz_hf.sites import Feature, Site, file_stem, parse_site
from vitviz_hf.stream import Source

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_SCHEMA = 1
_IMAGES_TOGETHER = 64
_WORDS_CONFIG = "  - config_name: words\n    data_files: words/*.parquet\n"
_FILES = (
    "manifest.json",
    "README.md",
    "features/*.parquet",
    "images/*.parquet",
    "visualizations/*.png",
    "words/*",
)


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that a feature ranks."""

    row: int
    """In the atlas's table of images."""
    score: float


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The crop of a ranked image, as the model saw it (JPEG)."""

    name: str
    label: str
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class SiteTable:
    """What is known of every feature of a site; all arrays have F rows."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    """[F, 7] at `QUANTILES`; each within 3.2 % of its value, or within 1e-4. Beyond 1000 only the side is known."""
    sparsity: NDArray[np.float64]
    """Share of patches whose activation is not positive, over all images."""
    top_scores: NDArray[np.float32]
    """[F, k], best first."""
    top_rows: NDArray[np.int32]
    """[F, k], -1 where there are fewer images."""
    bottom_scores: NDArray[np.float32]
    """[F, k], least first."""
    bottom_rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Words:
    """How the features of an atlas were named, see naming.py."""

    namer: str
    namer_revision: str | None
    n_words: int
    templates: tuple[str, ...]
    chance: float
    """The agreement that the best word of 95 % of random sets of k images stays below."""


@dataclass(frozen=True, slots=True)
class Atlas:
    """A stored atlas. Reads from its folder when asked."""

    name: str
    """Folder or Hub id, as given."""
    folder: Path
    manifest: dict[str, Any]

    @property
    def sites(self) -> dict[Site, int]:
        """Every site with its number of features."""
        return {parse_site(name): n for name, n in self.manifest["sites"].items()}

    def table(self, site: Site) -> SiteTable:
        """Statistics and ranked images of a site.

        Raises:
            SiteError: the atlas does not cover it.
        """
        return _read_site(*_version(self.folder / "features" / "features.parquet"), self._group(site))

    def hits(self, feature: Feature, bottom: bool = False) -> list[Hit]:
        """The images that activate a feature most, or least, best first.

        Raises:
            SiteError: the atlas does not cover the site.
            FeatureError: no such feature.
        """
        self._check(feature)
        table = self.table(feature.site)
        scores, rows = (table.bottom_scores, table.bottom_rows) if bottom else (table.top_scores, table.top_rows)
        pairs = zip(rows[feature.index].tolist(), scores[feature.index].tolist(), strict=True)
        return [Hit(row, score) for row, score in pairs if row >= 0]

    def image(self, row: int) -> StoredImage:
        """The crop in one row of the table of images."""
        images = _read_images(*_version(self.folder / "images" / "images.parquet"), row // _IMAGES_TOGETHER)
        return images[row % _IMAGES_TOGETHER]

    @property
    def words(self) -> Words | None:
        """How the features were named, if they were."""
        path = self.folder / "words" / "manifest.json"
        if not path.is_file():
            return None
        facts = json.loads(path.read_text("utf-8"))
        return Words(
            str(facts["namer"]),
            facts["namer_revision"],
            int(facts["n_words"]),
            tuple(map(str, facts["templates"])),
            float(facts["chance"]),
        )

    def feature_words(self, feature: Feature) -> list[tuple[str, float]]:
        """Words for a feature with their agreement, best first; only those above chance. Empty without `words`."""
        known = self.words
        if known is None:
            return []
        self._check(feature)
        words, strengths = self._words(self._group(feature.site))
        pairs = zip(words[feature.index], strengths[feature.index], strict=True)
        return [(str(w), float(x)) for w, x in pairs if x > known.chance]

    def find_word(self, word: str, n: int) -> list[tuple[Feature, float]]:
        """The n features that a word names best, with the agreement; parts of words count.

        Raises:
            AtlasError: the atlas has no words, or no feature has this one.
        """
        known, wanted = self.words, word.strip().lower()
        if known is None:
            raise AtlasError(f"the features of {self.name!r} have no words yet; make them with 'vitviz atlas name'.")
        found = []
        for group, site in enumerate(self.sites):
            for i, (words, strengths) in enumerate(zip(*self._words(group), strict=True)):
                fitting = [x for w, x in zip(words, strengths, strict=True) if wanted in w.lower() and x > known.chance]
                if fitting:
                    found.append((Feature(site, i), max(fitting)))
        if not found or not wanted:
            raise AtlasError(f"no feature of {self.name!r} is named {word!r}.")
        return sorted(found, key=lambda pair: -pair[1])[:n]

    def histogram(self, feature: Feature) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores that stand for the filled bins of the sketch, and the images in each."""
        self._check(feature)
        column = pq.ParquetFile(self.folder / "features" / "features.parquet").read_row_group(
            self._group(feature.site), columns=["sketch_bins", "sketch_counts"]
        )
        bins = column["sketch_bins"][feature.index].values.to_numpy()
        return sketch_centers()[bins], column["sketch_counts"][feature.index].values.to_numpy().astype(np.int64)

    def neighbours(self, feature: Feature, n: int = 8) -> list[tuple[Feature, int]]:
        """Features of the same site that share most of the top images, with the number of shared ones."""
        self._check(feature)
        rows = self.table(feature.site).top_rows
        own = rows[feature.index]
        shared = np.isin(rows, own[own >= 0]).sum(1)
        shared[feature.index] = 0
        order = np.argsort(-shared, kind="stable")[:n]
        return [(Feature(feature.site, int(i)), int(shared[i])) for i in order if shared[i]]

    def visualization(self, feature: Feature) -> Path | None:
        """The feature's optimized picture, if there is one."""
        path = self.folder / "visualizations" / f"{file_stem(feature)}.png"
        return path if path.is_file() else None

    def _words(self, group: int) -> tuple[list[list[str]], list[list[float]]]:
        return _read_words(*_version(self.folder / "words" / "words.parquet"), group)

    def _check(self, feature: Feature) -> None:
        self._group(feature.site)
        if feature.index >= (n := self.sites[feature.site]):
            raise FeatureError(f"'{feature.site}' has {n} features; got {feature.index}.")

    def _group(self, site: Site) -> int:
        names = list(self.manifest["sites"])
        if str(site) not in names:
            raise SiteError(f"the atlas {self.name!r} has no '{site}'; it covers {_spans(names)}.")
        return names.index(str(site))


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
    check_absent(out)
    work = search_folder(out)
    state = search(view, source, config, work / "rank-0", resume, progress=progress)
    recipe = search_recipe(view, source, config)
    write_atlas(out, recipe, state, [work / "rank-0"])
    shutil.rmtree(work)
    return open_atlas(str(out))


def search_folder(out: Path) -> Path:
    """Where the unfinished search for an atlas lies."""
    return out.with_name(f"{out.name}.search")


def merge_searches(view: ModelView, source: Source, config: SearchConfig, out: Path, n_ranks: int) -> Atlas:
    """One atlas from the searches of several processes; waits until all have finished."""
    folders = [search_folder(out) / f"rank-{r}" for r in range(n_ranks)]
    recipe = search_recipe(view, source, config)
    while not all(is_done(f) for f in folders):
        time.sleep(1)
    states = [
        load_state(f / "state.safetensors", recipe | {"rank": r, "n_ranks": n_ranks}, view.device)
        for r, f in enumerate(folders)
    ]
    whole = states[0]
    for state in states[1:]:
        for site, fold in state.folds.items():
            whole.folds[site].merge(fold)
        for name in ("n_images", "n_rows", "n_skipped", "n_non_finite"):
            setattr(whole, name, getattr(whole, name) + getattr(state, name))
        whole.skipped = sorted(whole.skipped + state.skipped)[:LISTED]
    check_result(view, source, whole)
    write_atlas(out, recipe, whole, folders)
    shutil.rmtree(search_folder(out))
    return open_atlas(str(out))


def write_atlas(out: Path, recipe: dict[str, Any], state: SearchState, crops: Sequence[Path]) -> None:
    """Write a complete atlas or none.

    Raises:
        OutputExistsError: `out` exists.
    """
    keys = sorted(ranked_keys(state))
    rows = {key: row for row, key in enumerate(keys)}
    manifest = {
        **recipe,
        "schema": _SCHEMA,
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
        (folder / "README.md").write_text(_card(manifest), "utf-8")


def open_atlas(name: str, token: Token = None) -> Atlas:
    """An atlas from a folder or the Hub.

    Raises:
        AtlasError: there is none, or this version cannot read it.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not is_hub_id(name) or name.startswith((".", "/", "~")):
            raise AtlasError(f"there is no atlas {name!r}; give a folder written by 'vitviz search', or a Hub id.")
        folder = pull_atlas(name, token)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if manifest["schema"] != _SCHEMA:
            raise AtlasError(f"the atlas {name!r} is of another version of vitviz_hf; update the package.")
        _check_manifest(manifest)
        atlas = Atlas(name, folder, manifest)
        _ = atlas.words  # so that unreadable ones are refused here
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, AtlasError):
            raise
        raise AtlasError(f"{name!r} is no atlas: {first_line(error)}") from error
    return atlas


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raise a ValueError unless every value is of its kind: an atlas on the Hub comes from a stranger."""
    texts = ("model_id", "revision", "dataset", "dataset_revision", "split")
    wrong = [k for k in texts if not (manifest[k] is None or isinstance(manifest[k], str))]
    wrong += [k for k in ("k", "n_images", "n_skipped", "n_stored_images") if not isinstance(manifest[k], int)]
    wrong += [k for k in ("n_non_finite",) if not isinstance(manifest.get(k, 0), int)]
    wrong += [
        k for k in ("revision", "dataset_revision") if manifest[k] and not re.fullmatch(r"[0-9a-f]+", manifest[k])
    ]
    if manifest["reduce"] not in ("mean", "max"):
        wrong.append("reduce")
    size = manifest["input_size"]
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(x, int) and 0 < x <= 4096 for x in size)):
        wrong.append("input_size")
    if wrong:
        raise ValueError(f"{wrong[0]} is {manifest[wrong[0]]!r}")
    for site, n in manifest["sites"].items():
        parse_site(site)
        if not isinstance(n, int):
            raise ValueError(f"{site} has {n!r} features")


def pull_atlas(dataset_id: str, token: Token = None) -> Path:
    """Local copy of an atlas on the Hub.

    Raises:
        AtlasError: missing, private or gated.
    """
    listing = list_files(ATLAS, dataset_id, token=token)
    if (size := sum(listing.sizes.values())) > size_limit():
        raise AtlasError(
            f"the atlas {dataset_id!r} takes {size / 1e9:.1f} GB, more than the limit of "
            f"{size_limit() / 1e9:.1f} GB; raise it with the environment variable VITVIZ_MAX_GB."
        )
    if "manifest.json" not in listing.sizes:
        raise AtlasError(f"the dataset {dataset_id!r} is no atlas: it has no manifest.json.")
    return download(ATLAS, dataset_id, listing.sha, _FILES, token)


def push_atlas(folder: Path, dataset_id: str, private: bool = False, token: Token = None) -> str:
    """Upload an atlas as a dataset repository; returns its address.

    Raises:
        AtlasError: not an atlas, not logged in, or no permission.
    """
    atlas = open_atlas(str(folder))
    message = f"atlas of {atlas.manifest['model_id']} on {atlas.manifest['dataset']}"
    return upload_folder(ATLAS, atlas.folder, dataset_id, message, private, token)


def write_words(
    atlas: Atlas,
    words: Words,
    vocabulary: Sequence[str],
    best: Mapping[Site, tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> None:
    """Keep words in an atlas.

    Args:
        best: for each site, places in `vocabulary` and agreements, both [F, n], best first.

    Raises:
        OutputExistsError: it has words already.
    """
    schema = pa.schema(
        [("feature", pa.string()), ("words", pa.list_(pa.string())), ("agreement", pa.list_(pa.float32()))]
    )
    with write_dir(atlas.folder / "words") as folder:
        with pq.ParquetWriter(folder / "words.parquet", schema) as writer:
            for site in atlas.sites:
                indices, strengths = best[site]
                columns = [
                    [str(Feature(site, i)) for i in range(len(indices))],
                    [[vocabulary[i] for i in row] for row in indices.tolist()],
                    strengths.tolist(),
                ]
                writer.write_table(
                    pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
                )
        (folder / "manifest.json").write_text(json.dumps(asdict(words), indent=1), "utf-8")
        (atlas.folder / "README.md").write_text(_card(atlas.manifest, words), "utf-8")


def unusual_features(atlas: Atlas, scores: dict[Site, NDArray[np.float32]], n: int) -> list[tuple[Feature, float]]:
    """Features whose statistics an image's scores [F] exceed most, in standard deviations above the mean.

    Features with a score that is not finite are left out.
    """
    found: list[tuple[Feature, float]] = []
    for site, values in scores.items():
        table = atlas.table(site)
        deviations = (values - table.mean) / np.maximum(table.std, 0.1 * np.median(table.std) + 1e-30)
        deviations = np.where(np.isfinite(values), deviations, -np.inf)
        best = np.argsort(-deviations, kind="stable")[:n]
        found += [(Feature(site, int(i)), float(deviations[i])) for i in best if np.isfinite(deviations[i])]
    return sorted(found, key=lambda pair: -pair[1])[:n]


def missing_visualizations(atlas: Atlas, features: Sequence[Feature]) -> list[Feature]:
    """Those of the features that have no optimized picture yet.

    Raises:
        SiteError: the atlas does not cover a site.
        FeatureError: no such feature.
    """
    for feature in features:
        atlas.hits(feature)
    return [f for f in features if atlas.visualization(f) is None]


def _feature_schema() -> Any:
    import datasets

    number, row = datasets.Value("float64"), datasets.Value("int32")
    lists = {
        "top_scores": "float32",
        "top_rows": "int32",
        "bottom_scores": "float32",
        "bottom_rows": "int32",
        "sketch_bins": "int16",
        "sketch_counts": "int32",
    }
    columns = {"feature": datasets.Value("string"), "layer": row, "kind": datasets.Value("string"), "index": row}
    columns |= {name: number for name in ("mean", "std", "sparsity", *(f"q{round(100 * q):02}" for q in QUANTILES))}
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
    filled = counts > 0
    columns["sketch_bins"] = _lists(np.broadcast_to(np.arange(counts.shape[1], dtype=np.int16), counts.shape), filled)
    columns["sketch_counts"] = _lists(counts, filled)
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


def _write_images(path: Path, keys: Sequence[int], crops: Sequence[Path]) -> None:
    import datasets

    text = datasets.Value("string")
    schema = datasets.Features({"key": text, "name": text, "label": text, "image": datasets.Image()}).arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(keys), _IMAGES_TOGETHER):
            some = keys[start : start + _IMAGES_TOGETHER]
            found: dict[int, tuple[str, str, bytes]] = {}
            for key, *rest in (row for folder in crops for row in _read_crops(folder, some)):
                found[key] = min(found.get(key, tuple(rest)), tuple(rest))  # the first by name, as in one process
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
    with closing(open_crops(folder)) as crops:
        marks = ",".join("?" * len(keys))
        yield from crops.execute(f"SELECT key, name, label, jpeg FROM crops WHERE key IN ({marks})", list(keys))


def _version(path: Path) -> tuple[Path, tuple[int, ...]]:
    """A file and what tells it from another one that takes its place."""
    facts = path.stat()
    return path, (facts.st_ino, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _read_site(path: Path, version: tuple[int, ...], group: int) -> SiteTable:
    file = pq.ParquetFile(path)
    names = [n for n in file.schema_arrow.names if not n.startswith("sketch") and n not in ("feature", "kind")]
    table = file.read_row_group(group, columns=names)

    def numbers(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy())

    def lists(name: str, empty: float, kind: Any) -> NDArray[Any]:
        rows = table[name].to_pylist()
        width = max(map(len, rows))
        return np.array([row + [empty] * (width - len(row)) for row in rows], dtype=kind)

    quantiles = np.stack([numbers(f"q{round(100 * q):02}") for q in QUANTILES], 1)
    return SiteTable(
        numbers("mean"),
        numbers("std"),
        quantiles,
        numbers("sparsity"),
        lists("top_scores", -np.inf, np.float32),
        lists("top_rows", -1, np.int32),
        lists("bottom_scores", np.inf, np.float32),
        lists("bottom_rows", -1, np.int32),
    )


@lru_cache(maxsize=64)
def _read_words(path: Path, version: tuple[int, ...], group: int) -> tuple[list[list[str]], list[list[float]]]:
    table = pq.ParquetFile(path).read_row_group(group)
    return table["words"].to_pylist(), table["agreement"].to_pylist()


@lru_cache(maxsize=32)
def _read_images(path: Path, version: tuple[int, ...], group: int) -> list[StoredImage]:
    table = pq.ParquetFile(path).read_row_group(group)
    return [StoredImage(r["name"], r["label"], r["image"]["bytes"]) for r in table.to_pylist()]


def _spans(names: Sequence[str]) -> str:
    kinds: dict[str, list[int]] = {}
    for site in map(parse_site, names):
        kinds.setdefault(site.kind, []).append(site.layer)
    return ", ".join(f"{kind} of layers {min(x)}-{max(x)}" for kind, x in kinds.items())


def _about_words(manifest: dict[str, Any], words: Words) -> str:
    return f"""
`words` names each feature by {words.n_words:,} words in the eyes of `{words.namer}` (revision
{words.namer_revision or "-"}). Agreement: how many standard deviations the word's similarity to the feature's
{manifest["k"]} most activating images lies above its mean over all stored images. The best word of 95 % of random sets
of {manifest["k"]} images stays below {words.chance:.2f}.
"""


def _about_non_finite(manifest: dict[str, Any]) -> str:
    if not (n := manifest["n_non_finite"]):
        return ""
    worst, m = max(manifest["non_finite"].items(), key=lambda pair: pair[1])
    return f"""
{n:,} gave non-finite activations and were left out of the sites where they did (most at {worst}: {m:,})."""


def _card(manifest: dict[str, Any], words: Words | None = None) -> str:
    model, dataset = manifest["model_id"], manifest["dataset"]
    linked = f"base_model: {model}\n" if is_hub_id(model) and "/" in model else ""
    linked += f"source_datasets:\n  - {dataset}\n" if is_hub_id(dataset) and "/" in dataset else ""
    return f"""---
pretty_name: Atlas of {model}
tags:
  - vitviz
  - interpretability
  - feature-visualization
  - vision-transformer
{linked}configs:
  - config_name: features
    default: true
    data_files: features/*.parquet
  - config_name: images
    data_files: images/*.parquet
{"" if words is None else _WORDS_CONFIG}---

# Atlas of {model}

For every feature of {len(manifest["sites"])} sites of `{model}` (revision {manifest["revision"] or "-"}): the
{manifest["k"]} most and least activating of {manifest["n_images"]:,} images of `{dataset}`
(revision {manifest["dataset_revision"] or "-"}, split {manifest["split"] or "-"}), and the distribution of its scores.
Score of an image: {manifest["reduce"]} over patch tokens of the activation, prefix tokens left out.

`features` has a row for each feature; `top_rows` and `bottom_rows` count rows of `images`, from 0. Quantiles come
from a sketch: each is within {100 * SKETCH_ERROR:.1f} % of its value, or within 0.0001; beyond 1000 only the side is
known. Rankings hold an image once, statistics count each of its copies.
{manifest["n_skipped"]} images could not be read and were left out.{_about_non_finite(manifest)}
The crops are what the model saw; the rights in them are those of the dataset.
{"" if words is None else _about_words(manifest, words)}
Made with vitviz_hf {__version__}: `vitviz search {model} {dataset}`; open it with
`vitviz page {model} {next(iter(manifest["sites"]))}:0 --atlas THIS`.
"""
