"""Augmentations: what each does to series that are easy to follow, and what none may do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.generators.augmentations import (
    AmplitudeWarp,
    Augmentation,
    Censor,
    Compose,
    MissingSpells,
    Quantize,
    Resample,
    Spikes,
    TimeWarp,
)
from timemoe_jax.errors import DataError

ALL = (AmplitudeWarp, TimeWarp, Resample, Censor, Quantize, MissingSpells, Spikes)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def waves(count: int = 20, length: int = 200) -> np.ndarray:
    phase = np.linspace(0, 1, count)[:, None]
    values = np.sin(2 * np.pi * (np.arange(length) / 40 + phase)) + 0.01 * np.arange(length)
    return (10 + 3 * values).astype(np.float32)


@pytest.mark.parametrize("kind", ALL)
class TestEveryAugmentation:
    def test_it_is_seeded_and_leaves_its_input_alone(self, kind):
        values = waves()
        before = values.copy()
        first = kind()(rng(1), values)
        np.testing.assert_array_equal(values, before)
        assert first.shape == values.shape
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, kind()(rng(1), values))
        assert not np.array_equal(first, kind()(rng(2), values), equal_nan=True)
        assert not np.array_equal(first, values, equal_nan=True)

    def test_it_applies_to_a_share_of_the_series(self, kind):
        values = waves(400)
        np.testing.assert_array_equal(kind(probability=0.0)(rng(), values), values)
        out = kind(probability=0.3)(rng(), values)
        changed = np.any((out != values) & ~(np.isnan(out) & np.isnan(values)), axis=1)
        assert 0.1 < changed.mean() < 0.4

    def test_missing_and_constant_series_are_no_trouble(self, kind):
        values = waves(4)
        values[0] = np.nan
        values[1, ::7] = np.nan
        values[2] = 5.0
        out = kind()(rng(), values)
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1]).any()
        assert not np.isinf(out).any()
        known = out[2][~np.isnan(out[2])]
        np.testing.assert_allclose(known, 5.0, rtol=1e-6)

    def test_wrong_shapes_and_probabilities(self, kind):
        for wrong in (np.zeros(5), np.zeros((2, 1)), np.zeros((1, 2, 3))):
            with pytest.raises(DataError, match="shape"):
                kind()(rng(), wrong)
        with pytest.raises(DataError, match="probability is 2"):
            kind(probability=2)

    def test_no_series_is_not_an_error(self, kind):
        assert kind()(rng(), np.zeros((0, 10))).shape == (0, 10)


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (AmplitudeWarp, {"knots": 1}, "knots"),
        (TimeWarp, {"strength": -1}, "strength"),
        (Resample, {"factor": (0, 2)}, "factor"),
        (Resample, {"factor": (3, 2)}, "factor"),
        (Censor, {"share": (0.5, 1.0)}, "share"),
        (Quantize, {"levels": (1, 5)}, "levels"),
        (MissingSpells, {"share": (-0.1, 0.5)}, "share"),
        (MissingSpells, {"spell": (0.5, 5)}, "spell"),
        (Spikes, {"rate": (0.1, 2)}, "rate"),
        (Spikes, {"size": -1}, "size"),
    ],
)
def test_parameters_out_of_range_are_named(kind, arguments, name):
    with pytest.raises(DataError, match=name):
        kind(**arguments)


def test_amplitude_warp_scales_about_the_mean():
    values = waves()
    out = AmplitudeWarp(strength=0.5)(rng(), values).astype(np.float64)
    mean = values.mean(axis=1, keepdims=True, dtype=np.float64)
    gain = (out - mean) / (values - mean)
    firm = np.abs(values - mean) > 0.5
    assert np.all(gain[firm] > 0)
    assert np.std(np.log(gain[firm])) == pytest.approx(0.4, abs=0.15)
    np.testing.assert_allclose(AmplitudeWarp(strength=0)(rng(), values), values, rtol=1e-6)


def test_time_warp_keeps_the_ends_and_the_order():
    """Of a line it shows the clock itself."""
    line = np.tile(np.arange(100.0), (30, 1))
    out = TimeWarp(strength=0.5)(rng(), line)
    np.testing.assert_allclose(out[:, 0], 0, atol=1e-4)
    np.testing.assert_allclose(out[:, -1], 99, rtol=1e-5)
    assert np.all(np.diff(out, axis=1) > 0)
    assert np.abs(out - line).max() > 3
    np.testing.assert_allclose(TimeWarp(strength=0)(rng(), line), line, atol=1e-4)


def test_resampling_up_reads_a_part_slower():
    line = np.tile(np.arange(101.0), (20, 1))
    out = Resample(factor=(4, 4))(rng(), line)
    np.testing.assert_allclose(np.diff(out, axis=1), 0.25, atol=1e-4)
    assert out.min() >= 0
    assert out.max() <= 100
    assert len(np.unique(out[:, 0])) == 20


def test_resampling_down_averages():
    """Over bins of 4: a wave of that period vanishes, a line stays between the bins' centers."""
    t = np.arange(80)
    values = np.stack([np.cos(np.pi * t / 2), t.astype(float)])
    out = Resample(factor=(0.25, 0.25))(rng(), values)
    np.testing.assert_allclose(out[0], 0, atol=1e-6)
    np.testing.assert_allclose(out[1, 2:78], t[2:78], atol=1e-4)
    np.testing.assert_allclose(out[1, :2], 1.5)


