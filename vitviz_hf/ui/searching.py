"""Searches that visitors ask for, without gradio: who asks for the same shares one.

A search goes in pieces of half a minute. Each takes its turn in the lane, and goes on from what the last one stored, so
that it may run in another process, as on ZeroGPU. Between two pieces, off the device, an atlas of what was read so far
is written. Rows are read ahead in a thread.
"""

import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Any

import torch
from safetensors import SafetensorError

from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.search import check_result, search_recipe, search_steps, site_list
from vitviz_hf.atlas.state import STATE, SearchState, load_state
from vitviz_hf.atlas.write import write_atlas
from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import AtlasError, DatasetAccessError, DatasetError, VitvizError, first_line
from vitviz_hf.hub import Token, is_hub_id
from vitviz_hf.manifest import cache_folder
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import ModelView, at_precision
from vitviz_hf.stream import SUFFIXES, Source, open_source
from vitviz_hf.ui.ahead import ReadAhead, UsedUp, read_kept
from vitviz_hf.ui.lane import Lane, Stopped, Waiting
from vitviz_hf.ui.made import (
    UPLOADED,
    close_atlas,
    disk_limit,
    drop_superseded,
    made_folder,
    made_name,
    make_room,
    newest_atlas,
)
from vitviz_hf.ui.shelf import Shelf

