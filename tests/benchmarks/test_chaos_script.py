"""The comparison on chaotic systems: its series, its windows and its errors, by hand."""

import json

import numpy as np
import pytest
from processes import run_here

from benchmarks import chaos
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.series_source import ArraySource, ConcatSource
from timemoe_jax.errors import CheckpointError, DataError


def test_errors_by_hand():
    """Contexts of variance 4 and 1; errors of 0, 1 and 3, and small ones."""
    windows = chaos.Windows(
        contexts=np.array([[-2.0, 2.0, -2.0, 2.0], [4.0, 6.0, 4.0, 6.0]]),
        targets=np.array([[1.0, -1.0, 3.0], [5.0, 0.0, 2.0]]),
        series=np.arange(2),
        left_out={},
    )
    forecasts = np.array([[1.0, 0.0, 0.0], [5.25, 0.0, 2.375]])
    off = chaos.errors(windows, forecasts)
    np.testing.assert_allclose(off["MSE"], [(0 + 1 + 9) / 4 / 3, (0.0625 + 0 + 0.140625) / 3])
    # |f - y| / (|f| + |y|); 0 where both are 0.
    shares = [(0 + 1 / 1 + 3 / 3) / 3, (0.25 / 10.25 + 0 + 0.375 / 4.375) / 3]
    np.testing.assert_allclose(off["sMAPE"], 200 * np.array(shares))
    np.testing.assert_array_equal(off["valid time"], [1, 3])


@pytest.mark.parametrize(
    ("forecast", "steps"), [([9, 9, 9, 9], 0), ([0, 9, 0, 0], 1), ([0, 0, 0, 9], 3), ([0] * 4, 4)]
)
def test_valid_time_ends_at_the_first_large_error(forecast, steps):
    windows = chaos.Windows(np.array([[-1.0, 1.0]]), np.zeros((1, 4)), np.zeros(1, int), {})
    assert chaos.errors(windows, np.array([forecast], float))["valid time"] == [steps]


def test_windows_of_a_series_count_as_one():
    """Series 7 has the mean 2, series 3 the mean 5: 3.5, with deviation 3 / sqrt(2) of two."""
    means = chaos.means_of_series(np.array([1.0, 5.0, 2.0, 3.0]), np.array([7, 3, 7, 7]))
    np.testing.assert_array_equal(means, [5, 2])
    assert chaos.standard_error(means) == pytest.approx(3 / np.sqrt(2) / np.sqrt(2))
    assert np.isnan(chaos.standard_error(means[:1]))


def test_errors_do_not_depend_on_the_unit():
    """Of sMAPE that is true of the scale alone."""
    rng = np.random.default_rng(0)
    contexts, targets, forecasts = (rng.normal(size=(5, n)) for n in (40, 8, 8))
    windows = chaos.Windows(contexts, targets, np.arange(5), {})
    scaled = chaos.Windows(8 * contexts, 8 * targets, np.arange(5), {})
    moved = chaos.Windows(contexts + 64, targets + 64, np.arange(5), {})
    for kind, value in chaos.errors(windows, forecasts).items():
        np.testing.assert_allclose(chaos.errors(scaled, 8 * forecasts)[kind], value, rtol=1e-12)
        if kind != "sMAPE":
            np.testing.assert_allclose(chaos.errors(moved, forecasts + 64)[kind], value, rtol=1e-9)


# Other series


def test_windows_of_series_of_many_kinds():
    rng = np.random.default_rng(0)
    gap = rng.normal(size=100)
    gap[60] = np.nan
    series = {
        0: rng.normal(size=100),
        1: rng.normal(size=29),  # a point too short
        2: np.full(50, 3.0),
        3: gap,
        4: rng.normal(size=30),
        5: np.concatenate([rng.normal(size=30), np.full(30, 1.0), [2.0] * 10]),
    }
    source = ArraySource(list(series.values()))
    windows = chaos.windows_of_source(source, np.arange(6), 20, 10, count=9, each=3)
    assert windows.left_out == {
        "series shorter than 30 points": 1,
        "windows with missing values": 1,
        "windows of constant contexts": 4,
    }
    assert windows.contexts.shape[1] == 20
    assert windows.targets.shape[1] == 10
    starts = {0: [70, 35, 0], 3: [70, 0], 4: [0], 5: [20, 0]}
    assert windows.series.tolist() == [i for i, at in starts.items() for _ in at]
    expected = [series[i][at : at + 30] for i, ats in starts.items() for at in ats]
    np.testing.assert_array_equal(np.hstack([windows.contexts, windows.targets]), expected)


