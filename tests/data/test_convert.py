"""Conversion to Time-300B folders: bit by bit, wholly or not at all, with everything counted."""

import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timemoe_jax.cli import main as cli
from timemoe_jax.data.corpus import convert as conversion
from timemoe_jax.data.corpus.convert import convert, convert_frame
from timemoe_jax.data.corpus.convert_report import EMPTY, MISSING, TOO_LARGE, ConversionReport
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.errors import DataError

FLOATS = np.array([1.1, np.nan, -0.0, 3e-45, np.inf, 7.0], np.float32)


def series_bits(source):
    return [values.astype(np.float32).view(np.uint32).tolist() for values in source]


def no_leftovers(folder):
    return not [path for path in folder.iterdir() if path.name.endswith(".partial")]


def test_every_kind_comes_back_bit_by_bit(tmp_path):
    data = tmp_path / "data"
    (data / "energy").mkdir(parents=True)
    (data / "web" / "deep").mkdir(parents=True)
    frame = pd.DataFrame({"unique_id": list("aabbbb"), "ds": [0, 1, 0, 1, 2, 3], "y": FLOATS})
    frame.to_parquet(data / "energy" / "long.parquet", row_group_size=2)
    np.save(data / "energy" / "rows.npy", FLOATS.reshape(2, 3))
    np.savez(data / "web" / "deep" / "arrays.npz", one=FLOATS, two=FLOATS[:4].reshape(2, 2))
    (data / "web" / "lines.jsonl").write_text("[1.5, null]\n[2]\n")
    (data / "flat.csv").write_text("date,a,b\n2024-01-01,1,2\n2024-01-02,3,\n")
    header = "@attribute series_name string\n@frequency hourly\n@data\n"
    (data / "m.tsf").write_text(f"{header}first:0.5,?\nsecond:0.25\n")
    (data / "notes.md").write_text("text")
    report = convert(data, tmp_path / "out", progress=False)
    placed = {f"{s.domain}/{s.name}": s for s in report.sources}
    assert set(placed) == {
        "energy/long",
        "energy/rows",
        "web/deep-arrays",
        "web/lines",
        "other/flat",
        "other/m",
    }
    for place, source in placed.items():
        written = TimeMoeFolderSource(tmp_path / "out" / place)
        read = open_source(source.inputs[0])
        assert series_bits(written) == series_bits(read), place
        names = (tmp_path / "out" / place / conversion.NAMES_FILE).read_text().splitlines()
        assert [json.loads(name) for name in names] == [read.label(i) for i in range(len(read))]
        assert source.series == len(read)
        assert source.points == int(read.lengths.sum())
        assert sum(source.dropped.values()) == 0
    assert placed["energy/long"].missing_points == 1
    assert placed["energy/long"].infinite_points == 1
    assert placed["other/flat"].missing_points == 1
    meta = json.loads((tmp_path / "out" / "other" / "m" / "meta.json").read_text())
    assert meta["frequency"] == placed["other/m"].frequency == "h"
    assert "frequency" not in json.loads(
        (tmp_path / "out" / "web" / "lines" / "meta.json").read_text()
    )
    assert report.skipped_files == (str(data / "notes.md"),)
    assert json.loads((tmp_path / "out.report.json").read_text()) == json.loads(
        json.dumps(report.as_dict())
    )
    assert len(open_source(str(tmp_path / "out"))) == sum(s.series for s in report.sources)
    assert no_leftovers(tmp_path)


def test_what_is_left_out_is_counted(tmp_path):
    lists = pa.array([[1.0], [], [None, None], [1e300, 2.0], [0.1, 0.5, float("inf")]])
    pq.write_table(pa.table({"target": lists, "note": ["x"] * 5}), tmp_path / "a.parquet")
    report = convert(tmp_path / "a.parquet", tmp_path / "out", frequency="D", progress=False)
    (source,) = report.sources
    assert source.dropped == {
        EMPTY: 1,
        MISSING: 1,
        TOO_LARGE: 1,
    }
    assert (source.series, source.points, source.infinite_points) == (2, 4, 1)
    assert source.rounded_points == 1, "0.1 is no float32"
    assert source.ignored_columns == ("note",)
    names = (tmp_path / "out" / "other" / "a" / conversion.NAMES_FILE).read_text().split()
    assert names == ['"0"', '"4"']
    text = report.to_text()
    for part in ("1 with no points", "1 with no observed value", "1 rounded to float32", "note"):
        assert part in text
    wide = convert(tmp_path / "a.parquet", tmp_path / "wide", dtype="float64", progress=False)
    assert wide.sources[0].dropped[TOO_LARGE] == 0
    assert wide.sources[0].rounded_points == 0
    assert TimeMoeFolderSource(tmp_path / "wide" / "other" / "a")[1][0] == 1e300


