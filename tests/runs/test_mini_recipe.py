"""The recipe of mini: its size, its sources, and a shortened run that learns and resumes."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import time_moe_mini
from timemoe_jax.config import from_mapping
from timemoe_jax.models.base import count_parameters
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.metrics_log import read_metrics


def _shortened() -> ConfigDict:
    """All but the real data, which is generated here, and the size."""
    config = time_moe_mini.get_config()
    with config.unlocked():
        config.model.hidden_size = 32
        config.model.intermediate_size = 64
        config.model.num_hidden_layers = 1
        config.model.num_attention_heads = config.model.num_key_value_heads = 4
        config.model.attention_reach = 4
        config.model.copy_lags = 64
        config.model.horizon_lengths = (16, 48)
        config.data.length = 128
        config.data.future = 48
        config.data.stride = 0
        config.data.mixing, config.data.mixing_unit = "points", "points"
        config.data.mixing_weights = config.data.validation_sources = ""
        config.data.resolutions, config.data.resolution_min = "", 0
        config.data.synthetic_share = 1.0
        config.data.synthetic_families = "tides,growth,recurrence"
        config.optimizer.warmup_steps = 10
        config.optimizer.decay_steps = 20
        config.train.num_steps = 60
        config.train.log_every = 10
        config.train.checkpoint_every = 40
    return config


def test_a_shortened_run_learns_and_resumes_bit_by_bit(tmp_path):
    """All that is drawn for pieces follows from the seed and the update."""
    config, workdir = from_mapping(RunConfig, _shortened()), tmp_path / "run"
    whole = train.run(config, workdir, devices=jax.devices()[:1])
    losses = [record["loss"] for record in read_metrics(workdir / "metrics.jsonl")]
    # Ten updates each, whose windows differ in difficulty: the second half was 0.89 of the first
    # ten when this was written.
    assert np.mean(losses[3:6]) < 0.94 * losses[0]
    (workdir / "checkpoints" / "60").rename(tmp_path / "60")
    resumed = train.run(config, workdir, devices=jax.devices()[:1])
    for a, b in zip(*(jax.tree.leaves(r.state) for r in (whole, resumed)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    "run", ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
)
def test_it_is_small_and_says_its_own_quantiles(run):
    config = time_moe_mini.get_config(run)
    config.data.path = "corpus"
    model = from_mapping(RunConfig, config).model
    assert count_parameters(model)[0] <= 10_000_000
    assert model.quantile_levels == tuple(i / 10 for i in range(1, 10))
    assert not model.point_heads


def test_every_source_of_the_corpus_has_a_place(shared_dir):
    """It is trained on, held out, or neither; none by the weight of its domain unawares."""
    listed = (shared_dir / "corpus" / "SOURCES.md").read_text()
    rows = [
        line.split("|")[1].split(" (")[0].strip() for line in listed.splitlines() if "|" in line
    ]
    sources = {name for name in rows if "/" in name and not name.startswith("domain")}
    weighted = {name for shares in time_moe_mini.SHARES.values() for name in shares}
    placed = weighted | set(time_moe_mini.VALIDATION_SOURCES) | set(time_moe_mini.NEVER)
    assert {name for name in placed if "/" in name} <= sources
    by_domain = sources - placed
    assert by_domain == {"industry/skab_valve_1s", "industry/smap_msl_telemetry"}


def test_nothing_of_the_benchmarks_is_trained_on():
    config = time_moe_mini.get_config()
    assert config.data.path == config.data.validation_path == ""
    weights = [entry.rsplit(":", 1)[0] for entry in config.data.mixing_weights.split(",")]
    names = [*config.data.validation_sources.split(","), *weights]
    parts = {part.lower() for name in names for part in name.split("/")}
    assert not [part for part in parts if part.startswith(("ett_", "etth", "ettm"))]
    assert "weather" not in parts
