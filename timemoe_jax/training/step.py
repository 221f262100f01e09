"""One update: the training state, the optimizer, the loss of a batch, the guarded step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from timemoe_jax.data.calendar import ROWS
from timemoe_jax.models.base import create_params, family_of
from timemoe_jax.nn.experts.routing import RouterStatistics
from timemoe_jax.runtime import partitioning
from timemoe_jax.training import losses
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.objective import (
    Batch,
    LossParts,
    Metrics,
    heads_read,
    make_loss,
    mean_of_heads,
    prepare,
    read_at,
    targets_of,
)
from timemoe_jax.training.optimizer import learning_rate_schedule, make_optimizer


class TrainState(NamedTuple):
    """Everything an update changes."""

    step: Int[Array, ""]  # batches seen
    params: nnx.State
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # updates skipped as not finite


def create_state(
    config: RunConfig, params: nnx.State | None = None, mesh: jax.sharding.Mesh | None = None
) -> TrainState:
    """The state before the first update: float32 `params`, by default initialized from the seed.

    A mesh says where to put it, by the rules of the model's family, and changes no number.
    """
    state = functools.partial(_initial_state, config)
    if mesh is None:
        return state(params)
    _, shardings = _abstract_state(config, mesh, params)
    if params is not None:
        params = jax.device_put(params, shardings.params)
    return jax.jit(state, out_shardings=shardings)(params)


def _initial_state(config: RunConfig, params: nnx.State | None) -> TrainState:
    params = create_params(config.model, config.seed) if params is None else params
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    opt_state = make_optimizer(config).init(params)
    # Two arrays, since the step donates both.
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.zeros((), jnp.int32))


def abstract_state(config: RunConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, without allocating any."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        *_abstract_state(config, mesh),
    )


def _abstract_state(
    config: RunConfig, mesh: jax.sharding.Mesh, params: nnx.State | None = None
) -> tuple[TrainState, TrainState]:
    """The shapes and dtypes of the initial state, and its shardings."""
    state = jax.eval_shape(functools.partial(_initial_state, config), params)
    return state, partitioning.shardings(state, mesh, family_of(config.model).rules())


def batch_arrays(config: RunConfig) -> dict[str, Any]:
    """The arrays of a training batch that an update reads, with their dtypes."""
    arrays = {"values": jnp.float32, "mask": jnp.bool_}
    if config.data.calendar:
        arrays["marks"] = jnp.float32
    return {**arrays, "segments": jnp.int32} if config.data.segmented else arrays


def compile_train_step(config: RunConfig, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """The update of `make_train_step`, compiled for a mesh before there is any data."""
    variates = (config.data.variates,) if config.data.variates else ()
    size, points = config.train.batch_size, config.data.length + config.data.future
    shapes = {"segments": (size, points), "marks": (size, ROWS, points)}
    place = partitioning.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(
            shapes.get(name, (size, *variates, points)), dtype, sharding=place
        )
        for name, dtype in batch_arrays(config).items()
    }
    with partitioning.use_mesh(mesh):
        return make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()


def make_train_step(config: RunConfig, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The update as a jitted function (state, batch) -> (state, metrics); it donates the state.

    On a mesh the state stays where it is, and the metrics are the same on every device. An update
    whose loss or gradient is not finite leaves parameters and optimizer as they are, and is counted
    as skipped. With gradient accumulation the forecast losses and the load that moves the selection
    biases are those of the whole batch; the routers' losses are the means over the micro-batches.
    """
    optimizer, loss = make_optimizer(config), make_loss(config)
    schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def move(old: nnx.State, new: nnx.State, parts: LossParts) -> nnx.State:
            return _move_selection_bias(config, old, new, parts.statistics)

        rate = schedule(state.step - state.skipped)
        return guarded_update(config, optimizer, loss, state, batch, rate, after=move)

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    shardings = _abstract_state(config, mesh)[1], NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def guarded_update(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., tuple[Array, LossParts]],
    state: TrainState,
    batch: Batch,
    rate: Float[Array, ""],
    factor: Float[Array, ""] | float = 1.0,
    after: Callable[[nnx.State, nnx.State, LossParts], nnx.State] | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of whatever parameters the state holds, left undone where it is not finite.

    The `loss` is a function like that of `make_loss`. The optimizer's updates are multiplied by
    `factor`; `rate` is what the log has as the learning rate. `after` gets the old and the new
    parameters and the parts of the loss, and returns the new ones.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    gradient = jax.value_and_grad(loss, has_aux=True)
    value, parts, grads = _accumulate(config, gradient, state.params, batch, key)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if not isinstance(factor, float):
        updates = jax.tree.map(lambda u: factor * u, updates)
    params = optax.apply_updates(state.params, updates)
    params = params if after is None else after(state.params, params, parts)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    metrics = {
        "loss": value,
        "finite": finite,
        "gradient_norm": norm,
        "learning_rate": rate,
        "points": jnp.sum(batch["mask"][..., : -config.data.future]),
        **_describe(parts),
    }
    new = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + jnp.where(finite, 0, 1),
    )
    return new, metrics


