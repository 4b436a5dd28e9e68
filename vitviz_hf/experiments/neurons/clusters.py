"""Whether patches of one object group together, over layers: DBSCAN on block outputs and measures of the clusters.

Source: arXiv:2210.07646, its released notebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import DBSCAN
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from vitviz_hf.errors import ConfigError
from vitviz_hf.images import Floats

MEASURES = (
    "silhouette",
    "purity",
    "in-cluster cosine",
    "in-object cosine",
    "unique-label rate",
    "clusters per object",
    "token ratio",
    "one-to-one",
    "between-object cosine",
)
CONTROLLED = ("silhouette", "purity", "unique-label rate")
"""Measures that `permuted_measures` gives too."""
_MIN_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Grouping:
    """Clusters of the object tokens of one picture in one layer."""

    labels: NDArray[np.int64]
    """Cluster of each token of all objects in turn; -1 is noise."""
    eps: float
    measures: dict[str, float]
    """By the names in `MEASURES`; nan where it does not exist."""


def instances_to_patches(
    mask: NDArray[np.int64],
    grid: tuple[int, int],
    min_area: float = 0.14**2,
    cover: float = 0.4,
    min_tokens: int = 3,
    overlap: str = "larger",
) -> dict[int, NDArray[np.int64]] | None:
    """Patches of each object, or None if the picture cannot be used.

    An object counts if it has more than `min_area` of the picture; a patch is its own if it covers at least `cover`
    of it. A picture needs two objects, each with `min_tokens` patches.

    Args:
        mask: [H, W] instance numbers, 0 is background.
        grid: (rows, columns) of the patches.
        overlap: a patch of which two objects cover enough goes to the `larger` part; with `sum` to the object, if any,
            whose number is the sum of theirs, as the released code has it.

    Returns:
        Instance number -> patches in order.

    Raises:
        ConfigError: another `overlap`.
    """
    if overlap not in ("larger", "sum"):
        raise ConfigError(f"overlap must be 'larger' or 'sum'; got {overlap!r}.")
    rows, cols = grid
    height, width = mask.shape[0] // rows, mask.shape[1] // cols
    kept = [n for n in np.unique(mask).tolist() if n > 0 and (mask == n).sum() > min_area * mask.size]
    if len(kept) < 2:
        return None
    blocks = mask[: rows * height, : cols * width].reshape(rows, height, cols, width)
    shares = np.stack([(blocks == n).mean((1, 3)).ravel() for n in kept])
    # The small slack makes 0.4 of a block of 16 x 16 what the released rounding floor(share + 0.6) takes.
    enough, numbers = shares >= cover - 1e-9, np.array(kept)[:, None]
    if overlap == "sum":
        own = (enough * numbers).sum(0) == numbers
    else:
        own = enough & (shares.argmax(0) == np.arange(len(kept))[:, None])
    objects = {n: np.flatnonzero(mine) for n, mine in zip(kept, own, strict=True)}
    return objects if all(len(tokens) >= min_tokens for tokens in objects.values()) else None


def group_tokens(tokens: Floats, objects: Sequence[NDArray[np.int64]], names: Sequence[str]) -> Grouping:
    """Cluster the tokens of all objects, and measure the clusters.

    The radius of DBSCAN is the mean distance of consecutive tokens of an object, averaged over objects; tokens that are
    no object's are left out. Conventions: without a cluster silhouette and in-cluster cosine are -1; with one cluster
    silhouette is 0.

    Args:
        tokens: [P, D] patch tokens of a block's output.
        objects: patches of each object, as from `instances_to_patches`.
        names: class of each object.
    """
    steps = [np.linalg.norm(np.diff(tokens[o], axis=0), axis=1).mean() for o in objects]
    eps = float(np.mean(steps))
    used = tokens[np.concatenate(objects)]
    owner = np.repeat(np.arange(len(objects)), [len(o) for o in objects])
    # Equal tokens are no distance apart, and DBSCAN takes no radius of 0.
    labels = DBSCAN(eps=max(eps, 1e-12), min_samples=_MIN_SAMPLES).fit(used).labels_
    n = int(labels.max()) + 1
    counts = np.array([[((labels == c) & (owner == o)).sum() for o in range(len(objects))] for c in range(n)])
    unit = used / np.maximum(np.linalg.norm(used, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    own = [_mean_pair(cosines, owner == o) for o in range(len(objects))]
    clusters = [_mean_pair(cosines, labels == c) for c in range(n)]
    between = [
        cosines[np.ix_(owner == a, owner == b)].mean() for a in range(len(objects)) for b in range(a + 1, len(objects))
    ]
    measures = {
        "silhouette": _silhouette(used, labels),
        "purity": counts.max(1).sum() / len(used) if n else 0.0,
        "in-cluster cosine": float(np.nanmean(clusters)) if n and not np.isnan(clusters).all() else -1.0,
        "in-object cosine": float(np.nanmean(own)),
        "unique-label rate": len({names[o] for o in counts.argmax(1)}) / len(set(names)) if n else 0.0,
        "clusters per object": n / len(objects),
        "token ratio": float((labels >= 0).mean()),
        "one-to-one": float(counts[linear_sum_assignment(-counts)].sum() / len(used)) if n else 0.0,
        "between-object cosine": float(np.mean(between)) if between else float("nan"),
    }
    return Grouping(labels, eps, {k: float(v) for k, v in measures.items()})


def permuted_measures(
    tokens: Floats, objects: Sequence[NDArray[np.int64]], names: Sequence[str], labels: NDArray[np.int64], seed: int
) -> dict[str, float]:
    """What chance gives, by the names in `CONTROLLED`.

    Purity and unique-label rate: which object each token belongs to is permuted, with as many tokens for each; radius,
    clusters and measures follow anew. Silhouette: the found labels are permuted among the tokens of clusters.

    Args:
        tokens, objects, names: as in `group_tokens`.
        labels: as it found them.
    """
    rng = np.random.default_rng(seed)
    mixed = np.split(rng.permutation(np.concatenate(objects)), np.cumsum([len(o) for o in objects])[:-1])
    chance = group_tokens(tokens, [np.sort(o) for o in mixed], names).measures
    moved = labels.copy()
    moved[labels >= 0] = rng.permutation(labels[labels >= 0])
    return {**{m: chance[m] for m in CONTROLLED}, "silhouette": _silhouette(tokens[np.concatenate(objects)], moved)}


def _silhouette(tokens: Floats, labels: NDArray[np.int64]) -> float:
    """By cosine, of the tokens that are in a cluster; -1 without a cluster, 0 with one."""
    clustered, n = labels >= 0, int(labels.max()) + 1
    if n > 1 and clustered.sum() > n:
        return float(silhouette_score(tokens[clustered], labels[clustered], metric="cosine"))
    return 0.0 if n == 1 else -1.0


def _mean_pair(cosines: Floats, members: NDArray[np.bool_]) -> float:
    own = cosines[np.ix_(members, members)]
    upper = own[np.triu_indices(len(own), 1)]
    return float(upper.mean()) if len(upper) else float("nan")


def embed_tokens(tokens: Floats, seed: int = 0) -> Floats:
    """t-SNE of the tokens [T, D] of one picture in the plane, [T, 2], with the settings of the released notebook."""
    perplexity = min(30.0, (len(tokens) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", learning_rate=200, max_iter=1000, random_state=seed)
    return np.asarray(tsne.fit_transform(tokens))
