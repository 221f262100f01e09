"""The routed experts: what they compute, and the ways of computing it.

Every token x goes to the K experts of its routing, and receives

    y = sum_k weight_k * down_e(silu(gate_e(x)) * up_e(x)),   e = index_k

without a capacity limit, unless one is asked for (arXiv 2409.16040, Eq. 5 to 7); other kinds of
experts are those of `kinds`. A decision may be of several tokens in a row, a segment, which are
then gathered, computed and put back together. `expert_ffn` is the only entry. `dense` computes
every expert for every token: the reference to read and to compare with. The others compute only the
chosen experts:

    blocked    a loop over blocks of one expert's rows      the default on a CPU
    grouped    grouped matrix products of the backend       the default on accelerators
    capacity   fixed shapes; tokens beyond it are dropped   only when asked for
"""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from timemoe_jax.nn.experts.blocked import blocked
from timemoe_jax.nn.experts.capacity import dropped, with_capacity
from timemoe_jax.nn.experts.grouped import grouped, has_tokamax
from timemoe_jax.nn.experts.kinds import KINDS, SWIGLU, Inner, products
from timemoe_jax.nn.experts.routing import Routing
from timemoe_jax.nn.experts.weights import ExpertWeights
from timemoe_jax.runtime import partitioning

CAPACITY_FACTOR = 2.0
logger = logging.getLogger(__name__)


def _dense(
    x: Float[Array, "T D"], routing: Routing, weights: ExpertWeights, inner: Inner, factor: float
) -> Float[Array, "T D"]:
    """Every expert on every token; the weights of those not chosen are zero."""
    num_experts = weights.up.shape[0]
    chosen = jax.nn.one_hot(routing.indices, num_experts, dtype=jnp.float32)
    combine = jnp.einsum("tke,tk->te", chosen, routing.weights)
    span = len(x) // len(combine)
    if span > 1:
        combine = jnp.repeat(combine, span, axis=0)
    kind = KINDS[inner.kind]
    hidden = kind.hidden(*products(weights, lambda w: jnp.einsum("td,edf->etf", x, w)))
    if routing.seeds is not None:
        # A token that is given to one expert twice would need two draws; a router never does so.
        seeds = jnp.einsum("tke,tk->et", chosen.astype(jnp.uint32), routing.seeds)
        masks = inner.mask(seeds.reshape(-1), span * hidden.shape[-1])
        hidden = hidden * masks.reshape(hidden.shape).astype(x.dtype)
    out = jnp.einsum("etf,efd->etd", hidden, weights.down)
    if kind.output is not None:
        out = kind.output(out)
    return jnp.einsum("etd,te->td", out.astype(jnp.float32), combine).astype(x.dtype)


Implementation = Callable[
    [Float[Array, "T D"], Routing, ExpertWeights, Inner, float],
    Float[Array, "T D"],
]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": _dense,
    "blocked": lambda x, routing, weights, inner, factor: blocked(x, routing, weights, inner),
    "grouped": lambda x, routing, weights, inner, factor: grouped(x, routing, weights, inner),
    "capacity": with_capacity,
}


def resolve(implementation: str, backend: str | None = None) -> str:
    """The implementation that a name of `expert_ffn` stands for: "auto" is the best of the backend.

    A name that is not known is a ValueError.
    """
    if implementation == "auto":
        backend = backend or jax.default_backend()
        # Without its kernel a grouped product is as expensive as the dense form on a GPU.
        grouped_is_fast = backend == "tpu" or (backend == "gpu" and has_tokamax())
        chosen = "grouped" if grouped_is_fast else "blocked"
        logger.info("expert implementation: %s, chosen for %s", chosen, backend)
        return chosen
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be auto, {', '.join(IMPLEMENTATIONS)}, but is {implementation!r}"
        )
    return implementation


def expert_ffn(
    x: Float[Array, "T D"],
    routing: Routing,
    weights: ExpertWeights,
    implementation: str = "auto",
    capacity_factor: float = CAPACITY_FACTOR,
    inner: Inner = SWIGLU,
) -> Float[Array, "T D"]:
    """Applies to each token its chosen experts, weighted.

    Args:
      x: the tokens.
      routing: indices and weights [T, K]; an index outside [0, E) is computed by nobody. Or of
        fewer decisions [T / s, K], each of s consecutive tokens.
      weights: the kernels, of x's dtype.
      implementation: "dense" (every expert on every token: the readable reference), "blocked",
        "grouped", "capacity", or "auto" (grouped where the backend has a fast one, else blocked).
        All but "capacity" compute the same function.
      capacity_factor: of "capacity": rows of an expert over an even share.
      inner: the kind of the experts, and the rate of the dropout that `routing.seeds` draw.

    Raises:
      ValueError: the implementation is not known, or needs what is not installed.
    """
    if len(routing.indices) == 0 or len(x) % len(routing.indices):
        raise ValueError(
            f"routing has {len(routing.indices)} decisions, which do not divide {len(x)} tokens"
        )
    compute = IMPLEMENTATIONS[resolve(implementation)]
    # Under shard_map all of it varies between devices where the tokens do.
    weights = jax.tree.map(lambda w: partitioning.vary_like(w, x), weights)
    return compute(x, routing, weights, inner, capacity_factor)


def count_dropped(
    routing: Routing,
    num_experts: int,
    implementation: str = "auto",
    capacity_factor: float = CAPACITY_FACTOR,
) -> Float[Array, ""]:
    """How many (token, choice) pairs `expert_ffn` leaves out: 0 unless there is a capacity."""
    if resolve(implementation) != "capacity":
        return jnp.zeros(())
    return dropped(routing.indices, num_experts, capacity_factor).astype(jnp.float32)
