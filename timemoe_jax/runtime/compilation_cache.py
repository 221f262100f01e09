"""Compiled programs on disk, so that later processes need not compile them again."""

import os
from pathlib import Path

import jax

# A program that took fewer seconds to compile is not kept.
MIN_SECONDS = 0.5


def use(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps the programs that JAX compiles in this process, and loads those of earlier processes.

    The same versions find a program again on a machine of the same kind. The folder, which is
    returned, is by default `programs` in $TIMEMOE_CACHE, or in ~/.cache/timemoe_jax.
    """
    if folder is None:
        home = os.environ.get("TIMEMOE_CACHE") or "~/.cache/timemoe_jax"
        folder = Path(os.path.expanduser(home)) / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return Path(folder)
