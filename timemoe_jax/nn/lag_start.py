"""Attention that starts by reading single points a known distance back.

With biases of zero a head starts by reading everything alike, and a model has to find out over
thousands of updates that yesterday's value is of use. Rotary scores depend on a distance, so that
the biases of queries and keys alone can say which: a head then starts as one tap of a filter, the
heads of a layer as a comb, and layers whose combs widen by the number of their heads reach every
point of the context by one path, as dilated convolutions do (arXiv 1609.03499). What is read of
it, and from where, is learnt from there.
"""

import numpy as np

from timemoe_jax.nn.attention.layer import Attention

# Length of a bias in each plane of rotation: enough that, of all points, the one at the lag gets
# most of the weight (0.86 of it in heads of 12 features and theta 300).
STRENGTH = 4.0
# What the kernels of queries and keys are scaled by, lest a point's value drown its distance.
QUIET = 0.3


def initial_lags(num_layers: int, num_heads: int, reach: int) -> np.ndarray:
    """How many points back every head starts by reading, int [L, N].

    Head j of layer l reads j * base^l points back, where base^L is `reach`, or less where there are
    not enough heads to leave no gap: so the sums of a lag of each layer include 0 to base^L - 1.
    """
    base = min(float(num_heads), reach ** (1 / num_layers))
    return np.rint(np.outer(base ** np.arange(num_layers), np.arange(num_heads))).astype(int)


def start_at_lags(attention: Attention, reach: int) -> None:
    """Gives stacked attention layers the biases with which each head reads one point back.

    The planes of a query are turned by the lag against those of the key: q_f = a e^(-i w_f lag),
    k_f = a, so that the score at a distance d is proportional to sum_f cos(w_f (d - lag)).

    Args:
      attention: the layers, with a leading axis [L] on each parameter; changed in place.
      reach: how many points back the layers read together; see `initial_lags`.
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
