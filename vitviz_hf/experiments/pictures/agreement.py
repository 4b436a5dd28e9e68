"""Whether pictures tell what features see: a judge chooses photographs by them (after Borowski et al. 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitviz_hf.atlas.page import check_model
from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.bootstrap import bootstrap
from vitviz_hf.experiments.config import AgreementConfig
from vitviz_hf.experiments.figures import picture_grid
from vitviz_hf.experiments.pictures.choosing import (
    check_features,
    how_guided,
    one_model,
    optimized,
    own_recipe,
    picture_config,
)
from vitviz_hf.experiments.pictures.judge import Judge, open_judge, spread_layers
from vitviz_hf.experiments.pictures.realism import distance_to, mean_of_pairs, percentile, spectrum_distance
from vitviz_hf.experiments.pictures.trials import (
    LEAST_IMAGES,
    N_EXEMPLARS,
    N_QUERIES,
    Depths,
    Photographs,
    Shares,
    ask,
    choose_depths,
    draw_candidates,
    exemplars,
    live_features,
    look_of,
    queries,
    read_photographs,
    spectrum_of,
)
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.images import image_to_pixels, pixels_to_image
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import N_IMAGES, Guide, guide_by, needed
from vitviz_hf.optimize.objectives import to_objective
from vitviz_hf.optimize.scores import transfer_scores
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import Source

WAYS = ("picture", "1 exemplar", "9 exemplars", "another's picture", "noise")
LEAST_RANKS = 64
"""Images of a feature that an atlas must rank, so that of each half the best 20 are among them."""
_RULE = {
    "features": "Features as given, of them those whose best score is above 0.",
    "atlas": "Features with a picture in the atlas, into which no real image went, and whose best score is above 0; if "
    "there is none, drawn at random (seed {}).",
    "drawn": "Features drawn at random (seed {}) among those whose best score is above 0.",
}
_N_NOISE = 8
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found of the pictures of one feature."""

    feature: Feature
    right: Mapping[str, Shares]
    """Way of `WAYS` -> share of right choices."""
    score: float
    percentile: float
    """Of the picture's score among the images', in %."""
    transfer: float
    """Transfer score in units of the best image's score."""
    rank: int
    """Of the feature among all of its site on its picture, by deviations above the mean, from 1."""
    stability: float | None
    """Mean cosine between pictures of other seeds, in the judge's eyes; None for one seed."""


def run(
    views: Sequence[ModelView],
    source: Source | None,
    config: AgreementConfig,
    work: Path,
    progress: Progress | None = None,
) -> Result:
    """Pictures of random live features, and the share of trials in which a judge chooses right by them.

    Raises:
        ConfigError: several models, no dataset or too small a one, a judge that is the model, or no live feature.
        AtlasError: the atlas is of another model.
        SiteError: a layer that the model lacks.
    """
    view = one_model("agreement", views)
    atlas = atlas_of(view, config.atlas, ranked=source is None) if config.atlas else None
    images = source or atlas
    if images is None:
        raise ConfigError(f"agreement needs a dataset of at least {LEAST_IMAGES} images, or an atlas.")
    judge = open_judge(config.judge, view)
    check_features(view, config.features or ())
    sites = [Site(layer, "mlp_act") for layer in layers_of(view, config.layers)]
    given = list(config.features or (pictured(view, atlas) if atlas else ()))
    if guided := [str(f) for f in given if atlas and "guide" in (atlas.recipe(f) or {})]:
        raise ConfigError(
            f"images of the atlas went into its picture of {guided[0]}, and could be asked about; leave it out."
        )
    candidates = given or draw_candidates(view, sites, config.per_layer, config.seed)
    photographs = read_photographs(view, judge, images, candidates, config.limit, config.batch, progress)
    chosen = _to_ask(photographs, config, len(given) or config.per_layer)
    made: dict[Feature, list[Tensor]] = {f: [] for f in chosen}
    for seed in range(config.seed, config.seed + config.seeds):
        how = picture_config(config.preset, config.steps, seed)
        guide = partial(guide_of, view, photographs, config=how) if needed(how) else None
        known = atlas if given and seed == config.seed else None  # what is drawn has none, or images went into it
        made_now = optimized(view, chosen, how, work / f"seed-{seed}", progress, known, guide)
        for feature, picture in made_now.items():
            made[feature].append(image_to_pixels(picture.image))
    pictures = {f: torch.stack(own) for f, own in made.items()}
    found = choose_depths(photographs)
    depths = next(iter(found))
    judged = judge_pictures(view, judge, photographs, depths, pictures)
    how_made = f"Preset {config.preset}, {how.steps} steps, {how.copies} copies, seed {config.seed}."
    how_made += how_guided(how, "half that helps")
    how_made += " Pictures that the atlas holds are taken from it." if atlas and given else ""
    notes = (how_made, *_notes(judge, images, photographs, found, config))
    return Result(
        "agreement",
        {
            "table": table_of_shares(judged, "plain", config.seed, notes),
            "alike": table_of_shares(judged, "alike", config.seed, ("Queries alike in color and contrast.",)),
            "pictures": table_of_pictures(view, judge, photographs, depths, judged, pictures, config.seed),
        },
        {"figure": figure(photographs, judged, pictures)},
        {"judge": judge.view.identity.to_json(), "depths": {" + ".join(d): share for d, share in found.items()}},
        {"features": table_of_features(judged)},
    )


