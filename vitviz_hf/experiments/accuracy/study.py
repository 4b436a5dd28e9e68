"""Accuracy under changes of the picture or the model: one pass over a dataset, one flag for each picture and change."""

import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import DatasetError, ImageError
from vitviz_hf.experiments.accuracy.classifiers import find_places, zero_shot_note
from vitviz_hf.experiments.accuracy.crops import crop_logits
from vitviz_hf.experiments.accuracy.labels import LabelMatcher
from vitviz_hf.experiments.result import Progress
from vitviz_hf.experiments.tables import Interval
from vitviz_hf.images import open_image
from vitviz_hf.manifest import replace_file
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.batches import Batch, Made, read_batches
from vitviz_hf.reading.classification import not_finite
from vitviz_hf.stream import Row, Source

Flags = NDArray[np.uint8]
UNKNOWN, NOT_FINITE = 255, 254
_CHECKPOINT_SECONDS = 60.0
_DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled picture."""

    row: Row
    image: Image.Image
    targets: tuple[int | None, ...]
    """Place of its class among the labels of each model; None where a model does not know it."""
    remarks: list[str] = field(default_factory=list)
    """What `prepare` has to say about it: each is counted below the table."""


class Column(NamedTuple):
    """What a flag is about; `str(column)` leaves out the model and `top`."""

    form: str
    """Of the picture or of the model."""
    detail: str | float | tuple[int, int] | None = None
    """Which of several such forms."""
    top: int = 1
    """Right is to be among so many."""
    model: int | None = 0
    """Which of the compared ones; None for a fact about the picture."""

    def __str__(self) -> str:
        match self.detail:
            case None:
                return self.form
            case str():
                return f"{self.form}: {self.detail}"
            case tuple():
                return f"{self.form} {self.detail[0]},{self.detail[1]}"
        return f"{self.form} {self.detail:g}"


@dataclass(slots=True)
class Tally:
    """What a pass found: 1 right, 0 wrong, 254 where logits are not finite, 255 where there is nothing to score."""

    columns: tuple[Column, ...]
    blocks: list[Flags] = field(default_factory=list)
    n_rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> pictures."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Remark -> how often it was made."""
    position: Any = None

    def flags(
        self, form: str, detail: str | float | tuple[int, int] | None = None, top: int = 1, model: int | None = 0
    ) -> Flags:
        """Of one `Column`, [n]."""
        i = self.columns.index(Column(form, detail, top, model))
        return np.concatenate([block[:, i] for block in self.blocks])

    @property
    def n_images(self) -> int:
        """Pictures that were scored."""
        return sum(map(len, self.blocks))

    def of_model(self, m: int) -> list[int]:
        """Places of a model's columns."""
        return [i for i, column in enumerate(self.columns) if column.model == m]


def count_right(
    views: Sequence[ModelView],
    source: Source,
    columns: Sequence[Column],
    prepare: Callable[[Labelled], Any],
    score: Callable[[list[Labelled], list[Any]], Flags],
    batch: int,
    limit: int | None,
    work: Path,
    progress: Progress | None = None,
) -> Tally:
    """Read a labelled dataset once.

    Args:
        prepare: runs in threads ahead of the models; a text that it returns instead is the reason to leave it out.
        score: examples and what was prepared for them -> flags [B, number of columns].
        limit: rows to read; None for all.
        work: folder for checkpoints; what lies there is gone on with (`claim` made sure that it is of this run).

    Raises:
        DatasetError: no picture could be scored, or the stream failed; what was read is kept in `work`.
        ModelError: the logits of a model are never finite.

    Warns:
        UserWarning: the logits of a model are not finite for some pictures; these are left out there, and counted.
    """
    matchers = [LabelMatcher(view.labels or (), source.class_names) for view in views]
    tally = _load(work, columns)
    saved, warned = time.monotonic(), set[int]()
    n_all = min(x for x in (source.n_rows, limit, 10**12) if x is not None)

    def ready(row: Row) -> Made[tuple[Labelled, Any]]:
        example = _labelled(row, matchers)
        if isinstance(example, str):
            return None, example
        prepared = prepare(example)
        return (example, prepared), prepared if isinstance(prepared, str) else ""

    with ThreadPoolExecutor(_DECODERS) as pool:
        rows, left = source.read(0, 1, tally.position), None if limit is None else max(0, limit - tally.n_rows)
        try:
            for some in read_batches(rows, lambda row: pool.submit(ready, row), batch, left):
                if _take_in(tally, some, score):
                    warned |= _warn(tally, views, warned)
                if progress:
                    progress(tally.n_rows, n_all if n_all < 10**12 else 0)
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    _save(tally, work)
                    saved = time.monotonic()
        finally:
            _save(tally, work)
    _check_scored(tally, views, source)
    return tally


