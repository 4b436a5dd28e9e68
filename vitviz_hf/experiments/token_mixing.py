"""How much the class token needs its history, and what every patch token knows (section 4, Table 1, Fig. 7)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from vitviz_hf.config import TokenMixingConfig
from vitviz_hf.experiments.accuracy import (
    UNKNOWN,
    Example,
    Flags,
    Progress,
    Tally,
    accuracy,
    count_right,
    how_scored,
    is_right,
)  # fmt: skip
from vitviz_hf.experiments.pixels import model_bytes
from vitviz_hf.experiments.result import Result, describe_run
from vitviz_hf.figures import heat_map
from vitviz_hf.maps import split_tokens
from vitviz_hf.model import ModelView
from vitviz_hf.recording import record_with_logits
from vitviz_hf.sites import Site
from vitviz_hf.stream import Source
from vitviz_hf.tables import Cell, Interval, Table, paper_and_ours
from vitviz_hf.tokens import check_plain, head_logits, isolated_logits, lone_prefix

_WAYS = ("natural", "isolating CLS", "mean of patches", "mean of all tokens")
_TOP = (1, 5)
# ViT-B/16 at 384 px on ImageNet validation: natural, isolating CLS, patch average, patch maximum; Table 1.
PAPER = {1: (84.20, 78.61, 75.75, 80.16), 5: (97.16, 94.18, 90.99, 95.65)}
PAPER_MODEL = "google/vit-base-patch16-384"
_TOKENS_AT_ONCE = 8192


def run(
    views: Sequence[ModelView], source: Source, config: TokenMixingConfig, work: Path, progress: Progress | None = None
) -> Result:
    """Accuracy with and without mixing, for each model.

    Raises:
        ConfigError: a model is no plain vision transformer.
        NoClassifierError: a model has no trained classifier.
    """
    for view in views:
        check_plain(view)
    manifest = describe_run("token-mixing", views, source, config)
    names: list[tuple[str, str]] = []
    pairs: list[tuple[tuple[Cell, ...], tuple[Cell, ...]]] = []
    notes: list[str] = []
    maps = {}
    for i, view in enumerate(views):
        tally = _count(view, source, config, work / str(i), progress)
        shape = view.layers[-1].patch_grid
        for k in _TOP:
            right = np.stack([tally.flags(name) for name in _patch_columns(view, k)], 1).astype(float)
            right = right[right[:, 0] != UNKNOWN]
            by_place = 100 * right.mean(0)
            if k == 1:
                maps[view.model_id] = by_place.reshape(shape)
            ways = [accuracy(tally.flags(f"{way} {k}"), 0) for way in _WAYS]
            ours = (*ways[:2], _mean_interval(100 * right.mean(1)), float(by_place.max()), *ways[2:])
            paper = PAPER[k] if view.model_id == PAPER_MODEL else (None,) * 4
            names.append((view.model_id, f"top-{k}"))
            pairs.append(((*paper, None, None), ours))
        notes += how_scored(tally, source, [view])
    quantities = ("natural", "isolating CLS", "patch average", "patch maximum", "mean of patches", "mean of all tokens")
    header, cells = paper_and_ours(quantities, pairs)
    notes += [
        "Isolating CLS: in all layers but the last, prefix tokens and patches do not see each other. Patch average and "
        "maximum: the head on each patch token in turn, over places; the maximum is the best place on these images.",
        f"The paper's numbers are for ViT-B/16 at 384 px on ImageNet validation ({PAPER_MODEL}).",
    ]
    rows = tuple((*name, *row) for name, row in zip(names, cells, strict=True))
    table = Table(("model", "accuracy, %", *header), rows, tuple(dict.fromkeys(notes)))
    return Result(
        "token-mixing",
        {"table": table},
        {"figure": heat_map(maps, "top-1 accuracy of the head on each patch, %")},
        manifest,
    )


def _patch_columns(view: ModelView, k: int) -> list[str]:
    rows, cols = view.layers[-1].patch_grid
    return [f"patch {r},{c} {k}" for r in range(rows) for c in range(cols)]


def _count(view: ModelView, source: Source, config: TokenMixingConfig, work: Path, progress: Progress | None) -> Tally:
    prefix = lone_prefix(view)
    site = Site(len(view.layers) - 1, "resid")
    columns = [f"{way} {k}" for way in _WAYS for k in _TOP] + [c for k in _TOP for c in _patch_columns(view, k)]

    def score(examples: list[Example], prepared: list[Tensor]) -> Flags:
        pixels = torch.stack(prepared).to(view.device).float() / 255
        with torch.no_grad():
            acts, natural = record_with_logits(view, pixels, [site])
        tokens = acts[site]
        patches = split_tokens(view, tokens, site)[1]
        ways = [
            natural, isolated_logits(view, pixels, prefix), head_logits(view, patches.mean(1)),
            head_logits(view, tokens.mean(1)),
        ]  # fmt: skip
        targets = [e.targets[0] for e in examples]
        flags = [is_right(logits, targets, k) for logits in ways for k in _TOP]
        each = torch.cat([head_logits(view, some) for some in patches.flatten(0, 1).split(_TOKENS_AT_ONCE)])
        repeated = [t for t in targets for _ in range(patches.shape[1])]
        by_patch = [is_right(each, repeated, k).reshape(len(targets), -1) for k in _TOP]
        return np.concatenate([np.stack(flags, 1), *by_patch], 1)

    return count_right(
        [view], source, columns, lambda e: model_bytes(view, e.image), score, config.batch, config.limit, work, progress
    )


def _mean_interval(shares: NDArray[np.float64]) -> Interval:
    if len(shares) < 2 or np.ptp(shares) == 0:
        return Interval(float(shares.mean()), float(shares.mean()), float(shares.mean()))
    found = stats.bootstrap((shares,), np.mean, n_resamples=2000, batch=50, method="percentile", random_state=0)
    low, high = found.confidence_interval
    return Interval(float(shares.mean()), float(low), float(high))
