"""Drift, window averages, the linear forecast, and quantiles from earlier errors."""

import numpy as np
import pytest

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.scoring.baselines import (
    context_parroting,
    drift,
    naive,
    window_average,
)
from timemoe_jax.forecasting.scoring.linear import default_lags, linear
from timemoe_jax.forecasting.scoring.spreads import (
    context_parroting_quantiles,
    drift_quantiles,
    naive_quantiles,
    quantiles_by_step,
    sorted_quantiles,
    window_average_quantiles,
)

NAN = np.nan
DECILES = np.arange(1, 10) / 10


def test_drift_goes_on_along_the_line():
    context = np.array([[1.0, 5.0, 2.0, 4.0], [NAN, 1.0, NAN, 3.0], [0.0, 2.0, NAN, NAN]])
    expected = [[5, 6], [4, 5], [8, 10]]  # the last one has passed two steps already
    np.testing.assert_allclose(drift(context, 2), expected)
    np.testing.assert_array_equal(drift(np.array([[7.0, NAN]]), 2), [[7, 7]])
    assert np.isnan(drift(np.full((1, 3), NAN), 2)).all()


def test_a_window_average_is_that_of_what_was_observed():
    context = np.array([[9.0, 1.0, NAN, 3.0], [5.0, NAN, NAN, NAN]])
    np.testing.assert_array_equal(window_average(context, 2, 3), [[2, 2], [5, 5]])
    with pytest.raises(DataError, match="window must be from 1 to the context's 4 points"):
        window_average(context, 2, 5)


def test_quantiles_of_few_values_reach_their_ends():
    samples = np.array([[3.0, 1.0], [1.0, NAN], [2.0, NAN], [NAN, NAN]])
    found = sorted_quantiles(samples, np.array([0.1, 0.5, 0.625, 0.9]))
    # 0.625 (3 + 1) = 2.5: between the second and the third.
    np.testing.assert_allclose(found, [[1, 2, 2.5, 3], [1, 1, 1, 1]])
    assert np.isnan(sorted_quantiles(np.full((2, 1), NAN), DECILES)).all()
    assert np.isnan(sorted_quantiles(np.empty((0, 1)), DECILES)).all()


def test_a_step_with_few_errors_takes_those_before_it():
    errors = np.random.default_rng(0).standard_normal((30, 4))
    errors[5:, 2:] = NAN
    found = quantiles_by_step(errors, DECILES)
    np.testing.assert_allclose(found[3], found[1] * np.sqrt(4 / 2))
    few = np.array([[1.0, NAN], [-1.0, NAN]])
    np.testing.assert_allclose(
        quantiles_by_step(few, np.array([0.1, 0.9])), np.outer([1, np.sqrt(2)], [-1, 1])
    )


def test_quantiles_of_a_random_walk_cover_what_comes():
    walks = np.random.default_rng(1).standard_normal((400, 220)).cumsum(axis=1)
    context, future = walks[:, :200], walks[:, 200:]
    for function in (naive_quantiles, drift_quantiles):
        q = function(context, 20, [0.1, 0.9])
        within = (q[..., 0] <= future) & (future <= q[..., 1])
        assert 0.76 < within.mean() < 0.84, function.__name__
    np.testing.assert_allclose(
        np.diff(naive_quantiles(context, 4, [0.1, 0.9]))[:, 3, 0],
        2 * np.diff(naive_quantiles(context, 4, [0.1, 0.9]))[:, 0, 0],
    )


@pytest.mark.parametrize(
    "function", [window_average_quantiles, context_parroting_quantiles], ids=["average", "parrot"]
)
def test_quantiles_of_noise_about_a_wave_cover_what_comes(function):
    rng = np.random.default_rng(2)
    wave = np.sin(np.arange(320) * np.pi / 6) * (function is context_parroting_quantiles)
    series = wave + 0.3 * rng.standard_normal((60, 320))
    q = function(series[:, :300], 20, 12, [0.1, 0.9])
    within = (q[..., 0] <= series[:, 300:]) & (series[:, 300:] <= q[..., 1])
    assert 0.75 < within.mean() < 0.86


def test_earlier_forecasts_of_parroting_are_those_it_would_have_made():
    """The errors behind the quantiles are of `context_parroting` itself."""
    from timemoe_jax.forecasting.scoring.spreads import _parroted

    values = np.random.default_rng(3).standard_normal(60)
    origins = np.array([12, 30, 59])
    found = _parroted(values, origins, 7, 5)
    expected = [context_parroting(values[None, :t], 7, 5)[0] for t in origins]
    np.testing.assert_array_equal(found, expected)


def test_the_linear_forecast_finds_a_recurrence():
    """Two waves satisfy a linear recurrence, which hardly any penalty recovers."""
    t = np.arange(400)
    series = 5 + np.sin(2 * np.pi * t / 24) + 0.5 * np.cos(2 * np.pi * t / 7)
    found = linear(series[:360], 40, 48, DECILES)
    assert np.abs(found.point - series[360:]).max() < 0.01
    assert np.ptp(found.quantiles, axis=1).max() < 0.05
    # In any units, and with a gap.
    scaled = linear(1e200 * series[:360], 40, 48, DECILES)
    np.testing.assert_allclose(scaled.point, 1e200 * found.point, rtol=1e-6)
    gap = series[:360].copy()
    gap[100] = NAN
    assert np.abs(linear(gap, 40, 48, DECILES).point - series[360:]).max() < 0.1


def test_the_linear_forecast_of_noise_is_shrunk_to_its_mean():
    noise = np.random.default_rng(4).standard_normal((40, 330))
    fits = [linear(row[:310], 20, 32, [0.1, 0.9]) for row in noise]
    errors = np.mean([(fit.point - row[310:]) ** 2 for fit, row in zip(fits, noise, strict=True)])
    assert errors < 1.3  # repeating the last value has 2
    q, later = np.stack([fit.quantiles for fit in fits]), noise[:, 310:]
    assert 0.74 < ((q[..., 0] <= later) & (later <= q[..., 1])).mean() < 0.86


def test_left_out_errors_are_those_of_fits_without_the_row():
    from timemoe_jax.forecasting.scoring.linear import _Ridge

    rng = np.random.default_rng(5)
    inputs, targets = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    fit = _Ridge(inputs, targets)
    others = np.arange(20) != 7
    x, y = inputs[others], targets[others]
    # The same penalty; the intercept is not shrunk.
    mean = x.mean(axis=0)
    gram = (x - mean).T @ (x - mean) + fit.penalty * np.eye(3)
    weights = np.linalg.solve(gram, (x - mean).T @ (y - y.mean(axis=0)))
    left_out = targets[7] - y.mean(axis=0) - (inputs[7] - mean) @ weights
    np.testing.assert_allclose(fit.errors()[7], left_out)


def test_the_linear_forecast_says_what_it_needs():
    assert default_lags(24, 1000, 48) == 48
    assert default_lags(1, 60, 20) == 21
    assert default_lags(24, 30, 24) < 2
    with pytest.raises(DataError, match="lags is 20, but must be at least 2 and leave 10 rows"):
        linear(np.arange(40.0), 15, 20, DECILES)
    with pytest.raises(DataError, match="no observed value"):
        linear(np.full(80, NAN), 15, 20, DECILES)
    constant = linear(np.full(80, 3.0), 15, 20, DECILES)
    np.testing.assert_allclose(constant.point, naive(np.full((1, 80), 3.0), 15)[0])
