"""The training objective, Huber and pinball on the heads, and what keeps the routers healthy."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from timemoe_jax.nn.experts.routing import RouterStatistics


def huber(error: Float[Array, "..."], delta: float) -> Float[Array, "..."]:
    """error²/2 within delta, delta * (|error| - delta/2) beyond (arXiv 2409.16040, Eq. 8)."""
    magnitude = jnp.abs(error)
    quadratic = jnp.minimum(magnitude, delta)
    return quadratic * (magnitude - 0.5 * quadratic)


def point_loss(error: Float[Array, "..."], kind: str, delta: float) -> Float[Array, "..."]:
    """The loss of an error: "huber", "mse" (its square), "mae" or "pinball" of the median."""
    if kind == "huber":
        return huber(error, delta)
    magnitude = jnp.abs(error)
    return {"mse": error * error, "mae": magnitude, "pinball": 0.5 * magnitude}[kind]


def pinball(
    quantiles: Float[Array, "*N Q"], targets: Float[Array, "*N"], levels: tuple[float, ...]
) -> Float[Array, "*N"]:
    """Mean over levels u of u * e where e >= 0 and (u - 1) * e below, e = target - quantile.

    In expectation least where each quantile is that of its level (Koenker and Bassett, Regression
    Quantiles, 1978). At the level 1/2 it is half the absolute error.
    """
    level = jnp.asarray(levels, jnp.float32)
    error = targets[..., None] - quantiles
    return jnp.mean(jnp.maximum(level * error, (level - 1) * error), axis=-1)


def following(
    values: Num[Array, "B S"], horizon: int, at: Int[Array, " R"] | None = None
) -> Num[Array, "B R P"]:
    """For each position in `at` its value and the horizon - 1 after it, zeros past the end.

    By default these are all S positions.
    """
    at = jnp.arange(values.shape[1]) if at is None else at
    padded = jnp.pad(values, ((0, 0), (0, horizon - 1)))
    return padded[:, at[:, None] + jnp.arange(horizon)]


class Targets(NamedTuple):
    """What predictions aim at: S values, which a head P at position t reads as values[t : t + P].

    S is at least the number of inputs T, since a head may aim beyond them.
    """

    values: Float[Array, "B S"]  # the value after each position
    mask: Float[Array, "B S"]  # 1 where a target counts, 0 where it is missing or padding
    # 1 where a prediction counts, 0 where it was made from a missing point; None counts all.
    positions: Float[Array, "B T"] | None = None
    # Of each position and of the point after the last: a target counts for positions of its own
    # segment. None is one segment.
    segments: Int[Array, "B S+1"] | None = None
    # By horizon, the positions at which that head was read; None is all S of them.
    at: Mapping[int, Int[Array, " R"]] | None = None
    # What values are scaled by where they are aimed at from each position, and the bound of what
    # they then are, 0 for none; None takes them as they are.
    scaling: "Scaling | None" = None
    # By horizon, how many steps of that head count; None is all of them.
    steps: Mapping[int, int] | None = None

    def steps_of(self, horizon: int) -> int:
        """How many steps of the head of a horizon count."""
        return self.steps[horizon] if self.steps else horizon

    def following(self, horizon: int) -> Float[Array, "B R P"]:
        """The values that the head of a horizon aims at, those of its steps that count."""
        at = self.at[horizon] if self.at else None
        values = following(self.values, self.steps_of(horizon), at)
        return values if self.scaling is None else self.scaling.apply(values, at)

    def counted(self, horizon: int) -> Float[Array, "B R P"]:
        """1 where the target of a position's step counts; past the end nothing does."""
        at, steps = self.at[horizon] if self.at else None, self.steps_of(horizon)
        counted = following(self.mask, steps, at)
        read = slice(None) if at is None else at
        if self.segments is not None:
            aimed_at = following(self.segments[:, 1:], steps, at)
            counted = counted * (aimed_at == self.segments[:, :-1][:, read, None])
        return counted if self.positions is None else counted * self.positions[:, read, None]

    def counts(self, horizon_lengths: Iterable[int]) -> dict[int, Float[Array, ""]]:
        """How many (position, step) targets of each head count."""
        return {p: jnp.sum(self.counted(p)) for p in horizon_lengths}


