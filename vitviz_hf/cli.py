"""Command line: `vitviz VERB MODEL ...`. Results go to --out or stdout, progress to stderr."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from vitviz_hf import __version__
from vitviz_hf.config import IMAGENET, PRESETS, SearchConfig, VisualizeConfig
from vitviz_hf.errors import ConfigError, VitvizError
from vitviz_hf.manifest import check_absent
from vitviz_hf.sites import KINDS, file_stem, parse_feature, parse_site

if TYPE_CHECKING:
    from vitviz_hf.model import ModelView
    from vitviz_hf.optimization import Visualization
    from vitviz_hf.reference import Reference
    from vitviz_hf.sites import Feature

_EPILOG = """\
A feature is LAYER.KIND:INDEX, for example 5.mlp_act:10; layers and indices start at 0.
Kinds: attn_q attn_k attn_v attn_out mlp_in mlp_act mlp_out resid ('vitviz sites MODEL' lists what a model has).
MODEL is a Hub id, a local folder, or 'builtin' (a DINOv2-architecture ViT-S/14). Left out, it is VITVIZ_MODEL,
else google/vit-base-patch16-224 if the Hub can be reached, else 'builtin'.

examples:
  vitviz models
  vitviz sites builtin
  vitviz top builtin --image chelsea --site 5.mlp_act
  vitviz map builtin 5.mlp_act:1059 11.mlp_act:441 --image chelsea --out maps
  vitviz visualize builtin 8.mlp_act:908 --preset fast --out pictures
  vitviz replay pictures/8.mlp_act-908.png
  vitviz search builtin builtin --out atlas
  vitviz atlas build atlas 5.mlp_act:1059
  vitviz page builtin 5.mlp_act:1059 --atlas atlas --out page.html
  vitviz classify openai/clip-vit-base-patch32 --image chelsea --labels "cat, dog, coins"
  vitviz app
