"""The most and least activating images of every feature, and the distribution of its scores, in one pass.

A fold: for each batch every site's scores [B, F] go into rankings of k images and into sketches of fixed size, so
memory is O(features x k) and never O(images). Images are told apart by a number made from their stored bytes; equal
scores are ordered by it. So the order of a dataset, its shards and the number of processes do not change the answer.
"""

import json
import math
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitviz_hf.config import SearchConfig
from vitviz_hf.errors import ConfigError, DatasetError, ImageError, OutputExistsError
from vitviz_hf.hub import Snapshot, fetch_model
from vitviz_hf.images import encode, open_image, pixels_to_image
from vitviz_hf.loading import load_preprocessing, sized_pixels
from vitviz_hf.maps import site_scores, split_tokens
from vitviz_hf.model import ModelView, find_tap, list_sites
from vitviz_hf.recording import record_each
from vitviz_hf.sites import Site, parse_site
from vitviz_hf.stream import Row, Source

NO_KEY = torch.iinfo(torch.int64).max
# The sketch: 256 bins on each side of zero, each 6.5 % wider than the one before it.
SMALLEST, N_BINS = 1e-4, 256
GROWTH = 1e7 ** (1 / N_BINS)
SKETCH_ERROR = (GROWTH - 1) / (GROWTH + 1)
_LISTED = 1000
_WAITING_BATCHES = 3


@dataclass(slots=True)
class Ranking:
    """The k highest values of each feature and the keys of their images, best first."""

    values: Tensor
    """[F, k], -inf where there is none yet."""
    keys: Tensor
    """[F, k]"""

    @classmethod
    def empty(cls, n_features: int, k: int, device: torch.device) -> "Ranking":
        """Nothing seen yet."""
        return cls(
            torch.full((n_features, k), -math.inf, device=device),
            torch.full((n_features, k), NO_KEY, dtype=torch.int64, device=device),
        )

    def update(self, values: Tensor, keys: Tensor) -> Tensor:
        """Take in values [F, B] of images with keys [F, B]; returns the keys that some feature now ranks, [n]."""
        rows = (values >= self.values[:, -1:]).any(1).nonzero().squeeze(1)
        candidates = torch.cat([self.values[rows], values[rows]], 1)
        owners = torch.cat([self.keys[rows], keys[rows]], 1)
        order = owners.argsort(1)
        candidates, owners = candidates.gather(1, order), owners.gather(1, order)
        order = candidates.argsort(dim=1, descending=True, stable=True)[:, : self.values.shape[1]]
        self.values[rows], self.keys[rows] = candidates.gather(1, order), owners.gather(1, order)
        return self.keys[rows].flatten()


@dataclass(slots=True)
class SiteFold:
    """What is known of one site's features after some images."""

    top: Ranking
    bottom: Ranking
    """Of the negated scores."""
    total: Tensor
    """[F] sum of scores, float64."""
    squares: Tensor
    """[F] sum of squared scores, float64."""
    active: Tensor
    """[F] sum over images of the share of patches with a positive activation, float64."""
    counts: Tensor
    """[F, 2 * N_BINS + 1] images in each bin of the sketch."""

    @classmethod
    def empty(cls, n_features: int, k: int, device: torch.device) -> "SiteFold":
        """Nothing seen yet."""
        zero = torch.zeros(n_features, dtype=torch.float64, device=device)
        counts = torch.zeros(n_features, 2 * N_BINS + 1, dtype=torch.int32, device=device)
        top, bottom = (Ranking.empty(n_features, k, device) for _ in range(2))
        return cls(top, bottom, zero, zero.clone(), zero.clone(), counts)

    def update(self, scores: Tensor, active: Tensor, keys: Tensor) -> Tensor:
        """Take in scores and active shares [B, F] of images with keys [B]; returns the keys now ranked."""
        columns, owners = scores.T.contiguous(), keys.expand(scores.shape[1], -1)
        ranked = [self.top.update(columns, owners), self.bottom.update(-columns, owners)]
        exact = scores.double()
        self.total += exact.sum(0)
        self.squares += exact.square().sum(0)
        self.active += active.double().sum(0)
        bins = sketch_bins(columns)
        self.counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.int32))
        return torch.cat(ranked)

    def merge(self, other: "SiteFold") -> None:
        """Take in what another process saw of other images."""
        self.top.update(other.top.values, other.top.keys)
        self.bottom.update(other.bottom.values, other.bottom.keys)
        for name in ("total", "squares", "active", "counts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {
            "top.values": self.top.values, "top.keys": self.top.keys, "bottom.values": self.bottom.values,
            "bottom.keys": self.bottom.keys, "total": self.total, "squares": self.squares, "active": self.active,
            "counts": self.counts,
        }  # fmt: skip

    @classmethod
    def from_tensors(cls, t: Mapping[str, Tensor]) -> "SiteFold":
        """The inverse of `tensors`."""
        top, bottom = (Ranking(t[f"{side}.values"], t[f"{side}.keys"]) for side in ("top", "bottom"))
        return cls(top, bottom, t["total"], t["squares"], t["active"], t["counts"])


