"""The benchmarks of joint models run, through both stages of a Time Tracker."""

import json

import numpy as np
from processes import run_here

from benchmarks import known_ahead
from timemoe_jax import Forecaster
from timemoe_jax.training import run as train


def test_any_variate(tmp_path):
    flags = ("--quick", "--rounds", "1", "--variates", "2", "--json", str(tmp_path / "rows.json"))
    done = run_here("benchmarks/any_variate.py", *flags)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert len(rows) == 12
    assert rows["linked forward 2x42"]["reference"] == "plain"
    assert rows["all forward+backward 2x42 temporaries"]["unit"] == "MB"


def test_a_promotion_raises_the_values_of_its_table():
    frame = known_ahead.table(3.0, seed=0)
    on = frame["promotion"] == 1
    assert 0.3 < on.mean() < 0.7
    assert 2.5 < frame["y"][on].mean() - frame["y"][~on].mean() < 3.5


def test_a_second_stage_starts_from_the_first_and_knows_a_covariate(tmp_path):
    """What it is tuned to reads the promotion that is planned."""
    frame = known_ahead.table(3.0, seed=0)
    past = frame[:1000]
    past[["ds", "y"]].to_csv(tmp_path / "apart.csv", index=False)
    train.run(known_ahead.first_stage(tmp_path / "apart.csv", 2, seed=0), tmp_path / "first")
    start = Forecaster.from_pretrained(tmp_path / "first", disk_cache=False)
    few = {"learning_rate": 1e-2, "num_steps": 20, "batch_size": 8, "progress": False}
    few |= {"context_length": known_ahead.CONTEXT, "validation_windows": 64, "shares": ()}
    known = {"known_covariates": "promotion", "mixing": "all"}
    tuned = start.fit(past, known_ahead.HORIZON, target="y", **known, **few)
    assert tuned.tuning.kept
    said = []
    for joint in (True, False):
        said.append(known_ahead.error(tuned, frame, joint))
    assert np.isfinite(said).all()
    assert said[0] != said[1]
