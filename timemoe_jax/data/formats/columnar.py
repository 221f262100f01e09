"""Parquet, Arrow and Hugging Face dataset folders as sources of series.

Opening a file reads what tells the series apart (ids and times of a long table, lengths of lists),
a part of the file at a time; a read takes only the parts that hold the series. Iterating over a
whole source reads each part about once. Training reads in another order, and is faster from a
Time-300B folder, which `timemoe data convert` writes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float, Int64, Shaped

from timemoe_jax.data.formats.columnar_files import (
    ColumnarFile,
    import_pyarrow,
    is_list,
    kind_of,
    naming,
    numbers,
    open_columnar_file,
)
from timemoe_jax.data.formats.dates import common_frequency, frequency_of, parse_dates
from timemoe_jax.data.formats.frames import in_order, without_parts_of_time
from timemoe_jax.data.formats.long_index import LongIndex, LongPart
from timemoe_jax.data.formats.table_layout import (
    ID_NAMES,
    TIME_NAMES,
    ColumnNames,
    Kind,
    Layout,
    find_layout,
    looks_like_date,
)
from timemoe_jax.data.series_source import ConcatSource, SequenceSource
from timemoe_jax.errors import DataError

# Points that an iteration over a whole source reads at a time: 8 or 16 bytes each.
POINTS_AT_A_TIME = 1 << 22

DATASET_DICT = "dataset_dict.json"  # in the folder that holds the splits of a dataset
STATE = "state.json"  # which files of a folder make the dataset
_INFO = "dataset_info.json"


def open_columnar(
    paths: Sequence[Path], names: ColumnNames | None = None, where: str | None = None
) -> SequenceSource:
    """Opens Parquet or Arrow files, which continue each other, as one table of series."""
    where = where or str(paths[0])
    table = _Table(where, [open_columnar_file(path) for path in paths])
    with naming(paths[0], "a table"):
        kinds = {field.name: kind_of(field.type) for field in table.schema}
    names = names or ColumnNames()
    kinds = _with_dates(kinds, table, names)
    layout = find_layout(where, kinds, names, table.column)
    if not names.targets:
        layout = without_parts_of_time(layout, table.times, table.column)
    sources: list[SequenceSource]
    if layout.kind == "wide":
        sources = [_WideSource(table, layout)]
    elif layout.kind == "list":
        sources = [_ListSource(table, layout, target) for target in layout.targets]
    else:
        index = LongIndex(where, lambda: _long_parts(table, layout))
        sources = [_LongSource(table, layout, target, index) for target in layout.targets]
        if layout.timestamp is not None:
            frequency = common_frequency(len(sources[0]), sources[0].times)
            for each in sources:
                each.frequency = frequency
    source = sources[0] if len(sources) == 1 else ConcatSource(sources)
    source.ignored_columns = layout.ignored
    return source


def _with_dates(kinds: dict[str, Kind], table: "_Table", names: ColumnNames) -> dict[str, Kind]:
    """Counts text that holds dates as times, where no other column holds any."""
    if names.timestamp is not None or {*TIME_NAMES} & {*kinds} or "time" in kinds.values():
        return kinds
    texts = [name for name, kind in kinds.items() if kind == "text" and name not in ID_NAMES]
    cells = table.read(0, texts) if texts else {}
    for name, array in cells.items():
        first = next((cell.as_py() for cell in array if cell.is_valid), "")
        if looks_like_date(first):
            kinds[name] = "time"
    return kinds


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder is a Hugging Face dataset that `save_to_disk` wrote."""
    return (folder / STATE).exists() and any(folder.glob("*.arrow"))


def is_cache(path: Path) -> bool:
    """Whether a file holds what Hugging Face datasets computed from the files beside it."""
    return path.match("cache-*.arrow") and (path.parent / _INFO).exists()


