"""A model and a run small enough to compile in seconds, for tests that need no particular ones."""

import dataclasses
import os
from typing import Any

from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_tracker.config import TimeTrackerConfig

# Large initial weights, so that every part of the model has a say. Of one block: a second takes
# half as long again to compile, and is given where blocks together are what is tested.
TINY = TimeMoeConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_experts=4,
    horizon_lengths=(1, 4),
    initializer_range=0.4,
)
TWO_BLOCKS = dataclasses.replace(TINY, num_hidden_layers=2)
# Of one block that reads each variate by itself, and one that reads those that it is linked to.
TRACKER = TimeTrackerConfig(
    horizon_lengths=(4,),
    patch_size=4,
    hidden_size=16,
    num_hidden_layers=2,
    num_mixed_layers=1,
    num_attention_heads=2,
    num_experts=4,
    expert_size=12,
    shared_size=12,
    mixing="graph",
    graph_points=16,
    max_position_embeddings=128,
    initializer_range=0.4,
)

# Of all tests of fine-tuning, at a horizon of 4 in batches of 8, so that they share programs.
TUNABLE = dataclasses.replace(
    TINY, router_bias=True, initializer_range=0.2, max_position_embeddings=64, default_context=32
)

# Of a run of `train_main.py`; what it lacks is that of configs/smoke.py.
TINY_RUN: dict[str, Any] = {
    "model.hidden_size": 16,
    "model.intermediate_size": 32,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "model.num_experts": 4,
    "model.horizon_lengths": "(1, 8)",
    "data.length": 48,
    "data.synthetic_sequences": 40,
    "data.synthetic_length": 200,
    "data.validation_fraction": 0.1,
    "optimizer.warmup_steps": 2,
    "train.batch_size": 8,
    "train.log_every": 1,
}


def training_program(workdir: os.PathLike, *flags: str, **fields: Any) -> list[str]:
    """`train_main.py` and the arguments of a tiny run; `train__num_steps` is train.num_steps."""
    every = TINY_RUN | {name.replace("__", "."): value for name, value in fields.items()}
    start = ["train_main.py", "--config=configs/smoke.py", f"--workdir={os.fspath(workdir)}"]
    return [*start, *flags, *(f"--config.{name}={value}" for name, value in every.items())]
