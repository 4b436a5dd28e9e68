"""The most and least activating images of every feature, and the distribution of its scores, in one pass.

A fold: for each batch every site's scores [B, F] go into rankings of k images and into sketches of fixed size, so
memory is O(features x k) and never O(images). Images are told apart by a number made from their stored bytes; equal
scores are ordered by it. So the order of a dataset, its shards and the number of processes do not change the answer.

A ranking holds an image once, however many rows have its bytes; statistics are of rows. An image with a value at a site
that is no finite number is left out of that site's rankings and statistics, counted and named.
"""

import sqlite3
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitviz_hf.atlas.config import SearchConfig, check_kinds
from vitviz_hf.atlas.fold import SiteFold
from vitviz_hf.atlas.state import LISTED, STATE, Floors, SearchState, checkpoint, load_state, open_crops
from vitviz_hf.errors import ConfigError, DatasetError, ModelError, OutputExistsError
from vitviz_hf.images import bytes_to_image, bytes_to_pixels, encode
from vitviz_hf.manifest import make_folder
from vitviz_hf.models.view import ModelView, at_precision, find_tap, list_sites
from vitviz_hf.reading.batches import Batch, Bytes, decoders, read_batches
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import Acts, record_each
from vitviz_hf.sites import Site
from vitviz_hf.stream import Row, Source


def site_list(view: ModelView, config: SearchConfig) -> list[Site]:
    """The sites that a search covers, in execution order.

    Raises:
        SiteError: a layer or kind is not in the model.
        ConfigError: none is left.
    """
    if not view.layers or (config.layers and max(config.layers) >= len(view.layers)):
        find_tap(view, Site(max(config.layers or (0,)), "mlp_act"))
    check_kinds(config.kinds, view.kinds)
    sites = [
        s for s, _ in list_sites(view) if s.kind in config.kinds and (not config.layers or s.layer in config.layers)
    ]
    if not sites:
        raise ConfigError(f"{view.model_id!r} has none of the kinds {', '.join(config.kinds)} in these layers.")
    return sites


def search(
    view: ModelView,
    source: Source,
    config: SearchConfig,
    folder: Path,
    resume: bool = False,
    rank: int = 0,
    n_ranks: int = 1,
    progress: Callable[[SearchState], None] | None = None,
    checkpoint_seconds: float = 60.0,
) -> SearchState:
    """Read a dataset once and rank its images for every feature; see `search_steps`.

    Args:
        progress: called after every batch.

    Raises:
        DatasetError: it held no picture.
        ModelError: a site's values were finite on no image.

    Warns:
        RuntimeWarning: some images were left out of some sites.
    """
    for state in search_steps(view, source, config, folder, resume, rank, n_ranks, checkpoint_seconds):
        if progress and not state.done:
            progress(state)
    if n_ranks == 1:
        check_result(view, source, state)
    return state


def search_steps(
    view: ModelView,
    source: Source,
    config: SearchConfig,
    folder: Path,
    resume: bool = False,
    rank: int = 0,
    n_ranks: int = 1,
    checkpoint_seconds: float = 60.0,
    floors: Floors | None = None,
) -> Generator[SearchState]:
    """Read a dataset once, batch by batch; what is closed before its end has stored what it read.

    Args:
        folder: for checkpoints and the crops of ranked images; one for each rank.
        resume: go on from the checkpoint in `folder`.
        rank: this process reads its share of the rows, of `n_ranks` in all. With `config.limit` the share is of the
            first rows of the dataset in its own order, so every process reads all of those and takes each n-th.
        floors: of rankings that this search's are to be merged with.

    Yields:
        The one state of the search: after every batch, and at the end, when it is `done`.

    Raises:
        OutputExistsError: `folder` holds another search, and `resume` was not asked for.
        ConfigError: the checkpoint is of another search, or there is no such rank.
        DatasetError: the stream failed for good; what was read is kept in `folder`.
        StorageError: the disk is full; what the last checkpoint holds is kept in `folder`.

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3 (score = mean over patches).
    """
    if not 0 <= rank < n_ranks:
        raise ConfigError(f"there is no process {rank} of {n_ranks}; ranks are 0-{n_ranks - 1}.")
    view = at_precision(view, config.precision)
    recipe = search_recipe(view, source, config) | {"rank": rank, "n_ranks": n_ranks}
    state_file = folder / STATE
    if state_file.is_file() and not resume:
        raise OutputExistsError(f"'{folder}' holds an interrupted search; go on with --resume, or delete it.")
    make_folder(folder)
    state = load_state(state_file, recipe, view.device) if state_file.is_file() else empty_state(view, config, floors)
    if not state.done:
        yield from _read_on(view, source, config, state, recipe, folder, checkpoint_seconds)
    yield state