def _to_ask(photographs: Photographs, config: AgreementConfig, per_layer: int) -> list[Feature]:
    """Features to ask about: those that some image excites, one that may be used if the pictures take images."""
    chosen = live_features(photographs, per_layer)
    if needed(picture_config(config.preset, config.steps, config.seed)):
        chosen = [f for f in chosen if photographs.score(exemplars(photographs, f)[0], f) > 0]
    if chosen:
        return chosen
    names = ", ".join(map(str, photographs.features[:3])) + (", ..." if len(photographs.features) > 3 else "")
    raise ConfigError(
        f"no image that may be used for a picture excites any of {names}, so there is nothing to ask about; name other "
        "features, or read more images."
    )


def atlas_of(view: ModelView, name: str, ranked: bool) -> Atlas:
    """An atlas whose pictures are judged.

    Args:
        ranked: its own images are asked about.

    Raises:
        AtlasError: there is none, or it is of another model.
        ConfigError: the best images of a feature are not among those that it stores.
    """
    atlas = open_atlas(name)
    check_model(view, atlas)
    facts = atlas.manifest
    whole = facts["n_stored_images"] == facts["n_images"]
    if ranked and not whole and (facts["k"] < LEAST_RANKS or facts["reduce"] != "mean"):
        raise ConfigError(
            f"the atlas {name!r} ranks {facts['k']} images by the {facts['reduce']}; agreement needs {LEAST_RANKS} by "
            f"the mean, or a dataset: search with --k {LEAST_RANKS}, or name the dataset too."
        )
    return atlas


def pictured(view: ModelView, atlas: Atlas) -> list[Feature]:
    """Features with a picture into which no real image went: those could be among the ones that are asked about."""
    features = (Feature(site, i) for site, n in atlas.sites.items() for i in range(n))
    return [f for f in features if (recipe := own_recipe(view, atlas, f)) and "guide" not in recipe]


def guide_of(view: ModelView, photographs: Photographs, feature: Feature, config: VisualizeConfig) -> Guide:
    """What the options need of a feature's exemplars, of the half that helps.

    Raises:
        ConfigError: none of them excites the feature.
    """
    crops = [photographs.image(int(i)) for i in exemplars(photographs, feature, N_IMAGES)]
    return guide_by(view, feature, torch.stack([image_to_pixels(crop) for crop in crops]), config)


def layers_of(view: ModelView, wanted: Sequence[int] | None) -> list[int]:
    """Layers at a sixth, a third, a half, two thirds, five sixths and the end."""
    layers = wanted or spread_layers(view)
    for layer in layers:
        find_tap(view, Site(layer, "mlp_act"))
    return list(dict.fromkeys(layers))


