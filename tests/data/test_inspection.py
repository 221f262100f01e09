"""What is said about a corpus is what is in it."""

import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.cli import main as cli
from timemoe_jax.data.corpus.inspection import UNKNOWN, downsample, file_of, inspect_source
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError
from timemoe_jax.plotting import Thumbnail, plot_sheet

NAN, INF = float("nan"), float("inf")


def inspect_arrays(series, **options):
    return inspect_source(ArraySource([np.array(s, float) for s in series]), **options)


@pytest.fixture
def corpus(tmp_path):
    """Two domains of three sources, a .csv on top, and a file of another kind."""
    root = tmp_path / "corpus"
    rng = np.random.default_rng(0)
    write_time_moe_folder(root / "nature" / "river", [rng.random(n) for n in (80, 300, 5000)])
    write_time_moe_folder(root / "energy" / "load", [rng.random(60) for _ in range(40)])
    (root / "energy" / "notes.txt").write_text("no series")
    lines = [json.dumps({"sequence": [1.0, None, 2.0]}), json.dumps([0, 0, 0, 0])]
    (root / "energy" / "small.jsonl").write_text("\n".join(lines))
    dates = pd.date_range("2024", periods=30, freq="15min")
    pd.DataFrame({"date": dates, "a b": np.arange(30.0), "c": 1.0}).to_csv(
        root / "top.csv", index=False
    )
    meta = root / "nature" / "river" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"frequency": "1 d"}))
    return root


def test_counts_by_hand():
    found = inspect_arrays(
        [
            [0, 0, 1, NAN],
            [2, 2, 2],
            [-0.0, 0.0],
            [NAN, INF],
            [],
            [INF, 1, -INF],
            [7],
        ]
    )
    assert (found.sequences, found.points) == (7, 15)
    assert (found.missing_points, found.infinite_points, found.zero_points) == (2, 3, 4)
    assert found.sequences_with_missing == 2
    assert (found.empty_sequences, found.all_missing_sequences) == (1, 1)
    # [2, 2, 2], the zeros, the one beside infinities, and the single point.
    assert (found.constant_sequences, found.all_zero_sequences) == (4, 1)


@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.5, NAN, INF]), max_size=9), max_size=12))
def test_counts_agree_with_numpy_whatever_the_parts(series):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timemoe_jax.data.corpus.inspection._PART", 4)
        found = inspect_arrays(series)
    flat = np.array([x for s in series for x in s], float)
    assert found.points == found.total_points == flat.size
    assert found.missing_points == np.isnan(flat).sum()
    assert found.infinite_points == np.isinf(flat).sum()
    assert found.zero_points == (flat == 0).sum()
    assert sum(count for _, _, count in found.length_histogram) == len(series)
    keys = [tuple("nan" if np.isnan(x) else x + 0.0 for x in s) for s in series if len(s) > 1]
    assert found.duplicate_sequences == len(keys) - len(set(keys))
    assert found.to_text()


def test_zeros_and_constants_are_seen_through_float32_scores(tmp_path):
    values = np.array([0.0, 3, 0, 1e-3, 12, 0, 100, 101, 99, 0])
    scores = ((values - values.mean()) / values.std()).astype(np.float32)
    write_time_moe_folder(tmp_path / "z", [scores, scores[[1, 1, 1]]])
    meta = json.loads((tmp_path / "z" / "meta.json").read_text())
    for scale in meta["scales"]:
        scale |= {"mean": values.mean(), "std": values.std()}
    (tmp_path / "z" / "meta.json").write_text(json.dumps(meta))
    source = open_source(str(tmp_path / "z"))
    assert 0 not in source[0]
    found = inspect_source(source)
    assert (found.zero_points, found.constant_sequences) == (4, 1)


def test_duplicates_are_named():
    found = inspect_arrays(
        [[1, 2], [1, 2, 3], [1, 2], [NAN, 3], [1, 2], [NAN, 3], [2, 1], [4], [4]]
    )
    assert found.duplicate_sequences == 3
    assert set(found.duplicate_examples) == {
        ("series 0", "series 2"),
        ("series 2", "series 4"),
        ("series 3", "series 5"),
    }
    assert "series 5 is series 3" in found.to_text()


