"""One update: the training state, the optimiser, the loss of a batch, the guarded step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax import losses, partitioning
from timemoe_jax.config import RunConfig
from timemoe_jax.context_scaling import context_lengths, last_observed, scale_by_context
from timemoe_jax.models.time_moe import TimeMoe, TimeMoeOutput, abstract_model, create_params
from timemoe_jax.nn.routing import RouterStatistics, router_statistics
from timemoe_jax.optimizer import learning_rate_schedule, make_optimizer

# "values" [B, S] float32, "mask" [B, S] bool and, of packed windows, "segments" [B, S] int32; S is
# T inputs and data.future points more. What `_prepare` adds: "positions" [B, T] float32.
Batch = Mapping[str, Any]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """Everything an update changes."""

    step: Int[Array, ""]  # batches seen
    params: nnx.State
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # updates skipped as not finite


def create_state(
    config: RunConfig, params: nnx.State | None = None, mesh: jax.sharding.Mesh | None = None
) -> TrainState:
    """The state before the first update.

    Args:
      config: of the run.
      params: to start from; by default initialised from the run's seed. They become float32.
      mesh: where to put it, by `partitioning.RULES`; the numbers do not depend on it.
    """
    state = functools.partial(_initial_state, config)
    if mesh is None:
        return state(params)
    places = partitioning.shardings(jax.eval_shape(state, params), mesh)
    if params is not None:
        params = jax.device_put(params, places.params)
    return jax.jit(state, out_shardings=places)(params)


def _initial_state(config: RunConfig, params: nnx.State | None) -> TrainState:
    params = create_params(config.model, config.seed) if params is None else params
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    opt_state = make_optimizer(config).init(params)
    # Two arrays, since the step donates both.
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.zeros((), jnp.int32))


def abstract_state(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and places of a state, without allocating any."""
    state = jax.eval_shape(functools.partial(_initial_state, config), None)
    return jax.tree.map(_placed, state, partitioning.shardings(state, mesh))


