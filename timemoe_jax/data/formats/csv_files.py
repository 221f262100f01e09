"""Reading a CSV of series: a column of dates, if there is one, then one series per column."""

import contextlib
import csv
import dataclasses
import itertools
import os
import re
import warnings
from _csv import Reader
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped

from timemoe_jax.data.formats.table_layout import (
    ID_NAMES,
    TARGET_NAMES,
    ColumnNames,
    Kind,
    Layout,
    find_layout,
)
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import DataError


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

    aligned = True

    def __init__(self, path: str | os.PathLike[str], names: ColumnNames | None = None):
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


# Cells, in lower case and without surrounding blanks, that stand for a missing value.
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>"})

# Rows turned from text into numbers at a time, so that the text of a large file is never held.
CHUNK = 16384

_DATE = re.compile(r"\d{1,4}[-/.]\d")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The series of one CSV file.

    Attributes:
      path: the file.
      timestamps: the date column [T], datetime64 in the order of the file; None without one.
      timestamp_name: its header; None without a date column.
      columns: the headers of the C numeric columns.
      values: float64 [T, C] as the file has them: NaN where a cell is missing, and infinities
        where the file says so.
    """

    path: Path
    timestamps: Shaped[np.ndarray, " T"] | None
    timestamp_name: str | None
    columns: tuple[str, ...]
    values: Float64[np.ndarray, "T C"]


def read_csv(path: str | os.PathLike[str]) -> Table:
    """Reads a comma-separated UTF-8 file with a header line and one series per column.

    The first column holds the dates if it has anything but numbers; every other column must be
    numeric. Empty cells, `NA`, `NaN`, `null` and the like are missing values. Infinities are
    kept: what to do with them is for the caller to decide. Dates with a time zone become UTC.
    Blank lines are skipped, except between the values of a file with a single column.

    Args:
      path: the file.

    Raises:
      DataError: the file cannot be read, is not UTF-8, is empty, has no header, no row, no
        numeric column, rows of different lengths, two columns of one name, or a cell that is
        neither a number nor, in the first column, a date.
    """
    path = Path(path)
    with _rows_of(path) as (names, rows):
        return _read(names, rows, path)


@contextlib.contextmanager
def _rows_of(path: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """Opens a CSV: its header, and the rows below with their line numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            names = _header(reader, path)
            yield names, _rows(reader, len(names), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None


def _read(names: list[str], rows: Iterator[tuple[int, list[str]]], path: Path) -> Table:
    first: list[str] = []
    lines: list[int] = []
    parts = []
    while chunk := list(itertools.islice(rows, CHUNK)):
        numbers, cells = zip(*chunk, strict=True)
        lines += numbers
        leading, *others = zip(*cells, strict=True)
        first += leading
        columns = [
            _numbers(column, numbers, path, name)
            for name, column in zip(names[1:], others, strict=True)
        ]
        parts.append(np.array(columns, np.float64).reshape(len(columns), len(chunk)).T)
    if not first:
        raise DataError(f"{path} has a header line but no rows")
    values = np.concatenate(parts)
    if all(_is_number(cell) for cell in first):
        leading_values = _numbers(first, lines, path, names[0])
        values = np.concatenate([leading_values[:, None], values], axis=1)
        return Table(path, None, None, tuple(names), values)
    timestamps = _dates(first, lines, path, names[0])
    if len(names) == 1:
        raise DataError(f"{path} has no numeric column, only {names[0]!r}; give at least one")
    return Table(path, timestamps, names[0], tuple(names[1:]), values)


def _header(reader: Reader, path: Path) -> list[str]:
    names = [name.strip() for name in next((row for row in reader if row), [])]
    if not names:
        raise DataError(f"{path} is empty; it must have a header line and a row per time step")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{path} has more than one column {twice[0]!r}; the names must differ")
    numeric = [name for name in names if name and _is_number(name)]
    dated = names[0] not in numeric and bool(_DATE.match(names[0]))
    # A header of 0, 1, 2 is what data frames without names write.
    counted = numeric == [str(i) for i in range(len(numeric))]
    if len(numeric) == len(names) - dated and not counted:
        raise DataError(
            f"{path} has no header: its first line is {','.join(names)[:40]!r}; the first line "
            "must name the columns"
        )
    return names


def _rows(reader: Reader, width: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header, each with its line number."""
    blank: list[int] = []
    for row in reader:
        if not row:
            blank.append(reader.line_num)
            continue
        if len(row) != width:
            raise DataError(
                f"{path} line {reader.line_num} has {len(row)} cells, but the header has {width}; "
                "every row must have as many"
            )
        # In a single column a blank line between values is a missing one.
        yield from ((line, [""]) for line in blank if width == 1)
        blank.clear()
        yield reader.line_num, row


def _is_number(cell: str) -> bool:
    """Whether a cell of the first column is a number or missing, and so no date."""
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in MISSING
    return "_" not in cell


def _numbers(
    cells: Sequence[str], lines: Sequence[int], path: Path, name: str
) -> Float64[np.ndarray, " T"]:
    # All cells at once where possible; Python's reading of text as a number is exact, but takes
    # 1_000 for 1000.
    if "_" not in "".join(cells):
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            pass
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if not _is_number(cell):
            raise DataError(
                f"{path} column {name!r} must hold numbers, but line {lines[row]} holds "
                f"{cell[:40]!r}"
            )
        if cell.strip().lower() not in MISSING:
            values[row] = float(cell)
    return values


def _dates(
    cells: Sequence[str], lines: Sequence[int], path: Path, name: str
) -> Shaped[np.ndarray, " T"]:
    return parse_dates(
        cells,
        lambda row: (
            f"{path} column {name!r} is first and not numeric, so it must hold dates in every "
            f"row, but line {lines[row]}"
        ),
    )


def parse_dates(
    cells: Sequence[str],
    place: Callable[[int], str],
    layouts: Sequence[str | None] = (None, "ISO8601"),
) -> Shaped[np.ndarray, " T"]:
    """Turns text into datetime64, in UTC where it has a time zone.

    Args:
      cells: the text of each date.
      place: what to call a cell in a message, by its position.
      layouts: what to try, in order; None is one layout for all cells, guessed from the first.

    Raises:
      DataError: a cell is no date in any of the layouts.
    """
    import pandas as pd

    texts = pd.Series([cell.strip() for cell in cells], dtype=object)
    row = 0
    for layout in layouts:
        with warnings.catch_warnings():
            # Where no layout can be guessed, pandas warns and reads each cell in its own way:
            # 1/2 could be one date in this row and another in the next.
            warnings.simplefilter("error")
            try:
                dates = pd.to_datetime(texts, format=layout, utc=True, errors="coerce")
            except (UserWarning, ValueError, OverflowError):
                continue
        bad = dates.isna().to_numpy()
        if not bad.any():
            return dates.dt.tz_localize(None).to_numpy()
        row = max(row, int(bad.argmax()))
    raise DataError(
        f"{place(row)} holds {cells[row][:40]!r}, not a date such as 2024-01-31 or "
        "2024-01-31 13:00:00"
    )


def frequency_of(timestamps: Shaped[np.ndarray, " T"] | None) -> str | None:
    """The pandas alias of the frequency of regular times; None of any others.

    Args:
      timestamps: datetime64, in the order of the series.
    """
    import pandas as pd

    if timestamps is None or len(timestamps) < 3:
        return None
    return pd.infer_freq(pd.DatetimeIndex(timestamps))


def is_long_csv(path: str | os.PathLike[str], names: ColumnNames) -> bool:
    """Whether the rows of a CSV are points of several series, told apart by an id column.

    Args:
      path: the file.
      names: which columns are which; an id column makes it long, and so do a column with the
        name of an id and one with the name of a target.
    """
    if names.id is not None:
        return True
    with _rows_of(Path(path)) as (header, _):
        known = bool(names.targets) or not {*header}.isdisjoint(TARGET_NAMES)
        return known and not {*header}.isdisjoint(ID_NAMES)


def read_long_csv(path: str | os.PathLike[str], names: ColumnNames) -> Any:
    """Reads a CSV whose rows are points of several series.

    Args:
      path: the file, as `read_csv` takes it.
      names: which columns are which, where their names do not say.

    Returns:
      a pandas DataFrame of all columns: those that hold values as float64, times as such where
      they are not numbers, and anything else as text, None where missing.

    Raises:
      DataError: as `read_csv`, or the columns cannot be understood.
    """
    import pandas as pd

    path = Path(path)
    lines: list[int] = []
    with _rows_of(path) as (header, rows):
        first = next(rows, None)
        if first is None:
            raise DataError(f"{path} has a header line but no rows")
        layout = _long_layout(header, first[1], path, names)
        columns: dict[str, list[Any]] = {name: [] for name in header}
        rows = itertools.chain([first], rows)
        while chunk := list(itertools.islice(rows, CHUNK)):
            numbers, cells = zip(*chunk, strict=True)
            lines += numbers
            for name, column in zip(header, zip(*cells, strict=True), strict=True):
                if name in layout.targets:
                    columns[name] += _numbers(column, numbers, path, name).tolist()
                elif name in (layout.id, layout.timestamp):
                    columns[name] += (cell.strip() for cell in column)
    data: dict[str, Any] = {name: columns[name] or None for name in header}
    ids = (None if cell.lower() in MISSING else cell for cell in columns[str(layout.id)])
    data[str(layout.id)] = pd.Series(list(ids), dtype=object)
    if layout.timestamp is not None:
        data[layout.timestamp] = _long_times(columns[layout.timestamp], lines, path, layout)
    return pd.DataFrame(data, index=range(len(lines)))


def _long_layout(
    header: Sequence[str], cells: Sequence[str], path: Path, names: ColumnNames
) -> Layout:
    """The layout of a CSV by its header and first row: numbers are where they are looked for."""
    kinds: dict[str, Kind] = {
        name: "time" if _DATE.match(cell) and not _is_number(cell) else "text"
        for name, cell in zip(header, cells, strict=True)
    }
    kinds.update(dict.fromkeys({*names.targets, *TARGET_NAMES} & {*header}, "number"))
    return find_layout(str(path), kinds, names)


def _long_times(
    cells: Sequence[str], lines: Sequence[int], path: Path, layout: Layout
) -> Shaped[np.ndarray, " T"]:
    name = str(layout.timestamp)
    if all(_is_number(cell) for cell in cells):
        return _numbers(cells, lines, path, name)
    return parse_dates(cells, lambda row: f"{path} column {name!r}: line {lines[row]}")
