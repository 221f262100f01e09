"""Quantiles of a model, calibrated: by hand, and how often the intervals hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.conformal import adjust_quantiles, conformal_offsets

NAN = np.nan


def quantile_offsets(*args, **options):
    return conformal_offsets(*args, **options, of_quantiles=True)


def fixed(*values):
    """A model that always gives the same quantiles."""
    return lambda contexts, horizon: np.broadcast_to(
        np.array(values, np.float64), (len(contexts), horizon, len(values))
    )


def test_four_errors_by_hand():
    series = [np.array([0.0, 5.0, -1.0, 4.0, -2.0, 3.0])]
    found = quantile_offsets(
        series, 1, [0.1, 0.3, 0.5, 0.7, 0.9], fixed(-9, -1, 0, 1, 9), 2, origins=4
    )
    np.testing.assert_array_equal(found.residuals[0], [[-1], [4], [-2], [3]])
    # Outside -9 to 9 by -8, -5, -7, -6: the 4th of 4 is -5. Outside -1 to 1 by 0, 3, 1, 2: the
    # ceil(5 * 0.4) = 2nd is 1.
    np.testing.assert_array_equal(found.offsets, [[[5, -1, 0, 1, -5]]])
    adjusted = adjust_quantiles(np.array([[[-9.0, -1, 0, 1, 9]]]), found.offsets)
    np.testing.assert_array_equal(adjusted, [[[-4, -2, 0, 2, 4]]])


def test_what_would_cross_goes_no_further_than_the_level_before():
    quantiles, offsets = np.array([[[-3.0, -2, 0, 2, 3]]]), np.array([[[2.0, -1, 0, 1, -2]]])
    np.testing.assert_array_equal(adjust_quantiles(quantiles, offsets), [[[-3, -3, 0, 3, 3]]])
    offsets = np.array([[[4.0, 3, 0, -3, -4]]])
    np.testing.assert_array_equal(adjust_quantiles(quantiles, offsets), [[[0, 0, 0, 0, 0]]])


@given(st.integers(0, 10**6))
def test_adjusted_quantiles_never_cross_and_keep_the_median(seed):
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.standard_normal((2, 3, 5)), axis=-1)
    half = rng.standard_normal((2, 3, 2))
    offsets = np.concatenate([-half, np.zeros((2, 3, 1)), half[..., ::-1]], axis=-1)
    adjusted = adjust_quantiles(quantiles, offsets)
    assert (np.diff(adjusted, axis=-1) >= 0).all()
    np.testing.assert_array_equal(adjusted[..., 2], quantiles[..., 2])
    wider = np.sign([-1, -1, 0, 1, 1]) * (adjusted - (quantiles + offsets))
    assert (wider >= 0).all()


@pytest.mark.parametrize("width", [0.1, 10.0])
def test_coverage_whatever_the_width_of_the_model(width):
    """Exactly ceil(20 * 0.8) / 20; one binomial count in ten thousand lies outside the bounds."""
    cases, errors = 4000, 19
    drawn = np.random.default_rng(0).exponential(size=(cases, errors + 2))
    model = fixed(1 - width, 1, 1 + width)
    found = quantile_offsets(
        list(drawn[:, :-1]), 1, [0.1, 0.5, 0.9], model, 1, origins=errors, min_context=1
    )
    lower, _, upper = adjust_quantiles(model(drawn, 1), found.offsets)[:, 0].T
    held = int(((lower <= drawn[:, -1]) & (drawn[:, -1] <= upper)).sum())
    low, high = binom.ppf([5e-5, 1 - 5e-5], cases, 0.8)
    assert low <= held <= high


def test_missing_values_do_not_count():
    series = [np.array([0.0, 5.0, NAN, -1.0, 4.0, -2.0, 3.0])]
    found = quantile_offsets(series, 1, [0.1, 0.5, 0.9], fixed(-1, 0, 1), 2, origins=5)
    np.testing.assert_array_equal(found.counts, [[4]])
    np.testing.assert_array_equal(found.offsets, [[[-3, 0, 3]]])


def test_missing_values_at_the_end_are_hidden_before_every_origin():
    def predict(contexts, horizon):
        last = np.array([c.values[-1] for c in contexts])
        return np.repeat(last[:, None, None] + [-1.0, 0, 1], horizon, axis=1)

    series = np.append(np.arange(60.0), [NAN, NAN])
    found = quantile_offsets([series], 3, [0.1, 0.5, 0.9], predict, 20)
    assert (found.residuals[0] == [3, 4, 5]).all()
    np.testing.assert_array_equal(found.offsets[0], [[-2, 0, 2], [-3, 0, 3], [-4, 0, 4]])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([0.1, 0.5, 0.8], "levels must be 0.5 and pairs of tau and 1 - tau"),
        ([0.1, 0.9], "but are 0.1, 0.9"),
        ([0.5], "but are 0.5"),
        ([0.1, 0.4, 0.9], "but are 0.1, 0.4, 0.9"),
        ([0.9, 0.5], "must rise"),
    ],
)
def test_levels_that_are_refused(levels, message):
    with pytest.raises(DataError, match=message):
        quantile_offsets([np.arange(90.0)], 1, levels, fixed(0), 8)


def test_forecasts_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"it must be \(59, 2, 3\)"):
        quantile_offsets([np.arange(90.0)], 2, [0.1, 0.5, 0.9], fixed(0, 1), 8)
    with pytest.raises(DataError, match="load has 9 points, too few"):
        quantile_offsets([np.arange(9.0)], 2, [0.1, 0.5, 0.9], fixed(0, 1), 8, names=["load"])
