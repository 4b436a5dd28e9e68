"""What the picture experiments share: features by a stated rule, optimized pictures that survive a kill, an atlas."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.guiding import guide_from_atlas
from vitviz_hf.atlas.page import check_model, tell_images
from vitviz_hf.atlas.state import SearchState
from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import TripletsConfig
from vitviz_hf.experiments.result import Progress
from vitviz_hf.images import open_image
from vitviz_hf.manifest import make_folder
from vitviz_hf.models.view import ModelView, at_precision, check_feature, find_tap
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import N_IMAGES, Guide, needed
from vitviz_hf.optimize.loop import visualize
from vitviz_hf.optimize.objectives import Direction
from vitviz_hf.optimize.recipe import is_alive, read_recipe, shows
from vitviz_hf.reading.reference import reference_scores
from vitviz_hf.sites import Feature, Site, file_stem
from vitviz_hf.stream import Source, open_source

RULE = "Features: in each layer those whose highest score over {images} is furthest above their mean."
_TOGETHER = 8
Pictured = TypeVar("Pictured", bound=Feature | Direction)


@dataclass(frozen=True, slots=True)
class Picture:
    """An optimized picture."""

    image: Image.Image
    score: float
    transfer_score: float
    alive: bool
    told: str = ""
    """What real images went in, see `tell_images`."""


def one_model(name: str, views: Sequence[ModelView]) -> ModelView:
    """The only model.

    Raises:
        ConfigError: there are several.
    """
    if len(views) != 1:
        raise ConfigError(f"{name} takes one model; got {', '.join(v.model_id for v in views)}.")
    find_tap(views[0], Site(0, "mlp_act"))
    return views[0]


def check_features(view: ModelView, features: Iterable[Feature]) -> None:
    """Raise unless the model has them all.

    Raises:
        SiteError: it lacks one.
    """
    for feature in features:
        check_feature(view, feature)


def strong_on_photographs(view: ModelView, n: int) -> list[Feature]:
    """For each layer the n neurons that `RULE` gives on the built-in photographs."""
    reference = reference_scores(view)
    features = []
    for layer in range(len(view.layers)):
        site = Site(layer, "mlp_act")
        scores = reference[site].numpy()
        features += _strongest(site, scores.max(0), scores.mean(0), n)
    return features


def strong_in_atlas(atlas: Atlas, n: int) -> list[Feature]:
    """The n neurons that `RULE` gives, from as many layers as possible, in order of the layers."""
    sites = [s for s in atlas.sites if s.kind == "mlp_act"]
    if not sites:
        raise ConfigError(f"the atlas {atlas.name!r} has no site of kind mlp_act; name features yourself.")
    chosen = np.linspace(0, len(sites) - 1, min(n, len(sites))).round().astype(int).tolist()
    shares = [n // len(chosen) + (i < n % len(chosen)) for i in range(len(chosen))]
    features = []
    for place, share in zip(chosen, shares, strict=True):
        table = atlas.table(sites[place])
        features += _strongest(sites[place], table.top_scores[:, 0], table.mean, share)
    return features


def _strongest(site: Site, best: NDArray[Any], mean: NDArray[Any], n: int) -> list[Feature]:
    return [Feature(site, int(i)) for i in np.argsort(mean - best, kind="stable")[:n]]


def optimized(
    view: ModelView,
    targets: Sequence[Pictured],
    config: VisualizeConfig,
    work: Path,
    progress: Progress | None = None,
    known: Atlas | None = None,
    guide: Callable[[Pictured], Guide] | None = None,
) -> dict[Pictured, Picture]:
    """Optimized pictures of features and directions, each kept in `work` as soon as it is there.

    Args:
        known: an atlas whose own pictures are taken instead, if they are of this model.
        guide: gives the real images of each, where the options need some.
    """
    folder = work / "pictures"
    make_folder(folder)

    def path_of(target: Pictured) -> Path:
        if known and isinstance(target, Feature) and own_recipe(view, known, target):
            return known.picture_path(target)
        return folder / f"{file_stem(target)}.png"

    wanted = list(dict.fromkeys(targets))
    missing = [t for t in wanted if path_of(t).parent == folder and not _made(path_of(t), view, t, config)]
    done = len(wanted) - len(missing)
    for _, same_site in groupby(missing, lambda t: t.site):
        group = list(same_site)
        for start in range(0, len(group), _TOGETHER):
            some = group[start : start + _TOGETHER]
            made = visualize(view, some, config, [guide(t) for t in some] if guide else ())
            for target, result in zip(some, made, strict=True):
                path_of(target).unlink(missing_ok=True)
                result.save(path_of(target))
            done += len(some)
            if progress:
                progress(done, len(wanted))
    return {t: _read(path_of(t)) for t in wanted}


def own_recipe(view: ModelView, atlas: Atlas, feature: Feature) -> dict[str, Any] | None:
    """As `Atlas.recipe`, of this very model: an atlas of an earlier version has no digest of its model's weights."""
    recipe = atlas.recipe(feature)
    return recipe if recipe and shows(recipe, view, feature) else None


