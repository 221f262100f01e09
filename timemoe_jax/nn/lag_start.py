"""Attention that starts by reading single points a known distance back.

With biases of zero a head starts by reading all points alike, and a model needs thousands of
updates to find out that yesterday's value is of use. Rotary scores depend on a distance, so the
biases of queries and keys alone can pick one. A head then starts as one tap of a filter, the heads
of a layer as a comb, and layers whose combs widen by the number of their heads reach every point of
the context by one path, as dilated convolutions do (arXiv 1609.03499). Training goes on from there.
"""

import numpy as np

from timemoe_jax.nn.attention.layer import Attention

# Length of a bias in each plane of rotation: enough that, of all points, the one at the lag gets
# most of the weight (0.86 of it in heads of 12 features and theta 300).
STRENGTH = 4.0
# Scales the kernels of queries and keys, so that a point's value does not drown its distance.
QUIET = 0.3


def initial_lags(num_layers: int, num_heads: int, reach: int) -> np.ndarray:
    """How many points back every head starts by reading, int [L, N].

    Head j of layer l reads j * base^l points back. base^L is `reach`, or less where there are too
    few heads to leave no gap. So the sums of one lag of each layer include all of 0 to base^L - 1.
    """
    base = min(float(num_heads), reach ** (1 / num_layers))
    return np.rint(np.outer(base ** np.arange(num_layers), np.arange(num_heads))).astype(int)


def start_at_lags(attention: Attention, reach: int) -> None:
    """Gives stacked attention layers [L, ...], in place, the biases by which heads read lags.

    The planes of a query are turned by the lag against those of the key: q_f = a e^(-i w_f lag),
    k_f = a, so that the score at a distance d is proportional to sum_f cos(w_f (d - lag)). The
    lags are `initial_lags` of this reach.
    """
    num_layers, _, hidden_size = attention.query.kernel[...].shape
    half = attention.head_dim // 2
    num_heads = hidden_size // attention.head_dim
    frequencies = attention.theta ** (-np.arange(half) / half)
    lags = initial_lags(num_layers, num_heads, reach)
    angles = lags[..., None] * frequencies
    queries = np.concatenate([np.cos(angles), -np.sin(angles)], axis=-1)  # [L, N, H]
    keys = np.repeat([1.0, 0.0], half)  # [H], the same for every head
    for linear, bias in ((attention.query, queries), (attention.key, keys)):
        assert linear.bias is not None  # queries and keys have one
        old = linear.bias[...]
        rows = np.broadcast_to(bias, (num_layers, old.shape[1] // (2 * half), 2 * half))
        linear.bias[...] = (STRENGTH * rows).reshape(old.shape).astype(old.dtype)
        linear.kernel[...] = linear.kernel[...] * QUIET
