"""The benchmarks of the data run, and their rows are what they say; nothing is about times."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from processes import run_here

from timemoe_jax.forecasting import forecaster
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import create_params


def data_rows(name: str, path: Path, *flags: str) -> dict[str, dict]:
    """The rows of a benchmark by name, after checking each one's fields."""
    done = run_here(f"benchmarks/{name}.py", "--quick", *flags, "--json", path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    for row in rows:
        assert list(row) == ["name", "value", "unit", "reference", "ratio"]
        assert (row["reference"] is None) == (row["ratio"] is None), row
    assert len({(row["name"], row["reference"]) for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def test_folder_index(tmp_path):
    flags = ("--sequences", "20000", "--folder", str(tmp_path / "kept"))
    rows = data_rows("folder_index", tmp_path / "rows.json", *flags)
    for kind in ("make", "open", "open not cached"):
        row = rows[f"{kind} 20000"]
        assert (row["unit"], row["reference"]) == ("s", "json.load")
        assert row["ratio"] == pytest.approx(
            row["value"] / rows["json.load 20000, by 50000"]["value"]
        )
    kept = {path.name: path.stat().st_size / 1e6 for path in (tmp_path / "kept").iterdir()}
    assert kept.keys() == {"meta.json", "meta.index", "data-1-of-1.bin"}
    for name in ("meta.json", "meta.index"):
        assert rows[f"{name} 20000"]["value"] == kept[name]


def test_cleaning(tmp_path):
    rows = data_rows("cleaning", tmp_path / "rows.json")
    for length in (128, 256, 512, 8192):
        row = rows[f"clean float32 x {length}"]
        assert (row["unit"], row["reference"]) == ("million points/s", "read of the bytes")
    for length in (8192, 512):
        row = rows[f"folder of {length}, 1 process"]
        assert (row["unit"], row["reference"]) == ("million points/s", "copy of the files")
        row = rows[f"folder of {length}, 1 process, of processor time"]
        assert (row["unit"], row["reference"]) == ("million points/s", None)
    assert all(row["value"] > 0 for row in rows.values())


def test_conversion(tmp_path):
    rows = data_rows("conversion", tmp_path / "rows.json", "--series", "60")
    files = ("sorted", "interleaved", "lists")
    for file in (*(f"{name}.parquet" for name in files), "dataset", "wide.csv", "series.tsf"):
        assert rows[f"convert {file}"]["unit"] == "points/s"
        assert rows[f"convert {file}"]["reference"]
    memory = rows["read one series"]
    assert (memory["unit"], memory["reference"]) == ("MB", "pyarrow read_table")
    assert all(row["value"] > 0 for row in rows.values())


def test_coverage(tmp_path):
    """Without data a sample stands in; both kinds of intervals, beside seasonal naive."""
    rows = data_rows("coverage", tmp_path / "rows.json", "--windows", "6")
    for method in (
        "random conformal",
        "random heads",
        "random calibrated",
        "seasonal naive conformal",
    ):
        found = {name: row for name, row in rows.items() if f" {method} " in f"{name} "}
        kinds = {name.split(method)[1].strip() for name in found}
        assert kinds == {"coverage 80", "coverage 95", "width 80", "width 95", "pinball"}
        for name, row in found.items():
            if "coverage" in name:
                assert 0 <= row["value"] <= 1
                assert row["ratio"] == pytest.approx(row["value"] / int(name.split()[-1]) * 100)
            else:
                assert row["value"] > 0


@pytest.fixture(scope="module")
def _one_model() -> Iterator[None]:
    """Frames of both kinds are forecast by one, so that its programs are compiled once."""
    make = functools.cache(lambda config: Forecaster(config, create_params(config, seed=0)))
    with mock.patch.object(forecaster, "Forecaster", lambda config, _: make(config)):
        yield


@pytest.mark.parametrize("flags", [(), ("--long",)])
@pytest.mark.usefixtures("_one_model")
def test_frame_memory(tmp_path, flags):
    rows = data_rows("frame_memory", tmp_path / "rows.json", *flags)
    name = f"50 x 20000 {'long' if flags else 'wide'}"
    frame, peak = rows[f"{name} frame"], rows[f"{name} peak over it"]
    assert frame["value"] >= 50 * 20_000 * 8 / 1e6
    assert peak["ratio"] == pytest.approx(peak["value"] / frame["value"])
    # What is read of the series is a few points of each.
    assert peak["value"] < 500