def test_lengths():
    found = inspect_arrays([np.zeros(n) for n in [*range(1, 100), 1000]])
    assert found.length_quantiles == {
        "min": 1,
        "1%": 1,
        "5%": 5,
        "25%": 25,
        "50%": 50,
        "75%": 75,
        "95%": 95,
        "99%": 99,
        "max": 1000,
    }
    bins = [(1, 1, 1), (2, 4, 3), (5, 9, 5), (10, 19, 10), (20, 49, 30), (50, 99, 50)]
    assert found.length_histogram == [*bins, (100, 199, 0), (200, 499, 0), (500, 999, 0)] + [
        (1000, 1999, 1)
    ]
    (longest,) = [line for line in found.to_text().splitlines() if line.endswith("#" * 40)]
    assert longest.split()[:4] == ["50", "-", "99", "50"]


def test_domains_sources_and_frequencies(corpus):
    found = inspect_source(open_source(str(corpus)), str(corpus))
    sources = {name: (s.sequences, s.points) for name, s in found.sources.items()}
    assert sources == {
        "energy/load": (40, 2400),
        "energy/small.jsonl": (2, 7),
        "nature/river": (3, 5380),
        "top.csv": (2, 60),
    }
    domains = {name: (s.sequences, s.points) for name, s in found.domains.items()}
    assert domains == {"energy": (42, 2407), "nature": (3, 5380), UNKNOWN: (2, 60)}
    frequencies = {name: s.sequences for name, s in found.frequencies.items()}
    assert frequencies == {"1 d": 3, "15min": 2, UNKNOWN: 42}
    assert found.skipped_files == [str(corpus / "energy" / "notes.txt")]
    assert found.missing_points == 1
    assert found.all_zero_sequences == 1
    text = found.to_text(most=2)
    assert "nature/river" in text
    assert "and 2 more" in text


def test_paths_with_commas_between(corpus):
    path = f"{corpus / 'nature'}, {corpus / 'energy' / 'load'}"
    found = inspect_source(open_source(path), path)
    assert {name: s.sequences for name, s in found.sources.items()} == {"river": 3, "load": 40}


def test_a_sample_is_even_and_said(corpus):
    source = open_source(str(corpus / "energy" / "load"))
    found = inspect_source(source, max_sequences=4)
    assert (found.total_sequences, found.sequences, found.points) == (40, 4, 240)
    assert sorted(found.examples) == [5, 15, 25, 35]
    assert "sampled evenly: 4 sequences of 240 points" in found.to_text()
    assert "sampled" not in inspect_source(source, max_sequences=40).to_text()
    with pytest.raises(DataError, match="max_sequences is 0"):
        inspect_source(source, max_sequences=0)


def test_examples_come_from_every_source_and_follow_the_seed(corpus):
    source = open_source(str(corpus))
    drawn = inspect_source(source, str(corpus), seed=1, num_examples=4).examples
    assert len({file_of(source.name(i)) for i in drawn}) == 4
    assert drawn == inspect_source(source, str(corpus), seed=1, num_examples=4).examples
    others = [inspect_source(source, str(corpus), seed=s, num_examples=4).examples for s in (2, 3)]
    assert any(drawn != other for other in others)
    every = inspect_source(source, str(corpus), num_examples=100).examples
    assert sorted(every) == list(range(47))


def test_every_series_of_a_source_may_be_an_example():
    source = ArraySource([np.zeros(3)] * 5)
    drawn = [inspect_source(source, seed=s, num_examples=1).examples[0] for s in range(300)]
    counts = np.bincount(drawn, minlength=5)
    # A fifth each: 60 with a deviation of 7.
    assert (abs(counts - 60) < 30).all()


def test_the_file_in_a_name(tmp_path):
    for name in ("river", "river bed", "x.csv"):
        (tmp_path / name).mkdir()
        for place in ("sequence 12", "column rain (mm)", "array a b row 0"):
            assert file_of(f"{tmp_path / name} {place}") == str(tmp_path / name)
    assert file_of("series 7") == ""


def test_a_folder_may_say_the_frequency_of_each_series(corpus):
    meta = corpus / "nature" / "river" / "meta.json"
    changed = json.loads(meta.read_text())
    changed["scales"][1]["freq"] = "W"
    meta.write_text(json.dumps(changed))
    found = inspect_source(open_source(str(meta.parent)))
    assert {name: s.points for name, s in found.frequencies.items()} == {"1 d": 5080, "W": 300}


