"""Optimized picture, most activating image, activation map (Fig. 3, 6 and 9a)."""

from collections.abc import Sequence
from pathlib import Path

from vitviz_hf.atlas.page import map_hits
from vitviz_hf.experiments.config import TripletsConfig
from vitviz_hf.experiments.figures import picture_grid
from vitviz_hf.experiments.pictures.choosing import how_chosen, pictured_features
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Table
from vitviz_hf.images import map_range, overlay
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source


def run(
    views: Sequence[ModelView],
    source: Source | None,
    config: TripletsConfig,
    work: Path,
    progress: Progress | None = None,
) -> Result:
    """A row of three for each feature.

    Raises:
        ConfigError: several models.
        AtlasError: the atlas is of another model.
        SiteError: a feature that the model or the atlas lacks.
    """
    view, atlas, pictures = pictured_features("triplets", views, source, config, 1, work, progress)
    grid, rows = [], []
    for feature, picture in pictures.items():
        best = map_hits(view, atlas, feature, 1)[0]
        name = best.label or best.name
        drawn = overlay(best.crop, best.values, map_range(best.values))
        three = [picture.image, best.crop, drawn]
        own = "\n".join(filter(None, (f"score {picture.score:.3g}", picture.told)))
        captions = [own, name[:30], f"score {best.hit.score:.3g}"]
        grid.append((str(feature), list(zip(captions, three, strict=True))))
        made = picture.told or "from noise"
        rows.append((str(feature), picture.score, picture.transfer_score, made, name, best.hit.score))
    notes = (
        how_chosen(config),
        f"Most activating of {atlas.manifest['n_images']:,} images of {atlas.manifest['dataset']}.",
    )
    header = ("feature", "picture's score", "turned, zoomed, blurred", "picture", "most activating image", "its score")
    table = Table(header, tuple(rows), notes)
    return Result("triplets", {"table": table}, {"figure": picture_grid(grid, 1.8)})
