"""Cleaning: each rule by hand, and all of them against the algorithm written out point by point."""

import itertools
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from timemoe_jax.data.corpus import clean_rules as cleaning
from timemoe_jax.data.corpus import clean_task as cleaning_tasks
from timemoe_jax.data.corpus.clean import clean_folder
from timemoe_jax.data.corpus.clean_rules import REASONS, clean
from timemoe_jax.data.corpus.clean_task import StoredFolder
from timemoe_jax.data.formats.time300b.folder import TimeMoeFolderSource, write_time_moe_folder
from timemoe_jax.errors import DataError


def reference(values):
    """The pieces to keep and what is dropped, one window after the other, with real divisions."""
    kept, dropped = [], dict.fromkeys(REASONS, 0)
    for start, stop in finite_pieces(values):
        if stop - start <= 128:
            reason = first_reason(values[start:stop])
            if reason:
                dropped[reason] += stop - start
            else:
                kept.append((start, stop))
            continue
        run = None
        for begin in range(start, stop - 127, 128):
            end = begin + 128 if stop - (begin + 128) >= 128 else stop
            reason = first_reason(values[begin:end])
            if reason:
                dropped[reason] += end - begin
                run = close(run, kept, dropped)
            else:
                run = (run[0] if run else begin, end)
        close(run, kept, dropped)
    dropped["missing"] = sum(not math.isfinite(value) for value in values)
    return kept, dropped


def close(run, kept, dropped):
    """Keeps a run of valid windows that has ended, or counts it as too short."""
    if run and run[1] - run[0] >= 256:
        kept.append(run)
    elif run:
        dropped["short"] += run[1] - run[0]


def finite_pieces(values):
    start = None
    for i, value in enumerate([*values, math.nan]):
        if math.isfinite(value):
            start = i if start is None else start
        elif start is not None:
            yield start, i
            start = None


def first_reason(window):
    # Python's floats: the differences of the algorithm are taken, not compared.
    window = [float(value) for value in window]
    differences = {
        "zeros": window,
        "repeated": [b - a for a, b in itertools.pairwise(window)],
        "alternating": [b - a for a, b in zip(window, window[2:], strict=False)],
    }
    for reason, numbers in differences.items():
        if numbers and sum(number == 0 for number in numbers) / len(numbers) > 0.2:
            return reason
    return None


def check(values):
    """The pieces and the reasons with anything under them, which account for every point."""
    cleaned = clean(values)
    assert tuple(cleaned.dropped) == REASONS
    kept = int(np.diff(cleaned.pieces).sum())
    assert kept + sum(cleaned.dropped.values()) == len(values)
    assert all(isinstance(count, int) for count in cleaned.dropped.values())
    pieces = [tuple(piece) for piece in cleaned.pieces.tolist()]
    assert (pieces, cleaned.dropped) == reference(values)
    return pieces, {reason: count for reason, count in cleaned.dropped.items() if count}


def rising(length, start=1):
    """No zeros and no equal values."""
    return np.arange(start, start + length, dtype=np.float32)


@pytest.mark.parametrize(("equal", "valid"), [(25, True), (26, False)])
def test_a_fifth_of_127_differences_is_25(equal, valid):
    """26/127 = 0.2047 is above 0.2, 25/127 = 0.1969 is not."""
    values = rising(384)
    # Pairs of equal neighbors in the second window: 1 1 3 3 5 5 ...
    at = 128 + 2 * np.arange(equal)
    values[at + 1] = values[at]
    expected = ([(0, 384)], {}) if valid else ([], {"repeated": 128, "short": 256})
    assert check(values) == expected


@pytest.mark.parametrize(("equal", "valid"), [(25, True), (26, False)])
def test_a_fifth_of_126_differences_at_lag_2_is_25(equal, valid):
    """26/126 = 0.2063 is above 0.2, 25/126 = 0.1984 is not."""
    values = rising(384)
    # a b a b ...: from the third value on each equals the last but one.
    values[128 : 128 + equal + 2 : 2] = -1
    values[129 : 128 + equal + 2 : 2] = -2
    expected = ([(0, 384)], {}) if valid else ([], {"alternating": 128, "short": 256})
    assert check(values) == expected


