"""Windows at other sampling rates: what they hold, and which rate a window has."""

from fractions import Fraction

import numpy as np
import pytest

from timemoe_jax.data.config import DataConfig, parse_resolutions
from timemoe_jax.data.pipeline import training_data
from timemoe_jax.data.pipeline.resolutions import ResampledWindows
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import ConfigError, DataError


def windows(series, rates, length=4, stride=None, seed=0):
    source = ArraySource([np.asarray(s, np.float32) for s in series])
    index = WindowIndex(source.lengths, length, stride)
    return ResampledWindows(source, index, parse_resolutions(rates), seed)


def scored(values, of):
    """Z-scored by a whole series."""
    of = np.asarray(of, float)
    return (np.asarray(values) - np.nanmean(of)) / np.nanstd(of)


def test_rates_and_weights():
    assert parse_resolutions(" 1:4, 3 ,1/4:0.5") == {
        Fraction(1): 4.0,
        Fraction(3): 1.0,
        Fraction(1, 4): 0.5,
    }
    assert parse_resolutions("") == {}


@pytest.mark.parametrize(
    "text", ["2/3", "0", "-1", "a", "1/0", "2000", "2:0", "2:x", "2,2", "1:inf"]
)
def test_what_is_no_rate(text):
    with pytest.raises(ConfigError, match="resolutions has"):
        parse_resolutions(text)


def test_means_by_hand():
    series = [3.0, 5, 4, 8, 1, 1, 2, 0, 7, 9]
    item = windows([series], "2")[0]  # 4 inputs and one point more, of 2 points each
    np.testing.assert_allclose(item["values"], scored([4, 6, 1, 1, 8], series), rtol=1e-5)
    assert item["mask"].all()


def test_points_between_by_hand():
    series = [0.0, 4, 2, 2, 6]
    item = windows([series], "1/4")[0]
    np.testing.assert_allclose(
        item["values"], scored([0, 1, 2, 3, 4], series), rtol=1e-5, atol=1e-6
    )


def test_a_window_may_be_shorter_where_few_points_are_enough():
    """Of 12 points, means of 4 are three: enough for `least` 3, not for a whole window of 5."""
    series = np.arange(12.0)
    source = ArraySource([series.astype(np.float32)])
    index = WindowIndex(source.lengths, 4, 4)
    found = {
        least: ResampledWindows(source, index, parse_resolutions("4"), 0, least)[0]["mask"].sum()
        for least in (0, 3, 4)
    }
    assert found == {0: 5, 3: 3, 4: 5}


def test_rate_one_is_the_usual_window():
    series = [np.random.default_rng(0).normal(size=n) for n in (40, 3, 17)]
    resampled = windows(series, "1", stride=2)
    usual = WindowSource(resampled.source, resampled.index)
    numbers = np.arange(-1, len(usual))
    for name, array in usual.batch(numbers).items():
        np.testing.assert_array_equal(resampled.batch(numbers)[name], array)


def test_missing_points():
    series = [1.0, np.nan, np.nan, np.nan, 2, 4, 6, 8, 3, 5]
    coarse = windows([series], "2")[0]
    assert coarse["mask"].tolist() == [True, False, True, True, True]
    np.testing.assert_allclose(
        coarse["values"], [scored(1, series), 0, *scored([3, 7, 4], series)], rtol=1e-5
    )
    fine = windows([series], "1/2", stride=1)
    assert fine[0]["mask"].tolist() == [True, False, False, False, False]
    assert fine[3]["mask"].tolist() == [False, False, True, True, True]
    assert fine[0]["values"][1:].tolist() == [0, 0, 0, 0]


def test_beyond_the_end_the_largest_rate_that_fits_is_taken():
    # A window is of 5 points: 20 for 4, 15 for 3.
    for points, step in ((20, 4), (19, 3), (14, 1), (5, 1)):
        series = np.arange(points, dtype=float)
        item = windows([series], "4,3:0.001" if step > 1 else "4")[0]
        steps = np.diff(item["values"]) * np.std(series)
        if points == 19:
            assert step == 3
        np.testing.assert_allclose(steps, step, rtol=1e-4)
        assert item["mask"].all()


def test_a_short_series_is_padded_as_ever():
    for rates in ("4", "1/2", "1"):
        item = windows([[1.0, 2.0]], rates)[0]
        known = 3 if rates == "1/2" else 2
        assert item["mask"].tolist() == [True] * known + [False] * (5 - known)


def test_a_day_of_hours_becomes_one_of_quarters():
    hours = np.sin(2 * np.pi * np.arange(2000) / 24)
    for rate, period in (("1/4", 96), ("1", 24), ("2", 12)):
        values = windows([hours], rate, length=479)[0]["values"]
        spectrum = np.abs(np.fft.rfft(values))
        assert len(values) / np.argmax(spectrum) == period


def test_rates_follow_their_weights_and_the_seed():
    series = [np.arange(60_000, dtype=float)]
    made = windows(series, "1:3,2", stride=10)
    numbers = np.arange(4000)

    def doubled(windows):
        values = windows.batch(numbers)["values"]
        steps = (values[:, 1] - values[:, 0]) * np.std(series[0])
        np.testing.assert_allclose(np.minimum(abs(steps - 1), abs(steps - 2)), 0, atol=1e-2)
        return steps > 1.5

    first = doubled(made)
    assert abs(first.mean() - 0.25) < 0.03
    np.testing.assert_array_equal(doubled(windows(series, "1:3,2", stride=10)), first)
    assert 0.3 < np.mean(doubled(windows(series, "1:3,2", stride=10, seed=1)) == first) < 0.9
    # Whatever they are read with.
    np.testing.assert_array_equal(made[17]["values"], made.batch(np.array([900, 17]))["values"][1])


def test_a_run_trains_on_them_and_validates_on_the_series_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(3, 500)).astype(np.float32))
    config = DataConfig(
        path=str(tmp_path),
        length=16,
        validation_fraction=0.5,
        resolutions="1,2,1/2",
    )
    data = training_data.open_training_data(config, seed=0, num_steps=1, batch_size=4)
    assert isinstance(data.train, ResampledWindows)
    assert isinstance(data.validation, WindowSource)


def test_what_does_not_go_with_packing():
    with pytest.raises(ConfigError, match="resolutions"):
        DataConfig(path="x", policy="packing", resolutions="2")
    with pytest.raises(ConfigError, match="resolutions has '2/3'"):
        DataConfig(path="x", resolutions="2/3")
    with pytest.raises(ConfigError, match="path"):
        DataConfig(synthetic_share=1.0, resolutions="2")


def test_an_index_of_other_series_is_refused():
    source = ArraySource([np.zeros(9, np.float32)])
    index = WindowIndex(np.array([9, 9]), 4)
    with pytest.raises(DataError, match="index was made for"):
        ResampledWindows(source, index, {Fraction(1): 1.0}, 0)
    with pytest.raises(DataError, match="at least one rate"):
        ResampledWindows(source, WindowIndex(source.lengths, 4), {}, 0)
