"""Grouping of patches by object over layers, clean, occluded and shuffled, and t-SNE pictures (arXiv:2210.07646)."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitviz_hf.errors import ConfigError, DatasetError, NonFiniteError
from vitviz_hf.experiments.config import GroupConfig
from vitviz_hf.experiments.figures import Figure, Scatter, curves, scatter_panels
from vitviz_hf.experiments.neurons.clusters import (
    CONTROLLED,
    MEASURES,
    embed_tokens,
    group_tokens,
    instances_to_patches,
    permuted_measures,
)
from vitviz_hf.experiments.neurons.scenes import Scene
from vitviz_hf.experiments.neurons.views import SOURCE
from vitviz_hf.experiments.perturb import MODES, Changed, Mask, Pixels, mask_to_model, occlude, shuffle
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.experiments.tables import Cell, Table
from vitviz_hf.models.view import ModelView, to_pixels
from vitviz_hf.reading.attention import attention_weights, joint_attention
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import activations
from vitviz_hf.reading.tokens import check_sequence
from vitviz_hf.sites import Site

_PLOTTED = ("silhouette", "purity", "in-cluster cosine", "in-object cosine", "unique-label rate")
# ViT-B/16 on Pascal VOC 2009, 361 pictures; digitized from the figures (silhouette and purity to 0.001, cosines 0.002).
PAPER: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "clean": {
        "silhouette": (0.046, 0.094, 0.121, 0.115, 0.112, 0.127, 0.146, 0.181, 0.212, 0.240, 0.255, 0.265),
        "purity": (0.558, 0.574, 0.609, 0.614, 0.624, 0.637, 0.645, 0.658, 0.667, 0.672, 0.665, 0.670),
        "in-cluster cosine": (0.316, 0.369, 0.392, 0.391, 0.390, 0.400, 0.422, 0.466, 0.514, 0.584, 0.682, 0.794),
        "in-object cosine": (0.299, 0.329, 0.334, 0.343, 0.357, 0.363, 0.379, 0.409, 0.456, 0.525, 0.636, 0.755),
        "unique-label rate": (0.709, 0.772, 0.817, 0.811, 0.797, 0.789, 0.803, 0.812, 0.823, 0.829, 0.826, 0.840),
    },
    "shuffle 2": {
        "silhouette": (0.047, 0.081, 0.107, 0.110, 0.113, 0.117, 0.139, 0.162, 0.194, 0.212, 0.219, 0.231),
        "purity": (0.541, 0.562, 0.593, 0.603, 0.612, 0.615, 0.618, 0.625, 0.630, 0.632, 0.631, 0.632),
        "in-cluster cosine": (0.304, 0.344, 0.362, 0.367, 0.375, 0.373, 0.399, 0.434, 0.481, 0.543, 0.632, 0.765),
        "in-object cosine": (0.291, 0.312, 0.313, 0.319, 0.329, 0.336, 0.352, 0.378, 0.415, 0.476, 0.590, 0.726),
        "unique-label rate": (0.695, 0.767, 0.813, 0.827, 0.800, 0.773, 0.777, 0.781, 0.795, 0.801, 0.802, 0.804),
    },
    "shuffle 8": {
        "silhouette": (0.005, 0.011, 0.021, 0.022, 0.013, 0.026, 0.027, 0.035, 0.037, 0.043, 0.050, 0.087),
        "purity": (0.591, 0.592, 0.603, 0.606, 0.603, 0.611, 0.609, 0.615, 0.614, 0.617, 0.615, 0.616),
        "in-cluster cosine": (0.212, 0.231, 0.238, 0.242, 0.245, 0.269, 0.289, 0.320, 0.331, 0.372, 0.458, 0.653),
        "in-object cosine": (0.233, 0.254, 0.254, 0.259, 0.258, 0.267, 0.283, 0.308, 0.319, 0.350, 0.431, 0.620),
        "unique-label rate": (0.684, 0.695, 0.701, 0.704, 0.688, 0.702, 0.695, 0.704, 0.700, 0.698, 0.695, 0.697),
    },
}
PAPER_MODEL, PAPER_DATASET, PAPER_SCENES = "google/vit-base-patch16-224", "VOC2009", 361
COLUMNS = tuple(x for m in MEASURES for x in ([m, f"{m}, permuted"] if m in CONTROLLED else [m]))
"""Measures, and beside three of them what chance gives."""
_BACKGROUND = 0


@dataclass(frozen=True, slots=True)
class Variant:
    """How pictures are changed before they are grouped."""

    name: str
    change: Callable[[Pixels, Mask, int], Changed] | None
    """(picture, mask, seed); None leaves it as it is."""


def run_group(
    view: ModelView,
    dataset: str,
    scenes: Iterable[Scene],
    config: GroupConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Measures of the grouping for every layer and variant, and t-SNE of the first scene.

    Raises:
        ConfigError: a variant that does not exist, or no one sequence of tokens goes through all blocks.
        DatasetError: no scene has two objects that are large enough.
    """
    check_sequence(view)
    variants = parse_variants(config.variants)
    found: dict[str, list[NDArray[np.float64]]] = {v.name: [] for v in variants}
    left_out: dict[str, int] = {v.name: 0 for v in variants}
    non_finite: list[str] = []
    first: tuple[Scene, Pixels, Mask] | None = None
    seen = used = 0
    for scene in scenes:
        seen += 1
        pixels = (to_pixels(view, scene.image)[0].float().cpu() * 255).round().byte().permute(1, 2, 0).numpy()
        mask = mask_to_model(view, scene.mask)
        try:
            measured = _measure_variants(view, pixels, mask, scene.names, variants, config, used)
        except NonFiniteError as error:
            non_finite.append(str(error))
            continue
        if measured is None:
            continue
        first = first or (scene, pixels, mask)
        for name, values in measured.items():
            if values is None:
                left_out[name] += 1
            else:
                found[name].append(values)
        used += 1
        if progress:
            progress(used, config.limit)
        if used == config.limit:
            break
    if non_finite:
        if len(non_finite) == seen:
            raise NonFiniteError(f"{non_finite[0]} So it is on all of {seen} scenes; load it in float32.")
        warnings.warn(f"{non_finite[0]} Left out: {len(non_finite)} of {seen} scenes.", RuntimeWarning, stacklevel=2)
    if first is None:
        raise DatasetError(
            f"none of {seen} scenes of {dataset!r} has two objects of at least {config.min_area:.1%} of the picture, "
            "each with three patches of its own."
        )
    usable = {name: np.stack(values) for name, values in found.items() if values}
    if not usable:
        raise DatasetError(f"in none of {used} scenes enough was left of two objects in {', '.join(found)}.")
    tables, data = _tables(usable, PAPER if _is_papers(view, dataset, used, config) else {})
    notes = (
        f"{used} of {seen} scenes of {dataset} have two objects or more that are large enough. Left out of a variant "
        f"because too little was left of its objects: {', '.join(f'{n} {k}' for n, k in left_out.items())}. "
        f"Seed {config.seed}; Pascal VOC is read in a random order."
        + (f" Left out: {len(non_finite)} scenes on which {non_finite[0]}" if non_finite else ""),
        "Layers are counted from 1, as in the paper's curves; t-SNE names blocks from 0, so block b is layer b + 1. "
        "Means over scenes; -1 stands for no cluster in silhouette and in-cluster cosine, which pulls them down: "
        "curves.csv has the counts and the means without.",
        "Permuted: what chance gives. For purity and unique-label rate, which object each token belongs to is permuted "
        "(as many tokens for each, the same in every layer), and the radius of DBSCAN, the clusters and the measure "
        "are computed anew. For silhouette, which depends on the objects only through the radius, the labels of the "
        "clusters are permuted among the tokens that are in one.",
    )
    tables = {name: Table(t.columns, t.rows, notes) for name, t in tables.items()}
    steps = np.arange(1.0, len(view.layers) + 1)
    panels = {
        m: {name: (steps, v[:, :, COLUMNS.index(m)].mean(0), None, None) for name, v in usable.items()}
        for m in _PLOTTED
    }
    figures = {"figure": curves(panels, "layers passed", "mean over scenes"), "tsne": tsne_panels(view, *first, config)}
    manifest = describe_run("group", [view], None, config, SOURCE) | {"dataset": dataset, "scenes": used}
    return Result("group", tables, figures, manifest, data)


