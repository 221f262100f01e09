"""Copies of the past, offered to a model as what could come next.

What recurs is forecast well by what came a cycle ago. A small transformer learns the cycles of its
training by heart, and takes very long to learn to look for others. Here the lag is found by
computation: the one whose copies would have forecast best so far, by mean squared error. There are
two such lags at each position: of all that was seen, as seasonal naive has it, and of its last
points alone, as context parroting does (arXiv 2505.11349). The model reads the copies beside its
patches, and its heads may add them to what they say.

Nothing here has parameters, nor a gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

COPIES = 3  # of the best lag its last cycle, and the mean of the last ones; of the recent lag
AHEAD = 48  # steps over which a lag is judged, and of a copy that are embedded
_CYCLES = 4  # that are averaged
_RECENT = 32  # points by which the second lag is judged
_PRIOR = 4.0  # pairs of average difference that are added to those of each lag
_LEAST = 8  # pairs that a lag must have
_FAR = 1e6  # the score of a lag that has too few


class Copies(NamedTuple):
    """Where the copies of each position come from. A position is that of a patch's last point."""

    x: Float[Array, "B T"]  # NaN where a point is missing
    lags: Int[Array, "2 B N"]
    begins: Int[Array, "B N"]  # the first point of the series of a position
    clues: Float[Array, "B N K"]  # how well the lags did, and where they failed last

    def at(self, horizon: int, last: bool = False) -> Float[Array, "B N C P"]:
        """The C copies of the next `horizon` values, 0 where there are none; `last`: N is 1."""
        cut = slice(-1, None) if last else slice(None)
        lags, begins = self.lags[:, :, cut], self.begins[:, cut]
        patch = self.x.shape[1] // self.lags.shape[2]
        ends = (patch * jnp.arange(1, self.lags.shape[2] + 1))[cut]
        best, recent = (_sources(ends, lag, horizon) for lag in lags)
        cycles = []
        for k in range(_CYCLES):
            cycles.append(self._values(best - k * lags[0][..., None], begins))
        known = ~jnp.isnan(jnp.stack(cycles))
        total = jnp.sum(jnp.where(known, jnp.stack(cycles), 0), axis=0)
        mean = total / jnp.maximum(jnp.sum(known, axis=0), 1)
        ones = (cycles[0], mean, self._values(recent, begins))
        return jnp.stack([jnp.where(jnp.isnan(one), mean, one) for one in ones], axis=2)

    def _values(
        self, points: Int[Array, "B N P"], begins: Int[Array, "B N"]
    ) -> Float[Array, "B N P"]:
        """The values of points by their places in the row, NaN before a series begins."""
        places = jnp.maximum(points, 0).reshape(len(points), -1)
        values = jnp.take_along_axis(self.x, places, axis=1).reshape(points.shape)
        return jnp.where(points >= begins[..., None], values, jnp.nan)


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
    every, recent = _pairs(row, segments, first, patch, longest)
    lags = jnp.arange(1, longest + 1)
    least = (jnp.maximum(_LEAST, lags / 2), jnp.full(longest, _RECENT * 3 / 4))
    chosen, clues = [], []
    for (squares, pairs), needed in zip((every, recent), least, strict=True):
        scores = _scores(squares, pairs, needed)
        lag = _first_least(scores)
        chosen.append(lag)
        clues.append(_clues(scores, pairs, lag, row, segments, patch))
    return Copies(row, jnp.stack(chosen), begins, jnp.concatenate(clues, axis=-1))


def number_of_clues(patch: int) -> int:
    """How many clues a position has."""
    return 2 * (5 + patch)


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


