"""Sample paths: their steps agree with the quantiles, and go together as the errors did."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.intervals.conformal import conformal_offsets
from timemoe_jax.forecasting.intervals.paths import sample_paths
from timemoe_jax.forecasting.intervals.quantiles import quantile_function

NAN = np.nan
LEVELS = np.arange(1, 20) / 20


def autoregressive(seed, length, phi):
    """A stationary AR(1) of unit variance."""
    noise = np.random.default_rng(seed).standard_normal(length) * np.sqrt(1 - phi**2)
    values = np.empty(length)
    values[0] = noise[0] / np.sqrt(1 - phi**2)
    for t in range(1, length):
        values[t] = phi * values[t - 1] + noise[t]
    return values


def normal_quantiles(count, horizon, levels=LEVELS):
    return np.broadcast_to(ndtri(levels), (count, horizon, len(levels))).copy()


def test_quantile_function_by_hand():
    quantiles = np.array([[0.0, 10.0, 30.0]])
    levels = [0.25, 0.5, 0.75]

    def at(probability):
        return quantile_function(np.array([[probability]]), quantiles, levels)[0, 0]

    assert [at(level) for level in levels] == [0, 10, 30]
    quarter = ndtri(0.75)
    assert at(ndtr(quarter / 2)) == pytest.approx(20)  # half way in the normal quantile
    assert at(ndtr(-quarter / 2)) == pytest.approx(5)
    assert at(ndtr(2 * quarter)) == pytest.approx(50)  # the line goes on
    assert at(ndtr(-3 * quarter)) == pytest.approx(-20)


def test_the_last_quantile_is_met_without_rounding():
    quantiles = np.array([[-0.3, 1e-17]])  # -0.3 + (1e-17 + 0.3) is 0
    assert quantile_function(np.array([[0.9]]), quantiles, [0.1, 0.9])[0, 0] == 1e-17


def test_three_quantiles_of_a_normal_distribution_are_that_distribution():
    p = np.linspace(0.001, 0.999, 77)[:, None]
    found = quantile_function(
        p, 3 + 2 * normal_quantiles(1, 1, [0.1, 0.5, 0.9])[0], [0.1, 0.5, 0.9]
    )
    np.testing.assert_allclose(found, 3 + 2 * ndtri(p), rtol=0, atol=1e-12)


@given(
    st.lists(st.integers(1, 99), min_size=2, max_size=6, unique=True).map(sorted),
    st.integers(0, 10**6),
)
def test_the_quantile_function_rises_and_meets_the_quantiles(hundredths, seed):
    levels = np.array(hundredths) / 100
    rng = np.random.default_rng(seed)
    steps = rng.random((2, len(levels))) * rng.integers(0, 2, (2, len(levels)))
    quantiles = steps.cumsum(axis=1)
    p = np.sort(np.concatenate([np.linspace(0.001, 0.999, 200), levels]))
    values = quantile_function(np.stack([p, p], axis=1), quantiles, levels)
    assert (np.diff(values, axis=0) >= -1e-12).all()
    at = quantile_function(np.stack([levels, levels], axis=1), quantiles, levels)
    np.testing.assert_array_equal(at, quantiles.T)


def test_paths_by_hand():
    """Four samples are ordered as the four trajectories, and one lies in each quarter."""
    residuals = np.array([[1.0, 8.0], [2.0, 5.0], [3.0, 7.0], [4.0, 6.0]])
    quantiles = normal_quantiles(1, 2)
    paths = sample_paths(quantiles, LEVELS, [residuals], 4, 0, [np.arange(3.0)])[0]
    by_first = paths[np.argsort(paths[:, 0])]
    np.testing.assert_array_equal(np.argsort(np.argsort(by_first[:, 1])), [3, 0, 2, 1])
    quarters = np.floor(4 * ndtr(by_first)).astype(int)
    np.testing.assert_array_equal(quarters, [[0, 3], [1, 0], [2, 2], [3, 1]])
    places = 4 * ndtr(by_first) % 1  # a path's place within its quarters is one
    np.testing.assert_allclose(places[:, 0], places[:, 1], rtol=0, atol=1e-12)


def test_fewer_samples_than_trajectories_are_chosen_at_random():
    """Of 20 that rise together and 20 that go apart, not the first 20."""
    ranks = np.arange(40.0)
    residuals = np.stack([ranks, np.where(ranks < 20, ranks, -ranks)], axis=1)
    for order in (residuals, residuals[::-1]):
        paths = sample_paths(normal_quantiles(1, 2), LEVELS, [order], 20, 0, [ranks])[0]
        assert abs(np.corrcoef(paths.T)[0, 1]) < 0.9  # of one kind alone it would be 1 or -1


def test_ties_are_ranked_at_random_at_every_step():
    paths = sample_paths(
        normal_quantiles(1, 3), LEVELS, [np.zeros((400, 3))], 400, 0, [np.zeros(5)]
    )
    correlations = np.corrcoef(paths[0].T)[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < 5 / np.sqrt(400)).all()


@given(st.integers(4, 30), st.integers(1, 5), st.integers(0, 10**6))
def test_every_step_has_as_many_draws_in_each_part(count, rounds, seed):
    """So the share of draws below each level is the level, within one draw of each round."""
    rng = np.random.default_rng(seed)
    residuals = rng.standard_normal((count, 3))
    quantiles = np.sort(rng.standard_normal((1, 3, len(LEVELS))), axis=-1)
    samples = count * rounds
    paths = sample_paths(quantiles, LEVELS, [residuals], samples, seed, [residuals[0]])[0]
    for q, level in enumerate(LEVELS):
        below = (paths <= quantiles[0, :, q]).sum(axis=0)
        assert (np.abs(below - level * samples) <= rounds).all()


def test_the_sum_over_a_week_is_as_uncertain_as_it_is():
    """AR(1) errors of variance 1 and phi 0.9: the deviation of a sum of 7 steps is known."""
    phi, horizon, count = 0.9, 7, 40
    lags = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
    deviation = np.sqrt((phi**lags).sum())  # 6.1; of independent steps it would be 2.6
    series = [autoregressive(i, 3000, phi) for i in range(count)]
    found = conformal_offsets(
        series, horizon, LEVELS, lambda c, h: np.zeros((len(c), h)), 8, origins=200
    )
    paths = sample_paths(
        found.quantiles(np.zeros((count, horizon))), LEVELS, found.residuals, 400, 0, series
    )
    spread = paths.sum(axis=2).std(axis=1)
    # Each series' spread is estimated from 200 trajectories that lie 7 to 15 steps apart, of
    # correlation phi ** 7 = 0.48 or less: as from 200 (1 - 0.48 ** 2) / (1 + 0.48 ** 2) = 125
    # independent ones. A deviation is off by 1 / sqrt(2 * 125), the mean of 40 by 0.010.
    assert spread.mean() / deviation == pytest.approx(1, abs=4 * 0.010)
    independent = np.sqrt(paths.var(axis=1).sum(axis=1)).mean()
    assert independent < 0.5 * deviation


def test_steps_of_independent_errors_are_independent():
    rng = np.random.default_rng(0)
    residuals = [rng.standard_normal((500, 7)) for _ in range(20)]
    paths = sample_paths(
        normal_quantiles(20, 7), LEVELS, residuals, 500, 0, [r[0] for r in residuals]
    )
    variance = paths.sum(axis=2).var(axis=1).mean() / paths.var(axis=1).sum(axis=1).mean()
    # The mean of 20 * 21 correlations of deviation 1 / sqrt(500), times 6.
    assert variance == pytest.approx(1, abs=4 * 6 / np.sqrt(500 * 420))


def test_draws_follow_from_seed_and_series_alone():
    rng = np.random.default_rng(1)
    series = [rng.standard_normal(20 + i) for i in range(3)]
    residuals = [rng.standard_normal((10 + i, 4)) for i in range(3)]
    quantiles = normal_quantiles(3, 4)
    together = sample_paths(quantiles, LEVELS, residuals, 25, 7, series)
    for i in (2, 0, 1):
        alone = sample_paths(quantiles[[i]], LEVELS, [residuals[i]], 25, 7, [series[i]])
        np.testing.assert_array_equal(alone[0], together[i])
    assert (sample_paths(quantiles, LEVELS, residuals, 25, 8, series) != together).all()
    # Series draw apart from each other, even with the same errors.
    same = sample_paths(quantiles, LEVELS, residuals[:1] * 3, 25, 7, series)
    assert (same[0] != same[1]).any(axis=0).all()


def test_missing_values_and_zeros_of_any_kind_are_the_same_series():
    other_nan = np.frombuffer(np.uint64(0x7FF8000000000123).tobytes(), np.float64)[0]
    residuals = [np.random.default_rng(0).standard_normal((10, 4))]
    one, other = (
        sample_paths(normal_quantiles(1, 4), LEVELS, residuals, 5, 0, [np.array(series)])
        for series in ([1.0, NAN, 0.0], [1.0, other_nan, -0.0])
    )
    np.testing.assert_array_equal(one, other)


def test_inputs_stay_as_they_are():
    residuals, series = np.random.default_rng(0).standard_normal((10, 4)), np.array([1.0, NAN])
    quantiles = normal_quantiles(1, 4)
    copies = residuals.copy(), series.copy(), quantiles.copy()
    sample_paths(quantiles, LEVELS, [residuals], 5, 0, [series])
    for array, copy in zip((residuals, series, quantiles), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_certain_forecast_has_one_path():
    """Of a constant series: errors of 0, all tied, and quantiles that are the point."""
    paths = sample_paths(
        np.full((1, 3, len(LEVELS)), 7.0), LEVELS, [np.zeros((9, 3))], 20, 0, [np.full(30, 7.0)]
    )
    np.testing.assert_array_equal(paths, 7.0)


def test_missing_errors_are_interpolated_or_their_trajectory_left_out():
    rng = np.random.default_rng(2)
    whole = rng.standard_normal((6, 4))
    whole[2, 1] = (whole[2, 0] + whole[2, 2]) / 2
    whole[4, 3] = whole[4, 2]
    gaps = whole.copy()
    gaps[2, 1] = gaps[4, 3] = NAN
    gaps = np.insert(gaps, [0, 3, 6], NAN, axis=0)
    gaps[0, 0] = 100.0  # one of four
    args = (normal_quantiles(1, 4), LEVELS)
    np.testing.assert_array_equal(
        sample_paths(*args, [gaps], 12, 0, [whole[0]]),
        sample_paths(*args, [whole], 12, 0, [whole[0]]),
    )
    few = np.where(np.arange(6)[:, None] < 3, NAN, whole)
    with pytest.raises(DataError, match="load has 3 trajectories of errors of which at least half"):
        sample_paths(*args, [few], 1, 0, [whole[0]], ["load"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, but is 0"),
        ({"seed": -1}, "seed must not be negative"),
        ({"levels": [0.1, 0.9]}, r"shape \(1, 4, 19\); it must be \[N, H, Q\] of the 2 levels"),
        ({"levels": [0.5], "quantiles": np.zeros((1, 4, 1))}, "they at least 2"),
        (
            {"quantiles": -normal_quantiles(1, 4)},
            "the quantiles of a are not finite, or they cross",
        ),
        ({"residuals": []}, "residuals has 0 entries, but quantiles 1"),
        ({"residuals": [np.zeros((5, 3))]}, r"residuals of a have the shape \(5, 3\)"),
        ({"series": []}, "series has 0 entries, but quantiles 1"),
    ],
)
def test_what_is_refused(change, message):
    given = {
        "quantiles": normal_quantiles(1, 4),
        "levels": LEVELS,
        "residuals": [np.zeros((5, 4))],
        "num_samples": 3,
        "seed": 0,
        "series": [np.zeros(3)],
        "names": ["a"],
    } | change
    with pytest.raises(DataError, match=message):
        sample_paths(**given)
