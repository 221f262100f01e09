"""Compares methods on your own series, with a leaderboard and a report.

python eval_main.py --config=configs/eval_frame.py --config.path=sales.csv

`--config.baselines=naive,seasonal_naive,ets,theta` names other methods than the built-in ones,
`--config.checkpoint=out/run` another model than nano. Hardware and time: two CPU cores, a minute
for a hundred series of three folds with the built-in methods.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.comparisons.config import FrameConfig


def get_config() -> ml_collections.ConfigDict:
    return as_config_dict(FrameConfig)