def _made(path: Path, view: ModelView, target: Pictured, config: VisualizeConfig) -> bool:
    """Whether there is a picture of this model, target and recipe already."""
    if not path.is_file():
        return False
    recipe = read_recipe(path)
    made = VisualizeConfig.from_recipe(recipe["config"])
    wanted = replace(config, precision=at_precision(view, config.precision).precision)
    return shows(recipe, view, target) and made == wanted


def _read(path: Path) -> Picture:
    recipe = read_recipe(path)
    scores = float(recipe["score"]), float(recipe["transfer_score"])
    return Picture(open_image(path), *scores, is_alive(recipe), tell_images(recipe))


def pictured_features(
    name: str,
    views: Sequence[ModelView],
    source: Source | None,
    config: TripletsConfig,
    k: int,
    work: Path,
    progress: Progress | None = None,
) -> tuple[ModelView, Atlas, dict[Feature, Picture]]:
    """The model, its atlas with k images for each feature, and pictures of the features that were asked for.

    Raises:
        ConfigError: several models.
        AtlasError: the atlas is of another model.
        SiteError: a feature that the model or the atlas lacks.
    """
    view = one_model(name, views)
    how = picture_config(config.preset, config.steps, config.seed)
    k = max(k, N_IMAGES) if needed(how) else k
    atlas = atlas_for(view, source, config.atlas, config.limit, config.batch, k, work, progress)
    check_features(view, config.features or ())
    chosen = config.features or strong_in_atlas(atlas, config.rows)
    for feature in chosen:
        atlas.hits(feature)
    guide = partial(guide_from_atlas, view, atlas, config=how) if needed(how) else None
    return view, atlas, optimized(view, chosen, how, work, progress, atlas, guide)


def how_chosen(config: TripletsConfig) -> str:
    """Sentences for below the table."""
    how = picture_config(config.preset, config.steps, config.seed)
    chosen = "Features as given." if config.features else RULE.format(images="the searched images")
    stored = " Pictures that the atlas holds are taken from it, whatever they were made from." if config.atlas else ""
    return f"{chosen} Preset {config.preset}, {how.steps} steps, {how.copies} copies.{stored}{how_guided(how, 'atlas')}"


def how_guided(config: VisualizeConfig, source: str) -> str:
    """What real images went into the pictures, for below a table; empty without any."""
    if config.align:
        return f" Pictures are made from up to {N_IMAGES} images of each feature from the {source}."
    return f" Pictures start from the best image of each feature in the {source}." if config.keep else ""


def without_images(name: str, config: VisualizeConfig) -> VisualizeConfig:
    """The options, if they need no real images.

    Raises:
        ConfigError: they do.
    """
    if needs := needed(config):
        raise ConfigError(
            f"{name} has no real images, and its preset needs {needs}; take 'fast', 'fourier' or 'paper'."
        )
    return config


def picture_config(preset: str, steps: int | None, seed: int) -> VisualizeConfig:
    """A preset, with its own steps if there are None."""
    return VisualizeConfig.preset(preset, seed=seed, **({} if steps is None else {"steps": steps}))


def atlas_for(
    view: ModelView,
    source: Source | None,
    name: str | None,
    limit: int | None,
    batch: int,
    k: int,
    work: Path,
    progress: Progress | None = None,
) -> Atlas:
    """The named atlas; without one the dataset is searched, or the built-in photographs.

    Raises:
        AtlasError: there is none, or it is of another model.
    """
    if name is not None:
        atlas = open_atlas(name)
        check_model(view, atlas)
        return atlas
    folder = work / "atlas"
    if folder.is_dir():
        return open_atlas(str(folder))
    source = source or open_source("builtin")
    config = SearchConfig(k=k, limit=limit, batch=batch)

    def show(state: SearchState) -> None:
        if progress:
            progress(state.n_rows, limit or source.n_rows or 0)

    return make_atlas(view, source, config, folder, resume=True, progress=show)
