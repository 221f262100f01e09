"""Cleaning trees of files: every source in its place, whatever kills the run meanwhile."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import psutil
import pytest
from places import ROOT

from timemoe_jax.cli import main as cli
from timemoe_jax.data.corpus import clean as program
from timemoe_jax.data.corpus.clean import clean_folder
from timemoe_jax.data.corpus.clean_rules import REASONS, clean
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.errors import DataError


def dirty_series(seed, count=6):
    """Of several lengths, with gaps, plateaus and zeros."""
    rng = np.random.default_rng(seed)
    for length in rng.integers(1, 3000, count):
        values = rng.normal(size=length)
        for filler in (np.nan, 0.0, 7.0):
            start = rng.integers(0, length)
            values[start : start + 200] = filler
        yield values


@pytest.fixture
def tree(tmp_path):
    """Two Time-300B folders, other files at several depths, and one that is not read."""
    root = tmp_path / "in"
    write_time_moe_folder(root / "energy/wind", dirty_series(0), points_per_file=3000)
    write_time_moe_folder(root / "nature/era/five", dirty_series(1), dtype="float64")
    np.save(root / "nature/rain.npy", np.stack([v[:90] for v in [*dirty_series(2)] if len(v) > 90]))
    lines = [json.dumps([None if np.isnan(x) else x for x in v]) for v in dirty_series(3)]
    (root / "logs.jsonl").write_text("\n".join(lines))
    columns = np.random.default_rng(4).normal(size=(400, 2)).astype(str)
    (root / "table.csv").write_text("a,b\n" + "\n".join(map(",".join, columns)))
    (root / "notes.txt").write_text("not a series")
    return root


def expected(source):
    """What is kept of the series of a source, in order."""
    return [v[start:stop] for v in source for start, stop in clean(v).pieces]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def contents(folder):
    """Every file below a folder, but for where its source lay and when."""
    files = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if name.name != "cleaning.json"}


def quietly(paths, out, **options):
    return clean_folder(str(paths), out, **{"num_processes": 1, "progress": False, **options})


def test_every_source_is_cleaned_in_its_place(tree, tmp_path):
    report = quietly(tree, tmp_path / "out", points_per_task=2000, num_processes=2)
    names = ["energy/wind", "logs.jsonl", "nature/era/five", "nature/rain.npy", "table.csv"]
    assert list(report.sources) == names
    for name in names:
        found = TimeMoeFolderSource(tmp_path / "out" / name)
        assert_same([*found], expected(open_source(str(tree / name))))
    # In the order of the input, and nothing else was written there.
    assert_same([*open_source(str(tmp_path / "out"))], expected(open_source(str(tree))))
    assert open_source(str(tmp_path / "out")).skipped_files == ()
    left = {"in", "out", "out.report.json"}
    assert {p.name for p in tmp_path.iterdir()} == left


def test_the_report_accounts_for_every_point(tree, tmp_path, capsys):
    cli.main(["data", "clean", str(tree), str(tmp_path / "out"), "--processes", "2"])
    report = json.loads((tmp_path / "out.report.json").read_text())
    for name, row in report["sources"].items():
        source = open_source(str(tree / name))
        cleaned = [clean(values) for values in source]
        assert row["sequences"] == len(source)
        assert row["points"] == source.lengths.sum()
        assert row["pieces"] == sum(len(c.pieces) for c in cleaned)
        assert row["kept"] == sum(int(np.diff(c.pieces).sum()) for c in cleaned)
        for reason in REASONS:
            assert row["dropped"][reason] == sum(c.dropped[reason] for c in cleaned)
        assert row["kept"] + sum(row["dropped"].values()) == row["points"]
    total = report["total"]
    for field in ("sequences", "points", "pieces", "kept"):
        assert total[field] == sum(row[field] for row in report["sources"].values())
    assert total["kept"] + sum(total["dropped"].values()) == total["points"]
    assert report["skipped_files"] == [str(tree / "notes.txt")]
    table = capsys.readouterr().out.splitlines()
    header = ["source", "series", "pieces", "points", "kept", "%", *REASONS]
    assert table[0].split() == header
    cells = table[len(report["sources"]) + 1].replace(",", "").split()
    assert cells[0] == "total"
    assert [int(c) for c in cells[6:]] == list(total["dropped"].values())
    assert "not read: 1" in table[-1]


@pytest.mark.parametrize("points_per_task", [1, 700, 1 << 26])
def test_division_into_tasks_does_not_show(tree, tmp_path, points_per_task):
    quietly(tree / "energy", tmp_path / "out", points_per_task=points_per_task)
    found = [*TimeMoeFolderSource(tmp_path / "out/wind")]
    assert_same(found, expected(TimeMoeFolderSource(tree / "energy/wind")))


def write_stored(folder, stored, meta):
    """A folder by hand, of values as they are stored."""
    folder.mkdir(parents=True)
    stored.tofile(folder / "data-1-of-1.bin")
    files = {"data-1-of-1.bin": len(stored)}
    meta = {"num_sequences": len(meta["scales"]), "files": files, **meta}
    (folder / "meta.json").write_text(json.dumps(meta))


def test_standardized_values_stay_as_they_are_stored_with_their_mean_and_std(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 30, 1024)
    # A third of zeros, hardly ever beside each other: none of them is exactly zero when read.
    values[256:512:3] = 0
    values[700:800] = values[700]
    mean, std = values.mean(), values.std()
    stored = ((values - mean) / std).astype(np.float32)
    scale = {"offset": 0, "length": 1024, "mean": mean, "std": std}
    write_stored(tmp_path / "in", stored, {"dtype": "float32", "scales": [scale]})
    read = TimeMoeFolderSource(tmp_path / "in")[0]
    assert np.count_nonzero(read) == 1024
    report = quietly(tmp_path / "in", tmp_path / "out")
    # 256 kept, two windows of zeros, 128 points alone, two windows of a plateau, 128 alone.
    assert report.total.kept == 256
    assert list(report.total.dropped.values()) == [0, 256, 256, 0, 256]
    meta = json.loads((tmp_path / "out/in/meta.json").read_text())
    assert meta["dtype"] == "float32"
    assert meta["scales"] == [{**scale, "length": 256}]
    np.testing.assert_array_equal(TimeMoeFolderSource(tmp_path / "out/in")[0], read[:256])


@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        ("float16", "float16"),
        ("float64", "float64"),
        ("bfloat16", "float32"),
        ("int8", "float16"),
        ("int16", "float32"),
        ("int64", "float64"),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_every_stored_dtype_is_written_without_loss(tmp_path, dtype, written, scaled):
    rng = np.random.default_rng(0)
    values = rng.permutation(np.arange(-100, 100).repeat(3)).astype(float)
    values[:200:3] = -20
    stored = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    scale = {"offset": 0, "length": 600, **({"mean": 10.0, "std": 0.5} if scaled else {})}
    write_stored(tmp_path / "in", stored, {"dtype": dtype, "scales": [scale]})
    report = quietly(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out/in/meta.json").read_text())["dtype"] == written
    # With mean and std, -20 is zero.
    assert report.total.dropped["zeros"] == (128 if scaled else 0)
    source = TimeMoeFolderSource(tmp_path / "in")
    (found,) = TimeMoeFolderSource(tmp_path / "out/in")
    np.testing.assert_array_equal(found, source[0][128 if scaled else 0 :])


def test_frequencies_are_kept(tmp_path):
    scales = [{"offset": 300 * k, "length": 300} for k in range(3)]
    scales[1]["freq"] = "D"
    meta = {"dtype": "float32", "freq": "H", "scales": scales}
    values = np.arange(1, 901, dtype=np.float32)
    values[100] = np.nan
    write_stored(tmp_path / "in", values, meta)
    quietly(tmp_path / "in", tmp_path / "out", points_per_task=1)
    found = TimeMoeFolderSource(tmp_path / "out/in")
    assert found.lengths.tolist() == [100, 300, 300]
    assert [found.frequency_of(i) for i in range(3)] == ["H", "D", "H"]


def test_arrays_of_two_dtypes_in_one_file_lose_nothing(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=300).astype(np.float32), "b": rng.normal(size=300)}
    np.savez(tmp_path / "two.npz", **arrays)
    quietly(tmp_path / "two.npz", tmp_path / "out")
    found = [*TimeMoeFolderSource(tmp_path / "out/two.npz")]
    assert_same(found, [v.astype(np.float64) for v in arrays.values()])


def test_a_source_of_which_nothing_is_kept_is_there_and_empty(tmp_path):
    np.save(tmp_path / "still.npy", np.zeros(1000))
    report = quietly(tmp_path / "still.npy", tmp_path / "out")
    assert report.total.kept == 0
    assert len(TimeMoeFolderSource(tmp_path / "out/still.npy")) == 0
    assert quietly(tmp_path / "still.npy", tmp_path / "out") == report


def test_finished_sources_are_not_done_again_and_new_ones_are_added(tree, tmp_path):
    report = quietly(tree, tmp_path / "out")
    before = {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*.bin")}
    assert quietly(tree, tmp_path / "out") == report
    np.save(tree / "more.npy", np.arange(1.0, 301))
    assert quietly(tree, tmp_path / "out").sources["more.npy"].kept == 300
    assert {p: p.stat().st_ino for p in before} == before


SLOW_RUN = """
import sys
from timemoe_jax.data.corpus.clean import clean_folder
clean_folder(sys.argv[1], sys.argv[2], num_processes=2, points_per_task=1)
"""


def start_slow_run(tmp_path):
    """Six sources of 60 tasks each."""
    rng = np.random.default_rng(0)
    for k in range(6):
        series = rng.normal(size=(60, 300)).astype(np.float32)
        write_time_moe_folder(tmp_path / f"in/energy/source{k}", series)
    command = [sys.executable, "-c", SLOW_RUN, tmp_path / "in", tmp_path / "out"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(found, process, seconds=60):
    """What `found` returns as soon as there is any."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)
    return result


