"""Covariates: what they contribute to a series, and how they are found in data frames."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from fake_forecaster import read_frame
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.formats.frames import columns_of
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.frames.covariates import adjustments, align_covariates, shared_columns
from timemoe_jax.forecasting.frames.prepare import prepare_frame
from timemoe_jax.forecasting.frames.regression import MIN_POINTS, fit_covariates
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive

PAST, HORIZON, WEEK, LIFT, NOISE = 400, 28, 7, 30.0, 2.0
TOTAL = PAST + HORIZON


def shop(seed, lift=LIFT):
    """Sales with a week, a slow level and noise, and promotions on one day in eight."""
    rng = np.random.default_rng(seed)
    t = np.arange(TOTAL)
    week = np.array([0, 5, 8, 3, -4, 10, -22.0])[t % WEEK]
    level = 100 + 0.05 * t + 8 * np.sin(2 * np.pi * t / 180)
    promotion = (rng.random(TOTAL) < 1 / 8).astype(float)
    sales = week + level + rng.normal(0, NOISE, TOTAL) + lift * promotion
    return sales, promotion


def fitted(sales, *columns, **options):
    table = np.stack(columns, axis=1)
    return fit_covariates(sales[:PAST], table[:PAST], table[PAST:], season=WEEK, **options)


def forecast(context):
    """What stands in for the model."""
    return seasonal_naive(context[None], HORIZON, WEEK)[0]


def adjusted_forecast(sales, adjustment):
    return forecast(sales[:PAST] - adjustment.contribution_context) + adjustment.contribution_future


def error(prediction, sales):
    return np.abs(prediction - sales[PAST:]).mean()


@pytest.mark.parametrize("seed", range(8))
def test_a_covariate_that_matters_halves_the_error(seed):
    """And its effect is found, within four standard errors of least squares.

    These are noise / sqrt(variance of the promotions x points); the level and week that the filter
    leaves behind count with the noise, so that its deviation is taken from them together.
    """
    sales, promotion = shop(seed)
    adjustment = fitted(sales, promotion)
    assert (
        error(adjusted_forecast(sales, adjustment), sales)
        < error(forecast(sales[:PAST]), sales) / 2
    )
    standard_error = NOISE / (promotion[:PAST].std() * np.sqrt(PAST))
    assert abs(adjustment.coefficients[0] - LIFT) < 4 * standard_error
    expected = adjustment.coefficients[0] * (promotion - promotion[:PAST].mean())
    np.testing.assert_allclose(adjustment.contribution_context, expected[:PAST], atol=1e-9)
    np.testing.assert_allclose(adjustment.contribution_future, expected[PAST:], atol=1e-9)
    assert adjustment.season == WEEK


@pytest.mark.parametrize("columns", [1, 5, 20])
def test_noise_hardly_changes_a_forecast(columns):
    """By less than a tenth of the noise of the series on average over eight of them.

    Least squares would change it by noise x sqrt(columns / points): 0.05 to 0.22 of the noise.
    """
    changes, gains, without = [], [], 0
    for seed in range(8):
        sales, _ = shop(seed, lift=0.0)
        noise = np.random.default_rng(100 + seed).normal(size=(columns, TOTAL))
        adjustment = fitted(sales, *noise)
        plain, adjusted = forecast(sales[:PAST]), adjusted_forecast(sales, adjustment)
        changes.append(np.abs(adjusted - plain).mean())
        gains.append(error(adjusted, sales) / error(plain, sales))
        if adjustment.strength == np.inf:
            without += 1
            np.testing.assert_array_equal(adjusted, plain)
    assert np.mean(changes) < NOISE / 10
    assert np.mean(gains) < 1.02
    assert without > 0


def test_promotions_on_the_same_days_of_the_week_are_told_from_the_week():
    """Saturdays sell more by themselves; only some of them have a promotion."""
    sales, _ = shop(3, lift=0.0)
    rng = np.random.default_rng(0)
    promotion = ((np.arange(TOTAL) % WEEK == 5) & (rng.random(TOTAL) < 0.5)).astype(float)
    adjustment = fitted(sales + LIFT * promotion, promotion)
    on, off = promotion[:PAST].sum(), (np.arange(PAST) % WEEK == 5).sum() - promotion[:PAST].sum()
    assert abs(adjustment.coefficients[0] - LIFT) < 4 * NOISE * np.sqrt(1 / on + 1 / off)
    # The week itself is no covariate: the filter takes all of it.
    saturday = (np.arange(TOTAL) % WEEK == 5).astype(float)
    time = np.arange(TOTAL) * 1.0
    names = ["promo", "saturday", "time"]
    both = fitted(sales + LIFT * promotion, promotion, saturday, time, names=names)
    reason = "the level or season explains it"
    assert both.ignored == {"saturday": reason, "time": reason}
    np.testing.assert_allclose(both.coefficients, [adjustment.coefficients[0], 0, 0], rtol=1e-9)
    gaps = np.where(rng.random(TOTAL) < 0.3, np.nan, sales)
    assert fitted(gaps, saturday, names=["saturday"]).ignored == {"saturday": reason}


@given(
    season=st.sampled_from([1, 4, 5, 7, 12, 24, 52]),
    absent=st.floats(0, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_without_noise_the_effects_are_exact(season, absent, seed):
    """Whatever the line and the season, at gaps and ends, too: the filter leaves none of them."""
    rng = np.random.default_rng(seed)
    count, horizon = 12 * max(season, 12), 5
    scales = np.array([1e-3, 1, 1e3])
    table = rng.normal(size=(count + horizon, 3)) * scales
    effects = rng.normal(size=3)
    t = np.arange(count)
    values = 50 + rng.normal() * t + rng.normal(size=season)[t % season] + table[:count] @ effects
    values[rng.random(count) < absent] = np.nan
    table[:count][rng.random(count) < absent / 4, 1] = np.nan
    adjustment = fit_covariates(values, table[:count], table[count:], season=season)
    assert adjustment.season == season
    # The weakest ridge takes 1e-8 of each effect, and of its neighbors by their correlation.
    np.testing.assert_allclose(
        adjustment.coefficients * scales, effects * scales, atol=1e-6 * abs(effects * scales).max()
    )


@pytest.mark.parametrize("season", [1, 4])
@pytest.mark.parametrize("effect", [0.0, 0.3, 3.0])
def test_the_ridge_is_that_of_generalized_cross_validation(effect, season):
    """Against its definition, with all matrices written out."""
    rng = np.random.default_rng(0)
    t = np.arange(60)
    table = rng.normal(size=(60, 3))
    values = table @ [effect, -effect, 0] + rng.normal(size=60)
    ours = fit_covariates(values, table, table[:4], season=season)
    # The level: 21 points, or six seasons of 4, of which the two ends count by half.
    distance = np.abs(np.subtract.outer(t, t))
    weights = distance <= 10 if season == 1 else (distance <= 12) - (distance == 12) / 2
    level = weights / weights.sum(axis=1, keepdims=True)
    line, dummies = (t - 30.0)[:, None], np.eye(4)[t % 4]
    shapes = line if season == 1 else np.concatenate([line, dummies], axis=1)
    removed = (np.eye(60) - level) @ shapes
    remover = (np.eye(60) - removed @ np.linalg.pinv(removed, rcond=1e-10)) @ (np.eye(60) - level)
    left = remover @ (table / table.std(axis=0))
    rms = np.sqrt((left**2).mean(axis=0))
    left, target = left / rms, remover @ values
    best, strength, coefficients = np.inf, 0.0, np.zeros(3)
    for candidate in [*10.0 ** np.arange(-8, 6.25, 0.25), np.inf]:
        slopes, hat = np.zeros(3), np.zeros((60, 60))
        if np.isfinite(candidate):
            inverse = np.linalg.inv(left.T @ left + 60 * candidate * np.eye(3))
            hat, slopes = left @ inverse @ left.T, inverse @ left.T @ target
        freedom = 60 - np.trace(level) - np.linalg.matrix_rank(removed) - np.trace(hat)
        score = ((target - left @ slopes) ** 2).sum() / freedom**2
        if score <= best:
            best, strength, coefficients = score, candidate, slopes / rms / table.std(axis=0)
    assert ours.strength == pytest.approx(strength)
    np.testing.assert_allclose(ours.coefficients, coefficients, rtol=1e-9, atol=1e-12)


def test_two_columns_that_say_the_same_share_the_effect():
    sales, promotion = shop(1)
    adjustment = fitted(sales, promotion, 2 * promotion + 5)
    single = fitted(sales, promotion)
    np.testing.assert_allclose(
        adjustment.contribution_future, single.contribution_future, atol=NOISE / 10
    )
    assert adjustment.coefficients[0] == pytest.approx(2 * adjustment.coefficients[1])


@given(st.integers(-60, 60), st.integers(0, 1000))
def test_the_contribution_scales_with_the_series(power, seed):
    """Bit by bit for powers of two, and not at all with a shift that is exact."""
    sales, promotion = shop(seed)
    sales = np.round(sales)
    ours = fitted(sales, promotion)
    scaled = fitted(sales * 2.0**power, promotion)
    np.testing.assert_array_equal(scaled.contribution_future, ours.contribution_future * 2.0**power)
    np.testing.assert_array_equal(
        scaled.contribution_context, ours.contribution_context * 2.0**power
    )
    shifted = fitted(sales + 1024, promotion)
    np.testing.assert_allclose(shifted.contribution_future, ours.contribution_future, rtol=1e-9)
    negated = fitted(-sales, promotion)
    np.testing.assert_array_equal(negated.contribution_future, -ours.contribution_future)


@given(st.floats(-1e3, 1e3), st.sampled_from([-1e6, -0.1, 1e-6, 3.0]))
def test_units_of_a_covariate_do_not_matter(shift, scale):
    sales, promotion = shop(2)
    ours = fitted(sales, promotion)
    other = fitted(sales, promotion * scale + shift * abs(scale))
    np.testing.assert_allclose(
        other.contribution_future, ours.contribution_future, atol=1e-6, rtol=1e-6
    )


def test_points_that_are_missing():
    """Of the series: left out. Of a covariate: left out, counted, and its mean taken."""
    sales, promotion = shop(4)
    rng = np.random.default_rng(0)
    sales[rng.choice(PAST, 60, replace=False)] = np.nan
    promotion[[3, 50]] = np.nan
    adjustment = fitted(sales, promotion)
    assert adjustment.used == (~np.isnan(sales[:PAST]) & ~np.isnan(promotion[:PAST])).sum()
    assert adjustment.unknown == 2
    assert np.isfinite(adjustment.contribution_context).all()
    assert not adjustment.contribution_context[[3, 50]].any()
    standard_error = NOISE / (np.nanstd(promotion[:PAST]) * np.sqrt(adjustment.used))
    assert abs(adjustment.coefficients[0] - LIFT) < 4 * standard_error
    # What a covariate is where the series is missing has no part in it.
    other = promotion.copy()
    other[:PAST][np.isnan(sales[:PAST])] = 7.0
    np.testing.assert_array_equal(
        fitted(sales, other).contribution_future, adjustment.contribution_future
    )


def test_columns_that_say_nothing_are_named():
    sales, promotion = shop(5)
    constant = np.ones(TOTAL)
    constant[PAST:] = 9.0
    adjustment = fitted(sales, promotion, constant, names=["promo", "constant"])
    assert adjustment.ignored == {"constant": "it is constant"}
    assert adjustment.coefficients[1] == 0
    alone = fitted(sales, promotion)
    np.testing.assert_allclose(adjustment.contribution_future, alone.contribution_future, rtol=1e-9)
    flat = fitted(np.full(TOTAL, 7.0), promotion)
    assert (flat.strength, flat.coefficients[0]) == (np.inf, 0)
    assert not flat.contribution_future.any()


def test_too_short_a_history_is_refused():
    rng = np.random.default_rng(0)
    table, values = rng.normal(size=(40, 3)), rng.normal(size=40)
    needed = MIN_POINTS + 3 * 3
    fit_covariates(values[:needed], table[:needed], table[needed:])
    with pytest.raises(DataError, match=f"shop is too short .* {needed - 1} points .* {needed};"):
        fit_covariates(values[: needed - 1], table[: needed - 1], table[needed:], where="shop")
    empty = table.copy()
    empty[:, 1] = np.nan
    with pytest.raises(DataError, match="'column 1' has no value in the history"):
        fit_covariates(values, empty, table)
    # Columns that do not vary need no history.
    short = fit_covariates(values[:4], np.ones((4, 2)), np.ones((3, 2)))
    assert not short.contribution_context.any()
    apart = np.where(np.arange(40)[:, None] % 2 == [0, 1, 0], table, np.nan)
    with pytest.raises(DataError, match="it has 0 points with a value and all covariates"):
        fit_covariates(values, apart, table)
    missing = np.full(2000, np.nan)
    missing[::50] = values
    with pytest.raises(DataError, match="too far apart"):
        fit_covariates(missing, rng.normal(size=(2000, 3)), table)
    bad = np.array([[0.0, 0.0], [0.0, np.inf]])
    with pytest.raises(DataError, match=r"'b' is infinite at future point 1"):
        fit_covariates(values, table[:, :2], bad, names=["a", "b"])
    with pytest.raises(DataError, match="the series is infinite at point 7"):
        fit_covariates(np.where(np.arange(40) == 7, -np.inf, values), table, table)
    with pytest.raises(DataError, match=r"must be \[40, 3\]"):
        fit_covariates(values, table[:5], table)


def test_a_season_longer_than_the_history_is_left_to_the_noise():
    sales, promotion = shop(6)
    adjustment = fit_covariates(
        sales[:60], promotion[:60, None], promotion[60:70, None], season=WEEK * 52
    )
    assert adjustment.season == 1
    assert abs(adjustment.coefficients[0] - LIFT) < LIFT / 2


# Data frames.


def frames(seeds=(0, 1), lift=LIFT, **columns):
    parts = []
    for seed in seeds:
        sales, promotion = shop(seed, lift)
        times = pd.date_range("2023-01-01", periods=TOTAL)
        parts.append(pd.DataFrame({"id": f"s{seed}", "ds": times, "y": sales, "promo": promotion}))
    whole = pd.concat(parts, ignore_index=True).assign(**columns)
    past = whole["ds"] < times[PAST]
    return whole[past].reset_index(drop=True), whole[~past].drop(columns="y").reset_index(drop=True)


def aligned(df, future_df, covariates=None, horizon=HORIZON, **options):
    past = columns_of(df, "df")
    future = None if future_df is None else columns_of(future_df, "future_df")
    names = shared(df, future_df) if covariates is None else covariates
    timed = read_frame(df, covariates=names, **options)
    return timed, align_covariates(past, future, timed, horizon)


def shared(df, future_df, **names):
    past, future = columns_of(df, "df"), columns_of(future_df, "future_df")
    return shared_columns(past, future, ColumnNames(**names))


def test_frames_give_what_arrays_give():
    df, future_df = frames()
    before = df.copy(), future_df.copy()
    shuffled = future_df.sample(frac=1, random_state=0)
    for rows, ahead in ((df, future_df), (df.sample(frac=1, random_state=1), shuffled)):
        timed, covariates = aligned(rows, ahead)
        assert (covariates.known, covariates.lagged) == (("promo",), ())
        found = dict(zip([s.id for s in timed.series], adjustments(timed, covariates), strict=True))
        for seed in (0, 1):
            ours = fitted(*shop(seed))
            theirs = found[f"s{seed}"]
            np.testing.assert_array_equal(theirs.contribution_future, ours.contribution_future)
            np.testing.assert_array_equal(theirs.contribution_context, ours.contribution_context)
    pd.testing.assert_frame_equal(df, before[0])
    pd.testing.assert_frame_equal(future_df, before[1])


def test_row_counters_are_no_covariates():
    df, future_df = (frame.reset_index(drop=True).reset_index() for frame in frames())
    assert shared(df, future_df) == ("promo",)


def test_a_series_is_adjusted_from_itself_alone():
    one = adjustments(*aligned(*frames((0,))))[0]
    many = adjustments(*aligned(*frames((0, 1, 2))))[0]
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(many, field.name), getattr(one, field.name))


def test_without_covariates_nothing_changes():
    df, _ = frames()
    timed, covariates = aligned(df.drop(columns="promo"), None, ())
    for series, adjustment in zip(timed.series, adjustments(timed, covariates), strict=True):
        adjusted = series.values - adjustment.contribution_context
        assert adjusted.tobytes() == series.values.tobytes()
        assert adjustment.contribution_future.tolist() == [0.0] * HORIZON
    plain = read_frame(df.drop(columns="promo"))
    for ours, theirs in zip(timed.series, plain.series, strict=True):
        assert ours.values.tobytes() == theirs.values.tobytes()


def test_categories_and_booleans():
    df, future_df = frames()
    expected = adjustments(*aligned(df, future_df))
    flags = [f.assign(promo=f["promo"] > 0) for f in (df, future_df)]
    for ours, theirs in zip(adjustments(*aligned(*flags)), expected, strict=True):
        np.testing.assert_array_equal(ours.contribution_future, theirs.contribution_future)
    named = [f.assign(promo=np.where(f["promo"] > 0, "sale", "none")) for f in (df, future_df)]
    for kind in ("str", "category", object):
        timed, covariates = aligned(*(f.astype({"promo": kind}) for f in named))
        table = covariates.table(0)
        assert table.names == ("promo=none", "promo=sale")
        np.testing.assert_array_equal(table.past[:, 1], df["promo"][:PAST])
        np.testing.assert_array_equal(table.past.sum(axis=1), 1)
        np.testing.assert_array_equal(table.future[:, 1], future_df["promo"][:HORIZON])
        for ours, theirs in zip(adjustments(timed, covariates), expected, strict=True):
            np.testing.assert_allclose(
                ours.contribution_future, theirs.contribution_future, atol=NOISE / 10
            )


def test_a_category_that_was_never_seen_is_refused():
    df, future_df = frames(kind="a")
    df["kind"] = np.where(np.arange(len(df)) % 3 == 0, "b", "a")
    future_df.loc[HORIZON + 2, "kind"] = "c"
    says = "series s1 y: covariate 'kind' is 'c' in the future, which it never is in the history"
    with pytest.raises(DataError, match=says):
        adjustments(*aligned(df, future_df))
    # One that only another series has had is no more known.
    future_df.loc[HORIZON + 2, "kind"] = "b"
    df.loc[df["id"] == "s1", "kind"] = "a"
    with pytest.raises(DataError, match="series s1 y: covariate 'kind' is 'b'"):
        adjustments(*aligned(df, future_df))


def test_a_covariate_without_a_future_is_known_one_horizon_ahead():
    """By hand, and where it drives the series one horizon later, the effect is found."""
    times = pd.date_range("2023-01-01", periods=6)
    df = pd.DataFrame({"ds": times, "y": np.ones(6), "x": [1.0, 2, None, 4, 5, 6]})
    _, covariates = aligned(df, None, ["x"], horizon=2)
    assert (covariates.known, covariates.lagged) == ((), ("x",))
    table = covariates.table(0)
    nan = np.nan
    np.testing.assert_array_equal(table.past[:, 0], [nan, nan, 1, 2, nan, 4])
    np.testing.assert_array_equal(table.future[:, 0], [5, 6])
    sales, _ = shop(0, lift=0.0)
    signal = np.random.default_rng(1).normal(size=TOTAL + HORIZON)
    sales = sales + LIFT * signal[:TOTAL]
    frame = pd.DataFrame(
        {
            "ds": pd.date_range("2023-01-01", periods=PAST),
            "y": sales[:PAST],
            "x": signal[HORIZON : PAST + HORIZON],
        }
    )
    timed, covariates = aligned(frame, None, ["x"])
    (adjustment,) = adjustments(timed, covariates)
    assert abs(adjustment.coefficients[0] - LIFT) < 4 * NOISE / np.sqrt(PAST - HORIZON)
    assert adjustment.unknown == HORIZON
    assert (
        error(adjusted_forecast(sales, adjustment), sales)
        < error(forecast(sales[:PAST]), sales) / 2
    )
    # A category that only the last horizon has had is not known, rather than an error.
    frame["x"] = np.where(np.arange(PAST) < PAST - 5, np.where(signal[:PAST] > 0, "a", "b"), "c")
    timed, covariates = aligned(frame, None, ["x"])
    assert covariates.table(0).names == ("x=a", "x=b")
    (adjustment,) = adjustments(timed, covariates)
    assert adjustment.unknown == HORIZON + 5
    assert adjustment.contribution_future[-5:].tolist() == [0.0] * 5


def test_gaps_in_time_leave_the_covariate_unknown():
    df, future_df = frames((0,))
    kept = df.drop(index=[10, 11, 200])
    timed, covariates = aligned(kept, future_df)
    (adjustment,) = adjustments(timed, covariates)
    assert (timed.filled, adjustment.unknown, adjustment.used) == (3, 3, PAST - 3)
    assert np.isnan(covariates.table(0).past[[10, 11, 200], 0]).all()


def test_wide_frames_share_their_covariates():
    times = pd.date_range("2023-01-01", periods=TOTAL, tz="Europe/Berlin")
    sales, promotion = shop(0)
    whole = pd.DataFrame({"a": sales, "b": 3 - sales, "promo": promotion}, index=times)
    future_df = whole[["promo"]].iloc[PAST:].tz_convert("UTC")
    timed, covariates = aligned(whole.iloc[:PAST], future_df)
    assert timed.targets == ("a", "b")
    first, second = adjustments(timed, covariates)
    ours = fitted(sales, promotion)
    np.testing.assert_array_equal(first.contribution_future, ours.contribution_future)
    np.testing.assert_allclose(second.contribution_future, -ours.contribution_future, rtol=1e-9)


def test_what_is_left_over_is_reported():
    df, future_df = frames()
    more = future_df.assign(ds=future_df["ds"] + pd.Timedelta(days=HORIZON))
    other = future_df.assign(id="s9")
    _, covariates = aligned(df, pd.concat([future_df, more, other]))
    assert covariates.extra_ids == {"s9": 2 * HORIZON}
    assert covariates.extra_rows == 2 * HORIZON
    # Rows of the past come before those that are wanted.
    past = df.drop(columns="y").assign(promo=-1.0)
    _, covariates = aligned(df, pd.concat([past, future_df]))
    assert covariates.extra_rows == 2 * PAST
    np.testing.assert_array_equal(covariates.table(1).future[:, 0], future_df["promo"][HORIZON:])


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_times_of_another_unit(unit):
    df, future_df = frames()
    _, covariates = aligned(df, future_df.assign(ds=future_df["ds"].dt.as_unit(unit)))
    np.testing.assert_array_equal(covariates.table(1).future[:, 0], future_df["promo"][HORIZON:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="id"), "future_df has no column 'id', which df has"),
        (lambda f: f.drop(columns="ds"), "future_df has no column 'ds'"),
        (lambda f: f.drop(index=[HORIZON + 3]), r"no row for series s1 at 2024-02-08 .*\(1 of 28"),
        (lambda f: f[f["id"] == "s0"], r"no row for series s1 at 2024-02-05 .*\(28 of 28"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "future_df: series s0 has two rows or more at 2024"),
        (
            lambda f: f.assign(promo=f["promo"].where(f.index != HORIZON + 1)),
            "future_df: covariate 'promo' of series s1 has no value at 2024-02-06",
        ),
        (lambda f: f.assign(promo="yes"), "'promo' holds numbers in df and text in future_df"),
        (lambda f: f.assign(promo=np.inf), "future_df: covariate 'promo' is infinite in row 0"),
        (lambda f: f.assign(price=1.0), "future_df has a column 'price' that df does not have"),
        (lambda f: f.assign(ds=f["ds"].dt.tz_localize("UTC")), "both must be of one kind"),
        (lambda f: f.assign(ds=range(len(f))), "both must be of one kind"),
        (lambda f: f.assign(promo=f["ds"]), "'promo' must hold numbers, booleans or text"),
    ],
)
def test_frames_of_the_future_that_cannot_be_used(change, says):
    df, future_df = frames()
    names = ["promo"] if "ds" in says or "kind" in says or "promo" in says else None
    with pytest.raises(DataError, match=says):
        adjustments(*aligned(df, change(future_df), names))


def test_columns_of_the_future_that_are_covariates():
    df, future_df = frames(price=1.0)
    assert shared(df, future_df.assign(y=0.0)) == ("promo", "price")
    assert shared(df, future_df, id="price") == ("id", "promo")
    text = [f.astype({"ds": str}).drop(columns="id")[["ds", "promo"]] for f in (df, future_df)]
    assert shared(*(f.rename(columns={"ds": "date"}) for f in text)) == ("promo",)


# What is given and not used.


def prepared(df, future_df, **options):
    """The result of `prepare_frame`, and the lines that it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs = prepare_frame(df, HORIZON, future_df=future_df, **options)
    assert {each.category for each in caught} <= {UserWarning}
    return inputs, [str(each.message) for each in caught]


