"""One process at a time in a folder."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timemoe_jax.errors import DataError

PARTIAL = ".partial"


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder on the file system of the output, which is gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=PARTIAL, dir=out.parent))
    # Others may read what will be moved from here, as they may read any new folder.
    mask = os.umask(0)
    os.umask(mask)
    scratch.chmod(0o777 & ~mask)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Staging:
    """A folder beside `out` that takes its name if all goes well, and is removed if not."""

    def __init__(self, out: Path):
        self._out = out

    def __enter__(self) -> Path:
        out = self._out
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out} is in use; give a folder that is new or empty")
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{out.name}."
        for left in sorted(out.parent.glob(f"{prefix}*.part")):
            warnings.warn(f"{left} is left from a run that did not end; delete it", stacklevel=3)
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=out.parent))
        self._folder.chmod(0o777 & ~_umask())
        return self._folder

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for path in self._folder.rglob("*"):
                    if path.is_file():
                        _flush(path)
                os.replace(self._folder, self._out)
        except OSError as error:
            raise DataError(f"{self._out} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Makes sure that a file is on the disk before the folder gets its name."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def end_with_parent() -> None:
    """Ends this process when its parent has ended."""
    # A worker whose parent was killed would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Keeps other processes that ask from a folder, which is made; False where one of them has it.

    The system gives the lock free when its process ends, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
