"""`timemoe forecast`: what it reads, what it chooses by itself, and what it writes, and where."""

import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from fake_forecaster import FakeForecaster

from timemoe_jax import Forecaster
from timemoe_jax.checkpoints import bundled
from timemoe_jax.cli import forecast as command
from timemoe_jax.cli import main as cli
from timemoe_jax.cli.results import digits_of, parse_coverages
from timemoe_jax.errors import DataError


@pytest.fixture(autouse=True)
def asked():
    """Names of the models that were loaded; each forecasts the last value plus the steps since."""
    names = []

    def load(name, *_, **__):
        names.append(name)
        return FakeForecaster()

    with mock.patch.object(Forecaster, "from_pretrained", load):
        yield names


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text, *argv, file="data.csv"):
        if text is not None:
            (tmp_path / file).write_text(text, encoding="utf-8")
        cli.main(["forecast", file, *map(str, argv)])
        return capsys.readouterr()

    return run


@pytest.fixture
def fails(run, capsys):
    def fails(text, *argv):
        with pytest.raises(SystemExit) as caught:
            run(text, *argv)
        assert caught.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return fails


def days(header="date,v", row="{day},{value}", count=31):
    """A table of January 2024, or of as many days as are asked for, with a week as its season."""
    dates = pd.date_range("2024-01-01", periods=count)
    rows = (
        row.format(i=i, day=f"{date:%Y-%m-%d}", value=i % 7 + 0.5) for i, date in enumerate(dates)
    )
    return "\n".join([header, *rows]) + "\n"


AHEAD = ["2024-02-01,v,3.5", "2024-02-02,v,4.5"]  # the last value, 2.5, and the steps


@pytest.mark.parametrize(
    ("text", "argv", "note"),
    [
        (days(), (), ""),
        (days(",date,v", "{i},{day},{value}"), (), "row counters left out: ''"),
        (days("Unnamed: 0,date,v", "{i},{day},{value}"), (), "left out: 'Unnamed: 0'"),
        (days("date,index,v", "{day},{i},{value}"), (), "left out: 'index'"),
        (days("v,date", "{value},{day}"), (), ""),
        (days().replace(",", ";"), (), ""),
        (days().replace(",", "\t"), ("--separator", "tab"), ""),
        (days().replace(",", ";").replace(".", ","), (), ""),
        (days().replace(",", ":").replace(".", ","), ("--separator", ":", "--decimal", ","), ""),
        (days("date,v,", "{day},{value},"), (), ""),
    ],
)
def test_the_same_series_written_in_many_ways(run, text, argv, note):
    shown = run(text, "--horizon", 2, *argv)
    assert shown.out.splitlines()[1:] == AHEAD
    assert note in shown.err
    assert note or "left out" not in shown.err


@pytest.mark.parametrize("label", ["007", "NA", "null", "None", "nan", "1e3"])
def test_ids_are_as_the_file_has_them(run, label):
    text = days("unique_id,ds,y", f"{label},{{day}},{{value}}")
    for kind in ("csv", "json"):
        assert label in run(text, "--horizon", 2, "--format", kind).out
    run(text, "--horizon", 2, "--out", "o.parquet")
    assert pd.read_parquet("o.parquet")["unique_id"].tolist() == [label] * 2


def test_series_without_times_are_numbered_each(run):
    text = "unique_id,y\n" + "".join(f"{i},{k}\n" for i in ("a", "7") for k in range(9))
    assert run(text, "--horizon", 1).out.splitlines() == [
        "unique_id,step,target_name,predictions",
        "a,9,y,9.0",
        "7,9,y,9.0",
    ]
    assert "7,9,sold,9.0" in run(
        text.replace("unique_id,y", "shop,sold"), "--id-column", "shop", "--target", "sold",
        "--horizon", 1,
    ).out  # fmt: skip


