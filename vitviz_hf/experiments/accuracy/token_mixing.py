"""How much the class token needs its history, and what every patch token knows (section 4, Table 1, Fig. 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.accuracy.crops import to_crop
from vitviz_hf.experiments.accuracy.paper import VALIDATION
from vitviz_hf.experiments.accuracy.study import (
    UNKNOWN,
    Column,
    Flags,
    Labelled,
    Tally,
    accuracy,
    count_right,
    how_scored,
    is_right,
    what_scored,
)
from vitviz_hf.experiments.config import TokenMixingConfig
from vitviz_hf.experiments.figures import Figure, curves, heat_map
from vitviz_hf.experiments.result import Progress, Result
from vitviz_hf.experiments.tables import Cell, Interval, Table, paper_and_ours
from vitviz_hf.images import bytes_to_pixels
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.recording import Acts, record_with_logits
from vitviz_hf.reading.tokens import check_isolation, check_plain, final_norm, head_logits, isolated_logits
from vitviz_hf.sites import Site
from vitviz_hf.stream import Source

_TOP = (1, 5)
_NATURAL, _ISOLATED = "natural", "isolating CLS"
_MEANS = (
    "mean of patches, before the norm",
    "mean of patches, after the norm",
    "mean of all tokens, before the norm",
    "mean of all tokens, after the norm",
)
_AVERAGE, _MAXIMUM = "patch average", "patch maximum"
FIXED = 120
"""The patch whose accuracy the authors' notes tell; from 0, row by row."""
_FIXED = f"patch {FIXED}"
QUANTITIES = (_NATURAL, _ISOLATED, _AVERAGE, _MAXIMUM, *_MEANS, _FIXED)
# Top-1 and top-5 on ImageNet validation at 384 px: Table 1, and the authors' notes.
PAPER: Mapping[str, Mapping[int, Mapping[str, float]]] = {
    "ViT-B/16": {
        1: {
            _NATURAL: 84.20,
            _ISOLATED: 78.61,
            _AVERAGE: 75.75,
            _MAXIMUM: 80.16,
            _MEANS[1]: 83.40,
            _MEANS[3]: 83.40,
            _FIXED: 72.6,
        },
        5: {_NATURAL: 97.16, _ISOLATED: 94.18, _AVERAGE: 90.99, _MAXIMUM: 95.65},
    },
    "ViT-B/32": {1: {_NATURAL: 81.73, _MEANS[1]: 80.87}},
}
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class _Plan:
    """What can be measured on a model."""

    view: ModelView
    norm: str | None
    isolation: str
    """Why prefix tokens and patches cannot be isolated; empty if they can."""
    spans: tuple[tuple[int, int], ...]
    """Layers (from, to) in which they are isolated, for the sweep."""

    @property
    def columns(self) -> list[Column]:
        ways = [*((way, None) for way in (_NATURAL, _ISOLATED, *_MEANS)), *(("isolated", span) for span in self.spans)]
        return [Column(*way, k) for way in ways for k in _TOP] + [c for k in _TOP for c in self.patches(k)]

    def patches(self, k: int) -> list[Column]:
        rows, cols = self.view.layers[-1].patch_grid
        return [Column("patch", (r, c), k) for r in range(rows) for c in range(cols)]


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
    names: list[tuple[str, str]] = []
    pairs: list[tuple[list[Cell], list[Cell]]] = []
    places: list[tuple[Cell, ...]] = []
    steps: list[tuple[Cell, ...]] = []
    notes: list[str] = []
    counts: list[int] = []
    maps = {}
    for i, view in enumerate(views):
        plan = _plan(view, config.sweep)
        tally = _count(plan, source, config, work / str(i), progress)
        counts.append(tally.n_images)
        paper = PAPER.get(VALIDATION.model(view, source, tally.n_images), {})
        by_place = {k: _by_place(plan, tally, k) for k in _TOP}
        maps[view.model_id] = np.nanmean(by_place[1], 0).reshape(view.layers[-1].patch_grid)
        for k in _TOP:
            names.append((view.model_id, f"top-{k}"))
            own = _quantities(tally, by_place[k], k)
            pairs.append(([paper.get(k, {}).get(q) for q in QUANTITIES], [own[q] for q in QUANTITIES]))
        at = np.stack(np.unravel_index(np.arange(by_place[1].shape[1]), view.layers[-1].patch_grid), 1)
        accuracies = zip(*(np.nanmean(by_place[k], 0).tolist() for k in _TOP), strict=True)
        places += [(view.model_id, *place, *values) for place, values in zip(at.tolist(), accuracies, strict=True)]
        steps += _sweep(plan, tally)
        notes += [
            *how_scored(tally, source, [view]),
            *_lacking(plan),
            *VALIDATION.notes([view], source, tally.n_images),
        ]
    header, cells = paper_and_ours(QUANTITIES, pairs)
    notes += [
        "Isolating CLS: in all layers but the last, prefix tokens and patches do not see each other. Patch average and "
        "maximum: the head on each patch token in turn, over places; the maximum is the best place on these images. "
        "Means: the head on the mean token, taken before the final norm, or after it as the authors do. Heads that "
        "read several tokens get the same one for all of them.",
        f"Patch {FIXED} is counted from 0, row by row; '-' where there are fewer.",
    ]
    rows = tuple((*name, *row) for name, row in zip(names, cells, strict=True))
    tables = {"table": Table(("model", "accuracy, %", *header), rows, tuple(dict.fromkeys(notes)))}
    figures = {"figure": heat_map(maps, "top-1 accuracy of the head on each patch, %")}
    if steps:
        tables["table-sweep"] = Table(_SWEEP, tuple(steps), (_SWEEP_NOTE,))
        figures["sweep"] = _sweep_figure(steps)
    data = {"places": Table(("model", "row", "column", *(f"top-{k}, %" for k in _TOP)), tuple(places))}
    return Result("token-mixing", tables, figures, what_scored(views, min(counts)), data)


