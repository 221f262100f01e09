"""Which experts a model uses: hand-computed shares, what does not count, and the pictures."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import TWO_BLOCKS as TINY

from timemoe_jax import ConfigError, DataError, Forecaster, plotting
from timemoe_jax.evaluation import expert_usage
from timemoe_jax.evaluation.expert_pictures import plot_expert_usage
from timemoe_jax.forecasting import device, engine
from timemoe_jax.models.base import create_params
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.nn.experts.routing import route, router_statistics
from timemoe_jax.training import losses

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=4)
SHORT = st.lists(st.integers(1, 16), min_size=1, max_size=4)  # contexts of one size


@pytest.fixture(scope="module")
def forecaster():
    return Forecaster(TINY, create_params(TINY, 0))


def _series(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=n).cumsum() for n in lengths]


def _logits(rows):
    """[[e, ...] per point] -> logits [1, 1, T, 3] whose softmax gives these probabilities."""
    return jnp.log(jnp.asarray(rows, jnp.float32))[None, None]


POINTS = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.7, 0.1, 0.2], [0.2, 0.3, 0.5]]


def test_counts_are_those_by_hand():
    every = jnp.ones((1, 4), bool)
    # First choices 0, 1, 0, 2 and second choices 1, 2, 2, 1.
    sums = expert_usage.usage_sums(_logits(POINTS), every, 2)
    np.testing.assert_array_equal(sums, [[2, 3, 3]])
    weighted = expert_usage.usage_sums(_logits(POINTS), every, 2, weighted=True)
    np.testing.assert_allclose(weighted, [[0.5 + 0.7, 0.3 + 0.6 + 0.3, 0.3 + 0.2 + 0.5]], rtol=1e-5)


@pytest.mark.parametrize("hidden", [0.2, np.nan])
def test_masked_points_do_not_count(hidden):
    logits = _logits(POINTS).at[:, :, 3].set(hidden)
    mask = jnp.array([[True, True, False, False]])
    np.testing.assert_array_equal(expert_usage.usage_sums(logits, mask, 2), [[1, 2, 1]])
    weighted = expert_usage.usage_sums(logits, mask, 2, weighted=True)
    np.testing.assert_allclose(weighted, [[0.5, 0.9, 0.3]], rtol=1e-5)


def test_a_selection_bias_chooses_but_does_not_weigh():
    every, bias = jnp.ones((1, 4), bool), jnp.array([[0.0, 0.0, 1.0]])
    sums = expert_usage.usage_sums(_logits(POINTS), every, 1, bias=bias)
    np.testing.assert_array_equal(sums, [[0, 0, 4]])
    weighted = expert_usage.usage_sums(_logits(POINTS), every, 1, bias=bias, weighted=True)
    np.testing.assert_allclose(weighted, [[0, 0, 0.2 + 0.3 + 0.2 + 0.5]], rtol=1e-5)


def test_usage_is_the_load_that_training_logs(forecaster):
    (x,) = _series(0, [32])
    logits = _router_logits(forecaster, x[None].astype(np.float32), np.ones((1, 32), bool))
    expected = losses.expert_load(router_statistics(logits, TINY.num_experts_per_tok))
    usage = expert_usage.expert_usage(forecaster, x, normalize="none")
    np.testing.assert_allclose(usage, expected, atol=1e-6)
    np.testing.assert_array_equal(
        usage, expert_usage.expert_usage(forecaster.model, x, normalize="none")
    )
    assert usage.std() > 0.05  # the choices of this model are uneven, so that there is something


def test_a_bias_of_the_model_is_used():
    """It decides alone where it is larger than any probability."""
    config = dataclasses.replace(TINY, router_bias=True)
    model = TimeMoe(config, rngs=nnx.Rngs(0))
    model.blocks.ffn.selection_bias[...] = jnp.array([[0.0, 2, 0, 3], [5, 0, 4, 0]])
    (x,) = _series(0, [20])
    expected = [[0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0]]
    np.testing.assert_array_equal(expert_usage.expert_usage(model, x), expected)


@settings(max_examples=12)
@given(st.integers(0, 10**6), SHORT, st.booleans(), st.sampled_from([1, 2]))
def test_shares_sum_to_one_whatever_the_batches(forecaster, seed, lengths, weighted, batch_size):
    series = _series(seed, lengths)
    usage = expert_usage.expert_usage(forecaster, series, weighted=weighted)
    assert usage.shape == (TINY.num_hidden_layers, TINY.num_experts)
    np.testing.assert_allclose(usage.sum(axis=1), 1, rtol=1e-12)
    other = expert_usage.expert_usage(
        forecaster, series[::-1], weighted=weighted, batch_size=batch_size
    )
    # Choices are whole numbers; weights are sums in float32.
    np.testing.assert_allclose(other, usage, atol=1e-5 if weighted else 1e-12)


def _choices(forecaster, series):
    """The experts that each layer of the model chooses at every point [L, T, K]."""
    z = (series - np.nanmean(series)) / (np.nanstd(series) or 1.0)
    # Of one length, so that the model compiles once; no point reads those after it.
    padded = np.pad(z, (0, 32 - len(z)), constant_values=np.nan)[None]
    x, mask = np.nan_to_num(padded).astype(np.float32), ~np.isnan(padded)
    routing = route(_router_logits(forecaster, x, mask), TINY.num_experts_per_tok)
    return np.asarray(routing.indices)[:, 0, : len(z)]


def _router_logits(forecaster, x, mask):
    return _outputs(forecaster.engine.graph, forecaster.engine.params, x, mask).router_logits


@functools.partial(jax.jit, static_argnames="graph")
def _outputs(graph, params, x, mask):
    return nnx.merge(graph, params)(x, mask)


@settings(max_examples=12)
@given(st.integers(0, 10**6), LENGTHS, st.data())
def test_usage_counts_the_choices_of_all_series(forecaster, seed, lengths, data):
    series = _series(seed, lengths)
    for s in series:
        gaps = data.draw(st.sets(st.integers(0, len(s) - 1), max_size=len(s) - 1))
        s[list(gaps)] = np.nan
    counts = np.zeros((TINY.num_hidden_layers, TINY.num_experts))
    for s in series:
        for layer, experts in enumerate(_choices(forecaster, s)):
            counts[layer] += np.bincount(experts[~np.isnan(s)].ravel(), minlength=TINY.num_experts)
    usage = expert_usage.expert_usage(forecaster, series)
    np.testing.assert_allclose(usage, counts / counts.sum(axis=1, keepdims=True), rtol=1e-12)


def test_missing_points_around_a_series_change_nothing(forecaster):
    (x,) = _series(0, [25])
    before = x.copy()
    padded = np.concatenate([np.full(9, np.nan), x, np.full(30, np.nan)])
    np.testing.assert_array_equal(
        expert_usage.expert_usage(forecaster, padded), expert_usage.expert_usage(forecaster, x)
    )
    np.testing.assert_array_equal(x, before)


def test_only_the_context_is_read_and_standardized(forecaster):
    (x,) = _series(0, [60])
    usage = expert_usage.expert_usage(forecaster, x, context_length=20)
    np.testing.assert_array_equal(usage, expert_usage.expert_usage(forecaster, x[-20:]))
    # Powers of two, so that the z-scores are the same bits.
    moved = expert_usage.expert_usage(forecaster, 4 * x[-20:], context_length=20)
    np.testing.assert_array_equal(usage, moved)
    raw = expert_usage.expert_usage(forecaster, 4 * x[-20:], normalize="none")
    assert not np.array_equal(usage, raw)


def test_each_shape_compiles_once(forecaster):
    before = expert_usage._sums_of_batch._cache_size()
    # Of the same structure.
    another = Forecaster(TINY, jax.tree.map(jnp.negative, forecaster.engine.params))
    # No other test has contexts of such lengths.
    for lengths in ([33, 48], [35, 42, 40, 39], [49, 64]):
        for source in (forecaster, another):
            expert_usage.expert_usage(source, _series(0, lengths), batch_size=2)
    # Of two series of at most 48 points, and of at most 64.
    assert expert_usage._sums_of_batch._cache_size() - before == 2


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(device, "_free_bytes", lambda: 2**32)
    published = dataclasses.replace(
        TINY, hidden_size=1024, num_hidden_layers=36, max_position_embeddings=4096
    )
    programs = Forecaster(published, nnx.State({})).engine
    groups = [engine._Group(length, 0) for length in (256, 512, 4096)]
    sizes = [programs._batch_size("auto", group) for group in groups]
    assert sizes[0] > sizes[1] > sizes[2] >= 1
    assert all(math.log2(size).is_integer() for size in sizes)


def test_a_dense_model_is_refused():
    model = TimeMoe(dataclasses.replace(TINY, use_dense=True), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="the model is dense: it has no experts"):
        expert_usage.expert_usage(model, np.arange(9.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 0}, "context_length must be an integer of at least 1, but is 0"),
        ({"context_length": 5000}, "context_length 5000 exceeds max_position_embeddings 4096"),
        ({"normalize": "zscore"}, "normalize must be none or instance, but is 'zscore'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, but is 0"),
        ({"context_length": 2}, "b has no observed value among its last 2 points"),
    ],
)
def test_bad_arguments_are_named(forecaster, options, message):
    series = [np.arange(9.0), np.array([1.0, np.nan, np.nan])]
    with pytest.raises(DataError, match=message):
        expert_usage.expert_usage(forecaster, series, names=["a", "b"], **options)


def test_logits_that_are_not_finite_are_an_error(forecaster):
    series = [np.arange(9.0), 1e300 * np.arange(1.0, 9.0)]
    with pytest.raises(DataError, match=r"the router of series 1 is not finite; .*try 'instance'"):
        expert_usage.expert_usage(forecaster, series, normalize="none")
    np.testing.assert_allclose(expert_usage.expert_usage(forecaster, series).sum(axis=1), 1)
    broken = Forecaster(TINY, jax.tree.map(lambda p: p * jnp.nan, create_params(TINY, 0)))
    with pytest.raises(DataError, match=r"the router of .* parameters are not finite"):
        expert_usage.expert_usage(broken, np.arange(9.0))


def _lacking(path, colors):
    """Which of some colors no pixel of a picture has, up to rounding."""
    image = np.round(255 * matplotlib.image.imread(path)[..., :3]).astype(int)
    seen = np.zeros((258, 258, 258), bool)  # with room for a rounding of one level
    shades = np.unique((image * [1 << 16, 1 << 8, 1]).sum(axis=-1))
    seen[(shades >> 16) + 1, (shades >> 8 & 255) + 1, (shades & 255) + 1] = True
    wanted = np.round(255 * np.array(colors)[:, :3]).astype(int)
    return [c for c in wanted if not seen[tuple(slice(v, v + 3) for v in c)].any()]


def test_the_map_of_usage_has_the_extremes_of_its_scale(tmp_path):
    even = np.full((3, 4), 0.25)
    skewed = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0, 0.5, 0.5, 0]])
    shown = plot_expert_usage(tmp_path / "deep" / "u.png", {"a": even, "b": skewed})
    # Viridis at 0 and 1, and the even share of both, as one scale has it.
    lut = matplotlib.colormaps["viridis"]
    assert not _lacking(shown, [lut(0.0), lut(0.25), lut(1.0)])
    assert _lacking(shown, [(1, 0, 0)])


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_map_for_each_dataset_and_one_mark(tmp_path, monkeypatch, count):
    drawn = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    usage = {f"data set {i} $": np.full((12, 8), 0.125) for i in range(count)}
    plot_expert_usage(tmp_path / "u.png", usage)
    *maps, bar = drawn[0].axes
    assert [ax.get_title("left") for ax in maps if ax.images] == list(usage)
    assert {ax.images[0].get_clim() for ax in maps if ax.images} == {(0, 0.25)}
    assert "12.5% (even)" in [label.get_text() for label in bar.get_yticklabels()]
    assert all(list(line.get_ydata()) == [0.125, 0.125] for line in bar.lines[-2:])


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ({}, "usage is empty"),
        ({"a": np.ones(3)}, r"usage of 'a' must be shares \[L, E\] , but has shape \(3,\)"),
        ({"a": np.ones((2, 3)), "b": np.ones((3, 2))}, r"usage of 'b' .* \(2, 3\), but has shape"),
        ({"a": np.full((2, 3), np.nan)}, "usage of 'a' must hold shares from 0 to 1"),
    ],
)
def test_usage_that_cannot_be_drawn(tmp_path, usage, message):
    with pytest.raises(DataError, match=message):
        plot_expert_usage(tmp_path / "u.png", usage)
    assert not (tmp_path / "u.png").exists()
