"""The memory of the host: how much is free, and how a process keeps what it has freed."""

import ctypes
import os
import sys

import psutil

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER, _TOP_PAD = -1, 2**28


def free_bytes() -> int:
    """How many bytes a process can still take without swapping."""
    return psutil.virtual_memory().available


def keep_freed_memory() -> bool:
    """Makes the process keep freed memory for its next allocations; returns whether it did.

    On a CPU, XLA allocates the intermediate arrays of a program anew at each call, all in one
    piece. The C library takes a piece of more than 32 MiB from the system and gives it back at
    once, so the system clears each of its pages at every call, which is a good part of an update of
    a small model. Kept pages are cleared once; in exchange, a process never gives back what it held
    at its peak. Only one arena is left, since no other than the first can hold such pieces.

    Call it before the first use of a device, whose threads choose their arenas. It does nothing
    where the C library is not glibc, or where an environment variable (MALLOC_..., GLIBC_TUNABLES)
    says how to hold memory.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_set or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _TOP_PAD, _M_ARENA_MAX: 1}
    done = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(done)
