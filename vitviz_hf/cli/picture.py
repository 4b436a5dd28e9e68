"""Commands about one model and one picture: models, sites, map, top, classify."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitviz_hf.cli.options import (
    IMAGE_HELP,
    add_model_options,
    add_verb,
    counter,
    load_view,
    load_worded,
    new_files,
    open_picture,
    parse_pair,
    photograph_scores,
    print_table,
    split_words,
)
from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import Feature, has_words, parse_feature, parse_site


def add_picture_commands(verbs: Any) -> None:
    """Models, sites, map, top and classify."""
    models = add_verb(verbs, "models", _models, "list the families of models that can be loaded by Hub id")
    models.add_argument("--json", action="store_true", help="machine-readable output")

    sites = add_verb(verbs, "sites", _sites, "list the layers and sites of a model, with their number of features")
    sites.add_argument("model", nargs="?", metavar="MODEL")
    sites.add_argument("--json", action="store_true", help="machine-readable output")

    maps = add_verb(verbs, "map", _map, "draw activation maps of features on a picture")
    maps.add_argument("words", nargs="+", metavar="[MODEL] FEATURE", help="for example builtin 5.mlp_act:10")
    maps.add_argument("--image", required=True, metavar="FILE", help=IMAGE_HELP)
    maps.add_argument("--out", required=True, metavar="DIR", help="folder for a PNG and a JSON for each feature")

    top = add_verb(verbs, "top", _top, "rank the features that fire on a picture, or on one patch of it")
    top.add_argument("model", nargs="?", metavar="MODEL")
    top.add_argument("--image", required=True, metavar="FILE", help=IMAGE_HELP)
    top.add_argument("--site", action="append", metavar="SITE", help="for example 5.mlp_act (default: every mlp_act)")
    top.add_argument(
        "--text",
        action="append",
        metavar="WORDS",
        help="rank these texts instead, for CLIP, SigLIP and AIMv2; can be repeated",
    )
    top.add_argument("--patch", metavar="R,C", help="row and column of one patch, from 0 (default: the whole picture)")
    top.add_argument("-k", type=int, default=8, metavar="N", help="features for each site (default: 8)")
    top.add_argument(
        "--by",
        choices=("score", "unusual"),
        default="score",
        help="plain score, or standard deviations above its scores on the built-in photographs (default: score)",
    )
    top.add_argument("--json", action="store_true", help="machine-readable output")

    classify = add_verb(verbs, "classify", _classify, "name what is in a picture, by its classifier or by words")
    classify.add_argument("model", nargs="?", metavar="MODEL")
    classify.add_argument("--image", required=True, metavar="FILE", help=IMAGE_HELP)
    classify.add_argument(
        "--labels",
        metavar="A, B, C",
        help="words for CLIP, SigLIP and AIMv2, with commas between (default there: the 1000 classes of ImageNet)",
    )
    classify.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="text with {} for the label, can be repeated (default: CLIP's 80, such as 'a photo of a {}.')",
    )
    classify.add_argument("-k", type=int, default=5, metavar="N", help="labels to show (default: 5)")
    classify.add_argument("--json", action="store_true", help="machine-readable output")
    for verb in (sites, maps, top, classify):
        add_model_options(verb)


def _models(args: Any) -> None:
    from vitviz_hf.models.families import FAMILIES

    if args.json:
        facts = [{**asdict(f), "classifies": list(f.classifies)} for f in FAMILIES]
        print(json.dumps([{k: v for k, v in f.items() if k != "exceptions"} for f in facts]))
        return
    rows = [("family", "features", "classifies", "model_type, or module of timm", "for example")]
    for family in FAMILIES:
        types = family.timm_module or ", ".join(family.model_types)
        rows.append(
            (family.name, "yes" if family.features else "no", ", ".join(family.classifies), types, family.example)
        )
    print_table(rows)
    print(
        "\nOther architectures of timm are tried when they are loaded. Classifies: by labels where the checkpoint has\n"
        "a trained classifier, by words where the repository holds a text tower."
    )


def _sites(args: Any) -> None:
    from vitviz_hf.models.view import find_tap, list_sites

    view = load_view(args, args.model)
    if args.json:
        layers = [
            {"stage": x.stage, "patch_grid": x.patch_grid, "prefix_tokens": x.n_prefix, "layout": x.layout}
            for x in view.layers
        ]
        taps = [(s, n, find_tap(view, s)) for s, n in list_sites(view)]
        print(
            json.dumps(
                [
                    {
                        "site": str(s),
                        "features": n,
                        **layers[s.layer],
                        "patch_grid": t.patch_grid,
                        "prefix_tokens": t.n_prefix,
                    }
                    for s, n, t in taps
                ]
            )
        )
        return
    print(f"{view.model_id}  revision {view.revision or '-'}  input {view.input_size[0]}x{view.input_size[1]}")
    if not view.layers:
        print("no feed-forward blocks, so no features; 'vitviz classify' can use it")
        return
    rows = [("layer", "stage", "grid", "prefix tokens", "layout", "features by kind")]
    for i, layer in enumerate(view.layers):
        sizes = "  ".join(_size(k, layer.taps[k], layer.patch_grid) for k in view.kinds if k in layer.taps)
        rows.append((str(i), str(layer.stage), _grid(layer.patch_grid), str(layer.n_prefix), layer.layout, sizes))
    print_table(rows)


def _size(kind: str, tap: Any, grid: tuple[int, int]) -> str:
    """Width of a kind, and its grid where that is not the layer's."""
    return f"{kind} {tap.size}" + ("" if tap.patch_grid == grid else f" ({_grid(tap.patch_grid)})")


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _classify(args: Any) -> None:
    from vitviz_hf.models.families import BY_MODEL_TYPE
    from vitviz_hf.models.view import to_pixels
    from vitviz_hf.reading.classification import classify, load_zero_shot

    image = open_picture(args.image)
    if args.k < 1:
        raise ConfigError(f"-k must be at least 1; got {args.k}.")
    view = load_view(args, args.model)
    family = BY_MODEL_TYPE.get(getattr(view.module.config, "model_type", ""))
    words = args.labels or (view.labels is None and family is not None and family.text_class)
    labels = [x.strip() for x in args.labels.split(",")] if args.labels else None
    zero_shot = None
    if words:
        with counter("reading the labels", " texts") as show:
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
    from vitviz_hf.models.view import check_feature, to_pixels
    from vitviz_hf.reading.maps import activation_map
    from vitviz_hf.reading.recording import activations

    model, addresses = split_words(args.words)
    named = [a if has_words(a) else str(parse_feature(a)) for a in addresses]
    paths = new_files(args.out, named, (".png", ".json"))
    image = open_picture(args.image)
    view, addresses = load_worded(args, model, named)
    features = [parse_feature(a, view.kinds) for a in addresses]
    for feature in features:
        check_feature(view, feature)
    pixels = to_pixels(view, image)
    acts = activations(view, pixels, {f.site for f in features})
    crop = pixels_to_image(pixels[0].cpu().numpy())
    for feature, name, path in zip(features, named, paths, strict=True):
        values = activation_map(acts[feature.site], feature)[0].float().cpu().numpy()
        panel = map_panel(crop, values, map_range(values), f"{view.model_id} {name}")
        facts = {
            "model_id": view.model_id,
            "revision": view.revision,
            "input_size": view.input_size,
            "feature": name,
            "image": Path(args.image).name,
            "map": values.tolist(),
            "versions": versions(),
        }
        write_file(Path(f"{path}.png"), encode(panel, "PNG"))
        write_file(Path(f"{path}.json"), json.dumps(facts).encode())
        print(f"{path}.png  values {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}")


