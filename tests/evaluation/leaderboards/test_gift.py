"""GIFT-Eval: its protocol, the published seasonal naive, and data sets as they are published."""

import csv
import importlib.util
import json

import numpy as np
import pytest
from evaluation_tasks import KnownModel
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation import records
from timemoe_jax.evaluation.leaderboards import gift, gift_run, scoring
from timemoe_jax.evaluation.leaderboards.config import GiftConfig
from timemoe_jax.evaluation.leaderboards.derived import GIFT_EVAL
from timemoe_jax.evaluation.leaderboards.published import published
from timemoe_jax.evaluation.leaderboards.reference import NormalSeasonalNaive
from timemoe_jax.evaluation.leaderboards.scoring import Outcome
from timemoe_jax.evaluation.scores import score_windows, summarize
from timemoe_jax.evaluation.tasks import DECILES, Task

LEVELS = np.array(DECILES)


def outcome_of(task: Task, method=None) -> Outcome:
    method = method or NormalSeasonalNaive()
    forecast = method.predict(task.contexts(), task.horizon, task.season, task.levels)
    windows = score_windows(task, forecast)
    return Outcome(method.name, forecast, windows, summarize(windows), 0.5)


# The protocol


@pytest.mark.parametrize(
    ("freq", "count", "letter", "alias", "season"),
    [
        ("15T", 15, "T", "15min", 96),
        ("10min", 10, "T", "10min", 144),
        ("10S", 10, "S", "10s", 360),
        ("H", 1, "H", "h", 24),
        ("D", 1, "D", "D", 1),
        ("W-WED", 1, "W", "W-WED", 1),
        ("M", 1, "M", "ME", 12),
        ("QE-DEC", 1, "Q", "QE-DEC", 4),
        ("A-DEC", 1, "A", "YE-DEC", 1),
        ("7T", 7, "T", "7min", 1),  # a day has no whole number of steps
    ],
)
def test_frequencies(freq, count, letter, alias, season):
    assert gift.parse_frequency(freq) == (count, letter, alias)
    assert gift.season_of(freq) == season


def test_horizons_and_windows():
    assert [gift.horizon_of("x", "15T", term) for term in gift.TERMS] == [48, 480, 720]
    assert gift.horizon_of("m4_weekly", "W", "short") == 13
    assert gift.horizon_of("x", "W-SUN", "short") == 8
    with pytest.raises(DataError, match="the frequency 'fortnight' is none of GIFT-Eval's"):
        gift.horizon_of("x", "fortnight", "short")
    assert [gift.num_windows("x", n, 48) for n in (40, 480, 481, 17420)] == [1, 1, 2, 20]
    assert gift.num_windows("m4_hourly", 700, 48) == 1
    assert gift.shown_name("SZ_TAXI/15T", "15T") == "sz_taxi/15T"
    assert gift.shown_name("saugeenday/D", "D") == "saugeen/D"
    assert gift.shown_name("m4_weekly", "W-SUN") == "m4_weekly/W"
    assert gift.terms_of("ett1/D", ["short", "long"]) == ["short"]
    assert gift.terms_of("ett1/H", ["short", "long"]) == ["short", "long"]
    assert not set(gift.LONG_TERM) & set(gift.SHORT_TERM)
    assert len(gift.SHORT_TERM) + 3 * len(gift.LONG_TERM) == 97


@given(st.integers(100, 3000), st.sampled_from(["15T", "H", "D"]), st.sampled_from(["short"]))
def test_windows_end_with_the_series_and_do_not_overlap(length, freq, term):
    series = np.arange(float(length))
    data = gift.GiftData("x", freq, (series, series[: length - 5]), ("a", "b"), 2, False)
    task = gift.gift_task(data, term)
    for each, origins in zip(task.series, task.origins, strict=True):
        assert origins[-1] + task.horizon == len(each)
        assert (np.diff(origins) == task.horizon).all()
        assert origins[0] > 0


def test_series_that_are_too_short():
    data = gift.GiftData("x", "H", (np.zeros(48), np.zeros(60)), ("a", "b"), 1, False)
    with pytest.raises(gift.TooFewPointsError, match=r"at least 49, but .* fewer: a \(48\)"):
        gift.gift_task(data, "short")