def test_a_long_table_has_a_source_and_a_frequency(tmp_path):
    path = tmp_path / "long.csv"
    hours = pd.date_range("2024", periods=30, freq="h")
    frame = pd.concat(pd.DataFrame({"unique_id": i, "ds": hours, "y": 1.0}) for i in "ab")
    frame.to_csv(path)
    inspection = inspect_source(open_source(str(path)), str(path))
    assert (inspection.frequencies.keys(), inspection.sources.keys()) == ({"h"}, {"long.csv"})
    assert "columns left out: ''" in inspection.to_text()
    frame[~((frame["unique_id"] == "b") & (frame["ds"].dt.hour % 2 == 1))].to_csv(path)
    assert inspect_source(open_source(str(path)), str(path)).frequencies.keys() == {UNKNOWN}


def test_thinning_keeps_extremes_and_gaps(monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(50_000)
    values[31_234] = 50.0
    values[10_000:20_000] = NAN
    source = ArraySource([values, values[:100]])
    thinned = downsample(source, 0, num_bins=100)
    monkeypatch.setattr("timemoe_jax.data.corpus.inspection._PART", 1000)
    for one, other in zip(thinned, downsample(source, 0, num_bins=100), strict=True):
        np.testing.assert_array_equal(one, other)
    positions, kept = thinned
    assert len(positions) == len(kept) == 200
    assert (np.diff(positions) >= 0).all()
    assert kept[np.searchsorted(positions, 31_234)] == 50.0
    assert np.isnan(kept[(positions > 10_500) & (positions < 19_500)]).all()
    assert np.nanmin(kept) == np.nanmin(values)
    seen = np.isfinite(kept)
    np.testing.assert_array_equal(values[positions[seen].astype(int)], kept[seen])
    np.testing.assert_array_equal(downsample(source, 1)[1], values[:100])


def test_a_sheet_has_a_place_for_every_series(tmp_path):
    t = np.arange(50.0)
    items = [Thumbnail(f"series {k}", t, np.sin(t / (k + 2))) for k in range(5)]
    items[1] = Thumbnail("one point", t[:1], t[:1])
    items[2] = Thumbnail("none", t[:0], t[:0])
    items[3] = Thumbnail("missing", t, np.full(50, NAN))
    image = matplotlib.image.imread(plot_sheet(tmp_path / "new" / "sheet.png", items, columns=4))
    one_row = matplotlib.image.imread(plot_sheet(tmp_path / "row.png", items[:4], columns=4))
    assert image.shape[1] == one_row.shape[1]
    assert image.shape[0] > 1.5 * one_row.shape[0]
    blue = np.array([0x1F, 0x5F, 0x8B]) / 255
    drawn = (np.abs(image[..., :3] - blue).max(axis=-1) < 0.02).nonzero()
    # The fifth series is in the second row, on the left.
    assert ((drawn[0] > image.shape[0] / 2) & (drawn[1] < image.shape[1] / 4)).any()
    assert not ((drawn[0] > image.shape[0] / 2) & (drawn[1] > image.shape[1] / 4)).any()


def test_the_command(corpus, tmp_path, capsys):
    out = tmp_path / "new" / "report"
    cli.main(["data", "inspect", str(corpus), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "47 sequences, 7,847 points" in printed
    assert (out / "series.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((out / "inspection.json").read_text())
    assert written["domains"]["nature"] == {"sequences": 3, "points": 5380}
    command = [
        sys.executable,
        "-m",
        "timemoe_jax.cli.main",
        "data",
        "inspect",
        str(corpus),
        "--json",
    ]
    done = subprocess.run(
        [*command, "--max-sequences", "3"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["sequences"] == 3


def test_a_damaged_series_is_named(corpus, capsys):
    lines = (corpus / "energy" / "small.jsonl").read_text().splitlines()
    source = open_source(str(corpus))
    (corpus / "energy" / "small.jsonl").write_text("\n".join([lines[0][:-4], lines[1]]))
    with pytest.raises(DataError, match=r"small\.jsonl line 1"):
        inspect_source(source, str(corpus))
    with pytest.raises(SystemExit):
        cli.main(["data", "inspect", str(corpus)])
    assert "small.jsonl line 1" in capsys.readouterr().err
