"""The page of a feature that opens beside what it was chosen from, and cards of features by themselves."""

from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup

from vitviz_hf.atlas.page import feature_page
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import VitvizError
from vitviz_hf.images import image_to_pixels, map_range, overlay
from vitviz_hf.inside.words import as_searched
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import ModelView, check_feature, find_tap
from vitviz_hf.reading.exemplars import Exemplar, crop_seen, list_exemplars
from vitviz_hf.reading.maps import activation_map
from vitviz_hf.reading.recording import activations
from vitviz_hf.reading.reference import best_photograph, correlated_features
from vitviz_hf.sites import Feature, parse_feature
from vitviz_hf.templates import load_template
from vitviz_hf.ui.cards import FeatureCard, feature_card, fitting_atlas
from vitviz_hf.ui.drawing import feature_cards_html
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import model_statistics, tell_atlas

_NEIGHBOURS = 8
_WIDTH = 224


class Beside:
    """Pages and cards of the features of models, with an atlas or without one. On ZeroGPU these are the jobs."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def page(self, snapshot: Snapshot, atlas: Atlas | None, feature: Feature) -> str:
        """The page of a feature as HTML; its neighbours are cards that pick their address.

        Args:
            atlas: where its images and figures come from; the built-in photographs if it lacks the site, or if None.

        Raises:
            SiteError: the model has no such site.
            FeatureError: no such feature.
            AtlasError: the atlas is of another model.
        """
        view = self._view(snapshot, atlas)
        if atlas and feature.site in atlas.sites:
            body, told = feature_page(view, atlas, feature, neighbours=False), tell_atlas(atlas, feature.site)
            near = atlas.neighbours(feature, _NEIGHBOURS)
        else:
            atlas, view = None, self._shelf.view(snapshot)
            check_feature(view, feature)
            reference = self._shelf.reference(view)
            near = correlated_features(reference.scores, feature, _NEIGHBOURS)
            told = model_statistics(view, reference, feature.site).told
            body = self._own_page(view, feature)
        cards = [feature_card(self._shelf, view, atlas, f, f"correlation {r:.2f}") for f, r in near]
        neighbours = feature_cards_html(cards, f"Features whose scores go with those of {feature}")
        parts = {"body": Markup(body), "neighbours": Markup(neighbours)}
        return load_template(__package__, "beside.html").render(**parts, n=len(cards), told=told)

    def cards(
        self, snapshot: Snapshot, atlas: Atlas | None, features: Sequence[tuple[Feature, str]]
    ) -> list[FeatureCard]:
        """Cards of features, each with what is told of it."""
        view = self._view(snapshot, atlas)
        return [feature_card(self._shelf, view, atlas, f, told) for f, told in features]

    def card(self, snapshot: Snapshot, address: str, atlas: Atlas | None = None) -> str:
        """The card of the one feature that an address names, as HTML; empty for anything else, such as a sum.

        Args:
            atlas: where its images come from if it fits, before those in use; the built-in photographs if none can be
                read.
        """
        view = self._shelf.view(snapshot)
        try:
            feature = parse_feature(address.strip().lstrip("-+ "), view.kinds)
            known = fitting_atlas(self._shelf, view, feature.site, atlas)
            try:
                card = feature_card(self._shelf, view, known, feature)
            except (OSError, ValueError):  # a damaged atlas is one of these
                card = feature_card(self._shelf, view, None, feature)
        except VitvizError:
            return ""
        return feature_cards_html([card], "The chosen feature")

    def card_page(self, snapshot: Snapshot, feature: Feature, atlas: Atlas | None = None) -> str:
        """The page of the feature of a card, from where the card is."""
        known = fitting_atlas(self._shelf, self._shelf.view(snapshot), feature.site, atlas)
        try:
            return self.page(snapshot, known, feature)
        except (OSError, ValueError):
            return self.page(snapshot, None, feature)

    def _view(self, snapshot: Snapshot, atlas: Atlas | None) -> ModelView:
        view = self._shelf.view(snapshot)
        return as_searched(view, atlas.manifest) if atlas else view

    def _own_page(self, view: ModelView, feature: Feature) -> str:
        """What there is to say of a feature without an atlas."""
        reference, i = self._shelf.reference(view), feature.index
        known = model_statistics(view, reference, feature.site)
        best, _ = best_photograph(reference.scores, feature)
        return load_template(__package__, "feature.html").render(
            feature=str(feature),
            model_id=view.model_id,
            told=known.told,
            mean=known.mean[i],
            std=known.std[i],
            maximum=known.maximum[i],
            best=best.replace("_", " "),
            active=1 - known.sparse[i],
            fires=known.fires[i],
            tiles=self._tiles(view, feature, list_exemplars(view, reference, feature)),
        )

    def _tiles(self, view: ModelView, feature: Feature, exemplars: list[Exemplar]) -> list[dict[str, Any]]:
        """Photographs with the strongest patch framed, and with the map."""
        seen = [self._shelf.photograph(view, e.photograph) for e in exemplars]
        pixels = torch.stack([image_to_pixels(picture) for picture in seen]).to(view.device)
        acts = activations(view, pixels, [feature.site])[feature.site]
        maps = activation_map(acts, feature).float().cpu().numpy()
        grid, scale = find_tap(view, feature.site).patch_grid, map_range(*maps)
        return [
            {
                "name": e.photograph.replace("_", " "),
                "patch": "{},{}".format(*e.patch),
                "value": e.value,
                "crop": crop_seen(picture, grid, e.patch),
                "map": overlay(picture.resize((_WIDTH, _WIDTH * picture.height // picture.width)), values, scale),
            }
            for e, picture, values in zip(exemplars, seen, maps, strict=True)
        ]
