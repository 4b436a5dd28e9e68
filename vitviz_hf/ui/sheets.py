"""Small tiles of all features of a site, in sheets that are made when they are first asked for."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Condition, Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from cachetools import LRUCache, cachedmethod
from cachetools.keys import hashkey
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.atlas.page import with_images
from vitviz_hf.atlas.parquet import version_of
from vitviz_hf.atlas.store import Atlas, Hit
from vitviz_hf.errors import AtlasError, ImageError
from vitviz_hf.images import cover, encode, open_image
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.exemplars import crop_tile
from vitviz_hf.reading.reference import Reference
from vitviz_hf.sites import Feature, Site
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import Statistics

TILE, COLUMNS, ROWS = 56, 16, 6
"""Side of a tile in pixels, and tiles of a sheet."""
_QUALITY = 72
_MOST_GRIDS, _MOST_BYTES = 128, 32_000_000


class Tiles(Protocol):
    """Where the pictures of a site's features come from."""

    @property
    def key(self) -> str:
        """What tells them from others of the site."""

    def draw(self, features: Sequence[int]) -> list[Image.Image]:
        """A picture of `TILE` pixels for each."""

    def tell(self, features: Sequence[int]) -> list[str]:
        """What each picture is; empty for a strongest patch."""


@dataclass(frozen=True, slots=True, eq=False)
class PhotographTiles:
    """The strongest patch of each feature in the built-in photographs."""

    key: str
    seen: tuple[Image.Image, ...]
    """The photographs as the model sees them."""
    grid: tuple[int, int]
    which: NDArray[np.integer[Any]]
    """[F], photograph."""
    where: NDArray[np.integer[Any]]
    """[F], number of the patch."""

    def draw(self, features: Sequence[int]) -> list[Image.Image]:
        """See `Tiles`."""
        places = [(self.seen[self.which[i]], divmod(int(self.where[i]), self.grid[1])) for i in features]
        return [crop_tile(seen, self.grid, patch, TILE) for seen, patch in places]

    def tell(self, features: Sequence[int]) -> list[str]:
        """See `Tiles`."""
        return [""] * len(features)


class MadeTile(NamedTuple):
    """An optimized picture."""

    path: Path
    version: tuple[int, ...]
    """See `version_of`."""
    told: str
    """What it is, and what real images went in."""


@dataclass(frozen=True, slots=True, eq=False)
class AtlasTiles:
    """The strongest patch in the most activating image of each feature of an atlas; the whole image if unknown."""

    atlas: Atlas
    site: Site
    made: Mapping[int, MadeTile] = field(default_factory=dict)
    """By feature; shown in the place of the patch."""

    @property
    def key(self) -> str:
        """See `Tiles`."""
        made = [(i, one.version) for i, one in self.made.items()]
        return f"{self.atlas.folder} {self.atlas.manifest['n_images']} {made}"

    def draw(self, features: Sequence[int]) -> list[Image.Image]:
        """See `Tiles`."""
        own = [Feature(self.site, i) for i in features]
        best = {f: self.atlas.hits(f)[0] for f in own}
        # Images that lie together are read together.
        drawn = {f: self._tile(f, best[f]) for f in sorted(own, key=lambda f: best[f].row)}
        return [drawn[f] for f in own]

    def tell(self, features: Sequence[int]) -> list[str]:
        """See `Tiles`; also what real images went in."""
        return [self.made[i].told if i in self.made else "" for i in features]

    def _tile(self, feature: Feature, hit: Hit) -> Image.Image:
        if made := self.made.get(feature.index):
            with suppress(ImageError):
                return cover(open_image(made.path), (TILE, TILE))
            return Image.new("RGB", (TILE, TILE), "gray")
        image = open_image(self.atlas.image(hit.row).jpeg)
        if hit.place is None:
            return cover(image, (TILE, TILE))
        return crop_tile(image, tuple(self.atlas.manifest["grids"][str(self.site)]), hit.place, TILE)


def made_tiles(atlas: Atlas, site: Site) -> dict[int, MadeTile]:
    """The optimized pictures of a site's features, by feature."""
    found = {}
    for i in range(atlas.sites[site]):
        feature = Feature(site, i)
        if recipe := atlas.recipe(feature):
            with suppress(OSError):  # it has gone meanwhile
                path, version = version_of(atlas.picture_path(feature))
                found[i] = MadeTile(path, version, with_images("optimized picture", recipe))
    return found


def photograph_tiles(shelf: Shelf, view: ModelView, reference: Reference, site: Site) -> PhotographTiles:
    """Of the photographs where a feature's value is finite; the first one where there is none."""
    peaks = reference.peaks[site].numpy()
    which = np.where(np.isfinite(peaks), peaks, -np.inf).argmax(0)
    where = np.take_along_axis(reference.places[site].numpy(), which[None], 0)[0]
    seen = tuple(shelf.photograph(view, name) for name in reference.names)
    return PhotographTiles(view.identity.key, seen, find_tap(view, site).patch_grid, which, where)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Features of a site in an order, with their tiles."""

    statistics: Statistics
    order: NDArray[np.int64]
    tiles: Tiles

    @property
    def key(self) -> str:
        """What tells it from others."""
        facts = f"{self.tiles.key} {self.statistics.site} {self.statistics.n_images} {self.order.tobytes()!r}"
        return sha256(facts.encode()).hexdigest()[:16]

    @property
    def n_sheets(self) -> int:
        """As many as hold all tiles."""
        return -(-len(self.order) // (COLUMNS * ROWS))

    def sheet(self, number: int) -> bytes:
        """JPEG of the tiles from `number` * COLUMNS * ROWS on, row by row."""
        sheet, first = Image.new("RGB", (COLUMNS * TILE, ROWS * TILE)), number * COLUMNS * ROWS
        for at, tile in enumerate(self.tiles.draw(self.order[first : first + COLUMNS * ROWS].tolist())):
            sheet.paste(tile, (at % COLUMNS * TILE, at // COLUMNS * TILE))
        return encode(sheet, "JPEG", quality=_QUALITY)


class Sheets:
    """The grids that visitors look at and their sheets; what was not asked for longest goes."""

    def __init__(self) -> None:
        self._grids: LRUCache[str, Grid] = LRUCache(_MOST_GRIDS)
        self._sheets: LRUCache[object, bytes] = LRUCache(_MOST_BYTES, len)
        self._listing, self._drawing = Lock(), Condition()

    def put(self, grid: Grid) -> str:
        """Its key, by which pages ask for it."""
        key = grid.key
        with self._listing:
            self._grids[key] = grid
        return key

    def grid(self, key: str) -> Grid | None:
        """None if it has gone, or never was."""
        with self._listing:
            return self._grids.get(key)

    def sheet(self, key: str, number: int) -> bytes:
        """See `Grid.sheet`; empty if there is none, or its grid has gone."""
        grid = self.grid(key)
        if grid and 0 <= number < grid.n_sheets:
            with suppress(OSError, AtlasError):  # its atlas was put away meanwhile
                return self._drawn(grid, key, number)
        return b""

    @cachedmethod(
        lambda self: self._sheets,
        key=lambda self, grid, key, number: hashkey(key, number),
        condition=lambda self: self._drawing,
    )
    def _drawn(self, grid: Grid, key: str, number: int) -> bytes:
        return grid.sheet(number)
