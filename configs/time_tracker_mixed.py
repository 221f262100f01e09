"""Time Tracker, second stage: the variates of one table together, from a first one (2505.15151).

python train_main.py --config=configs/time_tracker_mixed.py --workdir=out/mixed \
    --config.data.path=ETTh1.csv --config.data.variates=7 --config.train.init_from=out/tracker

`data.variates` is the number of columns. The size of the model is that of the first stage: with
`--config=configs/time_tracker_mixed.py:paper` that of the paper, else the small one. The last
layers read the variates that each is linked to, by links drawn from the spectra of the first points
of the context; `--config.model.mixing=all` reads them all, `none` goes on apart. The biases of
attention start at 0 here, since they have no gradient while variates are read apart. Validate on
later rows of the table, in a file of their own, with `--config.data.validation_path`.

Hardware and time: some minutes of two CPU cores for the small one. Expected result: a validation
loss below that of step 0, the model before this stage. It has not been measured yet.
"""

import ml_collections

from configs import time_tracker_pretrain


def get_config(size: str = "small") -> ml_collections.ConfigDict:
    config = time_tracker_pretrain.get_config(size)
    config.model.mixing = "graph"
    config.data.variates = 7
    config.data.stride = 48
    config.data.validation_fraction = 0.0
    # Within what the paper's fine-tuning is said to use.
    config.optimizer.learning_rate = 5e-5
    config.train.num_steps = 1_000
    steps = config.train.get_ref("num_steps")
    config.optimizer.warmup_steps = steps // 20
    config.train.batch_size = 16
    config.train.log_every = 50
    config.train.checkpoint_every = 250
    config.train.eval_every = 250
    return config
