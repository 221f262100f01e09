import json
import math

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.series import check_levels
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.scoring.metrics import (
    ErrorSums,
    coverage,
    mase,
    mean_width,
    pinball_loss,
    seasonal_scale,
    without_nan,
)

NAN = np.nan


def test_means_over_batches_of_different_sizes():
    sums = ErrorSums()
    sums.update(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]))
    sums.update(np.array([[3.0], [3.0]]), np.array([[3.0], [-1.0]]))
    # Errors 1, -2, 0, 4.
    assert sums.count == 4
    assert sums.mse == (1 + 4 + 0 + 16) / 4
    assert sums.mae == (1 + 2 + 0 + 4) / 4


def test_nothing_yet():
    assert math.isnan(ErrorSums().mse)
    assert math.isnan(ErrorSums().mae)


def test_float32_errors_are_taken_and_summed_in_float64():
    forecast = np.full((1, 1), np.float32(16777216.0))
    sums = ErrorSums()
    sums.update(forecast, np.full((1, 1), np.float32(0.25)))
    assert sums.mae == 16777215.75  # float32 has no such number
    many = ErrorSums()
    for _ in range(3):
        many.update(np.full((1000, 100), np.float32(0.1)), np.zeros((1000, 100), np.float32))
    assert many.mae == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_inputs_stay_as_they_are():
    forecast, target = np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]])
    ErrorSums().update(forecast, target)
    np.testing.assert_array_equal(forecast, [[1, 2]])
    np.testing.assert_array_equal(target, [[3, 5]])


def test_values_that_are_not_finite():
    sums = ErrorSums()
    good = np.zeros((2, 2))
    with pytest.raises(DataError, match="2 of the 4 values of forecast are NaN or infinite"):
        sums.update(np.array([[np.nan, 1.0], [np.inf, 0.0]]), good)
    with pytest.raises(DataError, match="1 of the 4 values of target"):
        sums.update(good, np.array([[np.nan, 1.0], [0.0, 0.0]]))
    with pytest.raises(DataError, match="overflows"):
        sums.update(np.full((1, 1), 1e308), np.full((1, 1), -1e308))
    assert (sums.count, sums.squared, sums.absolute) == (0, 0, 0)


def test_pinball_loss_by_hand():
    target = np.array([10.0, 0.0])
    quantiles = np.array([[6.0, 14.0], [1.0, -1.0]])
    # 0.25 * 4, 0.25 * 4; 0.75 * 1, 0.75 * 1.
    assert pinball_loss(target, quantiles, [0.25, 0.75]) == (1 + 1 + 0.75 + 0.75) / 4
    assert pinball_loss(target, quantiles[:, :1], [0.5]) == (4 + 1) / 2 / 2


def test_pinball_loss_counts_what_was_observed_in_float64():
    target = np.array([[NAN, 1.0]], np.float32)
    quantiles = np.array([[[NAN], [16777217.0]]])
    assert pinball_loss(target, quantiles, [0.25]) == 0.75 * 16777216
    assert math.isnan(pinball_loss(target[:, :1], quantiles[:, :1], [0.25]))


@given(st.integers(1, 19), st.integers(0, 10**6))
def test_the_empirical_quantile_has_the_least_pinball_loss(twentieths, seed):
    values = np.random.default_rng(seed).standard_normal(41)
    level = twentieths / 20
    losses = [pinball_loss(values, np.full((41, 1), q), [level]) for q in np.sort(values)]
    # 41 is prime to 20, so the quantile is one value alone: the first with enough at or below it.
    assert int(np.argmin(losses)) == math.ceil(41 * twentieths / 20) - 1


def test_coverage_by_hand():
    target = np.array([1.0, 2.0, 3.0, NAN, 5.0])
    lower, upper = np.array([1.0, 2.5, 0.0, NAN, 4.0]), np.array([1.0, 3.0, 3.0, NAN, 4.5])
    assert coverage(target, lower, upper) == 2 / 4  # the ends count
    assert math.isnan(coverage(target[3:4], lower[3:4], upper[3:4]))


def test_mean_width_by_hand():
    assert mean_width(np.array([[1.0, -2.0]]), np.array([[1.0, 2.0]])) == 2
    assert math.isnan(mean_width(np.zeros(0), np.zeros(0)))
    with pytest.raises(DataError, match="upper is below lower in 1 of 2 intervals"):
        mean_width(np.array([0.0, 1.0]), np.zeros(2))


def test_mase_by_hand():
    context = np.array([1.0, 5.0, 2.0, 7.0, NAN, 4.0])
    assert seasonal_scale(context, 2) == (1 + 2 + 3) / 3  # 2-1, 7-5, 4-7
    assert seasonal_scale(context, 1) == (4 + 3 + 5) / 3
    target, forecast = np.array([3.0, NAN, 4.0]), np.array([1.0, 9.0, 10.0])
    assert mase(target, forecast, context, 2) == (2 + 6) / 2 / 2
    assert math.isnan(mase(target, forecast, np.array([3.0, 3.0]), 1))  # no scale
    assert math.isnan(mase(target, forecast, context, 6))  # no change over so long a season
    assert math.isnan(mase(target[1:2], forecast[1:2], context, 2))
    with pytest.raises(DataError, match="season must be at least 1, but is 0"):
        seasonal_scale(context, 0)


def test_scores_of_what_is_not_finite():
    target, bad = np.zeros(2), np.array([0.0, np.inf])
    with pytest.raises(DataError, match="1 of the 2 values of upper are NaN or infinite"):
        coverage(target, target, bad)
    with pytest.raises(DataError, match="1 of the 2 values of quantiles are NaN or infinite"):
        pinball_loss(target, bad[:, None], [0.5])
    with pytest.raises(DataError, match="1 of the 2 values of forecast are NaN or infinite"):
        mase(target, bad, np.arange(3.0), 1)


def test_shapes_that_differ(monkeypatch):
    """As a user's program sees it, without the check of shapes that the tests have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    two, three = np.zeros(2), np.zeros(3)
    message = r"(has|of a level has) the shape \(3,\), but (target|lower) \(2,\); they must be"
    for call in (
        lambda: ErrorSums().update(three, two),
        lambda: pinball_loss(two, three[:, None], [0.5]),
        lambda: coverage(two, three, two),
        lambda: coverage(two, two, three),
        lambda: mean_width(two, three),
        lambda: mase(two, three, three, 1),
    ):
        with pytest.raises(DataError, match=message):
            call()


@pytest.mark.parametrize("levels", [[], [0.0], [1.0], [0.5, NAN], [-0.1, 0.5]])
def test_what_are_no_levels(levels):
    with pytest.raises(DataError, match="must be numbers between 0 and 1, both excluded"):
        check_levels(levels)


def test_levels_rise():
    np.testing.assert_array_equal(check_levels((0.1, 0.5)), [0.1, 0.5])
    for levels in ([0.5, 0.1], [0.5, 0.5]):
        with pytest.raises(DataError, match="quantile levels must rise"):
            check_levels(levels)
    with pytest.raises(DataError, match="quantiles hold 2 levels, but levels 1"):
        pinball_loss(np.zeros(3), np.zeros((3, 2)), [0.5])


def test_json_has_no_nan():
    nested = {96: [1.0, float("nan")], "inf": (float("-inf"), "text", None, 3)}
    cleaned = without_nan(nested)
    assert cleaned == {"96": [1.0, None], "inf": [None, "text", None, 3]}
    json.dumps(cleaned, allow_nan=False)
