"""Real images that go into a run: the visitor's photograph, or those that excite the feature most."""

from collections.abc import Generator

import torch
from cachetools import LRUCache

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import image_to_pixels, open_image
from vitviz_hf.models.view import ModelView, to_pixels
from vitviz_hf.optimize.guides import N_IMAGES, Guide, guide_by_images, guide_by_photograph, read_builtin_images
from vitviz_hf.optimize.objectives import check_objective
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.cards import fitting_atlas
from vitviz_hf.ui.growing import ALIGNED, AUTO, Guided, Wanted, only_feature
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import tell_atlas, tell_photographs

_KEPT = 64


class Guiding:
    """Real images for runs; what the built-in photographs gave to the last ones is kept."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: LRUCache[tuple[str, str], Guide] = LRUCache(_KEPT)

    def guide_run(self, view: ModelView, asked: Wanted) -> Generator[tuple[int, int], None, Guided | None]:
        """What the presets `accent` and `aligned` need, and `auto` for a feature of an atlas; None for the others.

        The images are the best ones that an atlas keeps for the feature, for `aligned` else the best of the built-in
        photographs and parts of them. Where none of an atlas excites the feature, `auto` goes without.

        Yields:
            How many of how many built-in photographs and parts it has read.

        Raises:
            SiteError: the model has no such site or feature.
            ConfigError: a malformed objective; for `aligned`, one that is above 0 nowhere on the images.
        """
        if asked.photograph:
            view, wanted = asked.parsed(view)
            pixels = to_pixels(view, asked.photograph)[0]
            return Guided(guide_by_photograph(view, wanted, pixels), "started from your photograph")
        if asked.preset not in (ALIGNED, AUTO):
            return None
        key = view.identity.key, asked.objective
        view, wanted = asked.parsed(view)
        check_objective(view, wanted)
        feature = only_feature(wanted)
        atlas = fitting_atlas(self._shelf, view, feature.site, asked.atlas) if feature else None
        if atlas and feature:
            whose = tell_atlas(atlas, feature.site)
            pictures = [open_image(atlas.image(hit.row).jpeg) for hit in atlas.hits(feature)[:N_IMAGES]]
            try:
                guide = guide_by_images(view, wanted, torch.stack([image_to_pixels(p) for p in pictures]))
            except ConfigError:
                if asked.preset == ALIGNED:
                    raise
                return Guided(None, f"started from noise, since none of {whose} excites it")
        elif asked.preset == AUTO:
            return None
        else:
            whose = f"{tell_photographs(len(builtin_paths()))} and their parts"
            if (kept := self._kept.get(key)) is None:
                images = yield from read_builtin_images(view, wanted)
                kept = self._kept[key] = guide_by_images(view, wanted, images)
            guide = kept
        return Guided(guide, f"made from the {guide.n_images} most activating of {whose}")
