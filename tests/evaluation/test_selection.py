"""The selection score: which windows it takes, and the ratios that it is made of."""

import dataclasses
import json
import math

import numpy as np
import pytest

from configs import time_moe_mini
from timemoe_jax.cli import main as cli
from timemoe_jax.data.formats.open import SourcePart
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.evaluation.held_out import selection
from timemoe_jax.evaluation.held_out.beside import method_forecasts
from timemoe_jax.evaluation.held_out.selection import SelectionSource, read_selection, select
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.tasks import DECILES

TABLE = "configs/mini_selection.csv"
HEADER = "frequency,source,first,stop,season,horizon\n"
ENTRIES = (
    SelectionSource("hourly", "a/long", 0, None, 24, 12),
    SelectionSource("monthly", "b/short", 1, 4, 12, 6),
)


def source_and_parts():
    """Two long series whose values are their times, and walks of 20 to 90 points."""
    rng = np.random.default_rng(0)
    long = [np.arange(3000.0), 1e6 + np.arange(200.0)]
    short = [rng.normal(size=n).cumsum() for n in (20, 50, 70, 90, 90)]
    parts = [SourcePart("a", "long", 0, 2), SourcePart("b", "short", 2, 7)]
    return ArraySource([*long, *short]), parts


def test_windows_have_all_lengths_and_are_spread_over_series_and_times():
    task = selection.selection_task(ENTRIES[0], *source_and_parts(), windows=48)
    assert (len(task), task.horizon, task.season) == (48, 12, 24)
    lengths = [len(context) for context in task.contexts()]
    assert lengths == list(selection.CONTEXTS) * 6
    for context, target in zip(task.contexts(), task.targets(), strict=True):
        np.testing.assert_array_equal(np.diff([*context, *target]), 1)
    ends = np.array([context[-1] for context in task.contexts()])
    assert 4 <= np.sum(ends > 1e6) <= 15  # of the short one, which only contexts up to 188 fit
    assert len(np.unique(ends)) > 35


def test_a_range_of_a_source_and_contexts_as_it_has():
    task = selection.selection_task(ENTRIES[1], *source_and_parts(), windows=10)
    assert {len(context) for context in task.contexts()} == {24, 48}
    source, _ = source_and_parts()
    inside = [any(np.isin(c[0], source[i]) for i in (3, 4, 5)) for c in task.contexts()]
    assert all(inside)


def test_the_last_horizon_of_each_series_is_forecast_from_all_before_it():
    source, _ = source_and_parts()
    task = selection.last_horizon_task(ENTRIES[1], *source_and_parts(), most=10)
    assert [len(context) for context in task.contexts()] == [44, 64, 84]
    for number, series in zip((3, 4, 5), task.series, strict=True):
        np.testing.assert_array_equal(series, source[number])
    fewer = selection.last_horizon_task(ENTRIES[1], *source_and_parts(), most=1)
    assert [len(context) for context in fewer.contexts()] == [64]  # the one in the middle


def test_short_series_have_no_last_horizon():
    entry = dataclasses.replace(ENTRIES[1], first=0, horizon=9)  # a series has 20 points
    task = selection.last_horizon_task(entry, *source_and_parts(), most=10)
    assert [len(context) for context in task.contexts()] == [41, 61, 81]


def test_the_mean_of_methods_is_of_points_and_of_quantiles():
    tasks = [selection.last_horizon_task(ENTRIES[1], *source_and_parts(), most=3)]
    made = method_forecasts("naive+drift, naive", tasks)
    assert list(made) == ["naive+drift", "naive"]
    naive, drift = (method_forecasts(name, tasks)[name][0] for name in ("naive", "drift"))
    mean = made["naive+drift"][0]
    np.testing.assert_allclose(mean.point, (naive.point + drift.point) / 2)
    np.testing.assert_allclose(mean.quantiles, (naive.quantiles + drift.quantiles) / 2)
    with pytest.raises(ConfigError, match="there is no method 'nave'"):
        method_forecasts("naive+nave", tasks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "c/none"}, "c/none is none of the sources: a/long, b/short"),
        ({"first": 0, "stop": 1, "horizon": 12}, r"b/short\[0:1\] has no series of 24 points"),
        ({"first": 9}, "has no series of"),
    ],
)
def test_a_source_that_cannot_be_scored(fields, message):
    entry = dataclasses.replace(ENTRIES[1], **fields)
    with pytest.raises(DataError, match=message):
        selection.selection_task(entry, *source_and_parts(), windows=3)


def moved(share):
    """Forecasts a share of the way from the truth to seasonal naive's."""

    def forecast(tasks):
        made = []
        for task in tasks:
            naive, target = selection.seasonal_naive_forecast(task), task.targets()
            quantiles = target[..., None] + share * (naive.quantiles - target[..., None])
            made.append(MethodForecast(target + share * (naive.point - target), quantiles))
        return made

    return forecast


