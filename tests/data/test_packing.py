"""Packed windows: every step of every series once, and each series as if it were alone."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.packing import PackedIndex, PackedSource
from timemoe_jax.data.pipeline.training_data import describe
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.objective import make_loss


def lengths(*values):
    return np.array(values, np.int64)


def pieces(index):
    return [index.pieces(i) for i in range(len(index))]


def test_windows_by_hand():
    """Of 4 + 1 points, one shared: 0..4 holds a0-a4, 4..8 a4-a5 b0-b2, 8..12 b2 c0-c1, padded."""
    index = PackedIndex(lengths(6, 1, 3, 2), 4)
    assert pieces(index) == [
        [(0, 0, 5)],
        [(0, 4, 6), (2, 0, 3)],
        [(2, 2, 3), (3, 0, 2)],
    ]
    assert (index.skipped_sequences, index.uncovered_points) == (1, 1)
    # 3 windows of 5, 11 points, two of them twice.
    assert index.padded_points == 15 - 13
    assert index.extent(0, 4).points == 13


def test_items_by_hand():
    series = [np.array([1.0, 3.0, np.nan, 5.0]), np.array([7.0, 7.0]), np.array([4.0, np.inf])]
    source = ArraySource(series)
    packed = PackedSource(source, PackedIndex(source.lengths, 9))
    assert len(packed) == 1
    item = packed[0]
    z = 2.0 / np.sqrt(8.0 / 3.0)
    np.testing.assert_allclose(item["values"], [-z, 0, 0, z, 0, 0, 0, 0, 0, 0], rtol=1e-6)
    # Of the last series one value is finite: it never contributes, but its points are its own.
    observed = [True, True, False, True, True, True, False, False, False, False]
    assert item["mask"].tolist() == observed
    assert item["segments"].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 0, 0]
    assert item["sequence"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, -1, -1]
    kinds = {name: value.dtype for name, value in item.items()}
    assert kinds == {
        "values": np.float32,
        "mask": bool,
        "sequence": np.int64,
        "segments": np.int32,
    }


SERIES = st.lists(st.integers(0, 30), max_size=12)


@given(SERIES, st.integers(1, 12), st.one_of(st.none(), st.integers(0, 99)), st.data())
def test_every_step_of_every_series_is_in_one_window(counts, length, seed, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(counts)), max_size=3)))
    bounds = [0, *cuts, len(counts)]
    groups = [b - a for a, b in itertools.pairwise(bounds)]
    index = PackedIndex(lengths(*counts), length, seed, groups)
    steps = collections.Counter()
    shown = 0
    for i, window in enumerate(pieces(index)):
        assert 0 < sum(stop - start for _, start, stop in window) <= length + 1
        shown += sum(stop - start for _, start, stop in window)
        (group,) = {int(np.searchsorted(bounds, s, side="right")) - 1 for s, *_ in window}
        extent = index.extent(bounds[group], bounds[group + 1])
        assert extent.first <= i < extent.stop
        for sequence, start, stop in window:
            assert 0 <= start < stop <= counts[sequence]
            steps.update((sequence, t) for t in range(start, stop - 1))
    assert steps == {(s, t): 1 for s, n in enumerate(counts) for t in range(n - 1)}
    assert index.padded_points == len(index) * (length + 1) - shown
    # Whatever is padded is at the end of a group.
    assert index.padded_points <= length * sum(g > 0 for g in groups)
    assert index.extent(0, len(counts)).points == shown


def test_the_order_follows_the_seed():
    counts = lengths(*range(2, 40))
    orders = [pieces(PackedIndex(counts, 16, seed)) for seed in (None, 0, 0, 1)]
    assert orders[1] == orders[2]
    assert orders[0] != orders[1] != orders[3]
    firsts = list(dict.fromkeys(s for window in orders[0] for s, *_ in window))
    assert firsts == list(range(38))


def test_many_windows_take_little_memory():
    index = PackedIndex(np.full(1000, 10**12), 1)
    assert len(index) == 1000 * 10**12 - 1
    assert index.pieces(len(index) - 1) == [(999, 10**12 - 2, 10**12)]


def test_bounds_and_arguments():
    index = PackedIndex(lengths(9), 4)
    for i in (-1, 2):
        with pytest.raises(IndexError):
            index.pieces(i)
    assert len(PackedIndex(lengths(), 4)) == 0
    assert len(PackedIndex(lengths(1, 0), 4)) == 0
    with pytest.raises(DataError, match="at least 1"):
        PackedIndex(lengths(9), 0)
    with pytest.raises(DataError, match=r"add up to the 2"):
        PackedIndex(lengths(9, 9), 4, None, [1])
    with pytest.raises(DataError, match=r"0 to 1 are not whole groups"):
        PackedIndex(lengths(9, 9), 4).extent(0, 1)
    with pytest.raises(DataError, match="made for 2 series, but the source has 1"):
        PackedSource(ArraySource([np.ones(5)]), PackedIndex(lengths(5, 5), 4))


def walks(*counts, seed=0):
    rng = np.random.default_rng(seed)
    return ArraySource([np.cumsum(rng.normal(size=n)) for n in counts])


def test_a_packed_series_has_the_values_of_its_windows():
    source = walks(7, 20, 3)
    packed = PackedSource(source, PackedIndex(source.lengths, 8, 0))
    alone = WindowSource(source, WindowIndex(source.lengths, 19))
    for i in range(len(packed)):
        item, at = packed[i], 0
        for sequence, start, stop in packed.index.pieces(i):
            expected = alone[sequence]["values"][start:stop]
            np.testing.assert_array_equal(item["values"][at : at + stop - start], expected)
            at += stop - start


def test_batches_and_summary():
    source = walks(9, 16, 24, 9, 30)
    packed = PackedSource(source, PackedIndex(source.lengths, 10, 3))
    options = {"batch_size": 4, "seed": 0, "shuffle": True, "num_threads": 0}
    batches = list(make_dataset(packed, repeat=False, **options))
    assert len(packed) == 9
    names = ("values", "mask", "sequence", "segments")
    assert {k: v.shape for k, v in batches[0].items()} == dict.fromkeys(names, (4, 11))
    empty = {name: np.concatenate([b[name] for b in batches])[9:] for name in batches[0]}
    assert (empty["sequence"] == -1).all()
    for name in ("values", "mask", "segments"):
        assert not empty[name].any()
    summary = describe(source, packed.index, 4)
    assert (summary.sequences, summary.points, summary.windows) == (5, 88, 9)
    assert summary.padded_share == (9 * 11 - 88 - 8) / 99
    padded = describe(source, WindowIndex(source.lengths, 10), 4).padded_share
    assert summary.padded_share < padded


def test_bleeding_leaves_the_segments_out_and_nothing_else():
    source = walks(7, 20, 3)
    index = PackedIndex(source.lengths, 8, 0)
    confined, bleeding = PackedSource(source, index)[1], PackedSource(source, index, bleeds=True)[1]
    del confined["segments"]
    assert confined.keys() == bleeding.keys()
    for name in confined:
        np.testing.assert_array_equal(confined[name], bleeding[name])


COUNTS = (9, 2, 16, 24)
CONFIG = RunConfig(model=TINY, data=DataConfig(synthetic_sequences=1, length=50, policy="packing"))


def stacked(windows):
    items = [windows[i] for i in range(len(windows))]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


@pytest.mark.parametrize("use_dense", [True, False])
def test_a_packed_batch_is_its_series_alone(use_dense):
    """The predictions, the loss of each head, and the gradient of the whole objective."""
    model = dataclasses.replace(TINY, use_dense=use_dense)
    config = dataclasses.replace(CONFIG, model=model)
    series = walks(*COUNTS)
    series._series[2][[4, 9]] = np.nan
    packed = PackedSource(series, PackedIndex(series.lengths, sum(COUNTS) - 1, seed=1))
    assert len(packed) == 1
    alone = WindowSource(series, WindowIndex(series.lengths, max(COUNTS) - 1))
    together, apart = stacked(packed), stacked(alone)
    params, (graph, _) = create_params(model, 1), abstract_model(model)

    @jax.jit
    def predict(batch):
        x = jnp.where(batch["mask"], batch["values"], 0)
        output = nnx.merge(graph, params)(x, batch["mask"], batch.get("segments"))
        return output.predictions

    shared, own = predict(together), predict(apart)
    for sequence, n in enumerate(COUNTS):
        here = together["sequence"][0] == sequence
        known = apart["mask"][sequence, :n]
        for p in model.horizon_lengths:
            found, expected = shared[p][0, here][known], own[p][sequence, :n][known]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    bled = predict({name: together[name] for name in ("values", "mask")})
    assert np.abs(bled[1] - shared[1]).max() > 1e-2

    # The routers' loss counts the last point of a packed series, too: it is an input there.
    # So with routers only the losses of the heads are those of the series alone.
    objective = make_loss(config)
    compute = jax.jit(jax.value_and_grad(objective, has_aux=True) if use_dense else objective)
    found, expected = compute(params, together), compute(params, apart)
    if use_dense:
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    parts, expected_parts = ((each[0] if use_dense else each)[1] for each in (found, expected))
    for p in model.horizon_lengths:
        np.testing.assert_allclose(parts.horizons[p], expected_parts.horizons[p], atol=1e-5)
