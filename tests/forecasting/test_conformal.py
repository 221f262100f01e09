"""Intervals by conformal calibration: by hand, their invariances, and how often they hold."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals import rolling as rolling_origins
from timemoe_jax.forecasting.intervals.conformal import Calibrated, conformal_offsets, context_scale
from timemoe_jax.forecasting.intervals.plan import errors_needed

NAN = np.nan
INTERVALS = (0.025, 0.1, 0.5, 0.9, 0.975)


def last_value(contexts, horizon):
    """A model that is exactly equivariant to shifts and scales by powers of two."""
    return np.array([[c.values[-1]] * horizon for c in contexts])


def zero(contexts, horizon):
    return np.zeros((len(contexts), horizon))


def walk(seed, length=200):
    """Multiples of 1/64, so that shifts and scales by powers of two are exact."""
    return np.random.default_rng(seed).integers(-64, 65, length).cumsum() / 64


def test_four_errors_by_hand():
    series = [np.array([0.0, 5.0, -1.0, 4.0, -2.0, 3.0])]
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    found = conformal_offsets(series, 1, levels, zero, 2, origins=4)
    np.testing.assert_array_equal(found.origins[0], [2, 3, 4, 5])
    np.testing.assert_array_equal(found.residuals[0], [[-1], [4], [-2], [3]])
    # |errors| 1, 2, 3, 4. Confidence 0.8: ceil(5 * 0.8) = 4th; 0.4: ceil(5 * 0.4) = 2nd.
    np.testing.assert_array_equal(found.offsets, [[[-4, -2, 0, 2, 4]]])
    np.testing.assert_array_equal(found.quantiles(np.array([[10.0]])), [[[6, 8, 10, 12, 14]]])
    np.testing.assert_array_equal(found.counts, [[4]])
    assert found.levels == tuple(levels)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.5], 0),
        ([0.25, 0.75], 1),
        ([0.1, 0.9], 4),
        ([0.05], 9),
        ([0.025, 0.975], 19),
        ([0.975], 19),
        ([0.005], 99),
        ([0.15, 0.5], 3),  # 1 / 0.3 - 1 = 2.33
    ],
)
def test_errors_needed(levels, expected):
    assert errors_needed(levels) == expected


@given(st.integers(1, 999))
def test_errors_needed_is_the_fewest(thousandths):
    level = thousandths / 1000
    c = abs(2 * thousandths - 1000)  # of 1000
    needed = errors_needed([level])
    assert -(-(needed + 1) * c // 1000) <= needed
    assert needed == 0 or -(-needed * c // 1000) > needed - 1


def test_origins_are_spread_and_end_one_horizon_before_the_end():
    found = conformal_offsets([walk(0, 1000)], 10, [0.1, 0.9], zero, 300).origins[0]
    assert len(found) == 59
    assert (found[0], found[-1]) == (990 - 58 * 10, 990)  # spaced by a horizon, not more
    assert set(np.diff(found)) == {10}
    found = conformal_offsets([walk(0, 500)], 10, [0.1, 0.9], zero, 300).origins[0]
    assert (found[0], found[-1]) == (490 // 2, 490)  # contexts of 300 would leave too little
    found = conformal_offsets([walk(0, 400)], 10, [0.1, 0.9], zero, 100).origins[0]
    assert (found[0], found[-1]) == (100, 390)  # all contexts are whole
    assert len(found) == 59
    assert set(np.diff(found)) == {5}


def test_contexts_are_the_points_before_each_origin_up_to_the_context_length():
    seen = []

    def predict(contexts, horizon):
        seen.extend(contexts)
        return zero(contexts, horizon)

    series = np.arange(100.0)
    found = conformal_offsets([series], 5, [0.1, 0.9], predict, 30, origins=7)
    assert len(seen) == 7
    for context, origin in zip(seen, found.origins[0], strict=True):
        np.testing.assert_array_equal(context.values, series[max(0, origin - 30) : origin])
        assert context.gap == 0
    # What came after each origin, since the forecast is 0.
    np.testing.assert_array_equal(
        found.residuals[0], found.origins[0][:, None] + np.arange(5.0)[None]
    )


def test_the_model_is_called_seldom_and_with_bounded_contexts(monkeypatch):
    calls = []

    def predict(contexts, horizon):
        calls.append(sum(len(context.values) for context in contexts))
        return last_value(contexts, horizon)

    series = [walk(i) for i in range(5)]
    whole = conformal_offsets(series, 8, INTERVALS, predict, 64)
    assert len(calls) == 1
    calls.clear()
    monkeypatch.setattr(rolling_origins, "POINTS_PER_CALL", 1000)
    parts = conformal_offsets(series, 8, INTERVALS, predict, 64)
    assert len(calls) > 5
    assert max(calls) <= 1000
    np.testing.assert_array_equal(whole.offsets, parts.offsets)


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 99), min_size=1, max_size=8, unique=True).map(sorted),
    st.floats(0, 0.3),
)
def test_quantiles_never_cross(seed, hundredths, missing):
    rng = np.random.default_rng(seed)
    series = walk(seed)
    series[1:][rng.random(199) < missing] = NAN
    levels = [n / 100 for n in hundredths]
    found = conformal_offsets([series], 4, levels, last_value, 50)
    point = rng.standard_normal((1, 4))
    quantiles = found.quantiles(point)
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    for q, level in enumerate(levels):
        if level == 0.5:
            np.testing.assert_array_equal(quantiles[..., q], point)
        assert (np.sign(found.offsets[..., q]) * np.sign(level - 0.5) >= 0).all()


@given(st.integers(0, 10**6), st.integers(-8, 8), st.integers(-1000, 1000), st.booleans())
def test_equivariant_to_scale_and_shift(seed, power, shift, pooled):
    others = [walk(seed + k) for k in (1, 2, 3)] if pooled else None
    series = walk(seed)
    scale = 2.0**power

    def offsets(values):
        return conformal_offsets([values], 6, INTERVALS, last_value, 40, others).offsets

    np.testing.assert_array_equal(offsets(series * scale + shift), offsets(series) * scale)


@given(st.permutations(range(4)), st.booleans())
def test_a_series_is_calibrated_as_though_alone(order, pooled):
    series = [walk(0), walk(1, 90), 1000 * walk(2), np.append(walk(3), [NAN, NAN])]
    others = [walk(5), walk(6)] if pooled else None
    together = conformal_offsets([series[i] for i in order], 6, INTERVALS, last_value, 40, others)
    for place, i in enumerate(order):
        alone = conformal_offsets([series[i]], 6, INTERVALS, last_value, 40, others)
        np.testing.assert_array_equal(together.offsets[place], alone.offsets[0])
        np.testing.assert_array_equal(together.residuals[place], alone.residuals[0])


@pytest.mark.parametrize("pooled", [False, True])
def test_a_constant_series_has_no_width(pooled):
    others = [walk(1)] if pooled else None
    found = conformal_offsets([np.full(200, 7.0)], 5, INTERVALS, last_value, 64, others)
    np.testing.assert_array_equal(found.offsets, 0)


def test_inputs_stay_as_they_are():
    series = np.append(walk(0), NAN)
    before = series.copy()
    conformal_offsets([series], 5, INTERVALS, last_value, 64, [series])
    np.testing.assert_array_equal(series, before)


def test_the_half_alone_calls_no_model():
    def predict(contexts, horizon):
        raise AssertionError

    found = conformal_offsets([np.array([1.0])], 3, [0.5], predict, 64)
    np.testing.assert_array_equal(found.offsets, np.zeros((1, 3, 1)))


class TestCoverage:
    """On exchangeable errors the coverage is what theory says, within what chance allows."""

    CASES = 4000
    CONFIDENCES = (0.8, 0.95)
    LEVELS = (0.025, 0.1, 0.9, 0.975)

    def covered(self, draw, errors):
        """Of how many independent series the intervals [2] hold the next value."""
        length = 1 + errors
        drawn = draw(np.random.default_rng(7), (self.CASES, length + 1))
        found = conformal_offsets(
            list(drawn[:, :length]), 1, self.LEVELS, zero, 1, origins=errors, min_context=1
        )
        assert found.counts.min() == errors
        lowest, lower, upper, highest = found.quantiles(np.zeros((self.CASES, 1)))[:, 0].T
        truth, intervals = drawn[:, -1], ((lower, upper), (lowest, highest))
        return [int(((low <= truth) & (truth <= high)).sum()) for low, high in intervals]

    # What the errors are and how many does not meet in the code, so that each is tested once.
    @pytest.mark.parametrize(("kind", "errors"), [("normal", 19), ("cauchy", 30), ("skewed", 59)])
    def test_of_independent_errors(self, kind, errors):
        draw = {
            "normal": lambda rng, shape: rng.standard_normal(shape),
            "cauchy": lambda rng, shape: rng.standard_cauchy(shape),
            "skewed": lambda rng, shape: rng.exponential(size=shape),
        }[kind]
        # Without ties exactly ceil((K + 1) c) / (K + 1). One binomial count in ten thousand lies
        # outside the bounds.
        for confidence, held in zip(self.CONFIDENCES, self.covered(draw, errors), strict=True):
            exact = np.ceil(round((errors + 1) * confidence, 9)) / (errors + 1)
            low, high = binom.ppf([5e-5, 1 - 5e-5], self.CASES, exact)
            assert low <= held <= high

    def test_another_rank_would_be_seen(self):
        """The 15th of 19 errors covers 75 percent, the 17th 85: hardly ever within the bounds."""
        low, high = binom.ppf([5e-5, 1 - 5e-5], self.CASES, 0.8)
        assert binom.sf(low - 1, self.CASES, 0.75) < 1e-3
        assert binom.cdf(high, self.CASES, 0.85) < 1e-3

    def test_with_a_calibration_set_of_many_scales(self):
        """Normal series, each of a scale of its own, too short to be calibrated by themselves."""
        rng = np.random.default_rng(3)
        scales = np.exp(rng.normal(size=(self.CASES + 999, 1)) * 3)
        drawn = rng.standard_normal((self.CASES + 999, 21)) * scales
        series, others = drawn[: self.CASES], drawn[self.CASES :]
        found = conformal_offsets(
            list(series[:, :20]), 1, [0.1, 0.9], zero, 20, list(others), min_context=20
        )
        assert not any(map(len, found.origins))  # none of the series' own
        np.testing.assert_array_equal(found.counts, 999)
        lower, upper = found.quantiles(np.zeros((self.CASES, 1)))[:, 0].T
        held = ((lower <= series[:, 20]) & (series[:, 20] <= upper)).sum()
        # Given the set, the coverage is Beta(800, 200) (Vovk 2012), of deviation 0.0126; with the
        # binomial's 0.0063 that is 0.0141, of which six are allowed.
        assert abs(held / self.CASES - 0.8) < 6 * 0.0141


def test_calibration_set_by_hand():
    # Contexts of 3, whose median absolute deviations are 1 and 10; errors 4 and 5.
    others = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 10.0, 20.0, -5.0])]
    series = [np.array([0.0, 2.0, 4.0]), np.array([7.0, 7.0, 7.0])]  # of scales 2 and 0
    found = conformal_offsets(series, 1, [0.25, 0.75], zero, 3, others, min_context=3)
    # Scores 4 and 0.5; ceil(3 * 0.5) = 2nd.
    np.testing.assert_array_equal(found.offsets, [[[-8, 8]], [[0, 0]]])
    np.testing.assert_array_equal(found.residuals[0], [[8], [-1]])
    np.testing.assert_array_equal(found.counts, [[2], [2]])


def test_calibration_set_for_a_series_that_ends_in_a_gap():
    """One point is hidden before the origin, from the forecast 4 of 7 and from the scale, 2."""
    series = [np.array([5.0, 5.0, 5.0, 0.0, 10.0, 20.0, NAN])]  # of scale 10 in its last four
    others = [np.array([0.0, 2.0, 4.0, 5.0, 7.0])]
    found = conformal_offsets(series, 1, [0.25, 0.75], last_value, 4, others, min_context=3)
    np.testing.assert_array_equal(found.offsets, [[[-15, 15]]])


def test_a_calibration_context_without_scale_does_not_count():
    others = [np.array([1.0, 1.0, 1.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])]
    series = [np.array([1.0, 2.0, 3.0])]
    found = conformal_offsets(series, 1, [0.25, 0.75], zero, 3, others, min_context=3)
    np.testing.assert_array_equal(found.counts, [[1]])
    np.testing.assert_array_equal(found.offsets, [[[-4, 4]]])
    with pytest.raises(DataError, match="the calibration set as a whole has 0 errors that count"):
        conformal_offsets(series, 1, [0.25, 0.75], zero, 3, others[:1], min_context=3)


def test_context_scale():
    assert context_scale(np.array([1.0, 2.0, 3.0, 4.0, 1000.0])) == 1  # the spike has no say
    assert context_scale(np.array([NAN, 5.0, NAN])) == 0
    assert context_scale(np.array([0.0, 0.0, 0.0, 4.0])) == 1  # the mean, as the median is 0
    assert context_scale(np.full(3, NAN)) == 0


def test_missing_steps_do_not_count():
    series = np.array([0.0, 0.0, 5.0, -1.0, 4.0, NAN, -2.0, 3.0])
    found = conformal_offsets([series], 2, [0.25, 0.75], zero, 2, origins=5)
    np.testing.assert_array_equal(
        found.residuals[0], [[5, -1], [-1, 4], [4, NAN], [NAN, -2], [-2, 3]]
    )
    np.testing.assert_array_equal(found.counts, [[4, 4]])
    # ceil(5 / 2) = 3rd of 1, 2, 4, 5 and of 1, 2, 3, 4.
    np.testing.assert_array_equal(found.offsets, [[[-4, 4], [-3, 3]]])


def test_each_step_is_corrected_by_its_own_count():
    series = np.array([0.0, 0.0, NAN, 5.0, -1.0, 4.0, -2.0, 3.0])
    found = conformal_offsets([series], 2, [0.2, 0.8], zero, 2, origins=5)
    np.testing.assert_array_equal(found.origins[0], [2, 3, 4, 5, 6])
    np.testing.assert_array_equal(found.counts, [[4, 5]])
    # ceil(5 * 0.6) = 3rd of 1, 2, 4, 5, and ceil(6 * 0.6) = 4th of 1, 2, 3, 4, 5.
    np.testing.assert_array_equal(found.offsets, [[[-4, 4], [-4, 4]]])
    found = conformal_offsets([series], 2, [0.25, 0.75], zero, 2, origins=5)
    # ceil(5 / 2) = 3rd and ceil(6 / 2) = 3rd.
    np.testing.assert_array_equal(found.offsets, [[[-4, 4], [-3, 3]]])


def test_too_few_errors_that_count():
    series = np.full(40, NAN)
    series[[0, 20, 39]] = 1.0
    with pytest.raises(DataError) as info:
        conformal_offsets([series], 1, [0.1, 0.9], last_value, 64, names=["load"])
    assert re.search(r"load has \d errors that count at step 1 of the horizon", str(info.value))
    assert "the levels 0.1, 0.9 need 4" in str(info.value)


def test_missing_values_are_made_up_for_by_more_origins():
    series = walk(0, 2000)
    series[1::2] = NAN
    found = conformal_offsets([series], 3, [0.1, 0.9], last_value, 100)
    assert len(found.origins[0]) in (117, 118)
    assert found.counts.min() >= 55
    found = conformal_offsets([series], 3, [0.1, 0.9], last_value, 100, origins=30)
    assert len(found.origins[0]) == 30  # as asked for


def test_a_context_of_nothing_is_not_forecast():
    """Nor do forecasts count of which nothing came; here 20 to 29, with contexts of 4."""

    def predict(contexts, horizon):
        assert not any(np.isnan(context.values).all() for context in contexts)
        return last_value(contexts, horizon)

    series = np.concatenate([np.ones(20), np.full(10, NAN), np.ones(20)])
    found = conformal_offsets([series], 1, [0.1, 0.9], predict, 4, min_context=4)
    blind = np.isnan(found.residuals[0][:, 0])
    np.testing.assert_array_equal(found.origins[0][blind], range(20, 31))
    assert found.counts[0, 0] == len(blind) - 11


def test_missing_values_at_the_end_are_hidden_before_every_origin():
    """The forecast starts two points after what was last seen, so the calibration does, too."""
    seen = []

    def predict(contexts, horizon):
        seen.extend(contexts)
        return last_value(contexts, horizon)

    series = np.append(np.arange(60.0), [NAN, NAN])
    found = conformal_offsets([series], 3, [0.1, 0.9], predict, 20)
    assert all(c.gap == 2 and not np.isnan(c.values).any() for c in seen)
    assert max(len(c.values) for c in seen) == 20 - 2
    np.testing.assert_array_equal(found.residuals[0][-1], [3, 4, 5])
    assert found.origins[0][-1] == 57


@pytest.mark.parametrize(
    ("levels", "horizon", "context", "gap", "length"),
    [
        (INTERVALS, 7, 50, 0, 16 + 7 + 18),  # the least context, a horizon, 19 origins
        ([0.1, 0.9], 24, 10, 3, 10 + 2 * 3 + 24 + 3),
        (INTERVALS, 96, 512, 0, 96 + 96 + 18),
        ([0.1, 0.9], 1, 512, 0, 16 + 1 + 3),
    ],
)
def test_the_shortest_series(levels, horizon, context, gap, length):
    """One point less is an error that says what is needed."""
    series = walk(0, length)
    series[length - gap :] = NAN
    found = conformal_offsets([series], horizon, levels, last_value, context)
    assert found.counts.min() == errors_needed(levels)
    with pytest.raises(DataError) as info:
        conformal_offsets(
            [walk(0, 400), series[1:]], horizon, levels, last_value, context, names=["a", "b"]
        )
    assert f"b has {length - 1} points" in str(info.value)
    assert f"it needs at least {length}" in str(info.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": []}, "quantile levels must be numbers between 0 and 1"),
        ({"levels": [0.0, 0.5]}, "quantile levels must be numbers between 0 and 1"),
        ({"levels": [0.9, 0.1]}, "must rise"),
        ({"horizon": 0}, "horizon must be at least 1, but is 0"),
        ({"context_length": 0}, "context_length must be at least 1"),
        ({"origins": 18}, "origins is 18, but the levels 0.025, 0.975 need at least 19 errors"),
        ({"min_context": 65}, "min_context must be from 1 to context_length 64, but is 65"),
        ({"calibration": []}, "calibration holds no series"),
        ({"calibration": [walk(0), walk(0, 8)]}, "calibration series 1 has 8 points, too few"),
        ({"names": ["a"]}, "names has 1 entries, but there are 2 series"),
        ({"predict": lambda c, h: np.zeros((len(c), h + 1))}, r"must be \(118, 5\)"),
        ({"predict": lambda c, h: np.full((len(c), h), NAN)}, "not finite for series 0"),
    ],
)
def test_what_is_refused(change, message):
    given = {
        "series": [walk(0), walk(1)],
        "horizon": 5,
        "levels": [0.025, 0.975],
        "predict": last_value,
        "context_length": 64,
    } | change
    with pytest.raises(DataError, match=message):
        conformal_offsets(**given)


def test_no_series():
    found = conformal_offsets([], 5, INTERVALS, last_value, 64)
    assert isinstance(found, Calibrated)
    assert found.offsets.shape == (0, 5, 5)
