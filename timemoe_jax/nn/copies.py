"""Copies of the past, offered to a model as what could come next.

What recurs is forecast well by what came a cycle ago. A small transformer learns the cycles of its
training by heart, and takes very long to learn to look for others. Here the lag is found by
computation: the one whose copies would have forecast best so far, by their squared errors. There
are two such lags at each position: of all that was seen, as seasonal naive has it, and of its last
points alone, as context parroting does (arXiv 2505.11349). What differs from one cycle to the next
by the same amount all along grows: the last cycle of the first lag goes on with it, as a random
walk with drift does. The model reads the copies beside its patches, and its heads may add them to
what they say.

Nothing here has parameters, nor a gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from timemoe_jax.nn import COPY_RECENT

ANCHORS = 2  # numbers that forecasts may begin from
COPIES = 3  # of the best lag its last cycle, and the mean of the last ones; of the recent lag
AHEAD = 48  # steps over which a lag is judged, and of a copy that are embedded
_CYCLES = 4  # that are averaged
_PRIOR = 4.0  # pairs of average difference that are added to those of each lag
_LEAST = 8  # pairs that a lag must have
# Of a difference, in deviations of the context: beyond it a single outlier would decide
# which lags are good, those that do not compare it with anything.
_MOST = 2.0
_DOUBT = 2.0  # variances of a drift that it must exceed
_FAR = 1e6  # the score of a lag that has too few
# By how much a lag must be better than one that is e-times shorter, whose copies are more recent.
_LONGER = 0.01
_STILL = 1e-3  # of the mean squared change: a stretch that changes less is still
_SLIGHT = 0.1  # average differences, over how many there are, that are added to those of an error


class Copies(NamedTuple):
    """Where the copies of each position come from. A position is that of a patch's last point."""

    x: Float[Array, "B T"]  # NaN where a point is missing
    lags: Int[Array, "2 B N"]
    drift: Float[Array, "B N"]  # what the first lag grows by
    begins: Int[Array, "B N"]  # the first point of the series of a position
    clues: Float[Array, "B N K"]  # how well the lags did, and where they failed last
    # The last value of each patch, and by how much the first lag missed it; 0 of an empty patch.
    anchors: Float[Array, "B N A"]
    scores: Float[Array, "B N"]  # of the first lag
    # Mean squares: of the changes over 1, 2, ... R points, and of what the recent lag missed.
    changes: Float[Array, "B N R"]
    matches: Float[Array, "B N"]
    spans: Float[Array, "B N"]  # the recent lag itself
    # The mean change from one point to the next, and the mean squares of what the changes over
    # 1, 2, ... R points differ from as many times that.
    growth: Float[Array, "B N"]
    departures: Float[Array, "B N R"]
    seen: Float[Array, "B N"]  # how many changes from one point to the next, at least 1

    def at(self, horizon: int, last: bool = False) -> Float[Array, "B N C P"]:
        """The C copies of the next `horizon` values, 0 where there are none; `last`: N is 1."""
        return self.ahead(horizon, last)[0]

    def ahead(
        self, horizon: int, last: bool = False
    ) -> tuple[Float[Array, "B N C P"], Float[Array, "B N P"]]:
        """As `at`, and the mean square by which the last cycles of the first lag differed there."""
        cut = slice(-1, None) if last else slice(None)
        lags, begins = self.lags[:, :, cut], self.begins[:, cut]
        patch = self.x.shape[1] // self.lags.shape[2]
        ends = (patch * jnp.arange(1, self.lags.shape[2] + 1))[cut]
        best, recent = (_sources(ends, lag, horizon) for lag in lags)
        back = [best - k * lags[0][..., None] for k in range(_CYCLES)]
        values = self._values(jnp.stack([*back, recent], axis=1), begins)
        # A drift fades after as many cycles as were seen of it.
        seen = (ends - begins)[..., None] / lags[0][..., None]
        ago = jnp.arange(horizon) // lags[0][..., None] + 1
        grown = seen * -jnp.expm1(-ago / seen) * self.drift[:, cut, None]
        cycles = values[:_CYCLES]
        known = ~jnp.isnan(cycles)
        total = jnp.sum(jnp.where(known, cycles, 0), axis=0)
        mean = total / jnp.maximum(jnp.sum(known, axis=0), 1)
        ones = (cycles[0] + grown, mean, values[-1])
        copied = jnp.stack([jnp.where(jnp.isnan(one), mean, one) for one in ones], axis=2)
        apart = cycles[:-1] - cycles[1:]
        pairs = jnp.sum(~jnp.isnan(apart), axis=0)
        # That of a whole cycle counts little, but for short ones: a few points that are alike by
        # chance are no cycle.
        prior = 0.01 + 2 / jnp.square(lags[0][..., None].astype(jnp.float32))
        squares = jnp.nansum(jnp.square(apart), axis=0) + prior * self.scores[:, cut, None]
        return copied, squares / (pairs + prior)

    def _values(
        self, points: Int[Array, "B S N P"], begins: Int[Array, "B N"]
    ) -> Float[Array, "S B N P"]:
        """The values of points by their places in the row, NaN before a series begins."""
        places = jnp.maximum(points, 0).reshape(len(points), -1)
        values = jnp.take_along_axis(self.x, places, axis=1).reshape(points.shape)
        return jnp.where(points >= begins[:, None, :, None], values, jnp.nan).swapaxes(0, 1)


