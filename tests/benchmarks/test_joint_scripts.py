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
    """The parameters are those of the first stage, to which only biases of attention are new."""
    frame = known_ahead.table(3.0, seed=0)
    frame[["ds", "y"]][:1000].to_csv(tmp_path / "apart.csv", index=False)
    frame[:1000].to_csv(tmp_path / "joint.csv", index=False)
    first = known_ahead.run_config(tmp_path / "apart.csv", False, 2, seed=0)
    train.run(first, tmp_path / "first")
    start = str(tmp_path / "first")
    second = known_ahead.run_config(tmp_path / "joint.csv", True, 2, 0, start)
    assert train.run(second, tmp_path / "second").step == 2
    before, after = (
        Forecaster.from_pretrained(tmp_path / name, disk_cache=False)
        for name in ("first", "second")
    )
    kernels = [f.engine.params["embed"]["kernel"][...] for f in (before, after)]
    np.testing.assert_allclose(*kernels, atol=0.02)  # a few small steps away
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    other = after.engine.params["blocks"]["attention"]["other"][...]
    assert np.abs(other[1:]).min() > 0
    assert np.isfinite(known_ahead.error(after, frame, joint=True))
