"""Time Tracker, second stage: the variates of a table together, from a first one (2505.15151).

python train_main.py --config=configs/time_tracker_mixed.py --workdir=out/mixed \
    --config.checkpoint=out/tracker --config.data.path=ETTh1.csv

A stage of fine-tuning (docs/finetuning.md): the last fifth of the table, or the last
`--config.finetune.validation_points`, is forecast before the first update, by the model that reads
its variates apart, and regularly afterwards; if the mixed model is not better there, the start is
what is written. The last layers read the variates that each is linked to, by links drawn from the
spectra of the first points of the context; `--config.finetune.mixing=all` reads them all, `none`
goes on apart. The biases of attention start at 0 here, since they have no gradient while variates
are read apart. Rates are tried from those of the paper's fine-tuning up.

Hardware and time: a few minutes of two CPU cores for the small model. Expected result:
docs/time_tracker.md has a table.
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.training.finetuning.config import FinetuneRunConfig


def get_config() -> ml_collections.ConfigDict:
    config = as_config_dict(FinetuneRunConfig)
    with config.unlocked():
        config.finetune.mixing = "graph"
        config.finetune.horizon = 96
        config.finetune.context_length = 672
        config.finetune.search_rates = (2e-5, 1e-4, 5e-4, 2e-3)
    return config
