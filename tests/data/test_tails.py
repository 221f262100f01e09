"""The last part of each series, held out."""

import numpy as np
import pandas as pd
import pytest

from timemoe_jax.cli.config_files import load_config
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.pipeline.tails import OriginIndex, TailIndex, heads_of
from timemoe_jax.data.pipeline.training_data import open_training_data
from timemoe_jax.data.pipeline.windows import WindowSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import ConfigError


def _open(path, **fields):
    fields = {"length": 32, "future": 8, "num_threads": 0, "validation_tail": 0.2} | fields
    config = DataConfig(path=str(path), **fields)
    return open_training_data(config, seed=0, num_steps=5, batch_size=2)


def _csv(path, *lengths):
    parts = [
        pd.DataFrame({"unique_id": f"s{i}", "ds": range(n), "y": np.arange(float(n)) + 1000 * i})
        for i, n in enumerate(lengths)
    ]
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_the_last_fifth_is_held_out_of_series_that_have_points_to_spare():
    lengths = np.array([100, 101, 16, 15, 2, 0])
    assert heads_of(lengths, 0.2).tolist() == [80, 80, 12, 15, 2, 0]


def test_windows_end_their_inputs_in_the_tail_and_never_read_beyond_the_series():
    values = np.arange(20.0)
    source = ArraySource([values, np.arange(3.0), values])
    index = TailIndex(source.lengths, np.array([16, 3, 18]), length=8, future=4)
    sequences, starts = index.locate(np.arange(len(index)))
    assert sequences.tolist() == [0, 0, 0, 0, 2, 2]
    assert (starts + 8).tolist() == [16, 17, 18, 19, 18, 19]
    assert index.skipped_sequences == 1
    assert len(index.extent(1, 3)) == 2
    batch = WindowSource(source, index).batch(np.arange(len(index)))
    scaled = (values - values.mean()) / values.std()
    for row, start in enumerate(starts):
        there = scaled[start : start + 12]
        np.testing.assert_allclose(batch["values"][row, : len(there)], there, rtol=1e-5)
        assert batch["mask"][row].tolist() == [True] * len(there) + [False] * (12 - len(there))


def test_a_series_shorter_than_a_window_is_padded_before_it():
    values = np.arange(20.0)
    index = TailIndex(np.array([20]), np.array([16]), length=32, future=8)
    windows = WindowSource(ArraySource([values]), index)
    assert index.padded_points == 4 * 40 - (20 + 20 + 20 + 20)
    first = windows[0]
    assert first["mask"].tolist() == [False] * 16 + [True] * 20 + [False] * 4
    scaled = (values - values.mean()) / values.std()
    np.testing.assert_allclose(first["values"][16:36], scaled, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(200,), (40, 30), (200, 10)])
def test_few_series_or_one_are_split_by_time(lengths, tmp_path):
    data = _open(_csv(tmp_path / "a.csv", *lengths))
    heads = [n - -(-n // 5) if n >= 16 else n for n in lengths]
    assert data.train.source.lengths.tolist() == heads
    assert len(data.validation) == 4 * sum(n >= 16 for n in lengths)


def test_series_too_short_to_split_are_said(tmp_path):
    data = _open(_csv(tmp_path / "a.csv", 9, 8))
    assert data.validation is None
    assert "no series has 16 points, of which the last could be held out" in data.summary


def test_absent_rows_are_said(tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame({"ds": [*range(30), *range(33, 40)], "y": 1.0}).to_csv(path, index=False)
    assert "; 3 times without a row are missing points" in _open(path, fill_absent=True).summary
    assert "without a row" not in _open(path).summary


@pytest.mark.parametrize("fields", [{"validation_tail": 1.0}, {"validation_fraction": 0.1}])
def test_what_does_not_go_together_is_refused(fields):
    with pytest.raises(ConfigError, match="validation_tail"):
        DataConfig(path="a", **{"validation_tail": 0.2} | fields)


@pytest.mark.parametrize("steps", [1, 2, 9, 50, 3000])
def test_own_data_follows_the_number_of_updates(steps):
    from timemoe_jax.training.config import RunConfig

    config = load_config("own_data")
    config.data.path = "sales.csv"
    config.train.num_steps = steps
    run = from_mapping(RunConfig, dict(config.items()))
    assert run.optimizer.warmup_steps == steps // 10
    assert run.optimizer.decay_steps == steps // 2
    assert 1 <= run.train.log_every <= max(1, steps)
    assert 1 <= run.train.eval_every <= max(1, steps)
    config.optimizer.warmup_steps = 0  # and can be said otherwise
    assert from_mapping(RunConfig, dict(config.items())).train.num_steps == steps


def test_origins_leave_room_on_both_sides_and_short_series_have_their_share():
    index = OriginIndex(np.array([10, 3, 100]), length=6, future=2, least=3)
    # Origins 3 to 8 of ten points, none of three, 3 to 98 of a hundred; drawn by their roots.
    assert index.origins.tolist() == [6, 0, 96]
    assert len(index) == 24 + 96
    sequences, starts = index.locate(np.arange(len(index)))
    assert starts[sequences == 0].tolist() == [-3, -2, -1, 0, 1, 2] * 4
    assert starts[sequences == 2].tolist() == list(range(-3, 93))
    assert index.skipped_sequences == 1
    assert index.extent(0, 1).points == 4 * (6 * 8 - 3 - 2 - 1)
    values = np.arange(10.0)
    windows = WindowSource(ArraySource([values]), OriginIndex(np.array([10]), 6, 2, 3))
    batch = windows.batch(np.array([0, 5]))
    assert batch["mask"].tolist() == [[False] * 3 + [True] * 5, [True] * 8]
    assert np.argsort(batch["values"][1]).tolist() == list(range(8))
