"""Cells that are scored from one forecast of each context: which, and that nothing else changes."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax import DataError, Forecaster
from timemoe_jax.evaluation import long_horizon as evaluate
from timemoe_jax.evaluation.benchmarks import benchmark_windows, load_benchmark
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.models.base import create_params

ROWS, CONTEXT, TEST = 300, 40, 60
COVERING = dataclasses.replace(TINY, horizon_lengths=(4, 16), forecast_plan="covering")


class CountingForecaster(Forecaster):
    """Remembers how many series were forecast, and how far."""

    def __init__(self, config):
        super().__init__(config, create_params(config, seed=0))
        self.calls = []

    def forecast(self, inputs, horizon, **options):
        self.calls.append((len(inputs), horizon))
        return super().forecast(inputs, horizon, **options)


@pytest.fixture(scope="module")
def covering():
    return CountingForecaster(COVERING)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    rng = np.random.default_rng(0)
    t = np.arange(ROWS)
    frame = pd.DataFrame(
        {
            "date": pd.date_range("2020-01-01", periods=ROWS, freq="D"),
            "a": np.sin(2 * np.pi * t / 7) + 0.1 * rng.normal(size=ROWS),
            "b": rng.normal(size=ROWS).cumsum(),
            "c": rng.normal(size=ROWS),
        }
    )
    path = tmp_path_factory.mktemp("data") / "small.csv"
    frame.to_csv(path, index=False)
    return load_benchmark(path)


def _plan(benchmark, horizons, context=CONTEXT, max_windows=None, protocol="complete"):
    contexts = context if isinstance(context, tuple) else (context,) * len(horizons)
    return [
        (benchmark, benchmark_windows(benchmark, c, h, protocol, max_windows))
        for c, h in zip(contexts, horizons, strict=True)
    ]


def _horizons(groups):
    return [group.horizons for group in groups]


def test_cells_of_one_head_are_a_group(covering, benchmark):
    plan = _plan(benchmark, (16, 3, 6, 20, 4, 10))
    groups = evaluate.group_cells(plan, covering, None)
    # 16, 6 and 10 read the head of 16; 3 and 4 that of 4; 20 reads both.
    assert _horizons(groups) == [(16, 6, 10), (3, 4), (20,)]
    assert [group.indices for group in groups] == [(0, 2, 5), (1, 4), (3,)]


def test_cells_that_share_nothing_are_groups_of_one(covering, benchmark):
    published = CountingForecaster(dataclasses.replace(COVERING, forecast_plan="fitting"))
    alone = [(16,), (6,), (10,)]
    plan = _plan(benchmark, (16, 6, 10))
    assert _horizons(evaluate.group_cells(plan, published, None)) == alone
    # Another context, another dataset, or a subset, which is another one for each horizon.
    other = _plan(benchmark, (16, 6, 10), context=(40, 30, 20))
    assert _horizons(evaluate.group_cells(other, covering, None)) == alone
    again = dataclasses.replace(benchmark)
    two = [plan[0], *_plan(again, (6, 10))]
    assert _horizons(evaluate.group_cells(two, covering, None)) == [(16,), (6, 10)]
    subset = _plan(benchmark, (16, 6, 10), max_windows=9)
    assert _horizons(evaluate.group_cells(subset, covering, 9)) == alone
    assert _horizons(evaluate.group_cells(subset, None, 9)) == alone


def _alone(forecaster, plan, config):
    groups = [evaluate.Group(b, (windows,), (i,)) for i, (b, windows) in enumerate(plan)]
    return [evaluate.evaluate_group(forecaster, g, config, progress=False)[0] for g in groups]


@pytest.mark.parametrize("protocol", ["complete", "published"])
def test_a_group_scores_as_its_cells_alone(covering, benchmark, protocol):
    # Batches that no cell fills evenly, but the last of nearly all of which are of the same size.
    config = EvalConfig(batch_size=28, protocol=protocol)
    plan = _plan(benchmark, (10, 16, 6), protocol=protocol)
    (group,) = evaluate.group_cells(plan, covering, None)
    covering.calls.clear()
    together = evaluate.evaluate_group(covering, group, config, progress=False)
    forecast = list(covering.calls)
    alone = _alone(covering, plan, config)

    # Each window of the shortest horizon once, as far as the longest.
    windows = [3 * (TEST - h + 1 - (protocol == "published")) for h in (10, 16, 6)]
    assert sum(series for series, _ in forecast) == windows[2]
    assert {horizon for _, horizon in forecast} == {16}
    assert [cell["windows"] for cell in together] == windows
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        assert one["wall_seconds_of_horizons"] == [10, 16, 6]
        assert other["wall_seconds_of_horizons"] == [one["horizon"]]
        assert one["wall_seconds"] == together[0]["wall_seconds"] > 0
        for name in one.keys() - {"wall_seconds", "wall_seconds_of_horizons"}:
            if name.endswith(("mse", "mae")):
                # The model's rounding is float32's and varies with the batch; sums are of float64.
                rtol = 1e-5 if name in ("mse", "mae") else 1e-12
                np.testing.assert_allclose(one[name], other[name], rtol=rtol, err_msg=name)
            else:
                assert one[name] == other[name], name


@given(st.lists(st.integers(1, TEST), min_size=1, max_size=4), st.integers(1, 200))
def test_baselines_nest_at_any_horizons(benchmark, horizons, batch_size):
    """Also where no window of a batch is one of the longest horizon's."""
    config = EvalConfig(batch_size=batch_size)
    plan = _plan(benchmark, horizons)
    (group,) = evaluate.group_cells(plan, None, None)
    together = evaluate.evaluate_group(None, group, config, progress=False)
    for one, other in zip(together, _alone(None, plan, config), strict=True):
        for method in evaluate.BASELINES:
            for error in ("mse", "mae"):
                name = f"{method}_{error}"
                np.testing.assert_allclose(one[name], other[name], rtol=1e-12)


def test_a_run_of_groups_keeps_the_order_and_what_it_has(
    covering, benchmark, tmp_path, monkeypatch
):
    """Cells come as the config names them; a run cut short leaves its finished groups."""
    monkeypatch.setattr(Forecaster, "from_pretrained", lambda *_: covering)
    config = EvalConfig(
        checkpoint="random",
        datasets=(str(benchmark.path),),
        horizons=(3, 16, 4, 10),
        context_length=CONTEXT,
        output_dir=str(tmp_path / "whole"),
    )
    covering.calls.clear()
    whole = evaluate.run(config)
    assert [cell["horizon"] for cell in whole["cells"]] == [3, 16, 4, 10]
    assert sum(n for n, _ in covering.calls) == 3 * (TEST - 3 + 1) + 3 * (TEST - 10 + 1)

    scored = evaluate.evaluate_group

    def until_the_second(forecaster, group, config, **options):
        if 16 in group.horizons:
            raise DataError("the machine was needed")
        return scored(forecaster, group, config, **options)

    monkeypatch.setattr(evaluate, "evaluate_group", until_the_second)
    part = tmp_path / "part"
    with pytest.raises(DataError, match="needed"):
        evaluate.run(dataclasses.replace(config, output_dir=str(part)))
    kept = json.loads((part / "manifest.json").read_text())["cells"]
    assert [cell["horizon"] for cell in kept] == [3, 4]
    for one, other in zip(kept, (whole["cells"][0], whole["cells"][2]), strict=True):
        assert one["mse"] == other["mse"]
    assert "| small | 4 |" in (part / "results.md").read_text()
