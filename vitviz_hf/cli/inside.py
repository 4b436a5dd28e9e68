"""The command that looks inside a picture."""

import argparse
from pathlib import Path
from typing import Any

from vitviz_hf.cli.options import IMAGE_HELP, add_model_options, add_verb, load_view, open_picture
from vitviz_hf.errors import ConfigError

SHOWS = ("pca", "similarity", "heads", "norms", "relevance", "lens", "change")
_FIRST = "pca,similarity,heads,norms"
_EPILOG = """\
  pca         the first three components of the patches as colors, and the foreground
  similarity  cosine of every patch to one of them; its best match in a second picture
  heads       where a token looks: each head, their mean and maximum, and rollout
  norms       length of the tokens by layer, and those that outshine the others
  relevance   which patches speak for --why, with insertion and deletion curves
  lens        the label that each token would get after each layer
  change      what --turn changes: probabilities, later features, the components of the patches

examples:
  vitviz inside builtin --image chelsea --image lion --show pca,similarity --token 5,3 --out inside
  vitviz inside google/vit-base-patch16-224 --image cat.jpg --show relevance,lens --why logit:tabby --out inside
  vitviz inside builtin --image chelsea --show change --turn 5.mlp_act:1059=0 --out inside
"""


def add_inside_command(verbs: Any) -> None:
    """Inside."""
    inside = add_verb(verbs, "inside", _inside, "look inside a picture: components, similarity, attention, relevance")
    inside.add_argument("model", nargs="?", metavar="MODEL")
    inside.add_argument(
        "--image", required=True, action="append", metavar="FILE", help=f"{IMAGE_HELP}; twice to compare two"
    )
    inside.add_argument("--show", default=_FIRST, metavar="A,B", help=f"see below (default: {_FIRST})")
    inside.add_argument("--layer", type=int, metavar="N", help="layer from 0 (default: the last; lens: several)")
    inside.add_argument("--kind", default="resid", help="kind of site (default: resid)")
    inside.add_argument(
        "--token",
        default="",
        metavar="R,C",
        help="a patch, a box 3,4-5,6, cls, 'register 1' (default: cls where it is, for similarity the middle)",
    )
    inside.add_argument("--why", default="", metavar="TARGET", help="logit:207, logit:tabby, a feature, or a text")
    inside.add_argument("--method", default="auto", help="auto, legrad, chefer or gradient-input (default: auto)")
    inside.add_argument(
        "--turn", action="append", default=[], metavar="ADDRESS=X", help="a feature, head or patch times X; repeatable"
    )
    inside.add_argument("--out", required=True, metavar="DIR", help="folder for a PNG and an NPZ of each")
    inside.epilog, inside.formatter_class = "shows:\n" + _EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_options(inside)


def _inside(args: Any) -> None:
    import torch

    from vitviz_hf.inside.looks import LookConfig, look
    from vitviz_hf.manifest import check_absent, write_file
    from vitviz_hf.models.view import to_pixels

    shows = [s.strip() for s in args.show.split(",") if s.strip()]
    if unknown := [s for s in shows if s not in SHOWS] or ([args.show] if not shows else []):
        raise ConfigError(f"--show takes {', '.join(SHOWS)}; got {unknown[0]!r}.")
    if len(args.image) > 2:
        raise ConfigError(f"--image is given once or twice; got {len(args.image)} pictures.")
    paths = {show: Path(args.out) / show for show in shows}
    for path in paths.values():
        for ending in (".png", ".npz"):
            check_absent(f"{path}{ending}")
    images = [open_picture(image) for image in args.image]
    view = load_view(args, args.model)
    pixels = torch.cat([to_pixels(view, image) for image in images])
    config = LookConfig(
        layer=args.layer,
        kind=args.kind,
        token=args.token,
        why=args.why,
        method=args.method,
        turns=tuple(args.turn),
    )
    names = [Path(image).stem.replace("_", " ") for image in args.image]
    for show, path in paths.items():
        drawn = look(view, pixels, names, show, config)
        write_file(Path(f"{path}.png"), drawn.to_png())
        write_file(Path(f"{path}.npz"), drawn.to_npz())
        print(f"{path}.png  {drawn.told}")
