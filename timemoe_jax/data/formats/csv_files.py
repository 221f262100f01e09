"""Reading a CSV of series, wide or long, as a data frame of numbers and text.

Training, evaluation and forecasts read through this one reader. It takes the rows from Python's
csv module: unlike pandas, that refuses broken quotes and rows of another length, and says in which
line they are.
"""

import contextlib
import csv
import dataclasses
import itertools
import os
import re
from _csv import Reader
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from timemoe_jax.data.formats.csv_dialect import MISSING, Dialect, find_dialect
from timemoe_jax.data.formats.frames import (
    DECIMAL,
    LINES,
    columns_of,
    is_number,
    layout_of,
    wide_columns,
)
from timemoe_jax.data.formats.table_layout import (
    ID_NAMES,
    TIME_NAMES,
    TIME_WORDS,
    ColumnNames,
    check_differ,
    is_unnamed,
)
from timemoe_jax.errors import DataError

# Rows turned from text into numbers at a time, so that the text of a large file is never held.
CHUNK = 16384

# A whole number that fits into 64 bits, and becomes the same text again.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The series of one CSV file, in the order of their times.

    `timestamps` holds the dates [T], datetime64, under the header `timestamp_name`; both are None
    where the file has no dates. `values` holds the C numeric `columns` as the file has them: NaN
    where a cell is missing, and infinities where the file says so.
    """

    path: Path
    timestamps: Shaped[np.ndarray, " T"] | None
    timestamp_name: str | None
    columns: tuple[str, ...]
    values: Float64[np.ndarray, "T C"]


def read_csv(
    path: str | os.PathLike[str], separator: str | None = None, decimal: str | None = None
) -> Table:
    """Reads a UTF-8 file with a header line and one series per column.

    A column of dates is called ds or timestamp or begins with a date, or it is the first and has
    anything but numbers; every other column must be numeric, and one that counts rows is left out.
    Empty cells, `NA`, `NaN`, `null` and the like are missing values. Infinities are kept: what to
    do with them is for the caller to decide. Dates with a time zone become UTC. Blank lines are
    skipped, except between the values of a file with a single column. Rows that are not in the
    order of their dates are sorted.

    `separator` and `decimal` are what is between cells and before decimals; by default they are
    found: a comma, semicolon, tab or bar, and a point or, between other separators, a comma.

    Raises:
      DataError: the file cannot be read, is not UTF-8, is empty, has no header, no row, no
        numeric column, rows of different lengths, two columns of one name, or a cell that is
        neither a number nor, in the column of dates, a date; it can be read in two ways; or it is
        a long table.
    """
    path = Path(path)
    names = ColumnNames(separator=separator, decimal=decimal)
    frame = columns_of(read_csv_frame(path, names), str(path))
    layout = layout_of(frame, ColumnNames(), str(path))
    if layout.kind != "wide":
        raise DataError(
            f"{path} is a long table, with ids in {layout.id!r}; it must have a column per series"
        )
    times, columns = wide_columns(frame, layout, str(path))
    return Table(path, times, layout.timestamp, layout.targets, np.stack(columns, axis=1))


def read_csv_frame(path: str | os.PathLike[str], names: ColumnNames | None = None) -> Any:
    """Reads a CSV, wide or long, as a pandas DataFrame; its `attrs` hold the line of each row,
    and the decimal mark.

    A column of ids is text as the file has it, and only an empty cell of it is missing. A column of
    numbers becomes float64, or int64 where its name is one of times and all of them are whole; a
    column of true and false becomes bool; any other becomes text, without surrounding blanks and
    None where missing. `names` says which columns hold ids and times, where their own names do not,
    and how cells and decimals are separated. Raises what `read_csv` does where the file has no
    header or rows of other lengths.
    """
    import pandas as pd

    path, names = Path(path), names or ColumnNames()
    lines = array("q")
    with _reading(path):
        dialect = find_dialect(path, names)
    with _rows_of(path, dialect) as (header, rows):
        ids, times = _roles(header, names)
        parts: dict[str, list[np.ndarray]] = {n: [] for n in header if n not in ids | times}
        texts: dict[str, list[str]] = {n: [] for n in header if n in ids | times}
        while chunk := list(itertools.islice(rows, CHUNK)):
            numbers, cells = zip(*chunk, strict=True)
            lines.extend(numbers)
            for name, column in zip(header, zip(*cells, strict=True), strict=True):
                values = _numbers(column, dialect.decimal) if name in parts else None
                if values is not None:
                    parts[name].append(values)
                elif parts.pop(name, None) == []:
                    texts[name] = []
                if name in texts:
                    texts[name].extend(map(str.strip, column))
    if not lines:
        raise DataError(f"{path} has a header line but no rows")
    # That a column does not hold numbers alone may show only later: its text is read again.
    late = [n for n in header if n not in parts and n not in texts]
    texts |= _texts(path, dialect, late, len(lines))
    columns = {
        name: _ids(texts[name]) if name in ids else _typed(texts[name], dialect.decimal)
        for name in texts
    } | {name: np.concatenate(parts[name]) for name in parts}
    columns = {name: columns[name] for name in header}
    frame = pd.DataFrame(columns, columns=pd.Index(header, dtype=object))
    regular = range(lines[0], lines[0] + len(lines))
    frame.attrs[DECIMAL] = dialect.decimal
    frame.attrs[LINES] = regular if lines[-1] == regular[-1] else lines
    return frame


def _roles(header: Sequence[str], names: ColumnNames) -> tuple[set[str], set[str]]:
    """The columns of ids, which stay as they are written, and of times, which stay whole."""
    ids = {*ID_NAMES} if names.id is None else {names.id}
    if names.timestamp is not None:
        return ids, {names.timestamp} - ids
    times = {name for name in header if name in TIME_NAMES or name.lower() in TIME_WORDS}
    times |= {name for name in header[:1] if is_unnamed(name)}
    return ids, times - ids


def _texts(path: Path, dialect: Dialect, names: Sequence[str], count: int) -> dict[str, list[str]]:
    if not names:
        return {}
    with _rows_of(path, dialect) as (header, rows):
        places = [header.index(name) for name in names if name in header]
        chosen = [[row[place].strip() for place in places] for _, row in rows]
    if len(chosen) != count or len(places) != len(names):
        raise DataError(f"{path} has changed while it was read; read it again")
    return dict(zip(names, map(list, zip(*chosen, strict=True)), strict=True))


def _ids(texts: list[str]) -> Any:
    import pandas as pd

    return pd.Series([text or None for text in texts], dtype=object)


def _typed(texts: list[str], decimal: str) -> Any:
    """Text as integers, numbers or booleans, where all of it is that."""
    import pandas as pd

    if all(map(_WHOLE_NUMBER.fullmatch, texts)):
        return np.array(texts, np.int64)
    values = _numbers(texts, decimal)
    if values is not None:
        return values
    if {text.lower() for text in texts} <= {"true", "false"}:
        return np.array([text.lower() == "true" for text in texts])
    return pd.Series([None if text.lower() in MISSING else text for text in texts], dtype=object)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what makes a CSV unreadable into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None


@contextlib.contextmanager
def _rows_of(
    path: Path, dialect: Dialect
) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """Opens a CSV, and yields its header and the rows below with their line numbers."""
    with _reading(path), open(path, encoding="utf-8-sig", newline="") as stream:
        for _ in range(dialect.skipped):
            next(stream)
        reader = csv.reader(stream, delimiter=dialect.separator, strict=True)
        header = [name.strip() for name in next((row for row in reader if row), [])]
        # Empty cells at the end are of a separator at the end of each line.
        while len(header) > 1 and not header[-1]:
            header.pop()
        check_differ(path, header)
        yield header, _rows(reader, len(header), path, dialect.skipped)


def _rows(reader: Reader, width: int, path: Path, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows below the header, each with its line number.

    Cells beyond the header must be empty, and are left out.
    """
    blank: list[int] = []
    for row in reader:
        if not row:
            blank.append(reader.line_num + skipped)
            continue
        line = reader.line_num + skipped
        if len(row) != width:
            if len(row) < width or any(cell.strip() for cell in row[width:]):
                raise DataError(
                    f"{path} line {line} has {len(row)} cells, but the header has {width}; "
                    "every row must have as many"
                )
            row = row[:width]
        # In a single column a blank line between values is a missing one.
        yield from ((number, [""]) for number in blank if width == 1)
        blank.clear()
        yield line, row


def _is_number(cell: str) -> bool:
    """Whether a cell is a number or missing."""
    return is_number(cell) or _is_missing(cell)


def _numbers(cells: Sequence[str], decimal: str) -> Float64[np.ndarray, " T"] | None:
    """Numbers of cells, NaN where missing; None where a cell is neither.

    Python's reading of text as a number is exact.
    """
    joined = "".join(cells)
    if decimal == ",":
        # A point would group thousands; what stands for a missing value has none.
        if "." in joined and any("." in cell and not _is_missing(cell) for cell in cells):
            return None
        cells = [cell.replace(",", ".") for cell in cells]
    if "_" not in joined:
        # All cells at once where possible.
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            pass
    if not all(map(_is_number, cells)):
        return None
    missing = map(_is_missing, cells)
    pairs = zip(cells, missing, strict=True)
    return np.array([np.nan if absent else float(cell) for cell, absent in pairs], np.float64)


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING
