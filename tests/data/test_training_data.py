"""What a run draws from: real series, generated ones without end, and both together."""

import dataclasses
import itertools

import numpy as np
import pytest

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.generators.generated_source import GeneratedSource
from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.endless import NUM_SERIES, EndlessIndex, JoinedIndex
from timemoe_jax.data.pipeline.training_data import open_training_data
from timemoe_jax.data.pipeline.windows import WindowIndex
from timemoe_jax.errors import ConfigError, DataError

LENGTH = 32
FAMILIES = "arima:2,diffusion"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two sources of increasing series, so that a generated one is told apart."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, count in (("energy/a", 30), ("web/b", 10)):
        write_time_moe_folder(folder / name, [np.arange(50.0 + k) for k in range(count)])
    return str(folder)


def opened(config, **options):
    return open_training_data(config, **{"seed": 3, "num_steps": 100, "batch_size": 16, **options})


def batches(data, count, batch_size=16, num_threads=0, **process):
    iterator = iter(
        make_dataset(
            data.train,
            batch_size=batch_size,
            seed=3,
            shuffle=True,
            repeat=True,
            num_threads=num_threads,
            mixture=data.mixture,
            **process,
        )
    )
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def mixed(corpus, **fields):
    fields = {"synthetic_share": 0.25, "synthetic_families": FAMILIES, **fields}
    return DataConfig(path=corpus, length=LENGTH, **fields)


@pytest.mark.parametrize("policy", ["windows", "packing"])
@pytest.mark.parametrize("mixing", ["points", "power"])
def test_generated_series_have_their_share_of_the_points(corpus, policy, mixing):
    data = opened(mixed(corpus, policy=policy, mixing=mixing))
    assert data.mixture.shares()["generated"] == pytest.approx(0.25)
    taken = batches(data, 64)
    counted = sum(data.mixture.count(b["sequence"], b["mask"]) for b in taken)
    shares = dict(zip(data.mixture.labels, counted / counted.sum(), strict=True))
    # 1024 windows; the schedule holds every share within a few windows.
    assert shares["generated"] == pytest.approx(0.25, abs=0.01)
    assert "generated 25.00% (endless)" in str(data.mixture)
    assert "generated series without end (arima:2,diffusion)" in data.summary


def test_what_is_generated_is_the_sources_series_in_order(corpus):
    """Each once, whole, z-scored; in order up to the mixing of draws within short stretches."""
    data = opened(mixed(corpus))
    source = GeneratedSource.parse(FAMILIES, LENGTH + 1, 3)
    seen = []
    for batch in batches(data, 128):
        for row in np.flatnonzero(batch["sequence"] >= 40):
            number = int(batch["sequence"][row]) - 40
            seen.append(number)
            series = source[number].astype(np.float64)
            expected = (series - series.mean()) / series.std()
            np.testing.assert_allclose(batch["values"][row], expected, atol=1e-5)
            assert batch["mask"][row].all()
    assert len(set(seen)) == len(seen) > 400
    assert max(seen) < len(seen) + 256


def test_generated_series_alone():
    config = DataConfig(length=LENGTH, synthetic_share=1.0, synthetic_families="diffusion")
    data = opened(config)
    taken = batches(data, 3)
    numbers = np.concatenate([batch["sequence"] for batch in taken])
    assert len(set(numbers.tolist())) == 48
    assert numbers.max() < 256
    assert all(batch["mask"].all() for batch in taken)
    assert len(data.train) == NUM_SERIES


def test_packed_rows_of_generated_series_are_one_segment(corpus):
    data = opened(mixed(corpus, policy="packing"))
    batch = batches(data, 1, batch_size=64)[0]
    generated = batch["sequence"][:, 0] >= 40
    assert 8 <= generated.sum() <= 24
    assert (batch["segments"][generated] == 1).all()
    assert (batch["sequence"][generated] == batch["sequence"][generated][:, :1]).all()
    assert len(np.unique(batch["segments"][~generated])) > 1


