"""What a feature sees, by example: the places in photographs where it fires most."""

from dataclasses import dataclass

from PIL import Image

from vitviz_hf.errors import ModelError
from vitviz_hf.images import outline_patch, pixels_to_image
from vitviz_hf.models.view import ModelView, check_feature, find_tap, to_pixels
from vitviz_hf.reading.reference import Reference
from vitviz_hf.sites import Feature, Site

_PATCHES = 5
"""Side of a crop, unless that is less than a quarter of the picture, as in the first stages of a pyramid."""
_SIDE = 120
_TILE_PATCHES = 3


@dataclass(frozen=True, slots=True)
class Exemplar:
    """The place in a photograph where a feature fires most."""

    photograph: str
    patch: tuple[int, int]
    """(row, column) on the site's patch grid."""
    value: float
    """Activation there."""


def list_exemplars(view: ModelView, reference: Reference, feature: Feature, n: int = 4) -> list[Exemplar]:
    """The strongest patches of a feature, at most one of each photograph, best first.

    Photographs where the feature has no finite value, and those where it does not fire (value of 0 or less) behind the
    first one, are left out.

    Args:
        reference: as from `load_reference`.

    Raises:
        SiteError: the model has no such site.
        FeatureError: no such feature.
        ModelError: no photograph has a finite value.
    """
    check_feature(view, feature)
    cols = find_tap(view, feature.site).patch_grid[1]
    peaks = reference.peaks[feature.site][:, feature.index]
    places = reference.places[feature.site][:, feature.index].tolist()
    known = [(value, i) for i, value in enumerate(peaks.tolist()) if peaks[i].isfinite()]
    if not known:
        raise nothing_finite(feature.site)
    best = sorted(known, key=lambda pair: (-pair[0], pair[1]))[:n]
    shown = best[:1] + [pair for pair in best[1:] if pair[0] > 0]
    return [Exemplar(reference.names[i], divmod(places[i], cols), value) for value, i in shown]


def nothing_finite(site: Site) -> ModelError:
    """What is raised where no photograph tells anything of a site."""
    return ModelError(f"no built-in photograph has finite values at {site}; check the model's weights.")


def crop_exemplar(view: ModelView, photograph: Image.Image, feature: Feature, patch: tuple[int, int]) -> Image.Image:
    """About 5 x 5 patches around one, which is framed, of the photograph as the model sees it.

    Returns:
        A picture whose longer side has 120 pixels.
    """
    seen = pixels_to_image(to_pixels(view, photograph)[0].float().cpu().numpy())
    return crop_seen(seen, find_tap(view, feature.site).patch_grid, patch)


def crop_seen(seen: Image.Image, grid: tuple[int, int], patch: tuple[int, int]) -> Image.Image:
    """As `crop_exemplar`, from the model's crop of the photograph."""
    rows, cols = grid
    framed = outline_patch(seen, patch, (rows, cols))
    crop = framed.crop(tuple(round(x) for x in _box(seen, grid, patch, _PATCHES, 4)))  # type: ignore[arg-type]
    scale = _SIDE / max(crop.size)
    return crop.resize((round(crop.width * scale), round(crop.height * scale)), Image.Resampling.BICUBIC)


def crop_tile(seen: Image.Image, grid: tuple[int, int], patch: tuple[int, int], side: int) -> Image.Image:
    """About 3 x 3 patches around one, unframed, side x side pixels, from the model's crop of the photograph."""
    return seen.resize((side, side), Image.Resampling.BICUBIC, _box(seen, grid, patch, _TILE_PATCHES, 5))


def _box(
    seen: Image.Image, grid: tuple[int, int], patch: tuple[int, int], least: int, part: int
) -> tuple[float, float, float, float]:
    """Pixels of so many patches around one, or of a part of the picture where that is more."""
    (top, height), (left, width) = (_window(at, n, max(least, n // part)) for at, n in zip(patch, grid, strict=True))
    x, y = seen.width / grid[1], seen.height / grid[0]
    return left * x, top * y, (left + width) * x, (top + height) * y


def _window(at: int, n: int, wide: int) -> tuple[int, int]:
    """First patch and number of patches around one that lie within n."""
    wide = min(n, wide)
    return min(max(at - wide // 2, 0), n - wide), wide
