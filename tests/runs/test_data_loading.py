"""The benchmark of the data pipeline runs, and both of its sides make the same windows."""

import json
import sys

import numpy as np
from processes import run_here

from benchmarks import data_loading
from benchmarks.data_loading import PublishedApproach, many_sequences
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource


def test_both_sides_make_the_same_windows(tmp_path):
    rng = np.random.default_rng(0)
    lengths = (5, 40, 65, 300, 128)
    write_time_moe_folder(
        tmp_path / "a" / "one", [rng.standard_normal(n) for n in lengths], points_per_file=90
    )
    write_time_moe_folder(tmp_path / "b", [np.full(40, 3.0), rng.random(70)])
    meta = json.loads((tmp_path / "b" / "meta.json").read_text())
    for scale in meta["scales"]:
        scale |= {"mean": 7.0, "std": 0.5}
    (tmp_path / "b" / "meta.json").write_text(json.dumps(meta))
    source = open_source(str(tmp_path))
    ours = WindowSource(source, WindowIndex(source.lengths, 32))
    theirs = PublishedApproach(str(tmp_path), 32)
    assert len(ours) == len(theirs.windows) == 1 + 1 + 2 + 9 + 3 + 1 + 2
    for i in range(len(ours)):
        np.testing.assert_allclose(ours[i]["values"], theirs.window(i)["values"], atol=1e-5)
        np.testing.assert_array_equal(ours[i]["mask"], theirs.window(i)["mask"])


def test_a_long_meta_json_is_a_folder_like_others(tmp_path):
    many_sequences(tmp_path / "long", 1000)
    source = open_source(str(tmp_path / "long"))
    assert len(source) == 1000
    assert set(source.lengths.tolist()) == {64}
    assert np.ptp(source[999]) == 0


def test_the_script(tmp_path):
    path = tmp_path / "rows.json"
    flags = ("--quick", "--num-threads", "0,2", "--json", path)
    done = run_here("benchmarks/data_loading.py", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    for row in rows:
        assert list(row) == ["name", "value", "unit", "reference", "ratio"]
        assert (row["reference"] is None) == (row["ratio"] is None), row
    named = {row["name"]: row for row in rows}
    assert len(named) == len(rows)
    reference = named["published throughput"]["value"]
    for threads in (0, 2):
        row = named[f"num_threads={threads} first epoch throughput"]
        assert row["ratio"] == row["value"] / reference
        assert row["unit"] == "points/s"
    assert {"corpus ours memory", "20000 sequences ours, again peak"} <= set(named)


def test_without_a_corpus_throughput_is_skipped(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(side, path, args, threads, *flags):
        asked.append((side, flags))
        return {"open": 1.0, "memory": 2.0, "peak": 3.0}

    monkeypatch.setattr(data_loading, "measure", measured)
    flags = ["--quick", "--path", str(tmp_path / "absent")]
    monkeypatch.setattr(sys, "argv", ["data_loading.py", *flags])
    data_loading.main()
    assert "throughput: skipped" in capsys.readouterr().out
    assert asked == [(side, ("--open-only",)) for side in ("published", "ours", "ours")]