"""


_IMAGE_HELP = "a picture, or the name of a photograph that scikit-image or gradio brings: chelsea, coins, lion ..."


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
        prog="vitviz", description="See what a vision transformer learned.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"vitviz_hf {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    models = _verb(verbs, "models", _models, "list the families of models that can be loaded by Hub id")
    models.add_argument("--json", action="store_true", help="machine-readable output")

    sites = _verb(verbs, "sites", _sites, "list the layers and sites of a model, with their number of features")
    sites.add_argument("model", nargs="?", metavar="MODEL")
    sites.add_argument("--json", action="store_true", help="machine-readable output")

    maps = _verb(verbs, "map", _map, "draw activation maps of features on a picture")
    maps.add_argument("words", nargs="+", metavar="[MODEL] FEATURE", help="for example builtin 5.mlp_act:10")
    maps.add_argument("--image", required=True, metavar="FILE", help=_IMAGE_HELP)
    maps.add_argument("--out", required=True, metavar="DIR", help="folder for a PNG and a JSON for each feature")

    top = _verb(verbs, "top", _top, "rank the features that fire on a picture, or on one patch of it")
    top.add_argument("model", nargs="?", metavar="MODEL")
    top.add_argument("--image", required=True, metavar="FILE", help=_IMAGE_HELP)
    top.add_argument("--site", action="append", metavar="SITE", help="for example 5.mlp_act (default: every mlp_act)")
    top.add_argument("--patch", metavar="R,C", help="row and column of one patch, from 0 (default: the whole picture)")
    top.add_argument("-k", type=int, default=8, metavar="N", help="features for each site (default: 8)")
    top.add_argument(
        "--by", choices=("score", "unusual"), default="score",
        help="plain score, or standard deviations above its scores on the built-in photographs (default: score)",
    )  # fmt: skip
    top.add_argument("--json", action="store_true", help="machine-readable output")

    visualize = _verb(verbs, "visualize", _visualize, "optimize pictures that maximize features")
    visualize.add_argument(
        "words", nargs="+", metavar="[MODEL] FEATURE",
        help="features, 'logit:INDEX', or sums in quotes: '5.mlp_act:10 - 0.5*5.mlp_act:3'; "
        "minimize with --minimize",
    )  # fmt: skip
    visualize.add_argument("--minimize", action="store_true", help="minimize instead")
    visualize.add_argument("--out", required=True, metavar="DIR", help="folder for the PNGs; each carries its recipe")
    visualize.add_argument("--preset", choices=tuple(PRESETS), help="default: fast on a CPU, fourier elsewhere")
    _add_knobs(visualize)

    classify = _verb(verbs, "classify", _classify, "name what is in a picture, by its classifier or by words")
    classify.add_argument("model", nargs="?", metavar="MODEL")
    classify.add_argument("--image", required=True, metavar="FILE", help=_IMAGE_HELP)
    classify.add_argument(
        "--labels", metavar="A, B, C",
        help="words for CLIP, SigLIP and AIMv2, with commas between (default there: the 1000 classes of ImageNet)",
    )  # fmt: skip
    classify.add_argument(
        "--template", action="append", metavar="TEXT",
        help="text with {} for the label, can be repeated (default: CLIP's 80, such as 'a photo of a {}.')",
    )  # fmt: skip
    classify.add_argument("-k", type=int, default=5, metavar="N", help="labels to show (default: 5)")
    classify.add_argument("--json", action="store_true", help="machine-readable output")

    search = _verb(verbs, "search", _search, "find the images that activate every feature most, and make an atlas")
    search.add_argument("model", metavar="MODEL")
    search.add_argument(
        "dataset", nargs="?", default=IMAGENET, metavar="DATASET",
        help=f"Hub id (streamed), folder of images, parquet, or 'builtin' (default: {IMAGENET})",
    )  # fmt: skip
    search.add_argument("--out", required=True, metavar="ATLAS", help="new folder for the atlas")
    search.add_argument("--split", help="default: validation if there is one")
    search.add_argument("--kinds", default="mlp_act", metavar="A,B", help="default: mlp_act, the neurons")
    search.add_argument("--layers", metavar="A-B,C", help="for example 3-7,11 (default: all)")
    search.add_argument("--limit", type=int, metavar="N", help="rows to read (default: all)")
    search.add_argument(
        "-k", type=int, default=20, metavar="N", help="images for each feature at either end (default: 20)"
    )
    search.add_argument("--reduce", choices=("mean", "max"), default="mean", help="score over patches (default: mean)")
    search.add_argument("--batch", type=int, default=32, metavar="N", help="images in a forward pass (default: 32)")
    search.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: by the CPU count)")
    search.add_argument("--resume", action="store_true", help="go on with an interrupted search")

    atlas = verbs.add_parser("atlas", help="add pictures to an atlas, and share it on the Hub")
    tasks = atlas.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build = _verb(tasks, "build", _atlas_build, "optimize pictures for features of an atlas; what exists is kept")
    build.add_argument("atlas", metavar="ATLAS")
    build.add_argument("features", nargs="+", metavar="FEATURE", help="5.mlp_act:10, or a range 5.mlp_act:0-63")
    build.add_argument("--preset", choices=tuple(PRESETS), help="default: fast on a CPU, fourier elsewhere")
    build.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    push = _verb(tasks, "push", _atlas_push, "upload an atlas as a dataset repository")
    push.add_argument("atlas", metavar="ATLAS")
    push.add_argument("repository", metavar="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="only you can see it")
    pull = _verb(tasks, "pull", _atlas_pull, "download an atlas")
    pull.add_argument("repository", metavar="OWNER/NAME")
    pull.add_argument("--out", required=True, metavar="DIR")

    page = _verb(verbs, "page", _page, "write the page of a feature as one HTML file, or its triplet as a PNG")
    page.add_argument("model", metavar="MODEL")
    page.add_argument("feature", metavar="FEATURE")
    page.add_argument("--atlas", required=True, metavar="ATLAS", help="folder or Hub id")
    page.add_argument("--out", required=True, metavar="FILE", help=".html: the page; .png: picture, best image, map")
    page.add_argument("-k", type=int, default=8, metavar="N", help="images at either end (default: 8)")

    for verb in (sites, maps, top, visualize, classify, search, page):
        verb.add_argument("--revision", help="branch, tag or commit on the Hub")
        verb.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
        verb.add_argument("--size", metavar="HxW", help="input size in pixels (default: the checkpoint's)")

    replay = _verb(verbs, "replay", _replay, "make a picture again from the recipe in its PNG, and compare")
    replay.add_argument("png", metavar="PNG")
    replay.add_argument("--out", metavar="FILE.png", help="also save the new picture")

    app = _verb(verbs, "app", _app, "start the app in the browser")
    app.add_argument("--port", type=int, default=7860, help="default: 7860")
    app.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    return parser


def _verb(verbs: Any, name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    return verb


def _add_knobs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("knobs (defaults are the preset's)")
    types = get_type_hints(VisualizeConfig)
    for knob in fields(VisualizeConfig):
        kind = types[knob.name]
        option = "--" + knob.name.replace("_", "-")
        if kind is bool:
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=knob.metadata["help"]
            )
        else:
            group.add_argument(
                option, default=argparse.SUPPRESS, type=_reader(kind), metavar=_metavar(kind),
                help=knob.metadata["help"],
            )  # fmt: skip


def _metavar(kind: Any) -> str:
    choices = [str(c) for c in get_args(kind) if isinstance(c, str)]
    return "|".join(choices) if choices else "N" if kind is int else "X"


def _reader(kind: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            return text  # VisualizeConfig says what is possible

    return read


def _models(args: Any) -> None:
    from vitviz_hf.families import FAMILIES

    if args.json:
        print(json.dumps([{**asdict(f), "classifies": list(f.classifies)} for f in FAMILIES]))
        return
    rows = [("family", "features", "classifies", "model_type, or module of timm", "for example")]
    for family in FAMILIES:
        types = family.timm_module or ", ".join(family.model_types)
        rows.append(
            (family.name, "yes" if family.features else "no", ", ".join(family.classifies), types, family.example)
        )
    _print_table(rows)
    print(
        "\nOther architectures of timm are tried when they are loaded. Classifies: by labels where the checkpoint has\n"
        "a trained classifier, by words where the repository holds a text tower."
    )


def _sites(args: Any) -> None:
    from vitviz_hf.model import find_tap, list_sites

    view = _load(args, args.model)
    if args.json:
        layers = [
            {"stage": x.stage, "patch_grid": x.patch_grid, "prefix_tokens": x.n_prefix, "layout": x.layout}
            for x in view.layers
        ]
        taps = [(s, n, find_tap(view, s)) for s, n in list_sites(view)]
        print(json.dumps([
            {"site": str(s), "features": n, **layers[s.layer], "patch_grid": t.patch_grid, "prefix_tokens": t.n_prefix}
            for s, n, t in taps
        ]))  # fmt: skip
        return
    print(f"{view.model_id}  revision {view.revision or '-'}  input {view.input_size[0]}x{view.input_size[1]}")
    if not view.layers:
        print("no feed-forward blocks, so no features; 'vitviz classify' can use it")
        return
    rows = [("layer", "stage", "grid", "prefix tokens", "layout", "features by kind")]
    for i, layer in enumerate(view.layers):
        sizes = "  ".join(_size(k, layer.taps[k], layer.patch_grid) for k in KINDS if k in layer.taps)
        rows.append((str(i), str(layer.stage), _grid(layer.patch_grid), str(layer.n_prefix), layer.layout, sizes))
    _print_table(rows)


def _size(kind: str, tap: Any, grid: tuple[int, int]) -> str:
    """Width of a kind, and its grid where that is not the layer's."""
    return f"{kind} {tap.size}" + ("" if tap.patch_grid == grid else f" ({_grid(tap.patch_grid)})")


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _classify(args: Any) -> None:
    from vitviz_hf.classification import classify, load_zero_shot
    from vitviz_hf.families import BY_MODEL_TYPE
    from vitviz_hf.model import to_pixels

    image = _open(args.image)
    if args.k < 1:
        raise ConfigError(f"-k must be at least 1; got {args.k}.")
    view = _load(args, args.model)
    family = BY_MODEL_TYPE.get(getattr(view.module.config, "model_type", ""))
    words = args.labels or (view.labels is None and family is not None and family.text_class)
    labels = [x.strip() for x in args.labels.split(",")] if args.labels else None
    zero_shot = None
    if words:
        with _counter("reading the labels", " texts") as show:
            zero_shot = load_zero_shot(view, labels, args.template, progress=show)
    best = classify(view, to_pixels(view, image), zero_shot).top(args.k)[0]
    if args.json:
        print(json.dumps([{"label": name, "probability": p} for name, p in best]))
        return
    n = len(zero_shot.labels if zero_shot else view.labels or ())
    print(f"{view.model_id}, {'zero-shot among' if zero_shot else 'its own'} {n} labels")
    for name, p in best:
        print(f"{p:6.1%}  {name}")


