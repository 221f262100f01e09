"""The routed experts: what they compute, and two ways of computing it.

Every token x goes to the K experts of its routing, and receives

    y = sum_k weight_k * down_e(silu(gate_e(x)) * up_e(x)),   e = index_k

without a capacity limit: no token is ever dropped (arXiv 2409.16040, Eq. 5 to 7). `expert_ffn` is
the one entry; `dense` computes every expert for every token and is there to be read and compared
with, `blocked` computes only the chosen ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from timemoe_jax.nn.layers import Initializer
from timemoe_jax.nn.routing import Routing

MAX_BLOCK = 256
MIN_BLOCK = 8


class ExpertWeights(NamedTuple):
    """The three kernels of all experts."""

    gate: Float[Array, "E D F"]
    up: Float[Array, "E D F"]
    down: Float[Array, "E F D"]


class Experts(nnx.Module):
    """The parameters of the routed experts; `expert_ffn` does the work.

    Args:
      num_experts: E.
      d_model: D.
      d_hidden: F.
      init: of every kernel.
      dtype: of the products.
      implementation: see `expert_ffn`.
      rngs: the source of the initial kernels.
    """

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_hidden: int,
        *,
        init: Initializer,
        dtype: jnp.dtype,
        implementation: str,
        rngs: nnx.Rngs,
    ):
        wide, narrow = (num_experts, d_model, d_hidden), (num_experts, d_hidden, d_model)
        self.gate = nnx.Param(init(rngs.params(), wide, jnp.float32))
        self.up = nnx.Param(init(rngs.params(), wide, jnp.float32))
        self.down = nnx.Param(init(rngs.params(), narrow, jnp.float32))
        self.dtype = dtype
        self.implementation = implementation

    def __call__(
        self, x: Float[Array, "T D"], routing: Routing
    ) -> tuple[Float[Array, "T D"], Float[Array, ""]]:
        """Applies the chosen experts to every token; also counts the dropped (token, choice)s."""
        kernels = (self.gate[...], self.up[...], self.down[...])
        weights = ExpertWeights(*(kernel.astype(self.dtype) for kernel in kernels))
        y = expert_ffn(x.astype(self.dtype), routing, weights, self.implementation)
        return y, jnp.zeros(())


def expert_ffn(
    x: Float[Array, "T D"],
    routing: Routing,
    weights: ExpertWeights,
    implementation: str = "auto",
) -> Float[Array, "T D"]:
    """Applies to each token its chosen experts, weighted.

    Args:
      x: the tokens.
      routing: indices and weights [T, K].
      weights: the kernels, of x's dtype.
      implementation: "dense" (every expert on every token: the readable reference), "blocked"
        (only the chosen experts), or "auto" (blocked).

    Raises:
      ValueError: the implementation is not known.
    """
    name = "blocked" if implementation == "auto" else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be auto, {', '.join(IMPLEMENTATIONS)}, but is {implementation!r}"
        )
    return IMPLEMENTATIONS[name](x, routing, weights)


def _dense(x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights) -> Float[Array, "T D"]:
    """Every expert on every token; the weights of those not chosen are zero."""
    num_experts = weights.gate.shape[0]
    chosen = jax.nn.one_hot(routing.indices, num_experts, dtype=jnp.float32)
    combine = jnp.einsum("tke,tk->te", chosen, routing.weights)
    gate = jnp.einsum("td,edf->etf", x, weights.gate)
    up = jnp.einsum("td,edf->etf", x, weights.up)
    out = jnp.einsum("etf,efd->etd", jax.nn.silu(gate) * up, weights.down)
    return jnp.einsum("etd,te->td", out.astype(jnp.float32), combine).astype(x.dtype)


class _Plan(NamedTuple):
    """Where each (token, choice) stands among rows sorted by expert, padded to whole blocks."""

    row: Int[Array, "T K"]  # the row of each (token, choice)
    token: Int[Array, " R"]  # the token of each row; T where the row is padding
    choice: Int[Array, " R"]  # which of the token's K choices it is
    expert: Int[Array, " G"]  # the expert of each block
    blocks: Int[Array, ""]  # blocks in use, at most G = R / block


def block_size(tokens: int, choices: int, num_experts: int) -> int:
    """Rows of a block: the mean load of an expert as a power of two, within bounds.

    Larger blocks waste half a block of padding for each expert, smaller ones give each matrix
    product too little to do.
    """
    mean_load = max(1, tokens * choices // num_experts)
    return int(np.clip(1 << (mean_load - 1).bit_length(), MIN_BLOCK, MAX_BLOCK))


def _plan(indices: Int[Array, "T K"], num_experts: int, block: int) -> _Plan:
    """Sorts the (token, choice) pairs by expert without a sort: a running count per expert.

    The number of blocks is bounded by the worst routing: every expert but one holds one row.
    """
    tokens, choices = indices.shape
    pairs = tokens * choices
    max_blocks = min(pairs, max(pairs - num_experts, 0) // block + num_experts)
    flat = indices.reshape(-1)
    one_hot = (flat[:, None] == jnp.arange(num_experts)).astype(jnp.int32)
    running = jnp.cumsum(one_hot, axis=0)
    rank = jnp.take_along_axis(running, flat[:, None], axis=1)[:, 0] - 1
    blocks_of = -(-running[-1] // block)
    last_block = jnp.cumsum(blocks_of)
    row = (last_block - blocks_of)[flat] * block + rank
    pair = jnp.full((max_blocks * block,), pairs, jnp.int32)
    pair = pair.at[row].set(jnp.arange(pairs, dtype=jnp.int32), unique_indices=True)
    expert = jnp.searchsorted(last_block, jnp.arange(max_blocks), side="right")
    return _Plan(
        row=row.reshape(tokens, choices),
        token=pair // choices,
        choice=pair % choices,
        expert=jnp.minimum(expert, num_experts - 1),
        blocks=last_block[-1],
    )


def _rows(array: Float[Array, "T *D"], index: Int[Array, " R"]) -> Float[Array, "R *D"]:
    """Gathers rows; an index past the end (padding) gives zeros."""
    return array.at[index].get(mode="fill", fill_value=0)


def _product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """A matrix product accumulated in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _blocked(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights
) -> Float[Array, "T D"]:
    """Only the chosen experts, a block of rows of one expert at a time.

    The loop runs over the blocks in use, so its cost follows the active parameters. Memory is one
    row per (token, choice); nothing of width F outlives a block.
    """
    tokens, choices = routing.indices.shape
    block = block_size(tokens, choices, weights.gate.shape[0])
    plan = _plan(routing.indices, weights.gate.shape[0], block)

    def body(i: Int[Array, ""], out: Float[Array, "R D"]) -> Float[Array, "R D"]:
        rows = _rows(x, jax.lax.dynamic_slice_in_dim(plan.token, i * block, block))
        gate_w, up_w, down_w = (w[plan.expert[i]] for w in weights)
        hidden = jax.nn.silu(_product(rows, gate_w)) * _product(rows, up_w)
        y = _product(hidden.astype(x.dtype), down_w).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, y, i * block, axis=0)

    out = jnp.zeros((plan.token.size, x.shape[1]), x.dtype)
    out = jax.lax.fori_loop(0, plan.blocks, body, out)
    picked = out[plan.row].astype(jnp.float32)
    return jnp.einsum("tkd,tk->td", picked, routing.weights).astype(x.dtype)