def _pairs(
    row: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    first: Int[Array, "B N"] | None,
    patch: int,
    longest: int,
) -> tuple[tuple[Float[Array, "L N B"], Float[Array, "L N B"]], ...]:
    """Sums of squared differences of points a lag apart up to each position, and how many they are.

    Of all points of the series of a position, and of its last ones. Both points are observed and of
    that series. One lag after the other, so that what is computed of each stays in a cache; the
    batch is the last axis, along which a processor computes several at once.
    """
    tokens, recent = row.shape[1] // patch, _RECENT // patch
    order = jnp.arange(tokens)
    causal = (order[:, None] >= order).astype(jnp.float32)
    now = row.T
    past = jnp.pad(now, ((longest, 0), (0, 0)), constant_values=jnp.nan)
    if segments is not None:
        of = segments.T
        mine = jnp.repeat(of[patch - 1 :: patch], patch, axis=0)
        now = jnp.where(of == mine, now, jnp.nan)
        past_of = jnp.pad(of, ((longest, 0), (0, 0)))

    def up_to(of_patches: Float[Array, "N B"]) -> tuple[Float[Array, "N B"], Float[Array, "N B"]]:
        total = jnp.pad(causal @ of_patches, ((1, 0), (0, 0)))
        if first is None:
            before = jnp.pad(total, ((recent, 0), (0, 0)))[1 : tokens + 1]
            return total[1:], total[1:] - before
        start = first.T
        late = jnp.maximum(start, order[:, None] + 1 - recent)
        before, earlier = (jnp.take_along_axis(total, at, axis=0) for at in (start, late))
        return total[1:] - before, total[1:] - earlier

    def of_lag(lag: Int[Array, ""]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        apart = now - jax.lax.dynamic_slice_in_dim(past, longest - lag, len(now))
        both = ~jnp.isnan(apart)
        if segments is not None:
            both &= jax.lax.dynamic_slice_in_dim(past_of, longest - lag, len(now)) == mine
        square = jnp.where(both, jnp.square(apart), 0)
        of_patches = (a.reshape(tokens, patch, -1).sum(1) for a in (square, both.astype(row.dtype)))
        squares, pairs = map(up_to, of_patches)
        return (squares[0], pairs[0]), (squares[1], pairs[1])

    return jax.lax.map(of_lag, jnp.arange(1, longest + 1))


def _scores(
    squares: Float[Array, "L N B"], pairs: Float[Array, "L N B"], least: Float[Array, " L"]
) -> Float[Array, "L N B"]:
    """The mean squared error that copies of each lag had over the next `AHEAD` steps.

    A step of more than a lag is copied from several lags back, so that a short lag has the errors
    of its multiples. A lag counts only if it has the `least` pairs.
    """
    longest = len(squares)
    average = jnp.sum(squares, 0) / jnp.maximum(jnp.sum(pairs, 0), 1)
    error = (squares + _PRIOR * average) / (pairs + _PRIOR)
    lag, enough = jnp.arange(1, longest + 1), pairs >= least[:, None, None]
    # How many of the next steps are copied from each multiple of a short lag.
    short, steps = min(AHEAD - 1, longest), jnp.arange(AHEAD)
    multiple = (steps // lag[:short, None] + 1) * lag[:short, None]
    reach = min(2 * AHEAD, longest)
    weight = jnp.sum(multiple[..., None] == lag[:reach], axis=1).astype(jnp.float32)
    counted = enough[:reach].astype(jnp.float32)
    summed = jnp.einsum("lm,mnb->lnb", weight, error[:reach] * counted)
    total = jnp.einsum("lm,mnb->lnb", weight, counted)
    scores = jnp.concatenate([summed / jnp.maximum(total, 1), error[short:]])
    return jnp.where(enough, scores, _FAR)


def _first_least(scores: Float[Array, "L N B"]) -> Int[Array, "B N"]:
    """The shortest lag of the least score; as `argmin`, which takes six times as long on a CPU."""
    lags = jnp.arange(1, len(scores) + 1)[:, None, None]
    least = jnp.min(scores, axis=0)
    return jnp.min(jnp.where(scores == least, lags, len(scores)), axis=0).T


def _clues(
    scores: Float[Array, "L N B"],
    pairs: Float[Array, "L N B"],
    lag: Int[Array, "B N"],
    row: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    patch: int,
) -> Float[Array, "B N K"]:
    """What tells how far a copy is to be believed; 0 where there is none.

    Its score and that of the last value, its length and its pairs, and in the last patch what came
    less what was copied.
    """
    score, count = (jnp.take_along_axis(a, lag.T[None] - 1, axis=0)[0].T for a in (scores, pairs))
    places = jnp.arange(row.shape[1]) - jnp.repeat(lag, patch, axis=1)

    def past(a: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
        return jnp.take_along_axis(a, jnp.maximum(places, 0), axis=1)

    missed = jnp.where(places >= 0, row - past(row), jnp.nan)
    if segments is not None:
        mine = jnp.repeat(segments[:, patch - 1 :: patch], patch, axis=1)
        missed = jnp.where((segments == mine) & (past(segments) == mine), missed, jnp.nan)
    numbers = [
        jnp.log(jnp.minimum(score, 100.0) + 1e-3),
        jnp.log(jnp.minimum(scores[0].T, 100.0) + 1e-3),
        jnp.log(lag) / 3,
        jnp.log1p(count) / 5,
        jnp.ones(score.shape),
    ]
    of_patches = jnp.nan_to_num(missed).reshape(*lag.shape, patch)
    told = jnp.concatenate([jnp.stack(numbers, axis=-1), of_patches], axis=-1)
    return jnp.where(score[..., None] < _FAR, told, 0)
