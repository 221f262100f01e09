"""Zero-shot evaluation on ETT and Weather, as in the paper's Table 3.

python eval_main.py --config=configs/eval_ltsf.py --config.checkpoint=PATH --config.data_dir=DIR

`timemoe data download ett DIR` and `timemoe data download weather DIR` fetch the files. With
`--config.protocol=published` the last window of each series is left out, as in the published
evaluation. Without a checkpoint the baselines alone are scored.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.config import EvalConfig


def get_config() -> ml_collections.ConfigDict:
    return as_config_dict(EvalConfig)
