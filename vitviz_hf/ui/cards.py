"""What a picture excites, with evidence: a feature's map, and the places in other photographs that excite it most."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.models.seen import Box
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.exemplars import Exemplar, crop_seen, list_exemplars
from vitviz_hf.reading.maps import activation_map, unusualness
from vitviz_hf.reading.recording import Acts
from vitviz_hf.reading.reference import Reference
from vitviz_hf.sites import Feature
from vitviz_hf.ui.shelf import Shelf


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
    """Standard deviations of the score above the built-in photographs: above their strongest patches if it is of a
    patch, else above their means."""


@dataclass(frozen=True, slots=True)
class Card:
    """A feature that fires on a picture, and what else excites it."""

    fired: Fired
    exemplars: list[tuple[Exemplar, Image.Image]]
    """At most one of each built-in photograph, with its crop; the strongest first."""


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


def measure(acts: Acts, features: list[Feature], reference: Reference, patch: tuple[int, int] | None) -> list[Fired]:
    """What features of one site do on a picture.

    Raises:
        ConfigError: the patch is outside the grid, or fewer than 2 photographs have finite scores.
    """
    own = acts.in_float32()
    scores = (own.at(patch) if patch else own.scores())[0].cpu()
    deviations = unusualness(scores, (reference.peaks if patch else reference.scores)[acts.site])
    return [
        Fired(f, activation_map(own, f)[0].cpu().numpy(), patch, float(scores[f.index]), float(deviations[f.index]))
        for f in features
    ]


def crop_exemplars(
    shelf: Shelf, view: ModelView, reference: Reference, feature: Feature
) -> list[tuple[Exemplar, Image.Image]]:
    """The exemplars of a feature with their crops."""
    grid = find_tap(view, feature.site).patch_grid
    found = list_exemplars(view, reference, feature)
    return [(e, crop_seen(shelf.photograph(view, e.photograph), grid, e.patch)) for e in found]
