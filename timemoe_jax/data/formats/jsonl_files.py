"""Series in `.jsonl` files: one JSON value a line."""

import json
import os
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.formats.npy_files import NUMBERS
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError


class JsonlSource(SequenceSource):
    """The series of a text file with one JSON object `{"sequence": [...]}`, or list, per line.

    Opening reads the file once, a line at a time, and keeps where each line begins. `null` is a
    missing value; blank lines are no series. Reading a part parses the whole line.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        offsets, lines, lengths = array("q"), array("q"), array("q")
        with _open(self._path) as stream:
            offset = 0
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    offsets.append(offset)
                    lines.append(number)
                    lengths.append(len(_parse_line(line, self._path, number)))
                offset += len(line)
        self._offsets, self._lines = np.array(offsets, np.int64), np.array(lines, np.int64)
        self.lengths = np.array(lengths, np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        with _open(self._path) as stream:
            stream.seek(int(self._offsets[i]))
            values = _parse_line(stream.readline(), self._path, int(self._lines[i]))
        if len(values) != self.lengths[i]:
            raise DataError(f"{self.name(i)} has changed since it was opened; open it again")
        return values[start:stop]

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._path} line {self._lines[i]}"


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _parse_line(line: bytes, path: Path, number: int) -> Float[np.ndarray, " T"]:
    """Turns one line of a .jsonl file into a float64 series."""
    where = f"{path} line {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from None
    if isinstance(values, dict):
        if "sequence" not in values:
            raise DataError(f'{where} has no "sequence", but {sorted(values)}')
        values = values["sequence"]
    if not isinstance(values, list):
        raise DataError(f'{where} must be {{"sequence": [...]}} or a list of numbers')
    # Types rather than isinstance: true and false are whole numbers to Python.
    if not set(map(type, values)) <= NUMBERS:
        at, value = next((k, v) for k, v in enumerate(values) if type(v) not in NUMBERS)
        raise DataError(f"{where}: value {at} is {str(value)[:40]!r}; it must be a number or null")
    try:
        return np.array(values, np.float64)
    except OverflowError:
        raise DataError(f"{where} holds a whole number too large for float64") from None
