"""Forecasting any horizon from heads of a few fixed ones (arXiv 2409.16040, Algorithm 1).

The head that the plan names is read at the last position, and its values are appended to the
series, again and again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Decoded(NamedTuple):
    """A forecast, float32; with an axis of variates for a joint model."""

    point: Float[Array, "B *C H"]
    quantiles: Float[Array, "B *C H Q"] | None  # None of a model without heads for them


def horizon_plan(
    horizon: int, horizon_lengths: tuple[int, ...], forecast_plan: str = "fitting"
) -> tuple[int, ...]:
    """The heads to read, one after the other, for at least one point; the last may be cut.

    "fitting", as published: the longest that is no longer than what remains, else the shortest.
    "covering": the shortest that is no shorter than what remains, else the longest. The horizons of
    the heads are increasing.
    """
    plan: list[int] = []
    remaining = horizon
    while remaining > 0:
        if forecast_plan == "fitting":
            fitting = [p for p in horizon_lengths if p <= remaining]
            plan.append(fitting[-1] if fitting else horizon_lengths[0])
        else:
            covering = [p for p in horizon_lengths if p >= remaining]
            plan.append(covering[0] if covering else horizon_lengths[-1])
        remaining -= plan[-1]
    return tuple(plan)


def rounded_horizon(
    horizon: int, horizon_lengths: tuple[int, ...], forecast_plan: str = "fitting"
) -> int:
    """The horizon of a few that a program computes in place of one: the same values, and some more.

    The heads of `horizon_plan` say more than is asked for: a head that covers 24 points may be one
    of 32, which then serves all of 9 to 32. Where a plan ends in several reads of the shortest
    head, it goes on until one more would make it another plan. So with heads of 1, 8 and 32, and
    "fitting", 20 and 23 points are one size, 24 another; the reads of the values asked for are the
    same in any case.
    """
    plan = horizon_plan(horizon, horizon_lengths, forecast_plan)
    shortest, end = horizon_lengths[0], horizon

    def begins_alike(longer: int) -> bool:
        return horizon_plan(longer, horizon_lengths, forecast_plan)[: len(plan)] == plan

    if len(plan) > 1 and plan[-1] == shortest:
        reads = plan.count(shortest)
        # A model of one head has no longer one to stop at.
        alone = len(horizon_lengths) == 1
        wanted = 1 << (reads - 1).bit_length() if alone else horizon_lengths[1] // shortest
        for more in range(1, wanted - reads + 1):
            if begins_alike(sum(plan) + more * shortest):
                end = sum(plan) + more * shortest
    return end if end > horizon or not begins_alike(sum(plan)) else sum(plan)


def whole_positions(
    x: Float[Array, "B *C T"], mask: Bool[Array, "B *C T"], stride: int
) -> tuple[Float[Array, "B *C S"], Bool[Array, "B *C S"]]:
    """Pads on the left to a multiple of the stride, so that the last position ends with the end."""
    missing = -x.shape[-1] % stride
    if not missing:
        return x, mask
    widths = [(0, 0)] * (x.ndim - 1) + [(missing, 0)]
    return jnp.pad(x, widths), jnp.pad(mask, widths)


def observed_positions(mask: Bool[Array, "*N T"], stride: int) -> Bool[Array, "*N P"]:
    """Which of the P = T / stride positions read an observed point."""
    if stride == 1:
        return mask
    return jnp.any(mask.reshape(*mask.shape[:-1], -1, stride), axis=-1)


def decode_as(
    config: Any,
    decode: Callable[..., Decoded],
    x: Float[Array, "B *C T"],
    mask: Bool[Array, "B *C T"],
    *marks: Float[Array, "B M S"],
) -> Decoded:
    """Calls `decode(x, mask, *marks)`, and for a `mirrored` config also of -x, in one batch.

    There the forecast is (f(x) - f(-x)) / 2, and its quantile of level a the mean of that of x and
    of minus that of level 1 - a of -x: the mean over the group of the two signs, which makes any
    forecast one that turns with its series.
    """
    if not config.mirrored:
        return decode(x, mask, *marks)
    both = [jnp.concatenate([each, each]) for each in (mask, *marks)]
    point, quantiles = decode(jnp.concatenate([x, -x]), *both)
    up, down = jnp.split(point, 2)
    if quantiles is not None:
        above, below = jnp.split(quantiles, 2)
        quantiles = (above - below[..., ::-1]) / 2
    return Decoded((up - down) / 2, quantiles)


def decode_uncached(
    model: Any,
    x: Float[Array, "B *C T"],
    mask: Bool[Array, "B *C T"],
    horizon: int,
    stride: int = 1,
) -> Decoded:
    """Forecasts with a model of any family, reading the whole series anew for every head.

    The contexts are normalized, and not read where the mask is False; the horizon is static. The
    stride is that of the family.
    """
    config = model.config
    points, quantiles = [], []
    for predict in horizon_plan(horizon, config.horizon_lengths, config.forecast_plan):
        output = model(*whole_positions(x, mask, stride))
        hidden = output.hidden[..., -1, :]
        points.append(output.predictions[predict][..., -1, :].astype(jnp.float32))
        if config.quantile_levels:
            quantiles.append(model.quantile_head(hidden, predict))
        x = jnp.concatenate([x, points[-1].astype(x.dtype)], axis=-1)
        observed = jnp.any(mask, axis=-1, keepdims=True)  # an absent variate stays absent
        more = jnp.broadcast_to(observed, (*mask.shape[:-1], predict))
        mask = jnp.concatenate([mask, more], axis=-1)
    joined = jnp.concatenate(quantiles, axis=-2)[..., :horizon, :] if quantiles else None
    return Decoded(jnp.concatenate(points, axis=-1)[..., :horizon], joined)
