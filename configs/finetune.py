"""Fine-tunes the bundled model, or another, on your series, and keeps what forecasts best.

python train_main.py --config=configs/finetune.py --config.data.path=sales.csv \
    --config.finetune.horizon=28 --workdir=out/sales

--config.checkpoint names another model. The last fifth of each series, at least a horizon, is held
out: before the first update and five times afterwards it is forecast, and the best parameters are
kept, the start's included. Hardware and time: two CPU cores, about five minutes. Expected result:
`report.json` with the errors of zero-shot beside those of what was kept, and a model that
`timemoe forecast` takes (docs/finetuning.md).
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.training.finetuning.config import FinetuneRunConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(FinetuneRunConfig)
    with config.unlocked():
        config.finetune.horizon = 96
    return config