def _placed(array: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def batch_arrays(config: RunConfig) -> dict[str, Any]:
    """The arrays of a training batch that an update reads, with their dtypes."""
    arrays = {"values": jnp.float32, "mask": jnp.bool_}
    return {**arrays, "segments": jnp.int32} if config.data.segmented else arrays


def compile_train_step(config: RunConfig, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """The update of `make_train_step`, compiled for a mesh before there is any data."""
    shape = (config.train.batch_size, config.data.length + config.data.future)
    place = partitioning.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for name, dtype in batch_arrays(config).items()
    }
    with partitioning.using(mesh):
        return make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()


class _Parts(NamedTuple):
    """The terms of a loss, and what the routers did."""

    horizons: dict[int, Float[Array, ""]]
    quantiles: dict[int, Float[Array, ""]]  # empty for a model without quantile heads
    balancing: Float[Array, ""]
    router_z: Float[Array, ""]
    statistics: RouterStatistics | None


def _prepare(config: RunConfig, batch: Batch, key: Array | None) -> Batch:
    """A batch scaled as the config says, with the positions whose forecasts count.

    Args:
      config: of the run.
      batch: of windows whose series are z-scored as a whole.
      key: of the random lengths of contexts; None takes all inputs as the context.
    """
    data, mask = config.data, batch["mask"]
    read = mask[:, : -data.future]
    if data.standardisation == "series":
        values = batch["values"]
        if data.clip > 0:
            values = jnp.clip(values, -data.clip, data.clip)
        return {**batch, "values": values, "positions": read.astype(jnp.float32)}
    if key is None:
        contexts = last_observed(read) + 1
    else:
        contexts = context_lengths(key, read, data.context_min)
    scaled = scale_by_context(batch["values"], mask, contexts, read.shape[1], data.clip)
    return {**batch, "values": scaled.values, "positions": scaled.positions}


def _read_at(config: RunConfig, key: Array | None) -> dict[int, Int[Array, " R"]] | None:
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


def _split(
    config: RunConfig, batch: Batch
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Array, Array]:
    """Inputs and their mask, targets and their mask: the same window, one point apart."""
    future, values, mask = config.data.future, batch["values"], batch["mask"]
    return values[:, :-future], mask[:, :-future], values[:, 1:], mask[:, 1:].astype(jnp.float32)


def _weights(
    config: RunConfig, batch: Batch, at: Mapping[int, Array] | None
) -> dict[int, Float[Array, ""]]:
    """How many targets of each head count in a prepared batch."""
    _, _, _, counted = _split(config, batch)
    return losses.horizon_weights(
        counted, config.model.horizon_lengths, batch["positions"], batch.get("segments"), at
    )


def make_loss(config: RunConfig) -> Callable[..., tuple[Float[Array, ""], _Parts]]:
    """The objective (arXiv 2409.16040, Eq. 11) as a function of parameters and a batch.

    For a model with quantile heads their pinball loss is added, times `loss.quantile_factor`.
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
    ) -> tuple[Float[Array, ""], _Parts]:
        x, read, _, _ = _split(config, batch)
        at = _read_at(config, None) if at is None else at
        segments = batch.get("segments")
        model = nnx.merge(graph, params)
        output = model(x, read, None if segments is None else segments[:, :-1])
        horizons, quantiles = _forecast_losses(config, model, output, batch, at, weights)
        total = _mean(horizons)
        if quantiles:
            total = total + config.loss.quantile_factor * _mean(quantiles)
        if output.router_logits is None:
            return total, _Parts(horizons, quantiles, jnp.zeros(()), jnp.zeros(()), None)
        statistics = _statistics(config, params, output, read.astype(jnp.float32))
        balancing = share * losses.balancing_loss(statistics)
        router_z = share * losses.router_z_loss(statistics)
        parts = _Parts(horizons, quantiles, balancing, router_z, statistics)
        return total + _regulariser(config, parts), parts

    return compute


def _forecast_losses(
    config: RunConfig,
    model: TimeMoe,
    output: TimeMoeOutput,
    batch: Batch,
    at: dict[int, Array] | None,
    weights: dict[int, Array] | None,
) -> tuple[dict[int, Array], dict[int, Array]]:
    """The losses of the point heads, and of the quantile heads if there are any."""
    _, read, targets, counted = _split(config, batch)
    options: dict[str, Any] = {
        "positions": batch.get("positions", read.astype(jnp.float32)),
        "segments": batch.get("segments"),
        "weights": weights,
    }
    predictions = output.predictions
    if at is not None:  # else the compiler would compute them all
        predictions = {p: model.head(output.hidden[:, own], p) for p, own in at.items()}
    horizons = losses.forecast_losses(
        predictions, targets, counted, delta=config.loss.huber_delta, at=at, **options
    )
    if not config.model.quantile_levels:
        return horizons, {}
    quantiles = losses.quantile_losses(
        model.quantile_head,
        output.hidden,
        targets,
        counted,
        horizon_lengths=config.model.horizon_lengths,
        levels=config.model.quantile_levels,
        **options,
    )
    return horizons, quantiles


def _mean(of_heads: Mapping[int, Float[Array, ""]]) -> Float[Array, ""]:
    return sum(of_heads.values(), jnp.zeros(())) / len(of_heads)


def _statistics(
    config: RunConfig, params: nnx.State, output: TimeMoeOutput, positions: Float[Array, "B T"]
) -> RouterStatistics:
    """What the routers did; padding counts only where the config says so."""
    assert output.router_logits is not None
    return router_statistics(
        output.router_logits,
        config.model.num_experts_per_tok,
        None if config.loss.balance_counts_padding else positions,
        bias=_selection_bias(params)[...] if config.model.router_bias else None,
        dropped=output.dropped,
    )


def _regulariser(config: RunConfig, parts: _Parts) -> Float[Array, ""]:
    """What the routers add to the objective."""
    total = jnp.zeros(())
    if config.model.apply_aux_loss:
        total = total + config.model.router_aux_loss_factor * parts.balancing
    # Left out rather than times 0, which would still be NaN for logits that overflow.
    if config.loss.router_z_loss_factor > 0:
        total = total + config.loss.router_z_loss_factor * parts.router_z
    return total


def _selection_bias(params: nnx.State) -> Any:
    """The variable [L, E] of a model with `router_bias`."""
    return params["blocks"]["ffn"]["selection_bias"]


def make_train_step(config: RunConfig, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The update as a jitted function (state, batch) -> (state, metrics); it donates the state.

    On a mesh the state stays where it is, and the metrics are the same on every device.

    A loss or a gradient that is not finite leaves parameters and optimiser as they are, and is
    counted. With gradient accumulation the forecast losses and the load that moves the selection
    biases are those of the whole batch; the routers' losses are the means over the micro-batches.
    """
    optimizer = make_optimizer(config)
    schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
    gradient = jax.value_and_grad(make_loss(config), has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, parts, grads = _accumulate(config, gradient, state.params, batch, key)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = _move_selection_bias(config, state.params, params, parts.statistics)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        metrics = {
            "loss": loss,
            "finite": finite,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step - state.skipped),
            "points": jnp.sum(batch["mask"][:, : -config.data.future]),
            **_describe(parts),
        }
        new = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + jnp.where(finite, 0, 1),
        )
        return new, metrics

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    places = (
        partitioning.shardings(
            jax.eval_shape(functools.partial(_initial_state, config), None), mesh
        ),
        NamedSharding(mesh, P()),
    )
    return jax.jit(step, donate_argnums=0, out_shardings=places)


