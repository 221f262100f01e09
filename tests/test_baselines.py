"""The baselines by hand, and against published-protocol numbers measured independently."""

import os
from pathlib import Path

import numpy as np
import pytest

from timemoe_jax import baselines
from timemoe_jax.data import benchmarks
from timemoe_jax.errors import DataError
from timemoe_jax.metrics import ErrorSums

DATA = Path(
    os.environ.get("TIMEMOE_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data")
)
NAN = np.nan


def test_naive_repeats_the_last_value():
    context = np.array([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]])
    np.testing.assert_array_equal(baselines.naive(context, 2), [[3, 3], [4, 4]])


def test_naive_takes_the_last_observed_value():
    context = np.array([[1.0, 2.0, NAN], [6.0, NAN, NAN], [NAN, NAN, 4.0], [NAN, NAN, NAN]])
    np.testing.assert_array_equal(baselines.naive(context, 1), [[2], [6], [4], [NAN]])


def test_seasonal_naive_repeats_the_last_full_season():
    context = np.array([[9.0, 1.0, 2.0, 3.0], [9.0, 6.0, 5.0, 4.0]])
    expected = [[1, 2, 3, 1, 2], [6, 5, 4, 6, 5]]
    np.testing.assert_array_equal(baselines.seasonal_naive(context, 5, 3), expected)
    np.testing.assert_array_equal(baselines.seasonal_naive(context, 2, 3), [[1, 2], [6, 5]])
    np.testing.assert_array_equal(
        baselines.seasonal_naive(context, 5, 4), np.take(context, [0, 1, 2, 3, 0], axis=1)
    )


def test_seasonal_naive_of_season_one_is_naive():
    context = np.array([[1.0, 2.0, NAN], [5.0, 7.0, 8.0]])
    np.testing.assert_array_equal(
        baselines.seasonal_naive(context, 4, 1), baselines.naive(context, 4)
    )


def test_seasonal_naive_fills_a_gap_from_earlier_seasons():
    # Seasons of two, counted from the end; the leading 0 is no full season.
    context = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, NAN], [0.0, NAN, 2.0, NAN, 4.0, NAN, 6.0]])
    np.testing.assert_array_equal(
        baselines.seasonal_naive(context, 3, 2), [[5, 4, 5], [NAN, 6, NAN]]
    )


def test_dtype_is_kept_and_the_context_too():
    context = np.array([[1.0, NAN, 3.0, NAN]], np.float32)
    before = context.copy()
    for forecast in (baselines.naive(context, 3), baselines.seasonal_naive(context, 3, 2)):
        assert forecast.dtype == np.float32
        assert forecast.shape == (1, 3)
        forecast[:] = 0
    np.testing.assert_array_equal(context, before)


def test_seasonal_naive_quantiles_by_hand():
    # Changes over a season of two: 1, 2, 3, 4, 5; of the second row, -1 and 0 only.
    context = np.array([[0.0, 0.0, 1.0, 2.0, 4.0, 6.0, 9.0], [1.0, 1.0, 0.0, 1.0, NAN, NAN, 5.0]])
    found = baselines.seasonal_naive_quantiles(context, 5, 2, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(found[0, :2], [[8, 9, 10], [11, 12, 13]], rtol=1e-15)
    root = np.sqrt(2)
    np.testing.assert_allclose(
        found[0, 2:4], [np.add(6, root * np.array([2, 3, 4])), 9 + root * np.array([2, 3, 4])]
    )
    np.testing.assert_allclose(found[0, 4], 6 + np.sqrt(3) * np.array([2, 3, 4]))
    np.testing.assert_allclose(found[1, 0], [1 - 0.75, 1 - 0.5, 1 - 0.25])
    np.testing.assert_allclose(found[1, 1], [5 - 0.75, 5 - 0.5, 5 - 0.25])


def test_seasonal_naive_quantiles_of_a_seasonal_random_walk_hold_what_they_say():
    """Shares are the levels one season ahead, whatever the changes' shape, and near them later."""
    rng = np.random.default_rng(0)
    count, season, past = 2000, 3, 200
    walks = rng.laplace(size=(count, past + 4, season)).cumsum(axis=1).reshape(count, -1)
    context, future = walks[:, : past * season], walks[:, past * season :]
    found = baselines.seasonal_naive_quantiles(context, 12, season, [0.1, 0.5, 0.9])
    below = (future[..., None] <= found).mean(axis=0)
    # One season ahead a change is Laplace's, and its quantile that of its distribution. A sum of k,
    # over the root of k, is nearer to a normal one: it stays below the Laplace quantile of 0.9 with
    # these probabilities, by integrating its characteristic function (1 + t ** 2 / k) ** -k.
    upper = np.repeat([0.9, 0.89023, 0.88568, 0.88299], season)
    expected = np.stack([1 - upper, np.full(12, 0.5), upper], axis=1)
    # Five deviations of a share of 2000; each quantile, from 597 changes, is off by far less.
    bound = 5 * np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(below - expected) < bound).all()
    assert (np.diff(found, axis=-1) >= 0).all()


