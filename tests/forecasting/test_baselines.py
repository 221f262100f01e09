"""The baselines by hand, and against published-protocol numbers measured independently."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import shared_folder

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation import benchmarks
from timemoe_jax.forecasting.scoring import baselines
from timemoe_jax.forecasting.scoring.metrics import ErrorSums

DATA = Path(os.environ.get("TIMEMOE_DATA", shared_folder() / "data"))
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


def test_parroting_by_hand():
    # The last two are 1 2. Of 1 3, 3 5, 5 2, 2 2, 2 4 and 4 1 the nearest are 1 3 and 2 2, both one
    # off; the later is 2 2, at a lag of 4, and what followed it to the end is 4 1 1 2.
    context = np.array([[1.0, 3, 5, 2, 2, 4, 1, 1, 2]])
    copied = baselines.context_parroting(context, 6, 2)
    np.testing.assert_array_equal(copied, [[4, 1, 1, 2, 4, 1]])
    # The last three are 1 1 2. 1 3 5, 3 5 2, 5 2 2 and 2 2 4 are 13, 20, 17 and 6 off, in squares.
    copied = baselines.context_parroting(context, 4, 3)
    np.testing.assert_array_equal(copied, [[1, 1, 2, 1]])


@pytest.mark.parametrize(("period", "stretch"), [(7, 7), (7, 3), (7, 10), (5, 12), (1, 4)])
def test_parroting_continues_a_periodic_series(period, stretch):
    rng = np.random.default_rng(period)
    series = np.tile(rng.normal(size=(3, period)), 150 // period + 1)
    copied = baselines.context_parroting(series[:, :60], 90, stretch)
    np.testing.assert_array_equal(copied, series[:, 60:150])


def test_parroting_takes_the_latest_of_equal_matches():
    # 1 2 came twice: before 9, and, later, before 8.
    context = np.array([[1.0, 2, 9, 0, 1, 2, 8, 0, 1, 2]])
    assert baselines.context_parroting(context, 1, 2) == 8


def test_parroting_never_matches_a_stretch_that_overlaps_the_last():
    # On a line the nearest is the one a point earlier; of those apart, the one three earlier.
    context = np.arange(12.0)[None]
    np.testing.assert_array_equal(
        baselines.context_parroting(context, 7, 3), [[9, 10, 11, 9, 10, 11, 9]]
    )


def test_parroting_compares_what_both_have():
    # By the second point alone, 4 7 is nearest to ? 8.
    # By the mean, 1 2 is 2.5 from 0 0, and 2 ? is 4 from it; the sum of 1 2 alone would be larger.
    context = np.array([[3.0, 4, 7, 1, 0, 5, NAN, 8], [1.0, 2, 6, 2, NAN, 9, 0, 0]])
    np.testing.assert_array_equal(
        baselines.context_parroting(context, 3, 2), [[1, 0, 5], [6, 2, 2]]
    )


def test_parroting_fills_what_it_copies_with_the_last_value_before():
    context = np.array([[1.0, 2, NAN, NAN, 5, 1, 2]])
    np.testing.assert_array_equal(
        baselines.context_parroting(context, 7, 2), [[2, 2, 5, 1, 2, 2, 2]]
    )


def test_parroting_without_a_match_is_naive():
    context = np.array(
        [
            [1.0, 2, 3, 4, NAN, NAN],  # the last stretch has no point
            [NAN, NAN, NAN, 2, 5, NAN],  # none has one in common with it
            [NAN, NAN, NAN, NAN, 5, 6],  # there is nothing before it
            [NAN, NAN, NAN, NAN, NAN, NAN],
        ]
    )
    found = baselines.context_parroting(context, 3, 2)
    np.testing.assert_array_equal(found, baselines.naive(context, 3))
    np.testing.assert_array_equal(found[:, 0], [4, 5, 6, NAN])


def _parrot(series, horizon, stretch):
    """The definition, a stretch at a time."""
    length, best, start = len(series), np.inf, None
    for s in range(length - 2 * stretch + 1):
        squares = (series[s : s + stretch] - series[length - stretch :]) ** 2
        known = squares[~np.isnan(squares)]
        if len(known) and known.sum() / len(known) <= best:
            best, start = known.sum() / len(known), s
    filled = list(series)
    for i in range(1, length):
        filled[i] = filled[i - 1] if np.isnan(filled[i]) else filled[i]
    if start is None:
        return [filled[-1]] * horizon
    lag = length - stretch - start
    while len(filled) < length + horizon:
        filled.append(filled[-lag])
    return filled[length:]


@st.composite
def _parroting_cases(draw):
    """Small whole numbers, so that sums are exact and many matches equally near."""
    stretch = draw(st.integers(1, 6))
    length = draw(st.integers(2 * stretch, 30))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = rng.integers(-3, 4, size=(4, length)).astype(float)
    values[rng.random(values.shape) < draw(st.sampled_from([0, 0.1, 0.5, 0.9]))] = NAN
    return values, draw(st.integers(1, 40)), stretch


@given(_parroting_cases())
def test_parroting_is_the_loop_over_stretches(case):
    values, horizon, stretch = case
    expected = [_parrot(series, horizon, stretch) for series in values]
    np.testing.assert_array_equal(baselines.context_parroting(values, horizon, stretch), expected)


@pytest.mark.parametrize("missing", [0, 0.2])
def test_parroting_of_real_numbers_is_the_loop_over_stretches(missing):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(6, 150)).cumsum(axis=1)
    values[rng.random(values.shape) < missing] = NAN
    expected = [_parrot(series, 60, 24) for series in values]
    np.testing.assert_array_equal(baselines.context_parroting(values, 60, 24), expected)


@given(_parroting_cases(), st.integers(-1000, 1000), st.sampled_from([-5, -1, 3, 2.0**-20, 7e4]))
def test_parroting_keeps_shift_and_scale(case, shift, scale):
    """Exactly: the sums are whole numbers times a scale, so that ties stay ties."""
    values, horizon, stretch = case
    found = baselines.context_parroting(shift + scale * values, horizon, stretch)
    expected = shift + scale * baselines.context_parroting(values, horizon, stretch)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_parroting_of_numbers_whose_squares_are_none(scale):
    rng = np.random.default_rng(2)
    values = rng.normal(size=(3, 40))
    found = baselines.context_parroting(scale * values, 20, 5)
    expected = scale * baselines.context_parroting(values, 20, 5)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("missing", [0, 0.3])
def test_parroting_keeps_dtype_and_context(missing):
    rng = np.random.default_rng(3)
    context = (1000 + rng.normal(size=(2, 50))).astype(np.float32)
    context[rng.random(context.shape) < missing] = NAN
    before = context.copy()
    found = baselines.context_parroting(context, 20, 8)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        found, baselines.context_parroting(context.astype(np.float64), 20, 8)
    )
    found[:] = 0
    np.testing.assert_array_equal(context, before)


def test_parroting_that_is_refused():
    context = np.zeros((2, 5))
    with pytest.raises(DataError, match="stretch must be at least 1, but is 0"):
        baselines.context_parroting(context, 1, 0)
    with pytest.raises(
        DataError, match="stretch is 3, but the context has only 5 points; it must have 6"
    ):
        baselines.context_parroting(context, 1, 3)
    with pytest.raises(DataError, match="horizon must be at least 1, but is 0"):
        baselines.context_parroting(context, 0, 1)
    with pytest.raises(DataError, match="context must be"):
        baselines.context_parroting(np.zeros(5), 1, 1)
    assert baselines.context_parroting(context[:, :2], 3, 1).shape == (2, 3)


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
        # A season is all that these forecasts read, and the targets do not depend on the context.
        windows = benchmarks.benchmark_windows(benchmark, benchmark.season, horizon, "published")
        last, seasonal = ErrorSums(), ErrorSums()
        for context, target, *_ in windows.batches(256):
            last.update(baselines.naive(context, horizon), target)
            forecast = baselines.seasonal_naive(context, horizon, benchmark.season)
            seasonal.update(forecast, target)
        found = (last.mse, last.mae, seasonal.mse, seasonal.mae)
        # Equal to the four decimals that are known.
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.5001e-4, err_msg=str(horizon))
