"""The kernels that come with JAX: against plain attention here, and compiled for where they run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from timemoe_jax.nn.attention import kernels as attention_kernels
from timemoe_jax.nn.attention.causal import causal_attention
from timemoe_jax.nn.attention.kernels import (
    current_platform,
    devices_to_split_over,
    kernel_platform,
    refusal,
)

CUTS = ([1, 2, 40, 128], [90])  # where segments begin, of two rows
KERNELS = {"cudnn": attention_kernels.cudnn_attention, "splash": attention_kernels.splash_attention}


def inputs(length: int, size: int, heads: int, kv_heads: int, dtype: str = "float32"):
    """Queries, keys, values, and a direction of the output to differentiate along."""
    shapes = [(2, n, length, size) for n in (heads, kv_heads, kv_heads, heads)]
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(implementation: str, q, k, v, direction, mask):
    def loss(q, k, v):
        out = causal_attention(q, k, v, mask, implementation)
        return jnp.sum(out * direction, dtype=jnp.float32), out

    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


@pytest.mark.parametrize(
    ("length", "size", "heads", "kv_heads", "masked", "dtype"),
    [
        (255, 32, 2, 2, False, "float32"),
        (128, 20, 4, 2, False, "float32"),
        (9, 64, 4, 1, True, "float32"),
        (131, 32, 4, 2, True, "float32"),
        (131, 32, 4, 2, True, "bfloat16"),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_equals_plain(name, length, size, heads, kv_heads, masked, dtype):
    """In value and gradient. Half precision is compared with float32 on the same numbers."""
    arrays = inputs(length, size, heads, kv_heads, dtype)
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (2, length)).at[:, 0].set(True)
    mask = mask if masked else None
    expected = value_and_gradients("plain", *(a.astype(jnp.float32) for a in arrays), mask)
    found = value_and_gradients(name, *arrays, mask)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert error < (1e-2 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_padding_before_a_series(name, dtype):
    """Queries that may read nothing are finite, and so is what flows back through them."""
    *arrays, direction = inputs(131, 32, 4, 2, dtype)
    mask = jnp.arange(131) >= jnp.array([[7], [130]])
    known = mask[:, None, :, None]
    everywhere = value_and_gradients(name, *arrays, direction, mask)
    assert all(np.isfinite(a.astype(jnp.float32)).all() for a in everywhere)
    counted = direction * known
    found = value_and_gradients(name, *arrays, counted, mask)
    full = [a.astype(jnp.float32) for a in (*arrays, counted)]
    expected = value_and_gradients("plain", *full, mask)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(
        jnp.where(known, found[0], 0), jnp.where(known, expected[0], 0), rtol=0, atol=tolerance
    )
    for a, b in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("length", "dtype", "masked"), [(255, "float32", False), (131, "bfloat16", True)]
)
def test_splash_with_segments_equals_plain(length, dtype, masked):
    """In value and gradient; the first position of each segment is there to be read."""
    *arrays, direction = inputs(length, 32, 4, 2, dtype)
    segments = jnp.stack(
        [jnp.searchsorted(jnp.array(cuts), jnp.arange(length), side="right") for cuts in CUTS]
    ).astype(jnp.int32)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (2, length)) | begins
    mask = mask if masked else None

    def run(name, *arrays):
        def loss(q, k, v):
            out = causal_attention(q, k, v, mask, name, segments)
            return jnp.sum(out * arrays[3], dtype=jnp.float32), out

        gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*arrays[:3])
        return out, *gradients

    found = jax.jit(run, static_argnums=0)("splash", *arrays, direction)
    exact = [a.astype(jnp.float32) for a in (*arrays, direction)]
    expected = jax.jit(run, static_argnums=0)("plain", *exact)
    for a, b in zip(found, expected, strict=True):
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert error < (1e-2 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_a_large_score_does_not_bring_a_masked_key_back(name):
    q, k, v, _ = inputs(128, 32, 2, 2)
    mask = jnp.ones((2, 128), bool).at[:, 5].set(False)
    loud = k.at[:, :, 5].set(30 * q[:, :, 9])
    run = jax.jit(causal_attention, static_argnums=4)
    out = run(q, loud, v, mask, name)
    np.testing.assert_array_equal(out, run(q, k, v, mask, name))


def lowered(name: str, platform: str, length: int, size: int, dtype: str, masked: bool) -> str:
    """The gradient's program for a platform that need not be here."""
    arrays = inputs(length, size, 4, 2, dtype)
    mask = jnp.ones((2, length), bool) if masked else None

    def loss(*arrays):
        return jnp.sum(KERNELS[name](*arrays, mask).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays[:3])
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_splash_with_segments_compiles_to_a_kernel_for_a_tpu(monkeypatch):
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: "tpu")
    arrays = inputs(601, 32, 4, 2, "bfloat16")[:3]
    segments = (jnp.arange(601) >= 90).astype(jnp.int32)[None].repeat(2, axis=0)

    def loss(*arrays):
        return jnp.sum(KERNELS["splash"](*arrays, None, segments).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("@tpu_custom_call(") == 3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("length", "size", "dtype"),
    [
        (512, 64, "bfloat16"),
        (601, 32, "bfloat16"),
        (130, 20, "float16"),
        (256, 119, "bfloat16"),
    ],
)
def test_cudnn_takes_what_is_not_refused(length, size, dtype, masked, monkeypatch):
    """The library checks the types and shapes of its kernel when it is traced, GPU or none."""
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    assert refusal("cudnn", "gpu", jnp.dtype(dtype), size, masked) is None
    program = lowered("cudnn", "cuda", length, size, dtype, masked)
    assert "@__cudnn$fmhaSoftmax(" in program
    assert "@__cudnn$fmhaSoftmaxBackward(" in program
    rows = length + length % 2
    assert f"x{rows}x" in program
    assert f"{rows}x{rows}" not in program  # nothing is quadratic in the length


