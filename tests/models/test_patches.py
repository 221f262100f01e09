"""Patches of points as tokens: one position for each, the same forecasts however they are read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TWO_BLOCKS

from timemoe_jax.checkpoints.load import save_model
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import abstract_model, create_params, family_of
from timemoe_jax.models.decoding import decode_uncached
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.models.time_moe.published import TimeMoeFormat
from timemoe_jax.nn import copies
from timemoe_jax.runtime import partitioning
from timemoe_jax.training.config import RunConfig, TrainConfig
from timemoe_jax.training.start import start_or_resume

PATCHED = dataclasses.replace(
    TWO_BLOCKS,
    use_dense=True,
    patch_size=4,
    horizon_lengths=(4, 8),
    quantile_levels=(0.1, 0.5, 0.9),
    point_heads=False,
    asinh=True,
)
FAMILY = family_of(PATCHED)
COPYING = dataclasses.replace(PATCHED, asinh=False, copy_lags=16, anchored=True, weighed=True)
UNWEIGHED = dataclasses.replace(COPYING, weighed=False)


@functools.cache
def model(config: TimeMoeConfig = PATCHED) -> TimeMoe:
    """Its copies count, whose weights would start at 0."""
    params = create_params(config, 1)
    if config.copy_lags:
        flat = dict(nnx.to_flat_state(params))
        for path in flat:
            if path[0] in ("copy_embed", "copy_heads", "anchor_heads", "weigh_heads"):
                drawn = jax.random.normal(jax.random.key(2), flat[path].shape)
                flat[path] = flat[path].replace(0.1 * drawn)
        params = nnx.from_flat_state(list(flat.items()))
    return nnx.merge(abstract_model(config)[0], params)


@functools.cache
def decoded(cached: bool, config: TimeMoeConfig = PATCHED):
    whole = model(config)
    if cached:
        return jax.jit(lambda x, mask: FAMILY.decode(whole, x, mask, 21))
    return jax.jit(lambda x, mask: decode_uncached(whole, x, mask, 21, config.patch_size))


@functools.cache
def outputs(config: TimeMoeConfig = PATCHED):
    whole = model(config)
    return jax.jit(lambda x, mask: whole(x, mask).predictions[8])


def contexts(length: int = 26) -> tuple[np.ndarray, np.ndarray]:
    """Of which one begins late and one has a gap, patches and parts of them."""
    x = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32)
    mask = np.ones(x.shape, bool)
    mask[1, :9] = mask[2, 5:8] = mask[2, 12:19] = False
    return x, mask


def assert_said_alike(a, b):
    """Within rounding of what the heads say, whose sinh the values are.

    The third read of heads goes on from two that were rounded.
    """
    np.testing.assert_allclose(np.arcsinh(a), np.arcsinh(b), rtol=1e-4, atol=1e-4)


EITHER = pytest.mark.parametrize("config", [PATCHED, COPYING], ids=["plain", "copies"])


@EITHER
def test_a_cache_of_patches_changes_no_forecast(config):
    """Of three reads of heads, which go on in whole patches."""
    x, mask = contexts()
    cached, uncached = (decoded(kind, config)(x, mask) for kind in (True, False))
    assert cached.point.shape == (3, 21)
    for a, b in zip(cached, uncached, strict=True):
        assert_said_alike(a, b)


@EITHER
def test_padding_on_the_left_changes_nothing(config):
    """By any number of points: the last patch ends with the last point."""
    x, mask = contexts()
    wide, wide_mask = (np.pad(a, ((0, 0), (3, 0))) for a in (x, mask))
    decode = decoded(True, config)
    for a, b in zip(decode(x, mask), decode(wide, wide_mask), strict=True):
        assert_said_alike(a, b)


@EITHER
def test_what_is_missing_is_not_read(config):
    x, mask = contexts()
    junk = np.where(mask, x, 1e6).astype(np.float32)
    decode = decoded(True, config)
    for a, b in zip(decode(x, mask), decode(junk, mask), strict=True):
        np.testing.assert_array_equal(a, b)


@EITHER
def test_a_position_ends_a_patch_and_sees_nothing_after_it(config):
    """Position n predicts after point 4 (n + 1): it changes with that point, not with the next."""
    x, _ = contexts(24)
    every = np.ones(x.shape, bool)
    said = outputs(config)(x, every)
    assert said.shape == (3, 6, 8)
    for point, first in ((11, 2), (12, 3)):
        moved = x.copy()
        moved[:, point] += 1
        changed = np.abs(outputs(config)(moved, every) - said).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(changed, np.arange(6) >= first)


@EITHER
def test_the_first_steps_of_heads_are_computed_alone_where_no_more_are_asked_for(config):
    x, mask = map(jnp.asarray, contexts(24))
    whole, part = model(config), nnx.merge(*nnx.split(model(config)))
    part.most_steps = 6
    hidden, of_part = whole(x, mask).hidden, part(x, mask)
    assert of_part.predictions[8].shape == (3, 6, 6)
    for horizon, steps in ((8, 6), (4, 4)):
        said = part.quantile_head(of_part.hidden, horizon)
        assert said.shape == (3, 6, steps, 3)
        assert_said_alike(said, whole.quantile_head(hidden, horizon)[..., :steps, :])


def test_the_point_forecast_is_the_median():
    found = decoded(True)(*contexts())
    np.testing.assert_array_equal(found.point, found.quantiles[..., 1])
    assert (np.diff(found.quantiles, axis=-1) >= 0).all()


def test_quantiles_are_sinh_of_what_the_heads_say():
    hidden = jax.random.normal(jax.random.key(0), (5, PATCHED.hidden_size))
    said = model().squashed_quantiles(hidden, 4)
    np.testing.assert_allclose(model().quantile_head(hidden, 4), jnp.sinh(said), rtol=1e-6)
    np.testing.assert_allclose(model().head(hidden, 4), jnp.sinh(said[..., 1]), rtol=1e-6)
    far = model().quantile_head(1e4 * hidden, 4)
    assert np.isfinite(far).all()


def test_a_forecaster_reads_any_length_and_gives_its_own_bands():
    forecaster = Forecaster(PATCHED, create_params(PATCHED, 1))
    series = [np.sin(np.arange(n)) for n in (8, 21, 40)]
    out = forecaster.forecast(series, 6, quantile_levels=[0.1, 0.5, 0.9])
    alone = forecaster.forecast([series[1]], 6, quantile_levels=[0.1, 0.5, 0.9])
    np.testing.assert_allclose(out.quantiles[1], alone.quantiles[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.point, out.quantiles[..., 1])
    assert not forecaster.engine.reads_along(0, 6)


def test_a_run_goes_on_with_shorter_patches(tmp_path):
    """Each is read as the end of a longer one whose first points are missing; all else stays.

    So of a single patch it says what the longer one said of a patch half missing.
    """
    longer = dataclasses.replace(PATCHED, horizon_lengths=(8, 16))
    source = create_params(longer, 1)
    save_model(tmp_path / "longer", longer, source)

    def start(**fields) -> nnx.State:
        run = RunConfig(
            model=dataclasses.replace(longer, **fields),
            data=DataConfig(synthetic_sequences=5, synthetic_length=60, length=16, future=16),
            train=TrainConfig(init_from=str(tmp_path / "longer")),
        )
        mesh = partitioning.make_mesh(run.mesh, jax.devices()[:1])
        return start_or_resume(run, mesh, Checkpoints(tmp_path / "run"), batches=None).params

    x = jnp.asarray(contexts(4)[0])
    half = jnp.tile(jnp.arange(4) >= 2, (3, 1))
    params = start(patch_size=2, rope_theta=50.0)
    shorter = dataclasses.replace(longer, patch_size=2, rope_theta=50.0)
    one = nnx.merge(abstract_model(shorter)[0], params)(x[:, 2:]).predictions[8]
    other = nnx.merge(abstract_model(longer)[0], source)(x, half).predictions[8]
    assert_said_alike(one, other)
    old = dict(nnx.to_flat_state(source))
    for path, value in nnx.to_flat_state(params):
        if path[0] != "patch_embed":
            np.testing.assert_array_equal(value[...], old[path][...])
    for size in (1, 8):
        with pytest.raises(ConfigError, match=f"model.patch_size is {size}, but .* of 4"):
            start(patch_size=size)


def test_a_run_goes_on_with_copies_that_say_nothing_yet(tmp_path):
    """The parameters that read them start at 0."""
    plain = dataclasses.replace(UNWEIGHED, copy_lags=0, anchored=False)
    save_model(tmp_path / "plain", plain, create_params(plain, 1))
    run = RunConfig(
        model=UNWEIGHED,
        data=DataConfig(synthetic_sequences=5, synthetic_length=60, length=16, future=16),
        train=TrainConfig(init_from=str(tmp_path / "plain")),
    )
    mesh = partitioning.make_mesh(run.mesh, jax.devices()[:1])
    params = start_or_resume(run, mesh, Checkpoints(tmp_path / "run"), batches=None).params
    x, mask = contexts(24)
    started = nnx.merge(abstract_model(UNWEIGHED)[0], params)
    said = started(jnp.asarray(x), jnp.asarray(mask)).predictions[8]
    np.testing.assert_allclose(said, outputs(plain)(x, mask), rtol=1e-4, atol=1e-5)


def test_a_forecast_begins_from_its_anchors_by_factors_that_fade():
    """With factors that are biases alone: of the last value, and of what a copy missed it by."""
    flat = dict(nnx.to_flat_state(create_params(UNWEIGHED, 1)))
    without = nnx.merge(abstract_model(UNWEIGHED)[0], nnx.from_flat_state(list(flat.items())))
    path = ("anchor_heads", "8", "bias")
    fades = (1.0, 4.0, 16.0, 64.0, 256.0, np.inf)
    weights = jnp.zeros((2, 6)).at[0, 5].set(0.5).at[1, 1].set(2.0)
    flat[path] = flat[path].replace(weights.reshape(-1))
    anchored = nnx.merge(abstract_model(UNWEIGHED)[0], nnx.from_flat_state(list(flat.items())))
    x, mask = contexts(24)
    mask[0, -1] = False
    found = copies.find(jnp.asarray(x), jnp.asarray(mask), None, 4, 16)
    said, before = (
        m(jnp.asarray(x), jnp.asarray(mask)).predictions[8] for m in (anchored, without)
    )
    last, missed = np.moveaxis(np.asarray(found.anchors), -1, 0)
    np.testing.assert_array_equal(last[:, -1], [x[0, -2], x[1, -1], x[2, -1]])
    added = 0.5 * last[..., None] + 2 * missed[..., None] * np.exp(-np.arange(8) / fades[1])
    np.testing.assert_allclose(said - before, added, atol=1e-5)


def test_a_weighed_model_goes_on_with_what_never_changed():
    """A model of random weights, whatever it says, stays near a level and a night that is dark."""
    t = np.arange(64)
    days = np.where(t % 16 < 8, 0.0, 2.0 + 0.1 * np.random.default_rng(1).normal(size=64))
    x = np.stack([np.full(64, 0.3), days]).astype(np.float32)
    mask = np.ones(x.shape, bool)
    params = create_params(COPYING, 1)
    said, unsaid = (
        nnx.merge(abstract_model(config)[0], given)(jnp.asarray(x), jnp.asarray(mask))
        for config, given in ((COPYING, params), (UNWEIGHED, without(params, "weigh_heads")))
    )
    np.testing.assert_allclose(said.predictions[8][0, -1], 0.3, atol=0.02)
    off, far_off = (np.abs(np.asarray(m.predictions[8])[1, -1]).mean() for m in (said, unsaid))
    assert off < 0.35 * far_off


def without(params, name: str):
    flat = {path: v for path, v in nnx.to_flat_state(params) if path[0] != name}
    return nnx.from_flat_state(list(flat.items()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weighed": True}, "weighed is True, but copy_lags is 0"),
        ({"anchored": True}, "anchored is True, but copy_lags is 0"),
        ({"copy_lags": 16}, "copy_lags is 16; it must be 0, or a multiple of a patch_size"),
        ({"asinh": False, "copy_lags": 6}, "copy_lags is 6"),
        (
            {"asinh": False, "patch_size": 12, "copy_lags": 24, "horizon_lengths": (12,)},
            "patch_size is 12, but with copy_lags it must divide 32",
        ),
        ({"horizon_lengths": (4, 6)}, r"horizon_lengths must be multiples of patch_size \(4\)"),
        ({"quantile_levels": (0.1, 0.9)}, r"point_heads is False.*lack 0.5"),
        ({"point_heads": True}, "asinh is True, and point_heads too"),
        ({"embedding_range": (1.0, 1.0)}, "embedding_range is .* but patch_size 4"),
        ({"patch_size": 0}, "patch_size must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PATCHED, **fields)


def test_the_published_format_has_no_patches():
    with pytest.raises(ConfigError, match="patch_size is 4"):
        TimeMoeFormat().write_config(TimeMoeConfig(patch_size=4, horizon_lengths=(4,)))
