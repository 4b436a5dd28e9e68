"""Real images for pictures, from an atlas."""

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
from torch import Tensor

from vitviz_hf.atlas.page import check_model
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import AtlasError
from vitviz_hf.images import image_to_pixels, open_image
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import N_IMAGES, Guide, guide_by
from vitviz_hf.optimize.objectives import Target
from vitviz_hf.sites import Feature


def guide_from_atlas(
    view: ModelView, atlas: Atlas, feature: Feature, config: VisualizeConfig, target: Target | None = None
) -> Guide:
    """What the options need of the stored images that excite a feature most, up to nine.

    Args:
        target: what the picture is of, if not of the feature's mean over patches.

    Raises:
        AtlasError: the atlas is of another model, or stores no image of the feature.
        SiteError: the atlas does not cover the site.
        FeatureError: no such feature.
        ConfigError: none of the images excites the feature.
    """
    return guide_by(view, target or feature, images_from_atlas(view, atlas, feature), config)


def images_from_atlas(view: ModelView, atlas: Atlas, feature: Feature) -> Tensor:
    """The stored images that excite a feature most, up to nine: [N, 3, H, W] in [0, 1].

    Raises:
        AtlasError: the atlas is of another model, or stores no image of the feature.
        SiteError: the atlas does not cover the site.
        FeatureError: no such feature.
    """
    check_model(view, atlas)
    hits = atlas.hits(feature)[:N_IMAGES]
    if not hits:
        raise AtlasError(f"the atlas {atlas.name!r} stores no image of '{feature}'.")
    return torch.stack([image_to_pixels(open_image(atlas.image(hit.row).jpeg)) for hit in hits])
