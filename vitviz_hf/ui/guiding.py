"""Real images that go into a run: the visitor's photograph, or those that excite the feature most."""

import torch

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import image_to_pixels, open_image
from vitviz_hf.models.view import ModelView, to_pixels
from vitviz_hf.optimize.guides import guide_by_images, guide_by_photograph
from vitviz_hf.optimize.objectives import check_objective
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.cards import fitting_atlas
from vitviz_hf.ui.growing import Guided, Wanted, only_feature
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import tell_atlas, tell_photographs

_LEAST, _MOST = 3, 9


def guide_run(shelf: Shelf, view: ModelView, asked: Wanted) -> Guided | None:
    """What the preset `accent` or `aligned` needs; None for the others.

    The images for `aligned` are those on which the objective is highest: of the best ones that an atlas keeps for the
    feature, else of the built-in photographs.

    Raises:
        SiteError: the model has no such site or feature.
        ConfigError: a malformed objective; for `aligned`, one that is above 0 on fewer than 3 of the images.
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
        pictures = [open_image(atlas.image(hit.row).jpeg) for hit in atlas.hits(feature)[:_MOST]]
        whose = tell_atlas(atlas, feature.site)
    else:
        pictures = [shelf.photograph(view, name) for name in builtin_paths()]
        whose = tell_photographs(len(pictures))
    images = torch.stack([image_to_pixels(picture) for picture in pictures])
    scores = score_pixels(view, [wanted], images[None].to(view.device))[0].cpu()
    best = [i for i in scores.argsort(descending=True).tolist() if scores[i] > 0][:_MOST]
    if len(best) < _LEAST:
        raise ConfigError(
            f"'{wanted}' is above 0 on {len(best)} of {whose}, and the preset 'aligned' needs {_LEAST} such images: "
            "search photographs in Browse features first, or take another preset."
        )
    return Guided(guide_by_images(view, wanted, images[best]), f"guided by the {len(best)} most activating of {whose}")
