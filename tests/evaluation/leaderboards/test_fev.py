"""fev-bench: the published seasonal naive, tasks as they are published, and fev's own numbers."""

import csv
import importlib.util

import numpy as np
import pytest
from evaluation_tasks import KnownModel

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.leaderboards import fev_run, fev_tasks, scoring
from timemoe_jax.evaluation.leaderboards.config import FevConfig
from timemoe_jax.evaluation.leaderboards.fev_tasks import Definition
from timemoe_jax.evaluation.leaderboards.published import published
from timemoe_jax.evaluation.leaderboards.reference import NormalSeasonalNaive
from timemoe_jax.evaluation.leaderboards.scoring import Outcome
from timemoe_jax.evaluation.scores import score_windows, seasonal_scales, summarize

HAS_FEV = bool(importlib.util.find_spec("fev"))
TASKS = """tasks:
- dataset_path: autogluon/fev_datasets
  dataset_config: two_columns
  horizon: 4
  num_windows: 3
  seasonality: 7
  eval_metric: SQL
  extra_metrics: [MASE, {name: WAPE, epsilon: 1.0}, {name: WQL, epsilon: 1.0}]
  quantile_levels: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
  target: [b, a]
  min_context_length: 12
  known_dynamic_columns: [promotion]
- dataset_path: autogluon/fev_datasets
  dataset_config: points
  task_name: from_a_date
  horizon: 3
  num_windows: 2
  initial_cutoff: '2024-01-20'
  seasonality: 1
  target: y
"""


def outcome_of(fev_task) -> Outcome:
    task, method = fev_task.task, NormalSeasonalNaive(fev_run.MOST_POINTS)
    forecast = method.predict(task.contexts(), task.horizon, task.season, task.levels)
    windows = score_windows(task, forecast, seasonal_scales(task, one_where_short=False))
    return Outcome(method.name, forecast, windows, summarize(windows, fev_task.groups), 0.5)


