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
    x, mask = jax.lax.stop_gradient(x.astype(jnp.float32)), mask.astype(jnp.float32)
    x = jnp.where(mask > 0, x, 0)
    before, begins = _before(x, segments, patch)
    squares, pairs, windows = _pairs(x, mask, segments, patch, longest)
    order = jnp.arange(before.shape[-1])
    near = before & (order[:, None] - order < _RECENT // patch)
    chosen, clues = [], []
    lags = jnp.arange(1, longest + 1)
    enough = (jnp.maximum(_LEAST, lags / 2), jnp.full(longest, _RECENT * 3 / 4))
    for read, least in zip((before, near), enough, strict=True):
        sums, counts = (jnp.matmul(read.astype(jnp.float32), each) for each in (squares, pairs))
        scores = _scores(sums, counts, least)
        lag = jnp.argmin(scores, axis=-1)
        chosen.append(lag + 1)
        clues.append(_clues(scores, counts, lag, windows, patch))
    nan = jnp.where(mask > 0, x, jnp.nan)
    return Copies(nan, jnp.stack(chosen), begins, jnp.concatenate(clues, axis=-1))


def number_of_clues(patch: int) -> int:
    """How many clues a position has."""
    return 2 * (5 + patch)


def _before(
    x: Float[Array, "B T"], segments: Int[Array, "B T"] | None, patch: int
) -> tuple[Bool[Array, "#B N N"], Int[Array, "B N"]]:
    """Which patches a position has seen of its own series, and the point where that begins."""
    tokens = x.shape[1] // patch
    order = jnp.arange(tokens)
    causal = (order[:, None] >= order)[None]
    if segments is None:
        return causal, jnp.zeros((len(x), tokens), jnp.int32)
    of = segments.reshape(len(x), tokens, patch)
    mine = of[..., -1]
    same = mine[:, :, None] == mine[:, None, :]
    first = jnp.argmax(same, axis=2)
    inside = jnp.sum(of != mine[..., None], axis=2)
    return causal & same, patch * first + jnp.take_along_axis(inside, first, axis=1)


def _windows(a: Shaped[Array, "B T"], patch: int, longest: int) -> Shaped[Array, "B N W"]:
    """The points of each patch, after the `longest` ones before it; zeros before the first one."""
    row = jnp.pad(a, ((0, 0), (longest, 0))).reshape(len(a), -1, patch)
    tokens = a.shape[1] // patch
    parts = [row[:, k : k + tokens] for k in range(longest // patch + 1)]
    return jnp.concatenate(parts, axis=-1)


def _pairs(
    x: Float[Array, "B T"],
    mask: Float[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    patch: int,
    longest: int,
) -> tuple[Float[Array, "B N L"], Float[Array, "B N L"], Float[Array, "B N W"]]:
    """Of each patch and lag the sum of squared differences, and of how many pairs of points.

    Both points are observed and of the series of the patch. Lag l is at l - 1. Also the values
    themselves, a window for each patch, NaN where there is none.
    """
    windows = _windows(x, patch, longest)
    valid = _windows(mask, patch, longest)
    if segments is not None:
        of = _windows(segments, patch, longest)
        valid = valid * (of == of[..., -1:])
    squares = pairs = jnp.zeros((*windows.shape[:2], longest), jnp.float32)
    for j in range(patch):
        now, known = windows[..., longest + j, None], valid[..., longest + j, None]
        both = known * valid[..., j : longest + j]
        squares += both * jnp.square(now - windows[..., j : longest + j])
        pairs += both
    values = jnp.where(valid > 0, windows, jnp.nan)
    return squares[..., ::-1], pairs[..., ::-1], values


def _scores(
    squares: Float[Array, "B N L"], pairs: Float[Array, "B N L"], least: Float[Array, " L"]
) -> Float[Array, "B N L"]:
    """The mean squared error that copies of each lag had over the next `AHEAD` steps.

    A step of more than a lag is copied from several lags back, so that a short lag has the errors
    of its multiples. A lag counts only if it has the `least` pairs.
    """
    longest = squares.shape[-1]
    average = jnp.sum(squares, -1, keepdims=True) / jnp.maximum(
        jnp.sum(pairs, -1, keepdims=True), 1
    )
    error = (squares + _PRIOR * average) / (pairs + _PRIOR)
    lag = jnp.arange(1, longest + 1)
    enough = pairs >= least
    # How many of the next steps are copied from each multiple of a short lag.
    short, steps = min(AHEAD - 1, longest), jnp.arange(AHEAD)
    multiple = (steps // lag[:short, None] + 1) * lag[:short, None]
    reach = min(2 * AHEAD, longest)
    weight = jnp.sum(multiple[..., None] == lag[:reach], axis=1).astype(jnp.float32)
    counted = enough[..., :reach].astype(jnp.float32)
    summed = jnp.einsum("bnm,lm->bnl", error[..., :reach] * counted, weight)
    total = jnp.einsum("bnm,lm->bnl", counted, weight)
    scores = jnp.concatenate([summed / jnp.maximum(total, 1), error[..., short:]], axis=-1)
    return jnp.where(enough, scores, _FAR)


def _clues(
    scores: Float[Array, "B N L"],
    pairs: Float[Array, "B N L"],
    lag: Int[Array, "B N"],
    windows: Float[Array, "B N W"],
    patch: int,
) -> Float[Array, "B N K"]:
    """What tells how far a copy is to be believed; 0 where there is none.

    Its score and that of the last value, its length and its pairs, and in the last patch what came
    less what was copied.
    """
    at = lag[..., None]
    score, count = (jnp.take_along_axis(a, at, axis=-1) for a in (scores, pairs))
    valid = score < _FAR
    now = windows[..., -patch:]
    places = windows.shape[-1] - patch + jnp.arange(patch) - at - 1
    missed = now - jnp.take_along_axis(windows, places, axis=-1)
    numbers = jnp.concatenate(
        [
            jnp.log(jnp.minimum(score, 100.0) + 1e-3),
            jnp.log(jnp.minimum(scores[..., :1], 100.0) + 1e-3),
            jnp.log(at + 1.0) / 3,
            jnp.log1p(count) / 5,
            jnp.ones(score.shape),
            jnp.nan_to_num(missed),
        ],
        axis=-1,
    )
    return jnp.where(valid, numbers, 0)
