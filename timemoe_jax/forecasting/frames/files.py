"""Files that hold a data frame: CSV and Parquet."""

import os
from pathlib import Path
from typing import Any

from timemoe_jax.errors import DataError

SUFFIXES = (".csv", ".parquet")
STEP = "step"


def read_frame_file(path: str | os.PathLike[str]) -> Any:
    """Reads a file as a pandas DataFrame.

    Args:
      path: a UTF-8 CSV with a header line, or a Parquet file.

    Raises:
      DataError: the file is of another kind, cannot be read, or has no row.
    """
    import pandas as pd

    path = Path(path)
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path} must be one of {', '.join(SUFFIXES)}")
    try:
        if kind == ".csv":
            frame = pd.read_csv(path, encoding="utf-8-sig", low_memory=False)
        else:
            frame = _read_parquet(path)
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow, which is not installed: pip install 'timemoe_jax[arrow]'"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged files raise almost anything in pandas and pyarrow
        raise DataError(f"{path} cannot be read as {kind}: {error}") from None
    if frame.empty:
        raise DataError(f"{path} has a header line but no rows")
    return frame


def _read_parquet(path: Path) -> Any:
    import pyarrow.parquet

    # Not as pandas wrote it, index and all: what the file says about that may be damaged, too.
    with open(path, "rb") as stream:
        table = pyarrow.parquet.read_table(stream)
    table.validate(full=True)  # text that is not UTF-8 would only show later
    return table.to_pandas(ignore_metadata=True)


def with_steps(frame: Any) -> Any:
    """A frame of nothing but numbers with a column of step numbers before them.

    A table without times is taken for one row a step. Any other frame is given back as it is.
    """
    import pandas as pd

    numeric = all(pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns)
    if not numeric or STEP in frame.columns or not isinstance(frame.index, pd.RangeIndex):
        return frame
    frame = frame.copy(deep=False)
    frame.insert(0, STEP, range(len(frame)))
    return frame


def is_text(column: Any) -> bool:
    """Whether a column of a frame holds text."""
    import pandas as pd

    return pd.api.types.infer_dtype(column, skipna=True) == "string"
