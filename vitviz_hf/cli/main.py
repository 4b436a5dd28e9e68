"""Command line: `vitviz VERB MODEL ...`. Results go to --out or stdout, progress to stderr."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from vitviz_hf import __version__
from vitviz_hf.cli.atlas import add_atlas_commands
from vitviz_hf.cli.behavior import add_behavior_commands
from vitviz_hf.cli.experiment import add_experiment_commands
from vitviz_hf.cli.inside import add_inside_command
from vitviz_hf.cli.optimization import add_optimization_commands
from vitviz_hf.cli.options import add_verb
from vitviz_hf.cli.picture import add_picture_commands
from vitviz_hf.errors import VitvizError

_EPILOG = """\
A feature is LAYER.KIND:INDEX, for example 5.mlp_act:10; layers and indices start at 0.
Kinds: attn_in attn_q attn_k attn_v attn_mix attn_out mlp_in mlp_act mlp_out resid.
'vitviz sites MODEL' lists what a model has.
MODEL is a Hub id, a local folder, or 'builtin' (a DINOv2-architecture ViT-S/14). Left out, it is VITVIZ_MODEL,
else google/vit-base-patch16-224 if the Hub can be reached, else 'builtin'.

examples:
  vitviz models
  vitviz sites builtin
  vitviz top builtin --image chelsea --site 5.mlp_act
  vitviz map builtin 5.mlp_act:1059 11.mlp_act:441 --image chelsea --out maps
  vitviz inside builtin --image chelsea --image lion --show pca,similarity --out inside
  vitviz visualize builtin 8.mlp_act:908 --preset fast --out pictures
  vitviz visualize builtin 5.mlp_act:1059 --preset aligned --atlas atlas --out pictures
  vitviz visualize builtin 5.mlp_act:1059 --preset accent --photo chelsea --out accents
  vitviz replay pictures/8.mlp_act-908.png
  vitviz search builtin builtin --out atlas
  vitviz atlas build atlas 5.mlp_act:1059
  vitviz atlas judge atlas --judge builtin-cnn
  vitviz atlas name atlas --namer openai/clip-vit-base-patch32
  vitviz page builtin 5.mlp_act:1059 --atlas atlas --out page.html
  vitviz experiment progression builtin --out progression
  vitviz experiment background google/vit-base-patch16-224 microsoft/resnet-50 DATASET --out background
  vitviz classify openai/clip-vit-base-patch32 --image chelsea --labels "cat, dog, coins"
  vitviz views builtin --image chelsea --out views
  vitviz group builtin builtin --out grouping
  vitviz app
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, or 2 after a user's error, told in one line."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except VitvizError as error:
        print(f"vitviz: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vitviz: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitviz",
        description="See what a vision transformer learned.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vitviz_hf {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_picture_commands(verbs)
    add_inside_command(verbs)
    add_optimization_commands(verbs)
    add_atlas_commands(verbs)
    add_experiment_commands(verbs)
    add_behavior_commands(verbs)
    app = add_verb(verbs, "app", _app, "start the app in the browser")
    app.epilog = (
        "VITVIZ_MODEL: its first model. VITVIZ_ATLAS: folder or Hub id of the atlas that it opens. Atlases that "
        "visitors make are kept in VITVIZ_CACHE (default: ~/.cache/vitviz_hf), up to VITVIZ_ATLAS_GB (default: 4; 0: "
        "none)."
    )
    app.add_argument("--port", type=int, default=7860, help="default: 7860")
    app.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    return parser


def _app(args: Any) -> None:
    from vitviz_hf.ui.app import launch

    launch(host=args.host, port=args.port)
