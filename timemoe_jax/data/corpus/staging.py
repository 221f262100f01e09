"""Output that appears whole: it is written beside its place and moved there when complete."""

import glob
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from timemoe_jax.errors import DataError

_PARTIAL = ".partial"


@contextmanager
def staged(out: Path, parts: Sequence[str] = ()) -> Iterator[Path]:
    """Gives a scratch folder beside `out` that takes its name when the block ends without an error.

    It must be new or empty. With `parts`, the folders that the block writes below `out`, only they
    must be new or empty, and only they move where `out` exists already.
    """
    out = Path(os.path.abspath(out))
    for target in [out / part for part in parts] or [out]:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"{target} already exists; remove it, or give another name or folder")
    prefix = f".{out.name}."
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in sorted(out.parent.glob(f"{glob.escape(prefix)}*{_PARTIAL}")):
            message = f"{left} is left from a run that was killed, or is of one that still runs"
            warnings.warn(message, stacklevel=4)
        scratch = out.parent / f"{prefix}{uuid.uuid4().hex}{_PARTIAL}"
        scratch.mkdir()
        try:
            yield scratch
            _flush(scratch)
            if parts and out.exists():
                for part in parts:
                    publish(scratch / part, out / part)
            else:
                publish(scratch, out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        path, reason = error.filename or out, error.strerror or error
        raise DataError(f"{path} cannot be read or written: {reason}") from None


def publish(folder: Path, destination: Path) -> None:
    """Gives a complete folder its name, in a parent that is made if needed."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, destination)


def _flush(folder: Path) -> None:
    """Makes sure that files are on the disk before their folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as stream:
                os.fsync(stream.fileno())


@contextmanager
def claimed(folder: Path, name: str = "lock") -> Iterator[bool]:
    """Locks a folder, made if needed; yields False if another process holds the lock `name`.

    The system frees the lock when its process ends, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
