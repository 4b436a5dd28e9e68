"""Commands that optimize pictures: visualize, replay."""

import sys
import warnings
from typing import TYPE_CHECKING, Any

from vitviz_hf.cli.options import (
    add_knobs,
    add_model_options,
    add_verb,
    describe,
    load_view,
    new_files,
    open_picture,
    photograph_scores,
    progress_bar,
    read_knobs,
    split_words,
)
from vitviz_hf.manifest import check_absent
from vitviz_hf.optimize.config import PRESETS, VisualizeConfig
from vitviz_hf.sites import parse_feature

if TYPE_CHECKING:
    from vitviz_hf.optimize.recipe import Visualization
    from vitviz_hf.reading.reference import Scores


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
    visualize.add_argument("--preset", choices=tuple(PRESETS), help="default: fast on a CPU, fourier elsewhere")
    add_knobs(visualize, VisualizeConfig, "knobs (defaults are the preset's)")
    add_model_options(visualize)

    replay = add_verb(verbs, "replay", _replay, "make a picture again from the recipe in its PNG, and compare")
    replay.add_argument("png", metavar="PNG")
    replay.add_argument("--out", metavar="FILE.png", help="also save the new picture")


def _visualize(args: Any) -> None:
    from vitviz_hf.optimize.loop import default_config, finish, visualize_steps
    from vitviz_hf.optimize.objectives import check_objective, parse_objective

    model, addresses = split_words(args.words)
    objectives = [-parse_objective(a) if args.minimize else parse_objective(a) for a in addresses]
    paths = new_files(args.out, objectives, (".png",))
    knobs = read_knobs(args, VisualizeConfig)
    VisualizeConfig.preset(args.preset or "fourier", **knobs)
    view = load_view(args, model)
    for objective in objectives:
        check_objective(view, objective)
    config = VisualizeConfig.from_dict(
        {**(PRESETS[args.preset] if args.preset else default_config(view).to_dict()), **knobs}
    )
    bar = progress_bar(visualize_steps(view, objectives, config), config.steps, "optimizing")
    for step in bar:  # noqa: B007
        pass
    results = finish(view, objectives, config, step)
    for result, path in zip(results, paths, strict=True):
        result.save(f"{path}.png")
        print(f"{path}.png  {describe(result)}")
    if any(_single_feature(r) for r in results):
        reference = photograph_scores(view)
        for result in results:
            if line := _compared(result, reference):
                print(line)


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
    print(f"{_difference(before, after)}; score {result.score:.4g}, was {recipe.get('score', float('nan')):.4g}")


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
