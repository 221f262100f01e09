"""Batches: repeatable, complete, split without overlap, resumable."""

import itertools

import numpy as np
import pytest

from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.splits import split_sequences
from timemoe_jax.data.pipeline.training_data import describe
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource, SubsetSource
from timemoe_jax.errors import DataError


def window_source(sequences=10, length=4):
    """One window for each series, so that a series' number tells a window."""
    source = ArraySource([np.arange(length + 1.0) + k for k in range(sequences)])
    return WindowSource(source, WindowIndex(source.lengths, length))


def batches(source, count=None, **changes):
    options = {"batch_size": 4, "seed": 0, "shuffle": True, "repeat": True, "num_threads": 0}
    iterator = iter(make_dataset(source, **{**options, **changes}))
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def ids(taken):
    return np.concatenate([batch["sequence"] for batch in taken]).tolist()


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_shapes_and_dtypes():
    batch = batches(window_source(), 1)[0]
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "values": ((4, 5), np.float32),
        "mask": ((4, 5), bool),
        "sequence": ((4,), np.int64),
    }


def test_an_epoch_holds_every_window_once_in_another_order_each_time():
    seen = ids(batches(window_source(), 5))
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != sorted(first)


def test_a_seed_gives_the_same_batches_for_any_number_of_threads():
    source = window_source()
    once = batches(source, 7, seed=5)
    assert_same(once, batches(source, 7, seed=5))
    assert_same(once, batches(source, 7, seed=5, num_threads=3))
    assert ids(once) != ids(batches(source, 7, seed=6))


def test_in_order_without_shuffle():
    assert ids(batches(window_source(6), 3, shuffle=False)) == [0, 1, 2, 3, 4, 5] * 2


def test_fewer_windows_than_a_batch_fill_it_over_epochs():
    seen = ids(batches(window_source(3), 3))
    assert all(sorted(seen[k : k + 3]) == [0, 1, 2] for k in range(0, 12, 3))
    assert ids(batches(window_source(1), 2)) == [0] * 8


