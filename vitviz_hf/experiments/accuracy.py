"""Accuracy under changes of the picture or the model: one pass over a dataset, one flag for each picture and change."""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import DatasetError, ImageError, NoClassifierError
from vitviz_hf.experiments.pixels import logits_of
from vitviz_hf.images import open_image
from vitviz_hf.labels import LabelMatcher
from vitviz_hf.model import ModelView
from vitviz_hf.stream import Row, Source
from vitviz_hf.tables import Interval

Flags = NDArray[np.uint8]
Progress = Callable[[int, int], None]
UNKNOWN = 255
_CHECKPOINT_SECONDS = 60.0
_DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled picture."""

    row: Row
    image: Image.Image
    targets: tuple[int | None, ...]
    """Place of its class among the labels of each model; None where a model does not know it."""


@dataclass(slots=True)
class Tally:
    """What a pass found: 1 right, 0 wrong, 255 where the model does not know the class."""

    columns: tuple[str, ...]
    blocks: list[Flags] = field(default_factory=list)
    n_rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> pictures."""
    position: Any = None

    def flags(self, column: str) -> Flags:
        """Of one column, [n]."""
        i = self.columns.index(column)
        return np.concatenate([block[:, i] for block in self.blocks])

    @property
    def n_images(self) -> int:
        """Pictures that were scored."""
        return sum(map(len, self.blocks))


def check_classifiers(views: Sequence[ModelView]) -> None:
    """Raise unless every model has a trained classifier.

    Raises:
        NoClassifierError: one has none.
    """
    for view in views:
        if view.labels is None:
            raise NoClassifierError(
                f"{view.model_id!r} has no trained classifier. Choose a checkpoint with one; 'vitviz models' tells."
            )


def count_right(
    views: Sequence[ModelView],
    source: Source,
    columns: Sequence[str],
    prepare: Callable[[Example], Any],
    score: Callable[[list[Example], list[Any]], Flags],
    batch: int,
    limit: int,
    work: Path,
    progress: Progress | None = None,
) -> Tally:
    """Read a labelled dataset once.

    Args:
        prepare: runs in threads ahead of the models; a text that it returns instead is the reason to leave it out.
        score: examples and what was prepared for them -> flags [B, number of columns].
        limit: rows to read; 0 for all.
        work: folder for checkpoints; what lies there is gone on with (`claim` made sure that it is of this run).

    Raises:
        DatasetError: no picture could be scored, or the stream failed; what was read is kept in `work`.
    """
    matchers = [LabelMatcher(view.labels or (), source.class_names) for view in views]
    tally = _load(work, columns)
    saved = time.monotonic()
    n_all = min(x for x in (source.n_rows, limit or None, 10**12) if x is not None)

    def ready(row: Row) -> tuple[Example, Any] | str:
        targets = tuple(m.find(row) for m in matchers)
        if all(t is None for t in targets):
            return f"class {row.label or row.wnid or 'unknown'!r} is not among the model's labels"
        try:
            example = Example(row, open_image(row.data), targets)
        except ImageError:
            return "the image cannot be read"
        prepared = prepare(example)
        return prepared if isinstance(prepared, str) else (example, prepared)

    with ThreadPoolExecutor(_DECODERS) as pool:
        rows = source.read(0, 1, tally.position)
        try:
            for items, position in _batches(rows, lambda row: pool.submit(ready, row), batch, limit, tally.n_rows):
                tally.n_rows += len(items)
                tally.position = position
                tally.left_out.update(item for item in items if isinstance(item, str))
                usable = [item for item in items if not isinstance(item, str)]
                if usable:
                    tally.blocks.append(score([e for e, _ in usable], [p for _, p in usable]))
                if progress:
                    progress(tally.n_rows, n_all if n_all < 10**12 else 0)
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    _save(tally, work)
                    saved = time.monotonic()
        finally:
            _save(tally, work)
    if not tally.n_images:
        reasons = "; ".join(f"{n} because {why}" for why, n in tally.left_out.most_common(3))
        raise DatasetError(f"no picture of {source.dataset!r} could be scored: {reasons or 'it is empty'}.")
    return tally