def judge_pictures(
    view: ModelView, judge: Judge, photographs: Photographs, depths: Depths, pictures: Mapping[Feature, Tensor]
) -> list[Judged]:
    """What the judge makes of pictures, and how they excite the model.

    Args:
        pictures: feature -> [n, 3, H, W] in [0, 1] at the model's input size; each is asked for itself.
    """
    natural = photographs.seen(depths)
    seen = {f: photographs.compare(depths, embed_all(judge, own)) for f, own in pictures.items()}
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(_N_NOISE, 3, *view.input_size, generator=generator)
    blank = photographs.compare(depths, embed_all(judge, noise))
    judged = []
    for feature, own in pictures.items():
        asked = queries(photographs, feature)
        helpers = natural[exemplars(photographs, feature)]
        others = [x for f, e in seen.items() if f.site == feature.site and f != feature for x in e]

        def mean_of(references: Any, asked: Any = asked) -> Shares:
            found = [ask(natural, asked, reference[None]) for reference in references]
            plain, alike = (
                float(np.mean([getattr(s, name) for s in found] or [np.nan])) for name in ("plain", "alike")
            )
            return Shares(plain, alike)

        right = {
            "picture": mean_of(seen[feature]),
            "1 exemplar": ask(natural, asked, helpers[:1]),
            "9 exemplars": ask(natural, asked, helpers),
            "another's picture": mean_of(others),
            "noise": mean_of(blank),
        }
        judged.append(_excited(view, photographs, feature, own, right, _cosine(seen[feature])))
    return judged


