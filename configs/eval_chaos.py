"""Chaotic systems, beside context parroting: sMAPE and valid prediction time.

python eval_main.py --config=configs/eval_chaos.py

The three systems are the library's own. With the package dysts (the extra `chaos`)
`--config.systems=dysts` takes its 135, `--config.systems=Lorenz,Aizawa` some of them.
Hardware and time: 12 seconds of one CPU core for the three systems.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.leaderboards.config import ChaosConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(ChaosConfig)
    config.checkpoint = "nano"
    config.output_dir = "out/eval_chaos"
    return config
