"""Two runs compared by the windows that both have."""

import json

import numpy as np
import pytest

from timemoe_jax.cli.main import main
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.comparisons.runs import compare_runs
from timemoe_jax.evaluation.records import COLUMNS, window_writer


def write_run(folder, rows, model=None):
    """A run whose windows are (task, series, origin, method, mase)."""
    columns = dict(
        zip(("task", "series", "origin", "method", "mase"), zip(*rows, strict=True), strict=True)
    )
    count = len(rows)
    columns |= {"benchmark": ["own"] * count, "horizon": [4] * count, "points": [4] * count}
    assert {*columns} <= {*COLUMNS}
    folder.mkdir()
    with window_writer(folder) as writer:
        writer.add(columns)
    (folder / "manifest.json").write_text(json.dumps({"model": model, "results": []}))
    return folder


def windows(method, factor, tasks=("one", "two"), series=8, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (task, f"s{s}", origin, method, factor * (1 + rng.random()))
        for task in tasks
        for s in range(series)
        for origin in (10, 14)
    ]


def test_the_same_errors_times_two(tmp_path):
    a = write_run(tmp_path / "a", windows("nano", 1))
    b = write_run(tmp_path / "b", windows("other", 2))
    found = compare_runs(a, b)
    assert (found.a, found.b) == ("a/nano", "b/other")
    assert (found.windows, found.only_a, found.only_b, found.unscored) == (32, 0, 0, 0)
    assert (found.wins, found.series_wins) == (1, 1)
    for interval in (found.ratio, found.tasks["one"].ratio):
        np.testing.assert_allclose((interval.value, interval.low, interval.high), 0.5)
    assert found.tasks["two"].p == pytest.approx(2 / 2**8)
    assert found.tasks["one"].difference.high < 0
    assert "a/nano is better than b/other: its mase is 0.500 times as large" in found.summary()
    text = found.to_markdown()
    assert "| all 2 tasks | 16 | 32 |" in text
    back = compare_runs(b, a)
    assert back.ratio.value == pytest.approx(2)
    assert back.wins == 0


def test_the_ratio_of_all_tasks_is_a_geometric_mean(tmp_path):
    rows = [*windows("nano", 1, ("one",)), *windows("nano", 9, ("two",), seed=1)]
    a = write_run(tmp_path / "a", rows)
    b = write_run(
        tmp_path / "b", [*windows("nano", 1, ("one",)), *windows("nano", 1, ("two",), seed=1)]
    )
    found = compare_runs(a, b)
    assert found.ratio.value == pytest.approx(3)
    assert found.wins == 0.25  # ties in one task
    assert found.ratio.low == pytest.approx(3)  # each task's ratio is exact in any sample


def test_what_only_one_run_has_is_counted(tmp_path):
    rows = windows("nano", 1)
    rows[0] = (*rows[0][:4], float("nan"))
    a = write_run(tmp_path / "a", rows[:-3])
    b = write_run(tmp_path / "b", [*windows("nano", 2)[1:], ("three", "s0", 3, "nano", 1.0)])
    found = compare_runs(a, b)
    assert (found.only_a, found.only_b, found.unscored) == (1, 4, 0)
    c = write_run(tmp_path / "c", windows("nano", 1))
    assert compare_runs(a, c).unscored == 1
    text = found.to_markdown()
    assert "Not compared: 1 window that only A has." in text
    assert "Not compared: 4 windows that only B has." in text


def test_nothing_to_pair_is_an_error(tmp_path):
    a = write_run(tmp_path / "a", windows("nano", 1, ("one",)))
    b = write_run(tmp_path / "b", windows("nano", 1, ("two",)))
    with pytest.raises(DataError, match="no window is in both: a/nano has windows of own one, b"):
        compare_runs(a, b)
    with pytest.raises(DataError, match="none of the 16 windows of both has a sql in both"):
        compare_runs(a, a, "sql")
    with pytest.raises(DataError, match="metric must be one of mase, sql"):
        compare_runs(a, b, "rmse")
    twice = write_run(tmp_path / "twice", [*windows("nano", 1), *windows("nano", 1)])
    with pytest.raises(DataError, match="has the window benchmark own, task one, series s0, ori"):
        compare_runs(twice, a)
    with pytest.raises(DataError, match="has no rows of windows; evaluate with --config"):
        compare_runs(tmp_path, a)


def test_the_command_prints_and_draws(tmp_path, capsys):
    both = [*windows("nano", 1), *windows("naive", 1.5, seed=3)]
    run = write_run(tmp_path / "run", both, model="nano")
    plot, table = tmp_path / "plot.png", tmp_path / "found.json"
    main(
        ["compare", str(run), str(run), "--method-b", "naive"]
        + ["--plot", str(plot), "--json", str(table)]
    )
    out = capsys.readouterr().out
    assert "run/nano is better than run/naive" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(table.read_text())["ratio"]["value"] < 1
    several = write_run(tmp_path / "several", both)
    for arguments, message in (
        ([str(several), str(run)], "several methods and no model; give --method-a as one of nano"),
        ([str(run), str(run), "--method-b", "nan"], "no method 'nan'; give --method-b as one of"),
        ([str(run), str(run), "--plot", "a.txt"], "a picture's name must end in"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["compare", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_a_task_of_one_series_has_no_interval(tmp_path):
    a = write_run(tmp_path / "a", windows("nano", 1, series=1))
    b = write_run(tmp_path / "b", windows("nano", 2, series=1))
    text = compare_runs(a, b).to_markdown()
    assert "| 0.500 |" in text
    assert "A task of one series has no interval" in text
    assert "nan" not in text.replace("nano", "")
