"""Which columns of a table are ids, times and values.

Three layouts are known. Wide: every numeric column is a series. Long: a row is a point, and a
column says of which series. List: a row is a series, and a column holds all of its points.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from timemoe_jax.errors import DataError

# Other libraries use unique_id/ds/y, item_id/timestamp/target and id/timestamp/target.
ID_NAMES = ("unique_id", "item_id", "id")
TIME_NAMES = ("ds", "timestamp")
TARGET_NAMES = ("y", "target")
LIST_NAMES = ("target", "sequence")

Kind = Literal["number", "time", "text", "list", "other"]


class ColumnNames(NamedTuple):
    """The columns that a caller names; they win over those that are found by name."""

    id: str | None = None
    timestamp: str | None = None
    targets: tuple[str, ...] = ()


class Layout(NamedTuple):
    """How a table holds series; a wide one has no id, and one of lists no timestamp."""

    kind: Literal["wide", "long", "list"]
    id: str | None
    timestamp: str | None
    targets: tuple[str, ...]
    ignored: tuple[str, ...]  # columns that hold neither ids nor times nor values


def find_layout(where: str, kinds: Mapping[str, Kind], names: ColumnNames) -> Layout:
    """Finds out how a table holds series, from what its columns hold.

    A DataError says that a named column is absent or of the wrong kind, or that the columns can be
    understood in more than one way, or in none.
    """
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
    id_column = names.id or _one_of(where, kinds, ID_NAMES, "id", names.targets)
    lists = _list_targets(where, kinds, names)
    if lists:
        roles = {id_column, *lists}
        return Layout("list", id_column, None, lists, _others(kinds, roles))
    if id_column is not None:
        return _long(where, kinds, names, id_column)
    return _wide(where, kinds, names)


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
    timestamp = names.timestamp or _timestamp(where, kinds, (id_column, *targets))
    return Layout(
        "long", id_column, timestamp, targets, _others(kinds, {id_column, timestamp, *targets})
    )


def _wide(where: str, kinds: Mapping[str, Kind], names: ColumnNames) -> Layout:
    timestamp = names.timestamp or _timestamp(where, kinds, names.targets)
    columns = list(kinds)
    # The first column of a table often holds dates as text.
    first = columns[:1]
    if timestamp is None and not {*first} & {*names.targets}:
        timestamp = next((name for name in first if kinds[name] == "text"), None)
    # pandas writes the index of a data frame under such a name.
    targets = names.targets or tuple(
        name for name in columns if name != timestamp and not name.startswith("__index_level_")
    )
    if not targets:
        raise DataError(f"{where} has no numeric column, only {listed(kinds)}; give at least one")
    _check_numbers(where, kinds, targets)
    return Layout("wide", None, timestamp, targets, _others(kinds, {timestamp, *targets}))


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
        if kinds[name] != "number":
            raise DataError(
                f"{where}: column {name!r} must hold numbers, but its kind is {kinds[name]!r}; "
                "name the target columns to leave others out"
            )


def _others(kinds: Mapping[str, Kind], roles: set[str | None]) -> tuple[str, ...]:
    return tuple(name for name in kinds if name not in roles)


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