_SWEEP = (
    "model",
    "layers l",
    "isolated up to l, top-1, %",
    "isolated up to l, top-5, %",
    "alone after l, top-1, %",
    "alone after l, top-5, %",
)
_SWEEP_NOTE = (
    "Isolated up to l: in the first l layers prefix tokens and patches do not see each other, then all see all; l = 0 "
    "is the model as it is, and one layer less than all is isolating CLS. Alone after l: in the first l layers all see "
    "all, then the class token sees the prefix tokens only, and patches see patches."
)


def _plan(view: ModelView, sweep: bool) -> _Plan:
    norm, n = final_norm(view), len(view.layers)
    try:
        check_isolation(view)
    except ConfigError as error:
        return _Plan(view, norm, str(error), ())
    spans = [(0, stop) for stop in range(1, n + 1)] + [(start, n) for start in range(1, n)]
    return _Plan(view, norm, "", tuple(spans) if sweep else ())


def _lacking(plan: _Plan) -> list[str]:
    told = [f"'-' under isolating CLS: {plan.isolation}"] if plan.isolation else []
    if plan.norm is None:
        told.append(
            f"'-' after the norm: {plan.view.model_id} averages its patches before it normalizes, so that the mean of "
            "patches before the norm is what it does itself."
        )
    return told


