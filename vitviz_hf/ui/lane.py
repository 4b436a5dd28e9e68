"""Whose turn it is on the device.

Short jobs (a map, a ranking) take one turn. Long ones (an optimization, an experiment) go one after the other, and each
gives way after every frame, so that a short job waits for one frame at most and never for a whole run.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from statistics import fmean
from threading import Condition, Event, Thread, get_ident
from typing import TypeVar

from vitviz_hf.errors import BusyError

T = TypeVar("T")
_LAST_RUNS = 8
MOST_RUNS = 60
"""That wait: each takes a thread of the server for most of the time, and there are not many more."""


class Stopped(Exception):
    """The visitor stopped the run."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Runs that come before one."""

    before: int
    seconds: float
    """Until its start by the time of the last runs; 0 if there were none."""

    def __str__(self) -> str:
        runs = "one run" if self.before == 1 else f"{self.before} runs"
        return f"Waiting: {runs} before yours" + (f", about {self.seconds:.0f} s." if self.seconds else ".")


def unless_stopped(stop: Event, function: Callable[[], T]) -> T:
    """What a function gives that waits for others, such as a download.

    Raises:
        Stopped: `stop` was set. The function goes on: another visitor may wait for the same, or come back to it.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # also what libraries in Rust raise, which is no Exception
            result.set_exception(error)

    # The context says whose request it is.
    Thread(target=copy_context().run, args=(work,), daemon=True).start()
    while not wait([result], timeout=0.1).done:
        if stop.is_set():
            raise Stopped
    return result.result()


class Lane:
    """One job at a time, in the order of asking."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._busy = False
        self._owner: int | None = None
        """Thread that has the device."""
        self._turns: deque[object] = deque()
        self._runs: deque[object] = deque()
        self._seconds: deque[float] = deque(maxlen=_LAST_RUNS)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The device, inside the block; who has it already keeps it."""
        if self._owner == get_ident():
            yield
            return
        ticket = object()
        with self._changed:
            self._turns.append(ticket)
            try:
                self._changed.wait_for(lambda: not self._busy and self._turns[0] is ticket)
                self._busy, self._owner = True, get_ident()
            finally:
                self._turns.remove(ticket)
        try:
            yield
        finally:
            with self._changed:
                self._busy, self._owner = False, None
                self._changed.notify_all()

    def run(self, frames: Generator[T], stop: Event) -> Iterator[T | Waiting]:
        """The frames of a long job, each made in a turn of its own.

        Args:
            stop: ends the run at its next frame, or while it waits.

        Yields:
            While other runs are before it, how it waits, every second. Then the frames.

        Raises:
            Stopped: `stop` was set.
            BusyError: too many wait already.
        """
        ticket = object()
        with self._changed:
            if len(self._runs) > MOST_RUNS:
                raise BusyError(f"{MOST_RUNS} runs are waiting already; try again later.")
            self._runs.append(ticket)
        try:
            while before := self._before(ticket):
                if stop.is_set():
                    raise Stopped
                yield Waiting(before, before * fmean(self._seconds or [0.0]))
                with self._changed:
                    self._changed.wait_for(lambda: self._runs[0] is ticket, timeout=1)
            with closing(frames):
                yield from self._paced(frames, stop)
        finally:
            with self._changed:
                self._runs.remove(ticket)
                self._changed.notify_all()

    def _before(self, ticket: object) -> int:
        with self._changed:
            return self._runs.index(ticket)

    def _paced(self, frames: Generator[T], stop: Event) -> Iterator[T]:
        start = time.monotonic()
        while not stop.is_set():
            with self.turn():
                frame = next(frames, None)
            if frame is None:
                self._seconds.append(time.monotonic() - start)
                return
            yield frame
        raise Stopped