def _labelled(row: Row, matchers: Sequence[LabelMatcher]) -> Labelled | str:
    """A row with its place among the labels of each model, or why it is left out."""
    targets = tuple(m.find(row) for m in matchers)
    if all(t is None for t in targets):
        if any(len(m.fitting(row)) > 1 for m in matchers):
            return f"the label {row.label or row.wnid!r} fits several of the model's classes"
        return f"class {row.label or row.wnid or 'unknown'!r} is not among the model's labels"
    try:
        return Labelled(row, open_image(row.data), targets)
    except ImageError:
        return "the image cannot be read"


def _take_in(
    tally: Tally, batch: Batch[tuple[Labelled, Any]], score: Callable[[list[Labelled], list[Any]], Flags]
) -> bool:
    """Score a batch; whether there was anything to score."""
    tally.n_rows += len(batch.items)
    tally.position = batch.position
    tally.left_out.update(why for _, why in batch.left_out)
    tally.remarks.update(remark for item in batch.items if item.value for remark in item.value[0].remarks)
    usable = [pair for _, pair in batch.usable]
    if usable:
        tally.blocks.append(score([e for e, _ in usable], [p for _, p in usable]))
    return bool(usable)


def _check_scored(tally: Tally, views: Sequence[ModelView], source: Source) -> None:
    """Raise if nothing was scored, or a model is finite on no picture."""
    if not tally.n_images:
        reasons = [f"{n} because {why}" for why, n in tally.left_out.most_common(3)]
        reasons += [f"{remark}: {n}" for remark, n in tally.remarks.most_common(3)]
        raise DatasetError(f"no picture of {source.dataset!r} could be scored: {'; '.join(reasons) or 'it is empty'}.")
    flags = np.concatenate(tally.blocks)
    for m, view in enumerate(views):
        own = flags[:, tally.of_model(m)]
        if (own == NOT_FINITE).any() and not (own <= 1).any():
            raise not_finite(view, "every picture")


def _warn(tally: Tally, views: Sequence[ModelView], warned: set[int]) -> set[int]:
    """Tell of models that gave no finite logits for the first time."""
    block = tally.blocks[-1]
    broken = {m for m in range(len(views)) if (block[:, tally.of_model(m)] == NOT_FINITE).any()} - warned
    for m in broken:
        warnings.warn(
            f"{views[m].model_id} in {views[m].identity.dtype} gives NaN or infinite logits for some pictures; they "
            "are left out there, and counted below the table.",
            stacklevel=3,
        )
    return broken


def is_right(logits: Tensor, targets: Sequence[int | None], k: int) -> Flags:
    """Whether each target is among the k highest logits [B, N]; of equal ones the first is the higher, as for argmax.

    Returns:
        [B]: 1 or 0; 254 for logits that are not all finite, 255 where there is no target.
    """
    flags = np.full(len(targets), UNKNOWN, dtype=np.uint8)
    known = [i for i, target in enumerate(targets) if target is not None]
    if known:
        chosen = logits[known].float()
        places = torch.tensor([[targets[i]] for i in known], device=logits.device)
        own = chosen.gather(1, places)
        before = torch.arange(chosen.shape[1], device=logits.device)[None] < places
        higher = (chosen > own) | ((chosen == own) & before)
        right = (higher.sum(1) < k).to(torch.uint8)
        flags[known] = torch.where(chosen.isfinite().all(1), right, NOT_FINITE).cpu().numpy()
    return flags


def right_pictures(
    views: Sequence[ModelView],
    examples: Sequence[Labelled],
    crops: Sequence[Sequence[Sequence[Tensor | None]]],
    batch: int,
    ks: Sequence[int] = (1,),
) -> Flags:
    """Whether each model is right on each form of each example, [B, models x forms x ks].

    Args:
        crops: for each example and model the forms of the picture, [3, H, W] in 0 to 255; None where one does not
            exist, which counts as unknown.
        batch: crops in one forward pass.
        ks: right is to be among so many highest logits.
    """
    blocks = []
    for m, view in enumerate(views):
        flat = [(e, i, p) for e, item in enumerate(crops) for i, p in enumerate(item[m]) if p is not None]
        logits = crop_logits(view, [p for _, _, p in flat], batch)
        block = np.full((len(examples), len(crops[0][m]), len(ks)), UNKNOWN, dtype=np.uint8)
        for j, k in enumerate(ks):
            right = is_right(logits, [examples[e].targets[m] for e, _, _ in flat], k)
            block[[e for e, _, _ in flat], [i for _, i, _ in flat], j] = right
        blocks.append(block.reshape(len(examples), -1))
    return np.concatenate(blocks, 1)