def _map(args: Any) -> None:
    from vitviz_hf.images import encode, map_panel, map_range, pixels_to_image
    from vitviz_hf.manifest import versions, write_file
    from vitviz_hf.maps import activation_map
    from vitviz_hf.model import check_feature, to_pixels
    from vitviz_hf.recording import activations

    model, addresses = _split_words(args.words)
    features = [parse_feature(a) for a in addresses]
    paths = _new_files(args.out, features, (".png", ".json"))
    image = _open(args.image)
    view = _load(args, model)
    for feature in features:
        check_feature(view, feature)
    pixels = to_pixels(view, image)
    acts = activations(view, pixels, {f.site for f in features})
    crop = pixels_to_image(pixels[0].cpu().numpy())
    for feature, path in zip(features, paths, strict=True):
        values = activation_map(view, acts[feature.site], feature)[0].float().cpu().numpy()
        panel = map_panel(crop, values, map_range(values), f"{view.model_id} {feature}")
        facts = {
            "model_id": view.model_id, "revision": view.revision, "input_size": view.input_size,
            "feature": str(feature), "image": Path(args.image).name, "map": values.tolist(), "versions": versions(),
        }  # fmt: skip
        write_file(Path(f"{path}.png"), encode(panel, "PNG"))
        write_file(Path(f"{path}.json"), json.dumps(facts).encode())
        print(f"{path}.png  values {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}")