def test_the_published_seasonal_naive(shared_dir):
    """SQL and MASE to three decimals, of all seven tasks, as others have published them."""
    theirs = published("fev")["seasonal naive"]
    for name, definition in fev_tasks.DERIVED.items():
        scores = outcome_of(fev_tasks.load_fev(definition, shared_dir / "data")).scores
        assert scores.sql == pytest.approx(theirs[name, "sql"], abs=5e-4), name
        assert scores.mase == pytest.approx(theirs[name, "mase"], abs=5e-4), name


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two items of two columns, a list for each, one short; and points of a long table."""
    pytest.importorskip("pyarrow")
    import pandas as pd

    folder, rng = tmp_path_factory.mktemp("fev"), np.random.default_rng(0)
    rows = []
    for name, count in (("z", 30), ("m", 60), ("a", 22)):
        values = 5 + rng.normal(size=(3, count)).cumsum(axis=1)
        times = pd.date_range("2024-01-01", periods=count, freq="D").to_numpy()
        columns = dict(zip(("a", "b", "promotion"), values, strict=True))
        rows.append({"id": name, "timestamp": times, **columns})
    rows[1]["a"][[5, 58]] = np.nan
    (folder / "two_columns").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "two_columns" / "part-0.parquet")
    (folder / "points").mkdir()
    times = pd.date_range("2024-01-01", periods=40, freq="D")
    parts = [
        pd.DataFrame({"id": name, "timestamp": times, "y": rng.normal(size=40).cumsum()})
        for name in ("first", "second")
    ]
    pd.concat(parts).to_parquet(folder / "points" / "all.parquet")
    (folder / "tasks.yaml").write_text(TASKS, "utf-8")
    return folder


def test_tasks_as_they_are_published(data_dir):
    definitions = fev_tasks.read_definitions(data_dir / "tasks.yaml")
    assert list(definitions) == ["two_columns", "from_a_date"]
    two = fev_tasks.load_fev(definitions["two_columns"], data_dir)
    assert two.definition.covariates == ("promotion",)
    assert two.task.names == ("a b", "a a", "m b", "m a", "z b", "z a")
    # Of the item with 22 points, the first window would follow only ten.
    assert two.left_out == 2
    assert [len(each) for each in two.task.origins] == [2, 2, 3, 3, 3, 3]
    assert two.task.origins[0].tolist() == [14, 18]
    assert two.numbers[:2].tolist() == [1, 2]
    assert sorted(set(two.groups.tolist())) == list(range(6))
    assert (two.task.season, two.task.scale_season, two.task.freq) == (7, 7, "D")
    points = fev_tasks.load_fev(definitions["from_a_date"], data_dir)
    assert points.task.names == ("first y", "second y")
    assert points.task.origins[0].tolist() == [20, 23]
    # What is repeated is a week of days, what errors are scaled by a step.
    assert (points.task.season, points.task.scale_season) == (7, 1)


def test_tasks_that_cannot_be_read(data_dir, tmp_path):
    path = tmp_path / "tasks.yaml"
    for text, message in (
        ("tasks: 3", "holds no tasks in the layout of fev"),
        ("tasks: [{dataset_config: x, horizon: 3, lag: 2}]", "not supported: lag"),
        ("tasks: [{dataset_config: x, horizon: 3, quantile_levels: [0.5]}]", r"levels \[0.5\]"),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(DataError, match=message):
            fev_tasks.read_definitions(path)
    with pytest.raises(DataError, match="every series is too short for a window of 99 points"):
        fev_tasks.load_fev(Definition("two_columns", 99, target=("a", "b")), data_dir)
    with pytest.raises(DataError, match=r"lacks the columns target; it has id, timestamp, a"):
        fev_tasks.load_fev(Definition("two_columns", 4), data_dir)
    with pytest.raises(DataError, match=r"holds no \.parquet file, and 'absent' is none"):
        fev_tasks.load_fev(Definition("absent", 4), data_dir)


@pytest.mark.parametrize("without", [True, False])
def test_an_evaluation(data_dir, tmp_path, monkeypatch, without):
    """With fev and without it there are the same files."""
    if not without and not HAS_FEV:
        pytest.skip("fev is not installed")
    if without:
        monkeypatch.setattr(fev_run, "has_fev", lambda: False)
    monkeypatch.setattr(scoring.Forecaster, "from_pretrained", lambda *_: KnownModel())
    config = FevConfig(
        checkpoint="known",
        data_dir=str(data_dir),
        tasks=str(data_dir / "tasks.yaml"),
        datasets=("two_columns", "from_a_date"),
        baselines=(),
        exposure="test split",
        output_dir=str(tmp_path),
    )
    manifest = fev_run.run(config)
    cells = {(cell["task"], cell["method"]): cell for cell in manifest["results"]}
    assert len(cells) == 4
    assert cells["two_columns", "known"]["notes"] == [
        "1 covariates are not used",
        "2 windows of series that are too short are left out",
    ]
    table = (tmp_path / "results.md").read_text("utf-8")
    assert "two_columns: 1 covariates are not used." in table
    rows = list(csv.DictReader((tmp_path / "results" / "known.csv").read_text("utf-8").split("\n")))
    assert list(rows[0]) == list(fev_run.SUMMARY_COLUMNS)
    assert [row["trained_on_this_dataset"] for row in rows] == ["True", "True"]
    assert float(rows[0]["SQL"]) == pytest.approx(cells["two_columns", "known"]["sql"])
    assert float(rows[0]["WQL"]) == pytest.approx(cells["two_columns", "known"]["crps"])
    assert rows[1]["task_name"] == "from_a_date"
    with pytest.raises(DataError, match="there is no task nothing; known are two_columns, from_a"):
        fev_run.run(FevConfig(datasets=("nothing",), tasks=str(data_dir / "tasks.yaml")))


@pytest.mark.skipif(not HAS_FEV, reason="fev is not installed")
@pytest.mark.parametrize("name", ["two_columns", "from_a_date"])
def test_fev_says_the_same(data_dir, name):
    definition = fev_tasks.read_definitions(data_dir / "tasks.yaml")[name]
    fev_task = fev_tasks.load_fev(definition, data_dir)
    outcome = outcome_of(fev_task)
    ours = fev_run.own_summary(fev_task, outcome, True)
    theirs = fev_run.summary_by_fev(fev_task, outcome, True)
    assert list(ours) == list(theirs)
    differ = {key for key in ours if ours[key] != theirs[key]}
    scores = {"test_error", "SQL", "MASE", "WAPE", "WQL"}
    told = {"dataset_path", "dataset_config", "dataset_fingerprint", "fev_version"}
    assert differ <= scores | told
    for key in scores:
        # Where fev leaves series out, it keeps the others in float32.
        assert ours[key] == pytest.approx(theirs[key], rel=1e-7), key


@pytest.mark.skipif(not HAS_FEV, reason="fev is not installed")
def test_fev_says_the_same_of_ett(shared_dir):
    fev_task = fev_tasks.load_fev(fev_tasks.DERIVED["ETT_1W"], shared_dir / "data")
    outcome = outcome_of(fev_task)
    theirs = fev_run.summary_by_fev(fev_task, outcome, False)
    assert theirs["SQL"] == pytest.approx(outcome.scores.sql, rel=1e-12)
    assert theirs["MASE"] == pytest.approx(outcome.scores.mase, rel=1e-12)
    assert theirs["num_forecasts"] == len(fev_task.task)
