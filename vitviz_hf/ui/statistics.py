"""Statistics of the features of a site: of an atlas, or of the built-in photographs; as rows, CSV and NPZ."""

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.exemplars import nothing_finite
from vitviz_hf.reading.maps import usual_spread
from vitviz_hf.reading.reference import Reference, load_reference
from vitviz_hf.sites import Feature, Site
from vitviz_hf.ui.made import UPLOADED

Rows = dict[str, Any]
SORTS = ("index", "maximum", "unusual", "sparse")


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What the features of a site did on some images; all arrays are [F]."""

    site: Site
    n_images: int
    """With finite scores at the site."""
    told: str
    """Of which images."""
    mean: NDArray[np.floating[Any]]
    """Of the scores."""
    std: NDArray[np.floating[Any]]
    """Of the scores; of few photographs as of a sample, of an atlas as of all there are."""
    maximum: NDArray[np.floating[Any]]
    """The highest score of an image."""
    sparse: NDArray[np.floating[Any]]
    """Share of patches that are not active."""

    @property
    def unusual(self) -> NDArray[np.floating[Any]]:
        """The highest score in standard deviations above the mean, as cards tell it: see `usual_spread`."""
        return (self.maximum - self.mean) / usual_spread(torch.tensor(self.std)).numpy()

    @property
    def fires(self) -> NDArray[np.bool_]:
        """Whether it is active on some patch of some image; those that are not are dead."""
        return self.sparse < 1

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """All of them by name."""
        return {name: getattr(self, name) for name in ("mean", "std", "maximum", "unusual", "sparse", "fires")}

    def order(self, sort: str, fires: bool | None = None) -> NDArray[np.int64]:
        """Features in the order of a column, largest first, or of their `index`; equal ones by index.

        Args:
            fires: live ones only, or dead ones only; all if None.

        Raises:
            ConfigError: there is no such column.
        """
        if sort not in SORTS:
            raise ConfigError(f"sort must be one of {', '.join(SORTS)}; got {sort!r}.")
        every = np.arange(len(self.mean))
        found = every if sort == "index" else np.argsort(-getattr(self, sort), kind="stable")
        return found if fires is None else found[self.fires[found] == fires]

    def to_csv(self) -> str:
        """A row for each feature."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        columns = self.columns
        table.writerow(["feature", *columns])
        for i, row in enumerate(zip(*(values.tolist() for values in columns.values()), strict=True)):
            table.writerow([Feature(self.site, i), *row])
        return text.getvalue()

    def to_npz(self) -> bytes:
        """The arrays by name, the `site`, and `images`, from which they are."""
        file = io.BytesIO()
        facts = {"site": np.array(str(self.site)), "images": np.array(self.told)}
        np.savez_compressed(file, allow_pickle=False, **self.columns, **facts)
        return file.getvalue()


def atlas_statistics(atlas: Atlas, site: Site) -> Statistics:
    """Of an atlas.

    Raises:
        SiteError: it does not cover the site.
    """
    table = atlas.table(site)
    return Statistics(
        site,
        count_images(atlas, site),
        tell_atlas(atlas, site),
        table.mean,
        table.std,
        table.top_scores[:, 0],
        table.sparsity,
    )


def model_statistics(view: ModelView, reference: Reference, site: Site) -> Statistics:
    """Of the built-in photographs with finite scores.

    Raises:
        SiteError: the model has no such site.
        ModelError: no photograph has finite scores.
    """
    find_tap(view, site)
    finite = reference.scores[site].isfinite().all(1)
    scores, active = (part[site][finite].double().numpy() for part in (reference.scores, reference.active))
    n = len(scores)
    if not n:
        raise nothing_finite(site)
    std = scores.std(0, ddof=min(1, n - 1))
    return Statistics(site, n, tell_photographs(n), scores.mean(0), std, scores.max(0), 1 - active.mean(0))


def count_images(atlas: Atlas, site: Site) -> int:
    """Images of an atlas but for those left out at a site."""
    return int(atlas.manifest["n_images"] - atlas.manifest.get("non_finite", {}).get(str(site), 0))


def tell_atlas(atlas: Atlas, site: Site) -> str:
    """`2,000 photographs of OWNER/NAME`, or `40 uploaded photographs`."""
    n, whose = count_images(atlas, site), atlas.manifest["dataset"]
    return f"{n:,} {UPLOADED}" if whose == UPLOADED else f"{n:,} photographs of {whose}"


def tell_photographs(n: int) -> str:
    """`the 19 built-in photographs`."""
    return f"the {n} built-in photographs"


def atlas_rows(atlas: Atlas, site: Site, sort: str, offset: int, n: int) -> Rows:
    """Some features of a site of an atlas.

    Raises:
        SiteError: the atlas does not cover it.
        ConfigError: unknown sort, or nothing at this offset.
    """
    known, rows = atlas_statistics(atlas, site), []
    for i in _page(known, sort, offset, n):
        feature = Feature(site, i)
        image = atlas.image(atlas.hits(feature)[0].row).name
        rows.append(_row(known, i) | {"image": image, "word": atlas.best_word(feature)})
    return _told(known, offset, rows)


def model_rows(view: ModelView, site: Site, sort: str, offset: int, n: int) -> Rows:
    """Some features of a site of a model, on the built-in photographs with finite scores.

    Raises:
        SiteError: the model has no such site.
        ConfigError: unknown sort, or nothing at this offset.
        ModelError: no photograph has finite scores.
    """
    grid, reference = find_tap(view, site).patch_grid, load_reference(view)
    known, rows = model_statistics(view, reference, site), []
    finite = reference.scores[site].isfinite().all(1).numpy()
    scores, peaks, places = (
        part[site].numpy()[finite] for part in (reference.scores, reference.peaks, reference.places)
    )
    names = np.array(reference.names)[finite]
    best, strongest = scores.argmax(0), peaks.argmax(0)
    for i in _page(known, sort, offset, n):
        at = strongest[i]
        peak = {
            "image": str(names[at]),
            "value": float(peaks[at, i]),
            "place": list(divmod(int(places[at, i]), grid[1])),
        }
        rows.append(_row(known, i) | {"image": str(names[best[i]]), "peak": peak})
    return _told(known, offset, rows)


def _page(known: Statistics, sort: str, offset: int, n: int) -> list[int]:
    order = known.order(sort)
    if offset >= len(order):
        raise ConfigError(f"there are {len(order)} features, so offset goes from 0 to {len(order) - 1}; got {offset}.")
    return [int(i) for i in order[offset : offset + n]]


def _row(known: Statistics, i: int) -> Rows:
    return {"feature": str(Feature(known.site, i))} | {name: x[i].item() for name, x in known.columns.items()}


def _told(known: Statistics, offset: int, rows: list[Rows]) -> Rows:
    size = len(known.mean)
    return {"site": str(known.site), "total": size, "offset": offset, "images": known.n_images, "features": rows}