def _top(args: Any) -> None:
    from vitviz_hf.maps import top_features
    from vitviz_hf.model import find_tap, to_pixels

    patch = _numbers(args.patch, ",", "--patch must be ROW,COLUMN such as 3,4") if args.patch else None
    image = _open(args.image)
    if args.k < 1:
        raise ConfigError(f"-k must be at least 1; got {args.k}.")
    view = _load(args, args.model)
    sites = [parse_site(s) for s in args.site or [f"{i}.mlp_act" for i in range(len(view.layers))]]
    for site in sites:
        find_tap(view, site)
    reference = _reference(view) if args.by == "unusual" else None
    pixels = to_pixels(view, image)
    ranked = {s: top_features(view, pixels, s, args.k, patch, reference) for s in sites}
    if args.json:
        print(json.dumps([{"feature": str(f), args.by: v} for r in ranked.values() for f, v in r]))
        return
    by = "standard deviations above the built-in photographs" if reference else "plain score, no other images compared"
    print(f"{view.model_id}, {'patch ' + args.patch if args.patch else 'mean over patches'}, ranked by {by}")
    for site in sites:
        print("  ".join(f"{f} {v:.3g}" for f, v in ranked[site]))


def _visualize(args: Any) -> None:
    from vitviz_hf.objectives import check_objective, parse_objective
    from vitviz_hf.optimization import default_config, finish, visualize_steps

    model, addresses = _split_words(args.words)
    objectives = [-parse_objective(a) if args.minimize else parse_objective(a) for a in addresses]
    paths = _new_files(args.out, objectives, (".png",))
    knobs = {f.name: getattr(args, f.name) for f in fields(VisualizeConfig) if hasattr(args, f.name)}
    VisualizeConfig.preset(args.preset or "fourier", **knobs)
    view = _load(args, model)
    for objective in objectives:
        check_objective(view, objective)
    config = VisualizeConfig.from_dict(
        {**(PRESETS[args.preset] if args.preset else default_config(view).to_dict()), **knobs}
    )
    bar = _progress(visualize_steps(view, objectives, config), config.steps, "optimizing")
    for step in bar:  # noqa: B007
        pass
    results = finish(view, objectives, config, step)
    for result, path in zip(results, paths, strict=True):
        result.save(f"{path}.png")
        print(f"{path}.png  {_describe(result)}")
    if any(_single_feature(r) for r in results):
        reference = _reference(view)
        for result in results:
            if line := _compared(result, reference):
                print(line)


