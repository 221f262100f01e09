"""The small parts, worked out by hand."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from timemoe_jax.nn.layers import Linear, PointEmbedding, RMSNorm, SwiGLU

INIT = nnx.initializers.normal(0.02)
FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_linear_by_hand():
    layer = Linear(2, 3, init=INIT, dtype=FLOAT32, use_bias=True, rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (2, 3)
    np.testing.assert_array_equal(layer.bias[...], [0, 0, 0])
    layer.kernel[...] = jnp.array([[1.0, 2, 3], [4, 5, 6]])
    layer.bias[...] = jnp.array([10.0, 20, 30])
    np.testing.assert_array_equal(
        layer(jnp.array([[1.0, -1], [0, 2]])), [[7, 17, 27], [18, 30, 42]]
    )


def test_linear_keeps_float32_parameters_and_computes_in_its_dtype():
    layer = Linear(2, 3, init=INIT, dtype=BFLOAT16, use_bias=True, rngs=nnx.Rngs(0))
    assert layer.kernel.dtype == layer.bias.dtype == FLOAT32
    assert layer(jnp.ones((1, 2))).dtype == BFLOAT16


def test_linear_has_no_bias_unless_asked():
    layer = Linear(2, 3, init=INIT, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert layer.bias is None
    np.testing.assert_array_equal(layer(jnp.zeros((1, 2))), np.zeros((1, 3)))


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.0)
    norm.scale[...] = jnp.array([1.0, 2.0])
    rms = np.sqrt((3**2 + 4**2) / 2)
    np.testing.assert_allclose(norm(jnp.array([3.0, 4.0])), [3 / rms, 2 * 4 / rms], rtol=1e-6)


@pytest.mark.parametrize(("eps", "expected"), [(3.0, 0.5), (1e-6, 1.0), (0.0, 1.0)])
def test_rms_norm_adds_eps_to_the_mean_square(eps, expected):
    out = RMSNorm(2, eps=eps)(jnp.array([[1.0, -1.0]]))
    np.testing.assert_allclose(out, [[expected, -expected]], rtol=1e-6)


def test_rms_norm_of_zeros_is_zero():
    np.testing.assert_array_equal(RMSNorm(4, eps=1e-6)(jnp.zeros((2, 4))), np.zeros((2, 4)))


def test_rms_norm_rounds_before_the_scale():
    """float32 inside, rounded to the input's dtype, then the product with the scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 64)).astype(ml_dtypes.bfloat16)
    scale = rng.uniform(0.5, 2, 64).astype(ml_dtypes.bfloat16)
    norm = RMSNorm(64, eps=1e-6)
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    x32 = x.astype(np.float32)
    normed = x32 / np.sqrt(np.mean(x32**2, axis=-1, keepdims=True) + 1e-6)
    rounded_first = normed.astype(x.dtype) * scale
    rounded_last = (normed * scale.astype(np.float32)).astype(x.dtype)
    assert np.mean(rounded_first != rounded_last) > 0.1
    out = np.asarray(norm(jnp.asarray(x)))
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out, rounded_first)


def test_point_embedding_by_hand():
    layer = PointEmbedding(3, gate_init=INIT, value_init=INIT, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert layer.gate.shape == layer.value.shape == (1, 3)
    layer.gate[...] = jnp.array([[1.0, 0.0, -2.0]])
    layer.value[...] = jnp.array([[3.0, 5.0, 0.5]])
    out = layer(jnp.array([[2.0, 0.0, -1.0]]))
    # silu(2) * 6, silu(0) * 10, silu(-4) * 1; nothing for a zero; silu(-1) * -3, 0, silu(2) * -0.5
    expected = [
        [2 * sigmoid(2) * 6, 0, -4 * sigmoid(-4)],
        [0, 0, 0],
        [-sigmoid(-1) * -3, 0, 2 * sigmoid(2) * -0.5],
    ]
    np.testing.assert_allclose(out[0], expected, rtol=1e-6)


def test_swiglu_by_hand():
    layer = SwiGLU(2, 2, init=INIT, dtype=FLOAT32, rngs=nnx.Rngs(0))
    layer.gate.kernel[...] = jnp.array([[1.0, 0], [0, 2]])
    layer.up.kernel[...] = jnp.array([[2.0, 1], [0, 1]])
    layer.down.kernel[...] = jnp.array([[1.0, 10], [-1, 100]])
    out = layer(jnp.array([[1.0, -1.0]]))
    # gate (1, -2), up (2, 0): only the first hidden unit passes, with 2 silu(1).
    np.testing.assert_allclose(out, [[2 * sigmoid(1), 20 * sigmoid(1)]], rtol=1e-6)
    assert layer.gate.bias is layer.up.bias is layer.down.bias is None