@pytest.mark.parametrize("num_threads", [0, 2])
def test_processes_and_threads_do_not_change_what_is_drawn(corpus, num_threads):
    data = opened(mixed(corpus))
    one = batches(data, 6)
    parts = [
        batches(opened(mixed(corpus)), 6, 8, num_threads, process_index=index, process_count=2)
        for index in range(2)
    ]
    for step, whole in enumerate(one):
        rows = {int(s): v for s, v in zip(whole["sequence"], whole["values"], strict=True)}
        halves = [part[step] for part in parts]
        joined = np.concatenate([half["sequence"] for half in halves])
        assert sorted(joined.tolist()) == sorted(whole["sequence"].tolist())
        for half in halves:
            for s, values in zip(half["sequence"], half["values"], strict=True):
                if s >= 40:
                    np.testing.assert_array_equal(values, rows[int(s)])


def test_a_saved_position_goes_on_with_the_same_series(corpus):
    options = {"batch_size": 8, "seed": 3, "shuffle": True, "repeat": True, "num_threads": 0}
    data = opened(mixed(corpus))
    first = iter(make_dataset(data.train, mixture=data.mixture, **options))
    for _ in range(5):
        next(first)
    state, expected = first.get_state(), next(first)
    again = opened(mixed(corpus))
    second = iter(make_dataset(again.train, mixture=again.mixture, **options))
    second.set_state(state)
    got = next(second)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_augmentations_change_generated_series_alone(corpus):
    plain, changed = opened(mixed(corpus)), opened(mixed(corpus, synthetic_augmentation=0.5))
    differ = missing = 0
    for a, b in zip(batches(plain, 8), batches(changed, 8), strict=True):
        np.testing.assert_array_equal(a["sequence"], b["sequence"])
        generated = a["sequence"] >= 40
        np.testing.assert_array_equal(a["values"][~generated], b["values"][~generated])
        differ += int((a["values"] != b["values"]).any(axis=1).sum())
        missing += int((~b["mask"][generated]).sum())
    assert differ > 16
    assert missing > 0


def test_mixtures_of_the_training_series(corpus):
    data = opened(mixed(corpus, synthetic_families="tsmixup"))
    batch = batches(data, 1)[0]
    generated = batch["values"][batch["sequence"] >= 40]
    # Mixtures of straight lines are straight.
    np.testing.assert_allclose(np.diff(generated, n=2, axis=1), 0, atol=1e-4)
    with pytest.raises(DataError, match="tsmixup mixes real series"):
        opened(DataConfig(length=LENGTH, synthetic_share=1.0, synthetic_families="tsmixup"))


def test_a_limit_on_epochs_leaves_the_rest_to_generated_series(corpus):
    """40 windows once each, of 200: the other 160 are generated."""
    config = mixed(corpus, mixing="power", max_epochs_per_source=1.0, stride=50)
    data = opened(config, num_steps=10, batch_size=20)
    assert sum(data.mixture.counts) == 200
    assert data.mixture.counts[:2] == (30, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"synthetic_share": 1.0}, "from 0 to less than 1 beside path"),
        ({"synthetic_share": -0.1}, "from 0 to less than 1"),
        ({"path": "", "synthetic_share": 0.5}, "and 1 without them"),
        ({"path": ""}, "nothing to train on"),
        ({"synthetic_families": "arima"}, "synthetic_share is 0: they would have no effect"),
        ({"synthetic_share": 0.5, "synthetic_augmentation": 2.0}, "must be from 0 to 1, but is 2"),
    ],
)
def test_settings_that_do_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{"path": "x", **fields})


def test_an_unknown_family_is_named(corpus):
    with pytest.raises(DataError, match="'arma' is unknown; did you mean arima"):
        opened(mixed(corpus, synthetic_families="arma"))


def test_joined_indices():
    real = WindowIndex(np.array([9, 1, 3]), 4)
    joined = JoinedIndex([real, EndlessIndex(4, 10)])
    assert len(joined) == 2 + 1 + 10
    assert joined.num_sequences == 13
    assert joined.extent(0, 3) == real.extent(0, 3)
    assert dataclasses.astuple(joined.extent(3, 13)) == (3, 13, 50)
    assert joined.padded_points == real.padded_points == 2
    with pytest.raises(DataError, match="beyond the 13"):
        joined.extent(3, 14)
    with pytest.raises(DataError, match=r"\[\(4, 5\), \(5, 6\)\] cannot be joined"):
        JoinedIndex([real, EndlessIndex(5)])
