"""Methods compared on a user's own series: what is read, the leaderboard, and the report."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from timemoe_jax.config import from_mapping
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.evaluation.comparisons.config import FrameConfig
from timemoe_jax.evaluation.comparisons.frame import run
from timemoe_jax.evaluation.comparisons.frame_tasks import frame_tasks
from timemoe_jax.evaluation.comparisons.paired import compare_paired, holm, signed_rank
from timemoe_jax.evaluation.records import read_manifest, read_windows
from timemoe_jax.forecasting.scoring.baselines import seasonal_naive
from timemoe_jax.forecasting.scoring.metrics import mase

METHODS = ("seasonal_naive", "naive", "linear")


def long_table(lengths, names=None, freq="MS"):
    """A long frame of monthly waves with noise, a series for each length."""
    rng, parts = np.random.default_rng(0), []
    for i, length in enumerate(lengths):
        t = np.arange(length)
        values = 20 + i + 5 * np.sin(2 * np.pi * t / 12) + rng.standard_normal(length)
        times = pd.date_range("2010-01-01", periods=length, freq=freq)
        name = f"shop {i}" if names is None else names[i]
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": values.round(2)}))
    return pd.concat(parts, ignore_index=True)


def config_of(path, **fields):
    return FrameConfig(path=str(path), checkpoint="", baselines=METHODS, **fields)


def test_a_long_frame_becomes_a_task_with_its_calendar(tmp_path):
    table = long_table([100, 96, 50, 30])
    table.drop(index=[5, 120]).to_csv(tmp_path / "sales.csv", index=False)
    data = frame_tasks(config_of(tmp_path / "sales.csv"))
    (task,) = data.tasks
    assert (task.name, task.season, task.horizon, task.freq) == ("sales", 12, 24, "MS")
    assert data.seasons["sales"].origin == "calendar"
    # A season before the first fold, so that 50 points have room for one, and 30 for none.
    assert task.names == ("shop 0", "shop 1", "shop 2")
    assert [origins.tolist() for origins in task.origins] == [[28, 52, 76], [24, 48, 72], [26]]
    assert np.isnan(task.series[0][5])  # the month without a row
    assert np.isnan(task.series[1][20])
    assert data.too_short == ("shop 3 (30 points)",)
    assert data.fewer_folds == ("shop 2 (1)",)
    assert str(data.times["sales", "shop 0"][-1].date()) == "2018-04-01"
    assert data.notes()[0] == "Left out: 1 series too short for one fold: shop 3 (30 points)."


def test_wide_tables_and_folders_are_read_as_the_command_does(tmp_path):
    t = np.arange(400)
    rng = np.random.default_rng(1)
    daily = {"Unnamed: 0": t, "a": np.tile(rng.standard_normal(24), 17)[:400], "b": t % 24 + 0.5}
    pd.DataFrame(daily).to_csv(tmp_path / "machine.csv", index=False)
    long_table([90]).to_csv(tmp_path / "sales.csv", index=False)
    (tmp_path / "notes.txt").write_text("no table")
    data = frame_tasks(config_of(tmp_path, folds=2))
    assert [task.name for task in data.tasks] == ["machine", "sales"]
    machine = data.tasks[0]
    assert machine.names == ("machine a", "machine b")
    assert (machine.season, machine.horizon, machine.freq) == (24, 48, None)
    assert data.seasons["machine"].origin == "found in the series"
    assert data.counters == ("Unnamed: 0",)
    few = frame_tasks(config_of(tmp_path, folds=2, max_series=1, horizon=5, season=3))
    names = [("machine b",), ("sales shop 0",)]
    assert [(task.names, task.season) for task in few.tasks] == [(n, 3) for n in names]
    assert few.left_out == 1


def test_what_training_reads_is_compared_without_a_calendar(tmp_path):
    rng = np.random.default_rng(2)
    waves = np.tile(rng.standard_normal((5, 24)), 10) + 0.1 * rng.standard_normal((5, 240))
    np.save(tmp_path / "waves.npy", waves)
    data = frame_tasks(config_of(tmp_path, max_series=2, folds=1))
    (task,) = data.tasks
    assert task.names == ("waves.npy 1", "waves.npy 3")
    assert (task.season, task.horizon, task.freq) == (24, 48, None)
    np.testing.assert_array_equal(task.series[1], waves[3])
    assert not data.times
    assert data.left_out == 3


def test_windows_that_nobody_saw_are_left_out(tmp_path):
    table = long_table([60])
    table["y"] = table["y"].where(table.index < 48)  # nothing in the last fold
    table.to_csv(tmp_path / "sales.csv", index=False)
    data = frame_tasks(config_of(tmp_path / "sales.csv", horizon=12))
    assert data.unseen == 1
    assert [len(task) for task in data.tasks] == [2]


def test_what_cannot_be_compared_is_an_error(tmp_path):
    long_table([20]).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(DataError, match=r"has room for a fold: shop 0 \(20 points\); give a short"):
        frame_tasks(config_of(tmp_path / "short.csv"))
    with pytest.raises(DataError, match="absent is no file and no folder"):
        frame_tasks(config_of(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no series that can be read; give"):
        frame_tasks(config_of(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="path is empty"):
        FrameConfig()
    with pytest.raises(ConfigError, match="folds must be positive, but is 0"):
        from_mapping(FrameConfig, {"path": "a.csv", "folds": 0})


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A run of three methods on twelve series, one of whose names is no plain text."""
    folder = tmp_path_factory.mktemp("frame")
    names = [f"shop {i}" for i in range(11)] + ["<b>&$x_1$ 'http:' \"q\""]
    long_table([84] * 12, names).to_csv(folder / "sales.csv", index=False)
    config = config_of(folder / "sales.csv", horizon=12, output_dir=str(folder / "out"))
    return run(config), folder


