"""Backtests by hand, the season that is found, and what is said of a model that loses."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.seasons import season_of_values
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.scoring.backtest import backtest
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive

NAN = np.nan


def zero(contexts, horizon):
    return np.zeros((len(contexts), horizon))


def last_value(contexts, horizon):
    return np.array([[c.values[-1]] * horizon for c in contexts])


def test_two_folds_by_hand():
    series = [np.array([1.0, 3.0, 2.0, 5.0, 4.0, 0.0, 2.0, 1.0])]
    found = backtest(series, 2, 2, zero, 3, season=2, names=["load"])
    np.testing.assert_array_equal(found.origins, [[4, 6]])
    np.testing.assert_array_equal(found.forecasts, np.zeros((1, 2, 2)))
    one = found.series[0]
    # Model errors 4, 0, 2, 1; seasonal naive 4-2, 0-5, 2-4, 1-0. Changes before: 2-1, 5-3.
    assert (one.model.mae, one.seasonal_naive.mae) == (7 / 4, 10 / 4)
    assert one.model.rmse == pytest.approx(math.sqrt(21 / 4))
    assert one.seasonal_naive.rmse == pytest.approx(math.sqrt(34 / 4))
    assert (one.model.mase, one.seasonal_naive.mase) == (7 / 4 / 1.5, 10 / 4 / 1.5)
    assert (one.name, one.season, one.season_found) == ("load", 2, False)
    assert (one.points, one.missing, one.loses) == (4, 0, False)
    assert "loses to seasonal naive on no series" in found.summary()


def test_the_model_sees_what_is_before_each_fold():
    seen = []

    def predict(contexts, horizon):
        seen.extend(contexts)
        return zero(contexts, horizon)

    backtest([np.arange(10.0), np.arange(7.0)], 2, 2, predict, 4, season=1)
    expected = [[2, 3, 4, 5], [4, 5, 6, 7], [0, 1, 2], [1, 2, 3, 4]]
    assert [list(context.values) for context in seen] == expected
    assert not any(context.gap for context in seen)


def test_a_model_that_is_seasonal_naive_scores_as_it_does():
    rng = np.random.default_rng(0)
    season = 7

    def predict(contexts, horizon):
        points = [np.append(c.values, [NAN] * c.gap) for c in contexts]
        return np.concatenate([seasonal_naive(p[None], horizon, season) for p in points])

    series = [rng.standard_normal(100), np.where(rng.random(120) < 0.2, NAN, 1.0)]
    for one in backtest(series, 9, 3, predict, 1000, season).series:
        assert one.model == one.seasonal_naive or math.isnan(one.model.mase)
        assert not one.loses


def test_losing_is_said_by_name():
    # A season of 12 that repeats; the last value is no match for that.
    wave = np.tile(np.array([0.0, 5, 2, 8, 1, 9, 3, 7, 2, 6, 4, 1]), 10)
    noise = np.random.default_rng(0).standard_normal(120)
    # Seasonal naive repeats the noise of a season ago, so zero is better.
    found = backtest([wave, noise], 12, 2, zero, 48, names=["wave", "noise"])
    assert [each.loses for each in found.series] == [True, False]
    assert [each.name for each in found.losing] == ["wave"]
    last = found.summary().splitlines()[-1]
    assert last.startswith(
        "the model LOSES to seasonal naive on 1 of 2 series: wave (MAE 4 against"
    )
    assert "season 12 found" in last
    assert found.series[0].season_found
    assert "without 1 series that has none" in found.summary()  # the wave repeats exactly


def test_as_dict_is_json():
    found = backtest([np.tile([0.0, 1.0], 20)], 2, 2, zero, 8, season=2, names=["a"])
    row = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (row["horizon"], row["folds"]) == (2, 2)
    assert row["series"][0]["name"] == "a"
    assert row["series"][0]["model"]["mase"] is None  # no scale: it repeats exactly
    assert row["series"][0]["model"]["mae"] == 0.5
    assert row["series"][0]["loses"] is True


@given(st.permutations(range(3)), st.integers(-6, 6))
def test_series_are_scored_apart_and_in_their_units(order, power):
    rng = np.random.default_rng(3)
    series = [rng.integers(-64, 65, 60 + i) / 64.0 for i in range(3)]
    series[1][50] = NAN
    one = backtest(series, 5, 3, last_value, 20).series
    scaled = [series[i] * 2.0**power for i in order]
    other = backtest(scaled, 5, 3, last_value, 20, names=[f"series {i}" for i in order]).series
    for i, found in zip(order, other, strict=True):
        assert found.season == one[i].season
        assert found.model.mae == one[i].model.mae * 2.0**power
        assert found.model.rmse == pytest.approx(one[i].model.rmse * 2.0**power, rel=1e-15)
        assert found.model.mase == one[i].model.mase
        assert (found.loses, found.points) == (one[i].loses, one[i].points)


def test_missing_points_are_counted_and_not_scored():
    series = np.array([1.0, NAN, 3.0, 4.0, NAN, 6.0, 7.0, NAN])
    before = series.copy()
    found = backtest([series], 2, 2, zero, 8, season=1)
    one = found.series[0]
    assert (one.points, one.missing) == (2, 2)
    assert one.model.mae == 6.5
    assert one.seasonal_naive.mae == (2 + 1) / 2  # 6 - 4, 7 - 6
    assert "2 missing points not scored" in found.summary()
    np.testing.assert_array_equal(series, before)


def test_a_fold_without_anything_to_forecast_from_is_not_scored():
    series = np.array([1.0, 2.0, 3.0, 4.0, NAN, NAN, 5.0, 6.0])
    found = backtest([series], 2, 3, zero, 2, season=1)
    assert np.isnan(found.forecasts[0, 2]).all()
    one = found.series[0]
    assert (one.points, one.missing) == (2, 4)
    assert (one.model.mae, one.seasonal_naive.mae) == (3.5, 1.5)


def test_what_comes_after_the_folds_begin_has_no_say():
    rng = np.random.default_rng(0)
    series = rng.standard_normal(300)
    cyclic = np.concatenate([series[:200], np.tile(rng.standard_normal(10), 10)])
    for one in backtest([series, cyclic], 50, 2, zero, 50).series:
        assert one.season == season_of_values(series[:200])


def test_the_shortest_series():
    found = backtest([np.arange(10.0)], 3, 2, zero, 5, season=4)
    assert found.origins.tolist() == [[4, 7]]
    with pytest.raises(DataError) as info:
        backtest([np.arange(10.0), np.arange(9.0)], 3, 2, zero, 5, season=4, names=["a", "b"])
    assert "b has 9 points, too few for 2 folds of 3 steps: it needs at least 10" in str(info.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, but is 0"),
        ({"folds": 0}, "folds must be at least 1, but is 0"),
        ({"context_length": 0}, "context_length must be at least 1, but is 0"),
        ({"season": 0}, "season must be at least 1, but is 0"),
        ({"names": ["a", "b"]}, "names has 2 entries, but there are 1 series"),
        ({"series": [np.append(np.arange(20.0), [NAN] * 6)]}, "no observed value to score"),
        ({"series": [np.append([NAN] * 20, np.arange(6.0))]}, "among the 20 points before"),
        ({"predict": lambda c, h: np.zeros(h)}, r"returned the shape \(3,\)"),
    ],
)
def test_what_is_refused(change, message):
    given = {
        "series": [np.arange(26.0)],
        "horizon": 3,
        "folds": 2,
        "predict": zero,
        "context_length": 8,
    } | change
    with pytest.raises(DataError, match=message):
        backtest(**given)
