"""Evaluation: the scores by hand, the manifest, the table, and bad input from the command line."""

import functools
import hashlib
import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from processes import run_here, run_processes

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.config import from_mapping
from timemoe_jax.data.calendar import calendar_marks
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.evaluation.leaderboards.config import GiftConfig
from timemoe_jax.evaluation.long_horizon import results_table, run
from timemoe_jax.evaluation.records import read_windows
from timemoe_jax.evaluation.run import AnyEvalConfig
from timemoe_jax.forecasting.scoring.baselines import parroting_stretch
from timemoe_jax.models.base import create_params
from timemoe_jax.models.mohets.config import MohetsConfig

ROWS, CONTEXT, HORIZON = 400, 48, 8


@pytest.fixture(autouse=True, scope="module")
def _loaded_once():
    """An evaluation goes on with the programs of those before it."""
    once = functools.cache(Forecaster.from_pretrained)
    with mock.patch.object(Forecaster, "from_pretrained", once):
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    t = np.arange(ROWS)
    frame = pd.DataFrame(
        {
            "date": pd.date_range("2020-01-01", periods=ROWS, freq="D"),
            "a": np.sin(2 * np.pi * t / 7) + 0.1 * rng.normal(size=ROWS),
            "b": 1000 + rng.normal(size=ROWS).cumsum(),
        }
    )
    (folder / "sub").mkdir()
    frame.to_csv(folder / "sub" / "small.csv", index=False)
    frame.assign(note="x").to_csv(folder / "text.csv", index=False)
    return folder


def _config(golden, data_dir, output_dir, **overrides):
    values = {
        "checkpoint": str(golden),
        "data_dir": str(data_dir),
        "datasets": "small",
        "horizons": str(HORIZON),
        "context_length": CONTEXT,
        "output_dir": str(output_dir),
        "batch_size": 16,
    }
    return from_mapping(EvalConfig, values | overrides)


@pytest.fixture(scope="module")
def manifest(golden, data_dir, tmp_path_factory):
    return run(_config(golden, data_dir, tmp_path_factory.mktemp("out")))


def _windows(data_dir):
    """The protocol again, by hand: scale by the first 70%, cut the last 20% and its contexts."""
    values = pd.read_csv(data_dir / "sub" / "small.csv")[["a", "b"]].to_numpy()
    train, test = int(0.7 * ROWS), ROWS - int(0.2 * ROWS)
    scaled = (values - values[:train].mean(0)) / values[:train].std(0)
    starts = range(test, ROWS - HORIZON + 1)
    pairs = [
        (scaled[s - CONTEXT : s, c], scaled[s : s + HORIZON, c]) for c in (0, 1) for s in starts
    ]
    return [np.array(part) for part in zip(*pairs, strict=True)]


def test_scores_by_hand(golden, data_dir, manifest):
    (cell,) = manifest["cells"]
    contexts, targets = _windows(data_dir)
    forecaster = Forecaster.from_pretrained(str(golden))
    point = forecaster.forecast(contexts, HORIZON, normalize="none", batch_size=16).point
    np.testing.assert_allclose(cell["mse"], np.square(point - targets).mean(), rtol=1e-5)
    np.testing.assert_allclose(cell["mae"], np.abs(point - targets).mean(), rtol=1e-5)
    last = np.repeat(contexts[:, -1:], HORIZON, axis=1)
    np.testing.assert_allclose(cell["naive_mse"], np.square(last - targets).mean(), rtol=1e-12)
    week = np.concatenate([contexts[:, -7:], contexts[:, -7:-6]], axis=1)
    np.testing.assert_allclose(
        cell["seasonal_naive_mae"], np.abs(week - targets).mean(), rtol=1e-12
    )
    # A week is too short to compare, so eight days are.
    copied = np.array([_nearest(context, 8) for context in contexts])
    np.testing.assert_allclose(cell["parroting_mse"], np.square(copied - targets).mean(), rtol=1e-9)
    np.testing.assert_allclose(cell["parroting_mae"], np.abs(copied - targets).mean(), rtol=1e-9)


