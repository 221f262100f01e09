from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.data import samples
from timemoe_jax.data.seasons import season_of_times
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation import benchmarks

# Rows, columns, season, and the first and last line of each file as its source has it.
EXPECTED = {
    "greensboro_hourly": (5088, 2, 24, [0.0, 10.0], [0.0, 19.9]),
    "new_york_daily": (1461, 2, 7, [10.0, 5.1], [11.1, 5.5]),
    "mauna_loa_co2_weekly": (856, 1, 52, [344.7], [371.5]),
}


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_a_sample_is_complete_and_evenly_spaced(name):
    table = samples.load_sample(name)
    rows, columns, season, first, last = EXPECTED[name]
    assert table.values.shape == (rows, columns)
    assert len(table.columns) == columns
    assert table.timestamp_name == "date"
    assert np.isfinite(table.values).all()
    assert table.timestamps is not None
    assert len(np.unique(np.diff(table.timestamps))) == 1
    assert season_of_times(table.timestamps) == season
    np.testing.assert_array_equal(table.values[0], first)
    np.testing.assert_array_equal(table.values[-1], last)


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_a_sample_can_be_scored_as_a_benchmark(name):
    benchmark = benchmarks.load_benchmark(samples.sample_path(name))
    windows = benchmarks.benchmark_windows(benchmark, 256, 48)
    assert len(windows) == windows.total > 0


def test_daily_irradiance_repeats_by_day():
    values = samples.load_sample("greensboro_hourly").values[:, 0].reshape(212, 24)
    # Hours end at their date, so the first column is the hour to 01:00 at night.
    assert values[:, 0].max() == 0
    assert values.mean(axis=0).argmax() in (11, 12)


def test_every_file_is_described_and_small():
    folder = Path(samples.__file__).parent / "samples"
    files = {path.name for path in folder.iterdir()}
    assert files == {"README.md", *(f"{name}.csv" for name in samples.SAMPLES)}
    readme = (folder / "README.md").read_text()
    for name in samples.SAMPLES:
        assert f"## {name}.csv" in readme
    assert sum((folder / name).stat().st_size for name in files) < 600_000


def test_an_unknown_sample_is_named():
    with pytest.raises(DataError, match="no sample 'etth1'; it must be one of greensboro_hourly"):
        samples.load_sample("etth1")