_Residuals = tuple[Float[Array, "T D"], Routing, ExpertWeights]


def _blocked_forward(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights
) -> tuple[Float[Array, "T D"], _Residuals]:
    return _blocked(x, routing, weights), (x, routing, weights)


def _blocked_backward(
    residuals: _Residuals, d_y: Float[Array, "T D"]
) -> tuple[Float[Array, "T D"], Routing, ExpertWeights]:
    """Recomputes the hidden activations block by block; weight gradients add up in the carry.

    With h = silu(g) * u, g = x Wg, u = x Wu and y = w (h Wd), and a = dy Wd^T:
    dw = <h, a>, dh = w a, du = dh silu(g), dg = dh u silu'(g), and dx, dWg, dWu, dWd follow.
    """
    x, routing, weights = residuals
    tokens, choices = routing.indices.shape
    block = block_size(tokens, choices, weights.gate.shape[0])
    plan = _plan(routing.indices, weights.gate.shape[0], block)

    def body(i: Int[Array, ""], carry: tuple) -> tuple:
        d_rows, d_weight, d_gate_w, d_up_w, d_down_w = carry
        token = jax.lax.dynamic_slice_in_dim(plan.token, i * block, block)
        choice = jax.lax.dynamic_slice_in_dim(plan.choice, i * block, block)
        expert = plan.expert[i]
        rows, d_out = _rows(x, token), _rows(d_y, token)
        weight = routing.weights.at[token, choice].get(mode="fill", fill_value=0)[:, None]
        gate_w, up_w, down_w = (w[expert] for w in weights)

        gate, up = _product(rows, gate_w), _product(rows, up_w)
        sigmoid = jax.nn.sigmoid(gate)
        silu = gate * sigmoid
        hidden = silu * up
        back = _product(d_out, down_w.T)
        d_hidden = weight * back
        d_up = (d_hidden * silu).astype(x.dtype)
        d_gate = (d_hidden * up * (sigmoid + silu * (1 - sigmoid))).astype(x.dtype)
        d_x = (_product(d_gate, gate_w.T) + _product(d_up, up_w.T)).astype(x.dtype)
        weighted = (weight * hidden).astype(x.dtype)
        return (
            jax.lax.dynamic_update_slice_in_dim(d_rows, d_x, i * block, axis=0),
            jax.lax.dynamic_update_slice_in_dim(
                d_weight, jnp.sum(hidden * back, axis=1), i * block, axis=0
            ),
            d_gate_w.at[expert].add(_product(rows.T, d_gate)),
            d_up_w.at[expert].add(_product(rows.T, d_up)),
            d_down_w.at[expert].add(_product(weighted.T, d_out)),
        )

    carry = (
        jnp.zeros((plan.token.size, x.shape[1]), x.dtype),
        jnp.zeros((plan.token.size,), jnp.float32),
        *(jnp.zeros(w.shape, jnp.float32) for w in weights),
    )
    d_rows, d_weight, *d_kernels = jax.lax.fori_loop(0, plan.blocks, body, carry)
    d_x = jnp.sum(d_rows[plan.row].astype(jnp.float32), axis=1).astype(x.dtype)
    no_gradient: Any = np.zeros(routing.indices.shape, jax.dtypes.float0)
    d_routing = Routing(no_gradient, d_weight[plan.row])
    d_weights = (d.astype(w.dtype) for d, w in zip(d_kernels, weights, strict=True))
    return d_x, d_routing, ExpertWeights(*d_weights)


_blocked.defvjp(_blocked_forward, _blocked_backward)

Implementation = Callable[
    [Float[Array, "T D"], Routing, ExpertWeights],
    Float[Array, "T D"],
]
IMPLEMENTATIONS: dict[str, Implementation] = {"dense": _dense, "blocked": _blocked}