def check_result(view: ModelView, source: Source, state: SearchState) -> None:
    """Refuse the result of a whole search that says nothing, and warn of images that were left out.

    Raises:
        DatasetError: no usable image.
        ModelError: a site's values were finite on no image.
    """
    if not state.n_images:
        raise DatasetError(f"{source.dataset!r} held no usable image ({state.n_skipped} were skipped).")
    if empty := [s for s, f in state.folds.items() if not f.n]:
        raise ModelError(
            f"{name_precision(view)} gives {_non_finite_at(empty)} on every one of {state.n_images:,} images. "
            "Check its weights, load it in float32, or leave these layers out."
        )
    if state.n_non_finite:
        some = [s for s, f in state.folds.items() if f.n < state.n_images]
        warnings.warn(
            f"{name_precision(view)} gives {_non_finite_at(some)} on {state.n_non_finite:,} of {state.n_images:,} "
            "images; each is left out of the sites where it does.",
            RuntimeWarning,
            stacklevel=3,
        )


def _non_finite_at(sites: Sequence[Site]) -> str:
    more = f" and {len(sites) - 1} other sites" if len(sites) > 1 else ""
    return f"non-finite activations at {sites[0]}{more}"


def _read_on(
    view: ModelView,
    source: Source,
    config: SearchConfig,
    state: SearchState,
    recipe: Mapping[str, Any],
    folder: Path,
    checkpoint_seconds: float,
) -> Generator[SearchState]:
    state_file, sites = folder / STATE, list(state.folds)
    saved = time.monotonic()
    with open_crops(folder) as crops, decoders(view, config.workers) as submit:
        rows = _rows(source, config.limit, recipe["rank"], recipe["n_ranks"], state)
        try:
            for batch in read_batches(rows, submit, config.batch):
                _take_in(view, state, sites, config.reduce, batch, crops)
                yield state
                if time.monotonic() - saved >= checkpoint_seconds:
                    checkpoint(state, recipe, state_file, crops)
                    saved = time.monotonic()
        except (DatasetError, GeneratorExit):
            checkpoint(state, recipe, state_file, crops)
            raise
        state.done = True
        checkpoint(state, recipe, state_file, crops)


def _rows(
    source: Source, limit: int | None, rank: int, n_ranks: int, state: SearchState
) -> Iterator[tuple[Row, Callable[[], Any]]]:
    """The rows of one rank that it has not read yet."""
    if limit is None:
        yield from source.read(rank, n_ranks, state.position)
        return
    after = rank + (state.n_rows - 1) * n_ranks + 1 if state.n_rows else 0
    for i, item in zip(range(after, limit), source.read(0, 1, state.position), strict=False):
        if i % n_ranks == rank:
            yield item


def empty_state(view: ModelView, config: SearchConfig, floors: Floors | None = None) -> SearchState:
    """Nothing seen yet."""
    sites = site_list(view, config)
    folds = {s: SiteFold.empty(find_tap(view, s).size, config.k, view.device) for s in sites}
    for site, (top, bottom) in (floors or {}).items():
        folds[site].top.values[:] = top[:, None].to(view.device)
        folds[site].bottom.values[:] = bottom[:, None].to(view.device)
    return SearchState(folds)


def search_recipe(view: ModelView, source: Source, config: SearchConfig) -> dict[str, Any]:
    """What decides the result of a search."""
    sites = site_list(view, config)
    names = {str(s): list(tap.names) for s, tap in view.extra_taps.items() if s in sites and tap.names}
    return {
        "schema": 3,
        **view.identity.to_json(),
        "dataset": source.dataset,
        "dataset_revision": source.revision,
        "split": source.split,
        "kinds": list(config.kinds),
        "layers": list(config.layers or range(len(view.layers))),
        "k": config.k,
        "reduce": config.reduce,
        "limit": config.limit,
        "batch": config.batch,
        "precision": at_precision(view, config.precision).precision,
        "grids": {str(s): list(find_tap(view, s).patch_grid) for s in sites},
        **({"names": names} if names else {}),
    }


