"""Which variates are linked, by how alike their spectra are (arXiv 2505.15151).

The distance of two variates is the sum over frequencies of the difference of their amplitudes,

    D[m, n] = sum_f | |X_m(f)| - |X_n(f)| |,    P[m, n] = alpha (1 - D[m, n] / max D),

so that a shift in time changes nothing. P is the probability of a link, 1 of a variate to itself.
Training draws links from it, with the gradient of a relaxation (straight-through Gumbel-softmax,
arXiv 1611.01144); in use those more probable than a threshold are there. Nothing here has
parameters, unless alpha is learned.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

CERTAIN = 1e-6  # probabilities are drawn from within (this, 1 - this)


def spectral_distance(
    x: Float[Array, "B C G"], mask: Bool[Array, "B C G"]
) -> Float[Array, "B C C"]:
    """How far the amplitudes of every two variates are from each other, float32.

    Points under a mask of False count as 0, the mean of a standardized series. The distance is
    symmetric, 0 on the diagonal, and in the units of x.
    """
    amplitude = jnp.abs(jnp.fft.rfft(jnp.where(mask, x, 0).astype(jnp.float32), axis=-1))
    return jnp.sum(jnp.abs(amplitude[:, :, None] - amplitude[:, None]), axis=-1)


def link_probability(
    distance: Float[Array, "B C C"], present: Bool[Array, "B C"], alpha: float | Float[Array, ""]
) -> Float[Array, "B C C"]:
    """P from distances; the largest is that of two variates that are present.

    A variate by itself, or several with one spectrum, have no distance to compare with: P is alpha.
    """
    both = present[:, :, None] & present[:, None]
    largest = jnp.max(jnp.where(both, distance, 0), axis=(1, 2), keepdims=True)
    share = distance / jnp.where(largest > 0, largest, 1)
    own = jnp.eye(distance.shape[-1], dtype=bool)
    return jnp.where(own, 1.0, alpha * jnp.clip(1 - share, 0, 1))


def drawn_links(
    probability: Float[Array, "B C C"], draws: UInt32[Array, " B"], temperature: float
) -> Float[Array, "B C C"]:
    """Links, 0 or 1, drawn for each window by its number; a variate is linked to itself.

    The gradient is that of sigmoid((logit P + noise) / temperature), the two-way Gumbel-softmax:
    the difference of two Gumbel variables is logistic.
    """
    p = jnp.clip(probability, CERTAIN, 1 - CERTAIN)

    def noise(number: UInt32[Array, ""]) -> Float[Array, "C C"]:
        return jax.random.logistic(jax.random.key(number), probability.shape[1:])

    logits = jnp.log(p) - jnp.log1p(-p) + jax.vmap(noise)(draws)
    soft = jax.nn.sigmoid(logits / temperature)
    hard = (logits > 0).astype(soft.dtype)
    # In this order the value is `hard` to the bit.
    links = hard + (soft - jax.lax.stop_gradient(soft))
    return jnp.where(jnp.eye(p.shape[-1], dtype=bool), 1.0, links)


def links_in_use(probability: Float[Array, "B C C"], threshold: float) -> Bool[Array, "B C C"]:
    """The links that are more probable than the threshold; a variate is linked to itself."""
    return (probability > threshold) | jnp.eye(probability.shape[-1], dtype=bool)
