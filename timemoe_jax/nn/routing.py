"""Who goes to which expert, and with what weight; and what that says about the experts' load.

A router is a bias-free linear map to one logit per expert. It is kept apart from the expert
computation (`experts.py`), which receives only a `Routing`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Routing(NamedTuple):
    """The experts chosen for each token, best first, and the weight of each."""

    indices: Int[Array, "T K"]
    weights: Float[Array, "T K"]


class RouterStatistics(NamedTuple):
    """Sums over tokens, from which the balancing loss and the log are computed.

    They are sums, not means, so that micro-batches and devices can add them up. The leading axes
    are those of the logits up to the tokens: one entry per layer.
    """

    choices: Float[Array, "*L K E"]  # tokens whose k-th choice was the expert
    probabilities: Float[Array, "*L E"]  # router probability given to the expert
    entropy: Float[Array, "*L"]  # of the router's distribution, in nats
    tokens: Float[Array, "*L"]


def route(logits: Float[Array, "T E"], num_experts_per_tok: int) -> Routing:
    """Top-k of a softmax over all experts; the chosen keep their probability, not renormalised.

    Args:
      logits: one per token and expert; the softmax is float32.
      num_experts_per_tok: k.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, indices = jax.lax.top_k(probabilities, num_experts_per_tok)
    return Routing(indices, weights)


def router_statistics(
    logits: Float[Array, "*L B T E"],
    num_experts_per_tok: int,
    mask: Float[Array, "B T"] | None = None,
) -> RouterStatistics:
    """Sums what the routers of all layers decided.

    Args:
      logits: per layer, batch, position and expert.
      num_experts_per_tok: k.
      mask: 1 where a token counts, 0 where it is padding; None counts every token.
    """
    *layers, batch, time, num_experts = logits.shape
    tokens = jnp.ones((batch, time)) if mask is None else mask.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    p = jnp.exp(log_p)
    _, indices = jax.lax.top_k(p, num_experts_per_tok)
    chosen = jax.nn.one_hot(indices, num_experts, dtype=jnp.float32)
    return RouterStatistics(
        choices=jnp.einsum("...btke,bt->...ke", chosen, tokens),
        probabilities=jnp.einsum("...bte,bt->...e", p, tokens),
        entropy=jnp.einsum("...bte,...bte,bt->...", p, -log_p, tokens),
        tokens=jnp.broadcast_to(jnp.sum(tokens), tuple(layers)),
    )
