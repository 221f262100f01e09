"""What heads read beside the states of a model with `copy_lags`, joined to them in one array.

Heads map hidden states, so that what is known of a position's copies travels with its state.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.nn import copies

_NUMBERS = 4  # that are one for each position


class Beside(NamedTuple):
    """Of each position, for a horizon of P steps: see `copies.Copies`."""

    copied: Float[Array, "*N C P"]
    phases: Float[Array, "*N P"]
    anchors: Float[Array, "*N A"]
    changes: Float[Array, "*N R"]
    matches: Float[Array, " *N"]
    spans: Float[Array, " *N"]
    growth: Float[Array, " *N"]
    departures: Float[Array, "*N R"]
    seen: Float[Array, " *N"]


def join(
    states: Float[Array, "B N D"], found: copies.Copies, longest: int, last: bool
) -> Float[Array, "B N H"]:
    """States, and behind them what is beside them for up to `longest` steps; `last`: N is 1."""
    copied, phases = found.ahead(longest, last)
    flat = copied.reshape(*copied.shape[:2], -1)
    numbers = jnp.stack([found.matches, found.spans, found.growth, found.seen], axis=-1)
    rest = found.anchors, found.changes, numbers, found.departures
    cut = [a[:, -1:] if last else a for a in rest]
    return jnp.concatenate([states.astype(jnp.float32), flat, phases, *cut], axis=-1)


def split(
    hidden: Float[Array, "*N H"], config: TimeMoeConfig, longest: int, horizon: int
) -> tuple[Float[Array, "*N D"], Beside]:
    """What `join` joined: the states, and what is beside them for `horizon` steps."""
    kept = copies.kept_lags(config.copy_lags)
    widths = config.hidden_size, copies.COPIES * longest, longest, copies.ANCHORS, kept, _NUMBERS
    parts = jnp.split(hidden, np.cumsum(widths), axis=-1)
    state, copied, phases, anchors, changes, numbers, departures = parts
    copied = copied.reshape(*hidden.shape[:-1], copies.COPIES, -1)[..., :horizon]
    matches, spans, growth, seen = (numbers[..., i] for i in range(_NUMBERS))
    rest = anchors, changes, matches, spans, growth, departures, seen
    return state, Beside(copied, phases[..., :horizon], *rest)
