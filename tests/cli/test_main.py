"""The `timemoe` command, in process and as a process."""

import functools
import json
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from timemoe_jax import Forecaster
from timemoe_jax.cli import main as cli

# Of calls whose contexts are many, so that those are of one length.
SHORT = ("--context-length", 16, "--horizon", 6)


@pytest.fixture(autouse=True, scope="module")
def _loaded_once():
    """A command goes on with the programs of those before it, if it names the same checkpoint."""
    once = functools.cache(Forecaster.from_pretrained)
    with mock.patch.object(Forecaster, "from_pretrained", once):
        yield


@pytest.fixture
def csv(tmp_path):
    t = np.arange(120)
    path = tmp_path / "load.csv"
    pd.DataFrame(
        {
            "date": pd.date_range("2024-03-01", periods=120, freq="h"),
            "north": np.sin(2 * np.pi * t / 24),
            "south": 5.0 * t,
        }
    ).to_csv(path, index=False)
    return path


def _fails(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_forecast_writes_dated_rows_and_a_picture(golden, csv, tmp_path, capsys):
    out, plot = tmp_path / "new" / "forecast.csv", tmp_path / "forecast.png"
    arguments = ["forecast", csv, "--checkpoint", golden, *SHORT, "--levels", "80,50"]
    arguments += ["--digits", 12]
    cli.main([str(a) for a in [*arguments, "--out", out, "--plot", plot]])
    written = pd.read_csv(out, parse_dates=["date"])
    levels = ["0.1", "0.25", "0.75", "0.9"]
    assert list(written.columns) == ["date", "target_name", "predictions", *levels]
    assert written["target_name"].tolist() == ["north"] * 6 + ["south"] * 6
    assert written["date"].tolist() == list(pd.date_range("2024-03-06", periods=6, freq="h")) * 2
    table = pd.read_csv(csv)
    expected = Forecaster.from_pretrained(str(golden)).forecast(
        table[["north", "south"]].to_numpy().T, 6, 16, quantile_levels=(0.1, 0.25, 0.75, 0.9)
    )
    np.testing.assert_allclose(written["predictions"].to_numpy().reshape(2, 6), expected.point)
    np.testing.assert_allclose(written[levels].to_numpy().reshape(2, 6, 4), expected.quantiles)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert str(out) in capsys.readouterr().out


def test_forecast_to_standard_output(golden, csv, capsys):
    cli.main(["forecast", str(csv), "--checkpoint", str(golden), "--horizon", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * 2


def test_absent_rows_are_counted(golden, csv, capsys):
    frame = pd.read_csv(csv).drop(index=[5, 17])
    frame.to_csv(csv, index=False)
    cli.main(["forecast", str(csv), "--checkpoint", str(golden), "--horizon", "2"])
    assert "note: 4 times without a row" in capsys.readouterr().err


def test_a_table_without_dates_is_numbered(golden, csv, capsys):
    pd.read_csv(csv)[["north", "south"]].to_csv(csv, index=False)
    cli.main(["forecast", str(csv), "--checkpoint", str(golden), "--horizon", "2"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "step,target_name,predictions"
    assert [row.split(",")[:2] for row in rows[1:3]] == [["120", "north"], ["121", "north"]]


def test_forecast_with_covariates_and_a_backtest(golden, csv, tmp_path, capsys):
    frame = pd.read_csv(csv, parse_dates=["date"])
    rng = np.random.default_rng(0)
    frame["promotion"] = rng.integers(0, 2, len(frame))
    frame["north"] += 50 * frame["promotion"]
    frame.to_csv(csv, index=False)
    dates = pd.date_range("2024-03-06", periods=6, freq="h")
    future = tmp_path / "future.csv"
    pd.DataFrame({"date": dates, "promotion": [1, 0, 1, 0, 0, 0]}).to_csv(future, index=False)
    arguments = ["forecast", csv, "--checkpoint", golden, *SHORT, "--target", "north"]
    cli.main([str(a) for a in [*arguments, "--future", future, "--backtest", 2, "--season", 24]])
    shown = capsys.readouterr()
    point = [float(row.split(",")[2]) for row in shown.out.splitlines()[1:]]
    assert min(point[0], point[2]) > max(point[1], point[3]) + 25
    assert "seasonal naive" in shown.err


def test_parquet_in_long_form(golden, tmp_path, capsys):
    times = pd.date_range("2024-01-31", periods=120, freq="ME")
    parts = [
        pd.DataFrame({"unique_id": name, "ds": times, "y": np.arange(120.0) % 12 + k})
        for k, name in enumerate(("b", "a"))
    ]
    path = tmp_path / "long.parquet"
    pd.concat(parts).to_parquet(path)
    cli.main(["forecast", str(path), "--checkpoint", str(golden), "--horizon", "2"])
    rows = [row.split(",") for row in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["unique_id", "ds", "target_name", "predictions"]
    assert [row[:3] for row in rows[1:]] == [
        ["b", "2034-01-31", "y"],
        ["b", "2034-02-28", "y"],
        ["a", "2034-01-31", "y"],
        ["a", "2034-02-28", "y"],
    ]


def test_convert_there_and_back(golden, tmp_path, capsys):
    cli.main(["convert", str(golden), str(tmp_path / "orbax")])
    cli.main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back"), "--to-safetensors"])
    assert capsys.readouterr().out.count("\n") == 2
    from safetensors.numpy import load_file

    before, after = (load_file(f / "model.safetensors") for f in (golden, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    configs = [json.loads((f / "config.json").read_text()) for f in (golden, tmp_path / "back")]
    assert configs[0] == configs[1]


def test_a_text_column(golden, csv, capsys):
    pd.read_csv(csv).assign(note="windy").to_csv(csv, index=False)
    line = _fails(capsys, "forecast", csv, "--checkpoint", golden, "--horizon", 2)
    assert "load.csv: column 'note' must hold numbers, but line 2 holds 'windy'" in line


def test_a_column_that_is_wholly_missing(golden, csv, capsys):
    pd.read_csv(csv).assign(south=np.nan).to_csv(csv, index=False)
    line = _fails(capsys, "forecast", csv, "--checkpoint", golden, "--horizon", 2)
    assert "load.csv: south has no observed value" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["forecast", "{csv}", "--checkpoint", "{golden}", "--horizon", "0"], "horizon must be"),
        (["forecast", "{csv}", "--checkpoint", "/nowhere", "--horizon", "3"], "/nowhere"),
        (["forecast", "/no.csv", "--checkpoint", "{golden}", "--horizon", "3"], "/no.csv"),
        (["forecast", "/no.txt", "--checkpoint", "{golden}", "--horizon", "3"], ".csv, .parquet"),
        (
            ["forecast", "{csv}", "--checkpoint", "{golden}", "--horizon", "3", "--levels", "80,x"],
            "'x' must be above 0 and below 100",
        ),
        (["convert", "/nowhere", "{out}"], "/nowhere"),
        (["convert", "{golden}", "{golden}"], "moe_tiny"),
        (["data", "download", "m4", "{out}"], "invalid choice: 'm4'"),
        (["data", "download", "ett", "{out}", "--base-url", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_mistakes_are_one_line(golden, csv, tmp_path, capsys, argv, message):
    names = {"csv": csv, "golden": golden, "out": tmp_path / "out"}
    assert message in _fails(capsys, *(a.format(**names) for a in argv))


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["forecast", "--help"], ["convert", "--help"], ["score", "--help"]),
        *(["data", "--help"], ["data", "download", "--help"]),
    ],
)
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: timemoe" in text
    assert len(text.splitlines()) > 5


def test_help_does_not_wait_for_jax():
    program = (
        "import sys; from timemoe_jax.cli import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plot_of_forecasts_and_experts(golden, csv, tmp_path, capsys):
    out, usage = tmp_path / "held_out.png", tmp_path / "experts.png"
    arguments = ["plot", csv, "--checkpoint", golden, *SHORT, "--levels", "50"]
    cli.main([str(a) for a in [*arguments, "--out", out, "--experts", usage]])
    assert capsys.readouterr().out.splitlines() == [f"wrote {out}", f"wrote {usage}"]
    for picture in (out, usage):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert "give --out, --experts or --graph" in _fails(capsys, *arguments)
