"""What the server gives back to the machine."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_BYTES, _ARENAS = 1 << 18, 2


def return_freed_memory() -> bool:
    """Make the C library give freed tensors back to the system; False where it has no such knobs (not glibc).

    Gradio runs handlers on up to 40 threads. Each gets a heap of its own, and after the first large tensor is freed
    glibc puts the next ones of this size there too, where holes stay: benchmarks/memory.py measures how the server
    grows with it and without.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(_ARENA_MAX, _ARENAS), mallopt(_MMAP_THRESHOLD, _BYTES), mallopt(_TRIM_THRESHOLD, _BYTES)])