def open_dataset_folder(folder: Path, names: ColumnNames | None = None) -> SequenceSource:
    """Opens a Hugging Face dataset that `save_to_disk` wrote, without their library."""
    path = folder / STATE
    try:
        state = json.loads(path.read_bytes())
        files = [entry["filename"] for entry in state["_data_files"]]
        indices = state.get("_indices_data_files")
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{path} must be a JSON object whose _data_files name the .arrow files"
        ) from None
    if indices:
        raise DataError(
            f"{path} selects rows by {str(indices)[:40]}; call flatten_indices before save_to_disk"
        )
    wrong = [name for name in files if not isinstance(name, str) or Path(name).name != name]
    if wrong or not files:
        raise DataError(f"{path}: _data_files must name files, not {str(wrong or files)[:40]}")
    paths = [folder / name for name in files]
    return open_columnar(paths, names, str(folder))


class _Table:
    """The parts of all files; `begins` holds the first row of each, then the number of rows."""

    def __init__(self, where: str, files: list[ColumnarFile]):
        self.where = where
        self.schema = files[0].schema
        for file in files[1:]:
            if not file.schema.equals(self.schema):
                raise DataError(
                    f"{file.path} has other columns than {files[0].path}; files that continue "
                    "each other must have the same"
                )
        self._parts = [
            (file, part) for file in files for part, rows in enumerate(file.rows) if rows
        ]
        counts = [file.rows[part] for file, part in self._parts]
        if not counts:
            raise DataError(f"{where} has no rows; give at least one")
        self.begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._parts)

    def read(self, part: int, columns: Sequence[str]) -> dict[str, Any]:
        file, inner = self._parts[part]
        return file.read(inner, columns)

    def numbers(self, part: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        file, _ = self._parts[part]
        arrays = self.read(part, columns)
        with naming(file.path, "numbers"):
            return {name: numbers(array) for name, array in arrays.items()}

    def column(self, name: str) -> np.ndarray:
        """All numbers of a column."""
        return np.concatenate([self.numbers(part, [name])[name] for part in range(len(self))])

    def times(self, name: str) -> np.ndarray:
        """All times of a column; every row must have one."""
        parts = [self.times_of(part, [name])[name] for part in range(len(self))]
        times = np.concatenate(parts)
        missing = np.isnat(times) if times.dtype.kind == "M" else np.isnan(times)
        if missing.any():
            raise DataError(
                f"{self.where}: column {name!r} has no time in row {int(missing.argmax())}; every "
                "row needs one"
            )
        return times

    def times_of(self, part: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        arrays = self.read(part, columns)
        return {name: _times(array, self, part, name) for name, array in arrays.items()}

    def gather(
        self, rows: Int64[np.ndarray, " n"], columns: Sequence[str], read: Callable[..., Any]
    ) -> list[np.ndarray]:
        """What `read` gives of some rows, of each column; a part that holds any is read once."""
        of_row = np.searchsorted(self.begins, rows, side="right") - 1
        out: dict[str, np.ndarray] = {}
        for part in np.unique(of_row) if len(rows) else [0]:  # for no row, of the right type
            values = read(int(part), columns)
            chosen = of_row == part
            for name in columns:
                if name not in out:
                    out[name] = np.empty(len(rows), values[name].dtype)
                out[name][chosen] = values[name][rows[chosen] - self.begins[part]]
        return [out[name] for name in columns]

    def batches(self, part: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        file, inner = self._parts[part]
        return file.batches(inner, columns)

    def path(self, part: int) -> Path:
        return self._parts[part][0].path

    def part_of(self, row: int) -> int:
        return int(np.searchsorted(self.begins, row, side="right")) - 1


class _WideSource(SequenceSource):
    """The numeric columns of a table, its rows in the order of their times."""

    aligned = True

    def __init__(self, table: _Table, layout: Layout):
        self._table, self._columns = table, layout.targets
        self._times: np.ndarray | None = None
        self._order: np.ndarray | None = None  # of the rows, where it is not that of the file
        if layout.timestamp is not None:
            times = table.times(layout.timestamp)
            self._times, self._order = in_order(times, table.where, layout.timestamp)
            self.frequency = frequency_of(self._times)
        self.lengths = np.full(len(self._columns), table.begins[-1], np.int64)

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return self._rows([self._columns[i]], start, stop)[0]

    def _rows(self, columns: Sequence[str], start: int, stop: int) -> list[np.ndarray]:
        order = self._order
        rows = np.arange(start, stop) if order is None else order[start:stop]
        return self._table.gather(rows, columns, self._table.numbers)

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        rows = int(self._table.begins[-1])
        step = max(1, POINTS_AT_A_TIME // rows)
        for k in range(0, len(self._columns), step):
            yield from self._rows(self._columns[k : k + step], 0, rows)

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """Those of all rows, the same for every series."""
        self._checked(i)
        return self._times

    def name(self, i: int) -> str:
        return f"{self._table.where} column {self._columns[i]}"

    def label(self, i: int) -> str:
        return self._columns[i]


class _LongSource(SequenceSource):
    """The values of one column, told apart by id."""

    def __init__(self, table: _Table, layout: Layout, target: str, index: LongIndex):
        self._table, self._target, self._index = table, target, index
        self._timestamp = layout.timestamp
        self._several = len(layout.targets) > 1
        self.lengths = index.lengths

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        return self._values(self._index.rows(i, start, stop))

    def _values(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return self._table.gather(rows, [self._target], self._table.numbers)[0]

    def _stamps(self, rows: Int64[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
        assert self._timestamp is not None
        return self._table.gather(rows, [self._timestamp], self._table.times_of)[0]

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        return self._in_turn(self._values)

    def _in_turn(self, take: Callable[[Int64[np.ndarray, " n"]], np.ndarray]) -> Iterator[Any]:
        """Takes something of the rows of each series, those of many at a time."""
        ends = np.cumsum(self.lengths)
        i = 0
        while i < len(self):
            begin = int(ends[i] - self.lengths[i])
            upto = max(i + 1, int(np.searchsorted(ends, begin + POINTS_AT_A_TIME, side="right")))
            values = take(self._index.rows(i, 0, int(ends[upto - 1]) - begin))
            yield from np.split(values, ends[i : upto - 1] - begin)
            i = upto

    def times(self, i: SupportsIndex) -> Shaped[np.ndarray, " T"] | None:
        """Those of the rows of series `i`, if the table has a column of times."""
        i = self._checked(i)
        if self._timestamp is None:
            return None
        return self._stamps(self._index.rows(i, 0, int(self.lengths[i])))

    def all_times(self) -> Iterator[Shaped[np.ndarray, " T"] | None]:
        """Those of every series, for which each part of the table is read about once."""
        return super().all_times() if self._timestamp is None else self._in_turn(self._stamps)

    def name(self, i: int) -> str:
        return f"{self._table.where} series {self.label(i)}"

    def label(self, i: int) -> str:
        return self._index.ids[i] + (f" {self._target}" if self._several else "")


class _ListSource(SequenceSource):
    """The lists of one column; each list of a list of lists is a series of its own."""

    def __init__(self, table: _Table, layout: Layout, target: str):
        self._table, self._target = table, target
        self._id, self._several = layout.id, len(layout.targets) > 1
        lengths = [np.zeros(0, np.int64)]
        # The first series of each part.
        begins = [0]
        for part in range(len(table)):
            of_part = [ends - starts for starts, ends, _ in self._batches(part)]
            begins.append(begins[-1] + sum(map(len, of_part)))
            lengths += of_part
        self.lengths = np.concatenate(lengths)
        self._begins = np.array(begins, np.int64)
        self._names: tuple[int, list[str]] | None = None

    def _batches(self, part: int) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """Yields the starts and ends of the series of a part, and the numbers that these index."""
        for arrays in self._table.batches(part, [self._target]):
            with naming(self._table.path(part), "lists"):
                extents = _extents(arrays[self._target])
            yield extents

    def _read(self, i: int, start: int, stop: int) -> Float[np.ndarray, " _"]:
        part = int(np.searchsorted(self._begins, i, side="right")) - 1
        row = i - int(self._begins[part])
        for starts, _, values in self._batches(part):
            if row < len(starts):
                begin = int(starts[row])
                with naming(self._table.path(part), "numbers"):
                    return numbers(values[begin + start : begin + stop])
            row -= len(starts)
        raise DataError(f"{self.name(i)} is no longer there; open the file again")

    def __iter__(self) -> Iterator[Float[np.ndarray, " T"]]:
        for part in range(len(self._table)):
            for starts, ends, values in self._batches(part):
                with naming(self._table.path(part), "numbers"):
                    flat = numbers(values)
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                    yield flat[start:end].copy()

    def name(self, i: int) -> str:
        return f"{self._table.where} column {self._target} series {i}"

    def label(self, i: int) -> str:
        part = int(np.searchsorted(self._begins, i, side="right")) - 1
        if self._names is None or self._names[0] != part:
            self._names = part, self._labels(part)
        return self._names[1][i - int(self._begins[part])]

    def _labels(self, part: int) -> list[str]:
        """Names the series of a part by id, and by channel where a row has several."""
        first = int(self._table.begins[part])
        ids = [str(row) for row in range(first, int(self._table.begins[part + 1]))]
        if self._id is not None:
            column = self._table.read(part, [self._id])[self._id]
            ids = [str(value) for value in column.to_pylist()]
        suffix = f" {self._target}" if self._several else ""
        if not is_list(self._table.schema.field(self._target).type.value_type):
            return [label + suffix for label in ids]
        labels: list[str] = []
        row = 0
        for arrays in self._table.batches(part, [self._target]):
            for inner, channel in _rows_and_channels(arrays[self._target]):
                labels.append(f"{ids[row + inner]}{suffix} channel {channel}")
            row += len(arrays[self._target])
        return labels


def _extents(column: Any) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Any]:
    """Returns where each list of a pyarrow Array begins and ends in its numbers, and these."""
    while is_list(column.type.value_type):
        column = column.flatten()
    lengths = _list_lengths(column)
    ends = np.cumsum(lengths)
    # `flatten` leaves out the numbers that may lie behind an absent list.
    return ends - lengths, ends, column.flatten()


def _list_lengths(column: Any) -> Int64[np.ndarray, " n"]:
    import pyarrow.compute as pc

    return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _rows_and_channels(column: Any) -> Iterator[tuple[int, int]]:
    """The row of each series, and its number within the row."""
    rows = np.arange(len(column))
    while is_list(column.type.value_type):
        rows = np.repeat(rows, _list_lengths(column))
        column = column.flatten()
    first = np.searchsorted(rows, rows, side="left")
    return zip(rows.tolist(), (np.arange(len(rows)) - first).tolist(), strict=True)


def _long_parts(table: _Table, layout: Layout) -> Iterator[LongPart]:
    assert layout.id is not None
    columns = [layout.id] + ([] if layout.timestamp is None else [layout.timestamp])
    for part in range(len(table)):
        arrays = table.read(part, columns)
        with naming(table.path(part), "ids"):
            encoded = arrays[layout.id].dictionary_encode()
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            labels = encoded.dictionary.to_pylist()
        times = None
        if layout.timestamp is not None:
            times = _times(arrays[layout.timestamp], table, part, layout.timestamp)
        yield LongPart(codes.astype(np.int64), labels, times)


def _times(array: Any, table: _Table, part: int, column: str) -> np.ndarray:
    """Numbers or datetime64; NaN or NaT where there is no time."""
    pa = import_pyarrow()
    with naming(table.path(part), "times"):
        if kind_of(array.type) == "number":
            # Whole numbers stay whole, since floats beyond 2**53 would coincide.
            exact = pa.types.is_integer(array.type) and not array.null_count
            return array.to_numpy() if exact else numbers(array)
        if kind_of(array.type) == "time":
            days = pa.types.is_date(array.type)
            unit = pa.timestamp("ms") if days else pa.timestamp(array.type.unit)
            return array.cast(unit).to_numpy(zero_copy_only=False)
        # Each part is read alone, so that a layout that must be guessed could differ between parts.
        begin = int(table.begins[part])
        return parse_dates(
            ["" if cell is None else cell for cell in array.to_pylist()],
            lambda row: f"{table.where} column {column!r}: row {begin + row}",
            layouts=("ISO8601",),
        )