def _batches(
    rows: Iterator[tuple[Row, Callable[[], Any]]], submit: Callable[[Row], Future[Any]], n: int, limit: int, n_read: int
) -> Iterator[tuple[list[Any], Any]]:
    """Batches of n results, with the position after them; two more are on their way."""
    waiting: deque[tuple[list[Future[Any]], Any]] = deque()
    while True:
        batch: list[Future[Any]] = []
        position: Callable[[], Any] | None = None
        while len(batch) < n and (not limit or n_read < limit) and (item := next(rows, None)) is not None:
            row, position = item
            batch.append(submit(row))
            n_read += 1
        if position is not None:
            waiting.append((batch, position()))
        if waiting and (not batch or len(waiting) > 2):
            done, after = waiting.popleft()
            yield [future.result() for future in done], after
        elif not batch:
            return


def is_right(logits: Tensor, targets: Sequence[int | None], k: int) -> Flags:
    """Whether each target is among the k highest logits [B, N]; 255 where there is none. Ties count as wrong."""
    flags = np.full(len(targets), UNKNOWN, dtype=np.uint8)
    known = [i for i, target in enumerate(targets) if target is not None]
    if known:
        chosen = logits[known].float()
        own = chosen.gather(1, torch.tensor([[targets[i]] for i in known], device=logits.device))
        flags[known] = ((chosen >= own).sum(1) <= k).to(torch.uint8).cpu().numpy()
    return flags


def right_pictures(
    views: Sequence[ModelView],
    examples: Sequence[Example],
    pictures: Sequence[Sequence[Sequence[Tensor | None]]],
    batch: int,
    ks: Sequence[int] = (1,),
) -> Flags:
    """Whether each model is right on each form of each example, [B, models x forms x ks].

    Args:
        pictures: for each example and model the forms of the picture, [3, H, W] in 0 to 255; None where one does not
            exist, which counts as unknown.
        batch: pictures in one forward pass.
        ks: right is to be among so many highest logits.
    """
    blocks = []
    for m, view in enumerate(views):
        flat = [(e, i, p) for e, item in enumerate(pictures) for i, p in enumerate(item[m]) if p is not None]
        logits = logits_of(view, [p for _, _, p in flat], batch)
        block = np.full((len(examples), len(pictures[0][m]), len(ks)), UNKNOWN, dtype=np.uint8)
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
    known = (flags != UNKNOWN) & (base != UNKNOWN)
    n = int(known.sum())
    if not n or not base[known].any():
        return None
    cells = np.bincount(2 * flags[known] + base[known], minlength=4)
    draws = np.random.default_rng(seed).multinomial(n, cells / n, 2000)

    def ratio(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(100 * (counts[..., 2] + counts[..., 3]) / np.maximum(counts[..., 1] + counts[..., 3], 1))

    low, high = np.quantile(ratio(draws), (0.025, 0.975))
    return Interval(float(ratio(cells)), float(low), float(high))


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
    for view in views:
        n = len(view.labels or ())
        unused = n - len({m for m in _matched(view, source) if m is not None}) if source.class_names else 0
        if unused:
            told.append(f"{view.model_id} chooses among {n} labels, {unused} of which are no class of this dataset.")
    return tuple(told)


def _matched(view: ModelView, source: Source) -> list[int | None]:
    matcher = LabelMatcher(view.labels or (), source.class_names)
    return [matcher.find(Row("", name, b"", i)) for i, name in enumerate(source.class_names)]


def _save(tally: Tally, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    facts = {"n_rows": tally.n_rows, "left_out": tally.left_out, "position": tally.position}
    part = work / "flags.part"
    with part.open("wb") as file:
        blocks = np.concatenate(tally.blocks) if tally.blocks else np.zeros((0, len(tally.columns)), np.uint8)
        np.savez(file, flags=blocks, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8))
    os.replace(part, work / "flags.npz")


def _load(work: Path, columns: Sequence[str]) -> Tally:
    path = work / "flags.npz"
    if not path.is_file():
        return Tally(tuple(columns))
    with np.load(path) as stored:
        flags, facts = stored["flags"], json.loads(stored["facts"].tobytes())
    return Tally(
        tuple(columns), [flags] if len(flags) else [], facts["n_rows"], Counter(facts["left_out"]), facts["position"]
    )
