"""Agreement with what the published implementation computes from the same weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from places import ROOT

from benchmarks.parity import BOUNDS, HORIZONS, UNCACHED_HORIZONS, Case
from timemoe_jax.models.base import abstract_model
from timemoe_jax.models.decoding import horizon_plan
from timemoe_jax.models.time_moe.decoding import extend, prefill
from timemoe_jax.nn.experts.compute import resolve

QUANTITIES = ("hidden", "heads", "router logits", "losses", "gradients")
# All but the smallest, of which every forecast is compiled as a user compiles it.
larger = pytest.mark.parametrize(
    "parity_folder", ["moe", "gqa", "dense"], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def case(parity_folder: Path) -> Case:
    return Case(parity_folder)


@pytest.fixture(scope="module")
def tiny(golden: Path) -> Case:
    return Case(golden)


@pytest.fixture(scope="module")
def dense_experts(golden: Path) -> Case:
    """The other implementation of the experts; that of all other cases is the blocked one."""
    assert resolve("auto") == "blocked"
    return Case(golden, "dense")


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_matches_published(case: Case, quantity: str):
    assert case.error(quantity) <= BOUNDS[quantity]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_dense_experts_match_published(dense_experts: Case, quantity: str):
    assert dense_experts.error(quantity) <= BOUNDS[quantity]


@pytest.mark.parametrize("horizon", HORIZONS)
def test_forecast(tiny: Case, horizon: int):
    assert tiny.error("forecasts", horizon) <= BOUNDS["forecasts"]


@pytest.mark.parametrize("horizon", UNCACHED_HORIZONS)
def test_decoding_with_and_without_a_cache(tiny: Case, horizon: int):
    quantity = "cached against uncached"
    assert tiny.error(quantity, horizon) <= BOUNDS[quantity]


@larger
def test_forecast_of_every_kind_of_step(case: Case):
    """Each of the heads after another."""
    assert set(horizon_plan(333, case.config.horizon_lengths)) == {64, 8, 1}
    assert case.error("forecasts", 333) <= BOUNDS["forecasts"]


@larger
def test_decoding_a_head_of_8_and_two_of_1_with_and_without_a_cache(case: Case):
    quantity = "cached against uncached"
    assert case.error(quantity, 10) <= BOUNDS[quantity]


@pytest.fixture(scope="module")
def steps(case: Case) -> tuple[Callable, Callable]:
    """What begins a forecast, and what goes on after some points; for a cache of one size."""
    graph, _ = abstract_model(case.config)
    lengths = case.config.horizon_lengths
    size = case.x.shape[1] + max(HORIZONS)

    @jax.jit
    def begin(params, x):
        model = nnx.merge(graph, params)
        hidden, cache = prefill(model, x, jnp.ones(x.shape, bool), size)
        return {p: model.head(hidden, p) for p in lengths}, cache

    @jax.jit
    def go_on(params, points, cache):
        model = nnx.merge(graph, params)
        hidden, cache = extend(model, points, cache)
        return {p: model.head(hidden, p) for p in lengths}, cache

    return begin, go_on


@larger
@pytest.mark.parametrize("horizon", HORIZONS)
def test_forecast_step_by_step(case: Case, steps: tuple[Callable, Callable], horizon: int):
    """As `decode` puts them together, but compiled once for all horizons."""
    begin, go_on = steps
    first, *others = horizon_plan(horizon, case.config.horizon_lengths)
    heads, cache = begin(case.params, case.x)
    parts = [heads[first]]
    for predict in others:
        heads, cache = go_on(case.params, parts[-1], cache)
        parts.append(heads[predict])
    forecast = np.concatenate(parts, axis=1)[:, :horizon]
    error = np.abs(forecast - case.expected[f"generate_{horizon}"]).max()
    assert error <= BOUNDS["forecasts"]


def test_forecasts_cover_every_kind_of_step(case: Case):
    """Every horizon of the fixture is compared, several of them over steps of several heads."""
    found = {int(key[9:]) for key in case.expected if key.startswith("generate_")}
    assert found == set(HORIZONS)
    plans = (horizon_plan(h, case.config.horizon_lengths) for h in HORIZONS)
    assert {p for plan in plans for p in plan[1:]} == set(case.config.horizon_lengths)


def test_a_wrong_weight_is_noticed(golden: Path):
    """The comparison itself: one kernel off by a percent exceeds every bound it reaches."""
    case = Case(golden)
    kernel = case.params["blocks"]["attention"]["out"]["kernel"]
    kernel[...] = kernel[...] * 1.01
    for quantity in QUANTITIES:
        assert case.error(quantity) > BOUNDS[quantity]


def test_compiled_as_a_users_program_is(golden: Path, tmp_path: Path):
    """The program in a process of its own, without the flags that make the tests compile fast."""
    rows = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/parity.py", str(golden), "--quick", "--json", str(rows)]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ratios = {row["name"]: row["ratio"] for row in json.loads(rows.read_text())}
    assert len(ratios) == len(BOUNDS)
    assert max(ratios.values()) <= 1, ratios