@pytest.mark.parametrize(("zeros", "valid"), [(25, True), (26, False)])
def test_a_fifth_of_128_values_is_25(zeros, valid):
    """26/128 = 0.2031 is above 0.2; apart as they are, zeros make no difference zero."""
    values = rising(384)
    values[128 : 128 + 3 * zeros : 3] = 0
    expected = ([(0, 384)], {}) if valid else ([], {"zeros": 128, "short": 256})
    assert check(values) == expected


def test_exactly_a_fifth_is_not_above_it():
    values = rising(255)[:100]
    values[:60:3] = 0
    assert check(values) == ([(0, 100)], {})
    values[60] = 0
    assert check(values) == ([], {"zeros": 100})


def test_equal_values_across_windows_belong_to_neither():
    values = rising(512)
    for k in range(25):
        values[128 + 2 * k + 1] = values[128 + 2 * k]
    values[[127, 256]] = values[[128, 255]]  # the pairs (127, 128) and (255, 256)
    assert check(values) == ([(0, 512)], {})


def test_equal_values_two_apart_across_windows_belong_to_neither():
    values = rising(512)
    # 27 values of which 25 equal the last but one, in windows 1 and 2 of points 128 to 383.
    for begin in (128, 256):
        values[begin + 40 : begin + 67 : 2] = -1
        values[begin + 41 : begin + 67 : 2] = -2
    # The pairs (126, 128) and (127, 129), and the same at the ends of the other windows.
    for end in (128, 256, 384):
        values[[end, end + 1]] = values[[end - 2, end - 1]]
    assert check(values) == ([(0, 512)], {})


def test_minus_zero_is_zero_and_the_smallest_difference_is_none():
    values = rising(256)
    values[:128:4] = -0.0
    assert check(values) == ([], {"zeros": 128, "short": 128})
    tiny = np.finfo(np.float32).smallest_subnormal
    assert check(np.arange(1, 257, dtype=np.float32) * tiny) == ([(0, 256)], {})
    huge = np.finfo(np.float64).max * np.linspace(0.6, 1, 256)
    assert check(np.where(np.arange(256) % 2, huge, -huge)) == ([(0, 256)], {})


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, ([(0, 1)], {})),
        (2, ([(0, 2)], {})),
        (128, ([(0, 128)], {})),
        (129, ([], {"short": 129})),
        (255, ([], {"short": 255})),
        (256, ([(0, 256)], {})),
        (383, ([(0, 383)], {})),
    ],
)
def test_runs_are_kept_from_256_points_on_and_short_pieces_whole(length, expected):
    assert check(rising(length)) == expected


def test_a_run_of_255_points_between_others_is_dropped_and_one_of_256_kept():
    values = rising(128 + 255)
    values[:128] = 7
    assert check(values) == ([], {"repeated": 128, "short": 255})
    values = rising(128 + 256)
    values[:128] = 7
    assert check(values) == ([(128, 384)], {"repeated": 128})


def test_the_last_window_absorbs_what_remains():
    """26 equal neighbors are too many of 127, but not of the 254 of 255 points."""
    values = rising(256 + 255)
    at = 256 + 2 * np.arange(26)
    values[at + 1] = values[at]
    assert check(values) == ([(0, 511)], {})
    assert check(np.append(values, -5)) == ([(0, 256)], {"repeated": 128, "short": 128})
    values = rising(256 + 255)
    values[400:] = 7  # seen in the same window
    assert check(values) == ([(0, 256)], {"repeated": 255})


def test_missing_and_infinite_values_split():
    values = rising(900)
    values[[0, 300, 301, 899]] = [np.nan, np.inf, -np.inf, np.nan]
    assert check(values) == ([(1, 300), (302, 899)], {"missing": 4})