def workers(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_run_is_resumed(tmp_path):
    out = tmp_path / "out"
    process = start_slow_run(tmp_path)
    wait_for(lambda: [*out.rglob("meta.json")], process)
    running = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The processes that it started end, too.
    _, alive = psutil.wait_procs(running, timeout=10)
    assert not alive
    assert not (tmp_path / "out.report.json").exists()
    finished = {p: p.stat().st_ino for p in out.rglob("*") if p.is_file()}
    # Whatever lies in the output already is whole.
    sources = [TimeMoeFolderSource(p.parent) for p in out.rglob("meta.json")]
    assert 1 <= len(sources) < 6
    assert all(len(source) == 60 for source in sources)
    done = {p: p.stat().st_ino for p in (tmp_path / "out.partial").glob("*/*/*-*/*.bin")}
    assert done
    report = quietly(tmp_path / "in", out, points_per_task=1, num_processes=2)
    assert {p: p.stat().st_ino for p in finished} == finished
    assert set(done.values()) <= {p.stat().st_ino for p in out.rglob("*.bin")}
    assert report.total.kept == 6 * 60 * 300
    assert not (tmp_path / "out.partial").exists()
    quietly(tmp_path / "in", tmp_path / "whole", points_per_task=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_process_that_dies_is_an_error_and_the_run_is_resumed(tmp_path):
    process = start_slow_run(tmp_path)
    worker = wait_for(lambda: workers(process), process)[0]
    wait_for(lambda: [*(tmp_path / "out").rglob("meta.json")], process)
    worker.kill()
    _, errors = process.communicate(timeout=60)
    assert "DataError: a worker process was ended, perhaps for lack of memory; the same" in errors
    assert quietly(tmp_path / "in", tmp_path / "out", points_per_task=1).total.pieces == 360


def test_a_run_that_ends_while_it_joins_is_resumed(tree, tmp_path, monkeypatch):
    quietly(tree, tmp_path / "whole", points_per_task=700)
    replaced = []

    def replace(source, target):
        replaced.append(target)
        if len(replaced) == 3:
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(program.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            quietly(tree, tmp_path / "out", points_per_task=700)
    assert not [*(tmp_path / "out").rglob("*")]
    quietly(tree, tmp_path / "out", points_per_task=700)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_source_is_named_and_nothing_of_it_is_written(tree, tmp_path):
    (tree / "energy/bad.jsonl").write_text('[1, 2, "x"]')
    with pytest.raises(DataError, match=r"bad\.jsonl line 1"):
        quietly(tree, tmp_path / "out")
    (tree / "energy/bad.jsonl").unlink()
    (file,) = (tree / "energy/wind").glob("data-1-of-*.bin")
    os.truncate(file, 400)
    with pytest.raises(DataError, match=f"{file.name} has 400 bytes"):
        quietly(tree, tmp_path / "out")
    assert not [*(tmp_path / "out").rglob("wind")]


def test_a_file_that_is_put_right_is_opened_again(tree, tmp_path):
    (tree / "logs.jsonl").write_text(json.dumps([1.0] * 128))
    quietly(tree / "logs.jsonl", tmp_path / "out")
    (tree / "logs.jsonl").write_text(json.dumps([1.0, 2.0, 4.0]))
    assert quietly(tree / "logs.jsonl", tmp_path / "other").total.kept == 3


def test_another_state_of_a_source_is_not_taken_for_it(tree, tmp_path):
    quietly(tree / "logs.jsonl", tmp_path / "out")
    (tree / "logs.jsonl").write_text("[1, 2, 3]")
    with pytest.raises(DataError, match="another state of"):
        quietly(tree / "logs.jsonl", tmp_path / "out")


def test_what_was_not_written_by_cleaning_is_left_alone(tree, tmp_path):
    (tmp_path / "out/logs.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match="was not written by cleaning"):
        quietly(tree, tmp_path / "out")


def test_one_run_at_a_time(tree, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with open(tmp_path / "out.partial/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="in use by another run"):
            quietly(tree, tmp_path / "out")


def test_places_that_clash_are_errors(tree, tmp_path):
    with pytest.raises(DataError, match="lies within the input"):
        quietly(tree, tree / "out")
    np.save(tmp_path / "rain.npy", np.zeros(3))
    with pytest.raises(DataError, match="both be written"):
        quietly(f"{tree / 'nature'},{tmp_path / 'rain.npy'}", tmp_path / "out")
    np.save(tree / "era.npy", np.zeros(3))
    write_time_moe_folder(tmp_path / "nature", [np.zeros(3)])
    with pytest.raises(DataError, match="into the folder of"):
        quietly(f"{tree},{tmp_path / 'nature'}", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        quietly(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match="num_processes"):
        quietly(tree, tmp_path / "out", num_processes=0)