def test_censoring_clips_the_share_from_one_side():
    values = rng().permuted(np.tile(np.arange(1000.0), (60, 1)), axis=1)
    out = Censor(share=(0.2, 0.2))(rng(), values)
    above = out.max(axis=1) < 900
    below = out.min(axis=1) > 100
    assert np.all(above ^ below)
    assert 10 < above.sum() < 50
    assert np.mean(out != values) == pytest.approx(0.2, abs=0.002)


def test_quantizing_leaves_so_many_levels():
    out = Quantize(levels=(9, 9))(rng(), waves())
    assert {len(np.unique(row)) for row in out} == {9}
    np.testing.assert_allclose(out.min(axis=1), waves().min(axis=1), rtol=1e-6)
    np.testing.assert_allclose(out.max(axis=1), waves().max(axis=1), rtol=1e-6)
    step = np.ptp(waves(), axis=1, keepdims=True) / 8
    assert np.all(np.abs(out - waves()) <= step / 2 * 1.001)


@pytest.mark.parametrize(("share", "spell"), [(0.1, 1.2), (0.3, 10.0), (0.05, 40.0)])
def test_missing_spells_have_the_share_and_the_length(share, spell):
    out = MissingSpells(share=(share, share), spell=(spell, spell))(rng(), np.ones((400, 2000)))
    missing = np.isnan(out)
    assert missing.mean() == pytest.approx(share, rel=0.12)
    assert missing[:, 0].mean() == pytest.approx(share, abs=0.05)
    starts = np.sum(missing[:, 1:] & ~missing[:, :-1])
    assert missing[:, 1:].sum() / starts == pytest.approx(spell, rel=0.1)


def test_spikes_are_few_and_far():
    values = waves(200)
    out = Spikes(rate=(0.01, 0.01), size=8.0)(rng(), values)
    hit = np.abs(out - values) > 1e-3
    assert hit.mean() == pytest.approx(0.01, rel=0.15)
    size = (out - values)[hit] / np.std(values, axis=1).mean()
    assert np.std(size) == pytest.approx(8, rel=0.2)


def test_composing_applies_steps_in_order():
    values = waves()
    steps = (Quantize(levels=(5, 5)), MissingSpells(share=(0.2, 0.2)))
    out = Compose(steps)(rng(), values)
    assert all(len(np.unique(row[~np.isnan(row)])) <= 5 for row in out)
    assert np.isnan(out).mean() > 0.05
    np.testing.assert_array_equal(Compose(())(rng(), values), values)


@given(
    seed=st.integers(0, 1000),
    length=st.integers(2, 40),
    offset=st.floats(-1e6, 1e6),
    gaps=st.floats(0, 1),
)
def test_any_chain_keeps_shape_and_finiteness(seed, length, offset, gaps):
    draw = rng(seed)
    values = draw.standard_normal((3, length)) + offset
    values[draw.random(values.shape) < gaps] = np.nan
    steps: tuple[Augmentation, ...] = tuple(kind(probability=0.7) for kind in ALL)
    out = Compose(steps)(draw, values)
    assert out.shape == values.shape
    assert not np.isinf(out).any()
