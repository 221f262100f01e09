"""Every reader against what nobody would write: a right answer or a DataError, nothing else."""

import functools
import io
import json
import string
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timemoe_jax.data.formats.frames import frame_source
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.errors import DataError

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)

VALUES = [1.5, -2.0, 3.25, 0.0]
LIST_TABLE = pa.table({"item_id": ["a", "b"], "target": [VALUES, VALUES[:2]]})
LONG_TABLE = pa.table({"id": [1, 1, 2, 2], "timestamp": [0, 1, 0, 1], "target": VALUES})
WIDE_TABLE = pa.table({"ds": pd.date_range("2024", periods=4), "a": VALUES, "b": [1, None, 3, 4]})


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2)
    return sink.getvalue()


def feather(table):
    sink = io.BytesIO()
    pyarrow.feather.write_feather(table, sink, chunksize=2)
    return sink.getvalue()


def plain_feather(table):
    sink = io.BytesIO()
    pyarrow.feather.write_feather(table, sink, compression="uncompressed")
    return sink.getvalue()


def stream(table):
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return sink.getvalue()


def npy(array):
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def npz(compressed):
    sink = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        sink, a=np.arange(6.0).reshape(2, 3), b=[1, 2]
    )
    return sink.getvalue()


TSF = (
    b"@relation r\n@attribute series_name string\n@attribute t date\n@frequency daily\n"
    b"@horizon 2\n@missing true\n@data\nT1:2011-01-01 00-00-00:1,?,3\nT2:2011-01-01 00-00-00:4\n"
)
CSV = b"date,a,b\n2024-01-01,1,2.5\n2024-01-02,,-1e3\n2024-01-03,3,inf\n"
LONG_CSV = b"id,timestamp,target\nx,2024-01-01,1\ny,2024-01-01,2\nx,2024-01-02,\n"


def whole_folder(folder, content):
    """The folder itself, with one of its files changed."""
    write_time_moe_folder(folder, [np.array(VALUES), np.array(VALUES[:1])])
    (folder / "meta.json").write_bytes(content)
    return folder


def dataset_folder(name, folder, content):
    folder.mkdir()
    (folder / "data.arrow").write_bytes(stream(LIST_TABLE))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / name).write_bytes(content)
    return folder


META = (
    b'{"num_sequences": 2, "dtype": "float32", "files": {"data-1-of-1.bin": 5}, "scales": '
    b'[{"offset": 0, "length": 4}, {"offset": 4, "length": 1, "mean": 1.0, "std": 2.0}]}'
)


def named(name):
    def place(folder, content):
        folder.mkdir()
        (folder / name).write_bytes(content)
        return folder / name

    return place


# What is written, how, and what it holds as it is.
FORMATS = {
    "jsonl": (named("a.jsonl"), b'{"sequence": [1, null, 2.5]}\n[3, 4]\n'),
    "npy": (named("a.npy"), npy(np.arange(6, dtype=np.float32).reshape(2, 3))),
    "npz": (named("a.npz"), npz(False)),
    "npz compressed": (named("a.npz"), npz(True)),
    "csv": (named("a.csv"), CSV),
    "long csv": (named("a.csv"), LONG_CSV),
    "tsf": (named("a.tsf"), TSF),
    "parquet lists": (named("a.parquet"), parquet(LIST_TABLE)),
    "parquet long": (named("a.parquet"), parquet(LONG_TABLE)),
    "parquet wide": (named("a.parquet"), parquet(WIDE_TABLE)),
    "feather lists": (named("a.feather"), feather(LIST_TABLE)),
    "feather plain": (named("a.feather"), plain_feather(LIST_TABLE)),
    "feather wide": (named("a.feather"), plain_feather(WIDE_TABLE)),
    "arrow lists": (named("a.arrow"), stream(LIST_TABLE)),
    "arrow long": (named("a.arrow"), stream(LONG_TABLE)),
    "folder": (whole_folder, META),
    "dataset state": (
        functools.partial(dataset_folder, "state.json"),
        b'{"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": null}',
    ),
    "dataset data": (functools.partial(dataset_folder, "data.arrow"), stream(LIST_TABLE)),
}


def read_all(path):
    """Everything a source can be asked for; raises nothing but DataError."""
    try:
        source = open_source(str(path))
        assert source.lengths.ndim == 1
        assert np.all(source.lengths >= 0)
        whole = list(source)
        for i, values in enumerate(whole):
            assert values.shape == (source.lengths[i],)
            assert values.dtype in (np.float32, np.float64)
            np.testing.assert_array_equal(source[i], values)
            assert isinstance(source.label(i), str)
            assert isinstance(source.name(i), str)
        return whole
    except DataError as error:
        check_message(error, Path(path).name.split(".")[0])
        return None


def check_message(error, name):
    assert name in str(error)
    assert "\n" not in str(error)