def test_scores_are_those_of_the_metrics(comparison):
    manifest, folder = comparison
    assert read_manifest(folder / "out")["tasks"] == manifest["tasks"]
    rows = read_windows(folder / "out").columns
    assert len(rows["mase"]) == 12 * 3 * 3
    table = pd.read_csv(folder / "sales.csv")
    values = table[table.unique_id == "shop 4"].y.to_numpy(np.float64)
    pick = (rows["series"] == "shop 4") & (rows["method"] == "seasonal_naive")
    expected = [
        mase(values[t : t + 12], seasonal_naive(values[None, :t], 12, 12)[0], values[:t], 12)
        for t in (48, 60, 72)
    ]
    np.testing.assert_allclose(rows["mase"][pick], expected)
    cell = next(c for c in manifest["results"] if c["method"] == "seasonal_naive")
    mine = rows["mase"][rows["method"] == "seasonal_naive"]
    assert cell["mase"] == pytest.approx(mine.mean())  # all windows have as many points
    assert cell["seconds"] > 0
    board = {row["name"]: row for row in manifest["leaderboard"]}
    assert board["seasonal_naive"]["mase"] == pytest.approx(mine.mean())
    assert board["seasonal_naive"]["relative"] == pytest.approx(1)
    assert board["naive"]["mase"] > 1.5 * board["seasonal_naive"]["mase"]
    assert board["naive"]["p_holm"] < 0.01
    text = (folder / "out/results.md").read_text()
    assert "| naive |" in text
    assert "Wilcoxon" in text