def _sources(ends: Int[Array, " N"], lags: Int[Array, "B N"], horizon: int) -> Int[Array, "B N P"]:
    """Of each step after `ends` the point whole lags before it that is the last one known."""
    steps = jnp.arange(horizon)
    return ends[:, None] + steps % lags[..., None] - lags[..., None]


def find(
    x: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    patch: int,
    longest: int,
) -> Copies:
    """Finds the two lags of every position, from what is known there.

    Args:
      x: series in patches, T a multiple of `patch`.
      mask: which points are observed.
      segments: which of the series packed into a row each point is of; None: a row is one series.
      patch: points between two positions.
      longest: the longest lag, a multiple of `patch`.
    """
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    row = jnp.where(mask, x, jnp.nan)
    first, begins = _beginnings(x, segments, patch)
    found, naive, grown = _search(row, segments, first, begins, patch, longest)
    lags, drift = found.lag.swapaxes(1, 2), found.drift.swapaxes(1, 2)
    every = [_Found(*(a[i] for a in found)) for i in range(len(lags))]
    missed = [_missed(one, row, segments, patch) for one in every]
    told = [_clues(*of_lag) for of_lag in zip(every, naive, missed, strict=True)]
    values = row.reshape(missed[0].shape)
    anchors = jnp.stack([_last(values), _last(missed[0])], axis=-1)
    return Copies(
        x=row,
        lags=lags,
        drift=drift[0],
        begins=begins,
        clues=jnp.concatenate(told, axis=-1),
        anchors=anchors,
        scores=found.score[0].T,
        changes=grown.changes.T,
        matches=found.exact[1].T,
        spans=lags[1].astype(x.dtype),
        growth=grown.growth.T,
        departures=grown.departures.T,
        seen=grown.seen.T,
    )


def number_of_clues(patch: int) -> int:
    """How many clues a position has."""
    return 2 * (5 + patch)


def kept_lags(longest: int) -> int:
    """How many changes are known of each position: R."""
    return min(2 * AHEAD - 1, longest)