def embed_all(judge: Judge, pixels: Tensor) -> dict[str, Tensor]:
    """As `Judge.embed`, for any number of pictures [n, 3, H, W]."""
    parts = [judge.embed(some) for some in pixels.split(_BATCH)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _excited(
    view: ModelView,
    photographs: Photographs,
    feature: Feature,
    own: Tensor,
    right: Mapping[str, Shares],
    stability: float | None,
) -> Judged:
    """Scores of the first picture among the images'."""
    column = photographs.scores[:, photographs.features.index(feature)]
    pixels = own[:1].to(view.device)
    scores = activations(view, pixels, [feature.site])[feature.site].scores()[0].cpu().numpy()
    mean, std = photographs.moments[feature.site]
    deviations = (scores - mean) / np.maximum(std, 0.1 * np.median(std) + 1e-30)
    transfer = float(transfer_scores(view, [to_objective(feature, view.kinds)], pixels)[0])
    return Judged(
        feature,
        right,
        float(scores[feature.index]),
        percentile(float(scores[feature.index]), column),
        transfer / float(column.max()),
        1 + int((deviations > deviations[feature.index]).sum()),
        stability,
    )


def _cosine(values: Any) -> float | None:
    return mean_of_pairs(values @ values.T) if len(values) > 1 else None


def table_of_shares(judged: Sequence[Judged], task: str, seed: int, notes: tuple[str, ...]) -> Table:
    """Share of right choices by layer and overall, in %, with 95 % intervals over features."""
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        groups.setdefault(str(one.feature.site), []).append(one)
    groups["all"] = list(judged)
    rows = []
    for name, own in groups.items():
        values = {way: np.array([100 * getattr(one.right[way], task) for one in own]) for way in WAYS}
        apart = values["picture"] - values["1 exemplar"]
        rows.append((name, len(own), *(_mean(values[way], seed) for way in WAYS), _mean(apart, seed)))
    return Table(("site", "features", *WAYS, "picture minus 1 exemplar"), tuple(rows), notes)


def _mean(values: Any, seed: int) -> Cell:
    known = values[np.isfinite(values)]
    return bootstrap(lambda some: float(known[some].mean()), len(known), seed) or (
        float(known[0]) if len(known) else None
    )


def table_of_pictures(
    view: ModelView,
    judge: Judge,
    photographs: Photographs,
    depths: Depths,
    judged: Sequence[Judged],
    pictures: Mapping[Feature, Tensor],
    seed: int,
) -> Table:
    """How the pictures excite their features, and how they look beside photographs."""
    first = torch.stack([own[0] for own in pictures.values()])
    seen, natural = photographs.compare(depths, embed_all(judge, first)), photographs.seen(depths)
    looks, spectra = look_of(first).numpy(), spectrum_of(first).numpy()
    draw = np.random.default_rng(seed).permutation(len(natural))
    some, rest = natural[draw[: len(first)]], natural[draw[len(first) :]]
    usual = photographs.looks

    def over(values: Sequence[float]) -> Cell:
        return _mean(np.array(values, float), seed)

    def inside(column: int) -> float:
        return float(np.mean([5 <= percentile(x, usual[:, column]) <= 95 for x in looks[:, column]]))

    size = find_tap(view, judged[0].feature.site).size
    to_natural = distance_to(natural, seed)
    distance = bootstrap(lambda i: to_natural(seen[i]), len(seen), seed) if len(seen) > 2 else None
    stability = [one.stability for one in judged if one.stability is not None]
    rows: list[tuple[Cell, ...]] = [
        ("percentile of the score among the images', %", over([one.percentile for one in judged]), None),
        ("transfer score / best image's score", over([one.transfer for one in judged]), None),
        (f"median rank of the feature among {size} on its picture", float(np.median([o.rank for o in judged])), None),
        ("kernel distance to the photographs", distance, distance_to(rest, seed)(some) if len(some) > 1 else None),
        ("distance of log spectra", spectrum_distance(spectra, photographs.spectra), 0.0),
        ("saturation", over(looks[:, 6].tolist()), float(usual[:, 6].mean())),
        ("contrast", over(looks[:, 7].tolist()), float(usual[:, 7].mean())),
        ("saturation within the middle 90 % of photographs, %", 100 * inside(6), 90.0),
        ("contrast within the middle 90 % of photographs, %", 100 * inside(7), 90.0),
        ("cosine between seeds", over(stability) if stability else None, None),
    ]
    return Table(("measure", "pictures", "photographs"), tuple(rows))


def table_of_features(judged: Sequence[Judged]) -> Table:
    """A row for each feature."""
    rows = [
        (
            str(one.feature),
            *(100 * one.right[way].plain for way in WAYS),
            *(100 * one.right[way].alike for way in WAYS),
            one.score,
            one.percentile,
            one.transfer,
            one.rank,
            one.stability,
        )
        for one in judged
    ]
    alike = tuple(f"{way}, alike" for way in WAYS)
    return Table(("feature", *WAYS, *alike, "score", "percentile", "transfer", "rank", "stability"), tuple(rows))


def figure(photographs: Photographs, judged: Sequence[Judged], pictures: Mapping[Feature, Tensor]) -> Any:
    """Every feature: its picture, and the four best images of those that are asked about."""
    rows = []
    for one in judged:
        best = queries(photographs, one.feature).best[:4]
        name = f"{100 * one.right['picture'].plain:.0f} %; 1 exemplar {100 * one.right['1 exemplar'].plain:.0f} %"
        own = pixels_to_image(pictures[one.feature][0])
        rows.append((str(one.feature), [(name, own), *(("", photographs.image(int(i))) for i in best)]))
    return picture_grid(rows, 1.1)


def _notes(
    judge: Judge,
    images: Source | Atlas,
    photographs: Photographs,
    found: Mapping[Depths, float],
    config: AgreementConfig,
) -> tuple[str, ...]:
    told = ", ".join(f"{' + '.join(names)} {100 * share:.0f}" for names, share in found.items())
    n, helps = len(photographs.keys), int(photographs.helps.sum())
    return (
        f"Share of right choices in %, with 95 % intervals over features. {n:,} images of {_name(images)}: "
        f"{helps:,} help (exemplars), the others are asked about: the {N_QUERIES} best of a feature against "
        f"{N_QUERIES} from the middle of its ranking, in all pairs.",
        f"Judge: {judge.view.model_id}, means over positions, standardized over the images, by cosine. Its depth is "
        f"the one with most right choices by {N_EXEMPLARS} exemplars in the half that helps: {told}.",
        "Chance is 50 %. People reach 92 % with nine natural exemplars and 82 % with synthetic pictures on features of "
        "a CNN (Borowski et al. 2021). Valid only where nine exemplars reach 80 % and another feature's picture is "
        "near 50 %.",
        _RULE["features" if config.features else "atlas" if config.atlas else "drawn"].format(config.seed),
    )


def _name(images: Source | Atlas) -> str:
    return f"the atlas {images.name}" if isinstance(images, Atlas) else images.dataset