def _replay(args: Any) -> None:
    import numpy as np

    from vitviz_hf.optimization import read_recipe, replay

    recipe = read_recipe(args.png)
    if args.out:
        check_absent(args.out)
    print(f"{recipe.get('address')} of {recipe.get('model_id')}, made on {recipe.get('device')}", file=sys.stderr)
    result = replay(args.png)
    before = np.asarray(_open(args.png), dtype=int)
    after = np.asarray(result.image, dtype=int)
    difference = int(np.abs(before - after).max()) if before.shape == after.shape else 255
    if args.out:
        result.save(args.out)
    same = "identical" if difference == 0 else f"largest difference {difference} of 255"
    print(f"{same}; score {result.score:.4g}, was {recipe.get('score', float('nan')):.4g}")


def _app(args: Any) -> None:
    from vitviz_hf.ui import launch

    launch(host=args.host, port=args.port)


def _search(args: Any) -> None:
    from vitviz_hf.atlas import make_atlas, merge_searches, search_folder
    from vitviz_hf.search import SearchState, search
    from vitviz_hf.stream import open_source

    workers = args.workers if args.workers is not None else max(1, (os.cpu_count() or 1) - 1)
    config = SearchConfig(
        kinds=tuple(args.kinds.split(",")), layers=_layers(args.layers), k=args.k, reduce=args.reduce,
        limit=args.limit, batch=args.batch, workers=workers,
    )  # fmt: skip
    out, rank, n_ranks = Path(args.out), int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check_absent(out)
    if n_ranks > 1 and args.device is None and os.environ.get("LOCAL_RANK"):
        args.device = _rank_device()
    source = open_source(args.dataset, args.split)
    view = _load(args, args.model)
    n_rows = min(x for x in (source.n_rows, args.limit, 10**12) if x is not None)
    with _counter("searching", " images", keep=True) as show:

        def progress(state: SearchState) -> None:
            show(state.n_rows * n_ranks, n_rows if n_rows < 10**12 else 0)

        if n_ranks == 1:
            atlas = make_atlas(view, source, config, out, args.resume, progress)
        else:
            folder = search_folder(out) / f"rank-{rank}"
            search(view, source, config, folder, args.resume, rank, n_ranks, progress)
            if rank:
                return
            atlas = merge_searches(view, source, config, out, n_ranks)
    facts = atlas.manifest
    n_features = sum(atlas.sites.values())
    print(f"{out}: {n_features:,} features, {facts['n_images']:,} images, {facts['n_stored_images']:,} of them stored")
    if facts["n_skipped"]:
        print(f"{facts['n_skipped']} could not be read, listed in manifest.json; first: {facts['skipped'][0]}")


def _rank_device() -> str | None:
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else None


def _layers(text: str | None) -> tuple[int, ...] | None:
    if not text:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            raise ConfigError(f"--layers must be numbers and ranges such as 3-7,11; got {text!r}.")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def _atlas_build(args: Any) -> None:
    from vitviz_hf.atlas import missing_visualizations, open_atlas
    from vitviz_hf.model import at_size, load_model
    from vitviz_hf.optimization import default_config, visualize

    atlas = open_atlas(args.atlas)
    features = [f for text in args.features for f in _feature_range(text)]
    missing = missing_visualizations(atlas, features)
    print(f"{len(features) - len(missing)} of {len(features)} pictures are there already", file=sys.stderr)
    if not missing:
        return
    view = load_model(atlas.manifest["model_id"], atlas.manifest["revision"], args.device)
    view = at_size(view, tuple(atlas.manifest["input_size"]))
    config = VisualizeConfig.preset(args.preset) if args.preset else default_config(view)
    together = 8  # features of one site share the batches
    groups = [missing[i : i + together] for i in range(0, len(missing), together)]
    for group in _progress(groups, len(groups), "optimizing", " batches"):
        for feature, result in zip(group, visualize(view, group, config), strict=True):
            path = atlas.folder / "visualizations" / f"{file_stem(feature)}.png"
            result.save(path)
            print(f"{path}  {_describe(result)}")


def _feature_range(text: str) -> "list[Feature]":
    match = re.fullmatch(r"(.+):(\d+)-(\d+)", text.strip())
    if match is None:
        return [parse_feature(text)]
    site, first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) > 100_000:
        raise ConfigError(f"{text!r} is no range of features; write for example 5.mlp_act:0-63.")
    return [parse_feature(f"{site}:{i}") for i in range(int(first), int(last) + 1)]


