"""Time Tracker, first stage: every variate by itself, on a corpus (arXiv 2505.15151).

python train_main.py --config=configs/time_tracker_pretrain.py --workdir=out/tracker \
    --config.data.path=PATH_TO_CORPUS

With `--config=configs/time_tracker_pretrain.py:paper` the model is as wide and as deep as in the
paper, and trained as long as is said there; the default is a small one. A window is one series,
which is z-scored by its context, as a forecast is. The layers that will mix variates are there, but
read each variate by itself.

Hardware and time: the small one, 1.2M parameters with 0.5M activated, takes 6 to 12 minutes of a
CPU core; the paper's, 65M parameters with 27M activated, is for a GPU and has not been run.
Expected result: docs/time_tracker.md.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.models.time_tracker.config import TimeTrackerConfig
from timemoe_jax.training.config import RunConfig


def get_config(size: str = "small") -> ml_collections.ConfigDict:
    if size not in ("small", "paper"):
        raise ValueError(f"the size must be small or paper, but is {size!r}")
    config = as_config_dict(RunConfig)
    with config.unlocked():
        config.model = as_config_dict(TimeTrackerConfig)
    config.data.variates = 1
    # The lookback of the paper's longer setting, and one patch after it to aim at.
    config.data.length = 672
    config.data.future = 48
    config.data.standardization = "context"
    config.data.context_min = 96
    config.data.clip = 10.0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 5_000
    config.train.num_steps = 100_000
    config.train.batch_size = 256
    config.train.log_every = 100
    config.train.eval_every = 1_000
    if size == "small":
        _make_small(config)
    return config


def _make_small(config: ml_collections.ConfigDict) -> None:
    """A model that an hour trains, on what the paper's model reads."""
    config.model.hidden_size = 96
    config.model.num_hidden_layers = 4
    config.model.num_attention_heads = 4
    config.model.expert_size = 96
    config.model.shared_size = 96
    config.model.max_position_embeddings = 1440
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.train.num_steps = 4_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 500
    config.train.eval_every = 500