def test_seasonal_naive_quantiles_that_are_not_known():
    context = np.array([[1.0, NAN, NAN, 4.0], [NAN, NAN, NAN, NAN], [1.0, 1.0, 1.0, 1.0]])
    found = baselines.seasonal_naive_quantiles(context, 2, 1, [0.1, 0.9])
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2], 1)
    with pytest.raises(DataError, match="season is 4, but the context has only 4 points"):
        baselines.seasonal_naive_quantiles(context, 2, 4, [0.1, 0.9])
    with pytest.raises(DataError, match="must rise"):
        baselines.seasonal_naive_quantiles(context, 2, 1, [0.9, 0.1])


def test_what_is_refused():
    context = np.zeros((2, 3))
    with pytest.raises(DataError, match="horizon must be at least 1, but is 0"):
        baselines.naive(context, 0)
    with pytest.raises(DataError, match="horizon must be at least 1, but is -1"):
        baselines.seasonal_naive(context, -1, 1)
    with pytest.raises(DataError, match="season must be at least 1, but is 0"):
        baselines.seasonal_naive(context, 1, 0)
    with pytest.raises(DataError, match="season is 4, but the context has only 3 points"):
        baselines.seasonal_naive(context, 1, 4)
    for empty in (np.zeros((2, 0)), np.zeros(3)):
        with pytest.raises(DataError, match="context must be"):
            baselines.naive(empty, 1)


# (naive MSE, MAE, seasonal naive MSE, MAE) at 96, 192, 336 and 720, under the published protocol.
MEASURED = {
    "ETTh1": (
        (1.2946, 0.7133, 0.5123, 0.4333),
        (1.3251, 0.7332, 0.5806, 0.4691),
        (1.3297, 0.7459, 0.6499, 0.5007),
        (1.3352, 0.7551, 0.6554, 0.5141),
    ),
    "ETTh2": (
        (0.4318, 0.4217, 0.3906, 0.3803),
        (0.5336, 0.4725, 0.4817, 0.4285),
        (0.5969, 0.5107, 0.5320, 0.4654),
        (0.5939, 0.5188, 0.5251, 0.4738),
    ),
    "ETTm1": (
        (1.2140, 0.6648, 0.4227, 0.3866),
        (1.2613, 0.6904, 0.4632, 0.4057),
        (1.2861, 0.7072, 0.4961, 0.4258),
        (1.3219, 0.7294, 0.5739, 0.4645),
    ),
    "ETTm2": (
        (0.2665, 0.3278, 0.2632, 0.3006),
        (0.3400, 0.3707, 0.3206, 0.3366),
        (0.4121, 0.4099, 0.3764, 0.3700),
        (0.5216, 0.4656, 0.4708, 0.4215),
    ),
    "weather": (
        (0.2591, 0.2542, 0.3167, 0.2880),
        (0.3092, 0.2918, 0.3426, 0.3049),
        (0.3764, 0.3377, 0.3827, 0.3309),
        (0.4652, 0.3935, 0.4431, 0.3701),
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_benchmarks_under_the_published_protocol(name):
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent; TIMEMOE_DATA names another folder")
    benchmark = benchmarks.load_benchmark(benchmarks.find_dataset(name, DATA))
    for horizon, expected in zip((96, 192, 336, 720), MEASURED[name], strict=True):
        context_length = benchmarks.default_context(horizon)
        windows = benchmarks.benchmark_windows(benchmark, context_length, horizon, "published")
        last, seasonal = ErrorSums(), ErrorSums()
        for context, target, *_ in windows.batches(256):
            last.update(baselines.naive(context, horizon), target)
            forecast = baselines.seasonal_naive(context, horizon, benchmark.season)
            seasonal.update(forecast, target)
        found = (last.mse, last.mae, seasonal.mse, seasonal.mae)
        # Equal to the four decimals that are known.
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.5001e-4, err_msg=str(horizon))