def _move_selection_bias(
    config: RunConfig, old: nnx.State, new: nnx.State, statistics: RouterStatistics | None
) -> nnx.State:
    """`new`, with the selection biases of `old`, if any, moved towards an even load.

    From the old ones, so that nothing the optimiser does, a decay among it, has a say.
    """
    if statistics is None or not config.model.router_bias:
        return new
    step = config.optimizer.router_bias_rate * losses.selection_bias_direction(statistics)
    _selection_bias(new)[...] = _selection_bias(old)[...] + step
    return new


def _accumulate(
    config: RunConfig,
    gradient: Callable[..., Any],
    params: nnx.State,
    batch: Batch,
    key: Array,
) -> tuple[Float[Array, ""], _Parts, nnx.State]:
    """Loss, its parts and its gradient, added up over the micro-batches of a batch."""
    count = config.train.gradient_accumulation
    of_contexts, of_positions = jax.random.split(key)
    batch, at = _prepare(config, batch, of_contexts), _read_at(config, of_positions)
    weights = _weights(config, batch, at)

    def one(micro: Batch) -> tuple[Float[Array, ""], _Parts, nnx.State]:
        (loss, parts), grads = gradient(params, micro, at, weights, 1 / count)
        return loss, parts, grads

    if count == 1:
        return one(batch)

    def add(total: Any, micro: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(micro)), None

    micros = jax.tree.map(functools.partial(_micro_batches, count), batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda a: a[0], micros))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(add, zeros, micros)[0]


def _micro_batches(count: int, a: Array) -> Array:
    """Cuts a batch so that every device goes on with rows that it has."""
    spread = partitioning.constrain(a.reshape(-1, count, *a.shape[1:]), partitioning.BATCH)
    return partitioning.constrain(jnp.moveaxis(spread, 1, 0), None, partitioning.BATCH)


def _describe(parts: _Parts) -> Metrics:
    """The terms of the loss and the load of the experts, by the names of the log."""
    metrics = {f"loss_{p}": loss for p, loss in parts.horizons.items()}
    if parts.quantiles:
        metrics["quantile_loss"] = _mean(parts.quantiles)
        metrics |= {f"quantile_loss_{p}": loss for p, loss in parts.quantiles.items()}
    metrics["balancing_loss"] = parts.balancing
    if parts.statistics is not None:
        metrics["router_z_loss"] = parts.router_z
        metrics["expert_load"] = losses.expert_load(parts.statistics)
        metrics["router_entropy"] = losses.router_entropy(parts.statistics)
        metrics["dropped_share"] = losses.dropped_share(parts.statistics)
        metrics["dead_expert_share"] = losses.dead_expert_share(parts.statistics)
    return metrics


def make_validation(config: RunConfig) -> Callable[[nnx.State, Batch], Metrics]:
    """A compiled function from parameters and a batch to sums: add them up, then divide.

    It returns, per head, "sum_P" of the Huber losses, "quantile_sum_P" of the pinball losses where
    the model has quantile heads, and "count_P" of the targets that count.
    """
    loss = make_loss(config)
    horizons = config.model.horizon_lengths

    def sums(params: nnx.State, batch: Batch) -> Metrics:
        batch, at = _prepare(config, batch, None), _read_at(config, None)
        counts = _weights(config, batch, at)
        ones = {p: jnp.ones(()) for p in horizons}
        _, parts = loss(params, batch, at, ones)
        totals = {f"sum_{p}": total for p, total in parts.horizons.items()}
        totals |= {f"quantile_sum_{p}": total for p, total in parts.quantiles.items()}
        return {**totals, **{f"count_{p}": count for p, count in counts.items()}}

    return jax.jit(sums)
