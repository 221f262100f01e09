"""Which shapes the programs of a call have, by counts."""

import itertools

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.forecasting import programs
from timemoe_jax.forecasting.shapes import (
    FURTHER_PROGRAM,
    length_bucket,
    padded_lengths,
    rows_of_batch,
)
from timemoe_jax.models.decoding import horizon_plan, rounded_horizon


def cost(series, lengths, program):
    """Of a choice: the points of all rows, and what its programs take."""
    used = len(set(lengths.values()))
    further = max(0, used - 2) * (FURTHER_PROGRAM - 1)
    return sum(series[b] * lengths[b] for b in series) + program * (used + further)


def choices(buckets):
    """Every way to cut rising buckets into neighbors that share a length."""
    for cuts in itertools.product([False, True], repeat=len(buckets) - 1):
        lengths, top = {}, buckets[-1]
        for bucket, cut in zip(reversed(buckets[:-1]), reversed(cuts), strict=True):
            lengths[buckets[buckets.index(bucket) + 1]] = top
            top = bucket if cut else top
        yield {**lengths, buckets[0]: top}


@given(
    st.dictionaries(st.integers(1, 40), st.integers(1, 50), min_size=3, max_size=6),
    st.floats(0, 2000),
)
def test_nothing_costs_less(series, program):
    found = padded_lengths(series, program)
    assert found.keys() == series.keys()
    assert all(found[bucket] >= bucket and found[bucket] in series for bucket in series)
    least = min(cost(series, each, program) for each in choices(sorted(series)))
    assert cost(series, found, program) == pytest.approx(least)


def test_one_bucket_or_two_stay_as_they_are():
    assert padded_lengths({64: 3}, 1e6) == {64: 64}
    assert padded_lengths({64: 3, 512: 1}, 1e6) == {64: 64, 512: 512}
    assert padded_lengths({}, 1e6) == {}


def test_dozens_of_series_never_need_a_third_program():
    monthly = {16 * k: 3 for k in range(2, 27)}
    assert len(set(padded_lengths(monthly, 40_000).values())) == 1
    many = {16 * k: 300 for k in range(2, 27)}  # a split pays
    assert len(set(padded_lengths(many, 40_000).values())) == 2
    thousands = {16 * k: 30_000 for k in range(2, 27)}
    assert len(set(padded_lengths(thousands, 40_000).values())) > 2


@given(st.integers(1, 10_000))
def test_lengths_are_rounded_up_by_a_quarter_at_most(length):
    bucket = length_bucket(length)
    assert length <= bucket <= max(length + 15, 1.25 * length)
    assert length_bucket(bucket) == bucket


def test_rows_of_a_batch():
    assert rows_of_batch(5, 64, 512, more=False, program=1e9) == 8
    assert rows_of_batch(64, 64, 512, more=True, program=1e9) == 64
    assert rows_of_batch(5, 64, 512, more=True, program=30_000) == 64
    assert rows_of_batch(5, 64, 512, more=True, program=20_000) == 8
    assert rows_of_batch(3, 3, 512, more=False, program=0) == 3
    # Rows that fill a batch up cost no more than a quarter of a program, where a few more
    # programs can help that.
    assert rows_of_batch(65, 256, 448, more=False, program=1e9) == 128
    assert rows_of_batch(65, 256, 448, more=False, program=35_000) == 80
    rows = {rows_of_batch(n, 256, 448, more=False, program=35_000) for n in range(65, 129)}
    assert rows == {80, 96, 112, 128}
    assert {rows_of_batch(n, 256, 448, False, 0) for n in range(129, 257)} == {160, 192, 224, 256}


HEADS = ((1, 8, 32, 64), (1, 8, 32, 64, 720), (4, 8), (1,), (96,))


@given(st.integers(1, 800), st.sampled_from(HEADS), st.sampled_from(["fitting", "covering"]))
def test_a_rounded_horizon_reads_the_same_heads_first(horizon, heads, plan):
    longer = rounded_horizon(horizon, heads, plan)
    asked, computed = (horizon_plan(h, heads, plan) for h in (horizon, longer))
    assert longer >= horizon
    assert computed[: len(asked)] == asked
    assert rounded_horizon(longer, heads, plan) == longer


@pytest.mark.parametrize(
    ("horizons", "heads", "plan", "expected"),
    [
        (range(20, 32), (1, 8, 32, 64), "fitting", {23, 24, 31}),
        (range(20, 32), (1, 8, 32, 64), "covering", {32}),
        (range(65, 721), (1, 8, 32, 64, 720), "covering", {720}),
        ([1, 96, 192, 336, 720], (1, 8, 32, 64), "fitting", {1, 96, 192, 336, 720}),
        ([5, 6, 7, 8], (1,), "fitting", {8}),
        ([100, 192], (96,), "fitting", {192}),
    ],
)
def test_horizons_of_few_sizes(horizons, heads, plan, expected):
    assert {rounded_horizon(h, heads, plan) for h in horizons} == expected


def test_small_programs_are_compiled_with_less_effort(monkeypatch):
    jax.devices()  # which begin with the flags that they find
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert programs.compiler_options(1e6) == programs.LESS_EFFORT
    assert programs.compiler_options(1e12) == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert programs.compiler_options(1e6) == {}


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    """Each version has its own; the bounds of the dependencies allow many."""
    monkeypatch.setattr(programs, "_unknown", set())
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    options = {"xla_of_another_version": True, "xla_backend_optimization_level": 1}
    for _ in range(2):
        assert float(programs.compile_with(lowered, options)(1.0)) == 2.0
        assert programs._unknown == {"xla_of_another_version"}
    with pytest.raises(jax.errors.JaxRuntimeError):  # a value that is wrong is not left out
        programs.compile_with(lowered, {"xla_backend_optimization_level": "high"})