def _measure_variants(
    view: ModelView,
    pixels: Pixels,
    mask: Mask,
    names: Sequence[str],
    variants: Sequence[Variant],
    config: GroupConfig,
    number: int,
) -> dict[str, NDArray[np.float64] | None] | None:
    """`group_scene` of each variant; None if the clean picture cannot be used."""
    clean = group_scene(view, pixels, mask, names, config, number)
    if clean is None:
        return None
    measured: dict[str, NDArray[np.float64] | None] = {}
    for variant in variants:
        measured[variant.name] = clean
        if variant.change is not None:
            changed = variant.change(pixels, mask, config.seed + number)
            measured[variant.name] = group_scene(view, changed.pixels, changed.mask, names, config, number)
    return measured


def group_scene(
    view: ModelView, pixels: Pixels, mask: Mask, names: Sequence[str], config: GroupConfig, number: int
) -> NDArray[np.float64] | None:
    """All `COLUMNS` of one picture by layer, [L, columns]; None if it has not two objects that are large enough.

    Args:
        pixels: [H, W, 3] as the model sees it.
        mask: [H, W] of the same size.
        names: class of each instance.
        number: of the scene; with the seed it decides the permutation.
    """
    grid = view.layers[0].patch_grid
    objects = instances_to_patches(mask, grid, config.min_area, config.cover, overlap=config.overlap)
    if objects is None:
        return None
    classes = [names[n - 1] if n <= len(names) else f"object {n}" for n in objects]
    rows = []
    owned = list(objects.values())
    for tokens in block_outputs(view, pixels)[:, view.layers[0].n_prefix :]:
        grouping = group_tokens(tokens, owned, classes)
        chance = permuted_measures(tokens, owned, classes, grouping.labels, config.seed + number)
        found = grouping.measures | {f"{m}, permuted": value for m, value in chance.items()}
        rows.append([found[column] for column in COLUMNS])
    return np.array(rows)