def test_each_piece_between_missing_values_has_windows_of_its_own():
    values = rising(700)
    values[[100, 400]] = np.nan
    # 100 points, kept whole; 299, two windows; 299.
    assert check(values) == ([(0, 100), (101, 400), (401, 700)], {"missing": 2})
    values[399] = np.nan
    values[[130, 290]] = np.nan
    # 29 points, kept whole; 159, too short; 108, kept whole.
    expected = [(0, 100), (101, 130), (291, 399), (401, 700)]
    assert check(values) == (expected, {"missing": 5, "short": 159})


def test_infinities_are_not_repetitions():
    values = rising(256)
    values[100:200] = np.inf
    assert check(values) == ([(0, 100), (200, 256)], {"missing": 100})


def test_nothing_in_nothing_out():
    assert check(np.zeros(0, np.float32)) == ([], {})
    assert check(np.full(5, np.nan)) == ([], {"missing": 5})
    assert clean(np.zeros(0)).pieces.shape == (0, 2)


def test_whole_numbers_are_cleaned_too():
    assert clean(np.arange(1, 301)).pieces.tolist() == [[0, 300]]


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.array(["a"]), np.array([1, None])])
def test_what_is_no_series_is_an_error(values):
    with pytest.raises(DataError, match="one-dimensional and numeric"):
        clean(values)


SHAPES = ("noise", "zeros", "plateau", "alternation", "steps", "missing", "infinite", "scattered")


