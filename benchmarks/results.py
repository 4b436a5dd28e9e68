"""Run what needs no dataset again, and write docs/results.md: `make results`. About an hour on two CPU cores.

A folder of docs/results that is there already is kept; delete it to run that experiment again. `--only story` makes
the strip that the app opens on and nothing else.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from vitviz_hf.cli.main import main
from vitviz_hf.experiments.accuracy import background, position, token_mixing
from vitviz_hf.experiments.accuracy.paper import MODELS
from vitviz_hf.experiments.neurons import group
from vitviz_hf.experiments.pictures.choosing import optimized, picture_config
from vitviz_hf.experiments.registry import CLAIMS, EXPERIMENTS
from vitviz_hf.experiments.tables import Table
from vitviz_hf.experiments.verdict import read_found
from vitviz_hf.images import open_image
from vitviz_hf.manifest import versions, write_dir
from vitviz_hf.models.view import at_size, load_model
from vitviz_hf.reading.exemplars import crop_exemplar, list_exemplars
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import builtin_paths

DOCS = Path(__file__).parent.parent / "docs"
RUNS = {
    "progression": "experiment progression builtin --columns 4 --size 112x112",
    "narrow-sites": "experiment narrow-sites builtin --layers 2,9 --preset fast --steps 50 --size 112x112",
    "triplets": "experiment triplets builtin --size 168x168",
    "spatial": "experiment spatial builtin",
    "group": "group builtin builtin --limit 3",
}
WHAT = {name: e.title for name, e in EXPERIMENTS.items()} | {"group": "Whether patches of one object group together"}
STORY_LAYERS, STORY_COLUMNS, STORY_SEED, STORY_ABOVE, STORY_QUALITY = 6, 8, 0, 0.1, 72
TILE = 112
"""Side of a picture in pixels."""
RULE = (
    "In each layer {n} neurons drawn at random (seed {seed}) among those whose mean over patches is above {above} "
    "on some built-in photograph, a third to a half of them."
)
# Written after looking at the pictures of preset fast, and no more than they show: look again when they are made anew.
CAPTIONS = {
    0: "colors and light, without a shape",
    2: "fine lines and weaves",
    4: "textures: stripes, spots, meshes",
    7: "larger patterns: tufts, arches, bars, scales",
    9: "a ground, often with one thing on it that cannot be named",
    11: "strokes and curls; no object that could be named",
}
INTRO = """# Results

What the experiments give, beside the numbers of the papers. Written by `make results`; the app's tab Papers shows
the same folders.

