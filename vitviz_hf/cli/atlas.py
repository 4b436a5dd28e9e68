"""Commands about datasets: search, atlas, page."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitviz_hf.atlas.config import MOST_WORKERS, SearchConfig, check_kinds
from vitviz_hf.cli.options import (
    add_cluster_options,
    add_knobs,
    add_model_options,
    add_preset,
    add_verb,
    check_cluster_options,
    counter,
    describe,
    load_view,
    progress_bar,
    read_knobs,
)
from vitviz_hf.config import IMAGENET
from vitviz_hf.errors import ConfigError
from vitviz_hf.manifest import check_absent, clear_left
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.sites import KINDS, Feature, parse_feature

if TYPE_CHECKING:
    from vitviz_hf.atlas.store import Atlas
    from vitviz_hf.stream import Source

_NAMER = "openai/clip-vit-base-patch32"


def add_atlas_commands(verbs: Any) -> None:
    """Search, atlas and page."""
    _add_search(verbs)
    atlas = verbs.add_parser("atlas", help="add pictures to an atlas, and share it on the Hub")
    tasks = atlas.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build = add_verb(tasks, "build", _atlas_build, "optimize pictures for features of an atlas; what exists is kept")
    build.add_argument("atlas", metavar="ATLAS")
    build.add_argument(
        "features", nargs="+", metavar="FEATURE", help='5.mlp_act:10, a range 5.mlp_act:0-63, or text:"striped fur"'
    )
    add_preset(build, "\n\nReal images are the atlas's own: for aligned up to nine of each feature, for accent one.")
    build.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add_cluster_options(build)
    name = add_verb(tasks, "name", _atlas_name, "find words for every feature of an atlas, in the eyes of a CLIP model")
    name.add_argument("atlas", metavar="ATLAS")
    name.add_argument(
        "--namer",
        metavar="MODEL",
        help=f"CLIP, MetaCLIP, SigLIP or AIMv2 (default: the atlas's own model if it is one, else {_NAMER})",
    )
    name.add_argument(
        "--words", metavar="FILE", help="one word or phrase a line (default: ImageNet's classes and 667 common words)"
    )
    name.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    judge = add_verb(
        tasks, "judge", _atlas_judge, "ask a second network how well each picture tells what its feature sees"
    )
    judge.add_argument("atlas", metavar="ATLAS")
    judge.add_argument(
        "--judge", metavar="MODEL", help="a network that is not the model, such as builtin-cnn (default: of the Hub)"
    )
    judge.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    push = add_verb(tasks, "push", _atlas_push, "upload an atlas as a dataset repository")
    push.add_argument("atlas", metavar="ATLAS")
    push.add_argument("repository", metavar="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="only you can see it")
    pull = add_verb(tasks, "pull", _atlas_pull, "download an atlas")
    pull.add_argument("repository", metavar="OWNER/NAME")
    pull.add_argument("--out", required=True, metavar="DIR")

    page = add_verb(verbs, "page", _page, "write the page of a feature as one HTML file, or its triplet as a PNG")
    page.add_argument("model", metavar="MODEL")
    page.add_argument("feature", metavar="FEATURE", help='5.mlp_act:10, or what was searched: text:"striped fur"')
    page.add_argument("--atlas", required=True, metavar="ATLAS", help="folder or Hub id")
    page.add_argument("--out", required=True, metavar="FILE", help=".html: the page; .png: picture, best image, map")
    page.add_argument("-k", type=int, default=8, metavar="N", help="images at either end (default: 8)")
    add_model_options(page)


def _add_search(verbs: Any) -> None:
    search = add_verb(verbs, "search", _search, "find the images that activate every feature most, and make an atlas")
    search.add_argument("model", metavar="MODEL")
    search.add_argument(
        "dataset",
        nargs="?",
        default=IMAGENET,
        metavar="DATASET",
        help=f"Hub id (streamed), folder of images, parquet, or 'builtin' (default: {IMAGENET})",
    )
    search.add_argument("--out", required=True, metavar="ATLAS", help="new folder for the atlas")
    search.add_argument(
        "--text",
        action="append",
        metavar="WORDS",
        help="rank images for this text too, for CLIP, SigLIP and AIMv2; can be repeated (kinds then default to text)",
    )
    search.add_argument("--split", help="default: validation if there is one")
    add_knobs(search, SearchConfig, None, defaults=True)
    search.add_argument("--resume", action="store_true", help="go on with an interrupted search")
    add_cluster_options(search)
    add_model_options(search)


def _search(args: Any) -> None:
    from vitviz_hf.stream import open_source

    given = read_knobs(args, SearchConfig)
    if odd := [text for text in args.text or () if '"' in text]:
        raise ConfigError(f"a text is named in double quotes, so it cannot hold any; got {odd[0]!r:.100}.")
    if args.text:
        given["kinds"] = tuple(dict.fromkeys((*given.get("kinds", ()), "text")))
    config = SearchConfig(**given)
    check_kinds(config.kinds, (*KINDS, "label", *(["text"] if args.text else [])))
    check_cluster_options(args)
    if not args.resume:
        check_absent(Path(args.out))
    source = open_source(args.dataset, args.split)
    n_rows = min(x for x in (source.n_rows, config.limit, 10**12) if x is not None)
    with counter("searching", " images", keep=True) as bar:

        def show(n: int) -> None:
            bar(n, n_rows if n_rows < 10**12 else 0)

        atlas = _searched(args, source, given, show) if args.on is None else _spread(args, source, given, show)
    facts = atlas.manifest
    n_features = sum(atlas.sites.values())
    n_stored = facts["n_stored_images"]
    print(f"{args.out}: {n_features:,} features, {facts['n_images']:,} images, {n_stored:,} of them stored")
    if facts["n_skipped"]:
        print(f"{facts['n_skipped']:,} could not be read")
    if facts["n_non_finite"]:
        print(f"{facts['n_non_finite']:,} gave non-finite activations and were left out of the sites where they did")
    if facts["skipped"]:
        print(f"these are listed in manifest.json; first: {', '.join(facts['skipped'][0])}")


def _searched(args: Any, source: "Source", given: dict[str, Any], show: Callable[[int], None]) -> "Atlas":
    from vitviz_hf.atlas.write import make_atlas

    view = _searched_view(args, SearchConfig(**given))
    config = SearchConfig(**{"workers": _decoding_processes(view.device.type != "cpu", os.cpu_count() or 1), **given})
    return make_atlas(view, source, config, Path(args.out), args.resume, lambda state: show(state.n_rows))


def _decoding_processes(on_gpu: bool, n_cpus: int) -> int:
    """As many as the CPU has time for: a model that runs on it leaves too little to be worth the start of one."""
    return min(max(n_cpus - 1, 1), MOST_WORKERS) if on_gpu else 0


def _searched_view(args: Any, config: SearchConfig) -> Any:
    from vitviz_hf.inside.words import with_labels, with_words

    view = load_view(args, args.model)
    view = with_words(view, list(dict.fromkeys(args.text))) if args.text else view
    return with_labels(view) if "label" in config.kinds else view


def _spread(args: Any, source: "Source", given: dict[str, Any], show: Callable[[int], None]) -> "Atlas":
    from vitviz_hf.atlas.spreading import spread_atlas
    from vitviz_hf.cluster import open_cluster

    with open_cluster(args.on, args.gpus) as cluster:
        args.device = "cpu"  # workers have devices of their own
        config = SearchConfig(**{"workers": _decoding_processes(cluster.on_gpus, cluster.n_cpus), **given})
        view = _searched_view(args, config)
        return spread_atlas(cluster, view, source, config, Path(args.out), args.resume, show)


def _atlas_build(args: Any) -> None:
    from vitviz_hf.atlas.page import check_model
    from vitviz_hf.atlas.store import missing_visualizations, open_atlas
    from vitviz_hf.inside.words import stored_address

    check_cluster_options(args)
    atlas = open_atlas(args.atlas)
    features = [f for text in args.features for f in _feature_range(stored_address(atlas.manifest, text))]
    clear_left(atlas.folder / "visualizations", suffix=".png")
    missing = missing_visualizations(atlas, features)
    print(f"{len(features) - len(missing)} of {len(features)} pictures are there already", file=sys.stderr)
    if not missing:
        return
    view = _own_model(atlas, "cpu" if args.on else args.device)
    check_model(view, atlas)
    together = 8  # features of one site share the batches
    groups = [missing[i : i + together] for i in range(0, len(missing), together)]
    for feature, result in progress_bar(_made(args, view, atlas, groups), len(missing), "optimizing", " pictures"):
        path = atlas.picture_path(feature)
        result.save(path)
        print(f"{path}  {describe(result)}")


def _made(args: Any, view: Any, atlas: Any, groups: list[list[Feature]]) -> Iterator[tuple[Feature, Any]]:
    """The pictures, here or on a cluster."""
    from vitviz_hf.atlas.guiding import guide_from_atlas
    from vitviz_hf.atlas.spreading import shared_precision, spread_pictures
    from vitviz_hf.cluster import open_cluster
    from vitviz_hf.optimize.guides import needed
    from vitviz_hf.optimize.loop import default_config, visualize

    config = VisualizeConfig.preset(args.preset) if args.preset else default_config(view)
    if args.on is None:
        for group in groups:
            own = [guide_from_atlas(view, atlas, f, config) for f in group] if needed(config) else []
            yield from zip(group, visualize(view, group, config, own), strict=True)
        return
    with open_cluster(args.on, args.gpus) as cluster:
        if args.preset is None and cluster.on_gpus:
            config = VisualizeConfig.preset("fourier")
        config = replace(config, precision=shared_precision(view, config.precision))
        guides = [[guide_from_atlas(view, atlas, f, config) for f in g] for g in groups] if needed(config) else []
        yield from spread_pictures(cluster, view, groups, config, guides)


def _feature_range(text: str) -> list[Feature]:
    match = re.fullmatch(r"(.+):(\d+)-(\d+)", text.strip())
    if match is None:
        return [parse_feature(text, None)]
    site, first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) > 100_000:
        raise ConfigError(f"{text!r} is no range of features; write for example 5.mlp_act:0-63.")
    return [parse_feature(f"{site}:{i}", None) for i in range(int(first), int(last) + 1)]


def _atlas_name(args: Any) -> None:
    from vitviz_hf.atlas.store import open_atlas
    from vitviz_hf.atlas.words import name_features
    from vitviz_hf.models.gate import fetch_model
    from vitviz_hf.models.view import load_snapshot

    words = None
    if args.words:
        try:
            words = [w.strip() for w in Path(args.words).read_text("utf-8").splitlines() if w.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the words in '{args.words}' cannot be read: {error}") from error
    atlas = open_atlas(args.atlas)
    check_absent(atlas.folder / "words")
    own = atlas.manifest["model_id"], atlas.manifest["revision"]
    snapshot = fetch_model(args.namer) if args.namer else fetch_model(*own)
    if not args.namer and "text_config" not in snapshot.config:
        snapshot = fetch_model(_NAMER)
    view = load_snapshot(snapshot, args.device)
    with counter("reading words and images", "") as show:
        found = name_features(atlas, view, words, progress=show)
    named = sum(bool(atlas.feature_words(Feature(s, i))) for s, n in atlas.sites.items() for i in range(n))
    print(
        f"{atlas.folder / 'words'}: {named:,} of {sum(atlas.sites.values()):,} features have a word whose agreement is "
        f"above {found.chance:.2f}, which 95 % of random sets of images stay below"
    )


def _atlas_judge(args: Any) -> None:
    from vitviz_hf.atlas.store import open_atlas
    from vitviz_hf.experiments.pictures.judging import judge_atlas

    atlas = open_atlas(args.atlas)
    with counter("asking", "", keep=True) as show:
        found = judge_atlas(_own_model(atlas, args.device), atlas, args.judge, show)
    by_picture, by_best = (sum(getattr(a, x) for a in found.values()) / len(found) for x in ("picture", "exemplar"))
    print(
        f"{atlas.agreements}: {len(found):,} pictures; right choices by the picture {by_picture:.0f} %, by the best "
        f"photograph {by_best:.0f} %, by chance 50 %"
    )


def _own_model(atlas: Any, device: str | None) -> Any:
    """The model of an atlas as it was searched with."""
    from vitviz_hf.inside.words import as_searched
    from vitviz_hf.models.view import load_model

    return as_searched(load_model(atlas.manifest["model_id"], atlas.manifest["revision"], device), atlas.manifest)


def _atlas_push(args: Any) -> None:
    from vitviz_hf.atlas.store import push_atlas

    print(push_atlas(Path(args.atlas), args.repository, args.private))


def _atlas_pull(args: Any) -> None:
    import shutil

    from vitviz_hf.atlas.store import pull_atlas
    from vitviz_hf.manifest import write_dir

    out = Path(args.out)
    with write_dir(out) as folder:
        shutil.copytree(pull_atlas(args.repository), folder, dirs_exist_ok=True)
    print(out)


def _page(args: Any) -> None:
    from vitviz_hf.atlas.page import feature_page, page_document, triplet
    from vitviz_hf.atlas.store import open_atlas
    from vitviz_hf.images import encode
    from vitviz_hf.inside.words import stored_address, with_stored_words
    from vitviz_hf.manifest import write_file

    out = Path(args.out)
    if out.suffix not in (".html", ".png"):
        raise ConfigError(f"--out must end in .html or .png; got '{out}'.")
    check_absent(out)
    atlas = open_atlas(args.atlas)
    feature = parse_feature(stored_address(atlas.manifest, args.feature), None)
    atlas.hits(feature)
    view = with_stored_words(load_view(args, args.model), atlas.manifest)
    if out.suffix == ".png":
        write_file(out, encode(triplet(view, atlas, feature), "PNG"))
    else:
        text = page_document(feature_page(view, atlas, feature, args.k), f"{feature} of {view.model_id}")
        write_file(out, text.encode())
    print(out)
