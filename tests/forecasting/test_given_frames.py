"""Data frames as callers give them: names that are no text, indexes, and frames of other kinds."""

import warnings

import numpy as np
import pandas as pd
import pytest
from fake_forecaster import FakeForecaster

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frame_forecast import forecast_frame
from timemoe_jax.forecasting.frames.prepare import prepare_frame

DAYS = pd.date_range("2024-01-01", periods=40)
NOISE = np.random.default_rng(0).normal(size=40)


def frame_of(times=DAYS, **columns):
    return pd.DataFrame({"ds": times, "y": np.arange(len(times), dtype=float), **columns})


def predict(df, horizon=2, **options):
    """A frame as `Forecaster.predict_df` gives it, of known answers."""
    return forecast_frame(FakeForecaster().forecast, prepare_frame(df, horizon, **options)).frame


def test_names_that_are_numbers_are_found_and_come_back():
    df = pd.DataFrame({0: DAYS, 1: "a", 2: np.arange(40.0)})
    out = predict(df, id_column=1, timestamp_column=0, target=2)
    assert list(out.columns) == [1, 0, "target_name", "predictions"]
    assert out["target_name"].tolist() == [2, 2]
    assert out["predictions"].tolist() == [40, 41]
    assert predict(df, id_column=[1], timestamp_column=0, target=[2]).equals(out)
    wide = pd.DataFrame({7: np.arange(40.0), 8: np.ones(40)}, index=DAYS)
    assert predict(wide)["target_name"].tolist() == [7, 7, 8, 8]
    assert predict(wide.rename_axis(5)).columns[0] == 5
    with pytest.raises(DataError, match="more than one column '7'"):
        predict(wide.rename(columns={8: "7"}))


def test_columns_of_several_levels_get_plain_names():
    columns = pd.MultiIndex.from_tuples([("Close", "AAPL"), ("Close", "MSFT")])
    wide = pd.DataFrame(np.ones((40, 2)), index=DAYS.rename("Date"), columns=columns)
    out = predict(wide)
    assert out["target_name"].tolist() == ["Close AAPL"] * 2 + ["Close MSFT"] * 2
    assert set(predict(wide, target=("Close", "MSFT"))["target_name"]) == {"Close MSFT"}
    assert predict(wide.reset_index()).columns[0] == "Date"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"id_column": ["store", "item"]},
            r"must be one column, but is \['store', 'item'\]; join .* "
            r"df\['id'\] = df\['store'\].astype\(str\) \+ '/' \+ df\['item'\].astype\(str\)",
        ),
        ({"timestamp_column": ["ds", "store"]}, "timestamp_column must be one column"),
        ({"id_column": True}, "id_column must be the name of a column, but is True"),
        ({"id_column": 3.5}, "has no column '3.5'"),
        ({"target": {"y": 1}}, "target must be the name of a column"),
        ({"past_covariates": 5}, "'5' cannot be a covariate"),
    ],
)
def test_names_that_are_refused(options, says):
    with pytest.raises(DataError, match=says):
        predict(frame_of(store=1, item=2), **options)


def test_one_name_is_a_list_of_one():
    df = frame_of(temp=NOISE)
    assert predict(df, past_covariates="temp").equals(predict(df, past_covariates=["temp"]))


def test_an_index_without_names_is_used_by_what_it_holds():
    df = frame_of(u="a")
    out = predict(df.set_index(["u", "ds"]).rename_axis([None, None]))
    assert list(out.columns) == ["unique_id", "timestamp", "target_name", "predictions"]
    assert out["unique_id"].tolist() == ["a", "a"]
    assert out["timestamp"].tolist() == [DAYS[-1] + pd.Timedelta(days=i) for i in (1, 2)]
    text = df.assign(ds=DAYS.strftime("%Y-%m-%d"))
    again = predict(text.set_index(["u", "ds"]).rename_axis([None, None]))
    assert again["timestamp"].tolist() == ["2024-02-10", "2024-02-11"]
    alone = predict(text.set_index("ds").rename_axis(None)[["y"]])
    assert alone["timestamp"].tolist() == ["2024-02-10", "2024-02-11"]
    # Numbers that count rows are none of it.
    counted = df.set_index(["u", pd.RangeIndex(40)]).rename_axis(["unique_id", None])
    assert predict(counted)["unique_id"].tolist() == ["a", "a"]
    assert predict(df.drop(columns="u").iloc[::-1])["predictions"].tolist() == [40, 41]


