"""Fine-tunes nano on your own series: a CSV, Parquet or any other file that training reads.

timemoe train --config=own_data --config.data.path=sales.csv --workdir=out/sales

The last fifth of each series is held out: the validation loss is of forecasts there, at step 0
those of nano as it is. Warm-up, decay, and how often something is logged and saved follow from
--config.train.num_steps. One series is enough. Hardware and time: two CPU cores, a few minutes.
Expected result: a falling validation loss, and at the end the command that forecasts.
"""

import ml_collections

from configs import time_moe_nano


def get_config() -> ml_collections.ConfigDict:
    config = time_moe_nano.get_config()
    with config.unlocked():
        config.train.init_from = "nano"
        config.train.num_steps = 50
        config.train.batch_size = 8
        # They follow a number of updates that is given on the command line.
        steps = config.train.get_ref("num_steps")
        config.train.log_every = (steps + 9) // 10
        config.train.checkpoint_every = (steps + 4) // 5
        config.train.eval_every = (steps + 4) // 5
        config.train.eval_batches = 8
        config.optimizer.warmup_steps = steps // 10
        config.optimizer.decay_steps = steps // 2
        # A tenth of what nano was trained with from the start is too little to change it.
        config.optimizer.learning_rate = 1e-3
        config.data.path = ""
        config.data.validation_sources = ""
        config.data.validation_tail = 0.2
        config.data.fill_absent = True
        config.data.context_min = 32
        config.data.mixing = "points"
        config.data.mixing_weights = ""
        config.data.resolutions = ""
        config.data.synthetic_share = 0.0
        config.data.synthetic_families = ""
    return config
