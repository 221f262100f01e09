"""What must hold for the whole model, whatever its weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TWO_BLOCKS as TINY

from timemoe_jax.models.base import ModelOutput, abstract_model, count_parameters, create_params
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.training import losses

B, T = 2, 21
VARIANTS = {
    "blocked": dataclasses.replace(TINY, expert_implementation="blocked"),
    "experts dense": dataclasses.replace(TINY, expert_implementation="dense"),
    "use_dense": dataclasses.replace(TINY, use_dense=True),
}
BIASED = dataclasses.replace(TINY, router_bias=True)


def params_of(config: TimeMoeConfig) -> nnx.State:
    """The same for all ways to compute one model."""
    return _created(dataclasses.replace(config, expert_implementation="auto", remat="none"))


@functools.cache
def _created(config: TimeMoeConfig) -> nnx.State:
    return create_params(config, seed=1)


@functools.cache
def run_of(config: TimeMoeConfig):
    """The compiled model; the mask and the segments may be None."""
    graph, _ = abstract_model(config)
    return jax.jit(lambda params, *args: nnx.merge(graph, params)(*args))


def run(config: TimeMoeConfig, x, mask=None, segments=None) -> ModelOutput:
    mask = None if mask is None else jnp.asarray(mask)
    return run_of(config)(params_of(config), jnp.asarray(x, jnp.float32), mask, segments)


@functools.cache
def loss_and_gradient(config: TimeMoeConfig) -> tuple[jax.Array, nnx.State]:
    """Of every head over the observed points of a series with gaps."""
    graph, _ = abstract_model(config)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T)), jnp.float32)
    mask = jnp.ones((B, T), bool).at[0, :6].set(False).at[1, 9].set(False)

    def loss(params: nnx.State) -> jax.Array:
        output = nnx.merge(graph, params)(x[:, :-1], mask[:, :-1])
        counted = mask[:, 1:].astype(jnp.float32)
        return sum(
            losses.forecast_losses(
                output.predictions, losses.Targets(x[:, 1:], counted), delta=2.0
            ).values()
        )

    return jax.jit(jax.value_and_grad(loss))(params_of(config))


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T)).astype(np.float32)


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def config(request: pytest.FixtureRequest) -> TimeMoeConfig:
    return VARIANTS[request.param]


def test_output(config, series):
    output = run(config, series)
    assert {p: v.shape for p, v in output.predictions.items()} == {1: (B, T, 1), 4: (B, T, 4)}
    assert all(v.dtype == jnp.float32 for v in output.predictions.values())
    assert output.hidden.shape == (B, T, 16)
    if config.use_dense:
        assert output.router_logits is None
        assert output.dropped is None
    else:
        assert output.router_logits.shape == (2, B, T, 4)
        assert np.abs(output.router_logits[0] - output.router_logits[1]).max() > 1e-3
        np.testing.assert_array_equal(output.dropped, [0, 0])


@given(cut=st.integers(1, T - 1), seed=st.integers(0, 2**16))
def test_the_future_never_changes_the_past(config, series, cut, seed):
    future = np.random.default_rng(seed).normal(size=(B, T - cut)) * 3
    changed = np.concatenate([series[:, :cut], future], axis=1)
    before, after = run(config, series), run(config, changed)
    for p in config.horizon_lengths:
        difference = np.abs(before.predictions[p] - after.predictions[p])
        # Rows stand elsewhere in the experts' blocks: the order of a sum may change.
        assert difference[:, :cut].max() < 1e-5
        assert difference[:, cut:].max() > 1e-3


@given(seed=st.integers(0, 2**16), junk=st.sampled_from([np.nan, np.inf, 1e30, -5.0]))
def test_what_is_stored_at_masked_points_does_not_matter(config, series, seed, junk):
    mask = np.random.default_rng(seed).random((B, T)) < 0.7
    before = run(config, np.where(mask, series, 0.0), mask)
    after = run(config, np.where(mask, series, junk), mask)
    for p in config.horizon_lengths:
        assert np.isfinite(after.predictions[p]).all()
        np.testing.assert_array_equal(before.predictions[p][mask], after.predictions[p][mask])


def assert_segments_stand_alone(config: TimeMoeConfig, series: np.ndarray) -> None:
    """Whatever the number of a segment, where it stands, and what stands before it."""
    segments = jnp.asarray(np.repeat([[5, 2, 9]], T // 3, axis=1).repeat(B, axis=0))
    output = run(config, series, None, segments)
    for start in range(0, T, T // 3):
        part = slice(start, start + T // 3)
        alone = run(dataclasses.replace(config, remat="none"), series[:, part])
        for p in config.horizon_lengths:
            found = output.predictions[p][:, part]
            np.testing.assert_allclose(found, alone.predictions[p], rtol=0, atol=1e-5)


def test_a_segment_is_predicted_as_if_it_stood_alone(config, series):
    assert_segments_stand_alone(config, series)


def test_so_is_a_segment_of_a_model_that_rematerializes(series):
    assert_segments_stand_alone(dataclasses.replace(VARIANTS["use_dense"], remat="full"), series)


def test_left_padding_does_not_matter(config, series):
    """Rotary positions are relative, so that a shift with masked padding changes nothing."""
    padding = 7
    padded = np.pad(series, ((0, 0), (padding, 0)), constant_values=9.0)
    mask = np.pad(np.ones((B, T), bool), ((0, 0), (padding, 0)))
    alone, shifted = run(config, series), run(config, padded, mask)
    for p in config.horizon_lengths:
        np.testing.assert_allclose(
            shifted.predictions[p][:, padding:], alone.predictions[p], rtol=0, atol=1e-5
        )
    unmasked = run(config, padded, np.ones_like(mask))
    assert np.abs(unmasked.predictions[4][:, -1] - alone.predictions[4][:, -1]).max() > 1e-3


def test_no_mask_is_a_mask_of_ones(config, series):
    a, b = run(config, series), run(config, series, np.ones((B, T), bool))
    np.testing.assert_allclose(a.hidden, b.hidden, rtol=0, atol=1e-6)


def test_a_series_does_not_depend_on_its_batch(config, series):
    both, one = run(config, series), run(config, series[1:])
    np.testing.assert_allclose(both.hidden[1:], one.hidden, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "total", "activated"),
    [
        ((384, 1536, 12, 12), 113_352_192, 49_651_200),
        ((768, 3072, 12, 12), 453_196_800, 198_392_832),
        ((1024, 4096, 36, 16), 2_416_545_792, 1_057_591_296),
    ],
    ids=["base", "large", "ultra"],
)
def test_parameter_counts_of_the_published_models(sizes, total, activated):
    hidden, intermediate, layers, heads = sizes
    config = TimeMoeConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    assert count_parameters(config) == (total, activated)


def test_the_default_is_the_published_base_model():
    assert count_parameters(TimeMoeConfig()) == (113_352_192, 49_651_200)


def test_a_dense_model_activates_everything():
    total, activated = count_parameters(VARIANTS["use_dense"])
    assert (
        total == activated == sum(p.size for p in jax.tree.leaves(params_of(VARIANTS["use_dense"])))
    )


@pytest.mark.parametrize("k", [1, 3, 4])
def test_other_numbers_of_experts_per_token(k):
    loss, gradient = loss_and_gradient(dataclasses.replace(TINY, num_experts_per_tok=k))
    assert np.isfinite(loss)
    assert gradient["blocks"]["ffn"]["experts"]["gate"].shape == (2, 4, 16, 24 // k)
    for path, g in nnx.to_flat_state(gradient):
        assert np.isfinite(g[...]).all(), path
        assert np.abs(g[...]).max() > 0, path


def test_a_selection_bias_exists_only_if_asked_for(series):
    """And changes nothing as long as it is the zeros it starts as."""
    plain, biased = (dict(nnx.to_flat_state(params_of(config))) for config in (TINY, BIASED))
    extra = biased.keys() - plain.keys()
    assert extra == {("blocks", "ffn", "selection_bias")}
    assert not plain.keys() - biased.keys()
    np.testing.assert_array_equal(biased[extra.pop()][...], np.zeros((2, 4)))
    for path, p in plain.items():
        np.testing.assert_array_equal(p[...], biased[path][...])
    a, b = run(VARIANTS["blocked"], series), run(BIASED, series)
    np.testing.assert_allclose(a.hidden, b.hidden, rtol=0, atol=1e-6)


def test_a_selection_bias_of_one_layer_sends_its_tokens_elsewhere(series):
    """The first layer's logits are those of before, since only the choice behind them differs."""
    params = create_params(BIASED, seed=1)
    bias = jnp.zeros((2, 4)).at[0, 3].set(5.0)
    params["blocks"]["ffn"]["selection_bias"][...] = bias
    before = run(BIASED, series)
    after = run_of(BIASED)(params, jnp.asarray(series), None, None)
    np.testing.assert_array_equal(before.router_logits[0], after.router_logits[0])
    assert np.abs(before.router_logits[1] - after.router_logits[1]).max() > 1e-2


