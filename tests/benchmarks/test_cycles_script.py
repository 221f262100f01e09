"""The comparison on cycles: what recurs, what seasonal naive says of it, and the rows."""

import json

import numpy as np
import pytest
from processes import run_here

from benchmarks import cycles


@pytest.mark.parametrize("shape", cycles.SHAPES)
def test_cycles_recur_but_for_their_noise_and_strength(shape, monkeypatch):
    monkeypatch.setattr(cycles, "NOISE", 0.0)
    found = cycles.cycles(np.random.default_rng(0), shape, 30, 5, 200)
    assert found.shape == (5, 200)
    before, after = found[:, :-30], found[:, 30:]
    if shape == "days":
        np.testing.assert_array_equal(before > 0, after > 0)
    else:
        np.testing.assert_allclose(before, after, atol=1e-12)
    assert len(np.unique(found[:, 0])) > 1


def test_the_last_cycle_lies_within_the_context():
    contexts = np.arange(20.0)[None]
    np.testing.assert_array_equal(cycles.last_cycle(contexts, 6, 4), [[14, 15, 16, 17]])
    np.testing.assert_array_equal(cycles.last_cycle(contexts, 3, 5), [[14, 15, 16, 17, 18]])


def test_a_period_that_is_too_long_is_refused(capsys):
    with pytest.raises(SystemExit):
        cycles.parse(["--context", "100", "--horizon", "60", "--periods", "41"])
    assert "--periods: 41 is not from 2 to 40" in capsys.readouterr().err


def test_it_writes_the_error_of_each_shape_and_period(tmp_path):
    path = tmp_path / "rows.json"
    done = run_here("benchmarks/cycles.py", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows[:2]] == ["sine 7 mini", "sine 24 mini"]
    assert {row["reference"] for row in rows} == {"seasonal naive"}
    assert len(rows) == 6