def test_domains_names_and_joining(tmp_path):
    data = tmp_path / "set"
    for folder in ("x", "y"):
        (data / folder).mkdir(parents=True)
        (data / folder / "a.csv").write_text("v\n1\n2\n")
    convert(data, tmp_path / "one", domain="energy", progress=False)
    assert len(TimeMoeFolderSource(tmp_path / "one" / "energy" / "x-a")) == 1
    convert(data, tmp_path / "two", domain="energy", join=True, progress=False)
    assert len(TimeMoeFolderSource(tmp_path / "two" / "energy" / "set")) == 2
    convert(data / "x" / "a.csv", tmp_path / "two", name="b", progress=False)
    assert len(TimeMoeFolderSource(tmp_path / "two" / "other" / "b")) == 1
    # What was written is converted again to the same place.
    convert(tmp_path / "one", tmp_path / "three", progress=False)
    assert len(TimeMoeFolderSource(tmp_path / "three" / "energy" / "x-a")) == 1
    convert(tmp_path / "one" / "energy" / "x-a", tmp_path / "four", progress=False)
    assert len(TimeMoeFolderSource(tmp_path / "four" / "energy" / "x-a")) == 1


def write_folder(folder, frequencies, common=None, points=3):
    """Series k holds the numbers from 10 k on, and the frequency of its own that is given."""
    values = np.concatenate([10 * k + np.arange(points) for k in range(len(frequencies))])
    folder.mkdir(parents=True)
    values.astype(np.float32).tofile(folder / "data-1-of-1.bin")
    scales = [
        {"offset": points * k, "length": points} | ({"freq": own} if own else {})
        for k, own in enumerate(frequencies)
    ]
    meta = {"num_sequences": len(scales), "dtype": "float32", "scales": scales}
    meta["files"] = {"data-1-of-1.bin": len(values)}
    (folder / "meta.json").write_text(json.dumps(meta | ({"freq": common} if common else {})))


