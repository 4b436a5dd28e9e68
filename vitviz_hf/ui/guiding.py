"""Real images that go into a run: the visitor's photograph, or those that excite the feature most."""

import torch

from vitviz_hf.images import image_to_pixels, open_image
from vitviz_hf.models.view import ModelView, to_pixels
from vitviz_hf.optimize.guides import N_IMAGES, builtin_images, guide_by_images, guide_by_photograph
from vitviz_hf.optimize.objectives import check_objective
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.cards import fitting_atlas
from vitviz_hf.ui.growing import Guided, Wanted, only_feature
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import tell_atlas, tell_photographs


def guide_run(shelf: Shelf, view: ModelView, asked: Wanted) -> Guided | None:
    """What the preset `accent` or `aligned` needs; None for the others.

    The images for `aligned` are the best ones that an atlas keeps for the feature, else the best of the built-in
    photographs and parts of them.

    Raises:
        SiteError: the model has no such site or feature.
        ConfigError: a malformed objective; for `aligned`, one that is above 0 nowhere on the images.
    """
    if asked.photograph:
        view, wanted = asked.parsed(view)
        pixels = to_pixels(view, asked.photograph)[0]
        return Guided(guide_by_photograph(view, wanted, pixels), "started from your photograph")
    if asked.preset != "aligned":
        return None
    view, wanted = asked.parsed(view)
    check_objective(view, wanted)
    feature = only_feature(wanted)
    atlas = fitting_atlas(shelf, view, feature.site, asked.atlas) if feature else None
    if atlas and feature:
        pictures = [open_image(atlas.image(hit.row).jpeg) for hit in atlas.hits(feature)[:N_IMAGES]]
        whose = tell_atlas(atlas, feature.site)
        images = torch.stack([image_to_pixels(picture) for picture in pictures])
    else:
        images, whose = builtin_images(view, wanted), f"{tell_photographs(len(builtin_paths()))} and their parts"
    return Guided(guide_by_images(view, wanted, images), f"made from the {len(images)} most activating of {whose}")
