import hashlib
from pathlib import Path

import numpy as np
import pytest

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation import benchmarks


def write_csv(path: Path, values: np.ndarray, step: str = "1h") -> Path:
    """A CSV [T, C] with columns c0, c1, ...; without dates where there is no step."""
    header = [f"c{c}" for c in range(values.shape[1])]
    rows = [[repr(float(v)) for v in row] for row in values]
    if step:
        number, unit = int(step[:-1]), step[-1]
        dates = np.datetime64("2020-01-01T00:00:00") + np.arange(len(values)) * np.timedelta64(
            number, unit
        )
        header.insert(0, "date")
        for row, date in zip(rows, dates, strict=True):
            row.insert(0, str(date).replace("T", " "))
    path.write_text("\n".join(map(",".join, [header, *rows])) + "\n")
    return path


def counting(rows: int, channels: int = 1) -> np.ndarray:
    """Row t of channel c holds 1000 c + t, so that a value says where it is from."""
    return np.arange(rows)[:, None] + 1000.0 * np.arange(channels)


def load(tmp_path, rows=20, channels=2, name="other.csv", step="1h") -> benchmarks.Benchmark:
    return benchmarks.load_benchmark(write_csv(tmp_path / name, counting(rows, channels), step))


def unscaled(benchmark, values, channel):
    """The integers of `counting` back from windows [B, T] of channels [B]."""
    return np.rint(values * benchmark.std[channel, None] + benchmark.mean[channel, None])


def test_split_scaling_and_digests(tmp_path):
    values = np.array([[1.0, 5], [2, 5], [3, 5], [4, 5], [5, 5], [6, 5], [7, 5], [9, 1], [9, 1]])
    path = write_csv(tmp_path / "Some.csv", values)
    benchmark = benchmarks.load_benchmark(path)
    assert benchmark.name == "Some"
    assert benchmark.path == path
    assert benchmark.columns == ("c0", "c1")
    # 9 rows: int(6.3) train, int(1.8) test, the rest validation.
    assert benchmark.borders == (6, 8, 9)
    np.testing.assert_allclose(benchmark.mean, [3.5, 5])
    # Population variance of 1..6 is 35/12; a constant channel is only centered.
    np.testing.assert_allclose(benchmark.std, [np.sqrt(35 / 12), 1])
    np.testing.assert_allclose(benchmark.scaled[-1], [5.5 / np.sqrt(35 / 12), -4])
    np.testing.assert_array_equal(benchmark.values, values)
    assert benchmark.scaled.dtype == np.float64
    content = path.read_bytes()
    assert benchmark.sha256 == hashlib.sha256(content).hexdigest()
    assert benchmark.md5 == hashlib.md5(content).hexdigest()


def test_a_constant_channel_is_centered_whatever_its_rounding(tmp_path):
    path = write_csv(tmp_path / "c.csv", np.full((100, 1), 0.1))
    assert np.full(70, 0.1).std() > 0  # which is why this needs care
    assert benchmarks.load_benchmark(path).std == [1]


@pytest.mark.parametrize(
    ("name", "step", "rows", "borders", "season", "counts"),
    [
        ("ETTh1.csv", "1h", 17420, (8640, 11520, 14400), 24, (2785, 2689, 2545, 2161)),
        ("my_etth2_copy.CSV", "1h", 17420, (8640, 11520, 14400), 24, (2785, 2689, 2545, 2161)),
        ("ETTm2.csv", "15m", 69680, (34560, 46080, 57600), 96, (11425, 11329, 11185, 10801)),
        ("Weather.csv", "10m", 52696, (36887, 42157, 52696), 144, (10444, 10348, 10204, 9820)),
    ],
)
def test_window_counts_of_the_protocol(tmp_path, name, step, rows, borders, season, counts):
    benchmark = load(tmp_path, rows, 1, name, step)
    assert benchmark.borders == borders
    assert benchmark.season == season
    for horizon, count in zip((96, 192, 336, 720), counts, strict=True):
        context = benchmarks.default_context(horizon)
        complete = benchmarks.benchmark_windows(benchmark, context, horizon)
        published = benchmarks.benchmark_windows(benchmark, context, horizon, "published")
        assert (complete.num_per_channel, published.num_per_channel) == (count, count - 1)


