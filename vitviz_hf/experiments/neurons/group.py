"""Grouping of patches by object over layers, clean, occluded and shuffled, and t-SNE pictures (arXiv:2210.07646)."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitviz_hf.errors import DatasetError, NonFiniteError
from vitviz_hf.experiments.bootstrap import bootstrap
from vitviz_hf.experiments.config import GroupConfig, Variant
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
from vitviz_hf.experiments.perturb import Changed, Mask, Photo, from_photo, mask_to_model, occlude, shuffle, to_photo
from vitviz_hf.experiments.result import Progress, Result, describe_run
from vitviz_hf.experiments.tables import Cell, Interval, Table
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.attention import attention_weights, joint_attention
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import activations
from vitviz_hf.reading.tokens import check_sequence
from vitviz_hf.sites import Site

_PLOTTED = ("silhouette", "purity", "in-cluster cosine", "in-object cosine", "unique-label rate")
# ViT-B/16 on Pascal VOC 2009, 361 pictures; digitized from the figures (silhouette and purity to 0.001, cosines 0.002).
PAPER: Mapping[Variant, Mapping[str, tuple[float, ...]]] = {
    Variant("clean"): {
        "silhouette": (0.046, 0.094, 0.121, 0.115, 0.112, 0.127, 0.146, 0.181, 0.212, 0.240, 0.255, 0.265),
        "purity": (0.558, 0.574, 0.609, 0.614, 0.624, 0.637, 0.645, 0.658, 0.667, 0.672, 0.665, 0.670),
        "in-cluster cosine": (0.316, 0.369, 0.392, 0.391, 0.390, 0.400, 0.422, 0.466, 0.514, 0.584, 0.682, 0.794),
        "in-object cosine": (0.299, 0.329, 0.334, 0.343, 0.357, 0.363, 0.379, 0.409, 0.456, 0.525, 0.636, 0.755),
        "unique-label rate": (0.709, 0.772, 0.817, 0.811, 0.797, 0.789, 0.803, 0.812, 0.823, 0.829, 0.826, 0.840),
    },
    Variant("shuffle", 2): {
        "silhouette": (0.047, 0.081, 0.107, 0.110, 0.113, 0.117, 0.139, 0.162, 0.194, 0.212, 0.219, 0.231),
        "purity": (0.541, 0.562, 0.593, 0.603, 0.612, 0.615, 0.618, 0.625, 0.630, 0.632, 0.631, 0.632),
        "in-cluster cosine": (0.304, 0.344, 0.362, 0.367, 0.375, 0.373, 0.399, 0.434, 0.481, 0.543, 0.632, 0.765),
        "in-object cosine": (0.291, 0.312, 0.313, 0.319, 0.329, 0.336, 0.352, 0.378, 0.415, 0.476, 0.590, 0.726),
        "unique-label rate": (0.695, 0.767, 0.813, 0.827, 0.800, 0.773, 0.777, 0.781, 0.795, 0.801, 0.802, 0.804),
    },
    Variant("shuffle", 8): {
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


@dataclass(slots=True)
class _Measured:
    """What was found on the scenes."""

    by_variant: dict[Variant, list[NDArray[np.float64]]]
    left_out: dict[Variant, int]
    """Scenes of which a variant leaves too little."""
    non_finite: list[str]
    """Scene by scene what the model gave."""
    first: tuple[Scene, Photo, Mask] | None = None
    n_seen: int = 0
    n_used: int = 0


def run_group(
    view: ModelView, dataset: str, scenes: Iterable[Scene], config: GroupConfig, progress: Progress | None = None
) -> Result:
    """Measures of the grouping for every layer and variant, and t-SNE of the first scene.

    Raises:
        ConfigError: a variant that does not exist, or no one sequence of tokens goes through all blocks.
        DatasetError: no scene has two objects that are large enough.
    """
    check_sequence(view)
    found = _measure_scenes(view, scenes, config, progress)
    if found.non_finite:
        few = f"Left out: {len(found.non_finite)} of {found.n_seen} scenes."
        warnings.warn(f"{found.non_finite[0]} {few}", RuntimeWarning, stacklevel=2)
    if found.first is None:
        raise DatasetError(
            f"none of {found.n_seen} scenes of {dataset!r} has two objects of at least {config.min_area:.1%} of the "
            "picture, each with three patches of its own."
        )
    usable = {variant: np.stack(values) for variant, values in found.by_variant.items() if values}
    if not usable:
        names = ", ".join(map(str, found.by_variant))
        raise DatasetError(f"in none of {found.n_used} scenes enough was left of two objects in {names}.")
    tables, data = _tables(usable, PAPER if _is_papers(view, dataset, found.n_used, config) else {}, config.seed)
    notes = _notes(found, dataset, config)
    steps = np.arange(1.0, len(view.layers) + 1)
    panels = {
        m: {str(variant): (steps, v[:, :, COLUMNS.index(m)].mean(0), None, None) for variant, v in usable.items()}
        for m in _PLOTTED
    }
    drawn = tsne_panels(view, *found.first, config)
    return Result(
        "group",
        {name: Table(t.columns, t.rows, notes) for name, t in tables.items()},
        {"figure": curves(panels, "layers passed", "mean over scenes"), "tsne": drawn},
        describe_run("group", [view], None, config, SOURCE) | {"dataset": dataset, "scenes": found.n_used},
        data,
    )


def _measure_scenes(
    view: ModelView, scenes: Iterable[Scene], config: GroupConfig, progress: Progress | None
) -> _Measured:
    """All variants of the scenes that can be used, until there are enough.

    Raises:
        NonFiniteError: the model is on none of them finite.
    """
    found = _Measured({v: [] for v in config.variants}, dict.fromkeys(config.variants, 0), [])
    for scene in scenes:
        found.n_seen += 1
        photo = to_photo(view, scene.image)
        mask = mask_to_model(view, scene.mask)
        try:
            measured = _measure_variants(view, photo, mask, scene.names, config, found.n_used)
        except NonFiniteError as error:
            found.non_finite.append(str(error))
            continue
        if measured is None:
            continue
        found.first = found.first or (scene, photo, mask)
        for variant, values in measured.items():
            if values is None:
                found.left_out[variant] += 1
            else:
                found.by_variant[variant].append(values)
        found.n_used += 1
        if progress:
            progress(found.n_used, config.limit or 0)
        if found.n_used == config.limit:
            break
    if found.non_finite and len(found.non_finite) == found.n_seen:
        raise NonFiniteError(f"{found.non_finite[0]} So it is on all of {found.n_seen} scenes; load it in float32.")
    return found


def _notes(found: _Measured, dataset: str, config: GroupConfig) -> tuple[str, ...]:
    left_out = ", ".join(f"{variant} {n}" for variant, n in found.left_out.items())
    return (
        f"{found.n_used} of {found.n_seen} scenes of {dataset} have two objects or more that are large enough. Left "
        f"out of a variant because too little was left of its objects: {left_out}. "
        f"Seed {config.seed}; Pascal VOC is read in a random order."
        + (f" Left out: {len(found.non_finite)} scenes on which {found.non_finite[0]}" if found.non_finite else ""),
        "Layers are counted from 1, as in the paper's curves; t-SNE names blocks from 0, so block b is layer b + 1. "
        "Means over scenes; -1 stands for no cluster in silhouette and in-cluster cosine, which pulls them down: "
        "curves.csv has the counts and the means without.",
        "Permuted: what chance gives. For purity and unique-label rate, which object each token belongs to is permuted "
        "(as many tokens for each, the same in every layer), and the radius of DBSCAN, the clusters and the measure "
        "are computed anew. For silhouette, which depends on the objects only through the radius, the labels of the "
        "clusters are permuted among the tokens that are in one.",
    )


def _measure_variants(
    view: ModelView, photo: Photo, mask: Mask, names: Sequence[str], config: GroupConfig, number: int
) -> dict[Variant, NDArray[np.float64] | None] | None:
    """`group_scene` of each variant; None if the clean picture cannot be used."""
    clean = group_scene(view, photo, mask, names, config, number)
    if clean is None:
        return None
    measured: dict[Variant, NDArray[np.float64] | None] = {}
    for variant in config.variants:
        measured[variant] = clean
        if variant.amount is not None:
            changed = _changed(variant, photo, mask, config.seed + number)
            measured[variant] = group_scene(view, changed.photo, changed.mask, names, config, number)
    return measured


def group_scene(
    view: ModelView, photo: Photo, mask: Mask, names: Sequence[str], config: GroupConfig, number: int
) -> NDArray[np.float64] | None:
    """All `COLUMNS` of one picture by layer, [L, columns]; None if it has not two objects that are large enough.

    Args:
        photo: as the model sees it.
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
    for tokens in block_outputs(view, photo)[:, view.layers[0].n_prefix :]:
        grouping = group_tokens(tokens, owned, classes)
        chance = permuted_measures(tokens, owned, classes, grouping.labels, config.seed + number)
        found = grouping.measures | {f"{m}, permuted": value for m, value in chance.items()}
        rows.append([found[column] for column in COLUMNS])
    return np.array(rows)


