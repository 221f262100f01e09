"""The speed benchmarks run, and their rows are what they say; nothing here is about their times."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from processes import run_here, run_processes

from benchmarks import forecast, measure
from benchmarks.expert_layer import PASSES, Work
from benchmarks.measure import Timing, interleave
from timemoe_jax.nn.experts.compute import IMPLEMENTATIONS


def script(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """What `python benchmarks/name.py` does, without a published implementation."""
    return run_here(f"benchmarks/{name}.py", "--quick", *flags)


@pytest.fixture(autouse=True)
def _no_published_side(monkeypatch):
    monkeypatch.delenv("TIMEMOE_PUBLISHED_PYTHON", raising=False)
    monkeypatch.delenv("TIMEMOE_PUBLISHED_CODE", raising=False)


@pytest.fixture(autouse=True)
def _compiled_programs_are_kept_after_a_benchmark(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as a benchmark sets it
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def rows_of(name: str, path: Path, *flags: str) -> dict[tuple[str, str | None], dict]:
    """The rows by name and reference, after checking each one's fields."""
    done = script(name, *flags, "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "pytorch: skipped" in done.stdout
    first = done.stdout.splitlines()[0]
    assert "cores" in first
    assert "cpu" in first
    assert "jax" in first
    rows = json.loads(path.read_text())
    for row in rows:
        assert list(row) == ["name", "value", "unit", "reference", "ratio"]
        assert row["value"] > 0, row
        assert (row["reference"] is None) == (row["ratio"] is None), row
    keyed = {(row["name"], row["reference"]): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def test_expert_layer(tmp_path):
    rows = rows_of("expert_layer", tmp_path / "rows.json", "--tokens", "64")
    for name in IMPLEMENTATIONS:
        for kind in PASSES:
            row, reference = rows[f"{name} {kind} 64", "dense"], rows[f"SwiGLU {kind} 64", None]
            assert row["unit"] == reference["unit"] == "ms"
            assert row["ratio"] == pytest.approx(row["value"] / reference["value"])
            rate = rows[f"{name} {kind} 64 GFLOP/s", "matrix product"]
            expected = Work("base", 64, "float32").flops(kind) / (row["value"] / 1e3) / 1e9
            assert rate["value"] == pytest.approx(expected)
            assert rows[f"{name} {kind} 64 temporaries", "dense"]["unit"] == "MB"


def test_the_work_of_a_layer_by_hand():
    """Three products of 2 * D * F for each of 2 experts, and twice that for their gradients."""
    forward = 3 * 2 * 384 * 768 * 2 * 10
    assert Work("base", 10, "float32").flops("forward") == forward
    assert Work("base", 10, "float32").flops("forward+backward") == 3 * forward
    assert Work("ultra", 10, "bfloat16").suffix == "10 ultra bfloat16"


def test_train_step(tmp_path):
    rows = rows_of("train_step", tmp_path / "rows.json")
    name = "2x64 float32 tiny"
    units = {row: (value["unit"], value["reference"]) for (row, _), value in rows.items()}
    assert units == {
        name: ("ms/step", None),
        f"{name} throughput": ("points/s", None),
        f"{name} utilisation": ("GFLOP/s", "matrix product"),
        f"{name} temporaries": ("MB", None),
        f"{name} peak memory": ("MB", None),
        f"{name} compile": ("s", None),
        "matrix product": ("GFLOP/s", None),
    }
    points = rows[f"{name} throughput", None]["value"] * rows[name, None]["value"] / 1e3
    assert points == pytest.approx(2 * 64)


def test_forecast(tmp_path):
    flags = ("--contexts", "64", "--batches", "2", "--horizons", "32,96")
    rows = rows_of("forecast", tmp_path / "rows.json", *flags)
    units = {row: (value["unit"], value["reference"]) for (row, _), value in rows.items()}
    expected = {"matrix product float32": ("GFLOP/s", None)}
    for horizon in (32, 96):
        name = f"64+{horizon} x2 float32 tiny"
        expected |= {
            name: ("ms/call", None),
            f"{name} series": ("series/s", None),
            f"{name} throughput": ("points/s", None),
            f"{name} peak memory": ("MB", None),
            f"{name} first call": ("s", None),
            f"{name} utilisation": ("GFLOP/s", "matrix product"),
        }
        seconds = rows[name, None]["value"] / 1e3
        assert rows[f"{name} series", None]["value"] * seconds == pytest.approx(2)
        assert rows[f"{name} throughput", None]["value"] * seconds == pytest.approx(2 * horizon)
        work = forecast.Work("tiny", 64, horizon, 2, "float32")
        rate = rows[f"{name} utilisation", "matrix product"]
        assert rate["value"] * seconds * 1e9 == pytest.approx(work.flops)
    assert units == expected


def test_the_work_of_a_forecast_by_hand():
    """96 points are a block of 64, which is fed back, and one of 32."""
    d_model, layers, read = 384, 12, 512 + 64
    attention = 4 * d_model**2 + 3 * d_model
    experts = 8 * d_model + 2 * 3 * d_model * 768 + 3 * d_model * 1536 + d_model
    active = layers * (attention + experts + 2 * d_model) + 2 * d_model + d_model
    scores = sum(layers * 2 * 2 * d_model * points for points in range(1, read + 1))
    one = 2 * active * read + scores + 2 * d_model * (64 + 32)
    assert forecast.Work("base", 512, 96, 1, "float32").flops == one
    assert forecast.Work("base", 512, 96, 8, "bfloat16").flops == 8 * one
    assert forecast.Work("base", 512, 96, 8, "bfloat16").name == "512+96 x8 bfloat16"


def test_the_published_forecast_runs_in_parts_that_fit(monkeypatch):
    """Half of 16 GB is room for two arrays of scores of 8.8 series: 2 * 4 * 12 * 3072**2 bytes."""
    monkeypatch.setattr(measure, "device_memory", lambda: 16e9)
    parts = {batch: forecast.Work("base", 3072, 96, batch, "float32").part for batch in (4, 64)}
    assert parts == {4: 4, 64: 8}
    assert forecast.Work("base", 512, 96, 64, "float32").part == 64
    monkeypatch.setattr(measure, "device_memory", lambda: 1e9)
    assert forecast.Work("base", 3072, 96, 64, "float32").part == 1


def test_forecasts_that_take_too_long_are_left_out(tmp_path):
    rows = rows_of("forecast", tmp_path / "rows.json", "--limit", "1e-9")
    assert list(rows) == [("matrix product float32", None)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dtypes", "float32,int8"), "not int8"),
        (("--batches", "8,0"), "not 0"),
        (("--contexts", "3072", "--horizons", "1025"), "4096 points together"),
    ],
)
def test_forecasts_that_cannot_be_measured_are_said(flags, message):
    done = script("forecast", *flags)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--implementations", "blocked,tall"), "not tall"),
        (("--sizes", "huge"), "not huge"),
        # This interpreter has no PyTorch.
        (("--published-python", sys.executable, "--published-code", "CODE"), "not run: Module"),
        (("--published-python", sys.executable, "--published-code", "."), "none of the packages"),
    ],
)
def test_what_cannot_be_measured_is_said(flags, message, tmp_path):
    (tmp_path / "time_moe").mkdir()
    done = script("expert_layer", *(str(tmp_path) if f == "CODE" else f for f in flags))
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


