"""Real images that go into a run: the visitor's photograph, or those that excite the feature most."""

from collections.abc import Generator
from contextlib import suppress

from cachetools import LRUCache

from vitviz_hf.atlas.guiding import images_from_atlas
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import ConfigError, VitvizError
from vitviz_hf.models.view import ModelView, at_precision, to_pixels
from vitviz_hf.optimize.guides import Guides, guide_by_photograph, guides_by_images, read_builtin_images
from vitviz_hf.optimize.objectives import check_objective, feature_of
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.cards import fitting_atlas
from vitviz_hf.ui.growing import ALIGNED, AUTO, Guided, Wanted
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import tell_atlas, tell_photographs

_KEPT = 16


def chosen_atlas(shelf: Shelf, preset: str, name: str) -> Atlas | None:
    """The atlas of a name, if the preset takes images.

    Raises:
        AtlasError: for `aligned`, it cannot be opened; `auto` goes without it.
    """
    if not name or preset not in (ALIGNED, AUTO):
        return None
    with suppress(*((VitvizError, OSError) if preset == AUTO else ())):
        return shelf.atlas(name)
    return None


class Guiding:
    """Real images for runs; what the built-in photographs gave to the last ones is kept."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept: LRUCache[tuple[str, str], Guides] = LRUCache(_KEPT)

    def guide_run(self, view: ModelView, asked: Wanted) -> Generator[tuple[int, int], None, Guided | None]:
        """What the presets `accent` and `aligned` need, and `auto` for a feature of an atlas; None for the others.

        The images are the best ones that an atlas keeps for the feature, for `aligned` else the best of the built-in
        photographs and parts of them. An atlas ranks images by all patches: at one token only `aligned` takes those.
        Where an atlas's cannot be read or excite nothing, `auto` goes without.

        Yields:
            How many of how many built-in photographs and parts it has read.

        Raises:
            SiteError: the model has no such site or feature.
            ConfigError: a malformed objective; for `aligned`, one that is above 0 nowhere on the images.
        """
        if asked.photograph:
            view, wanted = asked.parsed(view)
            guide = guide_by_photograph(view, wanted, to_pixels(view, asked.photograph)[0])
            return Guided(dict.fromkeys(asked.seeds, guide), "started from your photograph")
        if asked.preset not in (ALIGNED, AUTO):
            return None
        key = view.identity.key, asked.objective
        view, wanted = asked.parsed(view)
        check_objective(view, wanted)
        view = at_precision(view, "auto")  # as the picture will be made
        feature = feature_of(wanted, at_token=asked.preset == ALIGNED)
        atlas = fitting_atlas(self._shelf, view, feature.site, asked.atlas) if feature else None
        if atlas and feature:
            whose = tell_atlas(atlas, feature.site) + ("" if feature_of(wanted) else ", ranked by all patches")
            try:
                guides = guides_by_images(view, wanted, images_from_atlas(view, atlas, feature))
            except (OSError, ValueError) as error:  # a damaged atlas is one of these
                if asked.preset == ALIGNED:
                    raise
                why = f"none of {whose} excites it" if isinstance(error, ConfigError) else "its atlas cannot be read"
                return Guided({}, f"started from noise, since {why}")
        elif asked.preset == AUTO:
            return None
        else:
            whose = f"{tell_photographs(len(builtin_paths()))} and their parts"
            if (kept := self._kept.get(key)) is None:
                images = yield from read_builtin_images(view, wanted)
                kept = self._kept[key] = guides_by_images(view, wanted, images)
            guides = kept
        own = {seed: guides.of(seed) for seed in asked.seeds}
        return Guided(own, f"made from the {guides.shared.n_images} most activating of {whose}")
