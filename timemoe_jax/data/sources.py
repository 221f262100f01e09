"""Random access to whole series that lie in files, without reading the files into memory.

A source knows the length of each of its series as soon as it is open, and reads one only when
asked. No more than a few files are held open between reads: a corpus of thousands of files stays
within the limit on open files, a source can be sent to another process, several threads can read
from it, and a file that was cut short meanwhile is an error rather than a crash.
"""

import contextlib
import json
import os
import struct
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.basic_sources import ArraySource, ConcatSource
from timemoe_jax.data.columnar import (
    DATASET_DICT,
    is_cache,
    is_dataset_folder,
    open_columnar,
    open_dataset_folder,
)
from timemoe_jax.data.columnar_files import ARROW_ENDINGS, PARQUET_ENDINGS
from timemoe_jax.data.sequence_source import SequenceSource, float_of
from timemoe_jax.data.table_layout import ColumnNames, Kind, find_layout
from timemoe_jax.data.time_moe_folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.data.tsf import TsfSource
from timemoe_jax.errors import DataError

__all__ = [
    "ArraySource",
    "ColumnNames",
    "ConcatSource",
    "CsvSource",
    "JsonlSource",
    "NpySource",
    "NpzSource",
    "SequenceSource",
    "TimeMoeFolderSource",
    "TsfSource",
    "find_files",
    "open_file",
    "open_source",
    "write_time_moe_folder",
]