def accuracy(flags: Flags, seed: int, relative_to: Flags | None = None) -> Interval | None:
    """Share of right ones in percent, or in percent of another share, with its 95 % interval.

    The pictures are drawn again 2000 times (bootstrap), the same ones for both shares. Drawing n pictures with
    replacement is drawing how often each pair of outcomes comes, so that is what is done.
    """
    base = np.ones_like(flags) if relative_to is None else relative_to
    known = (flags <= 1) & (base <= 1)
    n = int(known.sum())
    if not n or not base[known].any():
        return None
    cells = np.bincount(2 * flags[known] + base[known], minlength=4)
    draws = np.random.default_rng(seed).multinomial(n, cells / n, 2000)

    def ratio(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(100 * (counts[..., 2] + counts[..., 3]) / np.maximum(counts[..., 1] + counts[..., 3], 1))

    low, high = np.quantile(ratio(draws), (0.025, 0.975))
    return Interval(float(ratio(cells)), float(low), float(high))


def paired_difference(
    first: tuple[Flags, Flags | None], second: tuple[Flags, Flags | None], seed: int
) -> tuple[Interval | None, int]:
    """The second accuracy less the first in percent, on the pictures that both know, with their number.

    The pictures are drawn again 2000 times (bootstrap), the same ones for both.

    Args:
        first: flags of a model, and those of the accuracy that it is relative to or None.
    """
    (a, base_a), (b, base_b) = ((f, np.ones_like(f) if base is None else base) for f, base in (first, second))
    four = np.stack([a, base_a, b, base_b])
    four = four[:, (four <= 1).all(0)].astype(np.int64)
    n = four.shape[1]
    if not n or not four[1].any() or not four[3].any():
        return None, n
    outcomes = np.array([[code >> bit & 1 for bit in range(4)] for code in range(16)])
    cells = np.bincount(four.T @ (1 << np.arange(4)), minlength=16)
    draws = np.random.default_rng(seed).multinomial(n, cells / n, 2000)

    def gap(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        one, base_one, two, base_two = np.moveaxis(counts @ outcomes, -1, 0)
        return np.asarray(100 * (two / np.maximum(base_two, 1) - one / np.maximum(base_one, 1)))

    low, high = np.quantile(gap(draws), (0.025, 0.975))
    return Interval(float(gap(cells)), float(low), float(high)), n


def what_scored(views: Sequence[ModelView], n_images: int) -> dict[str, Any]:
    """For the manifest, which claims are judged by."""
    return {"images": n_images, "transformers": [view.model_id for view in views if view.layers]}


def how_scored(tally: Tally, source: Source, views: Sequence[ModelView]) -> tuple[str, ...]:
    """Sentences for below the table: pictures, those left out and why, preprocessing."""
    told = [
        f"{tally.n_images:,} images of {source.dataset} (split {source.split or '-'}, "
        f"revision {(source.revision or '-')[:12]}); preprocessing is each checkpoint's own. "
        "Intervals are 95 %, bootstrap over images."
    ]
    if tally.left_out:
        reasons = "; ".join(f"{n:,} because {why}" for why, n in tally.left_out.most_common(5))
        more = len(tally.left_out) - 5
        told.append(
            f"Left out, {sum(tally.left_out.values()):,} in all: {reasons}"
            + (f"; {more} more reasons." if more > 0 else ".")
        )
    told += [f"{remark}: {n:,}." for remark, n in tally.remarks.most_common()]
    for m, view in enumerate(views):
        told += [*_unscored_notes(tally, m, view), *zero_shot_note(view)]
        n = len(view.labels or ())
        used = set(find_places(view.labels or (), source.class_names)) - {None}
        unused = n - len(used) if source.class_names else 0
        if unused:
            told.append(f"{view.model_id} chooses among {n} labels, {unused} of which are no class of this dataset.")
    return tuple(told)


def _unscored_notes(tally: Tally, m: int, view: ModelView) -> list[str]:
    columns, told = tally.of_model(m), []
    flags = np.concatenate(tally.blocks)[:, columns]
    if unknown := int((flags == UNKNOWN).all(1).sum()):
        told.append(f"{view.model_id} does not know the class of {unknown:,} of the images; they do not count for it.")
    broken = flags == NOT_FINITE
    if broken.any():
        names = [str(tally.columns[i]) for i in columns]
        found = list(dict.fromkeys(name for name, column in zip(names, broken.T, strict=True) if column.any()))
        some = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        told.append(
            f"{view.model_id} in {view.identity.dtype} gave NaN or infinite logits for {int(broken.any(1).sum()):,} of "
            f"{len(broken):,} images ({some}); they are left out there."
        )
    return told


def _save(tally: Tally, work: Path) -> None:
    facts = {
        "n_rows": tally.n_rows,
        "left_out": tally.left_out,
        "remarks": tally.remarks,
        "position": tally.position,
    }
    blocks = np.concatenate(tally.blocks) if tally.blocks else np.zeros((0, len(tally.columns)), np.uint8)
    with replace_file(work / "flags.npz") as part:
        np.savez(part, flags=blocks, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8))


def _load(work: Path, columns: Sequence[Column]) -> Tally:
    path = work / "flags.npz"
    if not path.is_file():
        return Tally(tuple(columns))
    with np.load(path) as stored:
        flags, facts = stored["flags"], json.loads(stored["facts"].tobytes())
    return Tally(
        tuple(columns),
        [flags] if len(flags) else [],
        facts["n_rows"],
        Counter(facts["left_out"]),
        Counter(facts["remarks"]),
        facts["position"],
    )
