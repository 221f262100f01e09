"""The sparse layer of an encoder by hand: who decides for a segment's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from timemoe_jax.nn.experts.parallel import Options
from timemoe_jax.nn.experts.segments import SegmentMoe
from timemoe_jax.nn.patches import Mlp, uniform

SIZE, WIDTH, EXPERTS, SEGMENT, TOKENS = 4, 6, 3, 2, 5


@pytest.mark.parametrize("each_token", [False, True])
def test_the_layer_by_hand(each_token):
    single = jnp.dtype("float32")
    rngs = nnx.Rngs(0)
    layer = SegmentMoe(
        SIZE,
        WIDTH,
        Mlp(SEGMENT * SIZE, SEGMENT * WIDTH, dtype=single, rngs=rngs),
        kinds=("gelu",) * EXPERTS,
        segment=SEGMENT,
        each_token=each_token,
        num_experts_per_tok=1,
        renormalize=False,
        init=uniform,
        dtype=single,
        options=Options("dense", 2.0, "all_gather"),
        rngs=rngs,
    )
    x = np.random.default_rng(0).normal(size=(1, TOKENS, SIZE)).astype(np.float32)
    y, decisions = layer(jnp.asarray(x))

    tokens = np.pad(x[0], ((0, 1), (0, 0)))  # zeros after the newest one
    u = tokens.reshape(-1, SEGMENT * SIZE)
    logits = (tokens if each_token else u) @ np.asarray(layer.router.kernel[...])
    np.testing.assert_allclose(decisions.logits[0], logits, rtol=1e-5, atol=1e-6)
    each = logits if each_token else np.repeat(logits, SEGMENT, axis=0)
    probabilities = np.asarray(jax.nn.softmax(each, axis=-1))
    up, down = (np.asarray(getattr(layer.experts["gelu"], n)[...]) for n in ("up", "down"))
    shared = jax.nn.sigmoid(layer.shared_gate(jnp.asarray(u))) * layer.shared(jnp.asarray(u))
    mixed = np.asarray(shared).reshape(-1, SIZE)
    for t in range(TOKENS):
        e = int(np.argmax(each[t]))
        hidden = jax.nn.gelu(tokens[t] @ up[e], approximate=False)
        expected = probabilities[t, e] * (hidden @ down[e]) + mixed[t]
        np.testing.assert_allclose(y[0, t], expected, rtol=1e-4, atol=1e-5)
    # The zeros decide for nobody; the last segment holds a token and decides for that.
    counts = [True] * TOKENS + [False] if each_token else [True] * 3
    assert decisions.counts[0].tolist() == counts
