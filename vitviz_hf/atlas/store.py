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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitviz_hf.atlas.card import Words
from vitviz_hf.atlas.fold import sketch_centers
from vitviz_hf.errors import AtlasError, FeatureError, SiteError, first_line
from vitviz_hf.hub import ATLAS, TOO_LARGE, Token, download, is_hub_id, list_files, size_limit, upload_folder
from vitviz_hf.sites import Feature, Site, file_stem, parse_site

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SCHEMA = 1
IMAGES_TOGETHER = 64
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
class Atlas:
    """A stored atlas. Reads from its folder when asked."""

    name: str
    """Folder or Hub id, as given."""
    folder: Path
    manifest: dict[str, Any]

    @property
    def sites(self) -> dict[Site, int]:
        """Every site with its number of features."""
        return {parse_site(name, None): n for name, n in self.manifest["sites"].items()}

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
        images = _read_images(*_version(self.folder / "images" / "images.parquet"), row // IMAGES_TOGETHER)
        return images[row % IMAGES_TOGETHER]

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

    def best_word(self, feature: Feature) -> str:
        """The first of `feature_words`; empty without any."""
        return next((word for word, _ in self.feature_words(feature)), "")

    def find_word(self, word: str, n: int) -> list[tuple[Feature, float]]:
        """The n features that a word names best, with the agreement; parts of words count.

        Raises:
            AtlasError: the atlas has no words, or no feature has this one.
        """
        known, wanted = self.words, word.strip().lower()
        if known is None:
            raise AtlasError(
                f"the features of {self.name!r} have no words yet.",
                "Make them with 'vitviz atlas name'.",
                "Choose an atlas whose features were named.",
            )
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
        if manifest["schema"] != SCHEMA:
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
        parse_site(site, None)
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
            f"the atlas {dataset_id!r} takes {size / 1e9:.1f} GB, more than the limit of {size_limit() / 1e9:.1f} GB.",
            *TOO_LARGE,
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
    for site in (parse_site(name, None) for name in names):
        kinds.setdefault(site.kind, []).append(site.layer)
    return ", ".join(f"{kind} of {_runs(layers)}" for kind, layers in kinds.items())


def _runs(layers: list[int]) -> str:
    """`layers 0-3, 5`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    told = ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
    return f"{'layer' if len(layers) == 1 else 'layers'} {told}"