def test_the_minimum_of_turns_counts_and_a_first_call_does_not():
    times = {"ours": iter((9.0, 3.0, 2.0, 4.0)), "theirs": iter((8.0, 5.0, 5.0, 5.0))}
    order = []

    def side(name: str):
        def run(calls: int) -> list[float]:
            order.append(name)
            return [next(times[name]) for _ in range(calls)]

        return run

    timings = interleave({name: side(name) for name in times}, rounds=3)
    assert timings == {"ours": Timing(2.0, 1.0, 3), "theirs": Timing(5.0, 0.0, 3)}
    assert order[2:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_the_estimate_of_scaling(tmp_path):
    """The state of the base model on 8 devices, by hand: 113 million parameters, three times 4
    bytes each, split four ways but for what is small. In a process of its own, which it is that
    gets 8 devices.
    """
    path = tmp_path / "rows.json"
    flags = ("--quick", "--state-only", "--json", path)
    (done,) = run_processes(["benchmarks/scaling.py", *flags], 1, 1)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["value"] for row in json.loads(path.read_text())}
    assert 113.3e6 * 12 / 4 / 1e9 < rows["time_moe_base on 8 state per device"] < 0.36
    # 100,000 updates of 8 x 4096 points at 6 operations for each of 50 million parameters, and
    # for 12 layers of attention over 4096 points of width 384.
    operations = 1e5 * 8 * 4096 * 6 * (50.9e6 + 12 * 4096 * 384)
    hours = operations / (8 * 400e12 * 0.4) / 3600
    assert abs(rows["time_moe_base on 8 time"] / hours - 1) < 0.02


def test_first_forecast(monkeypatch, tmp_path):
    """Without the processes, whose times a test cannot judge: one of them is run."""
    from benchmarks import first_forecast

    # A process that waits takes the time of the clock, and hardly any of the processor.
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    assert first_forecast.seconds(busy, "off", clock="cpu") >= 0.3
    assert first_forecast.seconds("import time; time.sleep(1)", "off") > 1
    assert first_forecast.seconds("import time; time.sleep(1)", "off", clock="cpu") < 1
    asked = []

    def seconds(program, cache, checkpoint, clock="wall"):
        asked.append((program, cache))
        assert checkpoint == "some/model"
        return float(len(program))

    monkeypatch.setattr(first_forecast, "seconds", seconds)
    monkeypatch.setattr(first_forecast, "intervals", lambda *_: (1.0, 3.0))
    path = tmp_path / "rows.json"
    flags = ["--quick", "--checkpoint", "some/model", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["first_forecast.py", *flags])
    first_forecast.main()
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert rows["one series"]["reference"] == "import of JAX and Flax"
    assert rows["one series, programs on disk"]["ratio"] > 1
    assert rows["4 series of 600 points, intervals"]["ratio"] == 3
    folders = {cache for _, cache in asked}
    assert len(folders) == 2
    assert "off" in folders
    for program, _ in asked:
        compile(program, "program", "exec")
