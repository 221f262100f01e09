"""One format for the results of all benchmarks: a manifest, and rows of windows on request.

`manifest.json` says how scores were obtained. Its "results" hold a cell for each task and method:
benchmark, task, method, seconds, failures by their reason, and scores. `windows.parquet`, or
`windows.jsonl` where pyarrow is not installed, holds a row for each window, so that two methods can
be compared after the fact.
"""

import contextlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.scores import WindowScores
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.files import write_text, written_whole
from timemoe_jax.forecasting.scoring.metrics import without_nan

MANIFEST = "manifest.json"
VERSIONS_OF = ("timemoe_jax", "jax", "jaxlib", "flax", "numpy")

# The columns of windows, and their types. The weighted quantile loss of any windows is the sum of
# their "quantile_loss" over the sum of their "target".
TEXTS = ("benchmark", "task", "method", "series")
WHOLE_NUMBERS = ("origin", "horizon", "points")
NUMBERS = (
    *("mae", "mse"),  # in the units of the series
    *("mase", "sql"),  # scaled
    "quantile_loss",  # twice the pinball loss: sum over points, mean over levels
    "target",  # sum of what came, without signs
    "coverage",  # the share of points within the interval of 80%
)
COLUMNS = (*TEXTS, *WHOLE_NUMBERS, *NUMBERS)

Columns = Mapping[str, Sequence[Any] | np.ndarray]


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """The versions of what computes, and of further packages; "not installed" where one is not."""
    found = {}
    for name in (*VERSIONS_OF, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def result_cell(
    benchmark: str,
    task: str,
    method: str,
    seconds: float,
    failures: Mapping[int, str],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """A cell of a manifest's "results"; failures are counted by their reason."""
    return {
        "benchmark": benchmark,
        "task": task,
        "method": method,
        "seconds": round(seconds, 6),
        "failures": dict(Counter(failures.values()).most_common()),
        **scores,
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest.json`; a score that is NaN becomes null."""
    write_text(folder / MANIFEST, json.dumps(without_nan(dict(manifest)), indent=2) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads the manifest of an output folder, or of a path to one.

    Raises:
      DataError: there is none, or it holds no results.
    """
    path = Path(folder)
    path = path / MANIFEST if path.is_dir() else path
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no manifest of an evaluation: {error}") from None
    if not isinstance(manifest, dict) or "results" not in manifest:
        raise DataError(f'{path} is no manifest of an evaluation: it has no "results"')
    return manifest


class Rows(NamedTuple):
    """Rows of windows, by column."""

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["task"])


def rows_of_task(benchmark: str, task: Task, method: str, scores: WindowScores) -> Columns:
    """The rows of a method's windows on a task."""
    windows = task.windows()
    count = np.maximum(scores.points, 1)
    nothing = np.where(scores.points > 0, 0.0, np.nan)
    return {
        **{"benchmark": [benchmark] * len(windows), "task": [task.name] * len(windows)},
        "method": [method] * len(windows),
        "series": [task.names[i] for i, _ in windows],
        "origin": [origin for _, origin in windows],
        "horizon": [task.horizon] * len(windows),
        "points": scores.points,
        "mae": scores.absolute / count + nothing,
        "mse": scores.squared / count + nothing,
        **{"mase": scores.mase, "sql": scores.sql},
        "quantile_loss": scores.quantile_loss.mean(axis=1),
        "target": scores.target,
        "coverage": scores.covered / count + nothing,
    }


class WindowWriter(Protocol):
    """Takes rows of windows; a column that is left out is NaN in them."""

    def add(self, rows: Columns) -> None:
        """Writes some rows."""
        ...


class _NoWriter:
    def add(self, rows: Columns) -> None:
        pass


class _ParquetWriter:
    def __init__(self, stream: BinaryIO):
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {
            **dict.fromkeys(TEXTS, pa.dictionary(pa.int32(), pa.string())),
            **dict.fromkeys(WHOLE_NUMBERS, pa.int64()),
            **dict.fromkeys(NUMBERS, pa.float64()),
        }
        self._schema = pa.schema(list(kinds.items()))
        self._make = pa.Table.from_pydict
        self.file = pq.ParquetWriter(stream, self._schema, compression="zstd")

    def add(self, rows: Columns) -> None:
        self.file.write_table(self._make(_complete(rows), schema=self._schema))


class _JsonWriter:
    def __init__(self, stream: BinaryIO):
        self.file = stream

    def add(self, rows: Columns) -> None:
        complete = {name: np.asarray(column).tolist() for name, column in _complete(rows).items()}
        for values in zip(*complete.values(), strict=True):
            row = without_nan(dict(zip(complete, values, strict=True)))
            self.file.write(json.dumps(row).encode() + b"\n")


def _complete(rows: Columns) -> dict[str, Any]:
    count = len(rows["task"])
    return {name: rows.get(name, np.full(count, np.nan)) for name in COLUMNS}


@contextlib.contextmanager
def window_writer(folder: Path, per_window: bool = True) -> Iterator[WindowWriter]:
    """Yields what takes the rows of windows, for a file in a folder that is whole at the end.

    It is `windows.parquet`, or `windows.jsonl` where pyarrow is not installed. Without `per_window`
    nothing is written. Such files of an earlier evaluation are removed.
    """
    for path in _files(folder):
        path.unlink(missing_ok=True)
    if not per_window:
        yield _NoWriter()
        return
    parquet, lines = _files(folder)
    path, kind = (parquet, _ParquetWriter) if _has_pyarrow() else (lines, _JsonWriter)
    with written_whole(path) as beside, open(beside, "wb") as stream:
        writer: Any = kind(stream)
        with contextlib.closing(writer.file):
            yield writer


def read_windows(folder: str | Path) -> Rows:
    """Reads the rows of windows of an output folder, or of a file of them.

    Texts are object arrays; "origin", "horizon" and "points" are int64, all others float64 with NaN
    where there is no such score.

    Raises:
      DataError: there are none, or the file lacks a column.
    """
    path = Path(folder)
    if path.is_dir():
        found = [file for file in _files(path) if file.exists()]
        if not found:
            raise DataError(
                f"{path} has no rows of windows; evaluate with --config.per_window=True"
            )
        path = found[0]
    read = _read_lines if path.suffix == ".jsonl" else _read_parquet
    columns = read(path)
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(f"{path} holds no rows of windows: it lacks {', '.join(missing)}")
    kinds: dict[str, Any] = {
        **dict.fromkeys(TEXTS, object),
        **dict.fromkeys(WHOLE_NUMBERS, np.int64),
        **dict.fromkeys(NUMBERS, np.float64),
    }
    return Rows({name: np.array(columns[name], kinds[name]) for name in COLUMNS})


def _files(folder: Path) -> tuple[Path, Path]:
    return folder / "windows.parquet", folder / "windows.jsonl"


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    from timemoe_jax.data.formats.columnar_files import import_pyarrow, naming

    import_pyarrow()
    import pyarrow.parquet as pq

    with naming(path, "Parquet"):
        return pq.read_table(path).to_pydict()


def _read_lines(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                for name, column in columns.items():
                    column.append(row[name])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} line {number} is no row of a window: {error}") from None
    return columns


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True