@pytest.mark.parametrize("policy", ["full", "products"])
def test_rematerialization_changes_nothing(policy):
    plain = dataclasses.replace(TINY, num_experts_per_tok=3)
    results = [loss_and_gradient(c) for c in (plain, dataclasses.replace(plain, remat=policy))]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_rematerialization_keeps_less_for_the_backward_pass(series):
    """Otherwise `remat` would be a flag that does nothing."""

    def saved(remat: str) -> int:
        config = dataclasses.replace(TINY, remat=remat)
        graph, params = abstract_model(config)
        run = lambda params: nnx.merge(graph, params)(jnp.asarray(series)).hidden.sum()  # noqa: E731
        _, pullback = jax.eval_shape(lambda p: jax.vjp(run, p), params)
        return sum(a.size for a in jax.tree.leaves(pullback))

    assert saved("full") < saved("products") < saved("none")


def test_bfloat16_stays_close_to_float32(series):
    """Each of the two layers rounds about ten times in a row, by at most 2^-9."""
    config = dataclasses.replace(TINY, dtype="bfloat16")
    _, params = abstract_model(config)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    rounded = run_of(config)(params_of(TINY), jnp.asarray(series), None, None)
    exact = run(VARIANTS["blocked"], series)
    assert rounded.hidden.dtype == jnp.bfloat16
    assert rounded.router_logits.dtype == jnp.float32
    for p in config.horizon_lengths:
        assert rounded.predictions[p].dtype == jnp.float32
        error = np.linalg.norm(rounded.predictions[p] - exact.predictions[p])
        assert 0 < error / np.linalg.norm(exact.predictions[p]) < 20 * 2**-9


