"""Compiled programs that later processes find on disk, so that they need not compile them again."""

import os
from pathlib import Path

import jax

# Seconds of compilation from which on a program is kept.
MIN_SECONDS = 0.5


def use(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps the programs that this process compiles, and loads those of earlier ones.

    It holds for all of JAX in this process. A program is found again by the same versions on a
    machine of the same kind.

    Args:
      folder: where they are kept; by default `programs` in $TIMEMOE_CACHE, or in
        ~/.cache/timemoe_jax.

    Returns:
      the folder.
    """
    if folder is None:
        home = os.environ.get("TIMEMOE_CACHE") or "~/.cache/timemoe_jax"
        folder = Path(os.path.expanduser(home)) / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return Path(folder)
