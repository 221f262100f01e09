"""Time-MoE base: 113M parameters, 50M activated, with the paper's recipe (arXiv 2409.16040).

python train_main.py --config=configs/time_moe_base.py --workdir=out/base \
    --config.data.path=PATH_TO_TIME_300B

Hardware and time: the paper trained on 128 A100-80G. One update sees 1024 x 4096 points, so on
fewer devices lower `train.batch_size` or raise `train.gradient_accumulation`. Expected result: the
zero-shot table of the paper (ETTh1 at 96: MSE 0.357, MAE 0.381). This configuration has not been
run to its end with this library.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.training.config import RunConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(RunConfig)
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.length = 4096
    config.data.num_threads = 8
    config.optimizer.end_learning_rate = 5e-5
    config.optimizer.warmup_steps = 10_000
    config.train.num_steps = 100_000
    config.train.batch_size = 1024
    config.train.log_every = 100
    config.train.eval_every = 1000
    return config