def block_outputs(view: ModelView, pixels: Pixels) -> NDArray[np.float32]:
    """Outputs of all blocks for one picture [H, W, 3], [L, T, D].

    Raises:
        NonFiniteError: they are not finite.
    """
    stack = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().to(view.device) / 255
    sites = [Site(i, "resid") for i in range(len(view.layers))]
    acts = activations(view, stack, sites)
    outputs = np.stack([acts[site].values[0].float().cpu().numpy() for site in sites])
    if not np.isfinite(outputs).all():
        raise NonFiniteError(f"blocks of {name_precision(view)} give NaN or infinite values.")
    return outputs


def parse_variants(text: str) -> list[Variant]:
    """Variants such as `clean,shuffle 8,salient 0.5`.

    Raises:
        ConfigError: something else.
    """
    variants = []
    for name in dict.fromkeys(" ".join(part.split()) for part in text.split(",")):
        match = re.fullmatch(rf"(clean)|(shuffle) ([1-9]\d*)|({'|'.join(MODES)}) (\d*\.?\d+)", name)
        if match is None:
            raise ConfigError(
                f"variants are clean, 'shuffle 8', 'random 0.2', 'salient 0.5' or 'non-salient 1'; got {name!r}."
            )
        variants.append(Variant(name, _change(name)))
    return variants


def _change(name: str) -> Callable[[Pixels, Mask, int], Changed] | None:
    kind, _, amount = name.partition(" ")
    if kind == "clean":
        return None
    if kind == "shuffle":
        return lambda pixels, mask, seed: shuffle(pixels, mask, int(amount), seed)
    return lambda pixels, mask, seed: occlude(pixels, mask, kind, float(amount), seed=seed)