SUPPORTED = (
    "a folder with meta.json and data-1-of-N.bin (the Time-300B layout), a Hugging Face dataset "
    "saved to disk, .jsonl, .npy, .npz, .csv, .tsf, .parquet, .arrow or .feather, or a folder "
    "that holds any of these"
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
        with _reading(self._path, ".npy"):
            values = np.load(self._path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):
            values.close()
            raise DataError(f"{self._path} is an archive of arrays; name it .npz")
        _check_array(str(self._path), values.shape, values.dtype)
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

    Args:
      path: the file.
      names: the target columns, to leave the others out; a timestamp column must be the first.

    Raises:
      DataError: the file cannot be read, a column holds text, or one that was named is not there.
    """

    def __init__(self, path: str | os.PathLike[str], names: ColumnNames | None = None):
        from timemoe_jax.data.tables import frequency_of, read_csv

        self._path = Path(path)
        table = read_csv(self._path)
        kinds: dict[str, Kind] = dict.fromkeys(table.columns, "number")
        if table.timestamp_name is not None:
            kinds = {table.timestamp_name: "time", **kinds}
        layout = find_layout(str(self._path), kinds, names or ColumnNames())
        self.frequency = frequency_of(table.timestamps)
        self._columns, self.ignored_columns = layout.targets, layout.ignored
        # Series are read by column, so a column lies in one piece.
        chosen = [table.columns.index(name) for name in self._columns]
        self._values = np.ascontiguousarray(table.values.T[chosen])
        self.lengths = np.full(len(self._columns), self._values.shape[1], np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return self._values[i, start:stop].copy()

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        return f"{self._path} column {self._columns[i]}"

    def label(self, i: int) -> str:
        """The header of the column."""
        return self._columns[i]


class NpzSource(SequenceSource):
    """The series of the arrays of a .npz file: each one [T], or the rows of [N, T].

    Opening reads the headers alone; a read unpacks the array that the series is in.

    Raises:
      DataError: the file is no .npz, or an array holds no numbers, or has another rank.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._keys: list[str] = []
        lengths, begins = [], [0]
        with _reading(self._path, ".npz"), zipfile.ZipFile(self._path) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    raise DataError(f"{self._path} holds {member!r}; it must hold arrays alone")
                with archive.open(member) as stream:
                    shape, dtype = _npy_header(stream)
                self._keys.append(member.removesuffix(".npy"))
                _check_array(f"{self._path} array {self._keys[-1]!r}", shape, dtype)
                lengths += [shape[-1]] * (shape[0] if len(shape) == 2 else 1)
                begins.append(len(lengths))
            self.lengths = np.array(lengths, np.int64)
        self._begins = np.array(begins, np.int64)

    def _locate(self, i: int) -> tuple[str, int]:
        which = int(np.searchsorted(self._begins, i, side="right")) - 1
        return self._keys[which], i - int(self._begins[which])

    def _array(self, key: str) -> np.ndarray:
        with (
            _reading(self._path, ".npz"),
            zipfile.ZipFile(self._path) as archive,
            archive.open(f"{key}.npy") as stream,
        ):
            return np.lib.format.read_array(stream, allow_pickle=False)

    def _row(self, values: np.ndarray, row: int, i: int) -> Float[np.ndarray, " T"]:
        _check_array(self.name(i), values.shape, values.dtype)
        rows = np.atleast_2d(values)
        if row >= len(rows) or rows.shape[1] != self.lengths[i]:
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        return rows[row]

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        key, row = self._locate(i)
        values = self._row(self._array(key), row, i)[start:stop]
        return values.astype(float_of(values.dtype))

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        for key, begin, end in zip(self._keys, self._begins, self._begins[1:], strict=False):
            values = self._array(key) if end > begin else None
            for i in range(begin, end):
                assert values is not None
                row = self._row(values, i - begin, i)
                yield row.astype(float_of(row.dtype))

    def name(self, i: int) -> str:
        """What to call series `i` in a message."""
        key, row = self._locate(i)
        return f"{self._path} array {key} row {row}"

    def label(self, i: int) -> str:
        """The name of the array, and the row in it."""
        key, row = self._locate(i)
        return f"{key} {row}"


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turns what a damaged file raises in NumPy and zipfile into an error that names it."""
    try:
        yield
    except DataError:
        raise
    except (
        ArithmeticError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        RuntimeError,  # an encrypted archive, an unknown compression
        SyntaxError,
        TypeError,
        ValueError,
        tokenize.TokenError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{path} cannot be read as {kind}: {error}") from None


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of .npy is not read")
    return shape, dtype


def _check_array(where: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iuf" or len(shape) not in (1, 2) or min(shape) < 0:
        raise DataError(
            f"{where} holds {dtype} of shape {shape}; it must hold numbers [T], or [N, T] with a "
            "series in each row"
        )


def open_source(paths: str, names: ColumnNames | None = None) -> SequenceSource:
    """Opens files and folders as one source.

    Args:
      paths: a file, a folder, or several with commas between. A folder with meta.json is in the
        Time-300B layout, one with .arrow files and state.json a Hugging Face dataset; any other
        is searched, in sorted order, for such folders and for files of a kind that is read. What
        a search passes over is listed in `skipped_files`.
      names: which columns of a table are which, where their names do not say.

    Returns:
      the series of all of them, in order.

    Raises:
      DataError: a path does not exist or is of no supported kind, or nothing was found.
    """
    sources: list[SequenceSource] = []
    skipped: list[str] = []
    # A path may itself hold a comma.
    given = [paths] if os.path.exists(paths) else [p.strip() for p in paths.split(",")]
    for name in filter(None, given):
        path, before = Path(name), len(sources)
        if not path.exists():
            raise DataError(f"{path} does not exist; give {SUPPORTED}")
        found, passed = find_files(path)
        sources.extend(open_file(file, names) for file in found)
        skipped.extend(map(str, passed))
        if len(sources) == before:
            raise DataError(f"{path} holds no series that can be read; give {SUPPORTED}")
    if not sources:
        raise DataError(f"no path was given; give {SUPPORTED}")
    return sources[0] if len(sources) == 1 and not skipped else ConcatSource(sources, skipped)


def find_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Finds what `open_file` opens, in sorted order.

    Args:
      path: a file, a folder that is one source, or a folder to search.

    Returns:
      the files and folders to open, and the files that a search passed over.

    Raises:
      DataError: `path` is a file of a kind that is not read.
    """
    if not path.is_dir() or _is_one_source(path):
        if not path.is_dir() and path.suffix.lower() not in _KINDS:
            raise DataError(f"{path} has an ending that is not read; give {SUPPORTED}")
        return [path], []
    found: list[Path] = []
    skipped: list[Path] = []
    for inner in sorted(path.iterdir()):
        if inner.name.startswith("."):
            # What another program keeps to itself, or a conversion has not finished.
            skipped.append(inner)
        elif inner.is_dir():
            deeper, passed = find_files(inner)
            found += deeper
            skipped += passed
        elif inner.suffix.lower() in _KINDS and not is_cache(inner):
            found.append(inner)
        elif inner.name != DATASET_DICT:
            skipped.append(inner)
    return found, skipped


def open_file(path: Path, names: ColumnNames | None = None) -> SequenceSource:
    """Opens one file, or one folder that is a source by itself.

    Args:
      path: as `find_files` gives it.
      names: which columns of a table are which, where their names do not say.

    Raises:
      DataError: it is not what its ending says, or is damaged.
    """
    if path.is_dir():
        if (path / "meta.json").exists():
            return TimeMoeFolderSource(path)
        return open_dataset_folder(path, names)
    return _KINDS[path.suffix.lower()](path, names)


def _is_one_source(folder: Path) -> bool:
    return (folder / "meta.json").exists() or is_dataset_folder(folder)


def _open_csv(path: Path, names: ColumnNames | None) -> SequenceSource:
    from timemoe_jax.data import frames, tables

    if tables.is_long_csv(path, names or ColumnNames()):
        frame = tables.read_long_csv(path, names or ColumnNames())
        return frames.frame_source(frame, names, str(path))
    return CsvSource(path, names)


def _open_columnar(path: Path, names: ColumnNames | None) -> SequenceSource:
    return open_columnar([path], names)


_KINDS: dict[str, Callable[[Path, ColumnNames | None], SequenceSource]] = {
    ".jsonl": lambda path, _: JsonlSource(path),
    ".npy": lambda path, _: NpySource(path),
    ".npz": lambda path, _: NpzSource(path),
    ".csv": _open_csv,
    ".tsf": lambda path, _: TsfSource(path),
    **dict.fromkeys((*PARQUET_ENDINGS, *ARROW_ENDINGS), _open_columnar),
}
