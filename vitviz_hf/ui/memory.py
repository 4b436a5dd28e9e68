"""What the server gives back to the machine."""

import ctypes
import os
import time
from collections.abc import Callable
from functools import cache
from threading import Thread

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER, _LARGEST, _ARENAS, _SECONDS = 1 << 30, 1 << 25, 2, 1.0


@cache
def return_freed_memory() -> bool:
    """Make the C library give freed tensors back to the system; False where it has no such knobs (not glibc).

    Handlers run on many threads. Each gets a heap of its own, where holes stay: benchmarks/memory.py
    measures how the server grows. Here they share two heaps, of which the free pages go back once a second. At once
    would cost a third more time: each step of a loop would ask the system for its tensors again.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        return False

    def start() -> None:
        Thread(target=_trim_on, args=(trim,), daemon=True).start()

    start()
    os.register_at_fork(after_in_child=start)  # which has no other thread than the one that forked
    return all([mallopt(_ARENA_MAX, _ARENAS), mallopt(_MMAP_THRESHOLD, _LARGEST), mallopt(_TRIM_THRESHOLD, _NEVER)])


def _trim_on(trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(_SECONDS)
        trim(0)