# The published numbers


def test_the_published_seasonal_naive(shared_dir):
    """Errors to three decimals, of all 23 configurations, as others have published them."""
    theirs = published("gift")["seasonal naive"]
    ours = {}
    for name in GIFT_EVAL:
        data = gift.load_gift(name, shared_dir / "data")
        for term in gift.terms_of(name, tuple(gift.TERMS)):
            task = gift.gift_task(data, term)
            scores = outcome_of(task).scores
            ours |= {(task.name, "mase"): scores.mase, (task.name, "crps"): scores.crps}
    assert len(ours) == 2 * 23
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], abs=5e-4), key


# Data sets as they are published


def write_dataset(folder, freq, targets):
    """As `datasets.Dataset.save_to_disk` does."""
    pa = pytest.importorskip("pyarrow")
    kind = pa.list_(pa.float32())
    several = isinstance(targets[0][0], list)
    table = pa.table(
        {
            "item_id": [f"item {i}" for i in range(len(targets))],
            "start": pa.array([0] * len(targets), pa.timestamp("s")),
            "freq": [freq] * len(targets),
            "target": pa.array(targets, pa.list_(kind) if several else kind),
        }
    )
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state), "utf-8")
    (folder / "dataset_info.json").write_text("{}", "utf-8")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A univariate data set with gaps, one of two variates, and one that GIFT-Eval has not."""
    folder = tmp_path_factory.mktemp("gift")
    rng = np.random.default_rng(0)
    walks = [rng.normal(size=n).cumsum().tolist() for n in (70, 120)]
    walks[0][10] = walks[1][115] = None
    write_dataset(folder / "m4_weekly", "W-SUN", walks)
    write_dataset(folder / "bitbrains_rnd" / "H", "H", [rng.normal(size=(2, 300)).tolist()])
    write_dataset(folder / "own", "D", [rng.normal(size=100).tolist()])
    return folder


def test_a_published_folder(data_dir):
    data = gift.load_gift("m4_weekly", data_dir)
    assert (data.freq, data.names, data.variates) == ("W-SUN", ("item 0", "item 1"), 1)
    assert [len(each) for each in data.series] == [70, 120]
    assert np.isnan(data.series[0][10])
    task = gift.gift_task(data, "short")
    assert (task.name, task.horizon, task.season, len(task)) == ("m4_weekly/W/short", 13, 1, 2)
    several = gift.load_gift("bitbrains_rnd/H", data_dir)
    assert several.names == ("item 0 channel 0", "item 0 channel 1")
    assert several.variates == 2
    with pytest.raises(DataError, match="is no folder of a data set"):
        gift.load_gift("m4_daily", data_dir)
    with pytest.raises(DataError, match=r"there is no ETTm1\.csv under"):
        gift.load_gift("ett1/D", data_dir)


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is not installed")
def test_a_folder_that_datasets_wrote(tmp_path):
    """As the benchmark is published: items of two variates, a time for their start."""
    import datetime

    import datasets

    rng = np.random.default_rng(0)
    targets = rng.normal(size=(3, 2, 120)).astype(np.float32)
    columns = {
        "item_id": ["0", "1", "2"],
        "start": [datetime.datetime(2020, 1, 1)] * 3,
        "freq": ["5T"] * 3,
        "target": targets.tolist(),
        "past_feat_dynamic_real": targets[:, :1].tolist(),
    }
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "some" / "5T")
    data = gift.load_gift("some/5T", tmp_path)
    assert (data.freq, data.variates, len(data.series)) == ("5T", 2, 6)
    np.testing.assert_array_equal(np.stack(data.series), targets.reshape(6, 120))
    task = gift.gift_task(data, "short")
    assert (task.name, task.season, task.freq, len(task)) == ("some/5T/short", 288, "5min", 6)


def test_an_evaluation(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scoring.Forecaster, "from_pretrained", lambda *_: KnownModel())
    config = GiftConfig(
        checkpoint="runs/known",
        data_dir=str(data_dir),
        datasets=("m4_weekly", "bitbrains_rnd/H", "own"),
        baselines=("naive",),
        context_length=24,
        exposure="train split",
        per_window=True,
        output_dir=str(tmp_path),
    )
    manifest = gift_run.run(config)
    assert records.read_manifest(tmp_path)["results"] == records.without_nan(manifest["results"])
    tasks = ["m4_weekly/W/short", "bitbrains_rnd/H/short", "own/D/short"]
    methods = ["known", "seasonal_naive_normal", "naive"]
    cells = {(cell["task"], cell["method"]): cell for cell in manifest["results"]}
    assert list(cells) == [(task, method) for task in tasks for method in methods]
    assert set(manifest["skipped"]) == {"own/medium", "own/long"}
    assert manifest["checkpoint_hash"]
    assert manifest["model"] == "known"
    cell = cells[tasks[1], "known"]
    assert cell["exposure"] == "train split"
    assert cell["seconds"] > 0
    # The second window of m4_weekly has a gap.
    assert cells[tasks[0], "naive"]["points"] == 2 * 13 - 1
    rows = records.read_windows(tmp_path).columns
    assert len(rows["mase"]) == 3 * (2 + 2 + 1)
    of_model = (rows["method"] == "known") & (rows["task"] == tasks[1])
    assert np.mean(rows["mae"][of_model]) == pytest.approx(cell["mae"])
    loss, size = rows["quantile_loss"][of_model].sum(), rows["target"][of_model].sum()
    assert loss / size == pytest.approx(cell["crps"])
    printed = capsys.readouterr().out
    table = (tmp_path / "results.md").read_text("utf-8")
    assert table in printed
    assert "| **known** |" in table
    assert "train split" in table
    assert "own/medium is left out: own/medium: " in table
    for method in methods:
        path = tmp_path / "results" / method / "all_results.csv"
        found = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        assert [row["dataset"] for row in found] == tasks
        assert found[1]["domain"] == "Web/CloudOps"
        assert [row["num_variates"] for row in found] == ["1", "2", "1"]
        score = cells[tasks[0], method]["mase"]
        assert float(found[0]["eval_metrics/MASE[0.5]"]) == pytest.approx(score)
    card = json.loads((tmp_path / "results" / "known" / "config.json").read_text("utf-8"))
    assert (card["model_type"], card["testdata_leakage"]) == ("pretrained", "No")


@pytest.mark.skipif(not importlib.util.find_spec("gluonts"), reason="gluonts is not installed")
def test_the_result_file_is_that_of_gluonts(data_dir):
    """Every number of a row, with a zero and a gap in the target."""
    import pandas as pd
    from gluonts.ev import metrics
    from gluonts.model.evaluation import evaluate_forecasts
    from gluonts.model.forecast import QuantileForecast

    class Data:
        """What GluonTS scores: inputs and labels."""

        start = pd.Period("2020-01-05", "W-SUN")
        input: list
        label: list

    task, data = gift.gift_task(gift.load_gift("m4_weekly", data_dir), "short"), Data()
    task.series[0][-3] = 0.0
    outcome = outcome_of(task)
    data.input = [{"target": context, "start": data.start} for context in task.contexts()]
    data.label = [{"target": target, "start": data.start} for target in task.targets()]
    keys = [str(level) for level in DECILES]
    wanted = [
        *(metrics.MSE(forecast_type=kind) for kind in ("mean", 0.5)),
        *(metrics.MAE(), metrics.MASE(), metrics.MAPE(), metrics.SMAPE(), metrics.MSIS()),
        *(metrics.RMSE(), metrics.NRMSE(), metrics.ND()),
        metrics.MeanWeightedSumQuantileLoss(quantile_levels=DECILES),
    ]
    quantiles = outcome.forecast.quantiles
    forecasts = [QuantileForecast(q.T, data.start, keys) for q in quantiles]
    theirs = evaluate_forecasts(forecasts, test_data=data, metrics=wanted, seasonality=1).iloc[0]
    ours = gift_run.result_row(task, outcome, 1)
    assert len(theirs) == 11
    for name, value in theirs.items():
        assert ours[f"eval_metrics/{name}"] == pytest.approx(value, rel=1e-6), name
