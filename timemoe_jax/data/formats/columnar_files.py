"""Parquet and Arrow files, read in the parts in which they were written.

A part is a row group of a Parquet file or a record batch of an Arrow file. Files are closed between
reads, and a file that has changed since it was opened is an error. This needs pyarrow, which is
imported when a file is opened; its extension types are never unpickled.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from timemoe_jax.data.formats.reading import open_binary, reading
from timemoe_jax.data.formats.table_layout import Kind, check_differ
from timemoe_jax.data.series_source import float_of
from timemoe_jax.errors import DataError

PARQUET_ENDINGS = (".parquet", ".pq")
ARROW_ENDINGS = (".arrow", ".feather", ".ipc")

# Rows of lists that are read from a row group at a time.
ROWS_AT_A_TIME = 1024

_ARROW_FILE = b"ARROW1"
_FEATHER_1 = b"FEA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def import_pyarrow() -> ModuleType:
    """Imports pyarrow, or raises a DataError that says how to install it."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            "Parquet, Arrow and Hugging Face datasets need pyarrow, which is not installed; "
            "install it with: pip install 'pyarrow>=18'"
        ) from None
    return pyarrow


def naming(path: Path, kind: str) -> AbstractContextManager[None]:
    """Turns what pyarrow raises into an error that names the file."""
    return reading(path, kind, import_pyarrow().ArrowException)


