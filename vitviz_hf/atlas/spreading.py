"""Searches and pictures spread over a cluster.

Shares of the rows, each what `Source.read` gives to one of n readers, are folded by workers to parts: states with the
crops of the images they rank. Parts are merged in a tree: batches in a worker, parts that arrive together in the
cluster, the rest here. What is here grows with features x k, as for one process, and by one number for each share.
"""

import math
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import SiteFold
from vitviz_hf.atlas.search import check_result, empty_state, search_recipe, search_steps
from vitviz_hf.atlas.state import (
    STATE,
    Floors,
    SearchState,
    checkpoint,
    kept_precision,
    load_state,
    open_crops,
    ranked_keys,
    stored_recipe,
)
from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.atlas.write import search_folder, write_atlas
from vitviz_hf.cluster import Cluster, Job, Work, spread
from vitviz_hf.config import Precision
from vitviz_hf.errors import DatasetError, OutputExistsError
from vitviz_hf.manifest import check_absent, finished, make_folder
from vitviz_hf.models.view import ModelView, at_precision
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import Guide
from vitviz_hf.optimize.loop import visualize
from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.sites import Feature
from vitviz_hf.stream import Source

_ROWS = 20_000
"""Of a share, at least, where that leaves eight for each worker."""
_TOGETHER = 16
"""Shares in a job, at most: as rankings fill, parts hold fewer crops and may be of more rows."""
_MARGIN = 1e-4
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Searching:
    """What a worker needs to search any share."""

    view: ModelView
    source: Source
    config: SearchConfig
    n_shares: int
    local: bool
    """Whether the dataset is a file or folder."""


@dataclass(slots=True)
class Part:
    """What was found in some shares."""

    state: SearchState
    crops: dict[int, tuple[str, str, bytes]]
    """Key -> name, label, JPEG of the ranked images."""

    def merge(self, other: "Part") -> None:
        """Take in what was found in other shares."""
        self.state.merge(other.state)
        for key, crop in other.crops.items():
            self.crops[key] = min(self.crops.get(key, crop), crop)  # the first by name, as in one process
        self.crops = {key: self.crops[key] for key in ranked_keys(self.state)}


def share_count(source: Source, config: SearchConfig, n_workers: int) -> int:
    """Into how many shares the rows are divided: each reads files of its own, if the dataset has enough of them."""
    rows = min((x for x in (source.n_rows, config.limit) if x is not None), default=None)
    wanted = max(8 * n_workers, math.ceil((rows or 0) / _ROWS))
    if config.limit is not None or (source.n_files or n_workers) < n_workers:  # every share reads all rows
        wanted = 2 * n_workers
    elif n_files := source.n_files:
        wanted = next(n for n in range(min(wanted, n_files), n_files + 1) if n_files % n == 0)
    return min(wanted, max(1, rows or wanted))


def prepare(task: Searching) -> Searching:
    """The task with the model on this machine's device.

    Raises:
        DatasetError: a local dataset is not on this machine.
    """
    if task.local and not Path(task.source.dataset).expanduser().exists():
        raise DatasetError(
            f"{task.source.dataset!r} is not on every machine; copy it to the same path on all, or read the Hub."
        )
    _to_device(task.view)
    return task


def _to_device(view: ModelView) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for module in (view.module, *(tap.function for tap in view.extra_taps.values())):
        module.to(device)


def search_shares(task: Searching, shares: Job, floors: Floors | None, tell: Callable[[int], None]) -> Part:
    """What is in some shares of the rows.

    Args:
        floors: what an image must reach, as far as it is known.
        tell: called with the number of rows after every batch.
    """
    whole = _search_share(task, shares[0], floors, 0, tell)
    for share in shares[1:]:
        whole.merge(_search_share(task, share, floors, whole.state.n_rows, tell))
    return whole


def _search_share(task: Searching, share: int, floors: Floors | None, before: int, tell: Callable[[int], None]) -> Part:
    with TemporaryDirectory(prefix="vitviz-") as name:
        folder = Path(name)
        for state in search_steps(
            task.view, task.source, task.config, folder, False, share, task.n_shares, math.inf, floors
        ):
            tell(before + state.n_rows)
        with open_crops(folder) as crops:
            kept = {key: tuple(rest) for key, *rest in crops.execute("SELECT key, name, label, jpeg FROM crops")}
    here = {site: {name: t.cpu() for name, t in fold.tensors().items()} for site, fold in state.folds.items()}
    folds = {site: SiteFold.from_tensors(tensors, _CPU) for site, tensors in here.items()}
    return Part(replace(state, folds=folds, position=None), kept)


def merge_parts(*parts: Part) -> Part:
    """One part of several."""
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


def floors_of(state: SearchState) -> Floors:
    """What an image must reach to be ranked beside what is ranked: a little less, as last digits differ."""

    def low(ranking: Any) -> Any:
        last = ranking.values[:, -1]
        return last - _MARGIN * last.abs()

    return {site: (low(fold.top), low(fold.bottom)) for site, fold in state.folds.items()}


