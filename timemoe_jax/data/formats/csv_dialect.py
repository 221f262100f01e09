"""How a CSV is written: what separates its cells and its decimals, and whether it has a header.

What the caller does not say is found in the first lines, where these can be read in one way only.
"""

import csv
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from timemoe_jax.data.formats.frames import is_number
from timemoe_jax.data.formats.table_layout import (
    ID_NAMES,
    TARGET_NAMES,
    TIME_NAMES,
    ColumnNames,
    looks_like_date,
)
from timemoe_jax.errors import DataError

# Cells, in lower case and without surrounding blanks, that stand for a missing value.
MISSING = frozenset(
    {"", "na", "n/a", "#n/a", "#na", "#n/a n/a", "nan", "-nan", "null", "none", "<na>"}
    | {"1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"}
)
OTHER_SEPARATORS = (";", "\t", "|")  # than the comma
SAMPLE, SAMPLE_CHARACTERS = 200, 1 << 20  # lines that are looked at, and about how much of them

_COMMA_NUMBER = re.compile(r"[+-]?(\d+(\.\d{3})*)?,\d+([eE][+-]?\d+)?")
_POINT_NUMBER = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
# 1,234 is a thousand and more, or 1 and a fraction.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
# The first line that spreadsheets put before the header.
_SAYS_SEPARATOR = re.compile(r"sep=(.)?", re.IGNORECASE)


class Dialect(NamedTuple):
    """What is between two cells, what is before the decimals, and the lines before the header."""

    separator: str
    decimal: str
    skipped: int


def find_dialect(path: Path, names: ColumnNames) -> Dialect:
    """Finds how a CSV is written, and checks that its first line names the columns.

    A DataError says that what the caller said is no separator or decimal mark; that the file can
    be read in two ways, and how to say which; that it has no header; or that it is empty.
    """
    _check_given(names)
    with open(path, encoding="utf-8-sig", newline="") as stream:
        lines = _sample(stream)
    says = _SAYS_SEPARATOR.fullmatch(lines[0].strip("\r\n").strip('"')) if lines else None
    skipped = int(says is not None)
    lines = lines[skipped:]
    separator = names.separator or (says[1] if says else None) or _separator(path, lines)
    if separator == "," == names.decimal and _widths(lines, ",")[:1] == [1]:
        separator = ";"  # in a single column of numbers a comma separates none
    rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    if not rows or not any(cell.strip() for cell in rows[0]):
        raise DataError(f"{path} is empty; it must have a header line and a row per time step")
    _check_header(path, rows, names, separator)
    decimal = names.decimal or _decimal(path, rows[1:], separator)
    return Dialect(separator, decimal, skipped)


def _sample(stream: Iterable[str]) -> list[str]:
    """The first lines of a file; of one with very long lines, few of them."""
    lines: list[str] = []
    size = 0
    for line in itertools.islice(stream, SAMPLE):
        lines.append(line)
        size += len(line)
        if size > SAMPLE_CHARACTERS and len(lines) > 4:
            break
    return lines


def _check_given(names: ColumnNames) -> None:
    separator, decimal = names.separator, names.decimal
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise DataError(f"separator must be one character, such as ';', but is {separator!r}")
    if decimal is not None and decimal not in (".", ","):
        raise DataError(f"decimal must be '.' or ',', but is {decimal!r}")
    if separator is not None and separator == (decimal or "."):
        raise DataError(f"separator and decimal must differ, but both are {separator!r}")


