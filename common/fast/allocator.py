"""Memory that is kept for reuse."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tells the C allocator to keep what is freed for the next step; returns whether it obeyed (glibc only).

    By default every tensor above 32 MB is mapped anew and its pages are zeroed at first touch, which costs more
    than most elementwise operations on it. The process then holds its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    kept = all((mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 64 * 2**20)))
    return bool(kept and mallopt(arena_max, 1))  # the backward pass runs in a thread, whose own arena would give back
