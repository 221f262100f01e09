"""Time-MoE large: 453M parameters, 198M activated, with the paper's recipe (arXiv 2409.16040).

python train_main.py --config=configs/time_moe_large.py --workdir=out/large \
    --config.data.path=PATH_TO_TIME_300B

Hardware, time and caveats as for `time_moe_base.py`. Expected result: the zero-shot table of the
paper (ETTh1 at 96: MSE 0.350, MAE 0.382). Not run to its end with this library.
"""

import ml_collections

from configs import time_moe_base


def get_config() -> ml_collections.ConfigDict:
    config = time_moe_base.get_config()
    config.model.hidden_size = 768
    config.model.intermediate_size = 3072
    return config
