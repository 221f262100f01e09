"""Who goes to which expert, and with what weight; and what that says about the experts' load.

A router is a bias-free linear map to one logit per expert. The expert computation (`compute.py`)
receives only a `Routing`.

A scoring says what a router's output means, and what the chosen experts weigh:

    softmax      logits; an expert weighs its probability among all (arXiv 2409.16040)
    similarity   similarities in (0, 1); the weights of the chosen add up to 1 (arXiv 2505.15151)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

SCORINGS = ("softmax", "similarity")
TINY = 1e-9  # beside it a similarity is 0


class Routing(NamedTuple):
    """The experts chosen for each token, best first, and the weight of each."""

    indices: Int[Array, "*T K"]
    weights: Float[Array, "*T K"]
    # Of the dropout within the experts, one for each choice; None drops nothing.
    seeds: UInt32[Array, "*T K"] | None = None


class RouterStatistics(NamedTuple):
    """Sums over tokens, from which the router's losses and the log are computed.

    They are sums, not means, so that micro-batches and devices can add them up. The leading axes
    are those of the logits up to the tokens: one entry per layer. The upper fields are sums over
    the tokens that count. The lower two are over every (token, choice) pair: the experts do not
    know which tokens are padding, and those take room in a capacity like any other.
    """

    choices: Float[Array, "*L K E"]  # tokens whose k-th choice was the expert
    probabilities: Float[Array, "*L E"]  # router probability given to the expert
    entropy: Float[Array, "*L"]  # of the router's distribution, in nats
    squared_log_normalizer: Float[Array, "*L"]  # logsumexp(logits)²
    tokens: Float[Array, "*L"]
    dropped: Float[Array, "*L"]  # pairs that no expert computed
    pairs: Float[Array, "*L"]


def route(
    logits: Float[Array, "*T E"],
    num_experts_per_tok: int,
    bias: Float[Array, "... E"] | None = None,
    scoring: str = "softmax",
) -> Routing:
    """Top-k of a softmax over all experts, in float32; the chosen keep their probability.

    Nothing else decides who goes where, and the weights are not renormalized. A bias, of a shape
    that broadcasts to the logits, is added to the probabilities to choose the experts and to order
    them, but not to their weights (arXiv 2408.15664, Eq. 3); it has no gradient. With the scoring
    "similarity" the logits are similarities, which take the place of the probabilities, and the
    weights are divided by their sum.
    """
    if scoring == "similarity":
        return choose(logits.astype(jnp.float32), num_experts_per_tok, bias, renormalize=True)
    return choose(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), num_experts_per_tok, bias)


def choose(
    probabilities: Float[Array, "*T E"],
    num_experts_per_tok: int,
    bias: Float[Array, "... E"] | None = None,
    renormalize: bool = False,
) -> Routing:
    """As `route`, of probabilities; `renormalize` divides the weights by their sum."""
    scores = jax.lax.stop_gradient(probabilities)
    if bias is not None:
        scores = scores + jax.lax.stop_gradient(bias).astype(jnp.float32)
    indices, weights = [], []
    # K times the best of what is left, not `lax.top_k`: the compiler would bring all tokens to
    # every device for that.
    for _ in range(num_experts_per_tok):
        best = jnp.argmax(scores, axis=-1)
        chosen = best[..., None] == jnp.arange(scores.shape[-1])
        indices.append(best.astype(jnp.int32))
        weights.append(jnp.sum(jnp.where(chosen, probabilities, 0), axis=-1))
        scores = jnp.where(chosen, -jnp.inf, scores)
    of_chosen = jnp.stack(weights, axis=-1)
    if renormalize:
        of_chosen = of_chosen / jnp.maximum(jnp.sum(of_chosen, axis=-1, keepdims=True), TINY)
    return Routing(jnp.stack(indices, axis=-1), of_chosen)


def router_statistics(
    logits: Float[Array, "*L B T E"],
    num_experts_per_tok: int,
    mask: Float[Array, "B T"] | Float[Array, "*L B T"] | None = None,
    *,
    bias: Float[Array, "*L E"] | None = None,
    dropped: Float[Array, "*L"] | None = None,
    scoring: str = "softmax",
    probabilities: Float[Array, "*L B T E"] | None = None,
) -> RouterStatistics:
    """Sums what the routers of all layers decided.

    The mask is 1 where a token counts and 0 where it is padding, in all layers or in each; None
    counts every token. The bias is the selection bias of each layer, as `route` was given it. The
    dropped pairs of each layer are those that no expert computed, padding among them; None stands
    for none. The probability of an expert by the scoring "similarity" is its share of the sum of
    all similarities. The probabilities are those that chose, where they are not the softmax of the
    logits.
    """
    *layers, batch, time, num_experts = logits.shape
    tokens = jnp.ones((batch, time)) if mask is None else mask.astype(jnp.float32)
    t = "bt" if tokens.ndim == 2 else "...bt"
    in_logs = logits.astype(jnp.float32)
    if scoring == "similarity":
        in_logs = jnp.log(jnp.maximum(in_logs, TINY))
    log_p = jax.nn.log_softmax(in_logs, axis=-1)
    log_z = jax.nn.logsumexp(in_logs, axis=-1)
    p = jnp.exp(log_p)
    per_layer = None if bias is None else bias[..., None, None, :]
    if probabilities is None:
        given, chosen_by = p, jax.lax.stop_gradient(logits)
        indices = route(chosen_by, num_experts_per_tok, per_layer, scoring).indices
    else:
        given = probabilities
        indices = choose(probabilities, num_experts_per_tok, per_layer).indices
    chosen = jax.nn.one_hot(indices, num_experts, dtype=jnp.float32)
    return RouterStatistics(
        choices=jnp.einsum(f"...btke,{t}->...ke", chosen, tokens),
        probabilities=jnp.einsum(f"...bte,{t}->...e", given, tokens),
        entropy=jnp.einsum(f"...bte,...bte,{t}->...", p, -log_p, tokens),
        squared_log_normalizer=jnp.einsum(f"...bt,{t}->...", jnp.square(log_z), tokens),
        tokens=jnp.broadcast_to(jnp.sum(tokens, axis=(-2, -1)), tuple(layers)),
        dropped=jnp.zeros(tuple(layers)) if dropped is None else dropped,
        pairs=jnp.full(tuple(layers), float(batch * time * num_experts_per_tok)),
    )