def _is_papers(view: ModelView, dataset: str, used: int, config: GroupConfig) -> bool:
    """Whether the paper's numbers are of the same thing, up to which of VOC's pictures were drawn."""
    rules = GroupConfig()
    return (
        (view.model_id, view.input_size, Path(dataset).name) == (PAPER_MODEL, (224, 224), PAPER_DATASET)
        and (view.weights, view.control, view.identity.dtype) == (None, None, "float32")
        and used == PAPER_SCENES
        and (config.min_area, config.cover) == (rules.min_area, rules.cover)
    )


def _tables(
    usable: Mapping[str, NDArray[np.float64]], known: Mapping[str, Mapping[str, tuple[float, ...]]]
) -> tuple[dict[str, Table], dict[str, Table]]:
    """A table for each variant, with the paper's numbers where it has them, and one long table."""
    tables: dict[str, Table] = {}
    long: list[tuple[Cell, ...]] = []
    for name, values in usable.items():
        paper = known.get(name, {})
        header = ["layer", *(x for m in COLUMNS for x in ([f"{m}, paper", f"{m}, ours"] if m in paper else [m]))]
        rows: list[tuple[Cell, ...]] = []
        for layer in range(values.shape[1]):
            cells: list[Cell] = [layer + 1]
            for i, measure in enumerate(COLUMNS):
                every = values[:, layer, i]
                there = every[~np.isnan(every)]
                mean = float(there.mean()) if len(there) else None
                cells += [paper[measure][layer], mean] if measure in paper else [mean]
                grouped = values[:, layer, COLUMNS.index("clusters per object")] > 0
                ours = every[grouped & ~np.isnan(every)]
                long.append(
                    (name, layer + 1, measure, mean, len(there), float(ours.mean()) if len(ours) else None, len(ours))
                )
            rows.append(tuple(cells))
        tables["table" if name == "clean" else f"table-{name.replace(' ', '-')}"] = Table(tuple(header), tuple(rows))
    columns = (
        "variant",
        "layer",
        "measure",
        "mean",
        "scenes",
        "mean where there is a cluster",
        "scenes with a cluster",
    )
    return tables, {"curves": Table(columns, tuple(long))}


def tsne_panels(view: ModelView, scene: Scene, pixels: Pixels, mask: Mask, config: GroupConfig) -> Figure:
    """t-SNE of the patch tokens of a scene after four blocks, objects by color, points sized as configured."""
    n, grid = view.layers[0].n_prefix, view.layers[0].patch_grid
    outputs = block_outputs(view, pixels)
    stack = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().to(view.device) / 255
    joint = joint_attention(attention_weights(view, stack)[:, 0], n)
    owners = majority(mask, grid)
    names = {_BACKGROUND: "background"} | {i + 1: name for i, name in enumerate(scene.names)}
    panels: dict[str, Scatter] = {}
    last = len(outputs) - 1
    for block in shown_blocks(len(outputs)):
        places = embed_tokens(outputs[block], config.seed)[n:]
        weights = joint.joint[block][0, n:].numpy() if n else np.ones(len(places))
        sizes = np.ones(len(places)) if config.markers == "fixed" else weights / weights.mean()
        panels[f"after block {block} (of 0 to {last})"] = places, owners, sizes
    if config.markers == "fixed" and n:
        panels[f"after block {last}, by joint attention"] = places, owners, weights / weights.mean()
    return scatter_panels(pixels, panels, names)


def shown_blocks(n_layers: int) -> list[int]:
    """Blocks from 0 that stand as 0, 4, 8 and 11 do in twelve; the first and the last are among them."""
    return sorted({round(block * (n_layers - 1) / 11) for block in (0, 4, 8, 11)})


def majority(mask: Mask, grid: tuple[int, int]) -> NDArray[np.int64]:
    """The commonest instance number in each patch, [P]; of equal ones the smallest."""
    rows, cols = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    blocks = mask[: rows * grid[0], : cols * grid[1]].reshape(grid[0], rows, grid[1], cols).transpose(0, 2, 1, 3)
    return np.array([np.bincount(block.ravel()).argmax() for block in blocks.reshape(-1, rows * cols)])
