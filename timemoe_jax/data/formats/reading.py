"""Errors that name the file that is read, and text files with a series per line."""

import contextlib
import struct
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError

# What NumPy, zipfile and pyarrow raise for damaged files; an encrypted archive is a RuntimeError.
_OF_DAMAGE: tuple[type[Exception], ...] = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
    *(tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def reading(path: Path, kind: str, *others: type[Exception]) -> Iterator[None]:
    """Turns what a damaged file makes a library raise into an error that names the file."""
    try:
        yield
    except DataError:
        raise
    except _OF_DAMAGE + others as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as {kind}: {reason}") from None


def open_binary(path: Path) -> BinaryIO:
    """Opens a file to read bytes; a DataError says that it cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


class LineSource(SequenceSource):
    """The series of a text file with one per line, which a scan finds and a read parses."""

    _path: Path

    def _scan(self, stream: BinaryIO, first: int, count: Callable[[bytes, int], int]) -> None:
        """Goes through the lines from `first` on; `count` gives the points of a series."""
        offsets, lines, lengths = array("q"), array("q"), array("q")
        offset = stream.tell()
        for number, line in enumerate(stream, start=first):
            if line.strip() and not self._is_comment(line):
                offsets.append(offset)
                lines.append(number)
                lengths.append(count(line, number))
            offset += len(line)
        self._offsets, self._lines = np.array(offsets, np.int64), np.array(lines, np.int64)
        self.lengths = np.array(lengths, np.int64)

    def _is_comment(self, line: bytes) -> bool:
        return False

    def _line(self, i: int) -> bytes:
        with open_binary(self._path) as stream:
            stream.seek(int(self._offsets[i]))
            return stream.readline()

    def _check_unchanged(self, i: int, points: int) -> None:
        if points != self.lengths[i]:
            raise DataError(f"{self.name(i)} has changed since it was opened; open it again")

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        values = self._parse(self._line(i), int(self._lines[i]))
        self._check_unchanged(i, len(values))
        return values[start:stop]

    def _parse(self, line: bytes, number: int) -> Float[np.ndarray, " T"]:
        """The series in line `number`."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._path} line {self._lines[i]}"