def _count(plan: _Plan, source: Source, config: TokenMixingConfig, work: Path, progress: Progress | None) -> Tally:
    view, norm = plan.view, plan.norm
    site = Site(len(view.layers) - 1, "resid")

    def means(acts: Acts) -> list[Tensor | None]:
        both: list[Tensor | None] = []
        for some in (acts.patches, acts.values):
            both.append(head_logits(view, some.mean(1)))
            both.append(None if norm is None else head_logits(view, _normed(view, norm, some).mean(1), norm))
        return both

    def score(examples: list[Labelled], prepared: list[Tensor]) -> Flags:
        pixels = bytes_to_pixels(torch.stack(prepared).to(view.device))
        with torch.no_grad():
            acts, natural = record_with_logits(view, pixels, [site])
        isolated = None if plan.isolation else isolated_logits(view, pixels)
        ways = [natural, isolated, *means(acts[site])]
        ways += [isolated_logits(view, pixels, start, stop) for start, stop in plan.spans]
        targets = [e.targets[0] for e in examples]
        nothing = np.full(len(targets), UNKNOWN, np.uint8)
        flags = [nothing if logits is None else is_right(logits, targets, k) for logits in ways for k in _TOP]
        patches = acts[site].patches
        each = torch.cat([head_logits(view, some) for some in patches.flatten(0, 1).split(_TOKENS_AT_ONCE)])
        repeated = [t for t in targets for _ in range(patches.shape[1])]
        by_patch = [is_right(each, repeated, k).reshape(len(targets), -1) for k in _TOP]
        return np.concatenate([np.stack(flags, 1), *by_patch], 1)

    def prepare(example: Labelled) -> Tensor:
        return to_crop(view, example.image)

    return count_right([view], source, plan.columns, prepare, score, config.batch, config.limit, work, progress)


def _normed(view: ModelView, norm: str, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        normed: Tensor = view.module.get_submodule(norm)(tokens)
    return normed


def _by_place(plan: _Plan, tally: Tally, k: int) -> NDArray[np.float64]:
    """100 where the head on a patch is right, else 0, nan where its logits are not finite, [pictures, P]."""
    right = np.stack([tally.flags(*column) for column in plan.patches(k)], 1)
    values = np.where(right <= 1, 100.0 * right, np.nan)
    return values[~np.isnan(values).all(1)]


def _quantities(tally: Tally, by_place: NDArray[np.float64], k: int) -> dict[str, Cell]:
    found: dict[str, Cell] = {way: accuracy(tally.flags(way, top=k), 0) for way in (_NATURAL, _ISOLATED, *_MEANS)}
    fixed = by_place[:, FIXED] if by_place.shape[1] > FIXED else np.zeros(0)
    known = fixed[~np.isnan(fixed)]
    best = float(np.nanmean(by_place, 0)[~np.isnan(by_place).all(0)].max())
    average = _mean_interval(np.nanmean(by_place, 1))
    return found | {_AVERAGE: average, _MAXIMUM: best, _FIXED: _mean_interval(known) if len(known) else None}


def _sweep(plan: _Plan, tally: Tally) -> list[tuple[Cell, ...]]:
    n = len(plan.view.layers)

    def cells(start: int, stop: int) -> list[Cell]:
        span = (start, stop) if start < stop else None
        return [accuracy(tally.flags("isolated" if span else _NATURAL, span, k), 0) for k in _TOP]

    return [(plan.view.model_id, i, *cells(0, i), *cells(i, n)) for i in range(n + 1)] if plan.spans else []


def _sweep_figure(steps: Sequence[tuple[Cell, ...]]) -> Figure:
    panels: dict[str, dict[str, tuple[NDArray[np.float64], ...]]] = {}
    for title, column in (("isolated up to layer l", 2), ("alone after layer l", 4)):
        for model in dict.fromkeys(str(row[0]) for row in steps):
            own = [(row[1], row[column]) for row in steps if row[0] == model]
            drawn = [(i, x.value, x.low, x.high) for i, x in own if isinstance(x, Interval)]
            panels.setdefault(title, {})[model] = tuple(np.array(drawn, dtype=float).T)
    return curves(panels, "layers l", "top-1 accuracy, %")  # type: ignore[arg-type]


def _mean_interval(values: NDArray[np.float64]) -> Interval | None:
    if not len(values):
        return None
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, mean, mean)
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, batch=50, method="percentile", random_state=0)
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high))
