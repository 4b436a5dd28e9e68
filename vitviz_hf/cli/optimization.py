"""Commands that optimize pictures: visualize, replay."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitviz_hf.cli.options import (
    IMAGE_HELP,
    add_knobs,
    add_model_options,
    add_preset,
    add_verb,
    counter,
    describe,
    load_worded,
    new_files,
    open_picture,
    photograph_scores,
    progress_bar,
    read_knobs,
    split_words,
)
from vitviz_hf.errors import ConfigError
from vitviz_hf.manifest import check_absent
from vitviz_hf.optimize.config import PRESETS, VisualizeConfig
from vitviz_hf.sites import Feature, has_words, parse_feature

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitviz_hf.atlas.store import Atlas
    from vitviz_hf.models.view import ModelView
    from vitviz_hf.optimize.guides import Guide
    from vitviz_hf.optimize.objectives import Objective
    from vitviz_hf.optimize.recipe import Visualization
    from vitviz_hf.reading.reference import Scores


_MOST_IMAGES = 64
_OF_ATLAS = 9


def add_optimization_commands(verbs: Any) -> None:
    """Visualize and replay."""
    visualize = add_verb(verbs, "visualize", _visualize, "optimize pictures that maximize features")
    visualize.add_argument(
        "words",
        nargs="+",
        metavar="[MODEL] FEATURE",
        help="features (5.mlp_act:10), also at the class token (11.resid:5@cls) or a patch (5.mlp_act:10@3,4: row, "
        "column), 'logit:INDEX', or sums in quotes: '5.mlp_act:10 - 0.5*5.mlp_act:3'; minimize with --minimize",
    )
    visualize.add_argument("--minimize", action="store_true", help="minimize instead")
    visualize.add_argument("--out", required=True, metavar="DIR", help="folder for the PNGs; each carries its recipe")
    add_preset(visualize)
    visualize.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help=f"for preset aligned: folder or files of images that excite the features, up to {_MOST_IMAGES} (without "
        "images and atlas: built-in photographs)",
    )
    visualize.add_argument(
        "--atlas",
        metavar="ATLAS",
        help=f"for preset aligned: folder or Hub id; up to {_OF_ATLAS} images that it stores of each feature are taken",
    )
    visualize.add_argument("--photo", metavar="FILE", help=f"for preset accent: where it starts; {IMAGE_HELP}")
    add_knobs(visualize, VisualizeConfig, "knobs (defaults are the preset's)")
    add_model_options(visualize)

    replay = add_verb(verbs, "replay", _replay, "make a picture again from the recipe in its PNG, and compare")
    replay.add_argument("png", metavar="PNG")
    replay.add_argument("--out", metavar="FILE.png", help="also save the new picture")


def _visualize(args: Any) -> None:
    from vitviz_hf.optimize.guides import needed
    from vitviz_hf.optimize.loop import default_config, finish, visualize_steps
    from vitviz_hf.optimize.objectives import check_objective, parse_objective

    model, addresses = split_words(args.words)
    sign = -1.0 if args.minimize else 1.0
    named = [a if has_words(a) else sign * parse_objective(a) for a in addresses]
    paths = new_files(args.out, named, (".png",))
    knobs = read_knobs(args, VisualizeConfig)
    known = VisualizeConfig.preset(args.preset or "fourier", **knobs)
    images = _open_images(args, known)
    atlas = _open_atlas(args, [o for o in named if not isinstance(o, str)])
    view, addresses = load_worded(args, model, addresses)
    objectives = [sign * parse_objective(a, view.kinds) for a in addresses]
    for objective in objectives:
        check_objective(view, objective)
    guides = [_guide(view, objective, known, images, atlas) for objective in objectives] if needed(known) else []
    config = VisualizeConfig.from_dict(
        {**(PRESETS[args.preset] if args.preset else default_config(view).to_dict()), **knobs}
    )
    bar = progress_bar(visualize_steps(view, objectives, config, guides), config.steps, "optimizing")
    for step in bar:  # noqa: B007
        pass
    results = finish(view, objectives, config, step)
    for result, path in zip(results, paths, strict=True):
        result.save(f"{path}.png")
        print(f"{path}.png  {describe(result)}")
    if not view.extra_taps and any(_single_feature(r) for r in results):
        reference = photograph_scores(view)
        for result in results:
            if line := _compared(result, reference):
                print(line)


def _open_images(args: Any, config: VisualizeConfig) -> "list[Image]":
    """What was given by --images or --photo; empty where an atlas or the built-in photographs give images.

    Raises:
        ConfigError: it does not go with the options.
        ImageError: not usable.
    """
    from vitviz_hf.optimize.guides import needed

    given = [f"--{name}" for name in ("images", "atlas", "photo") if getattr(args, name)]
    fitting = ["--images", "--atlas"] if config.align else ["--photo"] if config.keep else []
    what = f"preset {args.preset!r}" if args.preset else "the default preset"
    if wrong := [name for name in given if name not in fitting]:
        takes = f"takes {' or '.join(fitting)}" if fitting else "takes no real images; choose 'aligned' or 'accent'"
        raise ConfigError(f"{what} {takes}; got {wrong[0]}.")
    if len(given) > 1 or (config.keep and not given):
        raise ConfigError(
            f"{what} needs {needed(config)}: give {' or '.join(fitting)}; got {' and '.join(given) or 'none'}."
        )
    files = [args.photo] if args.photo else _files(args.images or [])
    return [open_picture(file) for file in files]


def _files(given: Sequence[str]) -> list[str]:
    """Files, and those of folders."""
    from vitviz_hf.stream import SUFFIXES

    files: list[str] = []
    for name in given:
        folder = Path(name).expanduser()
        own = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else [name]
        if not own:
            raise ConfigError(f"--images: there is no image in '{name}'.")
        files += own
    if len(files) > _MOST_IMAGES:
        raise ConfigError(f"--images takes up to {_MOST_IMAGES} images; got {len(files)}: give those that excite most.")
    return files


def _open_atlas(args: Any, objectives: "Sequence[Objective]") -> "Atlas | None":
    from vitviz_hf.atlas.store import open_atlas

    if not args.atlas:
        return None
    atlas = open_atlas(args.atlas)
    for objective in objectives:
        atlas.hits(_feature_of(objective))
    return atlas


def _feature_of(objective: "Objective") -> Feature:
    """The feature that alone is maximized.

    Raises:
        ConfigError: the objective is something else.
    """
    from vitviz_hf.optimize.objectives import feature_of

    if feature := feature_of(objective, at_token=True):
        return feature
    raise ConfigError(f"an atlas has the images of single features, not of '{objective}'; give --images.")


def _guide(
    view: "ModelView", objective: "Objective", config: VisualizeConfig, images: "list[Image]", atlas: "Atlas | None"
) -> "Guide":
    import torch

    from vitviz_hf.atlas.guiding import guide_from_atlas
    from vitviz_hf.models.view import at_precision, to_pixels
    from vitviz_hf.optimize.guides import builtin_images, guide_by

    if atlas:
        return guide_from_atlas(view, atlas, _feature_of(objective), config, objective.terms[0][1])
    if not images:
        with counter("reading built-in photographs", " images") as show:
            own = builtin_images(at_precision(view, config.precision), objective, show)
        return guide_by(view, objective, own, config)
    return guide_by(view, objective, torch.cat([to_pixels(view, image) for image in images]), config)


def _replay(args: Any) -> None:
    import numpy as np

    from vitviz_hf.optimize.recipe import expected_difference, read_recipe
    from vitviz_hf.optimize.replay import ReplayWarning, replay

    recipe = read_recipe(args.png)
    if args.out:
        check_absent(args.out)
    print(f"{recipe.get('address')} of {recipe.get('model_id')}, made on {recipe.get('device')}", file=sys.stderr)
    if difference := expected_difference(recipe):
        print(f"vitviz: {difference}", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplayWarning)  # said above
        result = replay(args.png)
    before, after = (np.asarray(x, dtype=int) for x in (open_picture(args.png), result.image))
    if args.out:
        result.save(args.out)
    was = recipe.get("score")
    was = f"{was:.4g}" if isinstance(was, int | float) else "not told"
    print(f"{_difference(before, after)}; score {result.score:.4g}, was {was}")


def _difference(before: Any, after: Any) -> str:
    """How far two pictures [H, W, 3] are apart."""
    if before.shape != after.shape:
        return f"of another size: {before.shape[1]}x{before.shape[0]}, now {after.shape[1]}x{after.shape[0]}"
    apart = abs(before - after)
    return f"largest difference {apart.max()} of 255, mean {apart.mean():.2g}" if apart.any() else "identical"


def _single_feature(result: "Visualization") -> str | None:
    terms = result.recipe["objective"]
    address = str(terms[0].get("target", ""))
    return address if len(terms) == 1 and terms[0]["weight"] == 1 and "." in address and "@" not in address else None


def _compared(result: "Visualization", reference: "Scores") -> str | None:
    from vitviz_hf.reading.reference import best_photograph

    address = _single_feature(result)
    if address is None:
        return None
    feature = parse_feature(address)
    name, best = best_photograph(reference, feature)
    scores = reference[feature.site][:, feature.index]
    return (
        f"{address}: picture {result.score:.3g}; {len(scores)} built-in photographs: "
        f"mean {float(scores.mean()):.3g}, highest {best:.3g} ({name})"
    )
