"""One row of optimized pictures for each layer: edges, textures, patterns, parts, objects (Fig. 1 and 8)."""

from collections.abc import Sequence
from pathlib import Path

from vitviz_hf.experiments.config import ProgressionConfig
from vitviz_hf.experiments.figures import picture_grid
from vitviz_hf.experiments.pictures.choosing import (
    RULE,
    check_features,
    one_model,
    optimized,
    picture_config,
    strong_on_photographs,
    without_images,
)
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Table
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.reference import best_photograph, reference_scores
from vitviz_hf.stream import Source


def run(
    views: Sequence[ModelView],
    source: Source | None,
    config: ProgressionConfig,
    work: Path,
    progress: Progress | None = None,
) -> Result:
    """Optimized pictures of features of every layer.

    Raises:
        ConfigError: several models, or a preset that needs real images.
        SiteError: a feature that the model lacks, or a network without features.
    """
    view = one_model("progression", views)
    how = without_images("progression", picture_config(config.preset, config.steps, config.seed))
    check_features(view, config.features or ())
    chosen = config.features or strong_on_photographs(view, config.columns)
    pictures = optimized(view, sorted(chosen), how, work, progress)
    reference = reference_scores(view)
    rows = []
    for feature, picture in pictures.items():
        name, best = best_photograph(reference, feature)
        rows.append((str(feature), picture.score, picture.transfer_score, "yes" if picture.alive else "no", best, name))
    layers = sorted({f.site.layer for f in pictures})
    grid = [
        (f"layer {layer}", [(str(f), p.image) for f, p in pictures.items() if f.site.layer == layer])
        for layer in layers
    ]
    header = ("feature", "score", "turned, zoomed, blurred", "alive", "best photograph's score", "photograph")
    notes = (
        "Features as given." if config.features else RULE.format(images="the built-in photographs"),
        f"Preset {config.preset}, {how.steps} steps, {how.copies} copies.",
    )
    return Result("progression", {"table": Table(header, tuple(rows), notes)}, {"figure": picture_grid(grid)})
