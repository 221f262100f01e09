"""The shares of the sources that a run's log gives, when the run is one of several processes."""

from pathlib import Path

import numpy as np
import pytest
from processes import run_here, run_processes

from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.training.metrics_log import read_metrics

STEPS, LOG_EVERY = 30, 10
WEIGHTS = {"energy": 3, "nature": 1, "web": 1}
FIELDS = {
    "model.hidden_size": 16,
    "model.intermediate_size": 32,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "model.num_experts": 4,
    "model.horizon_lengths": "(1,)",
    "data.length": 48,
    "data.synthetic_sequences": 0,
    "data.validation_fraction": 0.0,
    "data.mixing": "fixed",
    "data.mixing_weights": ",".join(f"{name}:{weight}" for name, weight in WEIGHTS.items()),
    "optimizer.warmup_steps": 2,
    "train.num_steps": STEPS,
    "train.batch_size": 16,
    "train.log_every": LOG_EVERY,
    "train.checkpoint_every": STEPS,
    "train.eval_every": 0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Most series lie where the least weight is; many are shorter than a window."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for domain, count in (("energy", 40), ("nature", 300), ("web", 60)):
        series = (rng.normal(size=length) for length in rng.integers(20, 200, count))
        write_time_moe_folder(root / domain / "one", series)
    return root


def logged_shares(corpus: Path, workdir: Path, processes: int) -> dict[str, list[float]]:
    """What the log says at each of its records, by domain."""
    fields = FIELDS | {"data.path": corpus}
    args = ["train_main.py", "--config=configs/smoke.py", f"--workdir={workdir}"]
    args += ["--distributed=auto"] * (processes > 1)
    args += [f"--config.{name}={value}" for name, value in fields.items()]
    if processes == 1:
        every = [run_here(*args)]
    else:
        every = run_processes(args, processes, 1, timeout=240)
    assert all(done.returncode == 0 for done in every), every
    records = [record for record in read_metrics(workdir / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    names = sorted(key for key in records[0] if key.startswith("share_"))
    assert names == [f"share_{domain}" for domain in sorted(WEIGHTS)]
    return {name.removeprefix("share_"): [r[name] for r in records] for name in names}


def test_two_processes_log_the_shares_of_the_run_and_these_are_the_planned_ones(corpus, tmp_path):
    alone = logged_shares(corpus, tmp_path / "alone", 1)
    together = logged_shares(corpus, tmp_path / "together", 2)
    for domain, weight in WEIGHTS.items():
        # The same windows, whichever process makes them; counts in float32.
        np.testing.assert_allclose(together[domain], alone[domain], rtol=1e-6)
        # Draws are spread evenly, but windows differ: of 48 points at most, by about a third of
        # their mean. 96 windows of a domain make an error of 0.04 of its points, or 0.007 of a
        # share of 1/5; four of these.
        planned = weight / sum(WEIGHTS.values())
        assert abs(np.mean(alone[domain]) - planned) < 0.028
    assert np.sum([*alone.values()], axis=0) == pytest.approx(1)