class Scaling(NamedTuple):
    """By which location and scale a model reads its input at each position."""

    mean: Float[Array, "B T"]
    deviation: Float[Array, "B T"]
    clip: float = 0.0

    def apply(
        self, values: Float[Array, "B R P"], at: Int[Array, " R"] | None
    ) -> Float[Array, "B R P"]:
        """Values that are aimed at from positions `at`, in the units of those."""
        read = slice(None) if at is None else at
        scaled = (values - self.mean[:, read, None]) / self.deviation[:, read, None]
        return jnp.clip(scaled, -self.clip, self.clip) if self.clip > 0 else scaled


class LaterTargets(Targets):
    """What an encoder aims at: of each position the value P points later alone.

    Its predictions are made from the whole window, so that they count wherever their targets do.
    """

    def following(self, horizon: int) -> Float[Array, "B T 1"]:
        """The value so many points after each position, 0 past the end."""
        return self._later(self.values, horizon)

    def counted(self, horizon: int) -> Float[Array, "B T 1"]:
        """1 where that counts; past the end nothing does."""
        return self._later(self.mask, horizon)

    def _later(self, values: Float[Array, "B S"], horizon: int) -> Float[Array, "B T 1"]:
        length = values.shape[1] if self.positions is None else self.positions.shape[1]
        padded = jnp.pad(values, ((0, 0), (0, horizon)))
        return padded[:, horizon - 1 : horizon - 1 + length, None]


def forecast_losses(
    predictions: Mapping[int, Float[Array, "B R P"]],
    targets: Targets,
    *,
    delta: float,
    weights: Mapping[int, Float[Array, ""]] | None = None,
    kind: str = "huber",
) -> dict[int, Float[Array, ""]]:
    """Mean error of each head over the targets that count (arXiv 2409.16040, Eq. 9).

    It is Huber's, which turns linear at `delta`, or of another `kind`: see `point_loss`. The
    `weights` are what to divide the sums by, by default `targets.counts`: micro-batches pass the
    counts of the whole batch, so that their losses add up to its loss. The loss of a
    head without a target is 0.
    """
    weights = targets.counts(predictions) if weights is None else weights
    losses = {}
    for p, predicted in predictions.items():
        counted, predicted = targets.counted(p), predicted[..., : targets.steps_of(p)]
        error = jnp.where(counted > 0, predicted - targets.following(p), 0)
        losses[p] = jnp.sum(point_loss(error, kind, delta) * counted) / jnp.maximum(weights[p], 1)
    return losses