def spread_atlas(
    cluster: Cluster,
    view: ModelView,
    source: Source,
    config: SearchConfig,
    out: Path,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    checkpoint_seconds: float = 60.0,
) -> Atlas:
    """As `make_atlas`, by the workers of a cluster; the result is that of one process.

    Scores can differ in their last digits, as matrix products do between batches, and correlations in their sixth.

    Args:
        view: on the CPU; it is sent to the workers.
        config: `auto` precision is float32, since the machines of a cluster may have different processors.
        progress: called with the number of rows that were searched, at least once a second.

    Raises:
        OutputExistsError: `out` exists, or an unfinished search that `resume` was not asked for.
        ClusterError: workers were lost again and again; go on with `resume`.
        DatasetError: the stream failed; go on with `resume`.
    """
    if resume and finished(out, search_folder(out)):
        return open_atlas(str(out))
    check_absent(out)
    folder = search_folder(out) / "rank-0"
    stored = folder / STATE
    if stored.is_file() and not resume:
        raise OutputExistsError(f"'{folder}' holds an interrupted search; go on with --resume, or delete it.")
    config = replace(config, precision=shared_precision(view, kept_precision(stored, config.precision)))
    n_shares = stored_recipe(stored)["n_ranks"] if stored.is_file() else share_count(source, config, cluster.n_workers)
    recipe = search_recipe(view, source, config)
    own = recipe | {"rank": "all", "n_ranks": n_shares}
    make_folder(folder)
    state = load_state(stored, own, _CPU) if stored.is_file() else empty_state(view, config)
    task = Searching(view, source, config, n_shares, Path(source.dataset).expanduser().exists())
    with open_crops(folder) as crops:
        save = partial(checkpoint, state, own, stored, crops)
        _run(cluster, task, state, crops, save, progress, checkpoint_seconds)
    check_result(view, source, state)
    write_atlas(out, recipe, state, folder)
    shutil.rmtree(search_folder(out))
    return open_atlas(str(out))


def shared_precision(view: ModelView, wanted: Precision) -> Precision:
    """What all machines compute in: `auto` is float32, whatever this one or another has."""
    return at_precision(view, "float32" if wanted == "auto" else wanted).precision


def _run(
    cluster: Cluster,
    task: Searching,
    state: SearchState,
    crops: sqlite3.Connection,
    save: Callable[[], None],
    progress: Callable[[int], None] | None,
    checkpoint_seconds: float,
) -> None:
    """Have the shares searched that are not in the state, whose `position` lists the others."""
    done = set(state.position or ())
    saved, whole = time.monotonic(), True
    turns = spread(
        cluster,
        Work(prepare, (task,), search_shares, merge_parts),
        [share for share in range(task.n_shares) if share not in done],
        partial(_job_size, cluster.n_workers),
        lambda: floors_of(state),
    )
    try:
        with closing(turns):
            for turn in turns:
                if turn.result is not None:
                    whole = False
                    take_in(state, turn.result, crops)
                    state.position = sorted([*(state.position or ()), *turn.job])
                    whole = True
                if progress:
                    progress(state.n_rows + turn.under_way)
                if time.monotonic() - saved >= checkpoint_seconds:
                    save()
                    saved = time.monotonic()
        state.done = True
    finally:
        if whole:
            save()


def _job_size(n_workers: int, left: int, done: int) -> int:
    """Shares in the next job: few while rankings fill, and towards the end, so that nobody waits long for the last."""
    return max(1, min(_TOGETHER, left // (2 * n_workers), done // n_workers))


def take_in(state: SearchState, part: Part, crops: sqlite3.Connection) -> None:
    """Merge a part into the whole."""
    crops.executemany(
        "INSERT INTO crops VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET name = excluded.name, "
        "label = excluded.label WHERE (excluded.name, excluded.label) < (name, label)",
        [(key, *crop) for key, crop in part.crops.items()],
    )
    state.merge(part.state)


Pictures = dict[Feature, Visualization]


@dataclass(frozen=True, slots=True)
class Building:
    """What a worker needs to make any picture."""

    view: ModelView
    config: VisualizeConfig
    groups: tuple[tuple[Feature, ...], ...]
    """Features that share batches."""
    guides: tuple[tuple[Guide, ...], ...]
    """Of each group; empty ones without real images."""


def spread_pictures(
    cluster: Cluster,
    view: ModelView,
    groups: Sequence[Sequence[Feature]],
    config: VisualizeConfig,
    guides: Sequence[Sequence[Guide]] = (),
) -> Iterator[tuple[Feature, Visualization]]:
    """Pictures of features by the workers of a cluster, as they are made.

    Args:
        view: on the CPU; it is sent to the workers.
        groups: features that share batches.
        config: `auto` precision is float32, since the machines of a cluster may have different processors.
        guides: real images for each group, as `visualize` takes them.

    Raises:
        ClusterError: workers were lost again and again.
        SiteError, ConfigError: as `visualize`.
    """
    config = replace(config, precision=shared_precision(view, config.precision))
    given = tuple(map(tuple, guides)) or ((),) * len(groups)
    task = Building(view, config, tuple(map(tuple, groups)), given)
    work = Work(prepare_pictures, (task,), make_pictures, merge_pictures)
    with closing(spread(cluster, work, range(len(groups)), lambda left, done: 1, lambda: None)) as turns:
        for turn in turns:
            yield from (turn.result or {}).items()


def prepare_pictures(task: Building) -> Building:
    """The task with the model on this machine's device."""
    _to_device(task.view)
    return task


def make_pictures(task: Building, job: Job, _: None, tell: Callable[[int], None]) -> Pictures:
    """The pictures of some groups."""
    made: Pictures = {}
    for i in job:
        found = visualize(task.view, task.groups[i], task.config, task.guides[i])
        made |= zip(task.groups[i], found, strict=True)
        tell(len(made))
    return made


def merge_pictures(*parts: Pictures) -> Pictures:
    """Those of several jobs."""
    return {feature: picture for part in parts for feature, picture in part.items()}
