"""Times without a row, in training as in forecasts."""

import numpy as np
import pandas as pd
import pytest

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.formats import columnar
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.pipeline.gaps import FilledSource, regular_positions
from timemoe_jax.data.pipeline.training_data import open_training_data
from timemoe_jax.data.series_source import ArraySource, ConcatSource, HeadSource


def _positions(times):
    found = regular_positions(np.asarray(times))
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    "freq", ["h", "15min", "D", "B", "W-SUN", "28D", "MS", "ME", "QS", "QE", "YS"]
)
def test_rows_that_were_left_out_are_found_again(freq):
    times = pd.date_range("2020-01-01", periods=60, freq=freq).to_numpy()
    kept = np.delete(np.arange(60), [5, 17, 18, 40])
    assert _positions(times) == list(range(60))
    assert _positions(times[kept]) == kept.tolist()


def test_dates_in_the_middle_of_months_are_months():
    times = pd.date_range("2019-01-01", periods=30, freq="MS") + pd.Timedelta(days=14)
    kept = np.delete(np.arange(30), [3, 4])
    assert _positions(times[kept]) == kept.tolist()


def test_numbers_are_steps():
    assert _positions([10, 20, 30, 60]) == [0, 1, 2, 5]
    assert _positions([0.5, 1.0, 2.0, 2.5]) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "times",
    [
        [0, 1, 2, 4.5],
        [0, 1, 1, 2],
        [2, 1, 0],
        [0.0, 1.0, np.inf],
        [0, 1, 2, 10**9],  # a mistaken time would fill the memory
    ],
)
def test_times_without_a_common_step_have_no_positions(times):
    assert _positions(times) is None


def _write(frame, path):
    """Of Parquet in parts of a few rows."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path, index=False, row_group_size=4)


@pytest.fixture(params=["a.csv", "a.parquet"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_a_table_is_filled_and_counted(path):
    times = pd.date_range("2024-01-01", periods=20)
    frame = pd.DataFrame({"ds": times, "a": np.arange(20.0), "b": -np.arange(20.0)})
    _write(frame.drop(index=[3, 4]).sample(frac=1, random_state=0), path)
    source = FilledSource(open_source(str(path)))
    assert (source.absent, source.irregular, source.lengths.tolist()) == (4, 0, [20, 20])
    expected = np.where(np.isin(np.arange(20), [3, 4]), np.nan, np.arange(20.0))
    np.testing.assert_array_equal(source[0], expected)
    np.testing.assert_array_equal(source.read_stored(1, 2, 6), -expected[2:6])
    assert (source.label(1), source.groups().tolist()) == ("b", [0, 0])


@pytest.mark.parametrize("points", [1, 1 << 22])
def test_a_long_table_is_filled_series_by_series(path, points, monkeypatch):
    monkeypatch.setattr(columnar, "POINTS_AT_A_TIME", points)
    rows = [("x", d, 1.0) for d in (1, 2, 3, 6)] + [("y", d, 2.0) for d in (5, 1, 3)]
    frame = pd.DataFrame(
        {
            "unique_id": [r[0] for r in rows],
            "ds": pd.to_datetime([f"2024-01-{r[1]:02d}" for r in rows]),
            "y": [r[2] for r in rows],
        }
    )
    _write(frame, path)
    source = FilledSource(ConcatSource([open_source(str(path))] * 2))
    assert (source.lengths.tolist(), source.absent) == ([6, 3, 6, 3], 4)
    np.testing.assert_array_equal(source[0], [1, 1, 1, np.nan, np.nan, 1])


def test_series_without_times_stay_as_they_are():
    source = FilledSource(ArraySource([np.arange(5.0)]))
    assert (source.absent, source.irregular) == (0, 0)
    np.testing.assert_array_equal(source[0], np.arange(5.0))


def test_the_heads_of_series_end_with_their_times(tmp_path):
    times = pd.date_range("2024-01-01", periods=20)
    pd.DataFrame({"ds": times, "a": np.arange(20.0)}).to_csv(tmp_path / "a.csv", index=False)
    heads = HeadSource(open_source(str(tmp_path / "a.csv")), np.array([7]))
    np.testing.assert_array_equal(heads[0], np.arange(7.0))
    assert len(heads.times(0)) == 7


def test_a_run_says_which_columns_it_leaves_out(path):
    times = pd.date_range("2024-12-01", periods=60)
    columns = {"index": range(60), "ds": times, "year": times.year, "v": np.arange(60.0)}
    _write(pd.DataFrame(columns).drop(index=7), path)
    config = DataConfig(path=str(path), length=32, fill_absent=True)
    summary = open_training_data(config, seed=0, num_steps=1, batch_size=1).summary
    assert "1 sequences" in summary
    assert (
        "; columns left out: 'index', 'year'; 1 times without a row are missing points" in summary
    )
