"""Forecasts of a Time Tracker: the next patch, again and again, with what is known ahead."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from timemoe_jax.models.decoding import Decoded, horizon_plan, whole_positions
from timemoe_jax.models.time_tracker.model import TimeTracker, known_at


def decode(
    model: TimeTracker,
    x: Float[Array, "B C T"],
    mask: Bool[Array, "B C T"],
    horizon: int,
    ahead: int = 0,
) -> Decoded:
    """Forecasts after contexts that end together, with the links that the contexts say.

    Args:
      x: contexts, normalized; the last `ahead` points are after them, for variates that are known.
      mask: False where a point must not be read. A variate that is read after the context is one
        that is known; what is forecast of it means nothing.
      horizon: points to forecast, static.
      ahead: at least the horizon where a variate is known.
    """
    config = model.config
    length = x.shape[-1] - ahead
    series, observed = x[..., :length], mask[..., :length]
    known = jnp.any(mask[..., length:], axis=-1, keepdims=True) if ahead else None
    links = model.links_in_use(series, observed)
    present = jnp.any(observed, axis=-1, keepdims=True)  # an absent variate stays absent
    points, quantiles = [], []
    for predict in horizon_plan(horizon, config.horizon_lengths, config.forecast_plan):
        shown, read = series, observed
        if known is not None:
            now = series.shape[-1]
            shown = jnp.where(known, known_at(x, config.lead, now), shown)
            read = jnp.where(known, known_at(mask, config.lead, now), read)
        states, *_ = model.states(*whole_positions(shown, read, config.stride), links)
        hidden = states[..., -1, :]
        points.append(model.head(hidden, predict))
        if config.quantile_levels:
            quantiles.append(model.quantile_head(hidden, predict))
        series = jnp.concatenate([series, points[-1].astype(x.dtype)], axis=-1)
        more = jnp.broadcast_to(present, (*mask.shape[:-1], predict))
        observed = jnp.concatenate([observed, more], axis=-1)
    joined = jnp.concatenate(quantiles, axis=-2)[..., :horizon, :] if quantiles else None
    return Decoded(jnp.concatenate(points, axis=-1)[..., :horizon], joined)