def test_a_year_is_the_time(run):
    text = "year,value\n" + "".join(f"{1960 + i},{10 + i % 7}\n" for i in range(60))
    assert run(text, "--horizon", 2).out.splitlines() == [
        "year,target_name,predictions",
        "2020,value,14.0",
        "2021,value,15.0",
    ]


def test_model_and_horizon_are_chosen_and_said(run, asked, tmp_path):
    shown = run(days())
    assert len(shown.out.splitlines()) == 1 + 14
    assert "note: horizon 14, two seasons of 7 steps; give --horizon" in shown.err
    assert f"note: model {bundled.DEFAULT}; give --checkpoint" in shown.err
    assert "note: frequency D" in shown.err
    assert asked == [bundled.DEFAULT]
    assert "model" not in run(None, "--checkpoint", "other", "--horizon", 3).err
    assert asked[1:] == ["other"]
    # Without a season in the calendar it is found in the series; without any there are 12 steps.
    waves = "".join(f"{i % 12}\n" for i in range(80))
    assert "note: horizon 24, two seasons of 12 steps" in run("v\n" + waves).err
    assert "note: horizon 12, the default without a season" in run("v\n1\n2\n4\n").err
    future = days("date,p", "{day},{i}", 40).splitlines()
    (tmp_path / "ahead.csv").write_text("\n".join([future[0], *future[32:37]]))
    shown = run(days("date,v,p", "{day},{value},{i}"), "--future", "ahead.csv")
    assert "note: horizon 5, the rows of --future" in shown.err
    assert len(shown.out.splitlines()) == 1 + 5


def test_ids_of_a_csv_are_those_of_parquet(run, tmp_path):
    dates = pd.date_range("2024-02-01", periods=2)
    pd.DataFrame({"id": 7, "timestamp": dates, "p": [1.0, 2.0]}).to_parquet("ahead.parquet")
    text = days("id,timestamp,target,p", "7,{day},{value},{i}")
    assert run(text, "--future", "ahead.parquet").out.splitlines()[1].startswith("7,2024-02-01,")
    pd.read_csv("data.csv", parse_dates=["timestamp"]).to_parquet("data.parquet")
    (tmp_path / "ahead.csv").write_text("id,timestamp,p\n7,2024-02-01,1\n7,2024-02-02,2\n")
    assert "7,2024-02-01," in run(None, "--future", "ahead.csv", file="data.parquet").out