@pytest.mark.parametrize("most", [None, 5])
def test_a_model_with_covariates_reads_the_columns_with_their_calendar(data_dir, tmp_path, most):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = MohetsConfig(
        **sizes,
        num_key_value_heads=1,
        num_hidden_layers=1,
        patch_size=4,
        horizon_lengths=(8,),
        max_position_embeddings=CONTEXT,
        covariate_variates=2,
    )
    forecaster = Forecaster(config, create_params(config, 0))
    with mock.patch.object(Forecaster, "from_pretrained", return_value=forecaster):
        (cell,) = run(_config("x", data_dir, tmp_path, max_windows=most))["cells"]
    contexts, targets = (np.stack(np.split(part, 2), axis=1) for part in _windows(data_dir))
    times = pd.date_range("2020-01-01", periods=ROWS, freq="D").to_numpy()
    starts = np.arange(len(contexts)) + ROWS - int(0.2 * ROWS) - CONTEXT
    chosen = np.arange(len(contexts)) if most is None else np.array([18, 54])  # of 73 times
    marks = [calendar_marks(times[s : s + CONTEXT + HORIZON]) for s in starts[chosen]]
    point = forecaster.forecast(contexts[chosen], HORIZON, normalize="none", marks=marks).point
    errors = point - targets[chosen]
    assert cell["calendar"]
    assert cell["windows"] == 2 * len(chosen)
    np.testing.assert_allclose(cell["mse"], np.square(errors).mean(), rtol=1e-5)
    assert "small were read together" in (tmp_path / "results.md").read_text("utf-8")


def _nearest(context, stretch):
    """What followed the nearest earlier stretch; the horizon here is no longer than one."""
    starts = range(CONTEXT - 2 * stretch + 1)
    far = [np.square(context[s : s + stretch] - context[-stretch:]).sum() for s in starts]
    begin = int(np.argmin(far)) + stretch
    return context[begin : begin + HORIZON]


@pytest.mark.parametrize(
    ("season", "context", "stretch"),
    [
        (24, 512, 24),
        (144, 512, 144),
        (144, 200, 100),
        (1, 48, 8),
        (7, 48, 8),
        (1, 10, 5),
        (1, 1, None),
    ],
)
def test_what_parroting_compares(season, context, stretch):
    assert parroting_stretch(season, context) == stretch


def test_a_context_without_an_earlier_stretch_has_no_parroting(data_dir, tmp_path):
    manifest = run(_config("", data_dir, tmp_path, context_length=1))
    (cell,) = manifest["cells"]
    assert cell["parroting_stretch"] is None
    assert "parroting_mse" not in cell
    pair = "{0:.4f} / {1:.4f}".format
    scores = [pair(cell[f"{m}_mse"], cell[f"{m}_mae"]) for m in ("naive", "seasonal_naive")]
    assert f"| small | 8 |  | {scores[0]} | {scores[1]} |  |" in results_table(manifest)