def _take_in(
    view: ModelView, state: SearchState, sites: list[Site], reduce: str, batch: Batch[Bytes], crops: sqlite3.Connection
) -> None:
    state.n_rows += len(batch.items)
    state.position = batch.position
    state.n_skipped += len(batch.left_out)
    _list_skipped(state, batch.left_out)
    if not batch.usable:
        return
    rows = [row for row, _ in batch.usable]
    stack = torch.from_numpy(np.stack([values for _, values in batch.usable]))
    state.n_images += len(rows)
    pixels = bytes_to_pixels(stack.to(view.device, non_blocking=True))
    keys = torch.tensor([row.key for row in rows], device=view.device)
    first = state.n_rows - len(batch.items)
    numbers = torch.tensor([row_number(row, first + i) for i, row in enumerate(rows)], device=view.device)
    ranked: list[Tensor] = []
    finite: dict[Site, Tensor] = {}

    def fold(acts: Acts) -> None:
        site = acts.site
        active = count_positive(acts.patches) / acts.patches.shape[1]
        means = acts.scores()  # not finite where a patch is not; a maximum can hide it
        finite[site] = means.isfinite().all(1)
        peaks = acts.scores("max")
        scores = means if reduce == "mean" else peaks

        def places(features: Tensor, images: Tensor) -> Tensor:
            if 4 * len(features) < peaks.numel():
                return acts.patches[images, :, features].argmax(1)
            return acts.patches.max(1).indices[images, features]

        ranked.append(state.folds[site].update(scores, active, peaks, places, keys, finite[site], numbers))

    with torch.no_grad():
        record_each(view, pixels, sites, fold)
    _note_non_finite(state, rows, torch.stack([finite[s] for s in sites]).cpu(), sites)
    _keep_crops(crops, rows, stack, set(keys[torch.isin(keys, torch.cat(ranked))].tolist()))


def row_number(row: Row, place: int) -> int:
    """Of an image and of its name, or its place where it has none, so that copies have different ones."""
    return int.from_bytes(sha256(f"{row.key} {row.name or place}".encode()).digest()[:8], "big") >> 1


def count_positive(patches: Tensor) -> Tensor:
    """How many of the patches [B, P, F] are positive, [B, F]."""
    if patches.element_size() == 2:  # bits of half precision compare as whole numbers do, twice as fast on a CPU
        patches = patches.view(torch.int16)
    # Sums of at most 255 bytes in a byte: ten times as fast on a CPU as in a wider type.
    parts = (patches > 0).view(torch.uint8).split(255, 1)
    return torch.stack([part.sum(1, dtype=torch.uint8) for part in parts]).sum(0, dtype=torch.int32)


def _keep_crops(crops: sqlite3.Connection, rows: list[Row], stack: Tensor, entered: set[int]) -> None:
    """Store the pictures [B, 3, H, W] whose keys entered a ranking."""
    crops.executemany(
        "INSERT OR IGNORE INTO crops VALUES (?, ?, ?, ?)",
        [
            (row.key, row.name, row.label, encode(bytes_to_image(values), "JPEG", quality=92, subsampling=0))
            for row, values in zip(rows, stack, strict=True)
            if row.key in entered
        ],
    )
    # Of rows with the same bytes, the first by name stands for all, whatever their order.
    crops.executemany(
        "UPDATE crops SET name = ?1, label = ?2 WHERE key = ?3 AND (name, label) > (?1, ?2)",
        [(row.name, row.label, row.key) for row in rows],
    )


def _note_non_finite(state: SearchState, rows: list[Row], finite: Tensor, sites: list[Site]) -> None:
    """Count and name images by what is finite, [n_sites, n_images]."""
    bad = []
    for i in (~finite.all(0)).nonzero().flatten().tolist():
        where = [s for s, ok in zip(sites, finite[:, i].tolist(), strict=True) if not ok]
        bad.append((rows[i], _non_finite_at(where)))
    state.n_non_finite += len(bad)
    _list_skipped(state, bad)


def _list_skipped(state: SearchState, found: list[tuple[Row, str]]) -> None:
    if found:
        named = [(row.name or f"{row.key:016x}", reason) for row, reason in found]
        state.skipped = sorted([*state.skipped, *named])[:LISTED]