def _move_selection_bias(
    config: RunConfig, old: nnx.State, new: nnx.State, statistics: RouterStatistics | None
) -> nnx.State:
    """Sets the selection biases of `new`, if any, to those of `old` moved towards an even load.

    They start from the old ones, so that the optimizer, its decay included, has no say in them.
    """
    family = family_of(config.model)
    if statistics is None or (bias := family.selection_bias(old)) is None:
        return new
    step = config.optimizer.router_bias_rate * losses.selection_bias_direction(statistics)
    family.selection_bias(new)[...] = bias[...] + step
    return new


def _accumulate(
    config: RunConfig,
    gradient: Callable[..., Any],
    params: nnx.State,
    batch: Batch,
    key: Array,
) -> tuple[Float[Array, ""], LossParts, nnx.State]:
    """Loss, its parts and its gradient, added up over the micro-batches of a batch."""
    count = config.train.gradient_accumulation
    of_contexts, of_positions = jax.random.split(key)
    draws = family_of(config.model).encoder
    batch, at = prepare(config, batch, of_contexts), read_at(config, of_positions)
    weights = targets_of(config, batch, at).counts(heads_read(config))

    def one(micro: Batch, number: Array | int) -> tuple[Float[Array, ""], LossParts, nnx.State]:
        own = jax.random.fold_in(key, number) if draws else None
        (loss, parts), grads = gradient(params, micro, at, weights, 1 / count, own)
        return loss, parts, grads

    if count == 1:
        return one(batch, 0)

    def add(total: Any, micro: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*micro)), None

    micros = jax.tree.map(functools.partial(_micro_batches, count), batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda a: a[0], micros), 0)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(add, zeros, (micros, jnp.arange(count)))[0]


def _micro_batches(count: int, a: Array) -> Array:
    """Cuts a batch into micro-batches; every device keeps rows that it has."""
    spread = partitioning.constrain(a.reshape(-1, count, *a.shape[1:]), partitioning.BATCH)
    return partitioning.constrain(jnp.moveaxis(spread, 1, 0), None, partitioning.BATCH)


def _describe(parts: LossParts) -> Metrics:
    """The terms of the loss and the load of the experts, by the names of the log."""
    metrics = {f"loss_{p}": loss for p, loss in parts.horizons.items()}
    if parts.quantiles:
        metrics["quantile_loss"] = mean_of_heads(parts.quantiles)
        metrics |= {f"quantile_loss_{p}": loss for p, loss in parts.quantiles.items()}
    metrics["balancing_loss"] = parts.balancing
    if parts.statistics is not None:
        metrics["router_z_loss"] = parts.router_z
        metrics["expert_load"] = losses.expert_load(parts.statistics)
        metrics["router_entropy"] = losses.router_entropy(parts.statistics)
        metrics["dropped_share"] = losses.dropped_share(parts.statistics)
        metrics["dead_expert_share"] = losses.dead_expert_share(parts.statistics)
        metrics["used_expert_share"] = losses.used_expert_share(parts.statistics)
    return metrics


def make_validation(config: RunConfig) -> Callable[[nnx.State, Batch], Metrics]:
    """A compiled function from parameters and a batch to sums: add them up, then divide.

    It returns, per head, "sum_P" of the losses, "quantile_sum_P" of the pinball losses where the
    model has quantile heads, and "count_P" of the targets that count.
    """
    loss = make_loss(config)
    horizons = tuple(heads_read(config))

    def sums(params: nnx.State, batch: Batch) -> Metrics:
        batch, at = prepare(config, batch, None), read_at(config, None)
        counts = targets_of(config, batch, at).counts(horizons)
        ones = {p: jnp.ones(()) for p in horizons}
        _, parts = loss(params, batch, at, ones)
        totals = {f"sum_{p}": total for p, total in parts.horizons.items()}
        totals |= {f"quantile_sum_{p}": total for p, total in parts.quantiles.items()}
        return {**totals, **{f"count_{p}": count for p, count in counts.items()}}

    return jax.jit(sums)