PIECE_SECONDS = 30
"""Of a search on the device, before others have their turn."""
FIRST_IMAGES = 100
"""After which there is a first atlas; others follow when there are twice as many images."""
MAX_UPLOADS = 1000
_WATCH_SECONDS = 0.5
_log = logging.getLogger(__name__)
Gpu = Callable[[Any], Callable[[Callable[..., Any]], Callable[..., Any]]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a visitor wants to be searched."""

    dataset: str
    """Hub id, or `builtin`."""
    split: str | None
    limit: int
    """Photographs to read at most."""
    layer: int | None
    """All if None."""
    uploads: Path | None = None
    """Folder of the visitor's own photographs, in place of the dataset; it is deleted after the search."""

    def __str__(self) -> str:
        return "your photographs" if self.uploads else self.dataset


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a search is."""

    doing: str
    """A sentence."""
    name: str = ""
    """Of its atlas."""
    written: int = 0
    """Images in the newest atlas of that name; 0 if there is none."""
    ended: bool = False


class Run:
    """A search that goes on, whoever watches it; it is stopped when nobody does."""

    def __init__(self, snapshot: Snapshot, asked: Asked, token: Token = False) -> None:
        """`token` is the visitor's own, where the dataset needs it."""
        self.snapshot, self.asked, self.token, self.stop = snapshot, asked, token, Event()
        self.seen = Seen(f"Opening {asked} ...")
        self.error: VitvizError | None = None
        self.watching = 0
        self._begun: tuple[float, int] | None = None

    def tell(self, doing: str, **facts: Any) -> None:
        """Say how far it is."""
        self.seen = replace(self.seen, doing=doing, **facts)

    def count(self, rows: int, total: int) -> None:
        """Say how far it is, by rows."""
        begun, at = self._begun = self._begun or (time.monotonic(), rows)
        seconds = time.monotonic() - begun
        text = f"{rows:,} of {total:,} photographs"
        if rows > at:
            rate = (rows - at) / seconds
            text += f", {rate:.{0 if rate >= 10 else 1}f} a second, {_minutes((total - rows) / rate)} left"
        self.tell(f"{text}.")


class Searches:
    """The searches of all visitors."""

    def __init__(self, shelf: Shelf, lane: Lane, gpu: Gpu) -> None:
        self._shelf, self._lane = shelf, lane
        self._piece = gpu(2 * PIECE_SECONDS)(self.read_piece)
        self._runs: dict[object, Run] = {}
        self._names: set[str] = set()
        """That are searched for now."""
        self._changed = Condition()

    def watch(self, snapshot: Snapshot, asked: Asked, stop: Event, token: Token = False) -> Iterator[Seen]:
        """How far a search is, about twice a second, until it ends.

        It begins with the first who watches it. Who sets `stop`, or closes this, leaves; when the last one leaves, the
        search ends, and an atlas of what was read is kept.

        Args:
            token: the visitor's own, where the dataset needs it; the search is then this visitor's only.

        Raises:
            VitvizError: it failed.
        """
        run = self._join(snapshot, asked, token)
        try:
            while not run.seen.ended and not stop.is_set():
                yield run.seen
                stop.wait(_WATCH_SECONDS)
        finally:
            with self._changed:
                run.watching -= 1
                if not run.watching:
                    run.stop.set()
                    self._changed.notify_all()
        if not run.stop.is_set():
            yield replace(run.seen, doing="It goes on: another visitor asked for the same.", ended=True)
            return
        while not run.seen.ended:
            yield replace(run.seen, doing="Stopping; what was read is kept ...")
            time.sleep(_WATCH_SECONDS)
        if run.error:
            raise run.error
        yield run.seen

    def _join(self, snapshot: Snapshot, asked: Asked, token: Token) -> Run:
        key = (snapshot.model_id, snapshot.revision, asked, token)
        with self._changed:
            run = self._runs.get(key)
            if run is None or run.stop.is_set():
                run = self._runs[key] = Run(snapshot, asked, token)
                # On ZeroGPU the context says whose time it takes.
                Thread(target=copy_context().run, args=(self._work, key, run), daemon=True).start()
            run.watching += 1
        return run

    def read_piece(
        self, snapshot: Snapshot, folder: Path, about: Source, config: SearchConfig, images: int
    ) -> Generator[tuple[int, bool]]:
        """Go on with the search in a folder for half a minute, or until it has so many images in all.

        Yields:
            Rows so far, and whether it is at its end, after every batch.
        """
        view, start = self._shelf.view(snapshot), time.monotonic()
        source = replace(about, read=read_kept(folder))
        with closing(search_steps(view, source, config, folder, resume=True)) as steps, suppress(UsedUp):
            for state in steps:
                yield state.n_rows, state.done
                if state.n_images >= images or time.monotonic() - start > PIECE_SECONDS:
                    return

    def _work(self, key: object, run: Run) -> None:
        try:
            self._search(run)
        except VitvizError as error:
            run.error = error
        except Stopped:
            run.tell("Stopped before a photograph was searched.")
        except (OSError, sqlite3.Error, SafetensorError) as error:
            run.error = _unstored(error)
        except Exception as error:
            _log.exception("a search failed")
            run.error = AtlasError(f"the search failed on the server ({type(error).__name__}); it has been logged.")
        finally:
            with self._changed:
                if self._runs.get(key) is run:
                    del self._runs[key]
            if run.asked.uploads:
                shutil.rmtree(run.asked.uploads, ignore_errors=True)
            run.tell(run.seen.doing, ended=True)

    def _search(self, run: Run) -> None:
        source, view = _open(run.asked, run.token), self._shelf.described(run.snapshot)
        config = _config(view, run.asked)
        site_list(view, config)
        recipe = search_recipe(view, source, config)
        name = made_name(recipe)
        folder = made_folder(name) / "search"
        closed = [] if self._shelf.is_open(run.snapshot) else [("model", run.snapshot.model_id)]
        closed += [("dataset", source.dataset)] if run.token else []
        with self._taken(name, run.stop):
            if closed:
                close_atlas(name, closed)
            run.tell(run.seen.doing, name=name, written=_images(name))
            if run.seen.written and not folder.is_dir():
                run.tell("It was searched before: here is its atlas.")
                return
            self._check_room()
            with closing(ReadAhead(source, folder, run.asked.limit)) as ahead:
                state, why = self._read(run, source, recipe, config, ahead)
            if state.done:
                shutil.rmtree(folder)
            lost = f", {state.n_skipped:,} could not be read" if state.n_skipped else ""
            run.tell(f"{why}: {state.n_images:,} photographs were searched{lost}.{'' if state.done else _GOES_ON}")

    @contextmanager
    def _taken(self, name: str, stop: Event) -> Iterator[None]:
        """Nobody else searches for this name inside the block; afterwards there is an atlas of it, or nothing."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._names or stop.is_set())
            if name in self._names:
                raise Stopped
            self._names.add(name)
        try:
            yield
        finally:
            if not newest_atlas(name):
                shutil.rmtree(made_folder(name), ignore_errors=True)
            with self._changed:
                self._names.discard(name)
                self._changed.notify_all()

    def _check_room(self) -> None:
        if make_room(self._names) >= disk_limit():
            raise AtlasError(
                f"no space is left for atlases on this server; the limit is {disk_limit() / 1e9:g} GB.",
                "Raise it with the environment variable VITVIZ_ATLAS_GB.",
                "Try again later, or make one on your own machine with 'vitviz search'.",
            )

    def _read(
        self, run: Run, source: Source, recipe: dict[str, Any], config: SearchConfig, ahead: ReadAhead
    ) -> tuple[SearchState, str]:
        """Piece after piece, with an atlas now and then; the last state, whose atlas is written, and why it ends."""
        folder, about = made_folder(run.seen.name) / "search", replace(source, read=_no_rows)
        total = min(run.asked.limit, source.n_rows or run.asked.limit)
        while True:
            _wait(run, ahead, FIRST_IMAGES + 4 * config.batch)
            aim, failure, done = max(FIRST_IMAGES, 2 * run.seen.written), ahead.failure, False
            piece = self._piece(run.snapshot, folder, about, config, aim)
            with suppress(Stopped):
                for frame in self._lane.run(piece, run.stop):
                    if isinstance(frame, Waiting):
                        run.tell(str(frame))
                    else:
                        run.count(frame[0], total)
                        done = frame[1]
            state = _stored(folder, recipe)
            ahead.drop(state.n_rows if state else 0)
            why = "Done" if done else "Stopped" if run.stop.is_set() else ""
            why = why or ("The rest cannot be read now" if failure and ahead.ready < config.batch else "")
            if not why and make_room(self._names) > disk_limit():
                why = f"Stopped at the server's limit of {disk_limit() / 1e9:g} GB"
            if state and state.n_images and (why or state.n_images >= aim):
                self._write(run, source, recipe, state)
            if why:
                return _whole(source, state, failure), why

    def _write(self, run: Run, source: Source, recipe: dict[str, Any], state: SearchState) -> None:
        """The atlas of what was read so far."""
        place = made_folder(run.seen.name)
        check_result(self._shelf.described(run.snapshot), source, state)
        if not (place / f"{state.n_images:08}").is_dir():
            write_atlas(place / f"{state.n_images:08}", recipe, state, place / "search")
        drop_superseded(place, 2)  # somebody may be reading the one before
        run.tell(run.seen.doing, written=state.n_images)


def keep_uploads(paths: Sequence[str]) -> Path:
    """Copies of a visitor's photographs in a folder of their own, under names that tell what is in them.

    Raises:
        DatasetError: none, or too many.
    """
    if not 0 < len(paths) <= MAX_UPLOADS:
        raise DatasetError(f"choose from 1 to {MAX_UPLOADS:,} photographs; got {len(paths):,}.")
    folder = Path(tempfile.mkdtemp(prefix="vitviz-"))
    for path in map(Path, paths):
        data = path.read_bytes()
        suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".png"  # what it is, its bytes tell
        (folder / f"{path.stem[:80]}-{hashlib.sha256(data).hexdigest()[:16]}{suffix}").write_bytes(data)
    return folder


_GOES_ON = " Search the same again, and it goes on from there."


def _open(asked: Asked, token: Token) -> Source:
    if asked.uploads:
        return replace(open_source(str(asked.uploads)), dataset=UPLOADED)
    dataset = asked.dataset.strip()
    if dataset != BUILTIN and (not is_hub_id(dataset) or "/" not in dataset or Path(dataset).exists()):
        raise DatasetAccessError(f"{dataset!r} is not a Hub id; write OWNER/NAME, or 'builtin'.")
    return open_source(dataset, asked.split, token=token)


def _config(view: ModelView, asked: Asked) -> SearchConfig:
    zero = os.environ.get("SPACES_ZERO_GPU")
    fast = torch.cuda.is_available() or zero
    layers = None if asked.layer is None else (asked.layer,)
    # Named, since on ZeroGPU the model that is asked for it is on the CPU and searches elsewhere.
    precision = at_precision(view, "bfloat16" if zero else "auto").precision
    # On a CPU a batch takes as long as it has images, and others wait for it.
    return SearchConfig(layers=layers, limit=asked.limit, batch=32 if fast else 4, precision=precision)


def _wait(run: Run, ahead: ReadAhead, n: int) -> None:
    while not ahead.wait_for(n, _WATCH_SECONDS) and not run.stop.is_set():
        run.tell(f"Reading {run.asked}: {ahead.ready:,} photographs so far ...")


def _no_rows(rank: int, n_ranks: int, position: Any) -> Iterator[Any]:
    return iter(())


def _stored(folder: Path, recipe: dict[str, Any]) -> SearchState | None:
    path = folder / STATE
    if not path.is_file():
        return None
    return load_state(path, recipe | {"rank": 0, "n_ranks": 1}, torch.device("cpu"))


def _whole(source: Source, state: SearchState | None, failure: Exception | None) -> SearchState:
    """The state, if anything was searched."""
    if state and state.n_images:
        return state
    if failure:
        raise failure
    if state and state.done:
        raise DatasetError(f"{source.dataset!r} held no usable image ({state.n_skipped} were skipped).")
    raise Stopped


def _images(name: str) -> int:
    newest = newest_atlas(name)
    return int(newest.name) if newest else 0


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"


def _unstored(error: Exception) -> AtlasError:
    return AtlasError(
        f"the server could not store the search ({first_line(error)}).",
        f"Make room in '{cache_folder()}'.",
        "Try again later, or search fewer photographs.",
    )
