"""Routed experts in blocks: the default on a CPU, and exact on every backend.

(token, choice) pairs are sorted by expert, each expert's rows are padded to whole blocks, and a
loop runs over the blocks in use, each three matrix products with one expert's kernels. Where a
decision is of a segment of tokens, a row is the whole segment. The cost follows the active
parameters, whatever the routing. The backward pass keeps what a dense layer with
as many active parameters would: two rows of width F per pair. Computing those again would add two
products to eight; `ModelConfig.remat` does so for whole layers, where memory is short.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from timemoe_jax.nn.experts.kinds import KINDS, Inner, Pre, products
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blocked(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, inner: Inner
) -> Float[Array, "T D"]:
    """`expert_ffn` of the chosen experts alone, a block of one expert's rows at a time."""
    return _run(x, routing, weights, inner, keep=False)[0]


def _sizes(x: Array, routing: Routing, weights: ExpertWeights) -> tuple[int, int]:
    """How many decisions a block holds, and how many tokens a decision is of."""
    decisions, choices = routing.indices.shape
    span, num_experts = len(x) // decisions, weights.up.shape[0]
    block = block_size(len(x), choices, num_experts)
    return (block if span == 1 else max(1, block // span)), span


def _masks(
    routing: Routing, inner: Inner, token: Array, choice: Array, like: Array
) -> Array | None:
    """What dropout multiplies the hidden activations of a block of rows by."""
    if routing.seeds is None:
        return None
    seeds = routing.seeds.at[token, choice].get(mode="fill", fill_value=0)
    return inner.mask(seeds, like.size // len(seeds)).reshape(like.shape)


def _run(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, inner: Inner, keep: bool
) -> tuple[Float[Array, "T D"], _Plan, tuple[Array, ...]]:
    """The output, the plan, and with `keep` what the backward pass reads: the products [R, s F].

    They are those with gate and up, and that with down of a kind that goes on from there.
    """
    num_experts, size, width = weights.up.shape
    kind = KINDS[inner.kind]
    block, span = _sizes(x, routing, weights)
    plan = _plan(routing.indices, num_experts, block)
    wide = x.reshape(-1, span * size)

    def expert(e: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
        own = _of_expert(weights, e)

        def body(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            token = _slice(plan.token, i, block)
            inputs = rows(wide, token).reshape(-1, size)
            pre = products(own, lambda w: _product(inputs, w))
            hidden = kind.hidden(*pre)
            masks = _masks(routing, inner, token, _slice(plan.choice, i, block), hidden)
            hidden = hidden if masks is None else hidden * masks
            y = last = _product(hidden.astype(x.dtype), own.down)
            parts = (*pre,) if keep else ()
            if kind.output is not None:
                y, parts = kind.output(last), ((*parts, last) if keep else parts)
            return tuple(
                _write(a, i, part.reshape(block, -1))
                for a, part in zip(carry, (y, *parts), strict=True)
            )

        return jax.lax.fori_loop(_first(plan, e), plan.ends[e], body, carry)

    widths = [size]
    if keep:
        widths += [width] * (1 + kind.gated) + [weights.down.shape[2]] * (kind.output is not None)
    start = tuple(_like((plan.token.size, span * w), x, x.dtype) for w in widths)
    out, *kept = jax.lax.fori_loop(0, num_experts, expert, start)
    picked = rows(out, plan.row).astype(jnp.float32)
    y = jnp.einsum("tkd,tk->td", picked, routing.weights).astype(x.dtype)
    return y.reshape(x.shape), plan, tuple(kept)


def _of_expert(weights: ExpertWeights, e: Int[Array, ""]) -> ExpertWeights:
    """The kernels of one expert."""
    gate = None if weights.gate is None else weights.gate[e]
    return ExpertWeights(gate, weights.up[e], weights.down[e])


def _forward(x: Any, routing: Routing, weights: ExpertWeights, inner: Inner) -> Any:
    y, plan, kept = _run(x, routing, weights, inner, keep=True)
    return y, (x, routing, weights, plan, kept)


def _backward(
    inner: Inner, residuals: Any, d_y: Float[Array, "T D"]
) -> tuple[Float[Array, "T D"], Routing, ExpertWeights]:
    """Goes block by block like the forward pass; the gradients of the kernels add up in the carry.

    With h = silu(g) * u, g = x Wg, u = x Wu and y = w (h Wd), and a = dy Wd^T:
    dw = <h, a>, dh = w a, du = dh silu(g), dg = dh u silu'(g), and dx, dWg, dWu, dWd follow.
    """
    x, routing, weights, plan, kept = residuals
    block, span = _sizes(x, routing, weights)
    wide, d_wide = (a.reshape(-1, span * x.shape[1]) for a in (x, d_y))

    def expert(e: Int[Array, ""], carry: tuple) -> tuple:
        d_rows, d_weight, d_kernels = carry
        own = _of_expert(weights, e)

        def body(i: Int[Array, ""], carry: tuple) -> tuple:
            d_rows, d_weight, d_own = carry
            token, choice = _slice(plan.token, i, block), _slice(plan.choice, i, block)
            inputs, d_out = (rows(a, token).reshape(-1, x.shape[1]) for a in (wide, d_wide))
            weight = routing.weights.at[token, choice].get(mode="fill", fill_value=0)[:, None]
            each = jnp.repeat(weight, span, axis=0) if span > 1 else weight
            saved = tuple(_slice(a, i, block).astype(jnp.float32) for a in kept)
            saved = tuple(a.reshape(block * span, -1) for a in saved)
            back = _of_block(inner, own, saved, inputs, d_out, each, (routing, token, choice))
            d_inputs, d_each, d_new = back
            return (
                _write(d_rows, i, d_inputs.reshape(block, -1)),
                _write(d_weight, i, jnp.sum(d_each.reshape(block, -1), axis=1)),
                jax.tree.map(jnp.add, d_own, d_new),
            )

        start = (d_rows, d_weight, jax.tree.map(lambda w: _like(w.shape[1:], x), weights))
        d_rows, d_weight, d_own = jax.lax.fori_loop(_first(plan, e), plan.ends[e], body, start)
        return d_rows, d_weight, jax.tree.map(lambda d, o: d.at[e].set(o), d_kernels, d_own)

    carry: Any = (
        _like((plan.token.size, wide.shape[1]), x, x.dtype),
        _like((plan.token.size,), x),
        jax.tree.map(lambda w: _like(w.shape, x), weights),
    )
    d_rows, d_weight, d_kernels = jax.lax.fori_loop(0, weights.up.shape[0], expert, carry)
    d_x = jnp.sum(rows(d_rows, plan.row).astype(jnp.float32), axis=1).astype(x.dtype)
    no_gradient: Any = np.zeros(routing.indices.shape, jax.dtypes.float0)
    d_seeds = None if routing.seeds is None else no_gradient
    d_routing = Routing(no_gradient, rows(d_weight, plan.row), d_seeds)
    d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_kernels, weights)
    return d_x.reshape(x.shape), d_routing, d_weights


def _of_block(
    inner: Inner,
    own: ExpertWeights,
    kept: tuple[Array, ...],
    inputs: Float[Array, "R D"],
    d_out: Float[Array, "R D"],
    weight: Float[Array, "R 1"],
    drawn: tuple[Routing, Array, Array],
) -> tuple[Float[Array, "R D"], Float[Array, "R F"], ExpertWeights]:
    """The backward pass of one block: of its inputs, its weights (to be summed), its kernels."""
    kind = KINDS[inner.kind]
    pre: Pre = kept if kind.output is None else kept[:-1]
    hidden, pull = kind.pull(pre)
    masks = _masks(drawn[0], inner, drawn[1], drawn[2], hidden)
    hidden = hidden if masks is None else hidden * masks
    if kind.output is None:
        back = _product(d_out, own.down.T)
        d_weight, d_hidden = hidden * back, weight * back
        d_down = _product((weight * hidden).astype(inputs.dtype).T, d_out)
    else:
        y, pull_output = jax.vjp(kind.output, kept[-1])
        d_weight = y * d_out
        (d_last,) = pull_output(weight * d_out.astype(jnp.float32))
        d_last = d_last.astype(inputs.dtype)
        d_hidden = _product(d_last, own.down.T)
        d_down = _product(hidden.astype(inputs.dtype).T, d_last)
    d_hidden = d_hidden if masks is None else d_hidden * masks
    d_pre = tuple(d.astype(inputs.dtype) for d in pull(d_hidden))
    kernels = [w for w in (own.gate, own.up) if w is not None]
    pairs = list(zip(d_pre, kernels, strict=True))
    d_inputs = functools.reduce(jnp.add, [_product(d, w.T) for d, w in pairs])
    d_kernels = [_product(inputs.T, d) for d in d_pre]
    d_gate = d_kernels[0] if kind.gated else None
    return d_inputs, d_weight, ExpertWeights(d_gate, d_kernels[-1], d_down)


blocked.defvjp(_forward, _backward)