def edits(size):
    """Cuts, bytes that are changed, bytes put in and taken out."""
    place = st.integers(0, max(size - 1, 0))
    few = st.binary(min_size=0, max_size=8)
    return st.one_of(
        st.tuples(st.just("cut"), place, st.just(b"")),
        st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("put"), place, few),
        st.tuples(st.just("out"), place, few),
    )


def edited(content, edit):
    kind, at, data = edit
    if kind == "cut":
        return content[:at]
    if kind == "set":
        return content[:at] + data + content[at + len(data) :]
    if kind == "put":
        return content[:at] + data + content[at:]
    return content[:at] + content[at + len(data) :]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_not_edited_is_read(kind, tmp_path):
    place, content = FORMATS[kind]
    assert read_all(place(tmp_path / "a", content))


@pytest.mark.parametrize("kind", FORMATS)
@FUZZ
@given(data=st.data())
def test_edited_files(kind, data):
    place, content = FORMATS[kind]
    for edit in data.draw(st.lists(edits(len(content)), min_size=1, max_size=3)):
        content = edited(content, edit)
    with tempfile.TemporaryDirectory() as folder:
        read_all(place(Path(folder) / "a", content))


@pytest.mark.parametrize("kind", FORMATS)
@FUZZ
@given(content=st.binary(max_size=200))
def test_bytes_that_are_no_such_file(kind, content):
    place, _ = FORMATS[kind]
    with tempfile.TemporaryDirectory() as folder:
        read_all(place(Path(folder) / "a", content))


NUMBER = st.one_of(
    st.none(),
    st.integers(-(10**25), 10**25),
    st.floats(allow_nan=True, allow_infinity=True),
    st.just(10**400),
)
WRONG = st.one_of(
    st.text(max_size=5),
    st.booleans(),
    st.lists(NUMBER, max_size=2),
    st.dictionaries(NUMBER, NUMBER, max_size=1),
)