def test_an_index_that_can_be_understood_in_several_ways_is_refused():
    df = frame_of(u="a", v="b")
    with pytest.raises(DataError, match=r"2 could be ids and 1 times; name them, with rename_axis"):
        predict(df.set_index(["u", "v", "ds"]).rename_axis([None, None, None]))
    with pytest.raises(DataError, match="has no name and holds text such as 'a'; name it if"):
        predict(frame_of().set_index(pd.Index(["a"] * 20 + ["b"] * 20)))


def test_ids_of_two_types_that_look_alike_are_refused():
    both = pd.concat([frame_of(id=1), frame_of(id="1")])
    with pytest.raises(DataError, match=r"'id' holds both 1 \(int\) and '1' \(str\); make its ids"):
        predict(both)
    ahead = frame_of(DAYS[-1:] + pd.Timedelta(days=1), id="1", promo=1.0).drop(columns="y")
    past = frame_of(id=1, promo=NOISE)
    with pytest.raises(
        DataError, match=r"future_df: column 'id' holds '1' \(str\), but .* df hold"
    ):
        predict(past, 1, future_df=ahead)
    mixed = pd.concat([frame_of(id=1), frame_of(id="b")])
    assert predict(mixed)["id"].tolist() == [1, 1, "b", "b"]


class DataFrame:
    """Of no library that is known."""


class Table:
    """As those of other libraries are."""

    def to_pandas(self):
        return frame_of()


@pytest.mark.parametrize(
    ("df", "says"),
    [
        (DataFrame(), r"must be a pandas DataFrame, not a \w+.DataFrame; give"),
        (Table(), r"not a \w+.Table; give df.to_pandas\(\)"),
        (pd.Series([1.0]), r"not a pandas.Series; give series.rename\('y'\).to_frame\(\)"),
        ({"y": [1.0]}, "not a dict; give pandas.DataFrame"),
        ([1.0], "must be a pandas DataFrame, not a list"),
        (None, "not a NoneType"),
    ],
)
def test_what_is_no_frame_of_pandas(df, says):
    with pytest.raises(DataError, match=says):
        predict(df)
    with pytest.raises(DataError, match="future_df must be a pandas DataFrame, not a"):
        predict(frame_of(), future_df=[1.0] if df is None else df)


def test_a_number_that_varies_only_in_the_future_is_named():
    past = frame_of(unique_id="a", promo=0.0)
    ahead = pd.DataFrame({"unique_id": "a", "ds": DAYS[-1:] + pd.Timedelta(days=1), "promo": 1.0})
    why = "it is constant in the past but not in the future, so nothing is known of its effect"
    with pytest.warns(UserWarning, match=f"'promo' is not used for 1 of 1 series, since {why}"):
        out = predict(past, 1, future_df=ahead)
    assert out.attrs["ignored_covariates"] == {"promo": {why: ["a y"]}}
    plain = predict(past[["unique_id", "ds", "y"]], 1)
    assert out["predictions"].equals(plain["predictions"])
    with pytest.warns(UserWarning, match="since it is constant: 'a y'"):
        predict(past, 1, future_df=ahead.assign(promo=0.0))


def test_points_without_a_covariate_are_counted():
    df = frame_of(temp=np.where(np.arange(40) < 3, np.nan, NOISE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of the first three rows, and the two before which there is no horizon.
        assert predict(df, past_covariates="temp").attrs["unknown_covariates"] == 5
        assert predict(frame_of()).attrs["unknown_covariates"] == 0
