"""Seg-MoE small with the published recipe, on any CSV: 6.9M parameters (arXiv 2601.21641).

python train_main.py --config=configs/seg_moe_small.py --workdir=out/seg_moe_small \
    --config.data.path=weather.csv --config.data.variates=21 \
    --config.data.train_rows=36887 --config.data.validation_rows=5270

A window is of all variates of the table, as published: give `data.variates` their number; 0 makes
windows of one variate. The published run on Weather has 2,840 updates of 256 windows, 20 epochs;
the number of updates follows from the rows, epochs * ceil(windows / 256). Rates, warm-up (a tenth)
and floor are as published, but for the first update, which here has a rate of 0 and there the
highest one. Nothing is clipped. The rows are the published split of Weather (8640 and 2880 of
ETTh1); without them every row is trained on. Published result on Weather: MSE 0.223, the mean of
96, 192, 336 and 720 points. Hardware: a GPU. This configuration has not been run to its end with
this library.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.models.seg_moe.config import SegMoeConfig
from timemoe_jax.training.config import RunConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(RunConfig)
    with config.unlocked():
        config.model = as_config_dict(SegMoeConfig)
        config.data.length = config.model.get_ref("max_position_embeddings")
    config.data.future = 32
    config.data.stride = 1
    config.optimizer.learning_rate = 3.2e-4
    config.optimizer.end_learning_rate = 1.2e-5
    config.optimizer.eps = 1e-10
    config.optimizer.clip_norm = 0.0
    config.train.num_steps = 2840
    config.train.batch_size = 256
    config.train.checkpoint_every = 142
    config.train.keep_checkpoints = 20
    steps = config.train.get_ref("num_steps")
    config.optimizer.warmup_steps = steps // 10
    config.seed = 44
    return config