"What do Vision Transformers Learn?" is Ghiasi et al. 2022, [arXiv:2212.06727](https://arxiv.org/abs/2212.06727); "What
Neurons Tell and How Neurons Behave" is [arXiv:2210.07646](https://arxiv.org/abs/2210.07646).

Whether a claim holds is computed from the numbers of a result by the criterion that stands beside it
(`vitviz_hf/experiments/claims.py`); for a model, a dataset and a size other than the papers' it says so of these only.
"""
IMAGENET = """
## With ImageNet

Nobody has run these with this package yet, so there is no column for ours: these are the papers' numbers, with the
commands that make the same tables. They stand beside ours only for the paper's weights in float32, at its input size
and crop, on its dataset and split, with at least as many images; the table says what differs. `ILSVRC/imagenet-1k` is
gated: accept its terms, then `hf auth login`.
"""


def run(name):
    out = DOCS / "results" / name
    if not out.exists() and main([*RUNS[name].split(), "--out", str(out)]):
        raise SystemExit(f"{name} failed")
    for path in out.iterdir():
        if path.suffix == ".png":  # a tenth of the size
            Image.open(path).convert("RGB").save(path.with_suffix(".webp"), quality=82)
        if path.suffix in (".png", ".svg", ".json") and path.name != "manifest.json":
            path.unlink()
    shutil.rmtree(out.with_name(f"{name}.experiment"), ignore_errors=True)


def section(name):
    folder = DOCS / "results" / name
    tables = "\n".join(p.read_text() for p in sorted(folder.glob("table.md")))
    figures = "\n".join(
        f"![{CLAIMS[name].label(p.stem)}](results/{name}/{p.name})\n" for p in sorted(folder.glob("*.webp"))
    )
    facts = json.loads((folder / "manifest.json").read_text("utf-8"))
    says = CLAIMS[facts["experiment"]].to_markdown(read_found(folder, facts))
    command = f"```bash\nvitviz {RUNS[name]} --out {name}\n```"
    return f"\n## {name}\n\n{WHAT[name]}.\n\n{command}\n\n{says}\n{figures}\n{tables}"


def paper(title, command, table):
    return f"\n### {title}\n\n```bash\n{command}\n```\n\n{table.to_markdown()}"


def papers():
    mixing = Table(
        ("model", "accuracy, %", *token_mixing.QUANTITIES),
        tuple(
            (model, f"top-{k}", *map(values.get, token_mixing.QUANTITIES))
            for model, by_k in token_mixing.PAPER.items()
            for k, values in by_k.items()
        ),
        ("At 384 px; the means and patch 120 are from the authors' notes.",),
    )
    ids = {name: models[0] if models else "-" for name, models in MODELS.items()}
    header = [f"top-{k} {way}" for k in (5, 1) for way in ("full", "foreground", "background")]
    boxes = Table(
        ("architecture", "on the Hub", *header),
        tuple((name, ids[name], *five, *one) for name, (five, one) in background.PAPER.items()),
        ("Full: accuracy in %. Foreground and background: in % of it.", background.PERMUTED),
    )
    places = Table(
        ("model", "natural", "positions zeroed", "tiles of 32 px shuffled"),
        tuple((model, *values) for model, values in position.PAPER.items()),
        ("Top-1 accuracy in %.",),
    )
    curves = Table(
        ("variant", "measure", *(f"layer {i}" for i in range(1, 13))),
        tuple((v, m, *values) for v, measures in group.PAPER.items() for m, values in measures.items()),
        ("Digitized from the paper's figures, to about 0.002.",),
    )
    models = " \\\n  ".join(ids[name] for name in background.PAPER if MODELS[name])
    mixed = " ".join(ids[name] for name in token_mixing.PAPER)
    placed = " ".join(ids[name] for name in position.PAPER)
    return (
        paper(
            "token-mixing",
            f"vitviz experiment token-mixing {mixed} ILSVRC/imagenet-1k --out token-mixing",
            mixing,
        )
        + paper(
            "background",
            f"vitviz experiment background {models} \\\n  ILSVRC/imagenet-1k --split train "
            "--boxes LOC_train_solution.csv --out background",
            boxes,
        )
        + paper(
            "position",
            f"vitviz experiment position {placed} ILSVRC/imagenet-1k --out position",
            places,
        )
        + paper(
            "group, ViT-B/16 on Pascal VOC 2009",
            f"vitviz group {group.PAPER_MODEL} VOCdevkit/VOC2009 --limit 500 --out group",
            curves,
        )
    )


def story():
    """Optimized pictures of neurons from the first layer to the last, each with its best exemplar, as sheets."""
    out = DOCS / "results" / "story"
    if not out.exists():
        make_story(out)
    facts = json.loads((out / "story.json").read_text("utf-8"))
    for row in facts["layers"]:
        row["caption"] = CAPTIONS.get(row["layer"], "")
    (out / "story.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def make_story(out):
    view = load_model("builtin")
    reference, small = load_reference(view), at_size(view, (TILE, TILE))
    layers = np.linspace(0, len(view.layers) - 1, STORY_LAYERS).round().astype(int).tolist()
    chosen = {layer: drawn(view, reference, layer) for layer in layers}
    how = picture_config("fast", None, STORY_SEED)
    with TemporaryDirectory() as work, write_dir(out) as folder:
        made = optimized(small, [f for own in chosen.values() for f in own], how, Path(work), progress=show)
        rows = []
        for layer, features in chosen.items():
            best = [list_exemplars(view, reference, f, 1)[0] for f in features]
            crops = [
                crop_exemplar(view, open_image(builtin_paths()[e.photograph]), f, e.patch)
                for f, e in zip(features, best, strict=True)
            ]
            name = f"layer-{layer}.webp"
            sheet([made[f].image for f in features], crops).save(folder / name, quality=STORY_QUALITY, method=6)
            tiles = [tile(f, made[f], e) for f, e in zip(features, best, strict=True)]
            rows.append({"layer": layer, "sheet": name, "tiles": tiles})
        facts = {
            "model": view.identity.to_json(),
            "rule": RULE.format(n=STORY_COLUMNS, seed=STORY_SEED, above=STORY_ABOVE),
            "config": how.to_dict(),
            "size": TILE,
            "versions": versions(),
            "layers": rows,
        }
        (folder / "story.json").write_text(json.dumps(facts), "utf-8")
    print("Look at docs/results/story: CAPTIONS must say no more than these pictures show.")


def drawn(view, reference, layer):
    """Neurons of a layer by the story's rule."""
    site = Site(layer, "mlp_act")
    firing = np.flatnonzero(reference.scores[site].numpy().max(0) > STORY_ABOVE)
    rng = np.random.default_rng((STORY_SEED, layer))
    return [Feature(site, int(i)) for i in sorted(rng.choice(firing, STORY_COLUMNS, replace=False))]


def sheet(pictures, crops):
    """Pictures in a row, and the exemplars below."""
    whole = Image.new("RGB", (TILE * len(pictures), 2 * TILE))
    for i, (picture, crop) in enumerate(zip(pictures, crops, strict=True)):
        whole.paste(picture, (i * TILE, 0))
        whole.paste(crop.resize((TILE, TILE)), (i * TILE, TILE))
    return whole


def tile(feature, picture, exemplar):
    return {
        "feature": str(feature),
        "seed": STORY_SEED,
        "score": round(picture.score, 3),
        "alive": picture.alive,
        "photograph": exemplar.photograph,
        "patch": list(exemplar.patch),
        "value": round(exemplar.value, 3),
    }


def show(done, n):
    print(f"story: {done} of {n} pictures", flush=True)


if __name__ == "__main__":
    story()
    if sys.argv[1:] == ["--only", "story"]:
        raise SystemExit
    for name in RUNS:
        run(name)
    text = INTRO + "".join(map(section, RUNS)) + IMAGENET + papers()
    (DOCS / "results.md").write_text(text)