def test_names_are_spelt_as_in_the_published_table(tmp_path):
    for name, spelt in (("ETTH1.csv", "ETTh1"), ("Weather.csv", "weather"), ("x.y.csv", "x.y")):
        assert load(tmp_path, 14400, 1, name).name == spelt


def test_contexts():
    contexts = [benchmarks.default_context(h) for h in (96, 192, 336, 720, 48, 1)]
    assert contexts == [512, 1024, 2048, 3072, 192, 4]


def test_windows_lie_where_they_should(tmp_path):
    # 20 rows: test is rows 16 to 19. Context 3, horizon 2: three windows per channel.
    benchmark = load(tmp_path)
    windows = benchmarks.benchmark_windows(benchmark, 3, 2)
    assert (windows.context_length, windows.horizon) == (3, 2)
    assert (len(windows), windows.total, windows.num_per_channel) == (6, 6, 3)
    (batch,) = windows.batches(100)
    context, target, channel, start = batch
    assert context.dtype == target.dtype == np.float64
    np.testing.assert_array_equal(channel, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(start, [13, 14, 15, 13, 14, 15])
    rows = start[:, None] + np.arange(5)
    expected = rows + 1000 * channel[:, None]
    np.testing.assert_array_equal(unscaled(benchmark, context, channel), expected[:, :3])
    np.testing.assert_array_equal(unscaled(benchmark, target, channel), expected[:, 3:])
    np.testing.assert_array_equal(
        context, benchmark.scaled[start[:, None] + np.arange(3), channel[:, None]]
    )


def test_the_published_protocol_leaves_out_the_last_window_of_each_channel(tmp_path):
    benchmark = load(tmp_path)
    windows = benchmarks.benchmark_windows(benchmark, 3, 2, "published")
    ((_, _, channel, start),) = windows.batches(100)
    np.testing.assert_array_equal(channel, [0, 0, 1, 1])
    np.testing.assert_array_equal(start, [13, 14, 13, 14])
    assert windows.first_target_time == "2020-01-01T16:00:00"
    assert windows.last_target_time == "2020-01-01T18:00:00"
    complete = benchmarks.benchmark_windows(benchmark, 3, 2)
    assert complete.last_target_time == "2020-01-01T19:00:00"


def test_batches_join_to_the_same_windows(tmp_path):
    windows = benchmarks.benchmark_windows(load(tmp_path, 50), 4, 3)
    whole = next(windows.batches(1000))
    batches = list(windows.batches(7))
    assert [len(batch[0]) for batch in batches] == [7, 7, 2]
    for joined, expected in zip(zip(*batches, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(joined), expected)


def test_a_batch_is_a_copy(tmp_path):
    benchmark = load(tmp_path)
    before = benchmark.scaled.copy()
    for context, target, *_ in benchmarks.benchmark_windows(benchmark, 3, 2).batches(2):
        context[:] = target[:] = np.nan
    np.testing.assert_array_equal(benchmark.scaled, before)


@pytest.mark.parametrize("max_windows", [1, 2, 5, 7, 15, 16, 1000])
def test_a_subset_is_evenly_spaced_and_never_repeats(tmp_path, max_windows):
    windows = benchmarks.benchmark_windows(load(tmp_path, 50), 4, 3, max_windows=max_windows)
    assert windows.total == 16
    assert len(windows) == min(max_windows, 16)
    ((_, _, channel, start),) = windows.batches(1000)
    index = channel * windows.num_per_channel + start - 36
    assert len(index) == len(windows)
    gaps = np.diff(np.r_[index, index[0] + 16])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    if max_windows >= 2:
        assert set(channel) == {0, 1}


def test_target_times_are_those_of_the_subset(tmp_path):
    benchmark = load(tmp_path, 50, 1, step="1D")
    windows = benchmarks.benchmark_windows(benchmark, 4, 3, max_windows=1)
    # Eight windows, of which the fifth: its target is rows 44 to 46.
    assert windows.first_target_time == "2020-02-14T00:00:00"
    assert windows.last_target_time == "2020-02-16T00:00:00"
    rows = benchmarks.benchmark_windows(load(tmp_path, 50, 1, step=""), 4, 3)
    assert (rows.first_target_time, rows.last_target_time) == (40, 49)


def test_finding_a_dataset(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    path = write_csv(folder / "Weather.csv", counting(5))
    (tmp_path / "notes.txt").write_text("weather")
    for name in ("weather", "WEATHER", "weather.csv"):
        assert benchmarks.find_dataset(name, tmp_path) == path
    assert benchmarks.find_dataset(str(path), None) == path
    assert benchmarks.find_dataset(str(path), tmp_path / "absent") == path


def test_a_dataset_that_is_not_found(tmp_path):
    first = write_csv(tmp_path / "ETTh1.csv", counting(5))
    with pytest.raises(DataError, match=r"no ETTh3.csv under .* which holds ETTh1\.csv"):
        benchmarks.find_dataset("ETTh3", tmp_path)
    (tmp_path / "sub").mkdir()
    second = write_csv(tmp_path / "sub" / "etth1.CSV", counting(5))
    with pytest.raises(DataError, match="could be any of") as caught:
        benchmarks.find_dataset("etth1", tmp_path)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    with pytest.raises(DataError, match="absent does not exist"):
        benchmarks.find_dataset("ETTh1", tmp_path / "absent")
    with pytest.raises(DataError, match="ETTh1 is no file, and no data folder"):
        benchmarks.find_dataset("ETTh1", "")
    for i in range(25):
        (tmp_path / f"a{i}.csv").touch()
    with pytest.raises(DataError, match="and 7 more"):
        benchmarks.find_dataset("ETTh3", tmp_path)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has 14399 rows, but its name says ETTH.* row 14400"):
        load(tmp_path, 14399, 1, "ETTh1.csv")
    with pytest.raises(DataError, match="has 4 rows, too few to split"):
        load(tmp_path, 4)
    values = counting(10, 2)
    values[3, 1] = np.nan
    values[4, 1] = np.inf
    path = write_csv(tmp_path / "gaps.csv", values)
    with pytest.raises(DataError, match="column 'c1' has 2 missing or infinite values of 10"):
        benchmarks.load_benchmark(path)


def test_windows_that_are_refused(tmp_path):
    benchmark = load(tmp_path)  # 16 rows, then a test split of 4
    assert len(benchmarks.benchmark_windows(benchmark, 16, 4)) == 2
    refused = [
        ((17, 4), "has 16 rows before its test split, fewer than the 17 of context_length"),
        ((16, 5), "has 4 rows in its test split, too few for a horizon of 5 under the complete"),
        ((16, 4, "published"), "must have 5 or more"),
        ((0, 1), "context_length must be at least 1, but is 0"),
        ((1, 0), "horizon must be at least 1, but is 0"),
        ((1, 1, "both"), "protocol is 'both'; it must be one of complete, published"),
        ((1, 1, "complete", 0), "max_windows must be at least 1, but is 0"),
    ]
    for arguments, message in refused:
        with pytest.raises(DataError, match=message):
            benchmarks.benchmark_windows(benchmark, *arguments)
    with pytest.raises(DataError, match="batch_size must be at least 1, but is 0"):
        next(benchmarks.benchmark_windows(benchmark, 1, 1).batches(0))


def test_the_published_table():
    table = benchmarks.published_results
    assert len(table) == 20
    assert all(set(row) == {"base", "large", "ultra"} for row in table.values())
    assert table["ETTh1", 96]["base"] == (0.357, 0.381)
    assert table["ETTh2", 720]["large"] == (0.537, 0.496)
    assert table["ETTm1", 336]["ultra"] == (0.369, 0.395)
    assert table["ETTm2", 192]["ultra"] == (0.235, 0.312)
    assert table["weather", 720]["base"] == (0.418, 0.405)
    # The sums over datasets and horizons, as a check of every number.
    sums = {m: np.sum([row[m] for row in table.values()], axis=0) for m in table["ETTh1", 96]}
    np.testing.assert_allclose(sums["base"], [6.976, 7.625])
    np.testing.assert_allclose(sums["large"], [7.043, 7.607])
    np.testing.assert_allclose(sums["ultra"], [6.734, 7.400])


def test_the_season_of_a_file_without_dates_is_found_in_its_train_split(tmp_path):
    cycle = np.random.default_rng(0).standard_normal((24, 2))
    values = np.tile(cycle, (10, 1))
    assert benchmarks.load_benchmark(write_csv(tmp_path / "a.csv", values, "")).season == 24
    assert benchmarks.load_benchmark(write_csv(tmp_path / "b.csv", values, "1D")).season == 7
    assert load(tmp_path, step="").season == 1
