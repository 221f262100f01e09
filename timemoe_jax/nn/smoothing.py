"""Exponential smoothing with growth and a season, beside a model where few points are seen.

What statisticians forecast short series with is hard to beat by what was learned on other series
(Makridakis and Hibon, Int. J. Forecasting 16, 2000), and a mean of both is better than either. A
series is taken for a level, a constant growth and a season. A dozen and a half of smoothings are
tried: with no season or with one of the calendar, and with levels that follow the last points
closely or hardly. That which would have forecast the series' own points best, one step ahead, moves
the model's forecast half of the way to its own. It does so less where more than 72 points were
seen, since a network then knows better what a level and a season are, and with each step up to half
as many as were seen. No parameter of a model depends on it, and nothing of it is trained.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Points of a season: none; of quarters, weekdays, months and hours.
SEASONS = (1, 4, 7, 12, 24)
RATES = (0.2, 0.5, 1.0)  # by which a level follows its last error; by 1 it is the last value
REACH = 512  # points that are read; of as many smoothing says nothing
_WEIGHT = 0.5
_FEW = 72
_PER_POINT = 2.0  # a season's share of the points, times this, is added to its errors


def beside(
    point: Float[Array, "B H"],
    quantiles: Float[Array, "B H Q"] | None,
    x: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[Float[Array, "B H"], Float[Array, "B H Q"] | None]:
    """A model's forecast, moved towards that of smoothing by `weights_of`.

    Quantiles go with the point, and are wider than they were by the root of 1 + weight²: neither
    forecast is sure.

    Args:
      point: the model's.
      quantiles: the model's, or None.
      x: the contexts, in the units of the forecasts.
      mask: which points are observed.
    """
    weights = weights_of(jnp.sum(mask, axis=1), point.shape[1])
    moved = point + weights * (smooth(x[:, -REACH:], mask[:, -REACH:], point.shape[1]) - point)
    if quantiles is None:
        return moved, None
    wider = jnp.sqrt(1 + jnp.square(weights))[..., None]
    return moved, moved[..., None] + wider * (quantiles - point[..., None])


def weights_of(seen: Int[Array, " B"], horizon: int) -> Float[Array, "B H"]:
    """The weight of smoothing at each step, where so many points were seen.

    It is about a half of up to 72 points, decreases with the square of their number, and is 0 of
    `REACH` and from half as many steps as points on.
    """
    points = jnp.maximum(seen, 1)[:, None]
    few = jnp.minimum(jnp.square(_FEW / points), 1) - (_FEW / REACH) ** 2
    near = 1 - (1 + jnp.arange(horizon)) / (points / 2)
    return _WEIGHT * jnp.maximum(few, 0) * jnp.maximum(near, 0)


def smooth(x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int) -> Float[Array, "B H"]:
    """The forecast of the smoothing whose mean square error of one step has been the least.

    That of a season of m points is raised by 2 m / n of n points, which it was fitted to.
    """
    x = jnp.where(mask, x, 0).astype(jnp.float32)
    length = x.shape[1]
    times = jnp.arange(length) - (length - 1.0)  # that of the last point is 0
    steps = jnp.arange(horizon)
    slope = _slope(x, mask, times)
    seen = jnp.maximum(jnp.sum(mask, axis=1), 1)
    left, raised, gone_on = [], [], []
    for season in SEASONS:
        of_phase, cycles = _season(x, mask, slope, season)
        adjusted = x - of_phase[:, (jnp.arange(length) - length) % season]
        growth = _slope(adjusted, mask, times)[:, None]
        left.append(adjusted - growth * times)
        fitted = _PER_POINT * season / seen if season > 1 else jnp.zeros(len(x))
        raised.append(jnp.where((cycles >= 2) | (season == 1), 1 + fitted, jnp.nan))
        gone_on.append(growth * (1 + steps) + of_phase[:, steps % season])
    levels, squares = _levels(jnp.stack(left, axis=1), mask)
    errors = squares * jnp.stack(raised, axis=1)
    points = levels[..., None] + jnp.stack(gone_on, axis=1)
    best = jnp.nanargmin(errors.swapaxes(0, 1).reshape(len(x), -1), axis=1)[:, None, None]
    points = points.swapaxes(0, 1).reshape(len(x), -1, horizon)
    return jnp.take_along_axis(points, best, axis=1)[:, 0]


def _season(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], slope: Float[Array, " B"], season: int
) -> tuple[Float[Array, "B M"], Int[Array, " B"]]:
    """What each phase adds, that of the first step ahead first, and the number of whole cycles.

    Counted back from the last point, the mean over the cycles of what their points differ from the
    mean of their cycle and from steady growth by. It is drawn towards 0 as James and Stein do, by
    how much the cycles differ from one another.
    """
    missing = -x.shape[1] % season
    padded = (jnp.pad(a, ((0, 0), (missing, 0))) for a in (x, mask))
    cycles, known = (a.reshape(len(x), -1, season) for a in padded)
    whole = jnp.all(known, axis=2, keepdims=True)
    number = jnp.sum(whole, axis=1)
    steady = slope[:, None, None] * (jnp.arange(season) - (season - 1) / 2)
    apart = cycles - jnp.mean(cycles, axis=2, keepdims=True) - steady

    def mean(a: Float[Array, "B K M"]) -> Float[Array, "B M"]:
        return jnp.sum(jnp.where(whole, a, 0), axis=1) / jnp.maximum(number, 1)

    of_phase = mean(apart)
    variance = mean(jnp.square(apart - of_phase[:, None])) / jnp.maximum(number - 1, 1)
    power = jnp.mean(jnp.square(of_phase), axis=1, keepdims=True)
    doubt = jnp.mean(variance, axis=1, keepdims=True) / jnp.maximum(power, 1e-9)
    return of_phase * jnp.maximum(1 - doubt, 0), number[:, 0]


def _slope(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], times: Float[Array, " T"]
) -> Float[Array, " B"]:
    """That of the line of least squares; 0 of a single point."""
    seen = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    away = jnp.where(mask, times - jnp.sum(mask * times, axis=1, keepdims=True) / seen, 0)
    return jnp.sum(away * x, axis=1) / jnp.maximum(jnp.sum(jnp.square(away), axis=1), 1e-9)


def _levels(
    x: Float[Array, "B S T"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, "R B S"], Float[Array, "R B S"]]:
    """By each rate the last level, and the sum of squares by which points differed from the level.

    The first point that is observed is the first level.
    """
    rates = jnp.array(RATES)[:, None, None]
    first = jnp.take_along_axis(x, jnp.argmax(mask, axis=1)[:, None, None], axis=2)[..., 0]

    def step(state: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple, None]:
        level, squares = state
        value, observed = at
        missed = jnp.where(observed[:, None], value - level, 0)
        return (level + rates * missed, squares + jnp.square(missed)), None

    start = jnp.broadcast_to(first, (len(RATES), *first.shape))
    each = jnp.moveaxis(x, 2, 0), mask.T
    ends, _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), each)
    return ends