def _top(args: Any) -> None:
    from vitviz_hf.inside.words import resolve_all
    from vitviz_hf.models.view import find_tap, to_pixels
    from vitviz_hf.reading.maps import top_features

    def name(feature: Feature) -> str:
        return texts[feature.index] if texts and feature.site == sites[-1] else str(feature)

    patch = parse_pair(args.patch, ",", "--patch must be ROW,COLUMN such as 3,4") if args.patch else None
    image = open_picture(args.image)
    if args.k < 1:
        raise ConfigError(f"-k must be at least 1; got {args.k}.")
    view = load_view(args, args.model)
    chosen = args.site or [f"{i}.mlp_act" for i in range(len(view.layers))]
    texts = [f'text:"{text}"' for text in args.text or ()]
    if texts:
        view, addresses = resolve_all(view, texts)
        chosen = [*(args.site or ()), addresses[0].partition(":")[0]]
    sites = [parse_site(s, view.kinds) for s in chosen]
    for site in sites:
        find_tap(view, site)
    reference = photograph_scores(view) if args.by == "unusual" else None
    pixels = to_pixels(view, image)
    ranked = {s: top_features(view, pixels, s, args.k, patch, reference) for s in sites}
    if args.json:
        print(json.dumps([{"feature": name(f), args.by: v} for r in ranked.values() for f, v in r]))
        return
    by = "standard deviations above the built-in photographs" if reference else "plain score, no other images compared"
    print(f"{view.model_id}, {'patch ' + args.patch if args.patch else 'mean over patches'}, ranked by {by}")
    for site in sites:
        print("  ".join(f"{name(f)} {v:.3g}" for f, v in ranked[site]))
