"""Windows of several aligned series."""

import numpy as np
import pytest

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.joint import JointIndex, JointWindows
from timemoe_jax.data.pipeline.training_data import open_training_data
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource, ConcatSource, SubsetSource
from timemoe_jax.errors import ConfigError, DataError

RNG = np.random.default_rng(5)


def aligned(*series) -> ArraySource:
    source = ArraySource([np.asarray(values, float) for values in series])
    source.aligned = True
    return source


def test_a_group_is_cut_into_windows_of_its_variates():
    """Five aligned series of 7 points, two a window of 3 + 1 points: three pieces, two windows."""
    table = aligned(*RNG.normal(size=(5, 7)))
    index = JointIndex(table, variates=2, length=3, stride=3)
    assert (len(index), index.size, index.num_sequences) == (6, 4, 5)
    first, variates, start = index.locate(np.arange(6))
    assert first.tolist() == [0, 0, 2, 2, 4, 4]
    assert variates.tolist() == [2, 2, 2, 2, 1, 1]
    assert start.tolist() == [0, 3, 0, 3, 0, 3]
    # The last piece has one series, so that two windows of 4 points are empty.
    assert index.padded_points == 8
    assert index.uncovered_points == index.skipped_sequences == 0
    whole = index.extent(0, 5)
    assert (whole.first, whole.stop, whole.points) == (0, 6, 5 * 2 * 4)
    part = index.extent(2, 5)
    assert (part.first, part.stop, part.points) == (2, 6, 3 * 2 * 4)


def test_each_variate_is_the_window_of_its_series():
    values = RNG.normal(size=(3, 11))
    values[1, 4] = np.nan
    table = aligned(*values)
    windows = JointWindows(table, JointIndex(table, 4, length=4, stride=2, future=2))
    alone = WindowSource(table, WindowIndex(table.lengths, 4, 2, 2))
    of_each = len(alone) // 3
    batch = windows.batch(np.array([1, -1, 2]))
    assert batch["values"].shape == batch["mask"].shape == (3, 4, 6)
    for row, number in ((0, 1), (2, 2)):
        expected = alone.batch(np.arange(3) * of_each + number)
        np.testing.assert_array_equal(batch["values"][row, :3], expected["values"])
        np.testing.assert_array_equal(batch["mask"][row, :3], expected["mask"])
    assert batch["sequence"].tolist() == [[0, 1, 2, -1], [-1] * 4, [0, 1, 2, -1]]
    assert not batch["mask"][1].any()
    assert not batch["mask"][:, 3].any()
    item = windows[1]
    np.testing.assert_array_equal(item["values"], batch["values"][0])


def test_groups_go_through_concatenation_and_choice(tmp_path):
    np.save(tmp_path / "a.npy", RNG.normal(size=(2, 9)))
    (tmp_path / "b.jsonl").write_text("[1, 2, 3]\n[4, 5, 6]\n")
    (tmp_path / "c.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    source = open_source(str(tmp_path))
    assert source.groups().tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert SubsetSource(source, np.array([0, 3, 4, 6])).groups().tolist() == [0, 2, 3, 3]
    empty = ConcatSource([ArraySource([]), aligned([1, 2], [3, 4])])
    assert empty.groups().tolist() == [0, 0]


def test_series_of_a_group_must_be_aligned():
    with pytest.raises(DataError, match="series 1 has 3 points, but the series beside it"):
        JointIndex(aligned([1, 2], [1, 2, 3]), 2, length=2, stride=2)
    with pytest.raises(DataError, match="variates must be at least 1, but is 0"):
        JointIndex(aligned([1, 2]), 0, length=2, stride=2)


def test_batches_and_shares_are_of_whole_groups(tmp_path):
    """Two tables; whole groups are held out, and points are counted by source."""
    for name, variates in (("a", 3), ("b", 2)):
        header = ",".join(f"{name}{i}" for i in range(variates))
        rows = RNG.normal(size=(40, variates))
        (tmp_path / f"{name}.csv").write_text(
            header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
        )
    config = DataConfig(path=str(tmp_path), variates=3, length=8, validation_fraction=0.5)
    data = open_training_data(config, seed=1, num_steps=4, batch_size=2)
    held_out = {data.validation.source.name(i) for i in range(len(data.validation.source))}
    assert len({name.split(".csv")[0] for name in held_out}) == 1
    dataset = make_dataset(
        data.train, batch_size=2, seed=0, shuffle=True, repeat=True, num_threads=0
    )
    batch = next(iter(dataset))
    assert batch["values"].shape == (2, 3, 9)
    counted = data.mixture.count(batch["sequence"], batch["mask"])
    assert counted.sum() == batch["mask"].sum() > 0


@pytest.mark.parametrize("other", [{"policy": "packing"}, {"resolutions": "2"}])
def test_joint_windows_are_plain_ones(other):
    with pytest.raises(ConfigError, match=r"variates is 2, but .*joint windows are for"):
        DataConfig(path="x", variates=2, **other)
    with pytest.raises(ConfigError, match="generated without end have no series beside"):
        DataConfig(path="x", variates=2, synthetic_share=0.5)
