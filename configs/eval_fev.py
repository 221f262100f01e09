"""fev-bench: the 7 tasks that follow from ETT and Weather, or any as published.

python eval_main.py --config=configs/eval_fev.py --config.data_dir=DIR

Any task of a file in fev's layout is scored where its Parquet files lie in DIR:
`--config.tasks=tasks.yaml --config.datasets=hospital`. Hardware and time: 361 seconds of one CPU
core for the 7 tasks.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.leaderboards.config import FevConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(FevConfig)
    config.checkpoint = "nano"
    config.output_dir = "out/eval_fev"
    return config
