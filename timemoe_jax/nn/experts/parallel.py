"""Routed experts on a mesh: the tokens of a group of devices meet experts spread over the group.

Each of the n devices along `expert` holds E / n of the experts and its own part of the batch, T
tokens. There are two ways to bring them together; volumes are per device and layer, one way:

    all_gather   every device of the group gets all tokens and computes those that chose its
                 experts; the parts of each token's result are added up where it came from. Exact,
                 nothing is dropped. Moves (n - 1) T (2 D b + 8 K): an all-gather of tokens (b
                 bytes a number) and of their K indices and weights, and a reduce-scatter.
    all_to_all   each device sends every other device the tokens that chose its experts, up to a
                 capacity of C = factor * T K / n for each pair of devices, and gets the results
                 back. Tokens beyond the capacity are dropped, and counted. Moves
                 (n - 1) C (2 D b + 4), less than the above when factor * K < n.

Along `tensor` each device computes a part of every expert's width; the parts are added up outside.
Along `fsdp` the kernels are gathered here, in the dtype of the products, and their gradients
scattered back. The backward pass mirrors every one of these.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from timemoe_jax.nn.experts import EXCHANGES
from timemoe_jax.nn.experts.capacity import capacity, fill, slots
from timemoe_jax.nn.experts.compute import count_dropped, expert_ffn
from timemoe_jax.nn.experts.kinds import KINDS, SWIGLU, Inner
from timemoe_jax.nn.experts.routing import Routing
from timemoe_jax.nn.experts.weights import ExpertWeights, rows
from timemoe_jax.nn.layers import Initializer
from timemoe_jax.runtime import partitioning

_WIDE, _NARROW = P("expert", "fsdp", "tensor"), P("expert", "tensor", "fsdp")


class Options(NamedTuple):
    """How the experts are computed."""

    implementation: str  # on each device, see `expert_ffn`
    factor: float  # the capacity factor of "capacity" and of "all_to_all"
    exchange: str  # "all_gather" or "all_to_all", between the devices of the `expert` axis
    inner: Inner = SWIGLU  # what the experts are


def apply_experts(
    x: Float[Array, "B T D"], routing: Routing, weights: ExpertWeights, options: Options
) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
    """`expert_ffn` of all tokens, on whatever mesh there is.

    The routing is of the B * T tokens in order, the kernels are of x's dtype. Returns the weighted
    sums, and how many (token, choice) pairs were dropped.
    """
    if options.exchange not in EXCHANGES:
        raise ValueError(
            f"exchange must be one of {', '.join(EXCHANGES)}, but is {options.exchange!r}"
        )
    if partitioning.current_mesh() is None:
        y, dropped = _compute(x.reshape(-1, x.shape[-1]), routing, weights, options)
        return y.reshape(x.shape), dropped
    batch = P(partitioning.BATCH)
    gate: Any = None if weights.gate is None else _WIDE
    mapped = partitioning.per_device(
        functools.partial(_device, options=options),
        in_specs=(batch, batch, (gate, _WIDE, _NARROW)),
        out_specs=(P("tensor", partitioning.BATCH), P("tensor", partitioning.BATCH)),
    )
    per_series = jax.tree.map(lambda a: a.reshape(x.shape[0], -1, a.shape[-1]), routing)
    parts, dropped = mapped(x, per_series, tuple(weights))
    # Devices along `tensor` hold parts of a sum, but dropped the same tokens.
    return jnp.sum(parts, axis=0), jnp.sum(dropped[0])


_Result = tuple[Float[Array, "T D"], Float[Array, ""]]


def _compute(
    tokens: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, options: Options
) -> _Result:
    """The experts of one device."""
    how = (options.implementation, options.factor)
    dropped = count_dropped(routing, weights.up.shape[0], *how)
    return expert_ffn(tokens, routing, weights, *how, options.inner), dropped


def _device(
    x: Float[Array, "B T D"], routing: Routing, kernels: Any, options: Options
) -> tuple[Float[Array, "1 B T D"], Float[Array, "1 1"]]:
    """One device's part of the tokens, of the experts, and of their widths."""
    tokens, routing = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), (x, routing))
    gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", tiled=True)
    gate, up, down = kernels
    weights = ExpertWeights(
        gate=None if gate is None else gather(gate, axis=1),
        up=gather(up, axis=1),
        down=gather(down, axis=2),
    )
    if jax.lax.axis_size("expert") == 1:
        y, dropped = _compute(tokens, routing, weights, options)
    elif options.exchange == "all_gather":
        y, dropped = _gather_tokens(tokens, routing, weights, options)
    else:
        y, dropped = _send_tokens(tokens, routing, weights, options)
    return y.reshape(1, *x.shape), dropped.reshape(1, 1)


