"""Attention: by hand, each implementation against plain, which one auto is, and with a cache."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import timemoe_jax.nn.attention.causal
from timemoe_jax.errors import ConfigError
from timemoe_jax.nn import attention as nn_attention
from timemoe_jax.nn.attention import cache as attention_cache
from timemoe_jax.nn.attention import kernels as attention_kernels
from timemoe_jax.nn.attention.cache import CacheLayer, KeyValues, write
from timemoe_jax.nn.attention.causal import (
    IMPLEMENTATIONS,
    MIN_KERNEL_LENGTH,
    QUERY_CHUNK,
    TILE_CHUNK,
    attend,
    causal_attention,
    choose,
    resolve,
    rotary,
)
from timemoe_jax.nn.attention.layer import Attention

FASTER = sorted(IMPLEMENTATIONS.keys() - {"plain"})


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_attend_by_hand():
    """Scores 2 * log 3 / sqrt(4) = log 3 and 0: shares 3/4 and 1/4."""
    queries = jnp.array([2.0, 0, 0, 0]).reshape(1, 1, 1, 4)
    keys = jnp.array([[np.log(3.0), 0, 0, 0], [0, 5, 5, 5]], jnp.float32).reshape(1, 1, 2, 4)
    values = jnp.array([[4.0, 8, 0, 1], [8.0, 0, 4, 1]]).reshape(1, 1, 2, 4)
    out = attend(queries, keys, values, jnp.ones((1, 1, 2), bool))
    np.testing.assert_allclose(out[0, 0, 0], [5, 6, 1, 1], rtol=1e-6)
    first = attend(queries, keys, values, jnp.array([[[True, False]]]))
    np.testing.assert_array_equal(first[0, 0, 0], values[0, 0, 0])


def test_a_query_that_may_read_nothing_is_finite():
    q = normal(0, 1, 2, 3, 4)
    assert np.isfinite(attend(q, q, q, jnp.zeros((1, 3, 3), bool))).all()


def test_grouped_heads_are_repeated_key_value_heads():
    q, k, v = normal(0, 2, 6, 5, 4), normal(1, 2, 2, 5, 4), normal(2, 2, 2, 5, 4)
    repeated = (jnp.repeat(a, 3, axis=1) for a in (k, v))
    run = jax.jit(causal_attention)
    np.testing.assert_allclose(run(q, k, v), run(q, *repeated), rtol=0, atol=1e-6)


def segments_of(batch: int, length: int) -> jax.Array:
    """Of a few points and of more than a chunk; the last is padding."""
    cuts = jnp.array([1, 2, 40, 41, TILE_CHUNK, 300, 301, length - 9])
    ids = 1 + jnp.searchsorted(cuts, jnp.arange(length), side="right")
    shifted = jnp.stack([jnp.roll(ids, 7 * row) if row else ids for row in range(batch)])
    ordered = jnp.sort(shifted, axis=1)
    return ordered.at[:, length - 5 :].set(0).astype(jnp.int32)


def can_read(mask, segments, batch: int, length: int) -> jax.Array:
    """Which queries have anything to read, [B, 1, T, 1]."""
    allowed = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    if mask is not None:
        allowed = allowed & mask[:, None]
    if segments is not None:
        allowed = allowed & (segments[:, :, None] == segments[:, None])
    return allowed.any(axis=2)[:, None, :, None]


LENGTH, BATCH = 600, 4


@functools.cache
def value_and_gradients(implementation: str, masked: bool, segmented: bool) -> list[jax.Array]:
    """At a length that ends within a chunk; where a query has nothing to read the value is zero."""
    shapes = (BATCH, 2, LENGTH, 4), (BATCH, 1, LENGTH, 4), (BATCH, 1, LENGTH, 4)
    inputs = [normal(seed, *shape) for seed, shape in enumerate(shapes)]
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (BATCH, LENGTH)).at[:, 0].set(True)
    mask = mask if masked else None
    segments = segments_of(BATCH, LENGTH) if segmented else None
    # A query that may read nothing has a result that means nothing.
    known = can_read(mask, segments, BATCH, LENGTH)
    direction = normal(4, *shapes[0]) * known

    def loss(q, k, v):
        out = causal_attention(q, k, v, mask, implementation, segments)
        return jnp.sum(out * direction), out * known

    return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs))


# With segments cudnn is chunked, and test_attention_kernels.py has more of splash.
CASES = [
    *((name, masked, False) for name in FASTER for masked in (False, True) if name != "splash"),
    *((name, masked, True) for name in ("chunked", "tiled") for masked in (False, True)),
    *(("splash", False, False), ("splash", True, True)),
]


@pytest.mark.parametrize(("implementation", "masked", "segmented"), CASES)
def test_every_implementation_equals_plain(implementation, masked, segmented, monkeypatch):
    """In value and gradient, at a length that ends within a chunk, with several tiles."""
    assert LENGTH > QUERY_CHUNK
    assert LENGTH % QUERY_CHUNK
    assert LENGTH % TILE_CHUNK
    # Two heads and two series to a tile.
    tile = 4 * 2 * TILE_CHUNK * LENGTH * 2
    monkeypatch.setattr(timemoe_jax.nn.attention.causal, "TILE_BYTES", tile)
    expected = value_and_gradients("plain", masked, segmented)
    found = value_and_gradients(implementation, masked, segmented)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_segment_is_read_by_itself_alone(implementation):
    """What stands before a segment changes nothing in it, not a bit; without segments it does."""
    length = QUERY_CHUNK + 40
    q, k, v = normal(0, 1, 2, length, 4), normal(1, 1, 2, length, 4), normal(2, 1, 2, length, 4)
    segments = jnp.where(jnp.arange(length) < 37, 1, 2)[None]
    changed = [a.at[:, :, :37].set(50.0) for a in (k, v)]
    run = jax.jit(lambda k, v, s: causal_attention(q, k, v, None, implementation, s))
    np.testing.assert_array_equal(
        run(k, v, segments)[:, :, 37:], run(*changed, segments)[:, :, 37:]
    )
    together = run(k, v, jnp.ones_like(segments))
    assert np.abs(run(k, v, segments) - together)[:, :, 37:].max() > 1e-2
    alone = causal_attention(*(a[:, :, 37:] for a in (q, k, v)), None, "plain")
    np.testing.assert_allclose(run(k, v, segments)[:, :, 37:], alone, rtol=0, atol=1e-5)


def test_an_unknown_implementation_is_refused():
    q = normal(0, 1, 2, 9, 4)
    with pytest.raises(ConfigError, match=r"one of auto, plain, .*'flash'"):
        causal_attention(q, q, q, None, "flash")


def test_the_config_offers_every_implementation():
    assert ("auto", *IMPLEMENTATIONS) == nn_attention.IMPLEMENTATIONS


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "head_dim", "length", "masked", "devices"),
    [
        ("cudnn", "gpu", "bfloat16", 64, 512, True, 1),
        ("cudnn", "gpu", "bfloat16", 64, 512, True, 8),
        ("cudnn", "gpu", "float16", 32, 4095, False, 1),
        ("cudnn", "gpu", "bfloat16", 20, 512, True, 1),
        ("cudnn", "gpu", "bfloat16", 128, 512, False, 1),
        ("chunked", "gpu", "bfloat16", 128, 512, True, 1),
        ("cudnn", "gpu", "bfloat16", 119, 512, True, 1),
        ("chunked", "gpu", "bfloat16", 256, 512, False, 1),
        ("chunked", "gpu", "float32", 64, 512, True, 1),
        ("cudnn", "gpu", "bfloat16", 64, MIN_KERNEL_LENGTH, True, 1),
        ("chunked", "gpu", "bfloat16", 64, MIN_KERNEL_LENGTH - 1, True, 1),
        ("chunked", "gpu without cudnn attention", "bfloat16", 64, 512, True, 1),
        ("splash", "tpu", "bfloat16", 64, 512, True, 1),
        ("splash", "tpu", "float32", 20, 4095, False, 1),
        ("chunked", "tpu", "float16", 64, 512, True, 1),
        ("chunked", "tpu", "bfloat16", 64, MIN_KERNEL_LENGTH - 1, True, 1),
        ("chunked", "tpu", "bfloat16", 64, 512, True, 2),
        ("tiled", "cpu", "float32", 64, 512, True, 1),
        ("tiled", "cpu", "bfloat16", 3, 1, False, 4),
        ("chunked", "another", "bfloat16", 64, 512, True, 1),
    ],
)
def test_what_auto_stands_for(name, platform, dtype, head_dim, length, masked, devices):
    assert choose(platform, jnp.dtype(dtype), head_dim, length, masked, devices) == name


def test_with_segments_auto_passes_over_the_kernel_of_a_gpu():
    chosen = {}
    for platform in ("gpu", "tpu", "cpu"):
        chosen[platform] = choose(platform, jnp.dtype("bfloat16"), 64, 512, True, 1, segmented=True)
    assert chosen == {"gpu": "chunked", "tpu": "splash", "cpu": "tiled"}
    assert resolve("cudnn", "bfloat16", 64, 512, segmented=True) == "chunked"
    assert resolve("splash", "bfloat16", 64, 512, segmented=True) == "splash"


@pytest.mark.parametrize(
    ("platform", "dtype", "size", "masked", "devices", "chosen"),
    [
        ("gpu", "bfloat16", 64, True, 2, "cudnn"),
        ("gpu", "float32", 64, True, 1, "chunked"),
        ("gpu", "bfloat16", 128, False, 1, "cudnn"),
        ("gpu", "bfloat16", 128, True, 1, "chunked"),
        ("tpu", "bfloat16", 64, True, 1, "splash"),
        ("tpu", "bfloat16", 64, True, 2, "chunked"),
        ("cpu", "float32", 64, True, 1, "tiled"),
    ],
)
def test_auto_is_what_is_chosen_and_said(
    platform, dtype, size, masked, devices, chosen, monkeypatch, caplog
):
    """The kernels themselves do not run: their names lead to something that notes the call."""
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: platform)
    monkeypatch.setattr(attention_kernels, "devices_to_split_over", lambda: devices)
    called = []
    for name in IMPLEMENTATIONS:
        note = functools.partial(lambda name, q, *_: called.append(name) or q, name)
        monkeypatch.setitem(IMPLEMENTATIONS, name, note)
    timemoe_jax.nn.attention.causal._log.cache_clear()
    q = jnp.zeros((1, 1, 256, size), dtype)
    with caplog.at_level(logging.INFO, "absl"):
        for _ in range(2):
            causal_attention(q, q, q, jnp.ones((1, 256), bool) if masked else None)
    assert called == [chosen] * 2
    assert [r.getMessage() for r in caplog.records] == [f"attention: {chosen}"]


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "size", "message"),
    [
        ("cudnn", "gpu", "float32", 64, r"'cudnn' .*float16 and bfloat16.* is float32; 'auto'"),
        ("cudnn", "gpu", "bfloat16", 136, r"'cudnn' .*up to 128, but head_dim is 136; 'auto'"),
        ("splash", "tpu", "float16", 64, r"'splash' .*float32 and bfloat16.* is float16; 'auto'"),
    ],
)
def test_a_kernel_that_cannot_compute_this_is_refused(
    name, platform, dtype, size, message, monkeypatch
):
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: platform)
    q = jnp.zeros((1, 1, 256, size), dtype)
    with pytest.raises(ConfigError, match=message):
        causal_attention(q, q, q, None, name)


def test_below_a_chunk_all_are_the_same():
    q = normal(0, 1, 2, 9, 4)
    run = jax.jit(causal_attention, static_argnums=4)
    plain = run(q, q, q, None, "plain")
    for implementation in ("auto", *FASTER):
        out = run(q, q, q, None, implementation)
        np.testing.assert_allclose(out, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masked_and_later_positions_do_not_matter(implementation):
    """The masked lie in both chunks, before and after the queries compared."""
    length = QUERY_CHUNK + 40
    q, k, v = normal(0, 1, 2, length, 4), normal(1, 1, 2, length, 4), normal(2, 1, 2, length, 4)
    mask = jnp.ones((1, length), bool).at[:, 3:9].set(False).at[:, 260:270].set(False)
    hidden = ~mask | (jnp.arange(length) > 280)
    changed = [jnp.where(hidden[:, None, :, None], 50.0, a) for a in (k, v)]
    run = jax.jit(lambda k, v, mask: causal_attention(q, k, v, mask, implementation))
    before, after = run(k, v, mask), run(*changed, mask)
    np.testing.assert_array_equal(before[:, :, :281], after[:, :, :281])
    unmasked = run(k, v, jnp.ones_like(mask))
    assert np.abs(before - unmasked)[:, :, 9:281].max() > 1e-2
    np.testing.assert_array_equal(before[:, :, :3], unmasked[:, :, :3])


def test_rotary_by_hand():
    """Two pairs (i, i + 2): the first turns by the position, the second by it over sqrt(theta)."""
    x = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    x = jnp.tile(x, (1, 1, 2, 1))
    out = rotary(x, jnp.array([0, 3]), 100.0)[0, 0]
    np.testing.assert_array_equal(out[0], x[0, 0, 0])
    expected = [np.cos(3.0), -np.sin(0.3), np.sin(3.0), np.cos(0.3)]
    np.testing.assert_allclose(out[1], expected, rtol=1e-6)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 1000))
def test_rotary_products_depend_on_the_distance_alone(i, j, shift):
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

    def product(a: int, b: int) -> jax.Array:
        turned = rotary(q, jnp.array([a]), 10000.0), rotary(k, jnp.array([b]), 10000.0)
        return jnp.sum(turned[0] * turned[1])

    # Angles of about 1000 carry a rounding of about 1000 * 2^-24.
    np.testing.assert_allclose(product(i, j), product(i + shift, j + shift), rtol=0, atol=2e-3)


def attention(num_kv_heads: int) -> Attention:
    return Attention(
        16,
        4,
        num_kv_heads,
        theta=10000.0,
        init=nnx.initializers.normal(0.3),
        dtype=jnp.dtype("float32"),
        implementation="auto",
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_extend_equals_full_attention(num_kv_heads):
    module = attention(num_kv_heads)
    x = normal(5, 2, 10, 16)
    mask = jnp.ones((2, 10), bool).at[0, :3].set(False)
    attend_all = jax.jit(lambda x, mask: module(x, mask))
    extend = jax.jit(module.extend, static_argnames="last")
    full, kv = attend_all(x, mask)
    assert kv.keys.shape == (2, num_kv_heads, 10, 4)
    _, start = attend_all(x[:, :6], mask[:, :6])
    # Other layers, and the room that is left, hold something that must never be read.
    room = ((1, 1), (0, 0), (0, 0), (0, 6), (0, 0))
    cache = KeyValues(*(jnp.pad(a[None], room, constant_values=7.0) for a in start))
    room_mask = jnp.pad(mask, ((0, 0), (0, 2)), constant_values=True)
    seen = jnp.ones((2, 3), bool)

    def past(cache, filled):
        return CacheLayer(cache, jnp.int32(1), jnp.int32(filled), room_mask)

    only, _ = extend(x[:, 6:9], seen, jnp.int32(6), past(cache, 6), last=True)
    middle, new = extend(x[:, 6:9], seen, jnp.int32(6), past(cache, 6))
    added = KeyValues(*(jnp.pad(a[None], ((1, 1), *((0, 0),) * 4)) for a in new))
    cache = write(cache, added, jnp.int32(6))
    last, _ = extend(x[:, 9:], seen[:, :1], jnp.int32(9), past(cache, 9))
    np.testing.assert_allclose(middle, full[:, 6:9], rtol=0, atol=1e-5)
    np.testing.assert_allclose(only, full[:, 8:9], rtol=0, atol=1e-5)
    np.testing.assert_allclose(last, full[:, 9:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(new.keys, kv.keys[:, :, 6:9], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cache.keys[1, :, :, :9], kv.keys[:, :, :9], rtol=0, atol=1e-5)
    assert (cache.keys[1, :, :, 9:] == 7.0).all()
    # A context alone, of which only the last position is wanted.
    alone, _ = extend(x, mask, jnp.int32(0), last=True)
    np.testing.assert_allclose(alone, full[:, -1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile_bytes", [1, 300, 700, 2**20])
def test_tiles_of_a_cache_read_are_one_read(monkeypatch, tile_bytes):
    """Whatever number of heads, and of series, is read at a time."""
    queries, keys, values = normal(1, 4, 6, 3, 4), normal(2, 4, 3, 3, 4), normal(3, 4, 3, 3, 4)
    cache = KeyValues(normal(4, 2, 4, 3, 8, 4), normal(5, 2, 4, 3, 8, 4))
    mask = jax.random.bernoulli(jax.random.key(6), 0.8, (4, 8)).at[:, 0].set(True)
    new_mask = jnp.ones((4, 3), bool).at[1, 0].set(False)
    past = CacheLayer(cache, jnp.int32(1), jnp.int32(6), mask)
    monkeypatch.setattr(attention_cache, "TILE_BYTES", tile_bytes)
    read = jax.jit(lambda *args: attention_cache.read(*args))  # anew for each size
    found = read(queries, KeyValues(keys, values), new_mask, past)
    there = jnp.broadcast_to((mask & (jnp.arange(8) < 6))[:, None], (4, 3, 8))
    allowed = jnp.concatenate([there, jnp.tril(jnp.ones((3, 3), bool)) & new_mask[:, None]], axis=2)
    all_keys, all_values = (
        jnp.concatenate([old[1], new], axis=2)
        for old, new in zip(cache, (keys, values), strict=True)
    )
    expected = attend(queries, all_keys, all_values, allowed)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_positions_need_not_begin_anew_with_a_segment():
    """Rotary scores depend on distances: the second of two series is attended to as if alone."""
    module = attention(2)
    x = normal(7, 2, 30, 16)
    segments = jnp.where(jnp.arange(30) < 11, 3, 7)[None].repeat(2, axis=0)
    attend_all = jax.jit(lambda x, segments: module(x, None, segments)[0])
    packed = attend_all(x, segments)
    for part in (slice(0, 11), slice(11, 30)):
        alone = attend_all(x[:, part], None)
        np.testing.assert_allclose(packed[:, part], alone, rtol=0, atol=1e-5)


def test_biases_of_queries_keys_and_values_only():
    module = attention(2)
    assert [m.bias is None for m in (module.query, module.key, module.value, module.out)] == [
        False,
        False,
        False,
        True,
    ]
    assert module.key.kernel.shape == (16, 8)