def test_other_horizons(series):
    config = dataclasses.replace(VARIANTS["use_dense"], horizon_lengths=(3, 7, 11))
    predictions = run(config, series).predictions
    assert {p: v.shape[-1] for p, v in predictions.items()} == {3: 3, 7: 7, 11: 11}


def test_depth_does_not_grow_the_program(series):
    """One layer is traced, however many there are."""

    def lines(layers: int) -> int:
        graph, params = abstract_model(dataclasses.replace(TINY, num_hidden_layers=layers))
        jaxpr = jax.make_jaxpr(lambda p, x: nnx.merge(graph, p)(x).predictions)(params, series)
        return str(jaxpr).count(" = ")

    assert lines(2) == lines(9) > 50


@pytest.fixture(scope="module")
def initial() -> dict[str, np.ndarray]:
    config = TimeMoeConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return {
        ".".join(map(str, path)): np.asarray(p[...])
        for path, p in nnx.to_flat_state(create_params(config, seed=0))
    }


def test_initial_biases_and_norms(initial):
    biases = [name for name in initial if name.endswith("bias")]
    scales = [name for name in initial if name.endswith("scale")]
    assert len(biases) == 3
    assert len(scales) == 3
    assert all(not initial[name].any() for name in biases)
    assert all((initial[name] == 1).all() for name in scales)


def test_initial_kernels_are_normal(initial):
    """Mean 0 and deviation 0.02, within five standard errors of each."""
    kernels = {n: v for n, v in initial.items() if not n.endswith(("bias", "scale"))}
    assert len(kernels) == 2 + 4 + 1 + 3 + 3 + 1 + 4
    for name, kernel in kernels.items():
        assert abs(kernel.mean()) < 5 * 0.02 / np.sqrt(kernel.size), name
        assert abs(kernel.std() / 0.02 - 1) < 5 / np.sqrt(2 * kernel.size), name


def test_initial_kernels_differ_between_layers_and_parts(initial):
    kernels = [v for n, v in initial.items() if n.startswith("blocks") and n.endswith("kernel")]
    first = [layer.reshape(-1)[:8] for kernel in kernels for layer in kernel]
    assert len({tuple(v) for v in first}) == len(first)
    experts = initial["blocks.ffn.experts.gate"].reshape(24, -1)
    assert len({tuple(v[:8]) for v in experts}) == 24


def test_the_seed_decides():
    config = VARIANTS["use_dense"]
    a, b, c = params_of(config), create_params(config, seed=1), create_params(config, seed=2)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a["embed"]["gate"][...] != c["embed"]["gate"][...]).any()