@pytest.mark.parametrize(("size", "dtype"), [(64, "float32"), (128, "bfloat16"), (136, "bfloat16")])
def test_cudnn_refuses_what_the_library_refuses(size, dtype, monkeypatch):
    """Float32 and wide heads; 128 only because of the mask."""
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    assert refusal("cudnn", "gpu", jnp.dtype(dtype), size, True)
    with pytest.raises(NotImplementedError):
        lowered("cudnn", "cuda", 512, size, dtype, True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("length", "size", "dtype"),
    [(512, 64, "bfloat16"), (601, 32, "float32"), (130, 20, "bfloat16"), (700, 128, "float32")],
)
def test_splash_compiles_to_a_kernel_for_a_tpu(length, size, dtype, masked, monkeypatch):
    """As far as it can be compiled without one: one kernel forward and two backward."""
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: "tpu")
    assert refusal("splash", "tpu", jnp.dtype(dtype), size, masked) is None
    program = lowered("splash", "tpu", length, size, dtype, masked)
    assert program.count("@tpu_custom_call(") == 3


@pytest.mark.parametrize(
    ("backend", "capability", "platform"),
    [
        ("gpu", "9.0", "gpu"),
        ("gpu", "8.0", "gpu"),
        ("gpu", "12.0", "gpu"),
        ("gpu", "7.5", "gpu without cudnn attention"),
        ("gpu", "gfx942", "gpu without cudnn attention"),
        ("gpu", "", "gpu without cudnn attention"),
        ("tpu", "", "tpu"),
        ("cpu", "", "cpu"),
    ],
)
def test_the_platform_of_a_kernel(backend, capability, platform):
    assert kernel_platform(backend, capability) == platform


def test_here_is_a_cpu():
    assert current_platform() == "cpu"


def test_devices_that_the_compiler_may_split_over(monkeypatch):
    """All without a mesh, those of the mesh with one, and none within shard_map."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    seen = []

    def note(x):
        seen.append(devices_to_split_over())
        return x

    auto = (jax.sharding.AxisType.Auto,)
    spec = jax.sharding.PartitionSpec("data")
    jax.jit(note)(jnp.zeros(4))
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=auto)):
        jax.jit(note)(jnp.zeros(4))
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "tensor"), axis_types=auto * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(note, jnp.zeros(4))
        part = jax.shard_map(note, in_specs=spec, out_specs=spec, axis_names={"data"})
        jax.eval_shape(part, jnp.zeros(4))
        jax.eval_shape(jax.shard_map(note, in_specs=spec, out_specs=spec), jnp.zeros(4))
    assert seen == [8, 1, 8, 2, 1]
