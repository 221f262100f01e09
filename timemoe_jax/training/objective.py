"""The objective of training as a function of parameters and a batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from timemoe_jax.models.base import ModelOutput, abstract_model, family_of
from timemoe_jax.nn.experts.routing import RouterStatistics, router_statistics
from timemoe_jax.training import losses
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.context_scaling import context_lengths, last_observed, scale_by_context

# "values" [B, *C, S] float32, "mask" [B, *C, S] bool and, of packed windows, "segments" [B, S]
# int32; S is T inputs and data.future points more, and joint models have the axis C of variates.
# What `prepare` adds: "positions" [B, *C, T] float32. To the losses every variate is a row.
Batch = Mapping[str, Any]
Metrics = dict[str, Array]


class LossParts(NamedTuple):
    """The terms of a loss, and what the routers did."""

    horizons: dict[int, Float[Array, ""]]
    quantiles: dict[int, Float[Array, ""]]  # empty for a model without quantile heads
    balancing: Float[Array, ""]
    router_z: Float[Array, ""]
    statistics: RouterStatistics | None


def prepare(config: RunConfig, batch: Batch, key: Array | None) -> Batch:
    """A batch scaled as the config says, with the positions whose forecasts count.

    Args:
      config: of the run.
      batch: of windows whose series are z-scored as a whole.
      key: of the random lengths of contexts; None takes all inputs as the context.
    """
    data, mask = config.data, batch["mask"]
    read = mask[..., : -data.future]
    if data.standardization == "series":
        values = batch["values"]
        if data.clip > 0:
            values = jnp.clip(values, -data.clip, data.clip)
        return {**batch, "values": values, "positions": read.astype(jnp.float32)}
    # The variates of a window have one context, since what one is scaled by the others read.
    observed = read if read.ndim == 2 else jnp.any(read, axis=1)
    if key is None:
        contexts = last_observed(observed) + 1
    else:
        contexts = context_lengths(key, observed, data.context_min)
    contexts = jnp.repeat(contexts, mask.size // (len(mask) * mask.shape[-1]))
    values, flat = _rows(batch["values"]), _rows(mask)
    scaled = scale_by_context(values, flat, contexts, read.shape[-1], data.clip)
    positions = scaled.positions.reshape(read.shape)
    return {**batch, "values": scaled.values.reshape(mask.shape), "positions": positions}


def _rows(a: Shaped[Array, "B *C S"]) -> Shaped[Array, "R S"]:
    """Every variate of every window as a row."""
    return a.reshape(-1, a.shape[-1])


def read_at(config: RunConfig, key: Array | None) -> dict[int, Int[Array, " R"]] | None:
    """By horizon, the positions at which that head is read; None is all inputs.

    Args:
      config: of the run.
      key: of where the last of them lies; None reads all inputs.
    """
    length, most = config.data.length, config.loss.max_steps_per_position
    if config.data.future == 1 and not most:
        return None
    at = {}
    for p in config.model.horizon_lengths:
        stride = min(-(-p // most), length) if most and key is not None else 1
        # Counted from the end, where contexts are longest, so that what is left over is early.
        first: Array | int = length % stride
        if key is not None and stride > 1:
            first += jax.random.randint(jax.random.fold_in(key, p), (), 0, stride)
        at[p] = first + stride * jnp.arange(length // stride)
    return at


def split_batch(
    config: RunConfig, batch: Batch
) -> tuple[Float[Array, "B *C T"], Bool[Array, "B *C T"], Array, Array]:
    """Inputs and their mask [B, *C, T], targets and their mask as rows, one point later [R, S]."""
    future, values, mask = config.data.future, batch["values"], batch["mask"]
    targets, counted = _rows(values[..., 1:]), _rows(mask[..., 1:]).astype(jnp.float32)
    return values[..., :-future], mask[..., :-future], targets, counted


def target_weights(
    config: RunConfig, batch: Batch, at: Mapping[int, Array] | None
) -> dict[int, Float[Array, ""]]:
    """How many targets of each head count in a prepared batch."""
    _, _, _, counted = split_batch(config, batch)
    return losses.horizon_weights(
        counted, config.model.horizon_lengths, _rows(batch["positions"]), batch.get("segments"), at
    )


def make_loss(config: RunConfig) -> Callable[..., tuple[Float[Array, ""], LossParts]]:
    """The objective (arXiv 2409.16040, Eq. 11) as a function of parameters and a batch.

    For a model with quantile heads their pinball loss is added, times `loss.quantile_loss_factor`.
    The function takes `params`, a `batch` (without "positions", forecasts from every observed point
    count), the positions to read heads `at` (by default all inputs), the `weights`
    (`losses.horizon_weights`) to divide by if the batch is part of a larger one, and the `share` it
    has in the routers' losses of that. A target that is missing or padding never counts, nor does a
    prediction made from one.
    """
    graph, _ = abstract_model(config.model)

    def compute(
        params: nnx.State,
        batch: Batch,
        at: dict[int, Array] | None = None,
        weights: dict[int, Array] | None = None,
        share: float = 1.0,
    ) -> tuple[Float[Array, ""], LossParts]:
        x, read, _, _ = split_batch(config, batch)
        at = read_at(config, None) if at is None else at
        segments = batch.get("segments")
        model = nnx.merge(graph, params)
        output = model(x, read, None if segments is None else segments[:, :-1])
        horizons, quantiles = _forecast_losses(config, model, output, batch, at, weights)
        total = mean_of_heads(horizons)
        if quantiles:
            total = total + config.loss.quantile_loss_factor * mean_of_heads(quantiles)
        if output.router_logits is None:
            return total, LossParts(horizons, quantiles, jnp.zeros(()), jnp.zeros(()), None)
        statistics = _statistics(config, params, output, _rows(read).astype(jnp.float32))
        balancing = share * losses.balancing_loss(statistics)
        router_z = share * losses.router_z_loss(statistics)
        parts = LossParts(horizons, quantiles, balancing, router_z, statistics)
        return total + _regularizer(config, parts), parts

    return compute


def _forecast_losses(
    config: RunConfig,
    model: Any,
    output: ModelOutput,
    batch: Batch,
    at: dict[int, Array] | None,
    weights: dict[int, Array] | None,
) -> tuple[dict[int, Array], dict[int, Array]]:
    """The losses of the point heads, and of the quantile heads if there are any."""
    _, read, targets, counted = split_batch(config, batch)
    options: dict[str, Any] = {
        "positions": _rows(batch.get("positions", read.astype(jnp.float32))),
        "segments": batch.get("segments"),
        "weights": weights,
    }
    hidden = output.hidden.reshape(-1, *output.hidden.shape[-2:])
    predictions = {p: each.reshape(-1, *each.shape[-2:]) for p, each in output.predictions.items()}
    if at is not None:  # else the compiler would compute them all
        predictions = {p: model.head(hidden[:, own], p) for p, own in at.items()}
    horizons = losses.forecast_losses(
        predictions, targets, counted, delta=config.loss.huber_delta, at=at, **options
    )
    if not config.model.quantile_levels:
        return horizons, {}
    quantiles = losses.quantile_losses(
        model.quantile_head,
        hidden,
        targets,
        counted,
        horizon_lengths=config.model.horizon_lengths,
        levels=config.model.quantile_levels,
        **options,
    )
    return horizons, quantiles


def mean_of_heads(of_heads: Mapping[int, Float[Array, ""]]) -> Float[Array, ""]:
    """The mean of the losses of all heads."""
    return sum(of_heads.values(), jnp.zeros(())) / len(of_heads)


def _statistics(
    config: RunConfig, params: nnx.State, output: ModelOutput, positions: Float[Array, "B T"]
) -> RouterStatistics:
    """What the routers did; padding counts only where the config says so."""
    logits, family = output.router_logits, family_of(config.model)
    bias = family.selection_bias(params)
    return router_statistics(
        logits.reshape(len(logits), -1, *logits.shape[-2:]),
        family.experts_per_token(config.model),
        None if config.loss.balance_counts_padding else positions,
        bias=None if bias is None else bias[...],
        dropped=output.dropped,
    )


def _regularizer(config: RunConfig, parts: LossParts) -> Float[Array, ""]:
    """What the routers add to the objective."""
    total = jnp.zeros(())
    factor = family_of(config.model).router_loss_factor(config.model)
    if factor:
        total = total + factor * parts.balancing
    # Left out rather than times 0, which would still be NaN for logits that overflow.
    if config.loss.router_z_loss_factor > 0:
        total = total + config.loss.router_z_loss_factor * parts.router_z
    return total