def frequencies_of(folder):
    source = TimeMoeFolderSource(folder)
    return [source.frequency_of(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("own", "common", "written", "entries"),
    [
        (["H", None, "D", "H"], "W", "W", ["H", None, "D", "H"]),
        (["H", None, "D"], None, None, ["H", None, "D"]),
        (["H", "H"], None, "H", [None, None]),
        (["H", "H"], "D", "H", [None, None]),
        (["D", "H", None], "H", "H", ["D", None, None]),
        ([None, None], None, None, [None, None]),
        (['quote"}] \u00e9', "{"], None, None, ['quote"}] \u00e9', "{"]),
    ],
)
def test_frequencies_of_a_folder_are_kept(tmp_path, own, common, written, entries):
    write_folder(tmp_path / "in" / "nature" / "wind", own, common)
    report = convert(tmp_path / "in", tmp_path / "out", progress=False)
    folder = tmp_path / "out" / "nature" / "wind"
    wanted = [frequency or common for frequency in own]
    assert frequencies_of(folder) == wanted
    assert [values[0] for values in TimeMoeFolderSource(folder)] == [
        10 * k for k in range(len(own))
    ]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta.get("frequency") == written == report.sources[0].frequency
    assert [entry.get("freq") for entry in meta["scales"]] == entries
    counts = {f or "unknown": wanted.count(f) for f in wanted}
    assert report.sources[0].frequencies == counts
    assert TimeMoeFolderSource(folder).domain == "nature"
    # What is given holds for every series.
    given = convert(tmp_path / "in", tmp_path / "given", frequency="min", progress=False)
    assert set(frequencies_of(tmp_path / "given" / "nature" / "wind")) == {"min"}
    assert given.sources[0].frequencies == {"min": len(own)}


def test_frequencies_of_many_series_and_of_those_that_are_left_out(tmp_path):
    """A meta.json of several of the parts in which it is written anew."""
    own = [("H", None, "D", "15min")[k % 7 % 4] for k in range(60_000)]
    write_folder(tmp_path / "in", own, "W", points=1)
    values = np.fromfile(tmp_path / "in" / "data-1-of-1.bin", np.float32)
    values[::5] = np.nan
    values.tofile(tmp_path / "in" / "data-1-of-1.bin")
    report = convert(tmp_path / "in", tmp_path / "out", progress=False)
    folder = tmp_path / "out" / "other" / "in"
    assert (folder / "meta.json").stat().st_size > 3 << 19
    kept = [k for k in range(len(own)) if k % 5]
    assert report.sources[0].series == len(kept)
    assert frequencies_of(folder) == [own[k] or "W" for k in kept]
    first = TimeMoeFolderSource(folder)
    assert [float(first[i][0]) for i in (0, 1, 2, len(kept) - 1)] == [
        10.0 * kept[i] for i in (0, 1, 2, len(kept) - 1)
    ]
    text = report.to_text()
    assert "frequencies " in text
    assert all(f"{name} of " in text for name in ("H", "D", "15min", "W"))


def test_joined_sources_keep_their_frequencies(tmp_path):
    header = "@attribute series_name string\n@frequency {}\n@data\n"
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.tsf").write_text(f"{header.format('hourly')}x:1,2\ny:3\n")
    (data / "b.tsf").write_text(f"{header.format('daily')}x:4\n")
    (data / "c.jsonl").write_text("[5]\n")
    report = convert(data, tmp_path / "out", join=True, progress=False)
    found = frequencies_of(tmp_path / "out" / "other" / "data")
    assert found == ["h", "h", "D", None]
    assert report.sources[0].frequencies == {"h": 2, "D": 1, "unknown": 1}


def test_the_domain_of_a_folder_is_the_published_one(tmp_path):
    write_folder(tmp_path / "all" / "copy" / "energy" / "wind", ["H"])
    write_folder(tmp_path / "all" / "nature" / "web" / "rain", ["H"])
    write_folder(tmp_path / "all" / "mine" / "deep" / "rain", ["H"])
    report = convert(tmp_path / "all", tmp_path / "out", progress=False)
    places = [f"{source.domain}/{source.name}" for source in report.sources]
    assert places == ["energy/copy-wind", "mine/deep-rain", "nature/web-rain"]
    joined = convert(tmp_path / "all", tmp_path / "joined", join=True, progress=False)
    assert [source.domain for source in joined.sources] == ["other"]
    joined = convert(tmp_path / "all" / "nature", tmp_path / "web", join=True, progress=False)
    assert [f"{source.domain}/{source.name}" for source in joined.sources] == ["web/nature"]
    inner = convert(tmp_path / "all" / "copy" / "energy", tmp_path / "inner", progress=False)
    assert [f"{source.domain}/{source.name}" for source in inner.sources] == ["energy/wind"]


def test_splits_are_named_after_their_dataset(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "m4" / split
        folder.mkdir(parents=True)
        table = pa.table({"target": [[1.0, 2.0]]})
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "m4" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    report = convert(tmp_path / "m4", tmp_path / "out", progress=False)
    assert [source.name for source in report.sources] == ["m4-test", "m4-train"]
    assert report.skipped_files == ()


def test_what_is_there_stays(tmp_path):
    (tmp_path / "a.csv").write_text("v\n1\n")
    convert(tmp_path / "a.csv", tmp_path / "out", progress=False)
    before = (tmp_path / "out" / "other" / "a" / "meta.json").read_bytes()
    (tmp_path / "a.csv").write_text("v\n2\n3\n")
    with pytest.raises(DataError, match="already exists"):
        convert(tmp_path / "a.csv", tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "other" / "a" / "meta.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"domain": "a/b"}, "domain is 'a/b'"),
        ({"domain": ".."}, "domain is '..'"),
        ({"name": "x"}, "2 sources"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"domain": "d"}, None),
    ],
)
def test_arguments(tmp_path, arguments, says):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("v\n1\n")
    (data / "b.csv").write_text("v\n1\n")
    if says is None:
        (data / "a.jsonl").write_text("[1]\n")
        says = "would both become d/a"
    with pytest.raises(DataError, match=says):
        convert(data, tmp_path / "out", progress=False, **arguments)
    assert not (tmp_path / "out").exists()
    assert no_leftovers(tmp_path)


def test_places_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "a.csv").write_text("v\n1\n")
    (tmp_path / "file").write_text("")
    write_time_moe_folder(tmp_path / "source", [np.ones(2)])
    (tmp_path / "empty").mkdir()
    for path, out, says in (
        ("none", "out", "none does not exist"),
        ("empty", "out", "holds no series"),
        ("file", "out", "ending that is not read"),
        ("a.csv", "file", "is a file"),
        ("a.csv", "file/out", "file"),
        ("a.csv", "source", "itself a source"),
    ):
        with pytest.raises(DataError, match=says):
            convert(tmp_path / path, tmp_path / out, progress=False)