def _atlas_push(args: Any) -> None:
    from vitviz_hf.atlas import push_atlas

    print(push_atlas(Path(args.atlas), args.repository, args.private))


def _atlas_pull(args: Any) -> None:
    import shutil

    from vitviz_hf.atlas import pull_atlas
    from vitviz_hf.manifest import write_dir

    out = Path(args.out)
    with write_dir(out) as folder:
        shutil.copytree(pull_atlas(args.repository), folder, dirs_exist_ok=True)
    print(out)


def _page(args: Any) -> None:
    from vitviz_hf.atlas import open_atlas
    from vitviz_hf.images import encode
    from vitviz_hf.manifest import write_file
    from vitviz_hf.page import feature_page, page_document, triplet

    out, feature = Path(args.out), parse_feature(args.feature)
    if out.suffix not in (".html", ".png"):
        raise ConfigError(f"--out must end in .html or .png; got '{out}'.")
    check_absent(out)
    atlas = open_atlas(args.atlas)
    atlas.hits(feature)
    view = _load(args, args.model)
    if out.suffix == ".png":
        write_file(out, encode(triplet(view, atlas, feature), "PNG"))
    else:
        text = page_document(feature_page(view, atlas, feature, args.k), f"{feature} of {view.model_id}")
        write_file(out, text.encode())
    print(out)


def _describe(result: "Visualization") -> str:
    text = f"score {result.score:.3g}, {result.transfer_score:.3g} turned, zoomed and blurred"
    return text if result.alive else f"{text}; it never came alive: the feature did not fire in any step"


def _single_feature(result: "Visualization") -> str | None:
    terms = result.recipe["objective"]
    address = str(terms[0].get("target", ""))
    return address if len(terms) == 1 and terms[0]["weight"] == 1 and "." in address else None


def _compared(result: "Visualization", reference: "Reference") -> str | None:
    from vitviz_hf.reference import best_photograph

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


def _load(args: Any, model_id: str | None) -> "ModelView":
    from vitviz_hf.hub import default_model
    from vitviz_hf.model import at_size, load_model

    size = _numbers(args.size, "x", "--size must be HEIGHTxWIDTH such as 224x336") if args.size else None
    if model_id is None:
        model_id = default_model()
        print(f"vitviz: model {model_id}", file=sys.stderr)
    view = load_model(model_id, args.revision, args.device)
    return at_size(view, size) if size else view


def _reference(view: "ModelView") -> "Reference":
    from vitviz_hf.reference import reference_scores

    with _counter("scoring the built-in photographs, once", " photographs") as show:
        return reference_scores(view, show)


@contextmanager
def _counter(text: str, unit: str, keep: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first thing done."""
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(desc=text, unit=unit, leave=keep, delay=0.5)

    def show(done: int, n: int) -> None:
        bar.total = n or None
        bar.update(done - bar.n)

    with bar:
        yield show


def _progress(steps: Iterable[Any], n: int, text: str, unit: str = " steps") -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(steps, desc=text, total=n, unit=unit)


def _split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Model, if the first word is no address, and addresses."""
    if ":" in words[0].rsplit("/", 1)[-1]:
        return None, words
    if len(words) == 1:
        raise ConfigError(f"no feature given after the model {words[0]!r}; write for example 5.mlp_act:10.")
    return words[0], words[1:]


def _new_files(folder: str, addresses: Sequence[object], endings: Sequence[str]) -> list[Path]:
    paths = [Path(folder) / file_stem(a) for a in addresses]
    for path in paths:
        for ending in endings:
            check_absent(f"{path}{ending}")
    return paths


def _numbers(text: str, separator: str, message: str) -> tuple[int, int]:
    parts = text.lower().split(separator)
    if len(parts) != 2 or not all(p.strip().isdigit() for p in parts):
        raise ConfigError(f"{message}; got {text!r}.")
    return int(parts[0]), int(parts[1])


def _open(path: str) -> Any:
    from vitviz_hf.images import open_image
    from vitviz_hf.stream import builtin_paths

    return open_image(path if Path(path).exists() else builtin_paths().get(path, path))
