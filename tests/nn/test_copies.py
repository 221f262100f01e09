"""Copies of the past: which lags are found, and what stands at each position."""

import jax.numpy as jnp
import numpy as np
import pytest

from timemoe_jax.nn import copies

PATCH, LONGEST, POINTS = 8, 128, 256


def rows() -> tuple[np.ndarray, np.ndarray]:
    """A rough cycle of 30 points with a gap, a sine of 72, and a random walk."""
    rng = np.random.default_rng(0)
    t = np.arange(POINTS + 96)
    x = np.stack(
        [
            rng.normal(size=30)[t % 30] + 0.05 * rng.normal(size=t.size),
            np.sin(2 * np.pi * t / 72) + 0.1 * rng.normal(size=t.size),
            np.cumsum(rng.normal(size=t.size)),
        ]
    ).astype(np.float32)
    mask = np.ones(x.shape, bool)
    mask[0, 100:120] = False
    return x, mask


def found(x, mask, segments=None) -> copies.Copies:
    given = None if segments is None else jnp.array(segments)
    return copies.find(jnp.array(x), jnp.array(mask), given, PATCH, LONGEST)


def best_lag(x: np.ndarray, mask: np.ndarray, pairs_from: int, least, drifts: bool) -> int:
    """By hand: the lag whose copies had the least mean squared error over 48 steps.

    A lag that is e times as long must be better by a percent.
    """
    squares: dict[int, float] = {}
    counts: dict[int, int] = {}
    whole = 0.0
    for lag in range(1, LONGEST + 1):
        known = [i for i in range(max(lag, pairs_from), x.size) if mask[i] and mask[i - lag]]
        counts[lag] = len(known)
        apart = np.array([float(x[i]) - float(x[i - lag]) for i in known])
        whole += np.sum(apart**2)
        apart = np.clip(apart, -2, 2)
        grown = drift_of(apart, lag) if drifts else 0.0
        squares[lag] = np.sum((apart - grown) ** 2)
    average = whole / max(1, sum(counts.values()))
    error = {lag: (squares[lag] + 4 * average) / (counts[lag] + 4) for lag in squares}
    scores = {}
    for lag in range(1, LONGEST + 1):
        if counts[lag] < least(lag):
            continue
        multiples = [(step // lag + 1) * lag for step in range(48)]
        judged = [m for m in multiples if m <= LONGEST and counts[m] >= least(m)]
        scores[lag] = np.mean([error[m] for m in judged]) * (1 + 0.01 * np.log(lag))
    return min(scores, key=scores.__getitem__) if scores else 1


def drift_of(apart: np.ndarray, lag: int) -> float:
    """The mean difference, less so the less it exceeds twice its variance."""
    if apart.size <= lag or not apart.mean():
        return 0.0
    certain = 1 - 2 * apart.var() / ((apart.size / lag - 1) * apart.mean() ** 2)
    return max(0.0, certain) * apart.mean()


def test_the_lags_are_those_that_would_have_forecast_best():
    x, mask = (a[:, :POINTS] for a in rows())
    lags = np.asarray(found(x, mask).lags)
    for n in (0, 1, 3, 7, 15, 31):
        end = PATCH * (n + 1)
        for i in range(3):
            seen = x[i, :end], mask[i, :end]
            assert lags[0, i, n] == best_lag(*seen, 0, lambda lag: max(8, lag), True), (n, i)
            assert lags[1, i, n] == best_lag(*seen, end - 32, lambda lag: 24, False), (n, i)
    np.testing.assert_array_equal(lags[0, :2, -1], (30, 72))


def test_what_recurs_is_copied():
    """Within twice its noise, and the mean of four cycles is closer than one of them."""
    x, mask = rows()
    copied = np.asarray(found(x[:, :POINTS], mask[:, :POINTS]).at(96))[:2, -1]
    missed = np.abs(copied - x[:2, None, POINTS:]).mean(axis=-1)
    assert (missed[:, :2] < [[0.1], [0.2]]).all()
    assert (missed[:, 1] < missed[:, 0]).all()


def test_copies_are_of_the_last_cycle():
    t = np.arange(64)
    x = np.stack([t % 10, t % 7]).astype(np.float32)
    said = found(x, np.ones(x.shape, bool)).at(48, last=True)
    assert said.shape == (2, 1, copies.COPIES, 48)
    for row, cycle in zip(np.asarray(said[:, 0]), (10, 7), strict=True):
        np.testing.assert_allclose(row[:2], np.tile((t[-1] + 1 + np.arange(48)) % cycle, (2, 1)))


def test_a_season_is_found_in_what_grows_and_goes_on_growing():
    """The first copy of a line with a season is the line, with the season, for a cycle."""
    t = np.arange(192 + 24)
    season = np.random.default_rng(2).normal(size=12)[t % 12]
    x = (season + 0.02 * t)[None].astype(np.float32)
    seen = found(x[:, :192], np.ones((1, 192), bool))
    assert seen.lags[0, 0, -1] == 12
    assert float(seen.drift[0, -1]) == pytest.approx(0.24, abs=1e-4)
    said = np.asarray(seen.at(24, last=True))[0, 0]
    # Of 16 cycles: what grows fades by a share of 1 - 16 (1 - exp(-1 / 16)) in the first one.
    grown = 16 * (1 - np.exp(-np.repeat([1, 2], 12) / 16))
    np.testing.assert_allclose(said[0], x[0, 180:192].tolist() * 2 + 0.24 * grown, atol=1e-4)
    np.testing.assert_allclose(said[1], x[0, 180:192].tolist() * 2 - np.float32(0.36), atol=1e-4)


def test_noise_and_a_random_walk_hardly_drift():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(200, 64)).astype(np.float32)
    walks = np.cumsum(noise, axis=1)
    walks = (walks - walks.mean(1, keepdims=True)) / walks.std(1, keepdims=True)
    for x, share in ((noise, 0.1), (walks, 0.35)):
        drift = np.asarray(found(x, np.ones(x.shape, bool)).drift)[:, -1]
        assert np.mean(drift != 0) < share


def test_anchors_are_the_last_value_and_what_a_copy_missed_it_by():
    """Also of a patch whose last points are missing; of an empty one they are 0."""
    t = np.arange(64)
    x = (t % 10 + 0.5 * (t == 63) + 0.25 * (t == 44)).astype(np.float32)[None]
    mask = np.ones(x.shape, bool)
    mask[0, 45:48] = mask[0, 24:32] = False
    anchors = np.asarray(found(np.where(mask, x, 1e6), mask).anchors)[0]
    np.testing.assert_allclose(anchors[-1], (3.5, 0.5), atol=1e-3)
    np.testing.assert_allclose(anchors[5], (4.25, 0.25), atol=1e-3)
    np.testing.assert_array_equal(anchors[3], (0, 0))


def test_how_exact_the_last_value_has_been_is_known_of_each_number_of_steps():
    """The mean squared change, and for a tenth of the mean one of all over its square number."""
    x, mask = (a[:, :POINTS] for a in rows())
    seen = found(x, mask)
    assert seen.changes.shape == (3, POINTS // PATCH, copies.kept_lags(LONGEST))
    walk = x[2].astype(np.float64)
    for lag in (1, 5, 40):
        apart = np.clip(walk[lag:] - walk[:-lag], -2, 2)
        assert float(seen.changes[2, -1, lag - 1]) == pytest.approx(np.mean(apart**2), rel=1e-2)


def test_how_a_series_grows_and_departs_from_that_is_known():
    """By hand: the mean change, and the squares of what is left, more of what is far ahead.

    What stays on a line never departs from it; of a random walk the last value with its growth
    errs by more than the last value alone, unless it has grown by more than chance.
    """
    x, mask = (a[:, :POINTS].copy() for a in rows())
    x[1] = 0.02 * np.arange(POINTS)
    seen = found(x, mask)
    assert seen.departures.shape == seen.changes.shape
    walk = x[2].astype(np.float64)
    mean = np.clip(np.diff(walk), -2, 2).mean()
    assert float(seen.growth[2, -1]) == pytest.approx(mean, rel=1e-4)
    for lag in (1, 5, 40):
        apart = np.clip(walk[lag:] - walk[:-lag], -2, 2)
        left = np.mean((apart - lag * mean) ** 2) * (1 + 2 * lag / (POINTS - 1))
        assert float(seen.departures[2, -1, lag - 1]) == pytest.approx(left, rel=1e-2)
    assert float(seen.seen[2, -1]) == POINTS - 1
    assert float(seen.growth[1, -1]) == pytest.approx(0.02, rel=1e-3)
    assert (np.asarray(seen.departures)[1, -1] < 0.02 * np.asarray(seen.changes)[1, -1]).all()


def test_a_walk_without_a_drift_is_not_said_to_grow_with_more_certainty():
    """What was fitted to seems to err by less; the median of 400 walks says otherwise."""
    walks = np.random.default_rng(6).normal(size=(400, 40)).cumsum(axis=1)
    x = (walks - walks.mean(1, keepdims=True)) / walks.std(1, keepdims=True)
    seen = found(x.astype(np.float32), np.ones(x.shape, bool))
    more = np.asarray(seen.departures)[:, -1] / np.asarray(seen.changes)[:, -1]
    assert 1 < np.median(more[:, 7]) < 1.4


def test_a_phase_at_which_all_cycles_are_alike_is_known():
    """Of a day of 24 points whose nights are dark, and whose noons wander."""
    t = np.arange(192)
    bright = 1 + 0.1 * np.random.default_rng(4).normal(size=8).cumsum()[t // 24]
    x = (bright * np.maximum(np.sin(2 * np.pi * t / 24), 0)).astype(np.float32)[None]
    seen = found(x, np.ones(x.shape, bool))
    assert seen.lags[0, 0, -1] == 24
    _, apart = seen.ahead(48, last=True)
    dark = np.tile(np.arange(24) > 12, 2)
    noons = x[0, 6::24][-4:]
    by_hand = (np.sum(np.diff(noons) ** 2) + (0.01 + 2 / 24**2) * seen.scores[0, -1]) / 3.0135
    np.testing.assert_allclose(apart[0, 0, [6, 30]], by_hand, rtol=1e-3)
    assert (np.asarray(apart)[0, 0, dark] < 0.01 * float(seen.scores[0, -1])).all()


def test_a_match_is_exact_where_something_happens_and_says_nothing_where_nothing_does():
    """What came back after 100 points, and a line that is level for its last 64 points."""
    rng = np.random.default_rng(5)
    piece = rng.normal(size=100).cumsum() / 5
    back = np.concatenate([piece, piece[:92]])
    level = np.concatenate([piece, rng.normal(size=28), np.zeros(64)])
    x = np.stack([back, level]).astype(np.float32)
    seen = found(x, np.ones(x.shape, bool))
    assert float(seen.spans[0, -1]) == 100
    assert float(seen.matches[0, -1]) < 1e-3
    assert float(seen.matches[1, -1]) > 0.05


def test_a_missing_point_is_copied_from_another_cycle():
    x = (np.arange(64) % 8).astype(np.float32)[None]
    mask = np.ones(x.shape, bool)
    mask[0, -5:-2] = False
    junk = np.where(mask, x, 1e6).astype(np.float32)
    said = np.asarray(found(junk, mask).at(16, last=True))[0, 0]
    np.testing.assert_allclose(said[0], np.arange(16) % 8)
    nothing = found(junk, np.zeros(mask.shape, bool))
    np.testing.assert_array_equal(nothing.at(16), 0)
    np.testing.assert_array_equal(nothing.clues, 0)
    np.testing.assert_array_equal(nothing.drift, 0)
    assert np.isfinite(nothing.ahead(16)[1]).all()
    assert (np.asarray(nothing.matches) > 1e3).all()
    np.testing.assert_array_equal(nothing.growth, 0)
    assert np.isfinite(nothing.departures).all()


def test_series_packed_into_a_row_know_nothing_of_each_other():
    x, mask = (a[:, :POINTS] for a in rows())
    half = POINTS // 2
    of = np.repeat([[0, 1]], half, axis=1).repeat(3, axis=0)
    packed, alone = found(x, mask, of), found(x[:, half:], mask[:, half:])
    later = half // PATCH
    np.testing.assert_array_equal(packed.lags[:, :, later:], alone.lags)
    # Sums up to a point less those up to another are rounded otherwise; so is the drift of copies.
    np.testing.assert_allclose(packed.clues[:, later:], alone.clues, atol=1e-4)
    np.testing.assert_allclose(packed.at(40)[:, later:, :1], alone.at(40)[:, :, :1], atol=1e-4)
    np.testing.assert_allclose(packed.at(40)[:, later:, 1:], alone.at(40)[:, :, 1:], atol=1e-6)
    np.testing.assert_allclose(packed.changes[:, later:], alone.changes, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(packed.departures[:, later:], alone.departures, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(packed.seen[:, later:], alone.seen)
    np.testing.assert_allclose(packed.growth[:, later:], alone.growth, atol=1e-5)
    np.testing.assert_allclose(packed.ahead(40)[1][:, later:], alone.ahead(40)[1], rtol=1e-3)


def test_a_position_knows_nothing_of_what_comes_after_it():
    x, mask = (a[:, :POINTS] for a in rows())
    moved = x.copy()
    moved[:, 128:] += np.random.default_rng(1).normal(size=moved[:, 128:].shape)
    one, other = found(x, mask), found(moved, mask)
    np.testing.assert_array_equal(one.lags[:, :, :16], other.lags[:, :, :16])
    np.testing.assert_array_equal(one.at(60)[:, :16], other.at(60)[:, :16])
    np.testing.assert_array_equal(one.ahead(60)[1][:, :16], other.ahead(60)[1][:, :16])
    np.testing.assert_array_equal(one.changes[:, :16], other.changes[:, :16])
    np.testing.assert_array_equal(one.matches[:, :16], other.matches[:, :16])
    np.testing.assert_array_equal(one.growth[:, :16], other.growth[:, :16])
    np.testing.assert_array_equal(one.departures[:, :16], other.departures[:, :16])
    assert (np.asarray(one.at(60)) != np.asarray(other.at(60)))[:, 17:].any()
