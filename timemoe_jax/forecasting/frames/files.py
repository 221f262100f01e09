"""Files that hold a data frame: CSV and Parquet."""

import os
from pathlib import Path
from typing import Any

from timemoe_jax.data.formats.columnar_files import naming
from timemoe_jax.data.formats.csv_files import read_csv_frame
from timemoe_jax.data.formats.frames import columns_of, counters_of, time_column_of
from timemoe_jax.data.formats.table_layout import ID_NAMES, ColumnNames
from timemoe_jax.errors import DataError

SUFFIXES = (".csv", ".parquet")
STEP = "step"


def read_frame_file(path: str | os.PathLike[str], names: ColumnNames | None = None) -> Any:
    """Reads a UTF-8 CSV with a header line, or a Parquet file, as a pandas DataFrame.

    `names` says which columns hold ids and times, where their names do not.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} must be one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".csv":
        return read_csv_frame(path, names)
    with naming(path, "Parquet"):
        import pyarrow.parquet

        # The metadata that pandas writes is ignored, since it may be damaged, too.
        with open(path, "rb") as stream:
            table = pyarrow.parquet.read_table(stream)
        table.validate(full=True)  # else text that is not UTF-8 would only be noticed later
        frame = table.to_pandas(ignore_metadata=True)
    if frame.empty:
        raise DataError(f"{path} has no rows")
    return frame


def open_frame(path: str | os.PathLike[str], names: ColumnNames) -> tuple[Any, list[str]]:
    """Reads a file as `read_frame_file` does, and leaves out columns that only count its rows.

    Returns the frame, and the names of what was left out: counters that `names` gives no role.
    """
    frame = columns_of(read_frame_file(path, names), os.fspath(path))
    roles = {names.id, names.timestamp, *names.targets}
    found = [name for name in counters_of(frame) if name not in roles]
    return frame.drop(columns=found), found


def with_times(frame: Any, names: ColumnNames, where: str) -> tuple[Any, str | None]:
    """The frame and its column of times: the one it has, else the numbers of its rows."""
    timestamp = time_column_of(frame, names, where)
    if timestamp is None:
        frame = with_steps(frame, names.id)
        timestamp = STEP if STEP in frame.columns else None
    return frame, timestamp


def with_steps(frame: Any, id_column: str | None = None) -> Any:
    """Numbers the rows of a frame of nothing but numbers and ids, which counts as one row a step.

    The rows of each id are numbered by themselves. Any other frame is returned as it is.
    """
    import pandas as pd

    if STEP in frame.columns or not isinstance(frame.index, pd.RangeIndex):
        return frame
    ids = [name for name in (*ID_NAMES, id_column) if name in frame.columns]
    others = [name for name in frame.columns if name not in ids]
    if not all(pd.api.types.is_numeric_dtype(frame[name]) for name in others):
        return frame
    steps: Any = range(len(frame))
    if id_column in ids or len(ids) == 1:
        steps = frame.groupby(id_column or ids[0], sort=False).cumcount()
    frame = frame.copy(deep=False)
    frame.insert(0, STEP, steps)
    return frame
