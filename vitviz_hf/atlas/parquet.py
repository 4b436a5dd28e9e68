"""Reading the files of an atlas: their rows as arrays, the last ones kept."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
IMAGES_TOGETHER = 64
N_NEIGHBOURS = 12


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The crop of a ranked image, as the model saw it (JPEG)."""

    key: int
    """Of the image that it was cut from, see `Row.key`."""
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
    top_peaks: NDArray[np.float32] | None
    """[F, k] activation of each image's strongest patch. This and the rest is None in atlases of older versions."""
    top_places: NDArray[np.int32] | None
    """[F, k] its place in the row of patches."""
    peak_mean: NDArray[np.float64] | None
    """Of strongest patches, over all images."""
    peak_std: NDArray[np.float64] | None
    neighbours: NDArray[np.int32] | None
    """[F, 12] features whose scores go most with a feature's, -1 where there are fewer with a correlation above 0."""
    correlations: NDArray[np.float32] | None


def version_of(path: Path) -> tuple[Path, tuple[int, ...]]:
    """A file and what tells it from another one that takes its place: arguments of the others."""
    facts = path.stat()
    return path, (facts.st_ino, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def read_site(path: Path, version: tuple[int, ...], group: int) -> SiteTable:
    """A site's row group of features.parquet."""
    file = pq.ParquetFile(path)
    names = [n for n in file.schema_arrow.names if not n.startswith("sketch") and n not in ("feature", "kind")]
    table = file.read_row_group(group, columns=names)

    def numbers(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy())

    def lists(name: str, empty: float, kind: Any) -> NDArray[Any]:
        rows = table[name].to_pylist()
        width = max(map(len, rows))
        return np.array([row + [empty] * (width - len(row)) for row in rows], dtype=kind)

    newer = "neighbours" in names
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
        lists("top_peaks", 0, np.float32) if newer else None,
        lists("top_places", 0, np.int32) if newer else None,
        numbers("peak_mean") if newer else None,
        numbers("peak_std") if newer else None,
        lists("neighbours", -1, np.int32) if newer else None,
        lists("correlations", 0, np.float32) if newer else None,
    )


@lru_cache(maxsize=64)
def read_words(path: Path, version: tuple[int, ...], group: int) -> tuple[list[list[str]], list[list[float]]]:
    """Words of every feature with their agreement: a site's row group of words.parquet."""
    table = pq.ParquetFile(path).read_row_group(group)
    return table["words"].to_pylist(), table["agreement"].to_pylist()


@lru_cache(maxsize=32)
def read_images(path: Path, version: tuple[int, ...], group: int) -> list[StoredImage]:
    """A row group of images.parquet, `IMAGES_TOGETHER` crops."""
    table = pq.ParquetFile(path).read_row_group(group)
    return [StoredImage(int(r["key"], 16), r["name"], r["label"], r["image"]["bytes"]) for r in table.to_pylist()]
