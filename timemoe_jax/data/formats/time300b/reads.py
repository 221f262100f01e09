"""Reading from many files in any order, of which a few stay open for the next read.

Opening a file takes longer than reading a window from it. Every thread has open files of its own,
so that no thread closes a file that another reads. Each read gives its position, so that forked
processes can share open files.
"""

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from timemoe_jax.errors import DataError

# A corpus has thousands of files; a process may often open no more than 1024.
MOST_OPEN = 32


class FileStamp(NamedTuple):
    """What tells a file from another that takes its place, and from what it was before.

    The device is left out, since it differs between hosts that share a file system. A new file may
    be given the inode of one that was deleted, so that size and time of change count as well.
    """

    inode: int
    size: int
    mtime_ns: int


def stamp_of(file: str | int) -> FileStamp:
    """The stamp of a path or a descriptor; an `OSError` if it is not there."""
    status = os.stat(file)
    return FileStamp(status.st_ino, status.st_size, status.st_mtime_ns)


class _Descriptors:
    """The open files of a thread by path, the last used at the end; they close with the thread."""

    def __init__(self) -> None:
        self.by_path: OrderedDict[str, int] = OrderedDict()

    def __del__(self) -> None:
        for descriptor in self.by_path.values():
            os.close(descriptor)

    def open(self, path: str, stamp: FileStamp | None) -> int:
        """The descriptor of a file, which must have a stamp unless that is None."""
        if path in self.by_path:
            descriptor = self.by_path[path]
            if stamp is None or stamp_of(descriptor) == stamp:
                self.by_path.move_to_end(path)
                return descriptor
            # Another file has taken its place, or it was written anew.
            os.close(self.by_path.pop(path))
        descriptor = os.open(path, os.O_RDONLY)
        if stamp is not None and stamp_of(descriptor) != stamp:
            os.close(descriptor)
            raise _changed(path)
        self.by_path[path] = descriptor
        if len(self.by_path) > MOST_OPEN:
            os.close(self.by_path.popitem(last=False)[1])
        return descriptor


def _changed(path: str) -> DataError:
    return DataError(f"{path} has changed since it was opened; open it again")


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.descriptors = _Descriptors()


_of_thread = _OfThread()


def read(
    path: str, values: UInt8[np.ndarray, " n"], offset: int, stamp: FileStamp | None = None
) -> int:
    """Fills `values` with the bytes of a file from `offset` on, and returns how many there were.

    They are fewer than asked for only where the file ends. With a stamp, another file that has
    taken the place is never read: one that is still open is read as it was, else it is a
    DataError, as it is for a file that was written over.
    """
    if not hasattr(os, "preadv"):
        if stamp is not None and stamp_of(path) != stamp:
            raise _changed(path)
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.readinto(values.data)
    descriptor = _of_thread.descriptors.open(path, stamp)
    done = count = os.preadv(descriptor, [values.data], offset)
    while count and done < values.size:  # one call returns no more than 2 GiB
        count = os.preadv(descriptor, [values.data[done:]], offset + done)
        done += count
    return done


def read_points(
    paths: Sequence[str],
    starts: Sequence[int],
    begin: int,
    values: Shaped[np.ndarray, " n"],
    stamps: Sequence[FileStamp],
) -> None:
    """Fills `values`, of the dtype of the files, with the points from `begin` on.

    `starts` holds the first point of each file, then the number of all points; `stamps` are those
    of the files when they were opened.
    """
    # A file without points shares its start with the next file: `bisect_right` finds that one.
    file, at, end = bisect.bisect_right(starts, begin) - 1, begin, begin + len(values)
    while at < end:
        upto = min(end, starts[file + 1])
        part = values[at - begin : upto - begin]
        try:
            offset = (at - starts[file]) * part.itemsize
            count = read(paths[file], part.view(np.uint8), offset, stamps[file])
        except OSError as error:
            raise DataError(f"{paths[file]} cannot be read: {error.strerror}") from None
        if count < part.nbytes:
            raise DataError(f"{paths[file]} has become shorter since it was opened; open it again")
        at, file = upto, file + 1
