"""Planted copies of benchmarks are found, and nothing is found where nothing was planted."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.cli import main as cli
from timemoe_jax.data.corpus.overlap import find_overlaps, fingerprints
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.generators.families.components import SyntheticSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError

W = 64


def seasonal(rng, n, decimals=3):
    """Daily cycle, trend and noise around a level far from zero, as a logger rounds it."""
    t = np.arange(n)
    values = 40 + 3 * np.sin(2 * np.pi * t / 24) + 0.002 * t + 0.6 * rng.standard_normal(n)
    return np.round(values, decimals)


def walk(rng, n):
    return 100 + np.cumsum(rng.standard_normal(n))


@pytest.fixture(scope="module")
def benchmark_csv(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("bench") / "grid.csv"
    table = {"date": pd.date_range("2024", periods=900, freq="h")}
    table |= {"load": seasonal(rng, 900), "price": walk(rng, 900), "idle": np.zeros(900)}
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def column(path, name):
    return pd.read_csv(path)[name].to_numpy()


def search(series, path, window=W):
    return find_overlaps(ArraySource(series), [path], window)


def planted(rng, piece, at, n=700):
    values = walk(rng, n)
    values[at : at + len(piece)] = piece
    return values


@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["load", "price"]),
    at=st.integers(0, 500),
    row=st.integers(0, 700),
    points=st.integers(2 * W - 1, 200),
)
def test_every_copy_of_two_windows_less_one_is_found(benchmark_csv, seed, name, at, row, points):
    rng = np.random.default_rng([99, seed])  # not the seed of the benchmark
    piece = column(benchmark_csv, name)[row : row + points]
    report = search([walk(rng, 300), planted(rng, piece, at)], benchmark_csv)
    assert {(o.sequence, o.column, o.row - o.offset) for o in report.overlaps} == {
        (1, name, row - at)
    }
    (found,) = report.overlaps
    assert found.kind == "values"
    assert at <= found.offset
    assert found.offset + found.points <= at + len(piece)
    assert found.points > len(piece) - 2 * W
    assert found.source == "series 1"
    assert found.benchmark == str(benchmark_csv)


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-3, 1e6),
    sign=st.sampled_from([-1, 1]),
    shift=st.floats(-1e4, 1e4),
    at=st.integers(0, 400),
)
def test_scaled_shifted_and_mirrored_copies_are_found(benchmark_csv, seed, scale, sign, shift, at):
    rng = np.random.default_rng([99, seed])  # not the seed of the benchmark
    original = column(benchmark_csv, "price")[300:600]
    piece = sign * scale * (original + shift)
    (found,) = search([planted(rng, piece, at)], benchmark_csv).overlaps
    assert (found.column, found.row - found.offset) == ("price", 300 - at)
    assert found.scale == pytest.approx(sign * scale, rel=1e-6)
    np.testing.assert_allclose(found.scale * original + found.shift, piece, rtol=1e-6, atol=1e-6)


def test_the_kind_says_whether_values_are_equal(benchmark_csv):
    piece = column(benchmark_csv, "load")[100:300]
    equal, scaled = (
        search([values], benchmark_csv).overlaps[0] for values in (piece, 1.0001 * piece)
    )
    assert (equal.kind, scaled.kind) == ("values", "shape")
    assert (equal.scale, equal.shift) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert scaled.scale == pytest.approx(1.0001)


@pytest.mark.parametrize("name", ["load", "price"])
def test_float32_and_standardized_storage_is_looked_through(benchmark_csv, name, tmp_path):
    """As published: float32 z-scores, with the mean and deviation beside them."""
    whole = column(benchmark_csv, name)
    mean, std = whole.mean(), whole.std()
    write_time_moe_folder(tmp_path / "z", [(whole - mean) / std])
    meta = json.loads((tmp_path / "z" / "meta.json").read_text())
    without = find_overlaps(open_source(str(tmp_path / "z")), [benchmark_csv], W)
    meta["scales"][0] |= {"mean": mean, "std": std}
    (tmp_path / "z" / "meta.json").write_text(json.dumps(meta))
    restored = find_overlaps(open_source(str(tmp_path / "z")), [benchmark_csv], W)
    rounded = search([whole.astype(np.float32)], benchmark_csv)
    for report in (without, restored, rounded):
        (found,) = report.overlaps
        assert (found.offset, found.row, found.points) == (0, 0, 900)
    assert without.overlaps[0].scale == pytest.approx(1 / std, rel=1e-5)
    assert restored.overlaps[0].kind == rounded.overlaps[0].kind == "values"


def test_a_smooth_stretch_is_found_by_its_values_alone(tmp_path):
    """Too smooth for its shape to say anything."""
    t = np.arange(400)
    smooth = 20 + 5 * np.sin(t / 30) + np.cos(t / 47)
    path = tmp_path / "smooth.csv"
    pd.DataFrame({"height": smooth}).to_csv(path, index=False)
    (found,) = search([smooth[100:300].astype(np.float32)], path).overlaps
    assert (found.kind, found.row - found.offset) == ("values", 100)
    other = search([2 * smooth[100:300] + 1], path)
    assert not other.overlaps
    assert other.corpus_ignored["smooth, so compared by value alone"] > 0


def test_a_shorter_stretch_may_be_missed_but_not_at_a_window(benchmark_csv):
    rng = np.random.default_rng(1)
    piece = column(benchmark_csv, "load")[200 : 200 + W]
    assert search([planted(rng, piece, at=2 * W)], benchmark_csv).overlaps
    assert not search([planted(rng, piece, at=2 * W + 1)], benchmark_csv).overlaps


def test_the_end_of_a_sequence_counts(benchmark_csv):
    rng = np.random.default_rng(2)
    piece = column(benchmark_csv, "load")[200 : 200 + W]
    (found,) = search([np.concatenate([walk(rng, 133), piece])], benchmark_csv).overlaps
    assert (found.offset, found.row, found.points) == (133, 200, W)


def test_walks_and_seasons_of_their_own_are_no_overlap(tmp_path):
    rng = np.random.default_rng(3)
    t = np.arange(3000)
    benchmark = {f"walk{k}": walk(rng, 3000) for k in range(3)}
    benchmark |= {f"season{k}": seasonal(rng, 3000, decimals=1) for k in range(3)}
    benchmark |= {"sine": np.sin(2 * np.pi * t / 24), "week": (t % 7) ** 2.0, "counter": t % 24.0}
    path = tmp_path / "bench.csv"
    pd.DataFrame(benchmark).to_csv(path, index=False)
    corpus = [walk(rng, 2000) for _ in range(20)]
    corpus += [seasonal(rng, 2000, decimals=1) for _ in range(20)]
    corpus += [np.sin(2 * np.pi * (t + k) / 24) for k in range(5)]
    corpus += [5.0 * (t % 7) ** 2 + 3, t % 24.0, np.round(rng.random(2000))]
    corpus += list(SyntheticSource(100, 2000, seed=4))
    report = search(corpus, path)
    assert report.overlaps == ()
    assert report.counts["benchmark_windows"] == 9 * (3000 - W + 1)
    # The counter and the steps of the week are there again.
    assert report.counts["matches_of_exactly_periodic_windows_left_out"] > 0


def test_what_says_nothing_is_ignored_and_counted(benchmark_csv):
    rng = np.random.default_rng(5)
    gap = walk(rng, 2 * W)
    gap[10] = np.nan
    report = search(
        [
            np.zeros(2 * W),
            3.7 * np.arange(2 * W),
            1e6 + 1e-4 * rng.random(W),
            np.tile([0.0, 1.0, 5.0], W)[: 2 * W],
            gap,
            np.ones(W - 1),
        ],
        benchmark_csv,
    )
    assert report.overlaps == ()
    assert report.corpus_ignored == {
        "constant or nearly": 2 + 1,
        "a straight line": 2,
        "few distinct values": 2,
        "missing values": 1,
    }
    assert report.benchmark_ignored["constant or nearly"] == 900 - W + 1
    assert report.counts["corpus_sequences_shorter_than_a_window"] == 1
    assert report.counts["corpus_points_in_those"] == W - 1
    assert report.counts["corpus_windows"] == 2 + 2 + 1 + 2 + 2
    assert "constant or nearly: 3" in report.to_text()


def test_a_spike_leaves_few_values_to_compare():
    """What is left of a quiet window beside an error code of -9999."""
    quiet = np.round(0.3 * np.random.default_rng(6).random((1, W)), 1)
    quiet[0, 20] = -9999
    assert fingerprints(quiet).ignored == {"few distinct values": 1}


def test_fingerprints_do_not_depend_on_scale_sign_or_shift():
    windows = np.random.default_rng(7).standard_normal((50, W))
    plain, mirrored = fingerprints(windows), fingerprints(8 - 0.5 * windows)
    np.testing.assert_array_equal(plain.hashes[2:], mirrored.hashes[2:])
    assert not np.any(plain.hashes[:2] == mirrored.hashes[:2])
    assert len(np.unique(plain.hashes)) == plain.hashes.size


@pytest.mark.parametrize("magnitude", [1e-300, 1e300])
def test_magnitudes_at_the_ends_of_float64(benchmark_csv, magnitude):
    piece = magnitude * column(benchmark_csv, "load")[:200]
    (found,) = search([piece], benchmark_csv).overlaps
    assert found.points == 200


def test_long_sequences_are_read_in_parts(benchmark_csv, monkeypatch):
    rng = np.random.default_rng(8)
    piece = column(benchmark_csv, "load")[:400]
    monkeypatch.setattr("timemoe_jax.data.corpus.overlap._PART", 3 * W + 5)
    monkeypatch.setattr("timemoe_jax.data.corpus.overlap._BATCH", 2)
    report = search([planted(rng, piece, 150, n=1001)], benchmark_csv)
    (found,) = report.overlaps
    assert (found.offset, found.row, found.points) == (3 * W, 3 * W - 150, 5 * W)
    assert report.counts["corpus_windows"] == 1001 // W + 1


def test_a_benchmark_inside_several_sequences(benchmark_csv):
    load = column(benchmark_csv, "load")
    report = search([load[:300], load[150:500], -load], benchmark_csv)
    places = [(o.sequence, o.row, o.points) for o in report.overlaps]
    assert places == [(0, 0, 300), (1, 150, 350), (2, 0, 900)]
    assert report.overlaps[2].scale == pytest.approx(-1)
    text = report.to_text(most=2)
    assert "series 0, from point 0: 300 points of grid.csv 'load', from row 0 (equal)" in text
    assert "and 1 more" in text
    assert "127 points" in text


def test_what_cannot_be_searched_is_an_error(benchmark_csv):
    with pytest.raises(DataError, match="window is 8"):
        search([np.ones(100)], benchmark_csv, window=8)
    with pytest.raises(DataError, match="no benchmark"):
        find_overlaps(ArraySource([np.ones(100)]), [])


def test_a_benchmark_shorter_than_a_window_has_none(tmp_path):
    path = tmp_path / "short.csv"
    pd.DataFrame({"x": np.arange(10.0)}).to_csv(path, index=False)
    report = search([walk(np.random.default_rng(9), 500)], path)
    assert report.counts["benchmark_windows"] == 0
    assert report.overlaps == ()


def test_the_command_exits_with_one_where_it_finds_something(benchmark_csv, tmp_path, capsys):
    rng = np.random.default_rng(10)
    leaked, clean = tmp_path / "leaked", tmp_path / "clean"
    write_time_moe_folder(clean, [walk(rng, 500)])
    write_time_moe_folder(leaked, [walk(rng, 500), 2 * column(benchmark_csv, "price")])
    cli.main(["data", "overlap", str(clean), str(benchmark_csv.parent)])
    assert "no overlap" in capsys.readouterr().out
    command = [sys.executable, "-m", "timemoe_jax.cli.main", "data", "overlap", str(leaked)]
    done = subprocess.run([*command, str(benchmark_csv), "--json"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)["overlaps"]
    assert found["source"] == f"{leaked} sequence 1"
    assert (found["column"], found["offset"], found["row"], found["points"]) == ("price", 0, 0, 900)


def test_real_rows_hidden_in_a_corpus_are_found(shared_dir):
    """ETTh2 is rounded to three decimals and scaled; ETTh1 is not there."""
    folder = shared_dir / "data" / "ETT-small"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    table = pd.read_csv(folder / "ETTh2.csv")
    hidden = [np.round(table[name].to_numpy()[5000:6000], 3) * 0.1 for name in ("HUFL", "OT")]
    report = find_overlaps(ArraySource(hidden), [folder / "ETTh1.csv", folder / "ETTh2.csv"])
    found = {(o.sequence, o.column, o.row - o.offset) for o in report.overlaps}
    assert found == {(0, "HUFL", 5000), (1, "OT", 5000)}
    assert {o.benchmark for o in report.overlaps} == {str(folder / "ETTh2.csv")}
