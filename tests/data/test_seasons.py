"""Seasons by times, by frequency and by values."""

import numpy as np
import pytest

from timemoe_jax.data.samples import load_sample
from timemoe_jax.data.seasons import (
    SEASONS,
    Season,
    season_of,
    season_of_frequency,
    season_of_times,
    season_of_values,
)


@pytest.mark.parametrize(
    ("step", "season"),
    [("10s", 8640), ("1m", 1440), ("10m", 144), ("15m", 96), ("30m", 48), ("1h", 24), ("6h", 4)]
    + [("1D", 7), ("7D", 52), ("30D", 12), ("91D", 4), ("365D", 1), ("3D", 1)],
)
def test_seasons_of_even_steps(step, season):
    times = np.datetime64("2020-01-01T00:00:00") + np.arange(9) * np.timedelta64(
        int(step[:-1]), step[-1]
    )
    assert season_of_times(times) == season


def test_seasons_of_calendar_steps_gaps_and_nothing():
    months = np.arange("2020-01", "2022-01", dtype="datetime64[M]").astype("datetime64[D]")
    assert season_of_times(months) == 12
    assert season_of_times(months[::3]) == 4
    assert season_of_times(months[::12]) == 1
    hours = np.arange("2020-01-01T00", "2020-01-05T00", dtype="datetime64[h]")
    assert season_of_times(np.delete(hours, [5, 6, 7, 50])) == 24
    assert season_of_times(None) == 1
    assert season_of_times(hours[:1]) == 1
    assert season_of_times(hours[[0, 0, 0]]) == 1


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        *(
            ("h", 24),
            ("15min", 96),
            ("3h", 8),
            ("7h", 1),
            ("24h", 1),
            ("D", 7),
            ("2D", 1),
            ("B", 5),
        ),
        *(("W-SUN", 52), ("2W-MON", 26), ("MS", 12), ("ME", 12), ("2MS", 6), ("QE-DEC", 4)),
        *(("BQS-JAN", 4), ("YS-JAN", 1), ("SMS-15", 24), ("5", 1), ("M", 12), ("Q-DEC", 4)),
    ],
)
def test_seasons_of_frequencies(freq, season):
    assert season_of_frequency(freq) == season


@pytest.mark.parametrize("season", [s for s in SEASONS if s <= 365])
def test_a_noisy_cycle_is_found(season):
    rng = np.random.default_rng(season)
    shape = rng.standard_normal(season)
    cycles = np.tile(shape, max(4, 400 // season))
    trend = np.linspace(0, 100, len(cycles))
    assert season_of_values(cycles + trend + 0.3 * rng.standard_normal(len(cycles))) == season


@pytest.mark.parametrize("season", [12, 24, 96])
def test_a_smooth_wave_is_found(season):
    t = np.arange(10 * season)
    noise = 0.3 * np.random.default_rng(0).standard_normal(len(t))
    values = np.sin(2 * np.pi * t / season) + noise
    assert season_of_values(values) == season
    values[np.random.default_rng(1).random(len(t)) < 0.3] = np.nan
    assert season_of_values(values) == season
    assert season_of_values(1e300 * values) == season


def test_noise_has_none():
    """A lag's correlation has a deviation of 1 / sqrt(500): 0.2 is more than four of them."""
    found = [season_of_values(np.random.default_rng(i).standard_normal(1000)) for i in range(50)]
    assert found == [1] * 50


def test_lines_and_constants_have_none():
    for values in (np.arange(100.0), np.full(100, 3.0), np.array([1.0, np.nan, 2.0])):
        assert season_of_values(values) == 1


def test_of_real_series():
    table = load_sample("greensboro_hourly")
    assert [season_of_values(column) for column in table.values.T] == [24, 24]


def test_a_season_must_fit_three_times():
    cycle = np.random.default_rng(0).standard_normal(24)
    assert season_of_values(np.tile(cycle, 3)) == 24
    assert season_of_values(np.tile(cycle, 3)[1:]) == 1


def test_few_random_walks_have_one():
    """They wander up and down by chance, which looks like a long season at times."""
    walks = [np.random.default_rng(i).standard_normal(1000).cumsum() for i in range(100)]
    assert sum(season_of_values(walk) > 1 for walk in walks) <= 5


def test_the_calendar_goes_first_and_the_values_after_it():
    daily = np.tile(np.random.default_rng(0).standard_normal(24), 9)
    assert season_of([daily], freq="MS") == Season(12, "calendar")
    assert season_of([daily], freq="1") == Season(24, "found in the series")
    assert season_of([daily], freq="YS").points == 24
    assert season_of(freq="1") == season_of([np.ones(50)]) == Season(1, "none")
    hours = np.arange("2020-01-01T00", "2020-01-03T00", dtype="datetime64[h]")
    assert season_of([daily], times=hours) == Season(24, "calendar")
    assert season_of([daily], freq="D", times=hours).points == 7
    weekly = np.tile(np.random.default_rng(1).standard_normal(7), 9)
    assert season_of([weekly, daily, daily]).points == 24
    assert season_of([daily, weekly]).points == 7  # the shortest of equals
