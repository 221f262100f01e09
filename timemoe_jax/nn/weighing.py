"""Forecasts weighed by how exact they have been: a model's own, the last value, and copies.

What a network says has an error of a few hundredths of a deviation, whatever it forecasts. Where a
series hardly changes from one point to the next, or each of its nights is dark, the last value or a
copy is many times as exact. How exact they have been is known: the mean square of the changes over
so many points, of what they depart from steady growth by, and of those from cycle to cycle at a
phase. The last value with its growth is what statisticians call a random walk with drift; of years
and quarters it is hard to beat. Forecasts of independent errors are
best added in proportion to their precisions, the inverse mean squares (Bates and Granger, 1969);
factors that the model reads from its state correct that for each of its horizons. Where few points
are seen, the mean is drawn towards growth besides, since a network does not know how little it
knows of them.
"""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from timemoe_jax.nn import COPY_RECENT, copies

FORECASTS = 2 + copies.COPIES  # the last value, as it is and with its growth, and the copies
_GROWN = 1  # the place of the last value with its growth
FACTORS = FORECASTS + 2  # those of the forecasts and of the model, and of what is left to chance
# The logarithms from which the factors start. What matches the last few points may do so by chance,
# and what goes on from there goes apart soon; precisions of errors that are not independent are
# less than their sum.
_START = np.array([0.0, 0.0, 0.0, 0.0, -3.0, 0.0, -0.7], np.float32)
_OWN = 0.05  # deviation of what a model says that it does not know of
_LEAST = 1e-6  # added to mean squares, so that what never erred can be divided by
_REACH = 6.0  # the logarithm that a factor may have at most
# Where more points were seen, a mean is drawn to growth in inverse proportion to their number; and
# less with each step ahead, up to half as many steps as points.
_FEW = 48
_DRAWN = 1.5  # times the share that growth has among what is forecast without a network


class Precise(NamedTuple):
    """The forecasts of each position, beside the model's own, and how exact they have been."""

    values: Float[Array, "*N K P"]
    squares: Float[Array, "*N K P"]
    drawn: Float[Array, "*N P"]  # how much of the way to growth a mean goes besides


def precise(
    copied: Float[Array, "*N C P"],
    last: Float[Array, " *N"],
    phases: Float[Array, "*N P"],
    changes: Float[Array, "*N R"],
    matches: Float[Array, " *N"],
    spans: Float[Array, " *N"],
    growth: Float[Array, " *N"],
    departures: Float[Array, "*N R"],
    seen: Float[Array, " *N"],
) -> Precise:
    """The last value, with its growth too, and the copies; beyond R points squares are as of R."""
    horizon = copied.shape[-1]
    of_last, of_grown = (_up_to(a, horizon) for a in (changes, departures))
    # What matches goes apart with each lag further, as a random walk does. A lag within the points
    # that are compared says no more than that they are alike: as a night is, before the day.
    of_match = matches[..., None] * (1 + jnp.arange(horizon) / spans[..., None])
    of_match += jnp.where(spans[..., None] < COPY_RECENT, of_last, 0)
    # Nobody knows of a growth that goes on for longer than it was looked for.
    ahead = jnp.minimum(1 + jnp.arange(horizon), departures.shape[-1])
    constant = jnp.broadcast_to(last[..., None], of_last.shape)
    grown = constant + ahead * growth[..., None]
    return Precise(
        jnp.concatenate([jnp.stack([constant, grown], axis=-2), copied], axis=-2),
        jnp.stack([of_last, of_grown, phases, phases, of_match], axis=-2),
        _drawn(of_last, of_grown, phases, seen),
    )


def _drawn(
    of_last: Float[Array, "*N P"],
    of_grown: Float[Array, "*N P"],
    phases: Float[Array, "*N P"],
    seen: Float[Array, " *N"],
) -> Float[Array, "*N P"]:
    """How much of the way to the last value with its growth a mean goes.

    A network knows little of a dozen years, and does not know how little. So few points are better
    forecast by growth, where it has been more exact than the last value and the copies.
    """
    last, grown, copied = (1 / (squares + _LEAST) for squares in (of_last, of_grown, phases))
    share = grown / (last + grown + 2 * copied)
    points = jnp.maximum(seen, 1)[..., None]
    near = jnp.maximum(1 - (1 + jnp.arange(of_last.shape[-1])) / (points / 2), 0)
    return jnp.minimum(_DRAWN * share * near * jnp.minimum(_FEW / points, 1), 1)


def _up_to(known: Float[Array, "*N R"], horizon: int) -> Float[Array, "*N P"]:
    """Of each step ahead; of those beyond the last that is known, that of the last."""
    known = known[..., :horizon]
    beyond = jnp.repeat(known[..., -1:], horizon - known.shape[-1], axis=-1)
    return jnp.concatenate([known, beyond], axis=-1)


def weigh(
    own: Float[Array, "*N P Q"],
    beside: Precise,
    factors: Float[Array, "*N F P"],
    levels: tuple[float, ...],
) -> Float[Array, "*N P Q"]:
    """The mean of quantiles `own` and of the forecasts beside them, by their precisions.

    Where few points were seen, its middle quantile is drawn towards growth, and all others with it.
    They are the wider, then, by the root of 1 and of the part of the way: the model does not know
    how little it knows.

    Args:
      own: quantiles of the model, which do not decrease from level to level; nor do those returned.
      beside: the other forecasts.
      factors: logarithms that are added to those of the precisions: of the forecasts beside, and of
        the model; the last one is of what the mean itself may err by, of a normal distribution.
      levels: those of the quantiles.
    """
    start = jnp.asarray(_START)[:, None]
    factors = start + jnp.clip(factors, -_REACH, _REACH)
    of_others = factors[..., :FORECASTS, :] - jnp.log(beside.squares + _LEAST)
    of_own = factors[..., FORECASTS : FORECASTS + 1, :] - 2 * np.log(_OWN)
    log_precisions = jnp.concatenate([of_others, of_own], axis=-2)
    weights = jax.nn.softmax(log_precisions, axis=-2)
    deviation = jnp.exp(factors[..., -1, :] - jax.nn.logsumexp(log_precisions, axis=-2) / 2)
    normal = np.array([statistics.NormalDist().inv_cdf(level) for level in levels], np.float32)
    said = jnp.sum(weights[..., :FORECASTS, :] * beside.values, axis=-2)
    mean = weights[..., FORECASTS, :, None] * own + said[..., None] + deviation[..., None] * normal
    middle = mean[..., len(levels) // 2]
    drawn = middle + beside.drawn * (beside.values[..., _GROWN, :] - middle)
    wider = jnp.sqrt(1 + beside.drawn)[..., None]
    return drawn[..., None] + wider * (mean - middle[..., None])