@FUZZ
@given(lines=st.lists(st.one_of(st.lists(NUMBER, max_size=4), st.lists(WRONG, max_size=2), WRONG)))
def test_json_lines(lines):
    """Numbers come back as floats; anything else, and whole numbers beyond them, is named."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = read_all(path)
    kinds = {int, float, type(None)}
    good = all(isinstance(line, list) and {type(v) for v in line} <= kinds for line in lines)
    if (
        good
        and lines
        and all(v is None or abs(v) < 1e300 or v != v for line in lines for v in line)
    ):
        assert found is not None
        for values, line in zip(found, lines, strict=True):
            expected = [np.nan if v is None else float(v) for v in line]
            np.testing.assert_array_equal(values, expected)
    elif not good:
        assert found is None


CELL = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.sampled_from(
        ["", "NA", "nan", "inf", "1e999", "1_0", "x", '"', "2024-01-01", "\uff11", "\x00"]
    ),
    st.text(alphabet=string.printable, max_size=6),
)


@FUZZ
@given(
    header=st.lists(st.sampled_from(["id", "ds", "y", "a", "1", "", "target"]), max_size=4),
    rows=st.lists(st.lists(CELL, max_size=4), max_size=5),
)
def test_csv_cells(header, rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        text = "\n".join(",".join(row) for row in [header, *rows])
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        read_all(path)


@FUZZ
@given(
    lines=st.lists(st.lists(st.one_of(CELL, st.just("?")), max_size=4).map(",".join), max_size=4)
)
def test_tsf_values(lines):
    body = "\n".join(f"T:{line}" for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tsf"
        path.write_bytes(f"@attribute n string\n@data\n{body}\n".encode("utf-8", "surrogatepass"))
        read_all(path)


FLOATS = st.lists(st.floats(width=32), max_size=20)


@FUZZ
@given(series=st.lists(FLOATS, min_size=1, max_size=5), rows=st.integers(1, 4))
def test_series_come_back_bit_by_bit(series, rows):
    """As lists and as a long table, in Parquet and in Arrow, however they are cut into parts."""
    arrays = [np.array(values, np.float32) for values in series]
    lists = pa.array(series, pa.list_(pa.float32()))
    flat = np.concatenate(arrays)
    ids = np.repeat(np.arange(len(arrays)), [len(values) for values in arrays])
    order = np.random.default_rng(len(flat)).permutation(len(flat))
    long = pa.table({"id": ids[order], "timestamp": order, "target": flat[order]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(pa.table({"target": lists}), path, row_group_size=rows)
        found = read_all(path)
        assert found is not None
        for values, expected in zip(found, arrays, strict=True):
            assert values.tobytes() == expected.tobytes()
        if len(flat):
            path = Path(folder) / "b.arrow"
            path.write_bytes(stream(long))
            source = open_source(str(path))
            for i, values in enumerate(source):
                assert values.tobytes() == arrays[int(source.label(i))].tobytes()


TYPES = [
    pa.float32(), pa.int8(), pa.uint64(), pa.bool_(), pa.string(), pa.binary(), pa.date32(),
    pa.timestamp("us", "UTC"), pa.time64("us"), pa.duration("s"), pa.null(), pa.decimal128(5, 2),
    pa.list_(pa.float64()), pa.list_(pa.string()), pa.list_(pa.list_(pa.int32())),
    pa.struct([("x", pa.int8())]), pa.map_(pa.string(), pa.float32()),
    pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.float32(), 2), pa.large_list(pa.float16()),
    pa.list_(pa.dictionary(pa.int8(), pa.float32())), pa.string_view(),
]  # fmt: skip
COLUMNS = ["id", "unique_id", "ds", "timestamp", "y", "target", "sequence", "a", "a.b", ""]


@settings(parent=FUZZ, max_examples=200)
@given(
    columns=st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(TYPES), min_size=1),
    rows=st.integers(0, 3),
    arrow=st.booleans(),
    data=st.data(),
)
def test_tables_of_any_types(columns, rows, arrow, data):
    table = pa.table({name: pa.nulls(rows, kind) for name, kind in columns.items()})
    if rows:
        filled = {"float": 1.5, "int": 2, "string": "x", "list": None}
        for k, (name, kind) in enumerate(columns.items()):
            if data.draw(st.booleans()):
                value = next((v for key, v in filled.items() if key in str(kind)[:6]), None)
                if value is not None:
                    table = table.set_column(k, name, pa.array([value] * rows).cast(kind))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.arrow" if arrow else "a.parquet")
        try:
            path.write_bytes(stream(table) if arrow else parquet(table))
        except pa.ArrowException:
            return  # not every type fits into Parquet
        read_all(path)


OBJECT = st.one_of(
    NUMBER,
    WRONG,
    st.just(pd.NA),
    st.just(pd.NaT),
    st.dates(),
    st.binary(max_size=2),
    st.complex_numbers(),
)


@settings(parent=FUZZ, max_examples=200)
@given(
    columns=st.lists(st.sampled_from([*COLUMNS, 7]), min_size=1, max_size=3, unique=True),
    rows=st.integers(0, 3),
    target=st.sampled_from([(), ("y",), ("a", "y")]),
    data=st.data(),
)
def test_frames_of_any_objects(columns, rows, target, data):
    cells = st.one_of(
        st.lists(NUMBER, min_size=rows, max_size=rows),
        st.lists(OBJECT, min_size=rows, max_size=rows),
    )
    frame = pd.DataFrame({name: pd.Series(data.draw(cells), dtype=object) for name in columns})
    try:
        source = frame_source(frame, ColumnNames(targets=target), "the frame")
        for i, values in enumerate(source):
            assert values.shape == (source.lengths[i],)
    except DataError as error:
        check_message(error, "the frame")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_what_would_be_unpickled_is_refused(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    array = np.array([Bomb()], object)
    if name == "a.npy":
        np.save(tmp_path / name, array, allow_pickle=True)
    else:
        np.savez(tmp_path / name, x=array)
    with pytest.raises(DataError, match=name):
        list(open_source(str(tmp_path / name)))
    (tmp_path / name).write_bytes(array.dumps())
    with pytest.raises(DataError, match=name):
        open_source(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, one=np.float32([1, 2]), rows=np.arange(6).reshape(2, 3), none=np.zeros((0, 4)))
    source = open_source(str(path))
    assert source.lengths.tolist() == [2, 3, 3]
    assert [values.tolist() for values in source] == [[1, 2], [0, 1, 2], [3, 4, 5]]
    assert [source.label(i) for i in range(3)] == ["one 0", "rows 0", "rows 1"]
    assert source.read(2, 1, 2).tolist() == [4]
    assert source.name(2) == f"{path} array rows row 1"
    assert source[0].dtype == np.float32
    for content in (np.array("x"), np.zeros((1, 1, 1)), np.array([True]), np.array(1.0)):
        np.savez(path, bad=content)
        with pytest.raises(DataError, match="'bad'"):
            open_source(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "text")
    with pytest.raises(DataError, match=r"notes\.txt"):
        open_source(str(path))


def test_a_float_that_numpy_reads_as_infinite_is_kept_and_wide_text_is_not(tmp_path):
    (tmp_path / "a.csv").write_text("v\n1e999\n-1e999\n")
    assert open_source(str(tmp_path / "a.csv"))[0].tolist() == [np.inf, -np.inf]
    (tmp_path / "b.csv").write_bytes("v\n1\n".encode("utf-16"))
    (tmp_path / "c.csv").write_bytes(b"caf\xe9\n1\n")
    for name in ("b", "c"):
        with pytest.raises(DataError, match=f"{name}.csv is not UTF-8"):
            open_source(str(tmp_path / f"{name}.csv"))
