"""Manifests and rows of windows: what is written is what is read, in either format."""

import sys

import numpy as np
import pytest
from evaluation_tasks import SIMPLE, forecast_of

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation import records
from timemoe_jax.evaluation.scores import score_windows, summarize


def simple_rows():
    scores = score_windows(SIMPLE, forecast_of(SIMPLE, width=10.0))
    return records.rows_of_task("toy", SIMPLE, "last value", scores)


def test_rows_of_a_task():
    rows = simple_rows()
    assert list(rows) == list(records.COLUMNS)
    assert rows["series"] == ["a", "a", "b"]
    assert rows["origin"] == [2, 4, 4]
    np.testing.assert_allclose(rows["mae"], [3.5, 6.5, 4])
    np.testing.assert_allclose(rows["mse"], [29 / 2, 97 / 2, 16])
    np.testing.assert_allclose(rows["coverage"], [0.5, 0.5, 1])
    whole = summarize(score_windows(SIMPLE, forecast_of(SIMPLE, width=10.0)))
    assert sum(rows["quantile_loss"]) / sum(rows["target"]) == pytest.approx(whole.crps)


@pytest.mark.parametrize("with_pyarrow", [True, False])
def test_rows_survive_a_file(tmp_path, monkeypatch, with_pyarrow):
    if with_pyarrow:
        pytest.importorskip("pyarrow")
    else:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = simple_rows()
    few = {"task": ["x"], "benchmark": ["toy"], "method": ["m"], "series": ["é"]}
    few |= {"origin": [3], "horizon": [2], "points": [2], "mae": np.array([0.1 + 0.2])}
    with records.window_writer(tmp_path) as writer:
        writer.add(rows)
        writer.add(few)
    name = "windows.parquet" if with_pyarrow else "windows.jsonl"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for path in (tmp_path, tmp_path / name):
        found = records.read_windows(path)
        assert len(found) == 4
        for column in records.COLUMNS:
            np.testing.assert_array_equal(found.columns[column][:3], rows[column], strict=False)
        assert found.columns["series"][3] == "é"
        assert found.columns["mae"][3] == 0.1 + 0.2
        assert np.isnan(found.columns["coverage"][3])
        assert found.columns["points"].dtype == np.int64
    with records.window_writer(tmp_path, per_window=False) as writer:
        writer.add(rows)
    assert not list(tmp_path.iterdir())


def test_what_is_no_result(tmp_path):
    with pytest.raises(DataError, match=r"has no rows of windows; evaluate with --config.per_w"):
        records.read_windows(tmp_path)
    lines = tmp_path / "windows.jsonl"
    lines.write_text('{"task": "x"}\n', "utf-8")
    with pytest.raises(DataError, match=r"windows.jsonl line 1 is no row of a window: 'benchmark'"):
        records.read_windows(tmp_path)
    with pytest.raises(DataError, match="is no manifest of an evaluation"):
        records.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}", "utf-8")
    with pytest.raises(DataError, match='it has no "results"'):
        records.read_manifest(tmp_path)


def test_a_manifest(tmp_path):
    cell = records.result_cell("toy", "t", "m", 1.23456, {3: "short", 5: "short"}, {"mase": np.nan})
    records.write_manifest(tmp_path, {"results": [cell]})
    expected = {"benchmark": "toy", "task": "t", "method": "m", "seconds": 1.23456}
    (found,) = records.read_manifest(tmp_path)["results"]
    assert found == {**expected, "failures": {"short": 2}, "mase": None}
    assert set(records.versions(["surely-absent"])) == {*records.VERSIONS_OF, "surely-absent"}
    assert records.versions(["surely-absent"])["surely-absent"] == "not installed"