def test_without_repeat_the_last_batch_is_filled_with_masked_rows():
    taken = batches(window_source(6), shuffle=False, repeat=False)
    assert ids(taken) == [0, 1, 2, 3, 4, 5, -1, -1]
    assert taken[1]["mask"][:2].all()
    assert not taken[1]["mask"][2:].any()
    assert not taken[1]["values"][2:].any()
    assert sorted(ids(batches(window_source(6), repeat=False))) == [-1, -1, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_share_an_epoch_without_overlap(count):
    source = window_source(11)
    parts = [
        batches(source, repeat=False, batch_size=2, process_index=k, process_count=count)
        for k in range(count)
    ]
    # Each makes as many batches as the others, or they would wait for one another for ever.
    assert len({len(part) for part in parts}) == 1
    seen = sorted(i for part in parts for i in ids(part) if i >= 0)
    assert seen == list(range(11))


def test_the_windows_of_a_step_do_not_depend_on_the_number_of_processes():
    source = window_source(11)
    one = batches(source, 12, batch_size=6)
    for count in (2, 3):
        parts = [
            batches(source, 12, batch_size=6 // count, process_index=k, process_count=count)
            for k in range(count)
        ]
        for step, together in enumerate(one):
            joined = [i for part in parts for i in ids([part[step]])]
            assert sorted(joined) == sorted(ids([together]))


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_saved_state_continues_exactly(num_threads, repeat, taken):
    options = {"batch_size": 4, "seed": 1, "shuffle": True, "num_threads": num_threads}
    dataset = make_dataset(window_source(18), repeat=repeat, **options)
    first = iter(dataset)
    for _ in range(taken):
        next(first)
    state = first.get_state()
    expected = list(itertools.islice(first, 6))
    # A new dataset, an iterator of which is already under way.
    second = iter(make_dataset(window_source(18), repeat=repeat, **options))
    next(second)
    second.set_state(state)
    assert_same(expected, list(itertools.islice(second, 6)))
    first.close()
    second.close()


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_another_number_of_processes_goes_on_from_a_state(before, after, repeat, num_threads):
    """Each step's windows, over all processes, are those of a run that was never interrupted."""
    source = window_source(43)

    def iterators(count, threads):
        options = {"batch_size": 8 // count, "seed": 2, "shuffle": True, "repeat": repeat}
        parts = ({**options, "process_index": k, "process_count": count} for k in range(count))
        return [iter(make_dataset(source, num_threads=threads, **part)) for part in parts]

    def steps(parts, count):
        return [sorted(i for part in parts for i in ids([next(part)])) for _ in range(count)]

    first = iterators(before, num_threads)
    seen = steps(first, 3)
    states = [part.get_state() for part in first]
    assert all(state == states[0] for state in states)
    second = iterators(after, 2 - num_threads)
    steps(second, 1)
    for part in second:
        part.set_state(states[-1])
    seen += steps(second, 3)
    one = batches(source, 6, batch_size=8, seed=2, repeat=repeat)
    assert seen == [sorted(ids([batch])) for batch in one]
    for part in (*first, *second):
        part.close()


def test_an_error_of_a_source_reaches_the_caller():
    class Broken(ArraySource):
        def _read(self, i, start, stop):
            raise DataError("the file is gone")

    source = Broken([np.ones(5)])
    windows = WindowSource(source, WindowIndex(source.lengths, 4))
    with pytest.raises(DataError, match="the file is gone"):
        batches(windows, 1, num_threads=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"num_threads": -1},
        {"process_index": 1},
        {"process_index": -1},
        {"process_count": 0},
    ],
)
def test_arguments(changes):
    with pytest.raises(
        DataError, match=rf"{next(iter(changes))} is {next(iter(changes.values()))}; "
    ):
        batches(window_source(), 1, **changes)


def test_no_window():
    source = ArraySource([np.ones(1), np.ones(0)])
    with pytest.raises(DataError, match="each of the 2 series has fewer than two points"):
        batches(WindowSource(source, WindowIndex(source.lengths, 4)), 1)


@pytest.mark.parametrize(
    ("n", "fraction", "held_out"), [(10, 0.2, 2), (10, 0.01, 1), (2, 0.99, 1), (10, 0.0, 0)]
)
def test_split(n, fraction, held_out):
    train, validation = split_sequences(n, fraction, seed=0)
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == list(range(n))
    again = split_sequences(n, fraction, seed=0)
    np.testing.assert_array_equal(validation, again[1])


def test_split_follows_the_seed_and_refuses_what_cannot_be():
    drawn = {tuple(split_sequences(100, 0.1, seed)[1]) for seed in range(5)}
    assert len(drawn) == 5
    assert [part.tolist() for part in split_sequences(1, 0.0, 0)] == [[0], []]
    with pytest.raises(DataError, match="one series"):
        split_sequences(1, 0.1, 0)
    for n, fraction, seed in ((10, 1.0, 0), (10, -0.1, 0), (0, 0.1, 0), (10, 0.1, -1)):
        with pytest.raises(DataError, match="fraction"):
            split_sequences(n, fraction, seed)


def test_subset():
    source = ArraySource([np.arange(k + 2.0) for k in range(5)])
    subset = SubsetSource(source, np.array([3, 1]))
    assert subset.lengths.tolist() == [5, 3]
    np.testing.assert_array_equal(subset[0], source[3])
    np.testing.assert_array_equal(subset.read(1, 1, 2), [1.0])
    assert subset.name(0) == "series 3"
    for bad in (-1, 5):
        with pytest.raises(DataError, match=f"ids holds {bad}"):
            SubsetSource(source, np.array([0, bad]))


def test_summary():
    source = ArraySource([np.ones(9), np.ones(1), np.ones(3), np.ones(12)])
    summary = describe(source, WindowIndex(source.lengths, 4), batch_size=4)
    # Windows at 0, 4 of nine points, at 0 of three (two padded), at 0, 4 of twelve.
    assert (summary.sequences, summary.points, summary.windows) == (4, 25, 5)
    assert (summary.skipped_sequences, summary.uncovered_points) == (1, 4)
    assert summary.padded_share == 2 / 25
    assert summary.updates_per_epoch == 2
    assert str(summary).startswith("4 sequences, 25 points, 5 windows (8.0% padding), 2 updates")