@pytest.mark.parametrize(("length", "each"), [(30, 5), (39, 5), (40, 5), (101, 4), (1000, 7)])
def test_targets_do_not_overlap(length, each):
    source = ArraySource([np.arange(length, dtype=float)])
    windows = chaos.windows_of_source(source, np.arange(1), 20, 10, count=1, each=each)
    starts = windows.targets[:, 0]
    assert starts[0] == length - 10
    assert (np.diff(starts) <= -10).all()
    assert len(starts) == min(each, (length - 30) // 10 + 1)


def test_few_of_many_series_are_spread():
    source = ArraySource([np.arange(40.0) + i for i in range(11)])
    windows = chaos.windows_of_source(source, np.arange(11), 20, 10, count=3, each=1)
    assert windows.series.tolist() == [0, 5, 10]
    assert windows.left_out == {"series beyond --count 3": 8}


def test_each_file_is_a_table_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/x", "a/y", "b/x"):
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, rng.normal(size=(2, 50)))
    source = open_source(str(tmp_path))
    numbers = {name: at.tolist() for name, at in chaos.by_source(source).items()}
    assert numbers == {"a/x.npy": [0, 1], "a/y.npy": [2, 3], "b/x.npy": [4, 5]}
    twice = ConcatSource([open_source(str(tmp_path / "a")), ArraySource([np.ones(3)])], [])
    assert set(chaos.by_source(twice)) == {"a/x.npy", "a/y.npy", "series"}
    (tmp_path / "deep" / "a").mkdir(parents=True)
    np.save(tmp_path / "deep" / "a" / "x.npy", rng.normal(size=(1, 50)))
    files = [str(tmp_path / f"{name}.npy") for name in ("a/x", "deep/a/x")]
    assert list(chaos.by_source(open_source(",".join(files)))) == files


# The program


def test_the_whole_program(tmp_path):
    done = run_here("benchmarks/chaos.py", "--quick", "--json", tmp_path / "rows")
    assert done.returncode == 0, done.stderr
    assert "cores" in done.stdout.splitlines()[0]
    rows = json.loads((tmp_path / "rows").read_text())
    keyed = {row["name"]: row for row in rows}
    assert len(keyed) == len(rows)
    for system in ("Lorenz", "Roessler", "Mackey-Glass"):
        assert keyed[f"{system} series"]["value"] == 8
        for method in ("random", "parroting 10", "parroting 32", "naive", "mean"):
            for kind, unit in chaos.ERRORS.items():
                row = keyed[f"{system} {method} {kind}"]
                assert row["unit"] == unit
                assert keyed[f"{system} {method} {kind} standard error"]["value"] >= 0
                compared = method != "parroting 10"
                assert row["reference"] == ("parroting 10" if compared else None)
                of = keyed[f"{system} parroting 10 {kind}"]["value"]
                assert row["ratio"] == (pytest.approx(row["value"] / of) if compared else None)
        # The mean of the context is off by what the series moves.
        assert 0.5 < keyed[f"{system} mean MSE"]["value"] < 2


def test_a_checkpoint_on_series_of_a_folder(golden, tmp_path, capsys, monkeypatch):
    forecaster = chaos.Forecaster.from_pretrained(golden)  # once, so that it compiles once
    loaded = []
    monkeypatch.setattr(
        chaos.Forecaster, "from_pretrained", lambda path: loaded.append(path) or forecaster
    )
    rng = np.random.default_rng(0)
    np.save(tmp_path / "walks.npy", rng.normal(size=(3, 90)).cumsum(axis=1))
    np.save(tmp_path / "short.npy", rng.normal(size=(2, 20)))
    flags = ["--context", "40", "--horizon", "6", "--stretches", "5", "--windows", "2"]
    arguments = ["--no-systems", "--series", str(tmp_path), "--checkpoint", str(golden)]
    chaos.main([*arguments, *flags, "--json", str(tmp_path / "rows.json")])
    assert loaded == [str(golden)]
    printed = capsys.readouterr().out
    assert "walks.npy: 3 series, 6 windows" in printed
    assert "short.npy: 0 series, 0 windows; 2 series shorter than 46 points left out" in printed
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    title = f"{tmp_path.name}/walks.npy {golden.name}"
    values = np.load(tmp_path / "walks.npy")
    windows = np.stack([series[at : at + 46] for series in values for at in (44, 0)])
    off = forecaster.forecast(windows[:, :40], 6).point - windows[:, 40:]
    each = (off**2).mean(axis=1) / windows[:, :40].var(axis=1)
    means = each.reshape(3, 2).mean(axis=1)
    assert rows[f"{title} MSE"]["value"] == pytest.approx(means.mean(), rel=1e-6)
    assert rows[f"{title} median MSE"]["value"] == pytest.approx(np.median(means), rel=1e-6)
    error = means.std(ddof=1) / np.sqrt(3)
    assert rows[f"{title} MSE standard error"]["value"] == pytest.approx(error, rel=1e-6)


def test_nothing_to_measure_is_an_error(tmp_path):
    np.save(tmp_path / "short.npy", np.arange(20.0)[None])
    with pytest.raises(DataError, match="holds no window that can be measured"):
        chaos.main(["--no-systems", "--series", str(tmp_path)])
    with pytest.raises(DataError, match="does not exist"):
        chaos.main(["--series", str(tmp_path / "absent")])
    with pytest.raises(CheckpointError, match="does not exist"):
        chaos.main(["--checkpoint", str(tmp_path / "absent")])


def test_a_model_without_room_is_named(golden, tmp_path):
    with pytest.raises(DataError, match=r"context_length \d+ \+ horizon 128 exceeds"):
        chaos.main(["--checkpoint", str(golden), "--context", "100000"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--context", "0"], "--context must be positive, but is 0"),
        (["--windows", "-1"], "--windows must be positive, but is -1"),
        (["--stretches", "ten"], "must be whole numbers, but is 'ten'"),
        (["--stretches", "10,300"], "300 is not from 1 to half of --context, 512"),
        (["--no-systems"], "leaves nothing to measure"),
    ],
)
def test_flags_that_cannot_be_are_said(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        chaos.parse(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
