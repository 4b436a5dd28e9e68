"""What a picture excites, with evidence: a feature's map, and the places in other photographs that excite it most."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.atlas.agreement import Agreement
from vitviz_hf.atlas.page import optimized_picture, tell_images
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.images import open_image
from vitviz_hf.models.seen import Box
from vitviz_hf.models.view import ModelView, check_feature, find_tap
from vitviz_hf.reading.exemplars import Exemplar, crop_seen, list_exemplars
from vitviz_hf.reading.maps import activation_map, usual_scores, usual_spread
from vitviz_hf.reading.recording import Acts
from vitviz_hf.reading.reference import Reference
from vitviz_hf.sites import Feature, Site
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import tell_atlas, tell_photographs

N_EXEMPLARS = 4


@dataclass(frozen=True, slots=True)
class Fired:
    """What a feature does on a picture, or on one patch of it."""

    feature: Feature
    values: NDArray[np.floating]
    """[R, C], raw."""
    patch: tuple[int, int] | None
    score: float
    """Value at the patch; the mean over all patches without one."""
    unusual: float
    """Standard deviations of the score above those photographs: above their strongest patches if it is of a patch,
    else above their means."""
    against: str = "the built-in photographs"
    """Which photographs."""
    words: str = ""
    """The text or label that it is, as it was asked for."""

    @property
    def name(self) -> str:
        """Its words, else its address."""
        return self.words or str(self.feature)


class Made(NamedTuple):
    """An optimized picture of an atlas."""

    picture: Image.Image
    from_images: str
    """See `tell_images`."""


@dataclass(frozen=True, slots=True)
class Card:
    """A feature that fires on a picture, and what else excites it."""

    fired: Fired
    exemplars: list[tuple[Exemplar, Image.Image]]
    """At most one of each photograph, with its crop; the strongest first."""
    made: Made | None = None
    """The optimized picture."""
    agreement: Agreement | None = None
    """How well that tells what the feature sees, where it was asked."""


@dataclass(frozen=True, slots=True)
class FeatureCard:
    """A feature by itself, and what excites it."""

    feature: Feature
    told: str
    """Beside its address, in words."""
    word: str
    exemplars: list[tuple[Exemplar, Image.Image]]
    """As those of `Card`."""
    made: Made | None
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True)
class Usual:
    """What the features of a site do on photographs."""

    mean: Tensor
    """[F]"""
    std: Tensor
    """[F], at least a tenth of the site's median."""
    told: str
    """Which photographs."""


@dataclass(frozen=True, slots=True)
class MapResult:
    """Activation map of one feature on the model's crop of a picture."""

    crop: Image.Image
    fired: Fired


@dataclass(frozen=True, slots=True)
class RankResult:
    """Strongest features of a site, each with its map and exemplars."""

    crop: Image.Image
    grid: tuple[int, int]
    patch: tuple[int, int] | None
    cards: list[Card]
    classes: list[tuple[str, float]]
    """Likeliest labels with their probability; empty without a classifier."""
    box: Box = (0.0, 0.0, 1.0, 1.0)
    """Where the crop lies in the picture, see `seen_box`."""


def fitting_atlas(shelf: Shelf, view: ModelView, site: Site, chosen: Atlas | None = None) -> Atlas | None:
    """The chosen atlas, else that of `Shelf.atlas_for`; of a site and of the model as it is loaded, so on one scale."""

    def fits(atlas: Atlas | None) -> bool:
        return bool(atlas and site in atlas.sites and not view.identity.difference(atlas.manifest))

    if fits(chosen):
        return chosen
    own = shelf.atlas_for(view.snapshot, site)
    return own if fits(own) else None


