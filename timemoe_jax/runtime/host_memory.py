"""How a program of this library holds the memory of its host."""

import ctypes
import os
import sys

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER, _TOP_PAD = -1, 2**28


def keep_freed_memory() -> bool:
    """Has the process keep memory that is freed for what it allocates next.

    On a CPU XLA allocates the intermediate arrays of a program anew at each call, all in one piece.
    The C library takes a piece of more than 32 MiB from the system and gives it back at once, so
    that at each call the system clears every page of it, which of an update of a small model is a
    good part. Kept, the pages are cleared once; in exchange a process holds for good what it held
    at its most. There is one arena then, since no other than the first can hold such pieces.

    It must come before the first use of a device, whose threads choose their arenas.

    Returns:
      whether it was done: not where the C library is not glibc, nor where an environment variable
      (MALLOC_..., GLIBC_TUNABLES) says how memory is to be held.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, _NEVER),
        (_M_TOP_PAD, _TOP_PAD),
        (_M_ARENA_MAX, 1),
    )
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)