@st.composite
def series(draw):
    """Stretches of every kind that the rules tell apart, of any length from 0 to 2000 in all."""
    length = draw(st.integers(0, 2000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=length)
    for shape in draw(st.lists(st.sampled_from(SHAPES), max_size=12)):
        start = int(rng.integers(0, length + 1))
        stretch = slice(start, start + int(rng.choice([1, 20, 27, 128, 300])))
        n = len(values[stretch])
        values[stretch] = {
            "noise": rng.normal(size=n),
            "zeros": np.zeros(n),
            "plateau": np.full(n, rng.normal()),
            "alternation": np.resize(rng.normal(size=2), n),
            "steps": np.repeat(rng.normal(size=n), rng.integers(1, 4))[:n],
            "missing": np.full(n, np.nan),
            "infinite": np.full(n, rng.choice([np.inf, -np.inf])),
            # About as many as the limit allows.
            "scattered": np.where(rng.random(n) < 0.2, rng.choice([0, np.nan], n), values[stretch]),
        }[shape]
    return values.astype(draw(st.sampled_from([np.float32, np.float64, np.float16])))


@settings(max_examples=300)
@given(series())
@example(np.tile([1.0, np.nan], 500))
@example(np.tile(np.append(np.arange(1.0, 130), np.nan), 12))
def test_as_the_algorithm_point_by_point(values):
    check(values)


@settings(max_examples=100)
@given(series(), st.sampled_from([1, 100, 128, 300, 512]))
def test_blocks_do_not_show(values, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "_BLOCK", block)
        check(values)


@st.composite
def tied_series(draw):
    """Finite values of which few or many are equal, zero or alternating, in stretches or apart."""
    length = draw(st.integers(1, 2000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=length)
    for _ in range(draw(st.integers(0, 6))):
        begin = int(rng.integers(0, length))
        stretch = slice(begin, begin + int(rng.choice([1, 2, 27, 128, 255, 600])))
        n = len(values[stretch])
        # Of few different values, a share of the points near the limit of a fifth.
        tied = rng.integers(-1, draw(st.integers(1, 4)), n).astype(float)
        shares = st.sampled_from([0.1, 0.2, 0.3, 0.45, 1.0])
        values[stretch] = np.where(rng.random(n) < draw(shares), tied, values[stretch])
    if draw(st.booleans()):
        values = np.round(values, draw(st.integers(0, 2)))
    return values.astype(draw(st.sampled_from([np.float32, np.float64, np.float16])))


@settings(max_examples=400)
@given(tied_series(), st.sampled_from([0.0, 1.0, math.nan]))
@example(np.zeros(1, np.float32), 0.0)
@example(np.ones(2, np.float32), 1.0)
@example(np.tile([1.0, 2.0], 64), 0.0)
def test_short_series_without_gaps_take_a_short_way_to_the_same(values, zero):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "_failed_tests", None)  # of the long way
        cleaned = clean(values, zero)
    # What is zero to the algorithm is `zero`, and no other value.
    moved = np.where(values == 0, 1e6, values.astype(np.float64))
    moved[values == zero] = 0
    assert (list(map(tuple, cleaned.pieces.tolist())), cleaned.dropped) == reference(moved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "_BLOCK", 0)  # nothing is short
        patch.setattr(cleaning, "_failed_tests_of_piece", None)
        long_way = clean(values, zero)
    assert cleaned.dropped == long_way.dropped
    assert cleaned.pieces.dtype == long_way.pieces.dtype == np.int64
    np.testing.assert_array_equal(cleaned.pieces, long_way.pieces)


@settings(max_examples=50)
@given(series())
def test_what_was_kept_is_never_split_by_missing_values_again(values):
    for start, stop in clean(values).pieces:
        assert clean(values[start:stop]).dropped["missing"] == 0


def folder_in_order(folder, order):
    """Series of 0 to 99 points in files of 700, which meta.json lists in another order."""
    lengths = np.random.default_rng(0).integers(0, 100, 60)
    series = np.split(rising(lengths.sum()), np.cumsum(lengths)[:-1])
    write_time_moe_folder(folder, series, points_per_file=700)
    meta = json.loads((folder / "meta.json").read_text())
    meta["scales"] = [meta["scales"][i] for i in order]
    (folder / "meta.json").write_text(json.dumps(meta))
    return [series[i] for i in order]


@pytest.mark.parametrize("ahead", [0, 1, 150, 1 << 18])
@pytest.mark.parametrize("step", [1, 7, -1])
def test_reading_ahead_does_not_show(tmp_path, monkeypatch, ahead, step):
    monkeypatch.setattr(cleaning_tasks, "_READ_AHEAD", ahead)
    order = [step * k % 60 for k in range(60)]
    wanted = folder_in_order(tmp_path / "in", order)
    folder = StoredFolder(tmp_path / "in")
    for first, stop in ((0, 60), (13, 40), (59, 60), (5, 5)):
        found = [stored.values for stored in folder.series(first, stop)]
        assert len(found) == stop - first
        for a, b in zip(found, wanted[first:stop], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("step", [1, -1])
def test_series_in_order_are_read_together_and_no_others(tmp_path, monkeypatch, step):
    monkeypatch.setattr(cleaning_tasks, "_READ_AHEAD", 300)
    wanted = folder_in_order(tmp_path / "in", [step * k % 60 for k in range(60)])
    folder, read = StoredFolder(tmp_path / "in"), []
    original = folder._stored
    monkeypatch.setattr(folder, "_stored", lambda *at: (read.append(at), original(*at))[1])
    total = sum(map(len, wanted))
    assert sum(len(stored.values) for stored in folder.series(0, 60)) == total
    if step == 1:
        # Of 300 points that are read less than 100 may be part of a series that is not whole.
        assert len(read) <= 1 + total // 200
    else:
        assert sum(stop - start for start, stop in read) <= total + 300


def test_a_file_that_changes_meanwhile_is_named(tmp_path):
    folder_in_order(tmp_path / "in", range(60))
    folder = StoredFolder(tmp_path / "in")
    file = next((tmp_path / "in").glob("data-2-*.bin"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=rf"{file.name} has changed since it was opened"):
        list(folder.series(0, 60))


def test_what_is_kept_is_written_to_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning_tasks, "_POINTS_PER_FILE", 1000)
    series = np.split(rising(3000), 10)
    series[4][100] = np.nan
    write_time_moe_folder(tmp_path / "in", series)
    clean_folder(str(tmp_path / "in"), tmp_path / "out", num_processes=1, progress=False)
    files = json.loads((tmp_path / "out/in/meta.json").read_text())["files"]
    # Of the fifth series the first 100 points are kept, and the 199 after the gap are too few.
    assert list(files.values()) == [1200, 1000, 600]
    wanted = [*series[:4], series[4][:100], *series[5:]]
    for a, b in zip(TimeMoeFolderSource(tmp_path / "out/in"), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
