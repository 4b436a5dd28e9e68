"""Rows of a dataset in batches, decoded ahead of the model in threads or processes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.errors import DatasetError, ImageError
from vitviz_hf.images import open_image, pixels_to_bytes
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.loading import load_preprocessing, sized_pixels
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Row

Value = TypeVar("Value")
Made = tuple[Value | None, str]
"""What was made of a row, and why it is left out; empty if it is not."""
Submit = Callable[[Row], Future[Made[Value]]]
"""Starts to work on a row, in a thread or a process."""
_Begun = tuple[list[tuple[Row, Future[Made[Value]]]], Any]
"""Rows that are worked on, and where the source goes on."""
_WAITING_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Item(Generic[Value]):
    """A row and what was made of it."""

    row: Row
    value: Value | None
    problem: str
    """Why it is left out; empty if it is not."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[Value]):
    """Rows that were read together."""

    items: list[Item[Value]]
    position: Any
    """Where the source goes on."""

    @property
    def usable(self) -> list[tuple[Row, Value]]:
        """What is not left out."""
        return [(i.row, i.value) for i in self.items if not i.problem and i.value is not None]

    @property
    def left_out(self) -> list[tuple[Row, str]]:
        """The others, with the reason."""
        return [(i.row, i.problem) for i in self.items if i.problem]


def read_batches(
    rows: Iterable[tuple[Row, Callable[[], Any]]], submit: Submit[Value], n: int, limit: int | None = None
) -> Iterator[Batch[Value]]:
    """Batches of n rows in their order; a few are worked on ahead of the reader.

    Args:
        rows: as a `Source` reads them.
        limit: rows to read; all if None. No further one is asked for.

    Raises:
        DatasetError: the rows break off; the whole batches before come first.
    """
    stream = islice(rows, limit)
    waiting: deque[_Begun[Value]] = deque()
    while True:
        batch, mark = [], None
        try:
            for row, mark in islice(stream, n):  # noqa: B007
                batch.append((row, submit(row)))
        except DatasetError:
            yield from map(_ended, waiting)
            raise
        if mark is not None:
            waiting.append((batch, mark()))
        if waiting and (not batch or len(waiting) > _WAITING_BATCHES):
            yield _ended(waiting.popleft())
        elif not batch:
            return


def _ended(begun: _Begun[Value]) -> Batch[Value]:
    rows, position = begun
    return Batch([Item(row, *future.result()) for row, future in rows], position)


Bytes = NDArray[Any]
"""[3, H, W] in 8 bits, as an array: between processes a tensor would take a file handle."""
_Decode = Callable[[bytes], Made[Bytes]]


@contextmanager
def decoders(view: ModelView, n_processes: int) -> Iterator[Submit[Bytes]]:
    """Decode rows to what the model sees, in 8 bits, in so many processes, or in threads if there are none."""
    if not n_processes:
        decode = partial(_decode, partial(sized_pixels, view.preprocess, size=view.input_size))
        with ThreadPoolExecutor(2) as threads:
            yield lambda row: threads.submit(decode, row.data)
        return
    worker = view.snapshot, view.module.config, view.input_size
    with ProcessPoolExecutor(n_processes, get_context("spawn"), _start_process, worker) as processes:
        yield lambda row: processes.submit(_decode_in_process, row.data)


def _decode(preprocess: Callable[[Image.Image], Tensor], data: bytes) -> Made[Bytes]:
    try:
        return pixels_to_bytes(preprocess(open_image(data))).numpy(), ""
    except ImageError as error:
        return None, str(error)


# Set by `_start_process` in a decoding process, which serves one reader; None everywhere else.
_decode_here: _Decode | None = None


def _start_process(snapshot: Snapshot, config: Any, size: tuple[int, int]) -> None:
    global _decode_here
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the model needs the others
    _decode_here = partial(_decode, partial(sized_pixels, load_preprocessing(snapshot, config)[0], size=size))


def _end_with_parent() -> None:
    """A process that is killed ends none of its own, which would wait for rows for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_in_process(data: bytes) -> Made[Bytes]:
    assert _decode_here is not None
    return _decode_here(data)