class _Page(HTMLParser):
    """What a page refers to, and the texts of its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.tables, self._table = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.references += [named[key] for key in ("src", "href", "data") if key in named]
        if tag == "table":
            self._table = self.tables.setdefault(named["id"], [])
        if tag == "tr" and self._table is not None:
            self._table.append([])

    def handle_data(self, data):
        if self._table:
            self._table[-1].append(data)

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None


def test_the_report_holds_everything_in_one_file(comparison):
    _, folder = comparison
    page = _Page((folder / "out/report.html").read_text("utf-8"))
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert len(page.references) == 4  # three series, and the differences
    assert all(each.startswith("data:image/png;base64,") for each in page.references)
    assert {row[0] for row in page.tables["leaderboard"][1:]} == {*METHODS}
    assert len(page.tables["significance"]) == 3
    assert len(page.tables["series"]) == 13
    assert "b" not in page.tags  # of the name of a series


def test_a_browser_shows_the_report(comparison, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no chromium")
    _, folder = comparison
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    command += ["--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    url = (folder / "out/report.html").as_uri()
    done = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=100
    )
    page = _Page(done.stdout)
    assert {*page.tables} == {"leaderboard", "significance", "series"}
    assert all(each.startswith("data:image/png;base64,") for each in page.references)
    assert [row[0] for row in page.tables["series"] if row[0].startswith("<b>")] == [
        "<b>&$x_1$ 'http:' \"q\""
    ]


def test_a_model_is_compared_under_its_name(golden, tmp_path):
    long_table([60, 60]).to_csv(tmp_path / "sales.csv", index=False)
    config = FrameConfig(
        path=str(tmp_path / "sales.csv"),
        checkpoint=str(golden),
        baselines=("seasonal_naive",),
        horizon=8,
        folds=1,
        context_length=16,
        output_dir=str(tmp_path / "out"),
    )
    manifest = run(config)
    assert manifest["model"] == "moe_tiny"
    assert {row["name"] for row in manifest["leaderboard"]} == {"moe_tiny", "seasonal_naive"}
    assert all(p["p_holm"] != p["p_holm"] for p in manifest["leaderboard"])  # of two series
    text = (tmp_path / "out/report.html").read_text("utf-8")
    assert "Forecasts of moe_tiny, best to worst" in text
    assert "too few to tell chance from a difference" in text


def test_holm_multiplies_the_least_by_the_count():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02, float("nan"), 0.03])[::2] == pytest.approx([0.04, 0.04])


def test_paired_errors_by_hand():
    a, b = np.array([1.0, 3.0, 2.0, 2.0]), np.array([2.0, 2.0, 4.0, 2.0])
    found = compare_paired(a, b, np.array(["x", "x", "y", "y"]))
    assert (found.a, found.b, found.series, found.windows) == (2, 2.5, 2, 4)
    assert found.difference.value == -0.5
    assert found.ratio.value == 0.8
    assert (found.wins, found.series_wins) == (0.625, 0.75)  # a tie in each
    # Resampled by series, there are three means: both of x, both of y, and one of each.
    assert (found.difference.low, found.difference.high) == (-1, 0)
    assert found.p != found.p
    with pytest.raises(DataError, match="no window that both have"):
        compare_paired(a[:0], b[:0], np.array([]))


def test_intervals_hold_what_they_should_and_tests_are_not_fooled():
    """Of errors that are alike within a series, 95% of intervals hold the true difference."""
    rng, trials, series = np.random.default_rng(0), 400, 12
    held, significant = 0, 0
    for seed in range(trials):
        own = rng.standard_normal((series, 1)) + 0.1 * rng.standard_normal((series, 5))
        found = compare_paired(
            5 + own.ravel(), np.full(own.size, 5.0), np.repeat(np.arange(series), 5), seed
        )
        held += found.difference.low <= 0 <= found.difference.high
        significant += found.p < 0.05
    # Within three standard deviations of the share of so many trials.
    assert abs(held / trials - 0.95) < 0.033
    assert significant / trials < 0.083
    assert signed_rank(np.zeros(9)) == 1
    assert signed_rank(np.arange(1.0, 7)) == pytest.approx(2 / 64)


def test_methods_are_ranked_on_the_series_that_all_can_be_scored_on(tmp_path):
    """A series that repeats itself has no scale: it is in the table, and in no mean."""
    table = long_table([60] * 7)
    table.loc[table.unique_id == "shop 3", "y"] = 2.0
    table.to_csv(tmp_path / "sales.csv", index=False)
    manifest = run(config_of(tmp_path / "sales.csv", horizon=12, output_dir=str(tmp_path / "o")))
    assert all(np.isfinite(row["mase"]) for row in manifest["leaderboard"])
    assert "on 6 series" in (tmp_path / "o/results.md").read_text()
    assert "1 series have no MASE" in (tmp_path / "o/report.html").read_text()


def test_one_method_and_series_without_a_scale(tmp_path):
    table = long_table([40])
    table["y"] = 2.0
    table.to_csv(tmp_path / "flat.csv", index=False)
    config = FrameConfig(
        path=str(tmp_path / "flat.csv"),
        checkpoint="",
        baselines=("naive",),
        horizon=6,
        per_window=False,
        output_dir=str(tmp_path / "out"),
    )
    manifest = run(config)
    assert manifest["model"] is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("manifest.json", "report.html", "results.md")
    ]
    assert "No series has a MASE" in (tmp_path / "out/results.md").read_text()
