"""The published fine-tuning: one epoch on the train split of a benchmark (Table 4 of the paper).

python train_main.py --config=configs/finetune_published.py:ETTh1 --workdir=out/etth1_published \
    --config.data.path=PATH_TO/ETTh1.csv --config.train.init_from=PATH_TO/TimeMoE-50M
python eval_main.py --config=configs/eval_ltsf.py --config.checkpoint=out/etth1_published \
    --config.data_dir=PATH_TO_DATA --config.datasets=ETTh1

Windows of 1,024 points at stride 1 of series z-scored as a whole, AdamW from 1e-4 down to 5e-5 by a
cosine without a warm-up, 64 windows an update, one epoch, nothing validated. With the published
default of --config.data.stride=1024 ETTh1 has 56 windows, so that --config.train.num_steps=1 is its
epoch. The name behind the colon says where the train split ends. Hardware and time: an accelerator,
an hour. Expected result: for the base model at 96 points on ETTh1 an MSE of .345, by the paper;
`configs/finetune.py` is the way that this library advises.
"""

import ml_collections

from configs import time_moe_base

# Rows of the file, rows of its train split, and columns of values.
SPLITS = {
    "ETTh1": (17420, 8640, 7),
    "ETTh2": (17420, 8640, 7),
    "ETTm1": (69680, 34560, 7),
    "ETTm2": (69680, 34560, 7),
    "weather": (52696, 36887, 21),
}


def get_config(dataset: str = "ETTh1") -> ml_collections.ConfigDict:
    rows, train, columns = SPLITS[dataset]
    config = time_moe_base.get_config()
    with config.unlocked():
        config.model.dtype = "float32"
        config.data.length = 1024
        config.data.stride = 1
        config.data.path = ""
        # What lies behind the train split is held out of training.
        config.data.validation_tail = (rows - train) / rows - 1e-9
        config.train.init_from = ""
        config.train.batch_size = 64
        config.train.num_steps = -(-columns * (train - 1024) // 64)
        config.train.log_every = 10
        config.train.checkpoint_every = config.train.num_steps
        config.train.eval_batches = 4
        config.optimizer.learning_rate = 1e-4
        config.optimizer.end_learning_rate = 5e-5
        config.optimizer.warmup_steps = 0
        config.optimizer.weight_decay = 0.1
        config.optimizer.weight_decay_exclude = "none"
        config.optimizer.eps = 1e-8
        config.optimizer.clip_norm = 1.0
        config.seed = 9899
    return config
