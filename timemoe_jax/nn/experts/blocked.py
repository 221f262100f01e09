"""Routed experts in blocks: the default on a CPU, and exact on every backend.

(token, choice) pairs are sorted by expert, each expert's rows are padded to whole blocks, and a
loop runs over the blocks in use, each three matrix products with one expert's kernels. The cost
follows the active parameters, whatever the routing. The backward pass keeps what a dense layer with
as many active parameters would: two rows of width F per pair. Computing those again would add two
products to eight; `ModelConfig.remat` does so for whole layers, where memory is short.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from timemoe_jax.nn.experts.routing import Routing
from timemoe_jax.nn.experts.weights import ExpertWeights, rank_within, rows
from timemoe_jax.runtime import partitioning

MIN_BLOCK = 8
MAX_BLOCK = 192  # of a CPU, whose caches then hold a block
# An accelerator runs one block at a time, so that a block must fill it.
MAX_BLOCK_ACCELERATOR = 2048


class _Plan(NamedTuple):
    """Where each (token, choice) stands among rows sorted by expert, padded to whole blocks."""

    row: Int[Array, "T K"]  # the row of each (token, choice); past the end for nobody's
    token: Int[Array, " R"]  # the token of each row; T where the row is padding
    choice: Int[Array, " R"]  # which of the token's K choices it is
    ends: Int[Array, " E"]  # the block after the last of each expert; they start at 0


def block_size(tokens: int, choices: int, num_experts: int) -> int:
    """Rows of a block: the mean load of an expert as a power of two, within bounds.

    Larger blocks waste half a block of padding for each expert, smaller ones give each matrix
    product too little to do.
    """
    mean_load = max(1, tokens * choices // num_experts)
    most = MAX_BLOCK if jax.default_backend() == "cpu" else MAX_BLOCK_ACCELERATOR
    return int(np.clip(1 << (mean_load - 1).bit_length(), MIN_BLOCK, most))


def _plan(indices: Int[Array, "T K"], num_experts: int, block: int) -> _Plan:
    """Sorts the (token, choice) pairs by expert without a sort: a running count per expert.

    The number of blocks is bounded by the worst routing: every expert but one holds one row.
    """
    tokens, choices = indices.shape
    pairs = tokens * choices
    max_blocks = min(pairs, max(pairs - num_experts, 0) // block + num_experts)
    flat = indices.reshape(-1)
    rank, sizes = rank_within(flat, num_experts)
    blocks_of = jax.lax.div(sizes + (block - 1), block)  # nothing is negative here
    last_block = jnp.cumsum(blocks_of)
    first_row = (last_block - blocks_of) * block
    # Each pair of nobody has a row of its own past the end, since the indices below are unique.
    nowhere = max_blocks * block + jnp.arange(pairs)
    row = jnp.where(rank >= 0, first_row.at[flat].get(mode="clip") + rank, nowhere)
    pair = jnp.full((max_blocks * block,), pairs, jnp.int32)
    pair = pair.at[row].set(jnp.arange(pairs, dtype=jnp.int32), mode="drop", unique_indices=True)
    return _Plan(
        row=row.reshape(tokens, choices),
        token=jax.lax.div(pair, choices),
        choice=jax.lax.rem(pair, choices),
        ends=last_block,
    )


def _product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """A matrix product accumulated in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _slice(array: Array, i: Int[Array, ""], block: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, i * block, block)


def _write(array: Array, i: Int[Array, ""], part: Array) -> Array:
    part = part.astype(array.dtype)
    return jax.lax.dynamic_update_slice_in_dim(array, part, i * part.shape[0], axis=0)


def _like(shape: tuple[int, ...], x: Array, dtype: Any = jnp.float32) -> Array:
    """Zeros that differ between devices where x does."""
    return partitioning.vary_like(jnp.zeros(shape, dtype), x)


def _first(plan: _Plan, e: Int[Array, ""]) -> Int[Array, ""]:
    """The first block of an expert: where the one before ends."""
    return jnp.where(e > 0, plan.ends[e - 1], 0)


@jax.custom_vjp
def blocked(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights
) -> Float[Array, "T D"]:
    """`expert_ffn` of the chosen experts alone, a block of one expert's rows at a time."""
    return _run(x, routing, weights, keep=False)[0]