def block_outputs(view: ModelView, photo: Photo) -> NDArray[np.float32]:
    """Outputs of all blocks for one picture, [L, T, D].

    Raises:
        NonFiniteError: they are not finite.
    """
    sites = [Site(i, "resid") for i in range(len(view.layers))]
    acts = activations(view, from_photo(view, photo), sites)
    outputs = np.stack([acts[site].values[0].float().cpu().numpy() for site in sites])
    if not np.isfinite(outputs).all():
        raise NonFiniteError(f"blocks of {name_precision(view)} give NaN or infinite values.")
    return outputs


def _changed(variant: Variant, photo: Photo, mask: Mask, seed: int) -> Changed:
    assert variant.amount is not None
    if variant.kind == "shuffle":
        return shuffle(photo, mask, int(variant.amount), seed)
    return occlude(photo, mask, variant.kind, variant.amount, seed=seed)


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
    usable: Mapping[Variant, NDArray[np.float64]],
    known: Mapping[Variant, Mapping[str, tuple[float, ...]]],
    seed: int,
) -> tuple[dict[str, Table], dict[str, Table]]:
    """A table for each variant, with the paper's numbers where it has them, and one long table."""
    tables: dict[str, Table] = {}
    long: list[tuple[Cell, ...]] = []
    for variant, values in usable.items():
        paper = known.get(variant, {})
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
                grouped_mean = float(ours.mean()) if len(ours) else None
                long.append((str(variant), layer + 1, measure, mean, len(there), grouped_mean, len(ours)))
            rows.append(tuple(cells))
        ending = "" if variant.amount is None else f"-{variant.kind}-{variant.amount:.15g}"
        tables[f"table{ending}"] = Table(tuple(header), tuple(rows))
    columns = (
        "variant",
        "layer",
        "measure",
        "mean",
        "scenes",
        "mean where there is a cluster",
        "scenes with a cluster",
    )
    return tables, {"curves": Table(columns, tuple(long)), "change": _change(usable, seed)}