def test_the_score_is_a_ratio_to_seasonal_naive():
    for share in (1.0, 0.25):
        result = select(ENTRIES, *source_and_parts(), moved(share), windows=16)
        for name in ("mase", "crps"):
            assert result.relative(name) == pytest.approx(share)
            assert result.relative(name, "monthly") == pytest.approx(share)
        assert result.score == pytest.approx(share)


def test_sources_count_alike_and_both_scores_do():
    """Ratios of 1/4 and 1 have the geometric mean 1/2."""

    def forecast(tasks):
        return [moved(0.25)([tasks[0]])[0], moved(1.0)([tasks[1]])[0]]

    result = select(ENTRIES, *source_and_parts(), forecast, windows=16)
    assert result.relative("mase") == pytest.approx(0.5)
    assert result.score == pytest.approx(math.sqrt(0.5 * 0.5))
    assert "| hourly | 0.250 | 0.250 |" in result.to_markdown()
    assert json.dumps(result.as_dict()["total"])


class Stub:
    """Answers with the horizon, and with the levels where it has quantile heads."""

    def __init__(self, levels):
        self.config = dataclasses.make_dataclass("C", ["quantile_levels"])(levels)
        self.calls = []

    def forecast(self, contexts, horizon, quantile_levels=None):
        self.calls.append((len(contexts), horizon))
        point = np.full((len(contexts), horizon), float(horizon))
        shape = (*point.shape, len(DECILES))
        levels = None if quantile_levels is None else np.broadcast_to(quantile_levels, shape)
        return dataclasses.make_dataclass("F", ["point", "quantiles"])(point, levels)


@pytest.mark.parametrize("levels", [(), (0.1, 0.5)])
def test_sources_of_one_horizon_are_forecast_together(levels):
    entries = (*ENTRIES, dataclasses.replace(ENTRIES[0], horizon=6))
    tasks = [selection.selection_task(e, *source_and_parts(), windows=4) for e in entries]
    stub = Stub(levels)
    made = selection.model_forecasts(stub, tasks)
    assert sorted(stub.calls) == [(4, 12), (8, 6)]
    assert [m.point[0, 0] for m in made] == [12, 6, 6]
    expected = DECILES if levels else [12.0] * 9
    np.testing.assert_allclose(made[0].quantiles[0, 0], expected)


def test_the_table_that_comes_with_the_recipe():
    """At least three sources of each frequency, all held out, and none that never selects."""
    entries = read_selection(TABLE)
    by_frequency = {
        e.frequency: [o for o in entries if o.frequency == e.frequency] for e in entries
    }
    assert len(by_frequency) == 6
    assert min(map(len, by_frequency.values())) >= 3
    used = {entry.source for entry in entries}
    assert used == set(time_moe_mini.VALIDATION_SOURCES)
    trained = {name for shares in time_moe_mini.SHARES.values() for name in shares}
    assert not trained & used
    assert not (trained | used) & set(time_moe_mini.NEVER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have rows, and the columns frequency, source"),
        (HEADER, "must have rows"),
        (HEADER + "hourly,a/b,,,many,12\n", "line 2: season and horizon must be whole numbers"),
        (HEADER + "hourly,a/b,,,24,0\n", "line 2: season and horizon must be at least 1"),
    ],
)
def test_a_table_that_says_something_else(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_selection(path)


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    series = [rng.normal(size=60) for _ in range(3)]
    write_time_moe_folder(tmp_path / "corpus" / "energy" / "load", series)
    table, out = tmp_path / "table.csv", tmp_path / "scores.json"
    table.write_text(HEADER + "weekly,energy/load,,,7,5\n")
    options = [f"--path={tmp_path / 'corpus'}", f"--selection={table}", f"--json={out}"]
    cli.main(["score", *options])
    assert "selection score 1.0000" in capsys.readouterr().out
    assert json.loads(out.read_text())["total"]["mase"] == pytest.approx(1)
    cli.main(["score", *options, "--methods=seasonal_naive,naive+drift", "--windows=2"])
    assert "| naive+drift |" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert list(found["methods"]) == ["seasonal_naive", "naive+drift"]
    assert found["methods"]["seasonal_naive"]["total"]["mase"] == pytest.approx(1)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["score", options[0], "--selection=/none"])
    assert exit_info.value.code == 2
    assert "/none cannot be read" in capsys.readouterr().err


def test_the_table_of_what_is_measured_once():
    """Monthly, quarterly and yearly, of sources that neither train nor select."""
    entries = read_selection("configs/mini_measured.csv")
    assert {entry.frequency for entry in entries} == {"monthly", "quarterly", "yearly"}
    assert {entry.source for entry in entries} <= set(time_moe_mini.NEVER)
