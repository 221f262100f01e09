"""One task of cleaning a tree: reads some series, cleans them, and writes them to a folder.

The processes of `timemoe_jax.data.corpus.clean` each do a task at a time.
"""

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import ml_dtypes
import numpy as np
from jaxtyping import Float

from timemoe_jax.data.corpus.clean_rules import REASONS, clean
from timemoe_jax.data.formats.open import open_file
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource
from timemoe_jax.data.series_source import SequenceSource

RESULT = "task.json"  # a task's tally, its dtype, and the points of each of its data files
PIECES = "pieces.txt"  # a line for each series written: its points, a tab, its entries as JSON

_READ_AHEAD = 1 << 18  # points
_POINTS_PER_FILE = 1 << 28  # the next data file begins after so many


@dataclasses.dataclass
class Tally:
    """What became of some series."""

    sequences: int = 0  # how many there were
    points: int = 0  # in them; each is kept or dropped
    pieces: int = 0  # how many series were written
    kept: int = 0  # points in those
    # points by reason; see `clean_rules.REASONS`
    dropped: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    ignored_columns: tuple[str, ...] = ()  # neither values, nor ids, nor times

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.sequences + other.sequences,
            self.points + other.points,
            self.pieces + other.pieces,
            self.kept + other.kept,
            {reason: self.dropped[reason] + other.dropped[reason] for reason in REASONS},
            tuple(dict.fromkeys((*self.ignored_columns, *other.ignored_columns))),
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """Some consecutive series of one source."""

    path: str  # the source, a file or a folder
    folder: Path  # takes the data files of a Time-300B folder, `RESULT` and `PIECES`
    first: int  # the first of the series
    stop: int  # the one after the last
    points: int  # in all of them


class StoredSeries(NamedTuple):
    """A series as it is stored, its zero, and what meta.json says about it beside its place."""

    values: Float[np.ndarray, " T"]
    zero: float
    entry: dict[str, Any]


class StoredFolder(TimeMoeFolderSource):
    """A Time-300B folder that also gives its series scaled and shifted, as they are stored."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        stored = np.dtype("float32") if self._is_bfloat16 else self._dtype
        wide_enough = (t for t in ("float16", "float32") if np.can_cast(stored, t))
        # The narrowest that holds every stored value.
        self.dtype = next(wide_enough, "float64")

    def series(self, first: int, stop: int) -> Iterator[StoredSeries]:
        """Reads series `first` to `stop`, one after the other.

        It reads ahead where series lie in order: opening a file takes as long as cleaning thousands
        of points. Raises a DataError if a file cannot be read, or has become shorter.
        """
        block, at = np.zeros(0, self.dtype), 0  # what is in memory, and its first point
        expected = None
        for i, length in enumerate(self.lengths[first:stop].tolist(), first):
            offset, mean, std = self._index.entry(i)
            end = offset + length
            if offset < at or end > at + len(block):
                # Where they lie in another order, reading ahead would be in vain.
                ahead = _READ_AHEAD if expected in (None, offset) else 0
                block = self._stored(offset, max(end, min(offset + ahead, self._starts[-1])))
                block, at = block.astype(self.dtype, copy=False), offset
            expected = end
            entry: dict[str, Any] = {} if math.isnan(std) else {"mean": mean, "std": std}
            frequency = self._index.frequency(i)
            if frequency != self.frequency:
                entry["freq"] = frequency
            zero = 0.0 if math.isnan(std) else self._nearest(-mean / std)
            yield StoredSeries(block[offset - at : end - at], zero, entry)

    def _nearest(self, value: float) -> float:
        """The nearest value that can be stored; NaN for one beyond all of them."""
        if self._dtype.kind == "i":
            return float(np.rint(value))
        kind = ml_dtypes.bfloat16 if self._is_bfloat16 else self._dtype.type
        with np.errstate(over="ignore"):
            nearest = float(kind(value))
        return nearest if math.isfinite(nearest) else math.nan


class OpenSource:
    """Keeps the last source open: opening a large one takes longer than a task."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._source: SequenceSource

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Another process opens sources for itself.
        return OpenSource, ()

    def get(self, path: str) -> SequenceSource:
        """Opens a Time-300B folder as a `StoredFolder`, and any other source as it is."""
        if path != self._path:
            is_folder = (Path(path) / "meta.json").exists()
            self._source = StoredFolder(Path(path)) if is_folder else open_file(Path(path))
            self._path = path
        return self._source


