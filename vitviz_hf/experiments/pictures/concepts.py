"""Optimized picture, the seven most activating images, and words: what CLIP's features mean (Fig. 2, 10 and 11)."""

from collections.abc import Sequence
from pathlib import Path

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.atlas.words import name_features
from vitviz_hf.errors import NoClassifierError
from vitviz_hf.experiments.config import TripletsConfig
from vitviz_hf.experiments.figures import picture_grid
from vitviz_hf.experiments.pictures.choosing import how_chosen, pictured_features
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Table
from vitviz_hf.images import open_image
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

_SHOWN, _RANKED = 7, 10


def run(
    views: Sequence[ModelView],
    source: Source | None,
    config: TripletsConfig,
    work: Path,
    progress: Progress | None = None,
) -> Result:
    """A row of eight pictures for each feature, with its words if the model or the atlas has them.

    Raises:
        ConfigError: several models.
        AtlasError: the atlas is of another model.
        SiteError: a feature that the model or the atlas lacks.
    """
    view, atlas, pictures = pictured_features("concepts", views, source, config, _RANKED, work, progress)
    if not config.atlas:
        _name(atlas, view, progress)
    grid, rows = [], []
    for feature, picture in pictures.items():
        named = atlas.feature_words(feature)[:3]
        stored = [atlas.image(hit.row) for hit in atlas.hits(feature)[:_SHOWN]]
        names = [s.label or s.name for s in stored]
        images = [(name[:18], open_image(s.jpeg)) for name, s in zip(names, stored, strict=True)]
        grid.append((str(feature), [(", ".join(w for w, _ in named)[:24], picture.image), *images]))
        words = ", ".join(f"{word} {agreement:.1f}" for word, agreement in named) or None
        rows.append((str(feature), words, picture.score, "; ".join(names)))
    how_named = atlas.words
    notes = (
        how_chosen(config),
        f"The {_SHOWN} most activating of {atlas.manifest['n_images']:,} images of {atlas.manifest['dataset']}.",
        f"Words in the eyes of {how_named.namer}, with their agreement; the best word for random images reaches "
        f"{how_named.chance:.2f}."
        if how_named
        else "No words: the model has no text tower, the atlas no names.",
    )
    header = ("feature", "words", "picture's score", "most activating images")
    table = Table(header, tuple(rows), notes)
    return Result("concepts", {"table": table}, {"figure": picture_grid(grid, 1.3)})


def _name(atlas: Atlas, view: ModelView, progress: Progress | None) -> None:
    """Words by the model itself, if it has a text tower."""
    if atlas.words is None:
        try:
            name_features(atlas, view, progress=progress)
        except NoClassifierError:
            return