def usual_values(reference: Reference, atlas: Atlas | None, site: Site, patch: bool) -> Usual:
    """What is usual for scores of a site, or for its strongest patches: in the atlas if it tells, else the reference.

    Raises:
        ConfigError: fewer than 2 photographs have finite scores.
    """
    if atlas and (found := _usual_in(atlas, site, patch)):
        return found
    known = (reference.peaks if patch else reference.scores)[site]
    return Usual(*usual_scores(known), tell_photographs(int(known.isfinite().all(1).sum())))


def _usual_in(atlas: Atlas, site: Site, patch: bool) -> Usual | None:
    table = atlas.table(site)
    mean, std = (table.peak_mean, table.peak_std) if patch else (table.mean, table.std)
    if mean is None or std is None or (not patch and atlas.manifest["reduce"] != "mean"):
        return None
    kept, spread = (torch.tensor(x, dtype=torch.float32) for x in (mean, std))
    return Usual(kept, usual_spread(spread), tell_atlas(atlas, site))


def measure(acts: Acts, features: list[Feature], usual: Usual, patch: tuple[int, int] | None) -> list[Fired]:
    """What features of one site do on a picture.

    Raises:
        ConfigError: the patch is outside the grid.
    """
    own = acts.in_float32()
    scores = (own.at(patch) if patch else own.scores())[0].cpu()
    above = deviations(scores, usual)
    return [
        Fired(
            f,
            activation_map(own, f)[0].cpu().numpy(),
            patch,
            float(scores[f.index]),
            float(above[f.index]),
            usual.told,
        )
        for f in features
    ]


def deviations(scores: Tensor, usual: Usual) -> Tensor:
    """Standard deviations of scores [F] above what is usual."""
    return (scores.cpu() - usual.mean) / usual.std


def crop_exemplars(
    shelf: Shelf, view: ModelView, atlas: Atlas | None, feature: Feature
) -> list[tuple[Exemplar, Image.Image]]:
    """The exemplars of a feature with their crops: of an atlas that has places, else of the built-in photographs."""
    grid = find_tap(view, feature.site).patch_grid
    if atlas and (in_atlas := _atlas_exemplars(atlas, feature, grid)):
        return in_atlas
    found = list_exemplars(view, shelf.reference(view), feature, N_EXEMPLARS)
    return [(e, crop_seen(shelf.photograph(view, e.photograph), grid, e.patch)) for e in found]


def _atlas_exemplars(atlas: Atlas, feature: Feature, grid: tuple[int, int]) -> list[tuple[Exemplar, Image.Image]]:
    """Those of the first ranked images; of the ones behind the first, only where the feature fires."""
    found: list[tuple[Exemplar, Image.Image]] = []
    for hit in atlas.hits(feature)[:N_EXEMPLARS]:
        if hit.place is None or hit.peak is None or (found and hit.peak <= 0):
            continue
        image = atlas.image(hit.row)
        exemplar = Exemplar(image.label or image.name or "image", hit.place, hit.peak)
        found.append((exemplar, crop_seen(open_image(image.jpeg), grid, hit.place)))
    return sorted(found, key=lambda pair: -pair[0].value)


def made_picture(atlas: Atlas | None, feature: Feature) -> Made | None:
    """The picture that was optimized for a feature, if the atlas has one."""
    made = optimized_picture(atlas, feature) if atlas else None
    return Made(made[0], tell_images(made[1])) if made else None


def feature_card(shelf: Shelf, view: ModelView, atlas: Atlas | None, feature: Feature, told: str = "") -> FeatureCard:
    """A feature with what excites it.

    Args:
        atlas: where its pictures come from; the built-in photographs if None.

    Raises:
        SiteError: the model has no such site.
        FeatureError: no such feature.
    """
    check_feature(view, feature)
    atlas = atlas if atlas and feature.site in atlas.sites else None
    word = atlas.best_word(feature) if atlas else ""
    judged = atlas.agreement(feature) if atlas else None
    crops, made = crop_exemplars(shelf, view, atlas, feature), made_picture(atlas, feature)
    return FeatureCard(feature, told, word, crops, made, judged)
