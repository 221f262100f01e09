"""Families of generated series: repeatable, finite, and with the statistics that they claim."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from timemoe_jax.data.generators.draws import autoregression, recursion, smooth
from timemoe_jax.data.generators.families import (
    arima,
    calendar_effects,
    chaos,
    diffusion,
    events,
    exponential_smoothing,
    regimes,
    volatility,
    waves,
)
from timemoe_jax.data.generators.families import components as synthetic
from timemoe_jax.data.generators.families.calendar_effects import CalendarEffects
from timemoe_jax.data.generators.families.causal_graph import CausalGraph
from timemoe_jax.data.generators.families.intermittent import Intermittent
from timemoe_jax.data.generators.generator import Generator
from timemoe_jax.data.generators.mixup import TSMixup
from timemoe_jax.data.generators.registry import FAMILIES, make_generator
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def correlation(values: np.ndarray, lag: int) -> float:
    """At a lag, over all series, about a mean of 0."""
    return float(np.mean(values[:, lag:] * values[:, :-lag]) / np.mean(values**2))


@pytest.mark.parametrize("name", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("length", [2, 3, 17, 500])
    def test_series_are_finite_and_not_constant(self, name, length):
        values = make_generator(name).generate(rng(), 40, length)
        assert values.shape == (40, length)
        assert values.dtype == np.float32
        assert np.all(np.isfinite(values))
        assert np.all(values.min(axis=1) < values.max(axis=1))

    def test_equal_seeds_give_equal_series(self, name):
        generator = make_generator(name)
        first = generator.generate(rng(5), 9, 130)
        np.testing.assert_array_equal(first, generator.generate(rng(5), 9, 130))
        assert not np.array_equal(first, generator.generate(rng(6), 9, 130))
        assert len(np.unique(first, axis=0)) == 9

    def test_it_says_where_it_comes_from_and_what_it_is(self, name):
        generator = make_generator(name)
        assert generator.citation
        assert type(generator)() == generator
        assert all(isinstance(key, str) for key in generator.parameters())

    def test_what_is_too_small_is_refused(self, name):
        with pytest.raises(DataError, match="count 0"):
            make_generator(name).generate(rng(), 0, 10)
        with pytest.raises(DataError, match="length 1"):
            make_generator(name).generate(rng(), 1, 1)


class Flat(Generator):
    """Every other draw is constant, or NaN."""

    citation = "none"

    def _draw(self, rng, count, length):
        values = rng.standard_normal((count, length))
        values[::3] = 1.0
        values[1::3, 0] = np.nan
        return values


class Constant(Generator):
    citation = "none"

    def _draw(self, rng, count, length):
        return np.zeros((count, length))


def test_unusable_series_are_drawn_again_and_counted():
    with pytest.raises(DataError, match="constant or not finite"):
        Constant().generate(rng(), 5, 10)
    # Of 3 series the third is kept; of the other two, none ever is.
    with pytest.raises(DataError, match="gave 2 of 3"):
        Flat().generate(rng(), 3, 10)

    class Rarely(Generator):
        citation = "none"

        def _draw(self, rng, count, length):
            values = rng.standard_normal((count, length))
            values[: count // 2] = 0.0
            return values

    values, redrawn = Rarely().generate_counted(rng(), 8, 10)
    assert redrawn == 4 + 2 + 1
    assert np.all(np.std(values, axis=1) > 0)


def test_a_range_must_be_in_order():
    with pytest.raises(DataError, match="noise is \\(2, 1\\)"):
        chaos.Chaos(noise=(2, 1))
    with pytest.raises(DataError, match="states is 1"):
        regimes.Regimes(states=1)
    with pytest.raises(DataError, match="observed 9"):
        CausalGraph(observed=9)


# --- the parts that families share


def test_recursion_by_hand():
    out = recursion(np.array([0.5, -1.0]), np.array([[1.0, 0.0, 2.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(out, [[1.0, 0.5, 2.25], [1.0, 0.0, 1.0]])


@pytest.mark.parametrize("phi", [0.0, 0.6, -0.7, 0.95])
def test_autoregression_has_unit_variance_from_its_first_point_on(phi):
    values = autoregression(rng(), np.full(4000, phi), 40)
    np.testing.assert_allclose(values.var(axis=0), 1.0, atol=0.12)
    for lag in (1, 3):
        assert correlation(values, lag) == pytest.approx(phi**lag, abs=0.03)


def test_smooth_curves_pass_through_their_knots_without_corners():
    values = smooth(rng(), np.array([100.0, 1.0]), 1000)
    assert np.abs(np.diff(values[0])).max() < 0.15
    assert values[0].std() > 0.2


# --- the classical models


def test_a_stationary_autoregression_from_its_partial_autocorrelations():
    """Order 2 by hand: phi1 = p1 (1 - p2), phi2 = p2."""
    found = arima.from_partials(np.array([[0.5, -0.4], [0.9, 0.0]]))
    np.testing.assert_allclose(found, [[0.7, -0.4], [0.9, 0.0]])


@given(st.lists(st.floats(-0.99, 0.99), min_size=1, max_size=6))
def test_every_drawn_autoregression_is_stationary(partials):
    coefficients = arima.from_partials(np.array([partials]))[0]
    roots = np.roots(np.concatenate([[1.0], -coefficients]))
    assert np.all(np.abs(roots) < 1.0)


def test_arima_of_order_one_has_its_autocorrelation():
    """With one coefficient of either kind, and none of the rest."""
    one = arima.Arima(
        max_order=1, partial=(0.8, 0.8), differences=(1.0,), seasonal_share=0.0, drift=(0, 0)
    )
    values = one.generate(rng(), 400, 2000).astype(np.float64)
    measured = [correlation(row[None], 1) for row in values]
    # AR and MA orders are 0 or 1 each: r1 of ARMA is (1 + pt)(p + t) / (1 + 2pt + t^2).
    expected = [0.0, 0.8, 0.8 / 1.64, 1.64 * 1.6 / (1 + 1.28 + 0.64)]
    distance = np.abs(np.array(measured)[:, None] - expected).min(axis=1)
    assert np.median(distance) < 0.02
    nearest = np.abs(np.array(measured)[:, None] - expected).argmin(axis=1)
    assert len(np.unique(nearest)) == 4


def test_a_seasonal_autoregression_recurs():
    season = arima.Arima(
        max_order=0, differences=(1.0,), seasons=(12,), seasonal=(0.9, 0.9), seasonal_share=1.0
    )
    values = season.generate(rng(), 50, 2000).astype(np.float64)
    centered = values - values.mean(axis=1, keepdims=True)
    assert correlation(centered, 12) == pytest.approx(0.9, abs=0.03)
    assert abs(correlation(centered, 6)) < 0.05


def test_exponential_smoothing_by_hand():
    """Additive everything, then a relative error, two points of period 2."""
    arguments = {
        "smoothing": np.array([[0.5, 0.5], [0.1, 0.1], [0.2, 0.2]]),
        "slope": np.array([0.3, 0.3]),
        "damping": np.array([1.0, 1.0]),
        "ring": np.array([[0.2, -0.2], [2.0, 0.5]]),
        "period": np.array([2, 2]),
        "times": np.array([False, True]),
    }
    shocks = np.array([[0.1, 0.1], [0.0, 0.0], [0.0, 0.0]])
    values = exponential_smoothing.simulate(shocks, np.array([False, True]), **arguments)
    # Series 0: mean 1 + 0.3 + 0.2; then level 1.35, slope 0.31, season 0.22.
    np.testing.assert_allclose(values[:, 0], [1.6, 1.35 + 0.31 - 0.2, 1.35 + 0.62 + 0.22])
    # Series 1: mean 1.3 * 2 = 2.6, error 0.26, which is 0.13 of level and 0.2 of season.
    level, slope, season = 1.3 + 0.065, 0.3 + 0.013, 2.0 + 0.2 * 0.2
    expected = [2.86, (level + slope) * 0.5, (level + 2 * slope) * season]
    np.testing.assert_allclose(values[:, 1], expected)


def test_regimes_hold_and_switch():
    quiet = regimes.Regimes(noise=(1e-9, 1e-9), trend_share=0.0, segments=(10, 10))
    values = quiet.generate(rng(), 200, 1000)
    rounded = np.round(values, 4)
    assert max(len(np.unique(row)) for row in rounded) == 3
    switches = np.mean(np.sum(np.diff(rounded, axis=1) != 0, axis=1))
    assert switches == pytest.approx(10, abs=1)


def test_broken_trends_are_lines_between_breaks():
    segment = np.repeat([[0, 1, 2]], 50, axis=0).repeat(20, axis=1)
    values = regimes.broken_trends(rng(), segment)
    bends = np.abs(np.diff(values, n=2, axis=1)) > 1e-9
    assert set(np.flatnonzero(bends.any(axis=0))) <= {18, 19, 38, 39}
    assert bends.any()


# --- the calendar


def test_dates_are_those_of_the_calendar():
    """29 February 2024 was a Thursday; a monthly series keeps to the first of the month."""
    start = np.datetime64("2024-02-28T22:00", "m").astype(np.int64)
    parts = calendar_effects.dates(np.array([start, start]), np.array([60, 0]), 27)
    assert parts.weekday[0, 0] == 2
    assert parts.weekday[0, 2] == 3
    assert parts.of_day[0, 1] == pytest.approx(23 / 24)
    assert parts.month[0, [0, 2, 25, 26]].tolist() == [1, 1, 1, 2]
    assert parts.of_year[0, [0, 2, 26]].tolist() == [58, 59, 60]
    assert parts.month[1].tolist()[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]
    assert np.all(parts.of_day[1] == 0)


def test_without_years_and_noise_a_week_recurs_exactly():
    clean = CalendarEffects(
        steps=(60,), month=(0, 0), holiday=(0, 0), trend=(0, 0), noise=(0, 0), product_share=0.5
    )
    values = clean.generate(rng(), 30, 168 * 4)
    np.testing.assert_allclose(values[:, 168:], values[:, :-168], rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(values[:, 24:] - values[:, :-24]).max(axis=1) > 1e-2)


def test_holidays_reach_to_their_neighbors_and_no_further():
    """25 December is day 359 of a leap year, counted from 0."""
    table = CalendarEffects(holidays=18.0)._holiday_table(rng(), 5)
    days = [calendar_effects._MONTH_STARTS[m - 1] + d - 1 for m, d in calendar_effects.HOLIDAYS]
    assert 359 in days
    touched = {(day + offset) % 366 for day in days for offset in range(-2, 3)}
    assert set(np.flatnonzero(table.any(axis=0))) == touched
    few = CalendarEffects(holidays=4.0)._holiday_table(rng(), 2000)
    assert np.mean(np.any(few[:, 100:119] != 0, axis=1)) == 0  # from 10 to 28 April


# --- intermittent demand, prices, events


def test_the_share_of_zeros_is_that_of_the_model():
    fixed = {"occurrence": (0.2, 0.2), "swing": (0, 0), "size": (3, 3), "dispersion": (2, 2)}
    croston = Intermittent(**fixed, croston_share=1.0).generate(rng(), 100, 2000)
    assert np.mean(croston == 0) == pytest.approx(0.8, abs=0.01)
    assert croston[croston > 0].mean() == pytest.approx(4.0, rel=0.03)
    inflated = Intermittent(**fixed, croston_share=0.0).generate(rng(), 100, 2000)
    # (r / (r + mean))^r of the counts are zero themselves.
    assert np.mean(inflated == 0) == pytest.approx(0.8 + 0.2 * 0.4**2, abs=0.01)
    for values in (croston, inflated):
        assert np.all(values == np.rint(values))
        assert values.min() == 0


@pytest.mark.parametrize(("theta", "dt"), [(0.05, 1.0), (0.5, 1.0), (2.0, 0.25)])
def test_ornstein_uhlenbeck_forgets_exponentially(theta, dt):
    sigma = np.full(3000, 1.5)
    values = diffusion.ornstein_uhlenbeck(rng(), np.full(3000, theta), sigma, 60, dt)
    variance = 1.5**2 / (2 * theta)
    np.testing.assert_allclose(values.var(axis=0), variance, rtol=0.15)
    for lag in (1, 2, 5):
        assert correlation(values, lag) == pytest.approx(np.exp(-theta * dt * lag), abs=0.03)


def test_log_returns_of_geometric_brownian_motion():
    ones = np.ones(500)
    values = diffusion.log_price(rng(), 0.01 * ones, 0.2 * ones, 0 * ones, ones, 1000)
    assert np.all(values[:, 0] == 0)
    returns = np.diff(values, axis=1)
    assert returns.var() == pytest.approx(0.04, rel=0.01)
    assert returns.mean() == pytest.approx(0.01 - 0.02, abs=0.001)
    # The price itself grows as its drift says.
    assert np.mean(np.exp(values[:, 5])) == pytest.approx(np.exp(0.05), rel=0.06)


def test_jumps_add_their_variance_and_heavy_tails():
    ones = np.ones(500)
    values = diffusion.log_price(rng(), 0 * ones, 0.1 * ones, 0.05 * ones, 0.8 * ones, 1000)
    returns = np.diff(values, axis=1)
    assert returns.var() == pytest.approx(0.01 + 0.05 * 0.64, rel=0.03)
    kurtosis = np.mean((returns - returns.mean()) ** 4) / returns.var() ** 2
    assert kurtosis > 10


def test_garch_by_hand_and_in_the_long_run():
    out = volatility.garch(np.array([[2.0, 1.0, -1.0]]), np.array([0.2]), np.array([0.5]))
    second = 0.3 + 0.2 * 4.0 + 0.5
    third = 0.3 + (0.2 + 0.5) * second
    np.testing.assert_allclose(out, [[2.0, np.sqrt(second), -np.sqrt(third)]])
    shocks = rng().standard_normal((300, 3000))
    returns = volatility.garch(shocks, np.full(300, 0.1), np.full(300, 0.8))
    assert returns.var() == pytest.approx(1.0, rel=0.05)
    assert abs(correlation(returns, 1)) < 0.01
    assert correlation(returns**2 - 1, 1) > 0.05


def test_hawkes_has_its_mean_and_clusters():
    """The mean count is rate / (1 - branching); without branching counts are Poisson.

    The excitation x[t+1] = (decay + gain) x[t] + gain (count - mean) + ... adds its own variance,
    gain^2 mean / (1 - (decay + gain)^2), gain = branching (1 - decay).
    """
    n = 300
    decay = np.full(n, 0.2)
    counts = events.hawkes(rng(), np.full(n, 0.3), np.full(n, 0.5), decay, 2000)
    assert counts.mean() == pytest.approx(0.6, rel=0.03)
    assert counts.var() == pytest.approx(0.6 + 0.4**2 * 0.6 / (1 - 0.6**2), rel=0.03)
    plain = events.hawkes(rng(), np.full(n, 0.3), np.zeros(n), decay, 2000)
    assert plain.var() == pytest.approx(plain.mean(), rel=0.03)


def test_pulses_come_every_period():
    train = events.Events(
        period=(25, 25), jitter=(0, 0), marks=(0, 0), noise=(0, 0), weights=(1, 0, 0)
    )
    values = train.generate(rng(), 60, 500)
    np.testing.assert_allclose(values[:, 25:], values[:, :-25], atol=1e-5)


# --- graphs and mixtures


def test_nodes_of_one_graph_depend_on_one_another_and_graphs_do_not():
    generator = CausalGraph(roots=1, nodes=4, observed=4, max_parents=1, noise=(0.0, 0.0))
    values = generator.generate(rng(), 40, 400)
    related = np.abs(np.corrcoef(values))
    within = np.mean(
        [related[k : k + 4, k : k + 4][np.triu_indices(4, 1)] for k in range(0, 40, 4)]
    )
    across = np.mean(related[:4, 4:])
    assert within > across + 0.2


def test_tsmixup_of_one_window_is_that_window_scaled():
    source = ArraySource([np.arange(1.0, 41.0), np.full(3, 5.0)])
    values = TSMixup(source, most=1).generate(rng(), 20, 10).astype(np.float64)
    np.testing.assert_allclose(np.abs(values).mean(axis=1), 1.0, rtol=1e-6)
    steps = np.diff(values, axis=1)
    np.testing.assert_allclose(steps, steps[:, :1] * np.ones(9), rtol=1e-4)


def test_tsmixup_is_convex():
    """Windows of a positive source have a mean of 1 after scaling, and so have mixtures."""
    source = ArraySource([rng(k).uniform(1, 5, 100) for k in range(5)])
    values = TSMixup(source, most=4).generate(rng(), 50, 30)
    np.testing.assert_allclose(values.mean(axis=1), 1.0, rtol=1e-5)
    assert TSMixup(source).parameters()["source"] == {"sequences": 5, "points": 500}


def test_tsmixup_passes_missing_values_over():
    gap = np.arange(100.0)
    gap[50] = np.nan
    values = TSMixup(ArraySource([gap])).generate(rng(), 30, 40)
    assert np.all(np.isfinite(values))
    gap[::5] = np.nan
    with pytest.raises(DataError, match="missing values"):
        TSMixup(ArraySource([gap])).generate(rng(), 1, 40)
    with pytest.raises(DataError, match="the longest has 100"):
        TSMixup(ArraySource([gap])).generate(rng(), 1, 101)


def test_components_are_those_of_the_synthetic_module():
    values = make_generator("components").generate(rng(4), 3, 100)
    again = rng(4)
    expected = [synthetic.generate(again, 100) for _ in range(3)]
    np.testing.assert_array_equal(values, expected)


def test_the_benchmark_runs(tmp_path):
    """Its rows are what they say; nothing here is about their values."""
    path = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/generators.py", "--quick", "--families", "ets,tsmixup"]
    done = subprocess.run(
        [*command, "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert {"ets 64x256", "tsmixup 64x256", "overall 64x256"} < rows.keys()
    for row in rows.values():
        assert row["reference"] == "floor"
        assert row["ratio"] == pytest.approx(row["value"] / 5)


def test_a_tide_is_a_sum_of_as_many_sines_as_are_drawn():
    """Without noise or swell, a single sine obeys x[t+1] + x[t-1] = 2 cos(w) x[t]."""
    found = waves.Tides(sines=(1, 1), noise=(1e-9, 1e-9), swell=(0, 0)).generate(rng(), 20, 200)
    middle, ends = found[:, 1:-1].astype(float), found[:, 2:].astype(float) + found[:, :-2]
    factor = np.sum(middle * ends, axis=1) / np.sum(middle**2, axis=1)
    assert np.abs(ends - factor[:, None] * middle).max() < 1e-4
    assert np.all(np.abs(factor) <= 2)


def test_days_are_dark_for_a_part_and_as_long_as_they_are_drawn():
    """Without clouds, dim days and noise a day is that of a formula; with them it is not above."""
    clear = {"dim": (0.0, 0.0), "clouds": (0.0, 0.0), "noise": (1e-9, 1e-9)}
    fixed = {"days": (48,), "period": (48.0, 48.0), "horizon": (0.3, 0.3), "power": (1.0, 1.0)}
    clean = waves.Daylight(**clear, **fixed).generate(rng(), 200, 480)
    # A year moves what is dark by 0.3 at most.
    dark = np.mean(clean < 1e-6, axis=1)
    shares = np.arccos([0.6, 0.0]) / np.pi
    assert (1 - shares[1] - 0.03 < dark).all()
    assert (dark < 1 - shares[0] + 0.03).all()
    assert (np.abs(clean[:, 48:] - clean[:, :-48]).max(axis=1) < 0.02).all()
    cloudy = waves.Daylight(noise=(1e-9, 1e-9), **fixed).generate(rng(), 200, 480)
    assert cloudy.min() > -1e-6
    assert cloudy.max() <= 1.0
    dimmed = cloudy.reshape(200, 10, 48).sum(2).std(1) / cloudy.sum(1)
    assert np.mean(dimmed > 0.01) > 0.7


def test_what_recurs_comes_again_after_a_period_or_a_week_of_them():
    """Without noise, drift and fading; of lengths that the calendar does not know, too."""
    still = {"noise": (1e-9, 1e-9), "drift": (1e-9, 1e-9), "fading": (1e-9, 1e-9), "whole": 1.0}
    for period in (19, 144):
        daily = waves.Recurrence(period=(period, period), weekly=0.0, **still)
        found = daily.generate(rng(), 20, 1200)
        again = np.abs(found[:, period:] - found[:, :-period]).max(axis=1)
        assert (again < 1e-4).all()
        weekly = waves.Recurrence(period=(period, period), week=(7, 7), weekly=1.0, **still)
        found = weekly.generate(rng(), 20, 1200)
        again = np.abs(found[:, 7 * period :] - found[:, : -7 * period]).max(axis=1)
        assert (again < 1e-4).all()
        assert (np.abs(found[:, period:] - found[:, :-period]).max(axis=1) > 0.1).sum() > 10


def test_growth_stays_within_its_range_and_repeats_its_season():
    """Without noise and shocks, changes over a season are those of the level alone."""
    grown = exponential_smoothing.Growth(
        seasons=(12,),
        grown=(1e-6, 1e-6),
        growth=(1e-6, 1e-6),
        wander=(1e-9, 1e-9),
        swing=(0.3, 0.3),
        noise=(1e-9, 1e-9),
        shock=0.0,
        evolving=(1e6, 1e6),
        endless=0.0,
    ).generate(rng(), 30, 240)
    change = np.abs(grown[:, 12:] - grown[:, :-12]).mean(axis=1)
    assert np.all(change < 0.02 * grown.std(axis=1))
    wide = exponential_smoothing.Growth(swing=(1e-9, 1e-9), noise=(1e-9, 1e-9), endless=0.0)
    values = wide.generate(rng(), 200, 1000)
    assert values.max() <= np.exp(wide.range) * 1.001


def test_growth_that_lasts_is_steady():
    """Where no rate is drawn anew, a series or its logarithm is a straight line, more often up."""
    grown = exponential_smoothing.Growth(
        seasons=(1,),
        steady=1.0,
        lasting=(1e9, 1e9),
        grown=(1e7, 1e7),
        wander=(1e-9, 1e-9),
        noise=(1e-9, 1e-9),
        shock=0.0,
        range=1e3,
        endless=0.0,
    ).generate(rng(), 400, 100)
    grown = grown.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of series that are added up and negative
        lines = [np.abs(np.diff(a, 2, axis=1)).max(axis=1) < 1e-4 for a in (grown, np.log(grown))]
    assert np.all(lines[0] | lines[1])
    assert np.mean(grown[:, -1] > grown[:, 0]) == pytest.approx(0.69, abs=0.08)


def test_growth_without_an_end_is_that_of_a_power_of_time():
    """Its slope rises or falls as its power says, and never turns."""
    still = {"seasons": (1,), "walk": (1e-6, 1e-6), "rest": (1e-6, 1e-6), "begun": (20.0, 20.0)}
    time = 1 + np.arange(300) / 20
    for power in (0.5, 1.0, 2.5):
        grown = exponential_smoothing.Growth(endless=1.0, power=(power, power), **still)
        values = grown.generate(rng(), 200, 300).astype(np.float64)
        up = values[:, -1] > values[:, 0]
        assert np.mean(up) == pytest.approx(0.8, abs=0.08)
        steps = np.where(up[:, None], 1, -1) * np.diff(values, axis=1)
        by_hand = np.diff(time**power) * 20 / power
        np.testing.assert_allclose(steps, np.tile(by_hand, (200, 1)), rtol=0.01)