def _gather_tokens(
    tokens: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, options: Options
) -> _Result:
    """All tokens of the group, computed by those who hold their experts, added up at home."""
    held = weights.up.shape[0]
    tokens, routing = jax.tree.map(
        lambda a: jax.lax.all_gather(a, "expert", tiled=True), (tokens, routing)
    )
    # Outside [0, held), those of the other devices are nobody's here.
    indices = routing.indices - held * jax.lax.axis_index("expert")
    # An even share of an expert is that of all experts, of which only a part is here.
    options = options._replace(factor=options.factor / jax.lax.axis_size("expert"))
    y, dropped = _compute(tokens, routing._replace(indices=indices), weights, options)
    return jax.lax.psum_scatter(y, "expert", tiled=True), dropped


def _send_tokens(
    tokens: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, options: Options
) -> _Result:
    """Each token to the devices that hold its experts, as far as there is room, and back."""
    held, devices = weights.up.shape[0], jax.lax.axis_size("expert")
    room = capacity(routing.indices.size, devices, options.factor)
    slot = slots(routing.indices // held, devices, room)

    def exchange(a: Array) -> Array:
        parts = a.reshape(devices, room, *a.shape[1:])
        return jax.lax.all_to_all(parts, "expert", 0, 0).reshape(a.shape)

    wide = tokens.reshape(len(slot), -1)  # a row for each decision, of one token or of several
    received = exchange(rows(wide, fill(slot, devices * room))).reshape(-1, tokens.shape[1])
    # An empty slot is nobody's: its expert is one past the last.
    expert = jnp.full((devices * room,), held).at[slot].set(routing.indices % held, mode="drop")
    # The room between devices has the factor in it already.
    options = options._replace(factor=1.0)
    seeds = None
    if routing.seeds is not None:
        drawn = jnp.zeros((devices * room,), jnp.uint32)
        seeds = exchange(drawn.at[slot].set(routing.seeds, mode="drop"))[:, None]
    one_each = Routing(exchange(expert)[:, None], jnp.ones((devices * room, 1)), seeds)
    y, dropped = _compute(received, one_each, weights, options)
    picked = rows(exchange(y.reshape(devices * room, -1)), slot).astype(jnp.float32)
    y = jnp.einsum("tkd,tk->td", picked, routing.weights).astype(tokens.dtype)
    return y.reshape(tokens.shape), dropped + jnp.sum(slot == devices * room)


class Experts(nnx.Module):
    """The parameters of E routed experts of width F = `d_hidden`; `apply_experts` does the work."""

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_hidden: int,
        *,
        init: Initializer,
        dtype: jnp.dtype,
        options: Options,
        rngs: nnx.Rngs,
    ):
        kind = KINDS[options.inner.kind]
        wide = (num_experts, d_model, kind.width(d_hidden))
        narrow = (num_experts, d_hidden, kind.width(d_model))
        self.gate = nnx.Param(init(rngs.params(), wide, jnp.float32)) if kind.gated else None
        self.up = nnx.Param(init(rngs.params(), wide, jnp.float32))
        self.down = nnx.Param(init(rngs.params(), narrow, jnp.float32))
        self.dtype = dtype
        self.options = options

    def __call__(
        self, x: Float[Array, "B T D"], routing: Routing
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        """Applies the chosen experts to every token; also counts the dropped (token, choice)s."""
        gate = None if self.gate is None else self.gate[...].astype(self.dtype)
        up, down = self.up[...].astype(self.dtype), self.down[...].astype(self.dtype)
        weights = ExpertWeights(gate, up, down)
        return apply_experts(x.astype(self.dtype), routing, weights, self.options)