def _separator(path: Path, lines: Sequence[str]) -> str:
    """The comma, unless another separator divides all lines alike and the comma does not.

    Trailing separators do not count. A DataError says that either can be meant, or that the header
    is divided by another separator than the comma and the lines are not.
    """
    commas = _widths(lines, ",")
    one = commas[:1] == [1]
    for mark in OTHER_SEPARATORS:
        widths = _widths(lines, mark)
        if len(widths) < 2 or widths[0] < 2:
            continue
        shown = "\\t" if mark == "\t" else mark
        if len({*widths}) > 1:
            if one and widths[1] > 1:
                raise DataError(
                    f"{path} looks separated by {shown!r}: give --separator {shown!r}; its lines "
                    f"have {min(widths)} to {max(widths)} cells then"
                )
        elif one or len({*commas}) > 1 or _is_plain(lines, mark) > _is_plain(lines, ","):
            return mark
        elif _is_plain(lines, mark) == _is_plain(lines, ","):
            raise DataError(
                f"{path} can be read as separated by ',' or by {shown!r}; say which: give "
                f"--separator {shown!r} or --separator ','"
            )
    if one and {*_widths(lines, " ")} == {2}:
        raise DataError(f"{path} looks separated by ' ': give --separator ' '")
    return ","


def _widths(lines: Sequence[str], mark: str) -> list[int]:
    """The cells of each line; one that a separator at the end of a line makes does not count."""
    rows = [row for row in csv.reader(lines, delimiter=mark) if row]
    if not rows:
        return []
    width = len(without_trailing(rows[0]))
    # The last line of a sample may be cut off within quotes.
    rows = rows[:-1] if len(lines) == SAMPLE else rows
    return [len(row) - (len(row) == width + 1 and not row[-1].strip()) for row in rows]


def _is_plain(lines: Sequence[str], mark: str) -> bool:
    """Whether all cells of the second row are numbers and dates."""
    rows = [row for row in csv.reader(lines, delimiter=mark) if row]
    return "text" not in map(_holds, rows[1])


def without_trailing(row: list[str]) -> list[str]:
    """A row without the empty cell that a separator at its end makes."""
    return row[:-1] if len(row) > 1 and not row[-1].strip() else row


def _decimal(path: Path, rows: Iterable[Sequence[str]], separator: str) -> str:
    """The mark before decimals; a DataError if a comma could be that, or could group thousands."""
    if separator == ",":
        return "."
    cells = [cell.strip() for row in rows for cell in row]
    commas = [cell for cell in cells if _COMMA_NUMBER.fullmatch(cell)]
    if not commas:
        return "."
    points = any(_POINT_NUMBER.fullmatch(cell) for cell in cells)
    if points or all(map(_THOUSANDS.fullmatch, commas)):
        raise DataError(
            f"{path} holds {commas[0]!r}, whose comma may be a decimal comma or group thousands; "
            "give --decimal ',' (decimal=',' in Python), or write numbers without groups"
        )
    return ","


def _check_header(
    path: Path, rows: Sequence[Sequence[str]], names: ColumnNames, separator: str
) -> None:
    """Refuses a file whose first line holds values as the second does."""
    header = [cell.strip() for cell in without_trailing(list(rows[0]))]
    known = {*ID_NAMES, *TIME_NAMES, *TARGET_NAMES, names.id, names.timestamp, *names.targets}
    if known & {*header} - {None}:
        return
    above = [_holds(cell) for cell in header]
    below = [_holds(cell) for cell in rows[1]] if len(rows) > 1 else []
    numeric = [cell for cell, kind in zip(header, above, strict=True) if cell and kind != "text"]
    # Data frames without names of columns write the header 0, 1, 2.
    counted = numeric == [str(i) for i in range(len(numeric))]
    dated = ("date", "date") in zip(above, below, strict=False)
    alike = above == below and "number" in above
    if dated or (header[0] and not counted and (alike or "text" not in above)):
        raise DataError(
            f"{path} has no header: its first line is {separator.join(rows[0])[:40]!r}; the first "
            "line must name the columns"
        )


def _holds(cell: str) -> str:
    """What a cell holds: a number, or a word for a missing one; a date; or text."""
    if is_number(cell) or cell.strip().lower() in MISSING or _COMMA_NUMBER.fullmatch(cell.strip()):
        return "number"
    return "date" if looks_like_date(cell) else "text"
