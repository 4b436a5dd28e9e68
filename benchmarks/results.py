"""Run what needs no dataset again, and write docs/results.md: `make results`. About an hour on two CPU cores.

A folder of docs/results that is there already is kept; delete it to run that experiment again.
"""

import shutil
from pathlib import Path

from PIL import Image

from vitviz_hf.cli.main import main
from vitviz_hf.experiments.accuracy import background, position, token_mixing
from vitviz_hf.experiments.accuracy.paper import MODELS
from vitviz_hf.experiments.neurons import group
from vitviz_hf.experiments.registry import EXPERIMENTS
from vitviz_hf.experiments.tables import Table

DOCS = Path(__file__).parent.parent / "docs"
RUNS = {
    "progression": "experiment progression builtin --columns 4 --size 112x112",
    "narrow-sites": "experiment narrow-sites builtin --layers 2,9 --preset fast --steps 50 --size 112x112",
    "triplets": "experiment triplets builtin --size 168x168",
    "spatial": "experiment spatial builtin",
    "group": "group builtin builtin --limit 3",
}
WHAT = {name: e.title for name, e in EXPERIMENTS.items()} | {"group": "Whether patches of one object group together"}
SAYS = {
    "narrow-sites": "With live features and matched smoothness this run does not show the paper's claim: in layer 2 "
    "pictures of queries, keys and mixed values have more high frequencies than those of the neurons, other narrow "
    "sites do not; in layer 9 no narrow site has more, and queries and keys have less. Random directions of mlp_act, "
    "as wide, have less than its neurons in layer 9.",
    "spatial": "This figure does not show the paper's claim. With black surroundings, features from layer 4 on have "
    "lost more than half of their active patches before any of these is blacked out (active at 0 %), while blacking "
    "out as many other patches changes little, most in layer 11.",
}
INTRO = """# Results

What the experiments give, beside the numbers of the papers. Written by `make results`; the app's tab Papers shows
the same folders.

"What do Vision Transformers Learn?" is Ghiasi et al. 2022, [arXiv:2212.06727](https://arxiv.org/abs/2212.06727); "What
Neurons Tell and How Neurons Behave" is [arXiv:2210.07646](https://arxiv.org/abs/2210.07646).
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
    figures = "\n".join(f"![{p.stem} of {name}](results/{name}/{p.name})\n" for p in sorted(folder.glob("*.webp")))
    says = f"{SAYS[name]}\n\n" if name in SAYS else ""
    command = f"```bash\nvitviz {RUNS[name]} --out {name}\n```"
    return f"\n## {name}\n\n{WHAT[name]}.\n\n{command}\n\n{says}{figures}\n{tables}"


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


if __name__ == "__main__":
    for name in RUNS:
        run(name)
    text = INTRO + "".join(map(section, RUNS)) + IMAGENET + papers()
    (DOCS / "results.md").write_text(text)
