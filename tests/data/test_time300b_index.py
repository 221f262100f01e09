"""The index of a Time-300B folder: right, or an error that names the file, whatever is on disk."""

import contextlib
import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import ROOT

from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b import index as folder_index
from timemoe_jax.data.formats.time300b import meta as folder_meta
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.data.formats.time300b.meta import FolderMeta
from timemoe_jax.data.pipeline.windows import WindowIndex
from timemoe_jax.errors import DataError

POINTS = 40
STORED = np.arange(POINTS, dtype=np.float32)
FILES = {"data-1-of-2.bin": 25, "data-2-of-2.bin": 15}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TIMEMOE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def always_indexed(monkeypatch):
    """An index on disk however small meta.json is, and mapped."""
    monkeypatch.setattr(folder_index, "INDEX_FROM_BYTES", 0)
    monkeypatch.setattr(folder_index, "_MAP_FROM_BYTES", 0)


def meta_of(scales, **changes):
    whole = {"num_sequences": len(scales), "dtype": "float32", "files": FILES, "scales": scales}
    return {**whole, **changes}


def write(folder, meta):
    """Writes the two data files, and meta.json: text, or what is to be text."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = np.split(STORED, [25])
    first.tofile(folder / "data-1-of-2.bin")
    second.tofile(folder / "data-2-of-2.bin")
    text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    (folder / "meta.json").write_bytes(text)
    return folder


SCALES = [
    {"offset": 0, "length": 20, "mean": 0.1, "std": 2.0},
    {"offset": 20, "length": 10},
    {"offset": 30, "length": 10, "mean": -1.0, "std": 0.5, "freq": "D"},
]


def expected(scales, stored):
    """The series, worked out without the library."""
    for scale in scales:
        values = stored[scale["offset"] : scale["offset"] + scale["length"]]
        if scale.get("std") is None:
            yield values
        else:
            yield values.astype(np.float64) * scale["std"] + scale["mean"]


def assert_holds(source, scales, stored=STORED):
    assert source.lengths.tolist() == [scale["length"] for scale in scales]
    for got, wanted in zip(source, expected(scales, stored), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


# Texts: every way of writing the same JSON, read in parts of every size.

BLOCKS = st.sampled_from([1, 2, 5, 17, 64, 300, 1 << 22])
BLANKS = st.sampled_from(["", " ", "\n", "\t \r\n", "  "])
EXTRA = st.sampled_from(
    ["},{", '"}, {"offset": 1', "]}", "\\", 'é\U0001f600"', {"a": [{}, {"b": 1}]}, [[], [{}]], None]
)
WHOLE = st.integers(0, 2**62)
NUMBER = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**25), 10**25))
POSITIVE = st.floats(min_value=5e-324, allow_infinity=False)
ENTRY = st.fixed_dictionaries(
    {"offset": WHOLE, "length": WHOLE},
    optional={"note": EXTRA, "d": EXTRA, "freq": st.sampled_from(["H", "D", "15min", None])},
)
SCALE = st.one_of(
    ENTRY,
    st.tuples(ENTRY, NUMBER, POSITIVE).map(lambda t: {**t[0], "mean": t[1], "std": t[2]}),
    ENTRY.map(lambda entry: {**entry, "mean": None, "std": None}),
)


@st.composite
def texts(draw):
    """A value with its text: keys in any order, blanks anywhere, escapes or none."""

    def text(value):
        blank = draw(BLANKS)
        if isinstance(value, dict):
            keys = draw(st.permutations(list(value)))
            inner = ",".join(f"{blank}{text(key)}{blank}:{text(value[key])}" for key in keys)
            return f"{blank}{{{inner}{blank}}}{blank}"
        if isinstance(value, list):
            return f"{blank}[{','.join(map(text, value))}{blank}]{blank}"
        plain = json.dumps(value, ensure_ascii=draw(st.booleans()))
        if isinstance(value, str) and value.isascii() and value and draw(st.booleans()):
            plain = '"' + "".join(rf"\u{ord(letter):04X}" for letter in value) + '"'
        return blank + plain + blank

    scales = draw(st.lists(SCALE, max_size=12))
    meta = meta_of(scales, files={}, note=draw(EXTRA))
    return meta, draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text(meta).encode()


def read_in_blocks(path, block):
    with (
        mock.patch.object(folder_meta, "_BLOCK", block),
        mock.patch.object(folder_meta, "_AHEAD", 1),
        open(path, "rb") as stream,
    ):
        return list(FolderMeta(path, stream).columns())


@settings(max_examples=150)
@given(written=texts(), block=BLOCKS)
def test_any_way_of_writing_it_is_read_the_same(tmp_path_factory, written, block):
    meta, text = written
    assert json.loads(text.decode("utf-8-sig")) == meta
    path = tmp_path_factory.mktemp("a") / "meta.json"
    path.write_bytes(text)
    parts = read_in_blocks(path, block)
    scales = meta["scales"]
    assert [v for part in parts for v in part.offsets.tolist()] == [s["offset"] for s in scales]
    assert [v for part in parts for v in part.lengths.tolist()] == [s["length"] for s in scales]
    for name in ("mean", "std"):
        got = [v for part in parts for v in getattr(part, f"{name}s")]
        wanted = np.array([s.get(name) for s in scales], np.float64)
        np.testing.assert_array_equal(got, wanted)
    assert [f for part in parts for f in part.frequencies] == [s.get("freq") for s in scales]


# Damage of meta.json: right, or an error that names it.

ODD = st.one_of(
    st.sampled_from([None, True, False, "1", [], {}, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from([0.0, -0.0, 1.5, -1, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, 5e-324]),
    st.integers(-3, POINTS + 3),
)
SOME_SCALE = st.fixed_dictionaries(
    {"offset": st.integers(0, POINTS), "length": st.integers(0, 8)},
    optional={"mean": ODD, "std": ODD, "freq": ODD},
)


@st.composite
def odd_metas(draw):
    """A meta.json with something odd in it, most likely; its bytes."""
    scales = draw(st.lists(SOME_SCALE, max_size=5))
    for scale in scales:
        for key in draw(st.sets(st.sampled_from(["offset", "length"]), max_size=1)):
            if draw(st.integers(0, 3)) == 0:
                scale[key] = draw(ODD)
    meta = meta_of([draw(ODD) if draw(st.integers(0, 9)) == 0 else s for s in scales])
    for key in draw(st.sets(st.sampled_from([*meta, "freq"]), max_size=1)):
        if draw(st.booleans()):
            meta[key] = draw(ODD)
        else:
            meta.pop(key, None)
    if draw(st.integers(0, 4)) == 0:
        meta["files"] = draw(
            st.dictionaries(
                st.one_of(st.sampled_from([*FILES, "data-3-of-3.bin"]), st.text(max_size=4)), ODD
            )
        )
    text = json.dumps(draw(st.sampled_from([meta, meta, meta, [meta], None, 3]))).encode()
    if draw(st.integers(0, 2)) == 0:
        at = draw(st.integers(0, len(text)))
        middle = draw(st.sampled_from([b"", b",", b"}", b"\xff", b'"', b"0", b"]", b"-", b"e"]))
        text = text[:at] + middle + text[at + draw(st.integers(0, 3)) :]
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 5)) == 0 else text


def is_whole(value, most):
    return type(value) is int and 0 <= value <= most


def is_scale(mean, std):
    if mean is None and std is None:
        return True
    if not {type(mean), type(std)} <= {int, float}:
        return False
    with contextlib.suppress(OverflowError):
        return bool(np.isfinite([float(mean), float(std)]).all()) and std > 0
    return False


def is_valid(text):
    """Whether the folder of `write` may hold this meta.json, by rules written down once more."""
    twice = []

    def once(pairs):
        twice.extend(key for k, (key, _) in enumerate(pairs) if key in dict(pairs[:k]))
        return dict(pairs)

    try:
        meta = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return False
    if not isinstance(meta, dict) or not {"num_sequences", "files", "dtype", "scales"} <= set(meta):
        return False
    scales = meta["scales"]
    if meta["dtype"] != "float32" or not isinstance(scales, list) or twice:
        return False
    files = meta["files"]
    if not isinstance(files, dict) or not files.items() <= FILES.items():
        return False
    if not all(type(points) is int for points in files.values()):
        return False
    total = sum(files.values())
    taken = np.zeros(total + 1, int)
    for scale in scales:
        if not isinstance(scale, dict) or not {"offset", "length"} <= set(scale):
            return False
        offset, length = scale["offset"], scale["length"]
        if not is_whole(offset, total) or not is_whole(length, total - offset):
            return False
        taken[offset : offset + length] += 1
        if not is_scale(scale.get("mean"), scale.get("std")):
            return False
    names = [meta.get("freq"), *(scale.get("freq") for scale in scales)]
    if not all(name is None or (isinstance(name, str) and name) for name in names):
        return False
    number = meta["num_sequences"]
    return type(number) is int and number == len(scales) and taken.max() <= 1


def assert_right_or_named(folder, text):
    write(folder, text)
    if is_valid(text):
        meta = json.loads(text)
        parts = zip(FILES, np.split(STORED, [25]), strict=True)
        stored = np.concatenate(
            [part[: len(part) * (name in meta["files"])] for name, part in parts]
        )
        with np.errstate(over="ignore", invalid="ignore"):
            assert_holds(TimeMoeFolderSource(folder), meta["scales"], stored)
        return
    with pytest.raises(DataError) as error:
        TimeMoeFolderSource(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=400)
@example(text=b"", block=1)
@example(text=b"\n", block=1 << 22)
@example(text=b'{"scales": [{"offset": 0, "length": 1}, ]}', block=1 << 22)
@example(text=b'{"num_sequences": 1' + b"0" * 5000 + b"}", block=64)
@example(text=json.dumps(meta_of([{"offset": 3, "length": 3}] * 2)).encode(), block=17)
@given(text=odd_metas(), block=BLOCKS)
def test_an_odd_meta_is_read_rightly_or_named(tmp_path_factory, text, block):
    with mock.patch.object(folder_meta, "_BLOCK", block):
        assert_right_or_named(tmp_path_factory.mktemp("a"), text)


def test_every_truncation_is_named(tmp_path):
    text = json.dumps(meta_of(SCALES), indent=1).encode()
    for end in range(len(text)):
        assert_right_or_named(tmp_path, text[:end])


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        (b"", 0, "the end"),
        (b'{"scales": [1, 2', 16, "expected , or ]"),
        (b'{"scales": [{"offset": 0} {', 26, "expected , or ]"),
        (b'{"scales": [], "scales": []}', 23, "second entry 'scales'"),
        (b'{"dtype": "float32"} x', 21, "nothing may follow"),
        (b'{"dtype": flot32}', 10, "Expecting value"),
        (b'\n{"dtype" "x"}', 10, 'expected :, not "'),
        (b"{3: 1}", 1, "double quotes"),
        (b'{"dtype": "a\nb"}', 12, "control character"),
        (b'{"scales": [' + b"[" * 100_000, 12, "scales: maximum recursion depth"),
    ],
)
def test_the_place_of_an_error_is_said(tmp_path, text, place, says):
    write(tmp_path, text)
    with pytest.raises(DataError) as error:
        TimeMoeFolderSource(tmp_path)
    assert f"meta.json is not valid JSON at character {place}: " in str(error.value)
    assert says.replace('"', "") in str(error.value).replace('"', "")


def test_the_place_counts_what_was_read_before(tmp_path):
    head = b'{"scales": [' + b'{"offset": 0, "length": 0},' * 1000
    (tmp_path / "meta.json").write_bytes(head + b"oops]}")
    with pytest.raises(DataError, match=f"at character {len(head)}: Expecting value"):
        read_in_blocks(tmp_path / "meta.json", 100)


def test_a_value_without_end_is_not_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_meta, "_LARGEST", 1 << 10)
    monkeypatch.setattr(folder_meta, "_BLOCK", 1 << 8)
    (tmp_path / "meta.json").write_text(f'{{"note": "{"a" * 40_000}"}}')
    with pytest.raises(DataError, match=r"character 9: entry 'note' is longer than 1024"):
        TimeMoeFolderSource(tmp_path)


def test_memory_does_not_grow_with_the_sequences(tmp_path):
    peaks = []
    for count in (10_000, 40_000):
        scales = [{"offset": i, "length": 1, "mean": 0.5, "std": 2.0} for i in range(count)]
        path = write(tmp_path, meta_of(scales)) / "meta.json"
        with mock.patch.object(folder_meta, "_BLOCK", 1 << 14), open(path, "rb") as stream:
            tracemalloc.start()
            assert sum(len(part.lengths) for part in FolderMeta(path, stream).columns()) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 1e6


# What the sequences may be.


@pytest.mark.parametrize(
    ("extents", "pair"),
    [
        ([(0, 10), (9, 5)], (0, 1)),
        ([(9, 5), (0, 10)], (1, 0)),
        ([(0, 40), (20, 0), (39, 1)], (0, 2)),
        ([(5, 5), (30, 5), (5, 5)], (0, 2)),
    ],
)
def test_shared_points_are_named(tmp_path, extents, pair):
    write(tmp_path, meta_of([{"offset": o, "length": n} for o, n in extents]))
    says = "sequence {} .*shares points with sequence {} ".format(*pair)
    with pytest.raises(DataError, match=says) as error:
        TimeMoeFolderSource(tmp_path)
    assert "meta.json" in str(error.value)


def test_any_order_and_gaps_and_empty_sequences_are_right(tmp_path):
    scales = [{"offset": o, "length": n} for o, n in [(20, 10), (0, 7), (25, 0), (30, 10), (40, 0)]]
    assert_holds(TimeMoeFolderSource(write(tmp_path, meta_of(scales))), scales)


def test_domain_and_frequency(tmp_path, always_indexed):
    folder = write(tmp_path / "energy" / "load", meta_of(SCALES, frequency="H"))
    for _ in range(2):
        source = TimeMoeFolderSource(folder)
        assert (source.domain, source.source_name, source.frequency) == ("energy", "load", "H")
        assert [source.frequency_of(i) for i in range(3)] == ["H", "H", "D"]
    with pytest.raises(IndexError):
        source.frequency_of(3)
    other = TimeMoeFolderSource(write(tmp_path / "mine" / "load", meta_of(SCALES[:2])))
    assert (other.domain, other.frequency, other.frequency_of(0)) == (None, None, None)
    wrong = write(tmp_path / "wrong", meta_of([*SCALES[:2], {**SCALES[2], "freq": 60}]))
    with pytest.raises(DataError, match=r"meta\.json: sequence 2 has frequency 60"):
        TimeMoeFolderSource(wrong)


# The index on disk.


def test_an_index_is_made_once_and_says_the_same(tmp_path, always_indexed, monkeypatch):
    write(tmp_path, meta_of(SCALES))
    assert_holds(TimeMoeFolderSource(tmp_path), SCALES)
    assert (tmp_path / "meta.index").exists()
    monkeypatch.setattr(folder_index, "FolderMeta", None)  # it is not read again
    assert_holds(TimeMoeFolderSource(tmp_path), SCALES)
    assert_holds(open_source(str(tmp_path.parent / tmp_path.name)), SCALES)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_small_meta_has_no_index(tmp_path):
    assert_holds(TimeMoeFolderSource(write(tmp_path, meta_of(SCALES))), SCALES)
    assert len(list(tmp_path.iterdir())) == 3


def test_columns_are_as_narrow_as_is_exact(tmp_path, always_indexed):
    """0.1 and 2**32 need their whole width; 0.5 does not."""
    points = 2**32 + 4
    with open(tmp_path / "data-1-of-1.bin", "wb") as stream:
        stream.truncate(points)  # sparse
    scales = [{"offset": 2**32, "length": 4, "mean": 0.1, "std": 0.5}, {"offset": 0, "length": 2}]
    meta = meta_of(scales, dtype="int8", files={"data-1-of-1.bin": points})
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    source = TimeMoeFolderSource(tmp_path)
    index = folder_index.open_index(tmp_path / "meta.json")
    kinds = {name: column.dtype.str for name, column in index._columns.items()}
    assert kinds == {"length": "<i4", "offset": "<i8", "mean": "<f8", "std": "<f4"}
    assert index.entry(0) == (2**32, 0.1, 0.5)
    np.testing.assert_array_equal(source[0], [0.1] * 4)
    # Narrow lengths do not run over in what is computed of them.
    assert WindowIndex(source.lengths, 2**20, 1).uncovered_points == 0


def test_a_stale_index_is_made_again(tmp_path, always_indexed):
    write(tmp_path, meta_of(SCALES))
    TimeMoeFolderSource(tmp_path)
    before = os.stat(tmp_path / "meta.json")
    for scales in (SCALES[:2], SCALES[::-1], SCALES):
        write(tmp_path, meta_of(scales))
        assert_holds(TimeMoeFolderSource(tmp_path), scales)
    # Of the same size, but another time.
    changed = [{**SCALES[0], "mean": 0.2}, *SCALES[1:]]
    write(tmp_path, meta_of(changed))
    os.utime(tmp_path / "meta.json", ns=(0, before.st_mtime_ns + 1))
    assert os.stat(tmp_path / "meta.json").st_size == before.st_size
    assert_holds(TimeMoeFolderSource(tmp_path), changed)


def test_data_files_are_compared_on_every_opening(tmp_path, always_indexed):
    write(tmp_path, meta_of(SCALES))
    TimeMoeFolderSource(tmp_path)
    with open(tmp_path / "data-2-of-2.bin", "r+b") as stream:
        stream.truncate(59)
    with pytest.raises(DataError, match=r"data-2-of-2\.bin has 59 bytes.*15 points"):
        TimeMoeFolderSource(tmp_path)
    os.unlink(tmp_path / "data-1-of-2.bin")
    with pytest.raises(DataError, match=r"data-1-of-2\.bin is missing"):
        TimeMoeFolderSource(tmp_path)


def test_a_damaged_index_is_made_again_or_named(tmp_path, always_indexed):
    write(tmp_path, meta_of(SCALES, frequency="H"))
    TimeMoeFolderSource(tmp_path)
    path = tmp_path / "meta.index"
    whole = path.read_bytes()
    header = folder_index._FOOTER.unpack(whole[-20:])[0]
    places = [*range(header), *range(header, len(whole), 3)]
    flips = [whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in places]
    cuts = [whole[:k] for k in range(1, len(whole), 7)]
    named = 0
    for damaged in [*flips, *cuts, whole + b"\0", whole[8:], b"x", b""]:
        # As a replacement: a file that is mapped is never written to.
        (tmp_path / "new").write_bytes(damaged)
        os.replace(tmp_path / "new", path)
        message = ""
        try:
            source = TimeMoeFolderSource(tmp_path)
            assert_holds(source, SCALES)
            assert [source.frequency_of(i) for i in range(3)] == ["H", "H", "D"]
        except DataError as error:
            message = str(error)
        if message:
            named += 1
            assert message.startswith(f"{path} is damaged")
            path.unlink()
            assert_holds(TimeMoeFolderSource(tmp_path), SCALES)
    # 3 each of offsets, means, stds and frequencies; the rest is looked at on opening.
    assert named == 3 * (4 + 8 + 4 + 1)


def refuse(folder, number=errno.EROFS):
    """As a folder that cannot be written to, also for root."""
    real = folder_index.tempfile.mkstemp

    def mkstemp(suffix, prefix, where):
        if Path(where) in folder:
            raise OSError(number, os.strerror(number))
        return real(suffix, prefix, where)

    return mock.patch.object(folder_index.tempfile, "mkstemp", mkstemp)


def test_the_index_of_a_read_only_folder_is_in_the_cache(tmp_path, always_indexed, monkeypatch):
    cache = tmp_path / "cache" / "deep"
    monkeypatch.setenv("TIMEMOE_CACHE", str(cache))
    folders = [write(tmp_path / name, meta_of(SCALES[:n])) for n, name in ((3, "a"), (2, "b"))]
    with refuse(folders):
        for folder, n in zip(folders, (3, 2), strict=True):
            assert_holds(TimeMoeFolderSource(folder), SCALES[:n])
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(folder_index, "FolderMeta", None)
    monkeypatch.chdir(tmp_path)
    for folder, n in (("a", 3), ("b", 2), (tmp_path / "a", 3)):
        assert_holds(TimeMoeFolderSource(folder), SCALES[:n])
        assert not (Path(folder) / "meta.index").exists()


def test_without_any_place_it_is_kept_in_memory(tmp_path, always_indexed, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("TIMEMOE_CACHE", str(cache))
    folder = write(tmp_path / "a", meta_of(SCALES))
    with refuse([folder, cache], errno.ENOSPC), mock.patch("absl.logging.warning") as warning:
        source = TimeMoeFolderSource(folder)
    assert_holds(source, SCALES)
    assert "TIMEMOE_CACHE" in warning.call_args.args[0]
    assert_holds(pickle.loads(pickle.dumps(source)), SCALES)
    assert not list(cache.iterdir())


def test_a_disk_that_fills_leaves_nothing_behind(tmp_path, always_indexed, monkeypatch):
    folder = write(tmp_path, meta_of(SCALES))
    real, calls = folder_index._write, []

    def write_once(target, *content):
        calls.append(target)
        real(target, *content)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_index, "_write", write_once)
    assert_holds(TimeMoeFolderSource(folder), SCALES)
    assert len(calls) == 2
    assert len(list(folder.iterdir())) == 3


def test_a_meta_that_changes_meanwhile_is_named(tmp_path, always_indexed):
    write(tmp_path, meta_of(SCALES))
    real = FolderMeta.layout

    def layout(self):
        with open(tmp_path / "meta.json", "ab") as stream:
            stream.write(b" ")
        return real(self)

    with mock.patch.object(FolderMeta, "layout", layout), pytest.raises(DataError, match="changed"):
        TimeMoeFolderSource(tmp_path)
    assert not (tmp_path / "meta.index").exists()


def test_a_tree_of_many_folders_keeps_no_file_open(tmp_path, always_indexed, monkeypatch):
    monkeypatch.setattr(folder_index, "_MAP_FROM_BYTES", 1 << 20)
    for k in range(40):
        write(tmp_path / "web" / f"{k:02}", meta_of(SCALES[: 1 + k % 3]))
    before = len(os.listdir("/proc/self/fd"))
    sources = [open_source(str(tmp_path)) for _ in range(2)]
    assert len(os.listdir("/proc/self/fd")) == before
    for source in sources:
        assert_holds(source, [scale for k in range(40) for scale in SCALES[: 1 + k % 3]])
        assert source.skipped_files == ()


def test_the_written_meta_is_what_json_writes(tmp_path):
    write_time_moe_folder(tmp_path / "a", [np.ones(3), np.ones(2)], points_per_file=4)
    scales = [{"offset": 0, "length": 3}, {"offset": 3, "length": 2}]
    files = {"data-1-of-2.bin": 4, "data-2-of-2.bin": 1}
    assert (tmp_path / "a" / "meta.json").read_text() == json.dumps(meta_of(scales, files=files))
    write_time_moe_folder(tmp_path / "b", [])
    assert (tmp_path / "b" / "meta.json").read_text() == json.dumps(meta_of([], files={}))


def test_a_source_is_sent_without_its_index(tmp_path, always_indexed):
    scales = [{"offset": 0, "length": 40}, *({"offset": 0, "length": 0} for _ in range(20_000))]
    write(tmp_path, meta_of(scales))
    source = TimeMoeFolderSource(tmp_path)
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    code = "import pickle, sys; print(sum(pickle.load(sys.stdin.buffer)[0].tolist()))"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, cwd=ROOT)
    assert done.stdout.strip() == b"780.0", done.stderr
    write(tmp_path, meta_of(SCALES))
    TimeMoeFolderSource(tmp_path)
    with pytest.raises(DataError, match=r"meta\.index has changed"):
        pickle.loads(sent)
    # What was open says so, rather than giving values of two states.
    with pytest.raises(DataError, match="has changed since it was opened"):
        source[0]


# Several processes.

OPEN = """
import sys
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource
print("starting", flush=True)
source = TimeMoeFolderSource(sys.argv[1])
print(len(source), source.lengths.sum(), source[len(source) - 1].tolist(), flush=True)
"""


def large_folder(folder, count):
    """As many sequences as make an index worth while."""
    text = json.dumps(meta_of([{"offset": 0, "length": 40, "mean": 0.25, "std": 2.0}]))
    entry = ', {"offset": 40, "length": 0, "mean": 0.25, "std": 2.0}'
    text = text.replace("}]}", "}" + entry * (count - 1) + "]}").replace(
        '"num_sequences": 1', f'"num_sequences": {count}'
    )
    return write(folder, text.encode())


def start(folder):
    command = [sys.executable, "-c", OPEN, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_that_make_it_at_once_do_not_disturb_each_other(tmp_path):
    folder = large_folder(tmp_path / "a", 60_000)
    running = [start(folder) for _ in range(3)]
    for process in running:
        assert process.communicate(timeout=60)[0].splitlines()[1:] == ["60000 40 []"]
    assert sorted(path.name for path in folder.iterdir()) == [*FILES, "meta.index", "meta.json"]


def test_a_killed_process_leaves_no_half_of_an_index(tmp_path):
    folder = large_folder(tmp_path / "a", 400_000)
    chance = random.Random(0)
    killed = 0
    for _ in range(4):
        process = start(folder)
        process.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.4))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert killed
    assert TimeMoeFolderSource(folder).lengths.tolist() == [40] + [0] * 399_999