@dataclass(slots=True)
class SearchState:
    """Everything that a search knows; it is what a checkpoint stores."""

    folds: dict[Site, SiteFold]
    n_images: int = 0
    n_rows: int = 0
    """Images and what was skipped."""
    n_skipped: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the first 1000."""
    position: Any = None
    """Where the source goes on."""
    done: bool = False


def sketch_bins(values: Tensor) -> Tensor:
    """Bin of each value: N_BINS for |x| < 1e-4, then one bin for each 6.5 % on either side, to 1000."""
    size = (values.abs() / SMALLEST).clamp(min=1e-30).log() / math.log(GROWTH)
    steps = size.floor().clamp(-1, N_BINS - 1) + 1
    return (N_BINS + steps * values.sign()).long()


def sketch_centers() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Value that stands for each bin: within 3.2 % of everything in it."""
    positive = SMALLEST * GROWTH ** np.arange(N_BINS) * (2 * GROWTH / (1 + GROWTH))
    return np.concatenate([-positive[::-1], [0.0], positive])


def site_list(view: ModelView, config: SearchConfig) -> list[Site]:
    """The sites that a search covers, in execution order.

    Raises:
        SiteError: a layer or kind is not in the model.
        ConfigError: none is left.
    """
    if not view.layers or (config.layers and max(config.layers) >= len(view.layers)):
        find_tap(view, Site(max(config.layers or (0,)), "mlp_act"))
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
    """Read a dataset once and rank its images for every feature.

    Args:
        folder: for checkpoints and the crops of ranked images; one for each rank.
        resume: go on from the checkpoint in `folder`.
        rank: this process reads its share of the rows, of `n_ranks` in all.
        progress: called after every batch.

    Raises:
        OutputExistsError: `folder` holds another search, and `resume` was not asked for.
        ConfigError: the checkpoint is of another search.
        DatasetError: the stream failed for good; what was read is kept in `folder`.

    Source: Ghiasi et al. 2022, arXiv:2212.06727, section 3 (score = mean over patches).
    """
    sites = site_list(view, config)
    recipe = search_recipe(view, source, config) | {"rank": rank, "n_ranks": n_ranks}
    state_file = folder / "state.safetensors"
    if state_file.is_file() and not resume:
        raise OutputExistsError(f"'{folder}' holds an interrupted search; go on with --resume, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    state = load_state(state_file, recipe, view.device) if state_file.is_file() else None
    state = state or SearchState({s: SiteFold.empty(find_tap(view, s).size, config.k, view.device) for s in sites})
    if state.done:
        return state
    limit = None if config.limit is None else (config.limit - rank + n_ranks - 1) // n_ranks
    saved = time.monotonic()
    with closing(open_crops(folder)) as crops, _decoders(view, config.workers) as pool:
        rows = source.read(rank, n_ranks, state.position)
        try:
            for batch in _decoded(rows, pool, config.batch, limit, state.n_rows):
                _take_in(view, state, sites, config.reduce, batch, crops)
                if progress:
                    progress(state)
                if time.monotonic() - saved >= checkpoint_seconds:
                    _checkpoint(state, recipe, state_file, crops)
                    saved = time.monotonic()
        except DatasetError:
            _checkpoint(state, recipe, state_file, crops)
            raise
        state.done = True
        _checkpoint(state, recipe, state_file, crops)
    if not state.n_images:
        raise DatasetError(f"{source.dataset!r} held no usable image ({state.n_skipped} were skipped).")
    return state


def search_recipe(view: ModelView, source: Source, config: SearchConfig) -> dict[str, Any]:
    """What decides the result of a search."""
    return {
        "schema": 1, **view.identity.to_json(), "dataset": source.dataset,
        "dataset_revision": source.revision, "split": source.split, "kinds": list(config.kinds),
        "layers": list(config.layers or range(len(view.layers))), "k": config.k, "reduce": config.reduce,
        "limit": config.limit, "batch": config.batch,
    }  # fmt: skip


def open_crops(folder: Path) -> sqlite3.Connection:
    """The crops of ranked images: key, name, label, JPEG."""
    crops = sqlite3.connect(folder / "crops.sqlite")
    crops.execute("CREATE TABLE IF NOT EXISTS crops (key INTEGER PRIMARY KEY, name TEXT, label TEXT, jpeg BLOB)")
    return crops


def load_state(path: Path, recipe: Mapping[str, Any], device: torch.device) -> SearchState:
    """A checkpoint.

    Raises:
        ConfigError: it is of another search.
    """
    with safe_open(path, "pt", device="cpu") as file:
        facts = json.loads(file.metadata()["state"])
        if different := [k for k, v in recipe.items() if facts["recipe"].get(k) != v]:
            name = different[0]
            raise ConfigError(
                f"'{path.parent}' holds a search with {name} {facts['recipe'].get(name)!r}, not {recipe[name]!r}; "
                "give the same options, or another --out."
            )
        names: dict[Site, dict[str, Tensor]] = {}
        for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
            site, _, part = name.partition("/")
            names.setdefault(parse_site(site), {})[part] = file.get_tensor(name).to(device)
    folds = {site: SiteFold.from_tensors(parts) for site, parts in sorted(names.items())}
    return SearchState(folds, **{k: facts[k] for k in _FACTS}, skipped=[(a, b) for a, b in facts["skipped"]])


def is_done(folder: Path) -> bool:
    """Whether the search in this folder has read all its rows."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return bool(json.loads(file.metadata()["state"])["done"])


_FACTS = ("n_images", "n_rows", "n_skipped", "position", "done")


def _checkpoint(state: SearchState, recipe: Mapping[str, Any], path: Path, crops: sqlite3.Connection) -> None:
    """Crops first: a state never names one that is not stored."""
    _prune(state, crops)
    crops.commit()
    facts = {k: getattr(state, k) for k in (*_FACTS, "skipped")} | {"recipe": dict(recipe)}
    tensors = {f"{s}/{n}": t.contiguous().cpu() for s, f in state.folds.items() for n, t in f.tensors().items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, {"state": json.dumps(facts)})
    os.replace(part, path)


def _prune(state: SearchState, crops: sqlite3.Connection) -> None:
    n_stored = crops.execute("SELECT COUNT(*) FROM crops").fetchone()[0]
    ranked = ranked_keys(state)
    if state.done or n_stored > 2 * len(ranked) + 1000:
        unranked = {key for (key,) in crops.execute("SELECT key FROM crops")} - ranked
        crops.executemany("DELETE FROM crops WHERE key = ?", [(k,) for k in unranked])


def ranked_keys(state: SearchState) -> set[int]:
    """Keys of the images that some feature ranks."""
    keys = [r.keys.unique().cpu() for f in state.folds.values() for r in (f.top, f.bottom)]
    return set(torch.cat(keys).unique().tolist()) - {NO_KEY}


@dataclass(frozen=True, slots=True)
class _Decoded:
    row: Row
    pixels: np.ndarray[Any, np.dtype[np.uint8]] | None
    """[3, H, W]"""
    problem: str


@dataclass(frozen=True, slots=True)
class _Batch:
    items: list[_Decoded]
    position: Any


def _take_in(
    view: ModelView, state: SearchState, sites: list[Site], reduce: str, batch: _Batch, crops: sqlite3.Connection
) -> None:
    state.n_rows += len(batch.items)
    state.position = batch.position
    usable = [d for d in batch.items if d.pixels is not None]
    for item in batch.items:
        if item.pixels is None:
            state.n_skipped += 1
            if len(state.skipped) < _LISTED:
                state.skipped.append((item.row.name or str(item.row.key), item.problem))
    if not usable:
        return
    state.n_images += len(usable)
    stack = torch.from_numpy(np.stack([d.pixels for d in usable if d.pixels is not None]))
    pixels = stack.to(view.device, non_blocking=True).float() / 255
    keys = torch.tensor([d.row.key for d in usable], device=view.device)
    ranked = []

    def fold(site: Site, acts: Tensor) -> None:
        acts = acts.float()
        fires = split_tokens(view, acts, site)[1] > 0
        active = fires.to(torch.uint8).sum(1, dtype=torch.int32) / fires.shape[1]
        scores = site_scores(view, acts, site, reduce)
        ranked.append(state.folds[site].update(scores, active, keys))

    with torch.no_grad():
        record_each(view, pixels, sites, fold)
    entered = set(keys[torch.isin(keys, torch.cat(ranked))].tolist())
    crops.executemany(
        "INSERT OR IGNORE INTO crops VALUES (?, ?, ?, ?)",
        [(d.row.key, d.row.name, d.row.label, _jpeg(d.pixels)) for d in usable
         if d.pixels is not None and d.row.key in entered],
    )  # fmt: skip


def _jpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return encode(Image.fromarray(pixels.transpose(1, 2, 0)), "JPEG", quality=92, subsampling=0)


def _decoded(
    rows: Iterable[tuple[Row, Callable[[], Any]]], pool: Executor, n: int, limit: int | None, n_read: int
) -> Iterator[_Batch]:
    """Batches of n rows; a few are decoded ahead of the model."""
    waiting: deque[tuple[list[tuple[Row, Future[Any]]], Any]] = deque()
    stream = iter(rows)
    while True:
        batch: list[tuple[Row, Future[Any]]] = []
        position: Callable[[], Any] | None = None
        while len(batch) < n and (limit is None or n_read < limit) and (item := next(stream, None)) is not None:
            row, position = item
            batch.append((row, pool.submit(_decode, row.data)))
            n_read += 1
        if position is not None:
            waiting.append((batch, position()))
        if waiting and (not batch or len(waiting) > _WAITING_BATCHES):
            ready, after = waiting.popleft()
            yield _Batch([_Decoded(row, *future.result()) for row, future in ready], after)
        elif not batch:
            return


# A worker's preprocessing: set once in each worker, by `_start_worker`.
_preprocess: Callable[[Image.Image], Tensor] | None = None


def _start_worker(snapshot: Snapshot, config: Any, size: tuple[int, int]) -> None:
    global _preprocess
    _preprocess = partial(sized_pixels, load_preprocessing(snapshot, config)[0], size=size)


def _decode(data: bytes) -> tuple[np.ndarray[Any, np.dtype[np.uint8]] | None, str]:
    """Pixels that the model sees, in 8 bits, or why there are none."""
    assert _preprocess is not None
    try:
        pixels = _preprocess(open_image(data))
    except ImageError as error:
        return None, str(error)
    return np.asarray(pixels_to_image(pixels.clamp(0, 1).numpy())).transpose(2, 0, 1), ""


def _start_process(snapshot: Snapshot, config: Any, size: tuple[int, int]) -> None:
    torch.set_num_threads(1)  # the model needs the others
    _start_worker(snapshot, config, size)


def _decoders(view: ModelView, n: int) -> Executor:
    snapshot = fetch_model(view.model_id, view.revision)
    start = (snapshot, view.module.config, view.input_size)
    if n:
        return ProcessPoolExecutor(n, get_context("spawn"), _start_process, start)
    _start_worker(*start)
    return ThreadPoolExecutor(2)
