"""Which columns of a table are ids, times and values.

Three layouts are known. Wide: every numeric column is a series. Long: a row is a point, and a
column says of which series. List: a row is a series, and a column holds all of its points.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped

from timemoe_jax.errors import DataError

# Other libraries use unique_id/ds/y, item_id/timestamp/target and id/timestamp/target.
ID_NAMES = ("unique_id", "item_id", "id")
TIME_NAMES = ("ds", "timestamp")
TARGET_NAMES = ("y", "target")
LIST_NAMES = ("target", "sequence")

# Columns of numbers under such a name, in lower case, say when a row is, and are no series.
TIME_WORDS = frozenset(
    {"ds", "ts", "timestamp", "date", "datetime", "date_time", "time", "t", "step", "period"}
    | {"year", "yr", "quarter", "month", "week", "day", "hour", "minute", "second"}
    | {"yearmonth", "year_month", "yyyymm", "yyyymmdd", "epoch", "unix", "unixtime", "unix_time"}
)
# What pandas, R and spreadsheets call the column that counts rows, in lower case.
_COUNTER = re.compile(
    r"|unnamed: ?\d+(_level_\d+)?(\.\d+)?|index|level_0|rownames|row(_?(number|id|nr))?|#"
)
# Of these the name alone says that a column was the index of a data frame.
_UNNAMED = re.compile(r"|unnamed: ?\d+(_level_\d+)?(\.\d+)?")

_MONTHS = frozenset("jan feb mar apr may jun jul aug sep oct nov dec".split())  # noqa: SIM905
# Dates of figures, with a name of a month, or of a quarter; a time of day may follow.
_DATE_PARTS = re.compile(
    r"(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}[-/.]\d{4})"
    r"(?![-/\d.;|,\t])"
)
_NAMED_MONTH = re.compile(r"(\d{1,4}[- /.]+)?([a-z]{3,9})[-. /,]+\d{1,4}")
_QUARTER = re.compile(r"\d{4}[- ]?q[1-4]|q[1-4][- /]?\d{4}")

Kind = Literal["number", "time", "text", "list", "other"]


class ColumnNames(NamedTuple):
    """What a caller says of a table: it wins over what is found.

    The columns of ids, times and values by name; and of a CSV, what is between two cells and what
    is before the decimals.
    """

    id: str | None = None
    timestamp: str | None = None
    targets: tuple[str, ...] = ()
    separator: str | None = None
    decimal: str | None = None


# Reads a column of numbers, NaN where missing; only columns that may count rows or time are read.
Numbers = Callable[[str], Shaped[np.ndarray, " rows"]]


class Layout(NamedTuple):
    """How a table holds series; a wide one has no id, and one of lists no timestamp."""

    kind: Literal["wide", "long", "list"]
    id: str | None
    timestamp: str | None
    targets: tuple[str, ...]
    ignored: tuple[str, ...]  # columns that hold neither ids nor times nor values


def find_layout(
    where: str, kinds: Mapping[str, Kind], names: ColumnNames, numbers: Numbers
) -> Layout:
    """Finds out how a table holds series, from what its columns hold.

    A column that counts rows is left out, and one of whole numbers that is called year, month and
    the like and rises is the time of a wide table. A DataError says that a named column is absent
    or of the wrong kind, or that the columns can be understood in more than one way, or in none.
    """
    check_named(where, kinds, names)
    every = list(kinds)
    kinds = _without_counters(kinds, names, numbers)
    id_column = names.id
    if id_column is None:
        id_column = _one_of(where, kinds, ID_NAMES, "id", names.targets)
    lists = _list_targets(where, kinds, names)
    if lists:
        layout = Layout("list", id_column, None, lists, ())
    elif id_column is not None:
        layout = _long(where, kinds, names, id_column)
    else:
        layout = _wide(where, kinds, names, numbers)
    roles = {layout.id, layout.timestamp, *layout.targets}
    return layout._replace(ignored=tuple(name for name in every if name not in roles))


def find_time_column(
    where: str, kinds: Mapping[str, Kind], names: ColumnNames, numbers: Numbers
) -> str | None:
    """The column of times that `find_layout` finds, whatever the other columns hold."""
    check_named(where, kinds, names)
    if names.timestamp is not None:
        return names.timestamp
    kinds = _without_counters(kinds, names, numbers)
    id_column = names.id
    if id_column is None:
        id_column = _one_of(where, kinds, ID_NAMES, "id", names.targets)
    if id_column is not None or "list" in kinds.values():
        return _timestamp(where, kinds, (str(id_column), *names.targets))
    return _wide_timestamp(where, kinds, names, numbers)


def check_named(where: str, kinds: Mapping[str, Kind], names: ColumnNames) -> None:
    """Refuses names of columns that are not there, not different, or of the wrong kind."""
    named = [name for name in (names.id, names.timestamp, *names.targets) if name is not None]
    for name in named:
        if name not in kinds:
            raise DataError(f"{where} has no column {name!r}; it has {listed(kinds)}")
    if len(set(named)) < len(named):
        raise DataError(
            f"{where}: the id, timestamp and target columns must differ, but are {listed(named)}"
        )
    if names.id is not None and kinds[names.id] in ("list", "other"):
        raise DataError(f"{where}: the id column {names.id!r} must hold text or numbers")
    if names.timestamp is not None and kinds[names.timestamp] in ("list", "other"):
        raise DataError(f"{where}: the timestamp column {names.timestamp!r} must hold times")


def _without_counters(
    kinds: Mapping[str, Kind], names: ColumnNames, numbers: Numbers
) -> dict[str, Kind]:
    named = {names.id, names.timestamp, *names.targets}
    out = {name for name in row_counters(kinds, numbers) if name not in named}
    return {name: kind for name, kind in kinds.items() if name not in out}


def row_counters(kinds: Mapping[str, Kind], numbers: Numbers) -> list[str]:
    """The columns of numbers that only count rows, such as `Unnamed: 0`, `index` or `level_0`.

    They hold 0, 1, 2 or 1, 2, 3 and so on. Where another column holds times, rows of the data frame
    may have been left out since; where a column has no name, they may also have been reordered.
    """
    dated = "time" in kinds.values() or bool({*TIME_NAMES} & {*kinds})
    found = []
    for name, kind in kinds.items():
        if kind != "number" or not _COUNTER.fullmatch(name.strip().lower()):
            continue
        values = numbers(name)
        if not _whole(values):
            continue
        steps = np.diff(values)
        counts = values[0] in (0, 1) and bool((steps == 1).all())
        rises = len(values) > 1 and values[0] >= 0 and bool((steps > 0).all())
        unnamed = is_unnamed(name) and bool((values >= 0).all())
        if counts or (dated and (rises or unnamed)):
            found.append(name)
    return found


def _whole(values: Shaped[np.ndarray, " rows"]) -> bool:
    """Whether all of some numbers are there, and whole."""
    if not len(values) or values.dtype.kind in "iu":
        return bool(len(values))
    return bool(np.isfinite(values).all() and (values == np.floor(values)).all())


def _long(where: str, kinds: Mapping[str, Kind], names: ColumnNames, id_column: str) -> Layout:
    targets = names.targets
    if not targets:
        target = _one_of(where, kinds, TARGET_NAMES, "target", (id_column,))
        if target is None:
            raise DataError(
                f"{where} has an id column {id_column!r}, but none is called "
                f"{' or '.join(TARGET_NAMES)}; name the target column: one of {listed(kinds)}"
            )
        targets = (target,)
    _check_numbers(where, kinds, targets)
    timestamp = names.timestamp
    if timestamp is None:
        timestamp = _timestamp(where, kinds, (id_column, *targets))
    return Layout("long", id_column, timestamp, targets, ())


def _wide(where: str, kinds: Mapping[str, Kind], names: ColumnNames, numbers: Numbers) -> Layout:
    timestamp = names.timestamp
    if timestamp is None:
        timestamp = _wide_timestamp(where, kinds, names, numbers)
    # pandas writes the index of a data frame under such a name.
    targets = names.targets or tuple(
        name for name in kinds if name != timestamp and not name.startswith("__index_level_")
    )
    if not targets:
        raise DataError(f"{where} has no numeric column, only {listed(kinds)}; give at least one")
    _check_numbers(where, kinds, targets)
    return Layout("wide", None, timestamp, targets, ())


def _wide_timestamp(
    where: str, kinds: Mapping[str, Kind], names: ColumnNames, numbers: Numbers
) -> str | None:
    """The column of times of a wide table: by name or kind, the first text, or rising numbers."""
    timestamp = _timestamp(where, kinds, names.targets)
    first = next(iter(kinds), None)
    if timestamp is not None or first is None:
        return timestamp
    # The first column of a table often holds dates as text.
    if kinds[first] == "text" and first not in names.targets:
        return first
    words = [
        name
        for name, kind in kinds.items()
        if kind == "number"
        and name not in names.targets
        and (name.strip().lower() in TIME_WORDS or (name == first and is_unnamed(name)))
    ]
    for name in words:
        values = numbers(name)
        steps = np.diff(values)
        # An index without a name may count rows of which some were left out.
        even = not is_unnamed(name) or bool((steps[1:] == steps[:-1]).all())
        if _whole(values) and ((steps > 0).all() or (steps < 0).all()) and even:
            return name
    if first in words and not names.targets:
        raise DataError(
            f"{where}: column {first!r} seems to be the time by its name and place, but its "
            "numbers are not whole, not in order or not regular; write the times as dates, name "
            "the timestamp column, or name the target columns that are to be forecast"
        )
    return None


def looks_like_date(text: str) -> bool:
    """Whether text is written as dates are: 2024-01-31, 31.01.2024, Jan 2024, 2024Q1."""
    text = text.strip().lower()
    named = _NAMED_MONTH.match(text)
    return bool(
        _DATE_PARTS.match(text)
        or _QUARTER.fullmatch(text)
        or (named is not None and named[2][:3] in _MONTHS)
    )


def is_unnamed(name: str) -> bool:
    """Whether a column has no name, or the one that pandas gives to such."""
    return _UNNAMED.fullmatch(name.strip().lower()) is not None


def _list_targets(where: str, kinds: Mapping[str, Kind], names: ColumnNames) -> tuple[str, ...]:
    """The columns of lists that hold the series; empty if the table has another layout."""
    if names.targets:
        count = sum(kinds[name] == "list" for name in names.targets)
        if count not in (0, len(names.targets)):
            raise DataError(
                f"{where}: the target columns {listed(names.targets)} must all hold lists, or "
                "all hold numbers"
            )
        return names.targets if count else ()
    lists = {name: kind for name, kind in kinds.items() if kind == "list"}
    target = _one_of(where, lists, LIST_NAMES, "target")
    if lists and target is None:
        raise DataError(
            f"{where} holds lists in {listed(lists)}, but none is called "
            f"{' or '.join(LIST_NAMES)}; name the target column"
        )
    return () if target is None else (target,)


def _timestamp(where: str, kinds: Mapping[str, Kind], taken: Sequence[str]) -> str | None:
    named = _one_of(where, kinds, TIME_NAMES, "timestamp", taken)
    if named is not None:
        return named if kinds[named] not in ("list", "other") else None
    times = [name for name, kind in kinds.items() if kind == "time" and name not in taken]
    if len(times) > 1:
        raise DataError(f"{where} has times in {listed(times)}; name the timestamp column")
    return times[0] if times else None


def _one_of(
    where: str,
    kinds: Mapping[str, Kind],
    candidates: Sequence[str],
    role: str,
    taken: Sequence[str] = (),
) -> str | None:
    matches = [name for name in candidates if name in kinds and name not in taken]
    if len(matches) > 1:
        raise DataError(
            f"{where} has columns {listed(matches)}, each of which could be the {role} column; "
            "name the one to use"
        )
    return matches[0] if matches else None


def _check_numbers(where: str, kinds: Mapping[str, Kind], targets: Sequence[str]) -> None:
    for name in targets:
        if kinds[name] == "text":
            raise DataError(
                f"{where}: column {name!r} must hold numbers, but holds text; name it as the id "
                "column if it says which series a row is of, or name the target columns to leave "
                "others out"
            )
        if kinds[name] != "number":
            raise DataError(
                f"{where}: column {name!r} must hold numbers, but its kind is {kinds[name]!r}; "
                "name the target columns to leave others out"
            )


def check_differ(where: Any, names: Iterable[str]) -> None:
    """Refuses two columns of one name."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{where} has more than one column {twice[0]!r}; the names must differ")


def listed(names: Collection[Any]) -> str:
    """Names in a message: the first of them, and how many more there are."""
    shown = ", ".join(f"{name!r:.40}" for name in itertools.islice(names, 8))
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return shown + more if shown else "nothing"
