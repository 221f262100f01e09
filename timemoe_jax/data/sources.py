"""Random access to whole series that lie in files, without reading the files into memory.

A source knows the length of each of its series as soon as it is open, and reads one only when
asked. No file is held open between reads: a corpus of thousands of files stays within the limit
on open files, a source can be sent to another process, several threads can read from it, and a
file that was cut short meanwhile is an error rather than a crash.
"""

import json
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.sequence_source import SequenceSource, float_of
from timemoe_jax.data.time_moe_folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.errors import DataError

__all__ = [
    "ArraySource",
    "ConcatSource",
    "CsvSource",
    "JsonlSource",
    "NpySource",
    "SequenceSource",
    "TimeMoeFolderSource",
    "open_source",
    "write_time_moe_folder",
]

SUPPORTED = (
    "a folder with meta.json and data-1-of-N.bin (the Time-300B layout), .jsonl, .npy or .csv, "
    "or a folder that holds any of these"
)

_NUMBERS = {int, float, type(None)}


class JsonlSource(SequenceSource):
    """The series of a text file with one JSON object `{"sequence": [...]}`, or list, per line.

    Opening reads the file once, a line at a time, and keeps where each line begins. `null` is a
    missing value; blank lines are no series. Reading a part parses the whole line.

    Raises:
      DataError: the file does not exist, or a line is no JSON or holds anything but numbers.
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
    if not set(map(type, values)) <= _NUMBERS:
        at, value = next((k, v) for k, v in enumerate(values) if type(v) not in _NUMBERS)
        raise DataError(f"{where}: value {at} is {str(value)[:40]!r}; it must be a number or null")
    try:
        return np.array(values, np.float64)
    except OverflowError:
        raise DataError(f"{where} holds a whole number too large for float64") from None


class NpySource(SequenceSource):
    """The series of a .npy file: one [T], or the rows of [N, T]; read through a memory map.

    Raises:
      DataError: the file cannot be read as .npy, or holds no numbers, or has another rank.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        shape = self._array().shape
        self.lengths = np.full(shape[0] if len(shape) == 2 else 1, shape[-1], np.int64)

    def _array(self) -> np.ndarray:
        try:
            values = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{self._path} cannot be read as .npy: {error}") from None
        if values.dtype.kind not in "iuf" or values.ndim not in (1, 2):
            raise DataError(
                f"{self._path} holds {values.dtype} of shape {values.shape}; it must hold numbers "
                "[T], or [N, T] with a series in each row"
            )
        return values

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        values = self._array()
        if values.shape[-1] != self.lengths[i] or ((values.ndim == 2) and i >= values.shape[0]):
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        row = values[i, start:stop] if values.ndim == 2 else values[start:stop]
        # A copy, so that what is returned does not keep the file mapped.
        return np.array(row, float_of(values.dtype))

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._path} row {i}"


class CsvSource(SequenceSource):
    """The numeric columns of a CSV file, each a series.

    The numbers are held in memory: text has no random access. Large data belongs into a .npy
    file or a Time-300B folder.

    Raises:
      DataError: the file cannot be read, or a column holds text.
    """

    def __init__(self, path: str | os.PathLike[str]):
        from timemoe_jax.data.tables import read_csv

        self._path = Path(path)
        table = read_csv(self._path)
        self._columns = tuple(table.columns)
        # Series are read by column, so a column lies in one piece.
        self._values = np.ascontiguousarray(table.values.T)
        self.lengths = np.full(len(self._columns), self._values.shape[1], np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return self._values[i, start:stop].copy()

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._path} column {self._columns[i]}"


class ArraySource(SequenceSource):
    """Series that are in memory already.

    Args:
      series: one array [T] for each.
      names: what to call each in a message; by default "series 0" and so on.

    Raises:
      DataError: there are not as many names as series.
    """

    def __init__(
        self, series: Sequence[Float[np.ndarray, " _"]], names: Sequence[str] | None = None
    ):
        self._series = list(series)
        self._names = [f"series {i}" for i in range(len(series))] if names is None else list(names)
        if len(self._names) != len(self._series):
            raise DataError(
                f"{len(self._names)} names were given for {len(self._series)} series; give one each"
            )
        self.lengths = np.array([len(values) for values in series], np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        values = self._series[i][start:stop]
        return values.astype(float_of(values.dtype))

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return self._names[i]


class ConcatSource(SequenceSource):
    """The series of several sources, one source after the other."""

    def __init__(self, sources: Sequence[SequenceSource], skipped_files: Sequence[str] = ()):
        if not sources:
            raise DataError("there is no source to join; give at least one")
        self._sources = tuple(sources)
        self.lengths = np.concatenate([source.lengths for source in sources])
        self._ends = np.cumsum([len(source) for source in sources])
        inner = (file for source in sources for file in source.skipped_files)
        self.skipped_files = (*inner, *skipped_files)

    def _locate(self, i: int) -> tuple[SequenceSource, int]:
        which = int(np.searchsorted(self._ends, i, side="right"))
        return self._sources[which], i - (int(self._ends[which - 1]) if which else 0)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        source, inner = self._locate(i)
        return source.read(inner, start, stop)

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        source, inner = self._locate(i)
        return source.name(inner)


def open_source(paths: str) -> SequenceSource:
    """Opens files and folders as one source.

    Args:
      paths: a file, a folder, or several with commas between. A folder with meta.json is in the
        Time-300B layout; any other is searched, in sorted order, for such folders and for .jsonl,
        .npy and .csv files. What a search passes over is listed in `skipped_files`.

    Returns:
      the series of all of them, in order.

    Raises:
      DataError: a path does not exist or is of no supported kind, or nothing was found.
    """
    sources: list[SequenceSource] = []
    skipped: list[str] = []
    # A path may itself hold a comma.
    names = [paths] if os.path.exists(paths) else [p.strip() for p in paths.split(",")]
    for name in filter(None, names):
        path, before = Path(name), len(sources)
        if not path.exists():
            raise DataError(f"{path} does not exist; give {SUPPORTED}")
        if path.is_dir() and not (path / "meta.json").exists():
            _search(path, sources, skipped)
        else:
            sources.extend(_open_one(path))
        if len(sources) == before:
            raise DataError(f"{path} holds no series that can be read; give {SUPPORTED}")
    if not sources:
        raise DataError(f"no path was given; give {SUPPORTED}")
    return sources[0] if len(sources) == 1 and not skipped else ConcatSource(sources, skipped)


def _search(folder: Path, sources: list[SequenceSource], skipped: list[str]) -> None:
    """Adds the sources below a folder, and the files that are of no supported kind."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not (path / "meta.json").exists():
            _search(path, sources, skipped)
        else:
            found = _open_one(path, strict=False)
            sources.extend(found)
            if not found:
                skipped.append(str(path))


def _open_one(path: Path, strict: bool = True) -> list[SequenceSource]:
    """Opens a file or a Time-300B folder; one of another kind is an error if `strict`."""
    if path.is_dir():
        return [TimeMoeFolderSource(path)]
    kinds: dict[str, Callable[[Path], SequenceSource]] = {
        ".jsonl": JsonlSource,
        ".npy": NpySource,
        ".csv": CsvSource,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is not None:
        return [kind(path)]
    if strict:
        raise DataError(f"{path} has an ending that is not read; give {SUPPORTED}")
    return []