def quantile_losses(
    quantile_head: Callable[[Array, int], Array],
    hidden: Float[Array, "B N D"],
    targets: Targets,
    *,
    horizon_lengths: tuple[int, ...],
    levels: tuple[float, ...],
    stride: int = 1,
    squash: bool = False,
    weights: Mapping[int, Float[Array, ""]] | None = None,
) -> dict[int, Float[Array, ""]]:
    """Mean pinball loss of each head of quantiles over the targets that count.

    The heads map hidden states and a horizon P to quantiles, [B, C, D] -> [B, C, P, Q]. They are
    read where `targets.at` says, by default at each of the N positions, which are `stride` points
    apart: a part of them at a time, as many parts as there are levels, and again in the backward
    pass, so that they take about the memory that the point heads take. With `squash` the heads aim
    at asinh of the values. The weights are those of `forecast_losses`.
    """
    batch, length, _ = hidden.shape
    if targets.positions is None:
        targets = targets._replace(positions=jnp.ones((batch, length * stride)))
    every = stride * jnp.arange(1, length + 1) - 1
    at = dict.fromkeys(horizon_lengths, every) if targets.at is None else targets.at
    weights = targets._replace(at=at).counts(horizon_lengths) if weights is None else weights

    def head_loss(p: int) -> Float[Array, ""]:
        count = at[p].shape[0]
        size = -(-count // len(levels))
        padded = jnp.pad(at[p], (0, -count % size)).reshape(-1, size)
        exists = (jnp.arange(padded.size) < count).reshape(padded.shape)

        def add(total: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
            points, real = inputs
            part = targets._replace(at={p: points})
            counted = part.counted(p) * real[:, None]

            def of_part(hidden: Array) -> Array:
                # Chosen before the difference, so that what does not count has no gradient either.
                following = part.following(p)
                following = jnp.arcsinh(following) if squash else following
                aimed_at = jnp.where(counted > 0, following, 0)
                states = hidden[:, (points + 1) // stride - 1]
                said = quantile_head(states, p)[..., : targets.steps_of(p), :]
                error = pinball(said, aimed_at, levels)
                return jnp.sum(jnp.where(counted > 0, error, 0))

            # Where contexts are long by themselves, half of the positions are too early to count.
            none = jnp.zeros_like(total)
            own = jax.lax.cond(jnp.any(counted > 0), of_part, lambda _: none, hidden)
            return total + own, None

        add = jax.checkpoint(add, prevent_cse=False)
        total, _ = jax.lax.scan(add, jnp.zeros(()), (padded, exists))
        return total / jnp.maximum(weights[p], 1)

    return {p: head_loss(p) for p in horizon_lengths}


def balancing_loss(statistics: RouterStatistics) -> Float[Array, ""]:
    """E * sum over slots k and experts e of f[k, e] * P[e], all layers pooled.

    f[k, e] is the share of tokens whose k-th choice is e, P[e] the mean router probability of e.
    As in the published code the sum is not divided by K (the paper's Eq. 10 is): uniform routing
    gives K, and every layer on the same K experts gives E. Layers collapsed onto disjoint experts
    look uniform to it, which is why `expert_load` is logged per layer.
    """
    tokens = jnp.maximum(jnp.sum(statistics.tokens), 1)
    share = jnp.sum(statistics.choices, axis=0) / tokens
    mean_probability = jnp.sum(statistics.probabilities, axis=0) / tokens
    return share.shape[-1] * jnp.sum(share * mean_probability)


def router_z_loss(statistics: RouterStatistics) -> Float[Array, ""]:
    """Mean of logsumexp(logits)² over tokens, then over layers (arXiv 2202.08906, Eq. 5).

    It bounds the logits, so that a softmax stays where it has a gradient; it does not balance.
    """
    return jnp.mean(statistics.squared_log_normalizer / jnp.maximum(statistics.tokens, 1))


def expert_load(statistics: RouterStatistics) -> Float[Array, "L E"]:
    """The share of each layer's (token, choice) pairs that went to each expert; rows sum to 1."""
    counts = jnp.sum(statistics.choices, axis=-2)
    return counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)


def router_entropy(statistics: RouterStatistics) -> Float[Array, " L"]:
    """Mean entropy of each layer's router, in nats: log E is uniform, 0 is decided."""
    return statistics.entropy / jnp.maximum(statistics.tokens, 1)


def dead_expert_share(statistics: RouterStatistics) -> Float[Array, " L"]:
    """The share of each layer's experts that no token chose, of those that count."""
    counts = jnp.sum(statistics.choices, axis=-2)
    return jnp.mean(counts == 0, axis=-1, dtype=jnp.float32)


def used_expert_share(statistics: RouterStatistics) -> Float[Array, " L"]:
    """The share of each layer's experts that do more than a tenth of an even share of the work."""
    load = expert_load(statistics)
    return jnp.mean(load * load.shape[-1] > 0.1, axis=-1, dtype=jnp.float32)


def dropped_share(statistics: RouterStatistics) -> Float[Array, " L"]:
    """The share of each layer's (token, choice) pairs that no expert computed, padding included."""
    return statistics.dropped / jnp.maximum(statistics.pairs, 1)


def selection_bias_direction(statistics: RouterStatistics) -> Float[Array, "L E"]:
    """sign(mean load - load) over a whole batch: 1 for an expert of too few tokens, -1 of too many.

    This is the rule of loss-free balancing (arXiv 2408.15664, Alg. 1); without a token it gives 0.
    """
    counts = jnp.sum(statistics.choices, axis=-2)
    # Times E, since whole numbers are exact: an even load is not to look uneven by rounding.
    return jnp.sign(jnp.sum(counts, axis=-1, keepdims=True) - counts.shape[-1] * counts)