def _change(usable: Mapping[Variant, NDArray[np.float64]], seed: int) -> Table:
    """How much the plotted measures rise from the first layer to the last, over scenes that have both."""
    rows: list[tuple[Cell, ...]] = []
    for variant, values in usable.items():
        for measure in _PLOTTED:
            gaps = np.diff(values[:, [0, -1], COLUMNS.index(measure)])[:, 0]
            gaps = gaps[~np.isnan(gaps)]
            rows.append((str(variant), measure, len(gaps), _mean(gaps, seed)))
    return Table(("variant", "measure", "scenes", "last minus first"), tuple(rows))


def _mean(values: NDArray[np.float64], seed: int) -> Interval | None:
    return bootstrap(lambda some: float(values[some].mean()), len(values), seed)


def tsne_panels(view: ModelView, scene: Scene, photo: Photo, mask: Mask, config: GroupConfig) -> Figure:
    """t-SNE of the patch tokens of a scene after four blocks, objects by color, points sized as configured."""
    n, grid = view.layers[0].n_prefix, view.layers[0].patch_grid
    outputs = block_outputs(view, photo)
    joint = joint_attention(attention_weights(view, from_photo(view, photo))[0], n)
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
    return scatter_panels(photo, panels, names)


def shown_blocks(n_layers: int) -> list[int]:
    """Blocks from 0 that stand as 0, 4, 8 and 11 do in twelve; the first and the last are among them."""
    return sorted({round(block * (n_layers - 1) / 11) for block in (0, 4, 8, 11)})


def majority(mask: Mask, grid: tuple[int, int]) -> NDArray[np.int64]:
    """The commonest instance number in each patch, [P]; of equal ones the smallest."""
    rows, cols = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    blocks = mask[: rows * grid[0], : cols * grid[1]].reshape(grid[0], rows, grid[1], cols).transpose(0, 2, 1, 3)
    return np.array([np.bincount(block.ravel()).argmax() for block in blocks.reshape(-1, rows * cols)])