def test_a_damaged_file_leaves_nothing_behind(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("v\n1\n")
    (data / "b.tsf").write_text("@attribute n string\n@data\nx:1,2\ny:1,oops\n")
    with pytest.raises(DataError, match=r"b\.tsf line 4: value 1"):
        convert(data, tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_killed_process_leaves_no_half_of_an_output(tmp_path):
    """Killed while it writes; the output is not there, and the next conversion says what is."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4000, 1000), np.float32))
    program = (
        "import sys, time\n"
        "from timemoe_jax.data.corpus import convert as conversion\n"
        "kept = conversion._kept\n"
        "def slow(*args):\n"
        "    for values in kept(*args):\n"
        "        yield values\n"
        "        print('.', flush=True)\n"
        "        time.sleep(0.05)\n"
        "conversion._kept = slow\n"
        "conversion.convert(sys.argv[1], sys.argv[2], progress=False)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.npy"), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b".\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="killed"):
        report = convert(tmp_path / "a.npy", tmp_path / "out", progress=False)
    assert report.sources[0].series == 4000
    source = open_source(f"{tmp_path / 'out'}")
    assert len(source) == 4000
    # What was left is not taken for data, and is counted.
    assert any(".partial" in name for name in open_source(str(tmp_path)).skipped_files)


def test_an_interruption_removes_what_was_written(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("v\n1\n")

    def interrupted(folder, *_, **__):
        assert list(folder.parent.parent.glob("other/a")) == [folder]
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "write_points", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "a.csv", tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_frames(tmp_path):
    frame = pd.DataFrame(
        {"shop": ["a", "b", "a"], "when": [2, 1, 1], "sold": np.float32([3, 2, 1])}
    )
    names = ColumnNames("shop", "when", ("sold",))
    report = convert_frame(
        frame, tmp_path / "out", name="shops", domain="sales", frequency="D", names=names
    )
    assert isinstance(report, ConversionReport)
    source = TimeMoeFolderSource(tmp_path / "out" / "sales" / "shops")
    assert [values.tolist() for values in source] == [[1.0, 3.0], [2.0]]
    assert source.frequency == "D"


def test_the_command_takes_separators(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("day:sold\n2024-01-01:1,5\n2024-01-02:2,25\n")
    command = ["data", "convert", str(tmp_path / "a.csv"), str(tmp_path / "out")]
    cli.main([*command, "--domain", "sales", "--separator", ":", "--decimal", ","])
    assert "sales/a: 1 series, 2 points" in capsys.readouterr().out
    np.testing.assert_array_equal(open_source(str(tmp_path / "out"))[0], [1.5, 2.25])


def test_the_command(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(
        "shop,when,sold\nx,2024-01-02,2\nx,2024-01-01,1\ny,2024-01-01,\n"
    )
    out, report = tmp_path / "out", tmp_path / "new" / "report.json"
    command = ["data", "convert", str(tmp_path / "a.csv"), str(out), "--domain", "sales"]
    command += ["--id-column", "shop", "--timestamp-column", "when", "--target", "sold"]
    cli.main([*command, "--frequency", "D", "--report", str(report)])
    printed = capsys.readouterr()
    assert printed.out.startswith("sales/a: 1 series, 2 points, 0 missing, frequency D")
    assert "1 with no observed value" in printed.out
    assert "a:" in printed.err, "the progress bar"
    assert json.loads(report.read_text())["sources"][0]["series"] == 1
    np.testing.assert_array_equal(open_source(str(out))[0], [1.0, 2.0])
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    assert "already exists" in capsys.readouterr().err


def test_the_benchmark_files(shared_dir, tmp_path):
    folder = shared_dir / "data" / "ETT-small"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    report = convert(folder / "ETTh1.csv", tmp_path / "out", frequency="h", progress=False)
    assert (report.sources[0].series, report.sources[0].points) == (7, 7 * 17420)
    source = TimeMoeFolderSource(tmp_path / "out" / "other" / "ETTh1")
    expected = pd.read_csv(folder / "ETTh1.csv").drop(columns="date").astype(np.float32)
    for values, column in zip(source, expected, strict=True):
        np.testing.assert_array_equal(values, expected[column])
