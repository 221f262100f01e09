"""Zero-shot evaluation on ETT and Weather, as in the paper's Table 3.

python eval_main.py --config=configs/eval_ltsf.py --config.checkpoint=PATH --config.data_dir=DIR

`timemoe data download ett DIR` and `timemoe data download weather DIR` fetch the files. With
`--config.protocol=published` the last window of each series is left out, as in the published
evaluation. Without a checkpoint the baselines alone are scored.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.checkpoint = ""
    config.data_dir = "data"
    config.datasets = "ETTh1,ETTh2,ETTm1,ETTm2,weather"
    config.horizons = "96,192,336,720"
    config.context_length = config_dict.placeholder(int)
    config.protocol = "complete"
    config.normalize = "none"
    config.dtype = "auto"
    config.batch_size = 64
    config.max_windows = config_dict.placeholder(int)
    config.output_dir = "out/eval"
    config.lock()
    return config
