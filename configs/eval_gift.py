"""GIFT-Eval: the 23 configurations that follow from ETT and Weather, or any as published.

python eval_main.py --config=configs/eval_gift.py --config.data_dir=DIR

`timemoe data download ett DIR` and `timemoe data download weather DIR` fetch the files. Any data
set of GIFT-Eval is scored where its folder lies in DIR: `--config.datasets=m4_weekly,solar/H`.
Hardware and time: 493 seconds of one CPU core for the 23 configurations.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.leaderboards.config import GiftConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(GiftConfig)
    config.checkpoint = "nano"
    config.output_dir = "out/eval_gift"
    return config