def attrs_of(inputs):
    frame = inputs.to_frame(np.zeros((len(inputs.series), HORIZON)), None, ())
    return {k: frame.attrs[k] for k in ("extra_ids", "extra_rows", "ignored_covariates")}


def test_nothing_is_said_where_everything_is_used():
    inputs, lines = prepared(*frames())
    assert lines == []
    assert attrs_of(inputs) == {"extra_ids": {}, "extra_rows": 0, "ignored_covariates": {}}
    inputs, lines = prepared(frames()[0], None)
    assert lines == []
    assert attrs_of(inputs) == {"extra_ids": {}, "extra_rows": 0, "ignored_covariates": {}}


def test_ids_and_rows_of_the_future_that_are_not_used_are_named():
    df, future_df = frames()
    later = future_df.assign(ds=future_df["ds"] + pd.Timedelta(days=HORIZON)).iloc[:3]
    mistyped = future_df.iloc[:2].assign(id="S0")
    unknown = future_df.iloc[:1].assign(id="s9")
    inputs, lines = prepared(df, pd.concat([future_df, later, mistyped, unknown]))
    assert attrs_of(inputs) == {
        "extra_ids": {"S0": 2, "s9": 1},
        "extra_rows": 3,
        "ignored_covariates": {},
    }
    assert lines == [
        "df has no series of 2 ids of future_df, whose 3 rows are not used: 'S0', 's9'",
        "3 rows of future_df are not used, since their times are none of the 28 that follow each "
        "series",
    ]
    used, _ = prepared(df, future_df)
    for ours, theirs in zip(inputs.series, used.series, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_covariates_that_are_not_used_are_named_with_the_reason():
    """One is constant in both series, one in the second alone, and one is a trend."""
    df, future_df = frames(constant=4.0)
    for frame, first in ((df, 0), (future_df, PAST)):
        steps = frame.groupby("id").cumcount() + first
        frame["trend"] = steps * 1.0
        frame["half"] = np.where(frame["id"] == "s0", np.sin(steps * 1.7), 1.0)
    inputs, lines = prepared(df, future_df)
    assert attrs_of(inputs) == {
        "extra_ids": {},
        "extra_rows": 0,
        "ignored_covariates": {
            "constant": {"it is constant": ["s0 y", "s1 y"]},
            "trend": {"the level or season explains it": ["s0 y", "s1 y"]},
            "half": {"it is constant": ["s1 y"]},
        },
    }
    assert lines == [
        "the covariate 'constant' is not used for 2 of 2 series, since it is constant: 's0 y', "
        "'s1 y'",
        "the covariate 'trend' is not used for 2 of 2 series, since the level or season explains "
        "it: 's0 y', 's1 y'",
        "the covariate 'half' is not used for 1 of 2 series, since it is constant: 's1 y'",
    ]


def test_a_frame_of_the_future_without_covariates_is_named():
    df, future_df = frames()
    inputs, lines = prepared(df, future_df[["id", "ds"]])
    assert lines == ["future_df is not used, since all of its columns are ids, times or targets"]
    assert inputs.effects is None