def can_be_divided(source: SequenceSource) -> bool:
    """Whether one series can be read cheaply, as a source with its own __iter__ cannot."""
    return type(source).__iter__ is SequenceSource.__iter__


def clean_task(opened: OpenSource, task: Task) -> int:
    """Cleans the series of a task and writes its folder whole or not at all; returns the points."""
    source = opened.get(task.path)
    temporary = task.folder.with_name(f"{task.folder.name}.{os.getpid()}.tmp")
    dtype = source.dtype if isinstance(source, StoredFolder) else "float32"
    try:
        _write(task, source, temporary, dtype)
    except _NeedsFloat64:
        _write(task, source, temporary, "float64")
    os.replace(temporary, task.folder)
    return task.points


class _NeedsFloat64(Exception):  # noqa: N818
    """A series is wider than the float32 that were written so far."""


def _write(task: Task, source: SequenceSource, folder: Path, dtype: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tally = Tally()
    with open(folder / PIECES, "w", encoding="utf-8") as lines:
        points = _write_files(folder, _kept(_series(task, source), dtype, tally, lines), dtype)
    result = {"tally": dataclasses.asdict(tally), "dtype": dtype, "points": points}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _kept(
    series: Iterable[StoredSeries], dtype: str, tally: Tally, lines: TextIO
) -> Iterator[Float[np.ndarray, " _"]]:
    """Yields the pieces to keep, counts them in `tally`, and writes a line of `PIECES` for each."""
    itemsize = np.dtype(dtype).itemsize
    for values, zero, entry in series:
        if values.dtype.itemsize > itemsize:
            raise _NeedsFloat64
        cleaned = clean(values, zero)
        tally.sequences += 1
        tally.points += len(values)
        for reason, count in cleaned.dropped.items():
            tally.dropped[reason] += count
        members = f", {json.dumps(entry)[1:-1]}" if entry else ""
        for start, stop in cleaned.pieces.tolist():
            tally.pieces += 1
            tally.kept += stop - start
            lines.write(f"{stop - start}\t{members}\n")
            yield values[start:stop]


def _write_files(folder: Path, series: Iterable[Float[np.ndarray, " _"]], dtype: str) -> list[int]:
    """Writes series one after the other to data files; returns the points of each file."""
    stored = np.dtype(dtype).newbyteorder("<")
    points: list[int] = []
    series = iter(series)
    for first in series:
        written = 0
        with open(folder / f"{len(points) + 1}.part", "wb", buffering=1 << 20) as stream:
            for values in itertools.chain([first], series):
                stream.write(np.ascontiguousarray(values, stored).data)
                written += len(values)
                if written >= _POINTS_PER_FILE:
                    break
        points.append(written)
    for number, file in enumerate(data_files(folder, len(points)), start=1):
        os.replace(folder / f"{number}.part", file)
    return points


def data_files(folder: Path, count: int) -> list[Path]:
    """The data files of a Time-300B folder, in order."""
    return [folder / f"data-{k}-of-{count}.bin" for k in range(1, count + 1)]


def _series(task: Task, source: SequenceSource) -> Iterator[StoredSeries]:
    if isinstance(source, StoredFolder):
        yield from source.series(task.first, task.stop)
    elif task.stop - task.first == len(source):
        for values in source:
            yield StoredSeries(values, 0.0, {})
    else:
        for i in range(task.first, task.stop):
            yield StoredSeries(source[i], 0.0, {})
