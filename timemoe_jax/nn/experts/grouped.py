"""Routed experts by grouped matrix products: the default on accelerators.

Rows sorted by expert, without padding, go through one product in which each group of rows meets
its own kernel. The product itself is a kernel of the backend: tokamax (an optional extra) on a
GPU, XLA's own `ragged_dot` elsewhere, which a TPU runs natively and a CPU as one dense product per
expert (right, and slow).
"""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from timemoe_jax.nn.experts.kinds import KINDS, SWIGLU, Inner, products
from timemoe_jax.nn.experts.routing import Routing
from timemoe_jax.nn.experts.weights import ExpertWeights


def has_tokamax() -> bool:
    """Whether the optional extra `gpu` is installed."""
    return importlib.util.find_spec("tokamax") is not None


def product_library(backend: str) -> str:
    """The library whose grouped product a backend runs: "tokamax" or "xla".

    XLA expands `ragged_dot` to one dense product per expert on a GPU, E / K times the work, so
    without tokamax a GPU is a ValueError.
    """
    if backend != "gpu":
        return "xla"
    if not has_tokamax():
        raise ValueError(
            "implementation 'grouped' needs tokamax on a GPU, which is not installed: "
            "pip install tokamax, or choose auto, blocked or capacity"
        )
    return "tokamax"


def _product(
    rows: Float[Array, "N K"], kernels: Float[Array, "E K M"], sizes: Int[Array, " E"], library: str
) -> Float[Array, "N M"]:
    if library == "tokamax":
        import tokamax  # type: ignore[import-not-found,unused-ignore]
        from absl import flags

        # It reads flags of its own, and would take a program's arguments for them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        return tokamax.ragged_dot(rows, kernels, sizes, preferred_element_type=jnp.float32)
    return jax.lax.ragged_dot(rows, kernels, sizes, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_product(
    rows: Float[Array, "N K"], kernels: Float[Array, "E K M"], sizes: Int[Array, " E"], library: str
) -> Float[Array, "N M"]:
    """Multiplies consecutive groups of rows by a kernel each, accumulated in float32.

    Rows after the last group give anything. The derivative is that of the library ("tokamax" or
    "xla"); it is defined here so that `jax.vmap`, for which neither library has a rule, runs one
    product after the other.
    """
    in_turn = jax.custom_batching.sequential_vmap(functools.partial(_product, library=library))
    return in_turn(rows, kernels, sizes)


def _product_forward(rows: Any, kernels: Any, sizes: Any, library: str) -> Any:
    return grouped_product(rows, kernels, sizes, library), (rows, kernels, sizes)


def _product_backward(library: str, residuals: Any, d_out: Any) -> Any:
    def pull(rows: Any, kernels: Any, sizes: Any, d_out: Any) -> Any:
        _, back = jax.vjp(lambda r, k: _product(r, k, sizes, library), rows, kernels)
        return back(d_out)

    d_rows, d_kernels = jax.custom_batching.sequential_vmap(pull)(*residuals, d_out)
    return d_rows, d_kernels, np.zeros(residuals[2].shape, jax.dtypes.float0)


grouped_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _permute(
    rows: Float[Array, "N D"], order: Int[Array, " N"], inverse: Int[Array, " N"]
) -> Float[Array, "N D"]:
    """rows[order], with a gradient that is a gather, too, instead of a scatter."""
    return rows[order]


def _permute_forward(rows: Any, order: Any, inverse: Any) -> Any:
    return rows[order], (order, inverse)


def _permute_backward(residuals: Any, d_rows: Any) -> Any:
    order, inverse = residuals
    no_gradient = np.zeros(order.shape, jax.dtypes.float0)
    return d_rows[inverse], no_gradient, no_gradient


_permute.defvjp(_permute_forward, _permute_backward)


def grouped(
    x: Float[Array, "T D"],
    routing: Routing,
    weights: ExpertWeights,
    inner: Inner = SWIGLU,
    library: str | None = None,
) -> Float[Array, "T D"]:
    """`expert_ffn` of the chosen experts alone, all at once; by default the backend's library."""
    library = library or product_library(jax.default_backend())
    decisions, choices = routing.indices.shape
    span, kind = len(x) // decisions, KINDS[inner.kind]
    num_experts = weights.up.shape[0]
    flat = routing.indices.reshape(-1)
    # Nobody's pairs come last, after every group.
    expert = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    order = jnp.argsort(expert, stable=True)
    inverse = jnp.argsort(order)
    sizes = jnp.bincount(expert, length=num_experts + 1)[:num_experts].astype(jnp.int32)
    somebody = jnp.arange(len(x) * choices) < span * jnp.sum(sizes)

    wide = x.reshape(decisions, -1)
    pairs = jnp.broadcast_to(wide[:, None], (decisions, choices, wide.shape[1]))
    inputs = _permute(pairs.reshape(-1, wide.shape[1]), order, inverse).reshape(-1, x.shape[1])
    sizes = span * sizes
    pre = products(weights, lambda w: grouped_product(inputs, w, sizes, library))
    # The kernels leave anything in rows of nobody; zeros keep their gradient at zero.
    pre = tuple(jnp.where(somebody[:, None], a, 0) for a in pre) if kind.output else pre
    hidden = kind.hidden(*pre)
    if routing.seeds is not None:
        masks = inner.mask(routing.seeds.reshape(-1)[order], span * hidden.shape[1])
        hidden = hidden * masks.reshape(hidden.shape)
    hidden = jnp.where(somebody[:, None], hidden, 0).astype(x.dtype)
    y = grouped_product(hidden, weights.down, sizes, library)
    y = jnp.where(somebody[:, None], y, 0)
    y = y if kind.output is None else kind.output(y)
    picked = _permute(y.reshape(decisions * choices, -1), inverse, order)
    picked = picked.reshape(decisions, choices, -1)
    if kind.output is not None:  # which is not 0 of 0: nobody's pairs add nothing all the same
        mine = (flat >= 0) & (flat < num_experts)
        picked = jnp.where(mine.reshape(decisions, choices, 1), picked, 0)
    y = jnp.einsum("tkd,tk->td", picked, routing.weights).astype(x.dtype)
    return y.reshape(x.shape)
