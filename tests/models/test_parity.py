"""Agreement with what the published implementation computes from the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from benchmarks.parity import BOUNDS, HORIZONS, UNCACHED_HORIZONS, Case
from timemoe_jax.models.decoding import horizon_plan

QUANTITIES = ("hidden", "heads", "router logits", "losses", "gradients")


@pytest.fixture(scope="module")
def case(parity_folder: Path) -> Case:
    return Case(parity_folder)


@pytest.fixture(scope="module")
def tiny_cases(golden: Path) -> dict[str, Case]:
    return {name: Case(golden, name) for name in ("dense", "blocked")}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_matches_published(case: Case, quantity: str):
    assert case.error(quantity) <= BOUNDS[quantity]


@pytest.mark.parametrize("implementation", ["dense", "blocked"])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_both_expert_implementations_match_published(tiny_cases, implementation, quantity):
    assert tiny_cases[implementation].error(quantity) <= BOUNDS[quantity]


@pytest.mark.parametrize("horizon", HORIZONS)
def test_forecast(case: Case, horizon: int):
    assert case.error("forecasts", horizon) <= BOUNDS["forecasts"]


@pytest.mark.parametrize("horizon", UNCACHED_HORIZONS)
def test_decoding_with_and_without_a_cache(case: Case, horizon: int):
    quantity = "cached against uncached"
    assert case.error(quantity, horizon) <= BOUNDS[quantity]


def test_forecasts_cover_every_kind_of_step(case: Case):
    """Every horizon of the fixture is compared, several of them over steps of several heads."""
    found = {int(key[9:]) for key in case.expected if key.startswith("generate_")}
    assert found == set(HORIZONS)
    steps = {p for h in HORIZONS for p in horizon_plan(h, case.config.horizon_lengths)[1:]}
    assert steps == set(case.config.horizon_lengths)


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