class ColumnarFile:
    """One file: its path, its pyarrow schema, the rows of each of its parts, and their contents."""

    def __init__(self, path: Path):
        self.path = path
        self.schema: Any = None
        self.rows: list[int] = []
        with naming(path, self._kind):
            self._stamp = self._now()
            self._open()

    _kind = "a columnar file"

    def read(self, part: int, columns: Sequence[str]) -> dict[str, Any]:
        """Reads columns of a part, as valid pyarrow Arrays without dictionaries."""
        with naming(self.path, self._kind):
            self._check_unchanged()
            table = self._read(part, columns)
            return {name: _plain(table.column(name)) for name in columns}

    def batches(self, part: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Reads columns of a part as `read` does, some rows at a time where that saves memory."""
        yield self.read(part, columns)

    def _check_unchanged(self) -> None:
        if self._now() != self._stamp:
            raise DataError(f"{self.path} has changed since it was opened; open it again")

    def _now(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def _open(self) -> None:
        raise NotImplementedError

    def _read(self, part: int, columns: Sequence[str]) -> Any:
        raise NotImplementedError


class ParquetFile(ColumnarFile):
    """A Parquet file, whose footer is kept so that a read does not parse it again."""

    _kind = "Parquet"

    def _open(self) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            self._metadata, self.schema = file.metadata, file.schema_arrow
        self.rows = [
            self._metadata.row_group(k).num_rows for k in range(self._metadata.num_row_groups)
        ]
        if min(self.rows, default=0) < 0:
            raise DataError(f"{self.path} is damaged: a row group has {min(self.rows)} rows")

    def _read(self, part: int, columns: Sequence[str]) -> Any:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path, metadata=self._metadata) as file:
            table = file.read_row_group(part, columns=list(columns), use_threads=False)
        self._check_rows(part, len(table))
        return table

    def batches(self, part: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Reads some rows at a time: a row group of long lists can be as large as the file."""
        import pyarrow.parquet as pq

        with naming(self.path, self._kind):
            self._check_unchanged()
            with pq.ParquetFile(self.path, metadata=self._metadata) as file:
                batches = file.iter_batches(
                    ROWS_AT_A_TIME, [part], list(columns), use_threads=False
                )
                rows = 0
                for batch in batches:
                    rows += batch.num_rows
                    yield {name: _plain(batch.column(name)) for name in columns}
            self._check_rows(part, rows)

    def _check_rows(self, part: int, rows: int) -> None:
        if rows != self.rows[part]:
            raise DataError(
                f"{self.path} is damaged: row group {part} has {rows} rows instead of "
                f"{self.rows[part]}"
            )


class ArrowFile(ColumnarFile):
    """An Arrow file with random access, which Feather also is."""

    _kind = "Arrow"

    def _open(self) -> None:
        with self._reader() as reader:
            self.schema = reader.schema
            self.rows = [reader.get_batch(k).num_rows for k in range(reader.num_record_batches)]

    def _read(self, part: int, columns: Sequence[str]) -> Any:
        fields = [self.schema.get_field_index(name) for name in columns]
        with self._reader(fields) as reader:
            return reader.get_batch(part)

    def _reader(self, fields: list[int] | None = None) -> Any:
        pa = import_pyarrow()
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        # The mapping lives as long as an array that lies in it.
        return pa.ipc.open_file(pa.memory_map(str(self.path)), options=options)


class ArrowStream(ColumnarFile):
    """An Arrow stream, as Hugging Face datasets write them; it keeps where each batch begins."""

    _kind = "an Arrow stream"

    def _open(self) -> None:
        pa = import_pyarrow()
        stream = pa.memory_map(str(self.path))
        reader = pa.ipc.open_stream(stream)
        self.schema = reader.schema
        self._offsets = []
        while True:
            offset = stream.tell()
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            self._offsets.append(offset)
            self.rows.append(batch.num_rows)
        # pyarrow takes a stream that was cut between two batches for a shorter one.
        stream.seek(offset)
        if stream.read(len(_END_OF_STREAM)) != _END_OF_STREAM:
            raise DataError(
                f"{self.path} is cut short: it has {len(self.rows)} batches and no end mark; "
                "write it again"
            )
        # A batch may need the dictionaries before it, and can then only be read after them.
        self._in_turn = any(_has_dictionary(field.type) for field in self.schema)

    def _read(self, part: int, columns: Sequence[str]) -> Any:
        pa = import_pyarrow()
        stream = pa.memory_map(str(self.path))
        if self._in_turn:
            reader = pa.ipc.open_stream(stream)
            for _ in range(part):
                reader.read_next_batch()
            return reader.read_next_batch()
        stream.seek(self._offsets[part])
        return pa.ipc.read_record_batch(pa.ipc.read_message(stream), self.schema)


def open_columnar_file(path: Path) -> ColumnarFile:
    """Opens a file by its ending, and an Arrow file by its first bytes."""
    if path.suffix.lower() in PARQUET_ENDINGS:
        file: ColumnarFile = ParquetFile(path)
    else:
        with naming(path, "Arrow"), open_binary(path) as stream:
            start = stream.read(len(_ARROW_FILE))
        if start.startswith(_FEATHER_1):
            raise DataError(f"{path} is of Feather version 1; write it again as version 2")
        file = ArrowFile(path) if start == _ARROW_FILE else ArrowStream(path)
    with naming(path, "a table"):
        # Names that are not UTF-8 raise an error when they are looked at.
        check_differ(path, file.schema.names)
    return file


def kind_of(data_type: Any) -> Kind:
    """The kind of a column, from its pyarrow type."""
    types = import_pyarrow().types
    if types.is_dictionary(data_type):
        return kind_of(data_type.value_type)
    is_number = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if any(test(data_type) for test in is_number):
        return "number"
    if types.is_timestamp(data_type) or types.is_date(data_type):
        return "time"
    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    if any(test(data_type) for test in is_text):
        return "text"
    if is_list(data_type) and kind_of(data_type.value_type) in ("number", "list"):
        return "list"
    return "other"


def is_list(data_type: Any) -> bool:
    """Whether a pyarrow type is a list whose elements lie one after the other."""
    types = import_pyarrow().types
    return (
        types.is_list(data_type)
        or types.is_large_list(data_type)
        or types.is_fixed_size_list(data_type)
    )


def numbers(array: Any) -> Float[np.ndarray, " _"]:
    """Turns a pyarrow Array of numbers into NumPy's; null is NaN, and nothing loses precision."""
    pa = import_pyarrow()
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        array = array.cast(pa.float64())
    values = array.to_numpy(zero_copy_only=False)
    kind = np.dtype(array.type.to_pandas_dtype())
    # A copy, so that what is returned does not keep the file mapped.
    return np.array(values, float_of(kind))


def _plain(column: Any) -> Any:
    """Joins a column into one validated Array, with dictionaries decoded."""
    pa = import_pyarrow()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    # Offsets of a damaged file could point anywhere.
    column.validate(full=True)
    while isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column


def _has_dictionary(data_type: Any) -> bool:
    types = import_pyarrow().types
    if types.is_dictionary(data_type):
        return True
    return any(
        _has_dictionary(data_type.field(k).type)
        for k in range(data_type.num_fields)
        if types.is_nested(data_type)
    )
