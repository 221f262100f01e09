"""Compiled programs on disk, so that later processes need not compile them again."""

import os
from pathlib import Path
from typing import Any

import jax

# A program that took fewer seconds to compile is not kept.
MIN_SECONDS = 0.2
# What the folder may hold; of more, the programs that were not used for longest are removed.
MAX_BYTES = 2**30
OFF = "off"  # of $TIMEMOE_CACHE: nothing is kept


def use(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps the programs that JAX compiles in this process, and loads those of earlier processes.

    The same versions find a program again on a machine of the same kind. The folder, which is
    returned, is by default `programs` in $TIMEMOE_CACHE, or in ~/.cache/timemoe_jax. Of more than a
    gigabyte the programs that were not used for longest are removed.
    """
    from jax.experimental.compilation_cache import compilation_cache as jax_cache

    place = _default_folder() if folder is None else Path(folder)
    if _setting("jax_compilation_cache_dir") != str(place):
        jax_cache.reset_cache()  # JAX looks at the folder once, at the first program it compiles
        jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    trim(place, MAX_BYTES)
    return place


def use_by_default() -> Path | None:
    """As `use` of the default folder, unless somebody decided otherwise; never an error.

    Returns None, and changes nothing, where $TIMEMOE_CACHE is `off`, where JAX has a folder already
    or was told to keep nothing, and where the folder cannot be written.
    """
    decided = _setting("jax_compilation_cache_dir") is not None
    if decided or not _setting("jax_enable_compilation_cache"):
        return None
    if os.environ.get("TIMEMOE_CACHE", "").lower() == OFF:
        return None
    try:
        place = _default_folder()
        place.mkdir(parents=True, exist_ok=True)
        return use(place) if os.access(place, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):  # no home, no room, or something else of that name
        return None


def trim(folder: Path, most: int) -> None:
    """Removes the files of a folder that were not used for longest, until it holds `most` bytes."""
    files = []
    try:
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                files.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
    except OSError:
        return
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= most:
            return
        try:
            os.unlink(path)
            held -= size
        except OSError:  # another process was faster, or it is not ours
            continue


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _default_folder() -> Path:
    home = os.environ.get("TIMEMOE_CACHE") or "~/.cache/timemoe_jax"
    return Path(home).expanduser() / "programs"
