"""What `forecast` takes, and what it says of arguments of the wrong kind or name."""

import warnings

import numpy as np
import pandas as pd
import pytest

from timemoe_jax import DataError, Forecaster
from timemoe_jax.forecasting.arguments import for_users
from timemoe_jax.forecasting.contexts import Batch, Context, Inputs

WAVE = 10 + 3 * np.sin(np.arange(60) / 2)
DAYS = pd.date_range("2024-01-01", periods=60)


def series_of(inputs):
    """The only series of an input."""
    (series,) = Inputs.parse(inputs).series
    return series


def test_masked_values_are_missing():
    hole = np.arange(60) % 10 == 3
    expected = np.where(hole, np.nan, WAVE)
    masked = np.ma.array(np.where(hole, -9999, WAVE), mask=hole)
    whole = np.ma.array(np.where(hole, -9999, np.arange(60)), mask=hole)
    np.testing.assert_array_equal(series_of(masked), expected)
    np.testing.assert_array_equal(series_of([masked]), expected)
    np.testing.assert_array_equal(Inputs.parse(masked[None, None]).series[0], expected)
    np.testing.assert_array_equal(series_of(whole), np.where(hole, np.nan, np.arange(60)))
    np.testing.assert_array_equal(series_of(np.ma.array(WAVE)), WAVE)
    assert masked.data[3] == -9999


@pytest.mark.parametrize("dtype", ["Int64", "Float32", "float64", "object"])
def test_missing_values_of_pandas(dtype):
    expected = [1, np.nan, 3]
    np.testing.assert_array_equal(series_of(pd.Series([1, None, 3], dtype=dtype)), expected)
    np.testing.assert_array_equal(series_of(pd.array([1, None, 3], dtype=dtype)), expected)


def test_a_series_comes_in_the_order_of_its_times():
    for index in (DAYS, DAYS.to_period("D"), DAYS.tz_localize("UTC"), pd.Index(DAYS.date)):
        series = pd.Series(WAVE, index=index)
        np.testing.assert_array_equal(series_of(series[::-1]), WAVE)
        np.testing.assert_array_equal(series_of([series.sample(frac=1)]), WAVE)
    # Other indexes say nothing of an order.
    np.testing.assert_array_equal(series_of(pd.Series(WAVE)[::-1]), WAVE[::-1])


class DataArray:
    """As a labeled array of xarray is."""

    def __init__(self, values, dims):
        self.values, self.dims, self.shape = values, dims, values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values


class DataFrame:
    """As a frame of another library is."""

    columns = ("a", "b")
    shape = (60, 2)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (pd.DataFrame({"a": WAVE, "b": WAVE}, index=DAYS), r"use predict_df\(.*df.values.T if"),
        ([pd.DataFrame({"a": WAVE})], "use predict_df"),
        (DataFrame(), r"a \w+.DataFrame; convert it to pandas and use predict_df\("),
        (DataArray(np.ones((60, 2)), ("time", "x")), "with the dimensions time, x; time must be"),
        ({"a": WAVE}, r"a dict; give list\(inputs.values\(\)\), and the keys as names="),
    ],
)
def test_tables_are_refused(inputs, says):
    with pytest.raises(DataError, match=says):
        Inputs.parse(inputs)


def test_labeled_arrays_whose_last_dimension_is_time():
    np.testing.assert_array_equal(series_of(DataArray(WAVE[None], ("x", "time"))), WAVE)
    np.testing.assert_array_equal(series_of(DataArray(WAVE, ("date",))), WAVE)


def test_an_array_that_is_upright_is_noted():
    with pytest.warns(UserWarning, match=r"\[500, 2\] are 500 series of 2 points .* inputs.T"):
        Inputs.parse(np.ones((500, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Inputs.parse(np.ones((500, 24)))
        Inputs.parse(np.ones((3, 2)))
        Inputs.parse(np.ones((500, 2)), [str(i) for i in range(500)])


def test_a_history_shorter_than_the_horizon_is_noted_once():
    inputs = Inputs.parse([WAVE, WAVE[:20], WAVE[:10]], ["a", "b", "c"])
    says = "2 of 3 series have fewer observed points than the horizon of 48, such as b with 20"
    with pytest.warns(UserWarning, match=says) as caught:
        inputs.warn_if_short(48)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs.warn_if_short(10)


@pytest.mark.parametrize("unit", [5e-324, 1e307])
def test_numbers_at_the_ends_of_floats_whatever_the_caller_has_set(unit):
    @for_users
    def there_and_back(series):
        batch = Batch.of([Context.of(series, 59, "a")], 64, 1, "instance")
        return batch.in_units(np.zeros((1, 2), np.float32))

    series = np.arange(1.0, 10) * unit
    with np.errstate(all="raise"):
        assert np.isfinite(there_and_back(series)).all()


# Arguments. Nothing is computed, so that no forecaster is needed.


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Forecaster.sample(None, WAVE, 2, seed=None), "seed must be an integer of at"),
        (lambda: Forecaster.sample(None, WAVE, 2, seed=-1), "seed must be an integer of at"),
        (lambda: Forecaster.sample(None, WAVE, 2, num_samples=3.0), "num_samples must be an int"),
        (lambda: Forecaster.sample(None, WAVE, 2, num_samples=0), "num_samples must be an int"),
        (lambda: Forecaster.backtest(None, WAVE, 2, folds=2.0), "folds must be an integer"),
        (lambda: Forecaster.backtest(None, WAVE, 2, season="a"), "season must be an integer"),
        (lambda: Inputs.parse(WAVE, 5), "names must be a list with a name for each series"),
        (lambda: Inputs.parse([WAVE, WAVE], "ab"), "names has 1 entries for 2 series"),
    ],
)
def test_arguments_of_the_wrong_kind(call, says):
    with pytest.raises(DataError, match=says):
        call()


@pytest.mark.parametrize(
    ("method", "name", "says"),
    [
        *(("predict_df", name, "use horizon=") for name in ("prediction_length", "h", "fh")),
        ("forecast", "steps", "use horizon="),
        (
            "forecast",
            "levels",
            r"use quantile_levels=, such as \[0.1, 0.9\] for an interval of 80%",
        ),
        ("predict_df", "level", "use quantile_levels="),
        ("predict_df", "quantiles", "use quantile_levels="),
        ("forecast", "num_samples", r"use sample\(num_samples=...\)"),
        ("sample", "n_samples", "use num_samples="),
        ("predict_df", "id_col", "use id_column="),
        ("predict_df", "X_df", "use future_df="),
        ("plot", "h", "use horizon="),
        ("backtest", "n_windows", "use folds="),
        ("forecast", "context", "use inputs="),
        ("predict_df", "context_len", "use context_length="),
        ("predict_df", "dayfirst", "use date_format="),
        ("forecast", "horizn", "did you mean 'horizon'"),
        ("predict_df", "foo", "it has batch_size, calibration, .* timestamp_column"),
    ],
)
def test_names_of_other_libraries(method, name, says):
    """As a TypeError too, which Python raises for any argument that is not known."""
    for kind in (DataError, TypeError):
        with pytest.raises(kind, match=rf"^{method}\(\) has no argument '{name}'; {says}"):
            getattr(Forecaster, method)(None, **{name: 3})
