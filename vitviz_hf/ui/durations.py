"""How many seconds of a shared GPU to ask for: what a job took here before, and a guess for its first run only."""

import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from cachetools import LRUCache

from vitviz_hf.manifest import replace_file

T = TypeVar("T")
_SPARE, _MOST = 1.5, 120
"""Factor on what was measured, and most seconds that are asked for."""
_FORGOTTEN = 0.9
"""Share of the longest run that a shorter one leaves."""


class Durations:
    """Of each job the seconds until its first frame, and those of a unit of work after it (a step of one copy)."""

    def __init__(self, path: Path | None = None) -> None:
        """`path` keeps them from one start of the server to the next."""
        self._path, self._lock = path, Lock()
        self._known: LRUCache[str, tuple[float, float]] = LRUCache(256)
        if path:
            with suppress(OSError, ValueError, TypeError):
                self._known.update({str(k): (float(a), float(b)) for k, (a, b) in json.loads(path.read_text()).items()})

    def ask(self, job: str, guess: float, units: float = 0) -> int:
        """Whole seconds for a job of so many units; by the guess if it never ran."""
        with self._lock:
            known = self._known.get(job)
        wanted = 2 + _SPARE * (known[0] + units * known[1]) if known else guess
        return min(_MOST, math.ceil(wanted))

    def took(self, job: str, first: float, each: float = 0.0) -> None:
        """What a run measured: the longest counts, and is slowly forgotten."""
        with self._lock:
            old = self._known.get(job, (0.0, 0.0))
            self._known[job] = max(first, _FORGOTTEN * old[0]), max(each, _FORGOTTEN * old[1])
            if self._path and (first > old[0] or each > old[1]):
                with replace_file(self._path) as part:
                    part.write_text(json.dumps(dict(self._known)))

    def failed(self, job: str) -> None:
        """A run ended otherwise, perhaps for want of time: the next one asks by the guess."""
        with self._lock:
            self._known.pop(job, None)


def name_job(job: Callable[..., Any], *args: Any) -> str:
    """A job and the model that it is of, its first argument."""
    model = getattr(args[0], "model_id", "") if args else ""
    return f"{job.__qualname__} {model}".strip()


def timed(job: Callable[..., T]) -> Callable[..., tuple[float, T]]:
    """The job with the seconds that it took where it ran, without those that it waited for a device."""

    @wraps(job)
    def run(*args: Any) -> tuple[float, T]:
        start = time.monotonic()
        result = job(*args)
        return time.monotonic() - start, result

    return run


def timed_frames(job: Callable[..., Generator[T]]) -> Callable[..., Generator[tuple[float, T]]]:
    """As `timed`, of a job that gives frames: the seconds of each."""

    @wraps(job)
    def run(*args: Any) -> Generator[tuple[float, T]]:
        frames = job(*args)
        try:
            start = time.monotonic()
            for frame in frames:
                taken = time.monotonic() - start
                yield taken, frame
                start = time.monotonic()  # between two frames the device was another's
        finally:
            frames.close()

    return run
