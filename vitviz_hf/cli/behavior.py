"""Commands about one picture's tokens, or many scenes': views, occlude, group."""

import argparse
from pathlib import Path
from typing import Any

from vitviz_hf.cli.options import (
    IMAGE_HELP,
    add_knobs,
    add_model_options,
    add_verb,
    counter,
    load_view,
    open_picture,
    read_knobs,
)
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import GroupConfig, OccludeConfig, ViewsConfig
from vitviz_hf.experiments.registry import CLAIMS
from vitviz_hf.manifest import check_absent

_SOURCE = "source: What Neurons Tell and How Neurons Behave, arXiv:2210.07646"


def add_behavior_commands(verbs: Any) -> None:
    """Views, occlude and group."""
    views = add_verb(
        verbs, "views", _views, "show what filters see in a picture, and what tokens gather of it by level"
    )
    occlude = add_verb(
        verbs, "occlude", _occlude, "black out and shuffle parts of a picture, and compare the embeddings"
    )
    group = add_verb(verbs, "group", _group, "measure whether patches of one object group together, over layers")
    for verb, config in ((views, ViewsConfig), (occlude, OccludeConfig), (group, GroupConfig)):
        verb.epilog = _SOURCE
        verb.set_defaults(config=config)
        if verb is group:
            verb.add_argument("model", metavar="MODEL")
            verb.add_argument(
                "dataset",
                metavar="DATASET",
                help="folder of Pascal VOC, dataset with instance masks, or pictures, "
                "of which scenes are made ('builtin': the built-in photographs)",
            )
            verb.add_argument("--split", help="default: validation if there is one")
        else:
            verb.add_argument("model", nargs="?", metavar="MODEL")
            verb.add_argument("--image", required=True, metavar="FILE", help=IMAGE_HELP)
            verb.add_argument(
                "--mask",
                metavar="FILE",
                help="picture of the same size, not black on objects (in a palette picture, 1 to 200)",
            )
        verb.add_argument("--out", required=True, metavar="DIR", help="new folder for tables, figures and manifest")
        add_model_options(verb)
        add_knobs(verb, config, "of this analysis", defaults=True)


def _config(args: argparse.Namespace) -> Any:
    return args.config(**read_knobs(args, args.config))


def _inputs(args: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    from vitviz_hf.experiments.masks import read_object

    config, image, mask = _config(args), open_picture(args.image), None
    check_absent(args.out)
    if args.mask:
        try:
            mask = read_object(Path(args.mask).read_bytes())
        except OSError as error:
            raise ConfigError(f"the mask '{args.mask}' cannot be read: {error.strerror}.") from error
        if mask.shape != image.size[::-1]:
            raise ConfigError(
                f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels, the picture {image.width}x{image.height}."
            )
    return config, image, mask, load_view(args, args.model)


def _views(args: argparse.Namespace) -> None:
    from vitviz_hf.experiments.neurons.views import run_views

    config, image, mask, view = _inputs(args)
    _save(run_views(view, image, config, mask), args)


def _occlude(args: argparse.Namespace) -> None:
    from vitviz_hf.experiments.neurons.occlude import run_occlude

    config, image, mask, view = _inputs(args)
    with counter("blacking out and shuffling", "") as show:
        _save(run_occlude(view, image, config, mask, show), args)


def _group(args: argparse.Namespace) -> None:
    from vitviz_hf.experiments.neurons.group import run_group
    from vitviz_hf.experiments.neurons.scenes import open_scenes

    config = _config(args)
    check_absent(args.out)
    view = load_view(args, args.model)
    scenes = open_scenes(args.dataset, args.split, config.compose, config.seed)
    with counter("grouping", " scenes", keep=True) as show:
        result = run_group(view, args.dataset, scenes, config, show)
    _save(result, args)


def _save(result: Any, args: argparse.Namespace) -> None:
    out = Path(args.out)
    if "image" in args:
        result.manifest["image"] = Path(args.image).name
        result.manifest["mask"] = Path(args.mask).name if args.mask else None
    result.save(out)
    print(next(iter(result.tables.values())).to_markdown())
    if claim := CLAIMS.get(result.name):
        print(claim.to_markdown(result.found))
    print(", ".join(str(p) for p in sorted(out.iterdir())))