def test_the_manifest_says_how(golden, data_dir, manifest):
    (cell,) = manifest["cells"]
    file = data_dir / "sub" / "small.csv"
    assert cell["windows"] == cell["windows_in_protocol"] == 2 * (80 - HORIZON + 1)
    assert cell["dataset_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert cell["checkpoint_hash"] == Forecaster.from_pretrained(str(golden)).digest
    assert cell["first_target_time"].startswith("2020-11-16")
    assert cell["last_target_time"].startswith("2021-02-03")
    assert (cell["context_length"], cell["season"]) == (CONTEXT, 7)
    assert cell["parroting_stretch"] == 8
    assert (cell["protocol"], cell["dtype"]) == ("complete", "float32")
    assert cell["scaler"]["b"]["mean"] > 900
    assert {"jax", "flax", "timemoe_jax"} <= set(cell["versions"])
    assert cell["wall_seconds"] > 0


def test_the_files_are_what_was_returned(golden, data_dir, tmp_path):
    returned = run(_config(golden, data_dir, tmp_path / "out", max_windows=16))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == returned
    table = (tmp_path / "out" / "results.md").read_text()
    assert table == results_table(returned)
    assert "16 of 146" in table
    assert "subset" in table


def test_the_published_protocol_drops_the_last_window(golden, data_dir, tmp_path):
    (cell,) = run(_config(golden, data_dir, tmp_path, protocol="published"))["cells"]
    assert cell["windows"] == 2 * (80 - HORIZON)


def test_the_batch_size_does_not_matter(golden, data_dir, tmp_path, manifest):
    (other,) = run(_config(golden, data_dir, tmp_path, batch_size=7))["cells"]
    np.testing.assert_allclose(other["mse"], manifest["cells"][0]["mse"], rtol=1e-5)


def test_without_a_checkpoint_the_baselines_alone(data_dir, tmp_path, manifest):
    (cell,) = run(_config("", data_dir, tmp_path))["cells"]
    assert "mse" not in cell
    assert cell["naive_mse"] == manifest["cells"][0]["naive_mse"]


def test_rows_of_windows_and_results_are_those_of_all_benchmarks(data_dir, tmp_path):
    """Of a group of two horizons, whose windows differ in number."""
    config = _config("", data_dir, tmp_path, horizons=f"{HORIZON},3", per_window=True)
    manifest = run(config)
    rows = read_windows(tmp_path).columns
    results = {(each["task"], each["method"]): each for each in manifest["results"]}
    assert len(results) == 2 * 3
    assert manifest["model"] is None
    for (task, method), result in results.items():
        chosen = (rows["task"] == task) & (rows["method"] == method)
        assert chosen.sum() == result["windows"]
        assert rows["mse"][chosen].mean() == pytest.approx(result["mse"])
        assert rows["mae"][chosen].mean() == pytest.approx(result["mae"])
    _, target = _windows(data_dir)
    one = (rows["task"] == f"small/{HORIZON}") & (rows["method"] == "naive")
    assert set(rows["series"][one]) == {"a", "b"}
    first = ROWS - int(0.2 * ROWS)
    assert rows["origin"][one].tolist() == 2 * list(range(first, first + len(target) // 2))
    run(_config("", data_dir, tmp_path))
    with pytest.raises(DataError, match="has no rows of windows"):
        read_windows(tmp_path)  # they were of another evaluation


def test_the_benchmark_of_a_config():
    assert AnyEvalConfig.class_of({}, "config") is EvalConfig
    assert AnyEvalConfig.class_of({"benchmark": "gift"}, "config") is GiftConfig
    with pytest.raises(ConfigError, match=r"config\.benchmark must be one of long_horizon, gift"):
        AnyEvalConfig.class_of({"benchmark": "m4"}, "config")


def test_the_table_shows_the_published_results():
    cell = {"dataset": "ETTh1", "horizon": 96, "mse": 0.5, "mae": 0.6}
    cell |= {f"{m}_{e}": 1.0 for m in ("naive", "seasonal_naive") for e in ("mse", "mae")}
    cell |= {"parroting_mse": 2.0, "parroting_mae": 3.0}
    table = results_table(
        {"cells": [cell], "max_windows": None, "protocol": "complete", "checkpoint": "x"}
    )
    assert "| ours | naive | seasonal naive | context parroting | published base |" in table
    baselines = "1.0000 / 1.0000 | 1.0000 / 1.0000 | 2.0000 / 3.0000 | 0.3570"
    assert f"| ETTh1 | 96 | 0.5000 / 0.6000 | {baselines}" in table
    assert "0.3570 / 0.3810 | 0.3500 / 0.3820 | 0.3490 / 0.3790 |" in table


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"datasets": "nowhere"}, DataError, "nowhere"),
        ({"datasets": "text"}, DataError, "note"),
        ({"horizons": "90"}, DataError, "90"),
        ({"protocol": "other"}, ConfigError, "protocol must be one of complete, published"),
        ({"horizons": "0"}, ConfigError, "horizons must be positive"),
        ({"horizons": "a"}, ConfigError, "horizons must be int values"),
    ],
)
def test_bad_input_is_named_before_anything_is_scored(
    golden, data_dir, tmp_path, overrides, error, message
):
    with pytest.raises(error, match=message):
        run(_config(golden, data_dir, tmp_path / "out", **overrides))
    assert not (tmp_path / "out").exists()


PROGRAM = ("eval_main.py", "--config=configs/eval_ltsf.py")


def test_the_program(golden, data_dir, tmp_path):
    done = run_here(
        *PROGRAM,
        f"--config.checkpoint={golden}",
        f"--config.data_dir={data_dir}",
        "--config.datasets=small",
        f"--config.horizons={HORIZON},4",
        f"--config.context_length={CONTEXT}",
        "--config.protocol=published",
        "--config.batch_size=16",
        "--config.max_windows=10",
        f"--config.output_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert "| small | 8 |" in done.stdout
    cells = json.loads((tmp_path / "manifest.json").read_text())["cells"]
    assert [c["horizon"] for c in cells] == [8, 4]


@pytest.mark.parametrize(
    ("arguments", "message", "started"),
    [
        (["--config.datasets=text"], "column 'note'", False),
        (["--config.datasets=small", "--config.checkpoint=/nowhere"], "/nowhere", True),
        (["--config.batch_sise=3"], "batch_sise", False),
    ],
)
def test_the_program_answers_nonsense_in_one_line(data_dir, tmp_path, arguments, message, started):
    command = [
        *PROGRAM,
        f"--config.data_dir={data_dir}",
        "--config.horizons=8",
        "--config.context_length=48",
        f"--config.output_dir={tmp_path / 'out'}",
        *arguments,
    ]
    (done,) = run_processes(command, 1, devices=1) if started else [run_here(*command)]
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
