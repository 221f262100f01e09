"""The metrics file across resumes and kills."""

import json

import numpy as np
import pytest

from timemoe_jax.training.metrics_log import Meter, MetricsLog, read_metrics


def test_a_resumed_log_repeats_no_step(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": np.float32(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    log = MetricsLog(tmp_path, 2)
    log.write(3, {"loss": np.float32(30)})
    log.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_values_are_plain_json(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": np.float32(np.nan), "load": np.array([[0.5, 0.5], [1.0, np.inf]])})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": None, "load": [[0.5, 0.5], [1.0, None]]}


def test_the_meter_counts_from_its_restart(monkeypatch):
    now = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter = Meter()
    meter.add(1000)
    assert meter.rate() == 0.0
    meter.restart()
    meter.add(50)
    assert meter.rate() == pytest.approx(25.0)