def _run(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, keep: bool
) -> tuple[Float[Array, "T D"], _Plan, tuple[Array, ...]]:
    """The output, the plan, and with `keep` what the backward pass reads: gate and up [R, F]."""
    num_experts, size, width = weights.gate.shape
    tokens, choices = routing.indices.shape
    block = block_size(tokens, choices, num_experts)
    plan = _plan(routing.indices, num_experts, block)

    def expert(e: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
        gate_w, up_w, down_w = (w[e] for w in weights)

        def body(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            inputs = rows(x, _slice(plan.token, i, block))
            gate, up = _product(inputs, gate_w), _product(inputs, up_w)
            y = _product((jax.nn.silu(gate) * up).astype(x.dtype), down_w)
            parts = (y, gate, up) if keep else (y,)
            return tuple(_write(a, i, part) for a, part in zip(carry, parts, strict=True))

        return jax.lax.fori_loop(_first(plan, e), plan.ends[e], body, carry)

    widths = (size, width, width) if keep else (size,)
    start = tuple(_like((plan.token.size, w), x, x.dtype) for w in widths)
    out, *kept = jax.lax.fori_loop(0, num_experts, expert, start)
    picked = rows(out, plan.row).astype(jnp.float32)
    y = jnp.einsum("tkd,tk->td", picked, routing.weights).astype(x.dtype)
    return y, plan, tuple(kept)


def _forward(x: Any, routing: Routing, weights: ExpertWeights) -> Any:
    y, plan, kept = _run(x, routing, weights, keep=True)
    return y, (x, routing, weights, plan, kept)


def _backward(
    residuals: Any, d_y: Float[Array, "T D"]
) -> tuple[Float[Array, "T D"], Routing, ExpertWeights]:
    """Goes block by block like the forward pass; the gradients of the kernels add up in the carry.

    With h = silu(g) * u, g = x Wg, u = x Wu and y = w (h Wd), and a = dy Wd^T:
    dw = <h, a>, dh = w a, du = dh silu(g), dg = dh u silu'(g), and dx, dWg, dWu, dWd follow.
    """
    x, routing, weights, plan, (gates, ups) = residuals
    tokens, choices = routing.indices.shape
    block = block_size(tokens, choices, weights.gate.shape[0])

    def expert(e: Int[Array, ""], carry: tuple) -> tuple:
        d_rows, d_weight, *d_kernels = carry
        gate_w, up_w, down_w = (w[e] for w in weights)

        def body(i: Int[Array, ""], carry: tuple) -> tuple:
            d_rows, d_weight, d_gate_w, d_up_w, d_down_w = carry
            token, choice = _slice(plan.token, i, block), _slice(plan.choice, i, block)
            inputs, d_out = rows(x, token), rows(d_y, token)
            weight = routing.weights.at[token, choice].get(mode="fill", fill_value=0)[:, None]
            gate, up = (_slice(a, i, block).astype(jnp.float32) for a in (gates, ups))
            sigmoid = jax.nn.sigmoid(gate)
            silu = gate * sigmoid
            hidden = silu * up
            back = _product(d_out, down_w.T)
            d_hidden = weight * back
            d_up = (d_hidden * silu).astype(x.dtype)
            d_gate = (d_hidden * up * (sigmoid + silu * (1 - sigmoid))).astype(x.dtype)
            weighted = (weight * hidden).astype(x.dtype)
            return (
                _write(d_rows, i, _product(d_gate, gate_w.T) + _product(d_up, up_w.T)),
                _write(d_weight, i, jnp.sum(hidden * back, axis=1)),
                d_gate_w + _product(inputs.T, d_gate),
                d_up_w + _product(inputs.T, d_up),
                d_down_w + _product(weighted.T, d_out),
            )

        own = (_like(w.shape[1:], x) for w in weights)
        start = (d_rows, d_weight, *own)
        d_rows, d_weight, *own = jax.lax.fori_loop(_first(plan, e), plan.ends[e], body, start)
        return d_rows, d_weight, *(d.at[e].set(o) for d, o in zip(d_kernels, own, strict=True))

    carry = (
        _like((plan.token.size, x.shape[1]), x, x.dtype),
        _like((plan.token.size,), x),
        *(_like(w.shape, x) for w in weights),
    )
    carry = jax.lax.fori_loop(0, weights.gate.shape[0], expert, carry)
    d_rows, d_weight, *d_kernels = carry
    d_x = jnp.sum(rows(d_rows, plan.row).astype(jnp.float32), axis=1).astype(x.dtype)
    no_gradient: Any = np.zeros(routing.indices.shape, jax.dtypes.float0)
    d_routing = Routing(no_gradient, rows(d_weight, plan.row))
    d_weights = (d.astype(w.dtype) for d, w in zip(d_kernels, weights, strict=True))
    return d_x, d_routing, ExpertWeights(*d_weights)


blocked.defvjp(_forward, _backward)
