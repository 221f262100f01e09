"""The objective of training as a function of parameters and a batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from timemoe_jax.models.base import ModelOutput, abstract_model, family_of
from timemoe_jax.models.decoding import horizon_plan, observed_positions
from timemoe_jax.nn.experts.routing import RouterStatistics, router_statistics
from timemoe_jax.training import losses
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.context_scaling import context_lengths, last_observed, scale_by_context
from timemoe_jax.training.pieces import cut_pieces

# "values" [B, *C, S] float32, "mask" [B, *C, S] bool and, of packed windows, "segments" [B, S]
# int32; S is T inputs and data.future points more, and joint models have the axis C of variates.
# What `prepare` adds: "positions" [B, *C, T] float32. To the losses every variate is a row.
Batch = Mapping[str, Any]
Metrics = dict[str, Array]


class LossParts(NamedTuple):
    """The terms of a loss, and the statistics of the routers."""

    horizons: dict[int, Float[Array, ""]]
    quantiles: dict[int, Float[Array, ""]]  # empty for a model without quantile heads
    balancing: Float[Array, ""]
    router_z: Float[Array, ""]
    statistics: RouterStatistics | None


def prepare(config: RunConfig, batch: Batch, key: Array | None) -> Batch:
    """A batch scaled as the config says, with the "positions" whose forecasts count.

    The series of its windows come z-scored as a whole. The key draws the lengths of the contexts;
    None takes all inputs as the context. Windows cut into pieces are "values" in the units of their
    series, with the "inputs" [B, T] scaled, which of them are "read" and in which of the "pieces",
    and the "mean" and the "deviation" [B, T] that each is scaled by.
    """
    data, mask = config.data, batch["mask"]
    if data.standardization == "pieces":
        return cut_pieces(data, family_of(config.model).stride(config.model), batch, key)
    read = mask[..., : -data.future]
    if key is not None and family_of(config.model).draws:
        # Of each window its own, so that micro-batches and devices draw the same.
        numbers = jax.random.bits(jax.random.fold_in(key, 1), (len(mask),), jnp.uint32)
        batch = {**batch, "draws": numbers}
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


def heads_read(config: RunConfig) -> dict[int, int]:
    """The horizons of the heads that the loss is of, and how many steps of each count."""
    horizon, lengths = config.loss.horizon, config.model.horizon_lengths
    if not horizon:
        return {p: p for p in lengths}
    steps: dict[int, int] = {}
    for p in horizon_plan(horizon, lengths, config.model.forecast_plan):
        steps[p] = max(steps.get(p, 0), min(p, horizon))
        horizon -= p
    return dict(sorted(steps.items()))


def _rows(a: Shaped[Array, "B *C S"]) -> Shaped[Array, "R S"]:
    """Every variate of every window as a row."""
    return a.reshape(-1, a.shape[-1])


def read_at(config: RunConfig, key: Array | None) -> dict[int, Int[Array, " R"]] | None:
    """By horizon, the last points of the positions at which that head is read; None is all inputs.

    The key draws which is the last of them; without one every position is read.
    """
    family = family_of(config.model)
    apart = family.stride(config.model)
    length, most = config.data.length // apart, config.loss.max_steps_per_position
    if family.encoder or (config.data.future == 1 and not most and apart == 1):
        return None
    at = {}
    for p, steps in heads_read(config).items():
        stride = min(-(-steps // most), length) if most and key is not None else 1
        # Counted from the end, where contexts are longest, so that what is left over is early.
        first: Array | int = length % stride
        if key is not None and stride > 1:
            first += jax.random.randint(jax.random.fold_in(key, p), (), 0, stride)
        at[p] = first + stride * jnp.arange(length // stride)
        at[p] = at[p] if apart == 1 else apart * (at[p] + 1) - 1
    return at


def targets_of(config: RunConfig, batch: Batch, at: Mapping[int, Array] | None) -> losses.Targets:
    """The targets of every row of a batch: its points from the second on."""
    read = batch["mask"][..., : -config.data.future]
    positions = batch.get("positions", read.astype(jnp.float32))
    if read.ndim == 3:
        positions = (
            positions * (jnp.arange(read.shape[1]) < _scored_variates(config, read))[:, None]
        )
    kind = losses.LaterTargets if family_of(config.model).encoder else losses.Targets
    return kind(
        values=_rows(batch["values"][..., 1:]),
        mask=_rows(batch["mask"][..., 1:]).astype(jnp.float32),
        positions=_rows(positions),
        segments=batch.get("segments"),
        at=at,
        scaling=_scaling(config, batch),
        steps=heads_read(config),
    )


def _scored_variates(config: RunConfig, x: Shaped[Array, "B *C T"]) -> int:
    """How many variates of a window are forecast; of windows of one series, their second axis."""
    if x.ndim == 2:
        return x.shape[1]
    return family_of(config.model).scored_variates(config.model, x.shape[1])


def _scaling(config: RunConfig, batch: Batch) -> losses.Scaling | None:
    if "deviation" not in batch:
        return None
    return losses.Scaling(batch["mean"], batch["deviation"], config.data.clip)


def _inputs(config: RunConfig, batch: Batch) -> tuple[Array, Array, Array | None]:
    """What the model reads: values, which are observed, and which are read together."""
    if "inputs" in batch:
        return batch["inputs"], batch["read"], batch["pieces"]
    x, read = (batch[name][..., : -config.data.future] for name in ("values", "mask"))
    segments = batch.get("segments")
    return x, read, None if segments is None else segments[:, :-1]


def make_loss(config: RunConfig) -> Callable[..., tuple[Float[Array, ""], LossParts]]:
    """The objective (arXiv 2409.16040, Eq. 11) as a function of parameters and a batch.

    The pinball loss of quantile heads is added, times `loss.quantile_loss_factor`. The function
    takes `params`, a `batch` (without "positions", forecasts from every observed point count) and
    the positions to read heads `at` (by default all inputs). If the batch is part of a larger one,
    it also takes the `weights` to divide by, `Targets.counts` of that, and the `share` of this one
    in the routers' losses. A target that is missing or padding never counts, nor does a prediction
    made from one. A `key` draws what a model draws while training; without one nothing is drawn.
    """
    graph, _ = abstract_model(config.model)
    stride = family_of(config.model).stride(config.model)
    encoder = family_of(config.model).encoder

    def compute(
        params: nnx.State,
        batch: Batch,
        at: dict[int, Array] | None = None,
        weights: dict[int, Array] | None = None,
        share: float = 1.0,
        key: Array | None = None,
    ) -> tuple[Float[Array, ""], LossParts]:
        x, read, segments = _inputs(config, batch)
        at = read_at(config, None) if at is None else at
        model = nnx.merge(graph, params)
        if hasattr(model, "most_steps"):  # its heads can leave later steps out
            model.most_steps = max(heads_read(config).values())
        more: dict[str, Any] = {"key": key} if encoder else {}
        more |= {"draws": batch["draws"]} if "draws" in batch else {}
        if _scored_variates(config, x) < x.shape[1]:
            more["ahead"] = tuple(batch[n][..., -config.data.future :] for n in ("values", "mask"))
        if "marks" in batch:
            more["marks"] = batch["marks"][..., : -config.data.future]
        output = model(x, read, segments, **more)
        targets = targets_of(config, batch, at)
        horizons, quantiles = _forecast_losses(config, model, output, targets, weights)
        total = mean_of_heads(horizons)
        if quantiles:
            total = total + config.loss.quantile_loss_factor * mean_of_heads(quantiles)
        if output.router_logits is None:
            return total, LossParts(horizons, quantiles, jnp.zeros(()), jnp.zeros(()), None)
        positions = observed_positions(_rows(read), stride)
        statistics = _statistics(config, params, output, positions.astype(jnp.float32))
        balancing = share * losses.balancing_loss(statistics)
        router_z = share * losses.router_z_loss(statistics)
        parts = LossParts(horizons, quantiles, balancing, router_z, statistics)
        return total + _regularizer(config, parts), parts

    return compute


def _forecast_losses(
    config: RunConfig,
    model: Any,
    output: ModelOutput,
    targets: losses.Targets,
    weights: dict[int, Array] | None,
) -> tuple[dict[int, Array], dict[int, Array]]:
    """The losses of the point heads, and of the quantile heads if there are any.

    Without point heads the first are those of the quantile heads, and there are no second ones.
    """
    hidden = output.hidden.reshape(-1, *output.hidden.shape[-2:])
    family, heads = family_of(config.model), tuple(heads_read(config))
    stride, squash = family.stride(config.model), family.squashes(config.model)
    quantiles = {}
    if config.model.quantile_levels:
        quantiles = losses.quantile_losses(
            model.squashed_quantiles if squash else model.quantile_head,
            hidden,
            targets,
            horizon_lengths=heads,
            levels=config.model.quantile_levels,
            stride=stride,
            squash=squash,
            weights=weights,
        )
    if not family.has_point_heads(config.model):
        return quantiles, {}
    predictions = {p: output.predictions[p] for p in heads}
    predictions = {p: each.reshape(-1, *each.shape[-2:]) for p, each in predictions.items()}
    if targets.at is not None:  # else the compiler would compute them all
        predictions = {
            p: model.head(hidden[:, (read + 1) // stride - 1], p) for p, read in targets.at.items()
        }
    delta, kind = config.loss.huber_delta, config.loss.kind
    horizons = losses.forecast_losses(predictions, targets, delta=delta, weights=weights, kind=kind)
    return horizons, quantiles


def mean_of_heads(of_heads: Mapping[int, Float[Array, ""]]) -> Float[Array, ""]:
    """The mean of the losses of all heads."""
    return sum(of_heads.values(), jnp.zeros(())) / len(of_heads)


def _statistics(
    config: RunConfig, params: nnx.State, output: ModelOutput, positions: Float[Array, "B N"]
) -> RouterStatistics:
    """Sums of what the routers decided; padding counts only if the config says so."""
    logits, family = output.router_logits, family_of(config.model)
    bias = family.selection_bias(params)
    counted = None if config.loss.balance_counts_padding else positions
    probabilities = output.probabilities
    if output.counts is not None:  # decisions of segments, of as many as a layer has
        counted = output.counts.reshape(len(logits), -1, logits.shape[-2]).astype(jnp.float32)
    if probabilities is not None:
        probabilities = probabilities.reshape(len(logits), -1, *logits.shape[-2:])
    return router_statistics(
        logits.reshape(len(logits), -1, *logits.shape[-2:]),
        family.experts_per_token(config.model),
        counted,
        bias=None if bias is None else bias[...],
        dropped=output.dropped,
        scoring=family.scoring,
        probabilities=probabilities,
    )


def _regularizer(config: RunConfig, parts: LossParts) -> Float[Array, ""]:
    """The part of the objective that is about the routers."""
    total = jnp.zeros(())
    factor = family_of(config.model).router_loss_factor(config.model)
    if factor:
        total = total + factor * parts.balancing
    # Left out rather than times 0, which would still be NaN for logits that overflow.
    if config.loss.router_z_loss_factor > 0:
        total = total + config.loss.router_z_loss_factor * parts.router_z
    return total
