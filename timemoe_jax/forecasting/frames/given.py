"""A data frame and names of its columns as a caller gives them, made ready to be read.

Names of columns become text, and an index without names is named by what it holds.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from timemoe_jax.data.formats.dates import DATE
from timemoe_jax.data.formats.frames import columns_of, kind_of
from timemoe_jax.data.formats.table_layout import ID_NAMES, TIME_NAMES, ColumnNames, listed
from timemoe_jax.errors import DataError

# How frames of other libraries become frames of pandas, by a method that they have.
_TO_PANDAS = ("to_pandas", "toPandas", "to_dataframe", "compute")


class Given(NamedTuple):
    """A frame with names as text, and the arguments that name its columns."""

    frame: Any
    names: ColumnNames
    past_covariates: tuple[str, ...]
    originals: dict[str, Any]  # what the caller calls the columns whose names are no text


def given_frame(
    df: Any,
    where: str,
    id_column: Any = None,
    timestamp_column: Any = None,
    target: Any = None,
    past_covariates: Any = (),
) -> Given:
    """Takes a data frame, and names of its columns: one, or a list where there may be several.

    Raises:
      DataError: `df` is no data frame of pandas, a name is none, or several are given for the ids.
    """
    frame, originals = text_frame(df, where)
    ids = column_names("id_column", id_column)
    if len(ids) > 1:
        joined = " + '/' + ".join(f"{where}[{name!r}].astype(str)" for name in ids)
        raise DataError(
            f"id_column must be one column, but is {id_column!r}; join them in one: "
            f"{where}['id'] = {joined}"
        )
    times = column_names("timestamp_column", timestamp_column)
    if len(times) > 1:
        raise DataError(f"timestamp_column must be one column, but is {timestamp_column!r}")
    targets = column_names("target", target, frame.columns)
    names = ColumnNames(ids[0] if ids else None, times[0] if times else None, targets)
    past = column_names("past_covariates", past_covariates, frame.columns)
    return Given(frame, names, past, originals)


def text_frame(df: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """A frame as `columns_of` makes it, and the names of columns that were no text."""
    _check_frame(df, where)
    every = [*df.columns, *(name for name in df.index.names if name is not None)]
    originals = {_text(name): name for name in every if not isinstance(name, str | tuple)}
    df = df.copy(deep=False)
    df.columns = [_text(name) for name in df.columns]
    df.index = df.index.set_names([None if n is None else _text(n) for n in df.index.names])
    return columns_of(_with_named_index(df, where), where), originals


def _text(name: Any) -> str:
    """A name as text: that of several levels has blanks between them."""
    return " ".join(filter(None, map(str, name))) if isinstance(name, tuple) else str(name)


def column_names(argument: str, value: Any, columns: Collection[str] = ()) -> tuple[str, ...]:
    """The names that an argument gives: none, one, or a list of them."""
    if value is None:
        return ()
    if isinstance(value, str) or (isinstance(value, tuple) and _text(value) in columns):
        return (_text(value),)
    if isinstance(value, bool | dict):
        raise DataError(f"{argument} must be the name of a column, but is {value!r}")
    if isinstance(value, Collection):
        return tuple(_text(name) for name in value)
    return (_text(value),)


def _check_frame(df: Any, where: str) -> None:
    import pandas as pd

    if isinstance(df, pd.DataFrame):
        return
    kind = type(df)
    module = kind.__module__.split(".")[0]
    name = kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"
    method = next((each for each in _TO_PANDAS if hasattr(kind, each)), None)
    if isinstance(df, pd.Series):
        how = "give series.rename('y').to_frame(), with the times as its index"
    elif method is not None:
        how = f"give {where if where.isidentifier() else 'df'}.{method}()"
    else:
        how = "give pandas.DataFrame(...) with a column of times; forecast() takes arrays"
    raise DataError(f"{where} must be a pandas DataFrame, not a {name}; {how}")


def _with_named_index(df: Any, where: str) -> Any:
    """Names the levels of an index without names by what they hold, if it is ids or times.

    One of numbers that count the rows stays as it is.
    """
    import pandas as pd

    index = df.index
    if all(name is not None for name in index.names):
        return df
    if not isinstance(index, pd.MultiIndex):
        return _with_named_level(df, where)
    kinds = [_level_kind(level) for level in index.levels]
    unnamed = [i for i, name in enumerate(index.names) if name is None]
    # Numbers beside other ids count rows, as those of `groupby(...).apply(...)` do.
    ids = len(index.names) > len(unnamed) or any(
        kinds[i] not in ("time", "number") for i in unnamed
    )
    counters = [i for i in unnamed if kinds[i] == "number"] if ids else []
    if counters:
        return _with_named_index(df.droplevel(counters), where)
    times = [i for i in unnamed if kinds[i] == "time"]
    others = [i for i in unnamed if kinds[i] != "time"]
    if len(times) > 1 or len(others) > 1:
        raise DataError(
            f"the index of {where} has levels without names, of which {len(others)} could be ids "
            f"and {len(times)} times; name them, with rename_axis(['id', ..., 'ds'])"
        )
    names = list(index.names)
    taken = {*df.columns, *names}
    for at, candidates in ((times, TIME_NAMES[::-1]), (others, ID_NAMES)):
        for i in at:
            names[i] = _free(candidates, taken, where)
    return df.rename_axis(names)


def _with_named_level(df: Any, where: str) -> Any:
    """The same of an index of one level that holds text; times are named by `columns_of`."""
    kind = _level_kind(df.index)
    columns = {*df.columns}
    dated = bool(columns & {*TIME_NAMES}) or any(
        kind_of(df[name]) == "time" for name in df.columns if list(df.columns).count(name) == 1
    )
    if kind == "time" and not dated:
        return df.rename_axis(_free(TIME_NAMES[::-1], columns, where))
    if kind == "text" and dated and not columns & {*ID_NAMES} and len(df.index):
        raise DataError(
            f"the index of {where} has no name and holds text such as {df.index[0]!r}; name it "
            "if it holds ids, with rename_axis('id'), or drop it, with reset_index(drop=True)"
        )
    return df


def _level_kind(level: Any) -> str:
    """What a level holds: "time", which dates as text are, "text", or anything else."""
    import pandas as pd

    kind = kind_of(pd.Series(level))
    if kind == "text" and len(level) and all(DATE.match(str(label)) for label in level[:100]):
        return "time"
    return kind


def _free(candidates: Collection[str], taken: Collection[Any], where: str) -> str:
    """The first name that no column has."""
    free = next((name for name in candidates if name not in taken), None)
    if free is None:
        raise DataError(
            f"the index of {where} has a level without a name beside columns {listed(taken)}; name "
            "it, with rename_axis"
        )
    return free
