"""Memory that is freed is kept: what a program needs is not asked of the system twice."""

import subprocess
import sys

import pytest

from timemoe_jax.runtime import host_memory

# What XLA does at each call of a program, on one thread and then on another. What aligning a piece
# leaves at its ends stays in a cache of the thread until that is full, so the first calls move on.
PROGRAM = """
import ctypes, resource, threading
from timemoe_jax.runtime import host_memory
{before}
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = ctypes.c_void_p
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
libc.free.argtypes = [ctypes.c_void_p]
size = 35_000_000

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def take_and_free(times):
    before = faults()
    for _ in range(times):
        piece = libc.aligned_alloc(64, size)
        libc.memset(piece, 1, size)
        libc.free(piece)
    return (faults() - before) * resource.getpagesize() / size

def settled():
    take_and_free(40)
    cleared.append(take_and_free(10))

cleared = []
settled()
thread = threading.Thread(target=settled)
thread.start()
thread.join()
print(*cleared)
"""


def _times_cleared(before: str, **environment: str) -> list[float]:
    """How often the system cleared a piece that was taken, written and freed ten times."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=True,
    )
    return [float(times) for times in result.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are glibc's")
def test_pages_are_cleared_once():
    # Else this C library keeps them anyway, and the module has no use.
    assert min(_times_cleared("")) > 9
    assert max(_times_cleared("assert host_memory.keep_freed_memory()")) < 1


def test_what_the_environment_says_goes_before(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not host_memory.keep_freed_memory()
