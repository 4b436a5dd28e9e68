"""What is stored of the features of one model: statistics, ranked images and optimized pictures.

A folder, or a dataset repository on the Hub, for one model and one dataset:

    README.md  manifest.json
    features/features.parquet    a row for each feature, a row group for each site
    images/images.parquet        the crops of ranked images, each once, as the model saw them
    visualizations/*.png         optimized pictures, each with its recipe
    words/words.parquet          if it was named: words for each feature, a row group for each site
    agreement.json               if it was judged: how well each picture tells what its feature sees

Maps are not stored: they are computed from the crop when they are shown.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitviz_hf.atlas.agreement import Agreement, digest_of, read_agreements
from vitviz_hf.atlas.card import Words
from vitviz_hf.atlas.fold import sketch_centers
from vitviz_hf.atlas.parquet import (
    IMAGES_TOGETHER,
    SiteTable,
    StoredImage,
    read_images,
    read_site,
    read_words,
    version_of,
)
from vitviz_hf.config import check_texts
from vitviz_hf.errors import AtlasError, FeatureError, RecipeError, SiteError, first_line
from vitviz_hf.hub import ATLAS, TOO_LARGE, Token, download, is_hub_id, list_files, size_limit, upload_folder
from vitviz_hf.models.view import model_difference
from vitviz_hf.optimize.objectives import to_objective
from vitviz_hf.optimize.recipe import read_result
from vitviz_hf.sites import Feature, Site, file_stem, parse_site

SCHEMA = 1
_LARGEST_MANIFEST = 20_000_000
_FILES = (
    "manifest.json",
    "README.md",
    "features/*.parquet",
    "images/*.parquet",
    "visualizations/*.png",
    "words/*",
    "agreement.json",
)


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that a feature ranks."""

    row: int
    """In the atlas's table of images."""
    score: float
    peak: float | None = None
    """Activation of the strongest patch; None for the least activating images, and in atlases of older versions."""
    place: tuple[int, int] | None = None
    """(row, column) of that patch."""


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
        return read_site(*version_of(self.folder / "features" / "features.parquet"), self._group(site))

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
        hits = [Hit(row, score) for row, score in pairs if row >= 0]
        if bottom or table.top_peaks is None or table.top_places is None:
            return hits
        _, cols = self.manifest["grids"][str(feature.site)]
        peaks, places = table.top_peaks[feature.index].tolist(), table.top_places[feature.index].tolist()
        return [replace(h, peak=p, place=divmod(at, cols)) for h, p, at in zip(hits, peaks, places, strict=False)]

    def image(self, row: int) -> StoredImage:
        """The crop in one row of the table of images."""
        images = read_images(*version_of(self.folder / "images" / "images.parquet"), row // IMAGES_TOGETHER)
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

    def called(self, feature: Feature) -> str:
        """The text or label that it is; empty for others."""
        names = self.manifest.get("names", {}).get(str(feature.site))
        return str(names[feature.index]) if names else ""

    def best_word(self, feature: Feature) -> str:
        """What it is called, else the first of `feature_words`; empty without any."""
        return self.called(feature) or next((word for word, _ in self.feature_words(feature)), "")

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

    def neighbours(self, feature: Feature, n: int = 8) -> list[tuple[Feature, float]]:
        """At most 12 features of the same site whose scores go most with this one's, with the correlation over images.

        Read from a sketch of fixed size: each is off by about 0.04. Empty in atlases of older versions.
        """
        self._check(feature)
        table = self.table(feature.site)
        if table.neighbours is None or table.correlations is None:
            return []
        pairs = zip(table.neighbours[feature.index].tolist(), table.correlations[feature.index].tolist(), strict=True)
        return [(Feature(feature.site, i), r) for i, r in pairs if i >= 0][:n]

    def visualization(self, feature: Feature) -> Path | None:
        """The feature's optimized picture, if there is one, see `recipe`."""
        return self.picture_path(feature) if self.recipe(feature) else None

    def recipe(self, feature: Feature) -> dict[str, Any] | None:
        """The recipe that the feature's optimized picture carries, if there is one of this feature and this model."""
        path = self.picture_path(feature)
        if not path.is_file():
            return None
        with suppress(RecipeError):
            recipe = read_result(path)
            same = recipe.get("objective") == to_objective(feature).to_json()
            return recipe if same and not model_difference(self.manifest, recipe) else None
        return None

    def picture_path(self, feature: Feature) -> Path:
        """Where the feature's optimized picture lies, there or not."""
        return self.folder / "visualizations" / f"{file_stem(feature)}.png"

    def agreement(self, feature: Feature) -> Agreement | None:
        """How well the feature's picture tells what it sees, if a second network was asked about this very picture."""
        picture = self.visualization(feature)
        if picture is None or not self.agreements.is_file():
            return None
        return read_agreements(*version_of(self.agreements)).get((str(feature), digest_of(picture)))

    @property
    def agreements(self) -> Path:
        """The file of `agreement`, there or not."""
        return self.folder / "agreement.json"

    def _words(self, group: int) -> tuple[list[list[str]], list[list[float]]]:
        return read_words(*version_of(self.folder / "words" / "words.parquet"), group)

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
        if (size := (folder / "manifest.json").stat().st_size) > _LARGEST_MANIFEST:
            raise AtlasError(
                f"manifest.json of {name!r} takes {size / 1e6:.0f} MB, over {_LARGEST_MANIFEST / 1e6:.0f} MB."
            )
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if manifest["schema"] != SCHEMA:
            raise AtlasError(f"the atlas {name!r} is of another version of vitviz_hf; update the package.")
        _check_manifest(manifest)
        atlas = Atlas(name, folder, manifest)
        _ = atlas.words  # so that unreadable ones are refused here
        if atlas.agreements.is_file():
            read_agreements(*version_of(atlas.agreements))
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
    if not isinstance(left_out := manifest.get("non_finite", {}), dict):
        wrong.append("non_finite")
    if manifest["reduce"] not in ("mean", "max"):
        wrong.append("reduce")
    size = manifest["input_size"]
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(x, int) and 0 < x <= 4096 for x in size)):
        wrong.append("input_size")
    if wrong:
        raise ValueError(f"{wrong[0]} is {manifest[wrong[0]]!r}")
    if not isinstance(names := manifest.get("names", {}), dict) or not set(names) <= set(manifest["sites"]):
        raise ValueError(f"names is {names!r:.100}")
    for site, n in manifest["sites"].items():
        kind = parse_site(site, None).kind
        if not isinstance(n, int):
            raise ValueError(f"{site} has {n!r} features")
        if site in names and not _is_texts(names[site], n):
            raise ValueError(f"the names of {site} are not {n} texts")
        if site in names and kind == "text":
            check_texts(names[site])
        if not isinstance(lost := left_out.get(site, 0), int):
            raise ValueError(f"{lost!r} images are left out at {site}")
        grid = manifest.get("grids", {}).get(site, [1, 1])
        if not (isinstance(grid, list) and len(grid) == 2 and all(isinstance(x, int) and 0 < x <= 4096 for x in grid)):
            raise ValueError(f"the grid of {site} is {grid!r}")


def _is_texts(value: Any, n: int) -> bool:
    return isinstance(value, list) and len(value) == n and all(isinstance(x, str) and x.strip() for x in value)


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
        AtlasError: in the place of one lies another file.
    """
    for feature in features:
        atlas.hits(feature)
    missing = [f for f in features if atlas.visualization(f) is None]
    if strange := [path for f in missing if (path := atlas.picture_path(f)).exists()]:
        raise AtlasError(f"'{strange[0]}' is no whole picture of its feature by this model; move it away.")
    return missing


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