def _beginnings(
    x: Float[Array, "B T"], segments: Int[Array, "B T"] | None, patch: int
) -> tuple[Int[Array, "B N"] | None, Int[Array, "B N"]]:
    """The first patch of the series of each position, None if it is that of the row, and its point.

    A patch is of the series of its last point.
    """
    if segments is None:
        return None, jnp.zeros((len(x), x.shape[1] // patch), jnp.int32)
    of = segments.reshape(len(x), -1, patch)
    mine = of[..., -1]
    first = jnp.argmax(mine[:, :, None] == mine[:, None, :], axis=2)
    foreign = jnp.sum(of != mine[..., None], axis=2)
    return first, patch * first + jnp.take_along_axis(foreign, first, axis=1)


def _of_patches(segments: Int[Array, "B T"], patch: int) -> Int[Array, "B T"]:
    """The series that the patch of each point is of."""
    return jnp.repeat(segments[:, patch - 1 :: patch], patch, axis=1)


class _Found(NamedTuple):
    """The best lags: of all points and of the last ones, on the first axis, or of one of them."""

    score: Float[Array, "*K N B"]
    lag: Int[Array, "*K N B"]
    pairs: Float[Array, "*K N B"]
    drift: Float[Array, "*K N B"]
    exact: Float[Array, "*K N B"]  # its mean squared error as it is, over its own points


class _Grown(NamedTuple):
    """What `Copies` says of changes over 1, 2, ... R points, with the batch on the last axis."""

    growth: Float[Array, "N B"]
    changes: Float[Array, "R N B"]
    departures: Float[Array, "R N B"]
    seen: Float[Array, "N B"]


class _Kept(NamedTuple):
    """What is known of the lags whose copies may be of several lags back, and one place more."""

    error: Float[Array, "R 2 N B"]
    pairs: Float[Array, "R 2 N B"]
    drift: Float[Array, "R 2 N B"]
    exact: Float[Array, "R 2 N B"]
    departure: Float[Array, "R N B"]  # of all points alone
    enough: Bool[Array, "R 2 N B"]


def _search(
    row: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    first: Int[Array, "B N"] | None,
    begins: Int[Array, "B N"],
    patch: int,
    longest: int,
) -> tuple[_Found, Float[Array, "2 N B"], _Grown]:
    """Judges one lag after the other, so that what is computed of each stays in a cache.

    The score of a lag is the mean squared error that its copies had over the next `AHEAD` steps, of
    which none counts more than `_MOST` squared; that of a longer lag is raised by `_LONGER`. A step
    of more than a lag is copied from several lags back, so that a short lag has the errors of its
    multiples, and these are kept until all are known. The batch is the last axis, along which a
    processor computes several series at once. Also returns the score of the last value, and what is
    known of the changes over the lags that are kept.
    """
    sums_of = _sums(row, segments, first, patch, longest)
    average = _average(row, segments, first, begins, patch, longest)
    _, apart, pairs = sums_of(jnp.ones((), jnp.int32))
    known = jnp.maximum(pairs[0], 1)
    growth = apart / known

    def judge(lag: Int[Array, ""]) -> _Kept:
        squares, apart, pairs = sums_of(lag)
        number = jnp.maximum(pairs, _SLIGHT)
        exact = (squares + _SLIGHT * average / number) / number
        # Growth was found in what it is measured on, and may not be so any more: a random walk's
        # errs by a share of lag / points more than that, and seems to err by as much less.
        power = jnp.square(lag * growth) * pairs[0] - 2 * lag * growth * apart
        departure = jnp.maximum(exact[0] + power / number[0], 0) * (1 + 2 * lag / known)
        drift, spared = _drift(squares[0], apart, pairs[0], lag)
        squares = squares.at[0].add(-spared)
        error = (squares + _PRIOR * average) / (pairs + _PRIOR)
        # Of all points a lag counts that was seen twice.
        least = jnp.stack([jnp.maximum(_LEAST, lag), jnp.full((), COPY_RECENT * 3 // 4)])
        drift = jnp.stack([drift, jnp.zeros_like(drift)])
        return _Kept(error, pairs, drift, exact, departure, pairs >= least[:, None, None])

    reach, short = kept_lags(longest), min(AHEAD - 1, longest)

    def step(lag: Int[Array, ""], state: tuple[_Found, _Kept]) -> tuple[_Found, _Kept]:
        best, kept = state
        judged = judge(lag)
        # Beyond those that are kept it is the last place that is written to.
        at = jnp.minimum(lag - 1, reach)
        kept = _Kept(*(a.at[at].set(v) for a, v in zip(kept, judged, strict=True)))
        score = judged.error * (1 + _LONGER * jnp.log(lag))
        wins = judged.enough & (score < best.score) & (lag > short)
        of_lag = jnp.full_like(best.lag, lag)
        found = _Found(score, of_lag, judged.pairs, judged.drift, judged.exact)
        return _better(wins, found, best), kept

    shape = average.shape
    nothing = jnp.zeros(shape)
    far = jnp.full(shape, _FAR)
    none = _Found(far, jnp.ones(shape, jnp.int32), nothing, nothing, far)
    room = jnp.zeros((reach + 1, *shape))
    start = none, _Kept(room, room, room, room, room[:, 0], room > 0)
    # No longer lag has as many pairs as it must have, of all points or of the last ones.
    last = min(longest, max(reach, len(row[0]) - COPY_RECENT * 3 // 4))
    best, kept = jax.lax.fori_loop(1, last + 1, step, start)
    kept = _Kept(*(a[:reach] for a in kept))
    near, naive = _best_short(kept, short)
    best = _better((near.score < _FAR) & (near.score <= best.score), near, best)
    # Where nothing happens all is alike, and a match says nothing.
    happened = jnp.mean(kept.exact[:COPY_RECENT], axis=0) / jnp.maximum(average, 1e-9)
    exact = jnp.where(best.score < _FAR, best.exact / (happened + _STILL), _FAR)
    grown = _Grown(growth, kept.exact[:, 0], kept.departure, known)
    return best._replace(exact=exact), naive, grown


def _better(wins: Bool[Array, "2 N B"], found: _Found, best: _Found) -> _Found:
    """What was found where it wins, else the best so far."""
    return _Found(*(jnp.where(wins, *pair) for pair in zip(found, best, strict=True)))


def _drift(
    squares: Float[Array, "N B"],
    apart: Float[Array, "N B"],
    pairs: Float[Array, "N B"],
    lag: Int[Array, ""],
) -> tuple[Float[Array, "N B"], Float[Array, "N B"]]:
    """What a series grows by in a lag, and how much less its squared differences are with it.

    The mean difference m, of variance v, is drawn towards 0 as James and Stein do: by the factor
    1 - `_DOUBT` v / ((n - 1) m²), of at least 0. Of pairs that overlap only n = pairs / lag say
    anything new.
    """
    mean = apart / jnp.maximum(pairs, 1)
    power = jnp.square(mean)
    variance = jnp.maximum(squares / jnp.maximum(pairs, 1) - power, 0)
    free = jnp.maximum(pairs / lag - 1, 1e-3)
    certain = 1 - _DOUBT * variance / jnp.maximum(free * power, 1e-9)
    factor = jnp.maximum(certain, 0)
    return factor * mean, (2 - factor) * factor * power * pairs


def _best_short(kept: _Kept, short: int) -> tuple[_Found, Float[Array, "2 N B"]]:
    """The best of the lags up to `short`, and the score of the first, that of the last value."""
    reach, *shape = kept.error.shape
    weight, counted = _multiples(short, reach), kept.enough.astype(jnp.float32)
    both = jnp.stack([kept.error * counted, counted]).reshape(2, reach, -1)
    summed, total = (weight @ both).reshape(2, short, *shape)
    lags = jnp.arange(1, short + 1)[:, None, None, None]
    scores = summed / jnp.maximum(total, 1) * (1 + _LONGER * jnp.log(lags))
    scores = jnp.where(kept.enough[:short], scores, _FAR)
    score = jnp.min(scores, axis=0)
    lag = jnp.min(jnp.where(scores == score, lags, short), axis=0)
    of_lag = (kept.pairs, kept.drift, kept.exact)
    pairs, drift, exact = (jnp.take_along_axis(a, lag[None] - 1, axis=0)[0] for a in of_lag)
    return _Found(score, lag, pairs, drift, exact), scores[0]


def _multiples(short: int, reach: int) -> Float[np.ndarray, "S R"]:
    """Of each lag up to `short` how many of the next steps come from each lag up to `reach`."""
    lag = np.arange(1, reach + 1)
    multiple = (np.arange(AHEAD) // lag[:short, None] + 1) * lag[:short, None]
    return np.sum(multiple[..., None] == lag, axis=1).astype(np.float32)


def _sums(
    row: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    first: Int[Array, "B N"] | None,
    patch: int,
    longest: int,
) -> Callable[
    [Int[Array, ""]],
    tuple[Float[Array, "2 N B"], Float[Array, "N B"], Float[Array, "2 N B"]],
]:
    """A function of a lag: sums of squared differences of points so far apart, and how many.

    Up to each position, of all points of its series, and of its last ones; between them the sum of
    the differences themselves, of all points. Both points are observed and of that series.
    """
    up_to = _up_to(first, row.shape[1] // patch, patch)
    now = row.T
    past = jnp.pad(now, ((longest, 0), (0, 0)), constant_values=jnp.nan)
    if segments is not None:
        of, mine = segments.T, _of_patches(segments, patch).T
        now = jnp.where(of == mine, now, jnp.nan)
        past_of = jnp.pad(of, ((longest, 0), (0, 0)))

    def sums(lag: Int[Array, ""]) -> tuple[Array, Array, Array]:
        apart = now - jax.lax.dynamic_slice_in_dim(past, longest - lag, len(now))
        both = ~jnp.isnan(apart)
        if segments is not None:
            both &= jax.lax.dynamic_slice_in_dim(past_of, longest - lag, len(now)) == mine
        apart = jnp.where(both, jnp.clip(apart, -_MOST, _MOST), 0)
        return up_to(jnp.square(apart)), up_to(apart)[0], up_to(both.astype(row.dtype))

    return sums


def _up_to(
    first: Int[Array, "B N"] | None, tokens: int, patch: int
) -> Callable[[Float[Array, "T B"]], Float[Array, "2 N B"]]:
    """Sums points up to each position, those of its series, and the last ones of them."""
    recent, order = COPY_RECENT // patch, jnp.arange(tokens)
    causal = jnp.asarray(np.tril(np.ones((tokens, tokens), np.float32)))

    def summed(points: Float[Array, "T B"]) -> Float[Array, "2 N B"]:
        total = causal @ points.reshape(tokens, patch, -1).sum(1)
        total = jnp.pad(total, ((1, 0), (0, 0)))
        if first is None:
            before = jnp.pad(total, ((recent, 0), (0, 0)))[1 : tokens + 1]
            return jnp.stack([total[1:], total[1:] - before])
        late = jnp.maximum(first.T, order[:, None] + 1 - recent)
        before = jnp.stack([jnp.take_along_axis(total, at, axis=0) for at in (first.T, late)])
        return total[1:] - before

    return summed


def _average(
    row: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    first: Int[Array, "B N"] | None,
    begins: Int[Array, "B N"],
    patch: int,
    longest: int,
) -> Float[Array, "2 N B"]:
    """The mean squared difference of all pairs of points up to the longest lag apart.

    Of a point x with those before it, y: the sum of (x - y)² is n x² - 2 x sum y + sum y².
    """
    known = of_mine = ~jnp.isnan(row)
    if segments is not None:
        of_mine = known & (segments == _of_patches(segments, patch))
    x, places = jnp.where(known, row, 0), jnp.arange(row.shape[1])
    start = jnp.maximum(places - longest, jnp.repeat(begins, patch, axis=1))
    start = jnp.minimum(
        start, places
    )  # of the last points of a series whose patch is the next one's
    total = _totals(jnp.stack([known.astype(x.dtype), x, jnp.square(x)]), patch)
    begun = jnp.take_along_axis(total, jnp.broadcast_to(start, (3, *start.shape)), axis=2)
    count, total, squares = total[..., :-1] - begun
    sums = count * jnp.square(x) - 2 * x * total + squares
    up_to = _up_to(first, row.shape[1] // patch, patch)
    pairs, sums = (up_to(jnp.where(of_mine, a, 0).T) for a in (count, sums))
    return jnp.maximum(sums, 0) / jnp.maximum(pairs, 1)


def _totals(a: Float[Array, "*K T"], patch: int) -> Float[Array, "*K T+1"]:
    """Sums of all before each place: as `cumsum`, which XLA takes far longer to compile."""
    within = jnp.asarray(np.triu(np.ones((patch, patch), np.float32)))
    parts = a.reshape(*a.shape[:-1], -1, patch) @ within
    tokens = parts.shape[-2]
    before = parts[..., -1] @ jnp.asarray(np.triu(np.ones((tokens, tokens), np.float32), 1))
    total = (parts + before[..., None]).reshape(a.shape)
    return jnp.pad(total, [(0, 0)] * (a.ndim - 1) + [(1, 0)])


def _missed(
    found: _Found,
    row: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    patch: int,
) -> Float[Array, "B N P"]:
    """In the patch of each position what came less what a lag copied there; NaN where unknown."""
    lag, drift = (jnp.repeat(a.T, patch, axis=1) for a in (found.lag, found.drift))
    places = jnp.arange(row.shape[1]) - lag

    def past(a: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
        return jnp.take_along_axis(a, jnp.maximum(places, 0), axis=1)

    missed = jnp.where(places >= 0, row - past(row) - drift, jnp.nan)
    if segments is not None:
        mine = _of_patches(segments, patch)
        missed = jnp.where((segments == mine) & (past(segments) == mine), missed, jnp.nan)
    return missed.reshape(*found.lag.T.shape, patch)


def _last(values: Float[Array, "B N P"]) -> Float[Array, "B N"]:
    """The last number of each patch, 0 where there is none."""
    known = ~jnp.isnan(values)
    size = values.shape[-1]
    at = jnp.max(jnp.where(known, jnp.arange(size), 0), axis=-1, keepdims=True)
    return jnp.nan_to_num(jnp.take_along_axis(values, at, axis=-1)[..., 0])


def _clues(
    found: _Found, naive: Float[Array, "N B"], missed: Float[Array, "B N P"]
) -> Float[Array, "B N K"]:
    """What tells how far a copy is to be believed; 0 where there is none.

    Its score and that of the last value, its length and its pairs, and in the last patch what came
    less what was copied.
    """
    score, lag, pairs, naive = (a.T for a in (found.score, found.lag, found.pairs, naive))
    numbers = [
        jnp.log(jnp.minimum(score, 100.0) + 1e-3),
        jnp.log(jnp.minimum(naive, 100.0) + 1e-3),
        jnp.log(lag) / 3,
        jnp.log1p(pairs) / 5,
        jnp.ones(score.shape),
    ]
    told = jnp.concatenate([jnp.stack(numbers, axis=-1), jnp.nan_to_num(missed)], axis=-1)
    return jnp.where(score[..., None] < _FAR, told, 0)
