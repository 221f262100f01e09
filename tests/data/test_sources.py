"""Sources: every layout read back, and every damage named."""

import copy
import json

import numpy as np
import pytest

from timemoe_jax.data.formats.jsonl_files import JsonlSource
from timemoe_jax.data.formats.npy_files import NpySource
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.data.series_source import ArraySource, ConcatSource
from timemoe_jax.errors import DataError

SERIES = [np.array([1.0, 2.0, 3.0]), np.arange(10.0), np.array([5.0])]


def write_folder(folder, stored, scales, dtype="float32", splits=()):
    """Writes a folder by hand: `stored` cut at `splits` into files."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = np.split(stored, splits)
    names = [f"data-{k + 1}-of-{len(parts)}.bin" for k in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        part.tofile(folder / name)
    meta = {
        "num_sequences": len(scales),
        "dtype": dtype,
        "files": {name: len(part) for name, part in zip(names, parts, strict=True)},
        "scales": scales,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return meta


@pytest.mark.parametrize("points_per_file", [1, 2, 4, 14, 100])
def test_folder_round_trip_with_sequences_that_span_files(tmp_path, points_per_file):
    write_time_moe_folder(tmp_path / "a", SERIES, points_per_file=points_per_file)
    source = TimeMoeFolderSource(tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 1 + -(-14 // points_per_file)
    assert source.lengths.tolist() == [3, 10, 1]
    for got, expected in zip(source, SERIES, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(source.read(1, 3, 7), [3, 4, 5, 6])
    np.testing.assert_array_equal(source.read(1, 8, 99), [8, 9])
    assert source.read(1, 10, 12).size == 0
    assert source.name(1) == f"{tmp_path / 'a'} sequence 1"


def test_folder_brings_back_original_units_and_orders_files_by_number(tmp_path):
    # Eleven files: as text, data-10 and data-11 would come before data-2.
    stored = np.arange(11, dtype=np.float32)
    scales = [
        {"offset": 0, "length": 4, "mean": 10.0, "std": 2.0},
        {"offset": 4, "length": 7},
        {"offset": 2, "length": 0, "mean": None, "std": None},
    ]
    write_folder(tmp_path / "a", stored, scales, splits=list(range(1, 11)))
    source = TimeMoeFolderSource(tmp_path / "a")
    np.testing.assert_array_equal(source[0], [10.0, 12.0, 14.0, 16.0])
    assert source[0].dtype == np.float64
    np.testing.assert_array_equal(source[1], np.arange(4, 11))
    assert source[1].dtype == np.float32
    assert source[2].size == 0


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int16", "int32", "int64"])
def test_folder_dtypes(tmp_path, dtype):
    stored = np.array([-3, 0, 100], np.dtype(dtype))
    write_folder(tmp_path / "a", stored, [{"offset": 0, "length": 3}], dtype)
    values = TimeMoeFolderSource(tmp_path / "a")[0]
    assert values.dtype == (np.float32 if dtype == "float16" else np.float64)
    np.testing.assert_array_equal(values, [-3.0, 0.0, 100.0])


def test_folder_bfloat16(tmp_path):
    # 1.5 is 0x3FC00000 in float32, -2 is 0xC0000000.
    stored = np.array([0x3FC0, 0xC000], np.uint16)
    write_folder(tmp_path / "a", stored, [{"offset": 0, "length": 2}], "bfloat16")
    np.testing.assert_array_equal(TimeMoeFolderSource(tmp_path / "a")[0], [1.5, -2.0])


def scale(**changes):
    return [{"offset": 0, "length": 3, **changes}]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "complex64"}, "dtype is 'complex64'"),
        ({"num_sequences": 2}, "num_sequences is 2, but scales has 1"),
        ({"num_sequences": "1"}, "num_sequences must be of type int"),
        ({"files": {"data-1-of-1.bin": 5}}, "12 bytes.*5 points"),
        ({"files": {"data-1-of-1.bin": -3}}, "not -3"),
        ({"files": {"data-2-of-2.bin": 3}}, "data-2-of-2.bin is missing"),
        ({"files": {"data.bin": 3}}, "must be named like"),
        ({"files": {"../data-1-of-1.bin": 3}}, "must be named like"),
        ({"scales": scale(length=4)}, "length 4"),
        ({"scales": scale(offset=1)}, "offset 1 and length 3, beyond the 3 points"),
        ({"scales": scale(offset=-1)}, "offset -1"),
        ({"scales": scale(length=1.5)}, "length 1.5"),
        ({"scales": [{"offset": 0}]}, r"scales\[0\]"),
        ({"scales": [7]}, r"scales\[0\]"),
        ({"scales": scale(mean=0.0, std=0.0)}, "std 0.0"),
        ({"scales": scale(mean=0.0, std=-1.0)}, "std -1.0"),
        ({"scales": scale(mean=0.0, std=float("nan"))}, "std nan"),
        ({"scales": scale(mean=float("inf"), std=1.0)}, "mean inf"),
        ({"scales": scale(mean=1.0)}, "std None"),
        ({"scales": scale(mean="1", std=1.0)}, "mean '1'"),
        ({"scales": {}}, "scales must be of type list"),
        ({"scales": scale(mean=True, std=1.0)}, "mean True"),
        ({"scales": scale(mean=10**400, std=1.0)}, "mean 10000"),
        ({"scales": scale(mean=0.0, std=10**400)}, "std 10000"),
        ({"scales": scale(offset=10**400)}, "offset 10000"),
        ({"scales": scale(length=2**64)}, "length 18446744073709551616"),
        ({"scales": scale(length=None)}, "length None"),
        ({"scales": scale(freq=60)}, "frequency 60"),
        ({"freq": []}, r"frequency \[\]"),
        ({"num_sequences": 2, "scales": scale() * 2}, "0 .*shares points with sequence 1"),
        ({"files": {"data-1-of-1.bin": 3, "data-1-of-2.bin": 3}}, "the same number"),
        ({"files": {"data-1-of-1.bin": 10**400}}, "12 bytes"),
        ({"files": {"data-1-of-1.bin": True}}, "not True"),
        ({"files": {f"data-{'1' * 5000}-of-1.bin": 3}}, "must be named like"),
        ({"files": {"data-1-of-\0.bin": 3}}, "is missing"),
        ({"dtype": ["float32"]}, "dtype must be of type str"),
    ],
)
def test_folder_damage_is_named(tmp_path, changes, says):
    meta = write_folder(tmp_path, np.zeros(3, np.float32), scale())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, **changes}))
    with pytest.raises(DataError, match=says) as error:
        TimeMoeFolderSource(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\udcff"])
def test_folder_meta_that_is_no_meta(tmp_path, text):
    (tmp_path / "meta.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"meta\.json"):
        TimeMoeFolderSource(tmp_path)


def test_folder_that_is_not_there_or_shrinks_after_opening(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        TimeMoeFolderSource(tmp_path / "none")
    write_time_moe_folder(tmp_path / "a", SERIES)
    source = TimeMoeFolderSource(tmp_path / "a")
    with open(tmp_path / "a" / "data-1-of-1.bin", "r+b") as stream:
        stream.truncate(20)
    for i in (0, 1):
        with pytest.raises(DataError, match="has changed since it was opened; open it again"):
            source[i]


def test_writer_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(DataError, match=r"sequence 1 .*too large for float16"):
        write_time_moe_folder(tmp_path / "a", [np.ones(2), np.array([1e6])], dtype="float16")
    assert not (tmp_path / "a" / "meta.json").exists()
    with pytest.raises(DataError, match="one-dimensional"):
        write_time_moe_folder(tmp_path / "b", [np.ones((2, 2))])
    with pytest.raises(DataError, match="'int8'"):
        write_time_moe_folder(tmp_path / "c", [np.ones(2)], dtype="int8")
    write_time_moe_folder(tmp_path / "d", [])
    assert len(TimeMoeFolderSource(tmp_path / "d")) == 0
    with pytest.raises(DataError, match="already exists"):
        write_time_moe_folder(tmp_path / "d", SERIES)


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"sequence": [1, 2.5, null]}\n\n[3]\r\n{"sequence": [], "name": "é"}\n[1e3, -4]'
    )
    source = JsonlSource(path)
    assert source.lengths.tolist() == [3, 1, 0, 2]
    np.testing.assert_array_equal(source[0], [1.0, 2.5, np.nan])
    np.testing.assert_array_equal(source[1], [3.0])
    np.testing.assert_array_equal(source.read(3, 1, 2), [-4.0])
    assert source.name(1) == f"{path} line 3"
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"changed|JSON"):
        source[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1, 2", "not valid JSON"),
        ('{"values": [1]}', r"no \"sequence\", but \['values'\]"),
        ('{"sequence": 3}', "list of numbers"),
        ('["1"]', "value 0 is '1'"),
        ("[1, [2]]", "value 1"),
        ("[true]", "value 0 is 'True'"),
        ("[1" + "0" * 400 + "]", "too large"),
    ],
)
def test_jsonl_damage_is_named(tmp_path, line, says):
    path = tmp_path / "a.jsonl"
    path.write_text(f"[1]\n{line}\n")
    with pytest.raises(DataError, match=says) as error:
        JsonlSource(path)
    assert f"{path} line 2" in str(error.value)


def test_npy(tmp_path):
    rows = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "columns.npy", np.asfortranarray(rows.astype(np.float32)))
    np.save(tmp_path / "one.npy", np.arange(4.0))
    for name in ("rows", "columns"):
        source = NpySource(tmp_path / f"{name}.npy")
        assert source.lengths.tolist() == [3, 3]
        np.testing.assert_array_equal(source[1], [3, 4, 5])
        np.testing.assert_array_equal(source.read(0, 1, 2), [1])
    assert source[0].dtype == np.float32
    one = NpySource(tmp_path / "one.npy")
    assert one.lengths.tolist() == [4]
    np.testing.assert_array_equal(one[0], np.arange(4.0))
    assert one.name(0) == f"{tmp_path / 'one.npy'} row 0"


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((2, 2, 2)),
        np.array(1.0),
        np.array(["a"]),
        np.array([1j]),
        np.array([True]),
        np.array([None, 1.0]),
    ],
)
def test_npy_of_another_kind(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(DataError, match=r"a\.npy"):
        NpySource(tmp_path / "a.npy")


def test_npy_damaged(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(100.0))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:-8]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy cannot be read"):
            NpySource(path)
    with pytest.raises(DataError, match="cannot be read"):
        NpySource(tmp_path / "none.npy")


def test_csv_columns_are_series(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("date,load,wind\n2024-01-01,1,4\n2024-01-02,,5\n2024-01-03,3,6\n")
    source = open_source(str(path))
    assert source.lengths.tolist() == [3, 3]
    np.testing.assert_array_equal(source[0], [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(source.read(1, 1, 3), [5.0, 6.0])
    assert source.name(1) == f"{path} column wind"


def test_open_source_searches_in_sorted_order_and_counts_what_it_skips(tmp_path):
    write_time_moe_folder(tmp_path / "c" / "deep", [np.full(2, 3.0), np.full(2, 4.0)])
    np.save(tmp_path / "b.npy", np.full(2, 2.0))
    (tmp_path / "a.JSONL").write_text("[1, 1]\n")
    (tmp_path / "notes.md").write_text("text")
    source = open_source(str(tmp_path))
    assert [values[0] for values in source] == [1.0, 2.0, 3.0, 4.0]
    assert source.skipped_files == (str(tmp_path / "notes.md"),)
    assert source.name(3) == f"{tmp_path / 'c' / 'deep'} sequence 1"
    both = open_source(f"{tmp_path / 'b.npy'}, {tmp_path / 'c'}")
    assert [values[0] for values in both] == [2.0, 3.0, 4.0]
    assert isinstance(open_source(str(tmp_path / "c" / "deep")), TimeMoeFolderSource)


def test_open_source_takes_a_path_with_a_comma(tmp_path):
    np.save(tmp_path / "a,b.npy", np.ones(2))
    assert len(open_source(str(tmp_path / "a,b.npy"))) == 1


def test_open_source_finds_nothing(tmp_path):
    (tmp_path / "notes.md").write_text("text")
    for paths in (tmp_path, tmp_path / "notes.md", tmp_path / "none", "", ","):
        with pytest.raises(DataError, match=r"Time-300B.*\.jsonl.*\.npy.*\.csv"):
            open_source(str(paths))


def test_joined_sources_and_bounds():
    joined = ConcatSource([ArraySource(SERIES[:1]), ArraySource([]), ArraySource(SERIES[1:])])
    assert joined.lengths.tolist() == [3, 10, 1]
    assert [joined.name(i) for i in range(3)] == ["series 0", "series 0", "series 1"]
    np.testing.assert_array_equal(joined[np.int64(2)], [5.0])
    for i in (-1, 3):
        with pytest.raises(IndexError, match=f"series {i}"):
            joined[i]
    for start, stop in ((-1, 2), (3, 2), (4, 9)):
        with pytest.raises(DataError, match="series 0, which has 3"):
            joined.read(0, start, stop)
    with pytest.raises(DataError, match="at least one"):
        ConcatSource([])


def test_arrays():
    source = ArraySource([np.arange(3.0), np.ones(2, np.float16)], names=["load", "wind"])
    assert source.name(1) == "wind"
    assert (source[0].dtype, source[1].dtype) == (np.float64, np.float32)
    source[0][:] = 7.0
    np.testing.assert_array_equal(source[0], [0.0, 1.0, 2.0])
    with pytest.raises(DataError, match="1 names were given for 2 series"):
        ArraySource([np.ones(2), np.ones(2)], names=["a"])


def test_sources_can_be_sent_to_another_process(tmp_path):
    write_time_moe_folder(tmp_path / "a", SERIES)
    np.save(tmp_path / "b.npy", np.ones(2))
    source = open_source(str(tmp_path))
    # A copy goes the way of sending, and nothing of a source may be bound to this process.
    np.testing.assert_array_equal(copy.deepcopy(source)[1], SERIES[1])


def test_joined_sources_keep_the_frequency_of_each_series(tmp_path):
    for name, frequency in (("hourly", "h"), ("daily", "D")):
        write_time_moe_folder(tmp_path / name, [np.arange(5.0)])
        meta = json.loads((tmp_path / name / "meta.json").read_text())
        (tmp_path / name / "meta.json").write_text(json.dumps({**meta, "freq": frequency}))
    joined = open_source(f"{tmp_path / 'hourly'},{tmp_path / 'daily'}")
    assert joined.frequency is None
    assert [joined.frequency_of(i) for i in range(2)] == ["h", "D"]
    assert ArraySource([np.arange(3.0)]).frequency_of(0) is None