def test_formats_by_suffix_and_by_name(run, tmp_path):
    expected = pd.DataFrame(
        {"date": ["2024-02-01", "2024-02-02"], "target_name": "v", "predictions": [3.5, 4.5]}
    )
    argv = ("--horizon", 2, "--out")
    run(days(), *argv, "a.parquet")
    table = pd.read_parquet("a.parquet")
    assert table["date"].tolist() == ["2024-02-01", "2024-02-02"]  # as the file has them
    run(None, *argv, "a.json")
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == expected.to_dict("records")
    run(None, *argv, "a.CSV")
    pd.testing.assert_frame_equal(pd.read_csv("a.CSV"), expected)
    run(None, *argv, "a.txt", "--format", "json")
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert sorted(os.listdir()) == ["a.CSV", "a.json", "a.parquet", "a.txt", "data.csv"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--out", "o.txt"), "--out o.txt must end in one of .csv, .parquet, .json, or give"),
        (("--out", "./data.csv"), "--out data.csv is the file of DATA, which is read"),
        (("--plot", "data.csv"), "--plot data.csv is the file of DATA"),
        (("--out", "p.csv", "--plot", "p.csv"), "--plot p.csv is the file of --out"),
        (("--out", "data.csv/x.csv"), "data.csv is a file, and no folder"),
        (("--plot", "o.xyz"), "a picture's name must end in one of"),
        (("--format", "parquet"), "--format parquet needs a file"),
        (("--levels", "0.8"), "'0.8' is in percent; did you mean 80?"),
        (("--levels", "100"), "'100' must be above 0 and below 100"),
        (("--backtest", 20), "too few for 20 folds of 2 steps"),
        (("--backtest", 0), "--backtest must be an integer of at least 1"),
        (("--digits", -1), "--digits must be at least 0"),
        (("--separator", ";;"), "separator must be one character"),
        (("--horizn", 3), "unknown option --horizn; did you mean --horizon?; see timemoe forecast"),
        (("--format", "cvs"), "invalid choice: 'cvs'; did you mean csv?"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(fails, asked, tmp_path, argv, says):
    assert says in fails(days(), "--horizon", 2, *argv)
    assert (tmp_path / "data.csv").read_text("utf-8") == days()
    assert not asked
    assert os.listdir() == ["data.csv"]


def test_folders_that_are_made_are_noted(run, tmp_path):
    outputs = {"--out": tmp_path / "new" / "a.csv", "--plot": tmp_path / "new" / "in" / "a.png"}
    argv = ["--horizon", 2, *(part for pair in outputs.items() for part in pair)]
    shown = run(days(), *argv).err
    for flag, path in outputs.items():
        assert f"note: {flag} makes the folder {path.parent}\n" in shown
        assert path.is_file()
    assert "makes the folder" not in run(days(), *argv).err


def test_an_earlier_file_stays_where_writing_fails(fails, tmp_path):
    (tmp_path / "o.csv").write_text("earlier")
    full = OSError(28, "No space left on device")
    with mock.patch("os.replace", side_effect=full):
        line = fails(days(), "--horizon", 2, "--out", "o.csv")
    assert line == "error: o.csv cannot be written: No space left on device"
    assert (tmp_path / "o.csv").read_text() == "earlier"
    assert sorted(os.listdir()) == ["data.csv", "o.csv"]


def test_what_the_future_lacks_is_said_by_the_name_of_the_option(fails, tmp_path):
    (tmp_path / "ahead.csv").write_text("date,p\n2024-02-01,1\n")
    line = fails(days("date,v,p", "{day},{value},{i}"), "--horizon", 2, "--future", "ahead.csv")
    assert "--future has no row" in line


def test_what_the_forecast_refuses_is_said_by_the_name_of_the_option(fails):
    error = DataError("intervals must be auto or heads, but is 'no'; context_length is 3")
    with mock.patch.object(FakeForecaster, "forecast", side_effect=error):
        line = fails(days(), "--horizon", 2)
    assert "--intervals must be one of auto or heads, but is 'no'; --context-length is 3" in line


def test_columns_of_levels(run):
    def header(*argv):
        argv = ("--horizon", 2, "--levels", "80%,50", *argv)
        return run(days(), *argv).out.splitlines()[0].split(",")[1:]

    assert header() == ["target_name", "predictions", "0.1", "0.25", "0.75", "0.9"]
    bounds = ["lo-80", "lo-50", "hi-50", "hi-80"]
    assert header("--columns", "levels") == ["target_name", "predictions", *bounds]
    assert header("--columns", "nixtla") == ["TimeMoE", *(f"TimeMoE-{name}" for name in bounds)]


def test_coverages():
    assert parse_coverages("80%, 95") == (0.025, 0.1, 0.9, 0.975)
    assert parse_coverages("0.8%") == (0.496, 0.504)
    assert parse_coverages("") == ()
    with pytest.raises(DataError, match=r"did you mean 97\.5"):
        parse_coverages("50,0.975")


@pytest.mark.parametrize(
    ("values", "digits"),
    [
        ([112, 118, 132], 1),
        ([1.5, 2.25, np.nan, 3.5], 3),
        ([1e6, 3e6, 8e6], 0),
        ([5.0, 5.0], 1),
        ([0.1 + 0.2, 0.7, 1.1], 2),
        ([1.00001e-6, 2e-6, 5e-6], 11),
        ([np.pi, np.e, 1.0], 6),
    ],
)
def test_digits_follow_from_the_data(values, digits):
    assert digits_of(np.array(values, np.float64)) == digits


def test_digits_are_taken_as_given(run):
    out = run("v\n1.23456\n1.34567\n1.45678\n", "--horizon", 1, "--digits", 2).out
    assert out.splitlines()[1].endswith(",2.46")


def test_a_format_of_dates_is_handed_on(run):
    with mock.patch.object(command, "prepare_frame", side_effect=DataError("seen")) as prepare:
        for flag in ((), ("--date-format", "%d/%m/%Y")):
            with pytest.raises(SystemExit):
                run(days(), "--horizon", 2, *flag)
    without, given = prepare.call_args_list
    assert "date_format" not in without.kwargs
    assert given.kwargs["date_format"] == "%d/%m/%Y"


def test_ctrl_c_is_one_line(run, capsys):
    with (
        mock.patch.object(FakeForecaster, "forecast", side_effect=KeyboardInterrupt),
        pytest.raises(SystemExit) as caught,
    ):
        run(days(), "--horizon", 2)
    assert caught.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"


def test_text_is_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "z.csv").write_text(days("unique_id,ds,y", "Łódź,{day},{value}"), "utf-8")
    program = (
        "import sys; from unittest import mock; from fake_forecaster import FakeForecaster\n"
        "from timemoe_jax import Forecaster; from timemoe_jax.cli import main\n"
        "with mock.patch.object(Forecaster, 'from_pretrained', lambda *_: FakeForecaster()):\n"
        "    main.main(['forecast', 'z.csv', '--horizon', '2'])\n"
        "    main.main(['forecast', 'z.csv', '--horizon', '2', '--out', 'o.csv'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name[:3] != "LC_"}
    environment |= {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8").splitlines()[1] == "Łódź,2024-02-01,y,3.5"
    assert (tmp_path / "o.csv").read_text("utf-8").splitlines()[1] == "Łódź,2024-02-01,y,3.5"


def test_without_a_command_the_first_ones_are_shown(capsys):
    cli.main([])
    shown = capsys.readouterr().out
    for first in ("timemoe forecast DATA.csv ", "--backtest", "timemoe plot"):
        assert first in shown


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["forcast", "x.csv"], "'forcast'; did you mean forecast?"),
        (["data", "inspct"], "'inspct'; did you mean inspect? "),
        (["data", "convert", "a", "b", "--taget=y"], "--taget; did you mean --target?; see timemoe "
         "data convert --help"),
        (["forecast", "x.csv", "--quantiles", "0.1"], "see timemoe forecast --help"),
    ],
)  # fmt: skip
def test_what_was_meant(capsys, argv, says):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_help_shows_defaults_groups_and_examples(capsys):
    for argv in (["forecast", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("(default: auto)", "prediction intervals:", "examples: timemoe forecast", "0.1.0"):
        assert part in shown


def test_panels_of_several_files_say_which_they_are_of(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(days(), encoding="utf-8")
    with mock.patch("timemoe_jax.forecasting.pictures.plot_series") as plot:
        cli.main(["plot", "a.csv", "b.csv", "--out", "p.png"])
        cli.main(["plot", "a.csv", "--out", "p.png", "--horizon", "3"])
    titles = [call.args[3] for call in plot.call_args_list]
    assert titles == [["a v", "b v"], ["v"]]
    assert [call.kwargs["holdout"] for call in plot.call_args_list] == [14, 3]
    with pytest.raises(SystemExit):
        cli.main(["plot", "a.csv", "b.csv", "--out", "b.csv"])
    assert "--out b.csv is the file of DATA b.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "count", "season"),
    [
        ((), 31, 7),  # of the calendar
        (("--season", 3), 31, 3),
        ((), 10, None),  # with 4 points before the folds, too few for a week
    ],
)
def test_a_backtest_repeats_the_season_of_the_calendar(tmp_path, argv, count, season):
    path = tmp_path / "data.csv"
    path.write_text(days(count=count), encoding="utf-8")
    line = ["forecast", str(path), "--horizon", "3", "--backtest", "2", *map(str, argv)]
    args = cli._parser().parse_args(line)
    assert command._season_to_repeat(args, command.prepare_file(str(path), args)) == season
